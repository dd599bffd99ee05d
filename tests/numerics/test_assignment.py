"""The integer programme against all choices."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alula.errors import DataError, RecipeError
from alula.numerics.assignment import Options, assign, holds, total_cost, total_harm

KINDS = ("bytes", "milliseconds")


def drawn(random: np.random.Generator, *, whole: bool, spread: float = 0.0) -> list[Options]:
    """Up to five places of up to four options; harms over many orders of magnitude if ``spread`` says so."""
    places = []
    for _ in range(random.integers(1, 6)):
        count = int(random.integers(1, 5))
        harms = random.random(count) * 10.0 ** random.uniform(-spread, 0, count)
        costs = {kind: random.random(count) for kind in KINDS}
        if whole:
            harms = np.round(4 * harms)
            costs = {kind: np.round(1000 * cost) for kind, cost in costs.items()}
        places.append(Options(harms, costs))
    return places


def some_pairs(random: np.random.Generator, places: list[Options], signs: tuple[float, ...]) -> dict:
    every = [((p, o), (q, r)) for p, q in itertools.combinations(range(len(places)), 2)
             for o in range(len(places[p].harms)) for r in range(len(places[q].harms))]  # fmt: skip
    picked = random.permutation(len(every))[:6]
    return {every[index]: float(random.choice(signs) * random.random()) for index in picked}


def every_choice(places: list[Options], limits: dict[str, float]) -> list[tuple[int, ...]]:
    choices = itertools.product(*(range(len(place.harms)) for place in places))
    return [choice for choice in choices if holds(places, choice, limits)]


def some_limits(random: np.random.Generator, places: list[Options], kinds: tuple[str, ...]) -> dict[str, float]:
    """Limits that some choice meets to the last digit."""
    choice = [int(random.integers(len(place.harms))) for place in places]
    return {kind: total_cost(places, choice, kind) for kind in kinds}


@settings(deadline=None, max_examples=80)
@given(st.integers(0, 2**32), st.booleans(), st.sampled_from([0.0, 12.0]), st.sampled_from([(1.0,), (1.0, -1.0)]))
def test_no_choice_within_the_limits_does_less_harm(seed: int, whole: bool, spread: float, signs: tuple) -> None:
    random = np.random.default_rng(seed)
    places = drawn(random, whole=whole, spread=spread)
    pairs = some_pairs(random, places, signs) if random.random() < 0.5 else {}
    limits = some_limits(random, places, KINDS[: random.integers(0, 3)])
    found = assign(places, limits, pairs)
    assert holds(places, found, limits)
    best = min(total_harm(places, choice, pairs) for choice in every_choice(places, limits))
    largest = max([abs(harm) for harm in pairs.values()], default=0.0)
    assert total_harm(places, found, pairs) <= best + 1e-8 * abs(best) + 1e-9 * largest


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**32))
def test_of_equals_one_that_costs_least_and_always_the_same(seed: int) -> None:
    random = np.random.default_rng(seed)
    places = drawn(random, whole=True)
    limits = some_limits(random, places, KINDS[:1])
    found = assign(places, limits)
    assert found == assign(places, limits)
    harm = total_harm(places, found)
    equals = [choice for choice in every_choice(places, limits) if total_harm(places, choice) <= harm]
    assert total_cost(places, found, "bytes") == min(total_cost(places, choice, "bytes") for choice in equals)


def test_a_limit_is_met_to_the_last_byte() -> None:
    costs = np.array([1_000_000_001.0, 1_000_000_000.0])
    places = [Options(np.array([0.0, 1.0]), {"bytes": costs}) for _ in range(3)]
    for spare in range(4):
        found = assign(places, {"bytes": 3_000_000_000.0 + spare})
        assert sum(found) == 3 - spare


def test_what_is_impossible_is_never_taken() -> None:
    place = Options(np.array([np.inf, 2.0, 1.0]), {"bytes": np.array([1.0, 2.0, 3.0])})
    assert assign([place], {"bytes": 2.0}) == [1]
    with pytest.raises(RecipeError, match=r"no choice costs 1.5 bytes or less; the least that is possible is 2"):
        assign([place], {"bytes": 1.5})


def test_no_places_and_no_limits() -> None:
    assert assign([], {}) == []
    assert assign([Options(np.array([3.0, 1.0, 2.0]), {})], {}) == [1]


def test_limits_that_only_exclude_each_other_say_what_is_left() -> None:
    place = Options(np.array([0.0, 0.0]), {"bytes": np.array([1.0, 5.0]), "milliseconds": np.array([5.0, 1.0])})
    with pytest.raises(RecipeError, match=r"not all at once; .* the least is 5 bytes or 5 milliseconds"):
        assign([place], {"bytes": 2.0, "milliseconds": 2.0})


def test_a_pair_decides_where_its_places_alone_would_not() -> None:
    places = [Options(np.array([0.0, 1.0]), {"bytes": np.array([2.0, 1.0])}) for _ in range(3)]
    assert sum(assign(places, {"bytes": 4.0})) == 2
    pairs = {((0, 1), (1, 1)): 5.0, ((1, 1), (2, 1)): -0.5}
    assert assign(places, {"bytes": 4.0}, pairs) == [0, 1, 1]


@pytest.mark.parametrize("harms", [[np.nan, 1.0], [-np.inf, 1.0], [], [np.inf]])
def test_harms_that_are_none_are_refused(harms: list) -> None:
    with pytest.raises(DataError, match="harm"):
        assign([Options(np.array(harms), {"bytes": np.zeros(len(harms))})], {"bytes": 1.0})


def test_costs_limits_and_pairs_that_are_none_are_refused() -> None:
    place = Options(np.array([0.0]), {"bytes": np.array([math.nan])})
    with pytest.raises(DataError, match="finite cost in bytes"):
        assign([place], {"bytes": 1.0})
    good = Options(np.array([0.0, 1.0]), {"bytes": np.array([1.0, 0.0])})
    with pytest.raises(DataError, match="limits must be numbers"):
        assign([good], {"bytes": math.nan})
    with pytest.raises(DataError, match="pairs must be finite"):
        assign([good, good], {"bytes": 2.0}, {((0, 0), (1, 0)): math.inf})
