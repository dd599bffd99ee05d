"""How many units go: against enumeration, and the limits that always hold."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alula.errors import RecipeError
from alula.numerics.allocation import (
    Limits,
    count_globally,
    count_uniformly,
    least_important,
)

SIZES = st.lists(st.integers(1, 12), min_size=1, max_size=4)
LIMITS = st.builds(Limits, st.sampled_from([0.0, 0.1, 0.5, 1.0]), st.sampled_from([1, 2, 4]))
FREE = Limits(0.0, 1)


def drawn(sizes, seed=0):
    return [np.random.default_rng([seed, number]).random(size) + 0.01 for number, size in enumerate(sizes)]


@given(SIZES, LIMITS, st.floats(0, 0.99), st.sampled_from([count_uniformly, count_globally]))
def test_limits_always_hold(sizes, limits, amount, count):
    for size, gone in zip(sizes, count(drawn(sizes), amount, limits), strict=True):
        assert 0 <= gone < size
        assert size - gone >= limits.least * size
        assert gone == 0 or (size - gone) % limits.multiple == 0


@given(SIZES, st.sampled_from([count_uniformly, count_globally]))
def test_nothing_asked_for_nothing_goes(sizes, count):
    assert count(drawn(sizes), 0.0, Limits()) == [0] * len(sizes)


@given(SIZES, st.floats(0, 0.99))
def test_uniform_is_the_same_share(sizes, amount):
    assert count_uniformly(drawn(sizes), amount, FREE) == [min(int(amount * size), size - 1) for size in sizes]


@given(SIZES, st.floats(0, 0.99))
def test_global_takes_the_least_of_all(sizes, amount):
    importances = drawn(sizes)
    relative = [one / one.mean() for one in importances]
    ranked = sorted((value, number) for number, one in enumerate(relative) for value in one)
    wanted = [0] * len(sizes)
    for _, number in ranked[: int(amount * len(ranked))]:
        wanted[number] += 1
    assert count_globally(importances, amount, FREE) == [
        min(n, size - 1) for n, size in zip(wanted, sizes, strict=True)
    ]


def test_ties_are_spread_and_layers_of_large_weights_do_not_win():
    assert count_globally([np.ones(8), 100 * np.ones(8)], 0.5, FREE) == [4, 4]
    assert count_globally([], 0.5, FREE) == []


@pytest.mark.parametrize("settings", [{"least": -0.1}, {"least": 2}, {"multiple": 0}])
def test_impossible_limits_are_refused(settings):
    with pytest.raises(RecipeError):
        Limits(**settings)


def test_the_least_go():
    assert [units.tolist() for units in least_important([np.array([3.0, 1.0, 2.0]), np.ones(3)], [2, 1])] == [
        [1, 2],
        [0],
    ]


def test_units_that_are_nothing_at_all():
    assert count_globally([np.zeros(4), np.zeros(4)], 0.5, FREE) == [2, 2]
