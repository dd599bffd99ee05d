"""Ladders: the greedy climb against all combinations."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alula.errors import RecipeError
from alula.numerics.ladders import Ladder, climb, convex_ladder, greedy_rungs

RUNGS = st.lists(st.tuples(st.floats(0, 10), st.floats(0.1, 10)), min_size=1, max_size=4)


def ladder(rungs: list[tuple[float, float]]) -> Ladder:
    """A ladder of rising harm and saving."""
    harms, savings = np.array(rungs).T
    return Ladder(np.cumsum(harms), np.cumsum(savings))


def value(ladders: list[Ladder], rungs: tuple[int, ...]) -> tuple[float, float]:
    """Harm and saving of a choice."""
    chosen = [(one.harms[rung], one.savings[rung]) for one, rung in zip(ladders, rungs, strict=True) if rung >= 0]
    return sum(harm for harm, _ in chosen), sum(saving for _, saving in chosen)


def best(ladders: list[Ladder], budget: float) -> float:
    """The least harm of all choices that save the budget."""
    every = itertools.product(*(range(-1, len(one.harms)) for one in ladders))
    return min(harm for harm, saving in (value(ladders, rungs) for rungs in every) if saving >= budget - 1e-9)


@settings(deadline=None, max_examples=80)
@given(st.lists(RUNGS, min_size=1, max_size=4), st.floats(0, 1))
def test_no_choice_that_saves_as_much_does_less_harm(places: list, share: float) -> None:
    ladders = [ladder(rungs) for rungs in places]
    total = sum(one.savings[-1] for one in ladders)
    budget = share * total * 0.999
    harm, saving = value(ladders, tuple(greedy_rungs(ladders, budget)[0]))
    assert harm <= best(ladders, saving) + 1e-6  # met exactly: optimal for what it saves
    less, saved = value(ladders, tuple(climb(ladders, budget)))
    assert saved >= budget - 1e-9
    assert less <= harm + 1e-9  # and what the last step made needless is given back


def test_a_rung_that_saves_nothing_more_is_passed_over() -> None:
    stairs = Ladder(np.array([1.0, 2.0, 3.0]), np.array([0.0, 5.0, 5.0]))
    assert climb([stairs], 1.0) == [1]
    assert climb([stairs], 5.0) == [1]


@settings(deadline=None)
@given(RUNGS)
def test_a_convex_ladder_is_climbed_rung_by_rung(rungs: list) -> None:
    harms, savings = ladder(rungs).harms, ladder(rungs).savings
    made = convex_ladder(harms, savings)
    steps = np.diff([0.0, *made.harms]), np.diff([0.0, *made.savings])
    slopes = steps[0][steps[1] > 0] / steps[1][steps[1] > 0]
    assert np.all(np.diff(slopes) >= -1e-6 * np.abs(slopes[1:]) - 1e-9)
    assert np.all(made.harms >= harms * (made.savings == savings) - 1e-9)  # never rosier than what was measured


@settings(deadline=None, max_examples=200)
@given(st.lists(st.lists(st.floats(0.1, 10), min_size=1, max_size=6), min_size=1, max_size=5), st.floats(0, 1))
def test_what_is_climbed_saves_the_budget(places: list, share: float) -> None:
    levelling = [convex_ladder(1 - 0.5 ** np.arange(1, len(steps) + 1), np.cumsum(steps)) for steps in places]
    budget = share * sum(float(one.savings[-1]) for one in levelling) * (1 - 1e-9)
    _, saving = value(levelling, tuple(climb(levelling, budget)))
    assert saving >= budget * (1 - 1e-9)


def test_a_convex_ladder_that_was_convex_is_as_it_was() -> None:
    harms, savings = np.array([1.0, 3.0, 6.0]), np.array([1.0, 2.0, 3.0])
    made = convex_ladder(harms, savings)
    np.testing.assert_allclose(made.harms, harms)
    np.testing.assert_allclose(made.savings, savings)


def test_what_the_last_step_made_needless_is_given_back() -> None:
    cheap, large = Ladder(np.array([1.0]), np.array([1.0])), Ladder(np.array([5.0]), np.array([4.0]))
    assert climb([cheap, large], 3.0) == [-1, 0]


def test_equals_go_in_turn_and_step_by_step() -> None:
    even = Ladder(np.arange(1.0, 5.0), np.arange(1.0, 5.0))
    assert climb([even, even], 4.0) == [1, 1]
    assert climb([even, even], 3.0) == [1, 0]


def test_nothing_to_save_does_nothing() -> None:
    assert climb([Ladder(np.array([1.0]), np.array([1.0]))], 0.0) == [-1]


def test_noise_that_makes_a_rung_dearer_than_none_is_never_climbed() -> None:
    assert climb([Ladder(np.array([0.1, 1.0]), np.array([-2.0, 4.0]))], 1.0) == [1]


def test_too_much_is_refused_with_the_figures() -> None:
    with pytest.raises(RecipeError, match="at most 1 can be saved within the limits, not 2"):
        climb([Ladder(np.array([1.0]), np.array([1.0]))], 2.0)
