"""How far to go in each of several places so that enough is saved and the least harm is done.

| symbol | code | shape | unit | meaning |
|---|---|---|---|---|
| h_pr | harms | [r] | harm | harm of going to rung r of place p, from none |
| v_pr | savings | [r] | cost | what rung r of place p saves |
| B | budget | | cost | what must be saved |
| x_p | result | [places] | rung | rung of each place; -1: none |

Minimise the sum of h over places so that the sum of v is at least B, one rung for each place: the multiple-choice
knapsack problem. Rungs off the lower convex hull of a place's points (v, h) are never the best buy; taking the steps of
all hulls by harm per saving is the best for every B that it meets exactly (Sinha & Zoltners 1979, "The multiple-choice
knapsack problem", sections 2 and 3).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from alula.errors import RecipeError

Floats = NDArray[np.float64]

NOISE = 0.02  # of a saving: what timing cannot tell apart


@dataclass(frozen=True, slots=True, eq=False)
class Ladder:
    """The rungs of one place: what each does harm and saves, [r] each."""

    harms: Floats
    savings: Floats


def climb(ladders: Sequence[Ladder], budget: float) -> list[int]:
    """The rung of each place, -1 where nothing is done, so that at least the budget is saved.

    >>> steep, flat = Ladder(np.array([4.0, 9.0]), np.array([1.0, 2.0])), Ladder(np.array([1.0]), np.array([1.0]))
    >>> climb([steep, flat], 1.0), climb([steep, flat], 2.0)
    ([-1, 0], [0, 0])

    Raises:
        RecipeError: all rungs together save less than the budget.
    """
    rungs, saved = greedy_rungs(ladders, budget)
    if saved < budget:
        raise RecipeError(f"at most {saved:.4g} can be saved within the limits, not {budget:.4g}")
    for place in sorted(range(len(ladders)), key=lambda one: -_harm(ladders[one], rungs[one])):
        lower = [
            rung
            for rung in range(-1, rungs[place])
            if saved - _saving(ladders[place], rungs[place]) + _saving(ladders[place], rung) >= budget
        ]
        best = min(lower, key=lambda rung: _harm(ladders[place], rung), default=rungs[place])
        if _harm(ladders[place], best) < _harm(ladders[place], rungs[place]):  # the last step saved more than was asked
            saved += _saving(ladders[place], best) - _saving(ladders[place], rungs[place])
            rungs[place] = best
    return rungs


def greedy_rungs(ladders: Sequence[Ladder], budget: float) -> tuple[list[int], float]:
    """The rungs after as many steps of all hulls as save the budget, and what they save, which may be less."""
    steps = sorted(  # of equals, those that stand low in their ladder come first
        (slope, (rung + 1) / len(ladder.harms), place, rung, saving)
        for place, ladder in enumerate(ladders)
        for slope, rung, saving in _hull_steps(ladder)
    )
    rungs, saved = [-1] * len(ladders), 0.0
    for _, _, place, rung, saving in steps:
        if saved >= budget:
            break
        rungs[place] = rung
        saved += saving
    return rungs, saved


def _harm(ladder: Ladder, rung: int) -> float:
    return float(ladder.harms[rung]) if rung >= 0 else 0.0


def _saving(ladder: Ladder, rung: int) -> float:
    return float(ladder.savings[rung]) if rung >= 0 else 0.0


def convex_ladder(harms: Floats, savings: Floats) -> Ladder:  # [r], [r]
    """A ladder on which each step does at least as much harm per saving as the one before.

    Harm that is measured without training afterwards levels off: once a place is spoilt, more of it seems free.
    Training heals what is small, so the first units of a place must not be charged for the last. A rung that saves no
    more than those before it, or by less than noise tells apart, is never worth its harm, and saves what they do; so
    does one whose harm is infinite.

    >>> ladder = convex_ladder(np.array([4.0, 5.0, 5.5]), np.array([1.0, 2.0, 2.0]))
    >>> ladder.harms.tolist(), ladder.savings.tolist()
    ([4.0, 8.0, 8.0], [1.0, 2.0, 2.0])
    """
    made = Ladder(np.zeros(len(harms)), np.zeros(len(harms)))
    seen = harm = saved = slope = 0.0
    for rung, (value, saving) in enumerate(zip(harms, savings, strict=True)):
        if saving > saved * (1 + NOISE) and saving > 0 and np.isfinite(value):
            slope = max(slope, (float(value) - seen) / (float(saving) - saved))
            harm, seen, saved = harm + slope * (float(saving) - saved), max(seen, float(value)), float(saving)
        made.harms[rung], made.savings[rung] = harm, saved
    return made


def _hull_steps(ladder: Ladder) -> list[tuple[float, int, float]]:
    """Steps along the lower convex hull from (0, 0): harm per saving, the rung reached, what the step saves."""
    steps: list[tuple[float, int, float]] = []
    at, harm, saved = -1, 0.0, 0.0
    while True:
        ahead = [rung for rung in range(at + 1, len(ladder.savings)) if ladder.savings[rung] > saved]
        if not ahead:
            return steps
        slopes = [(float(ladder.harms[rung]) - harm) / (float(ladder.savings[rung]) - saved) for rung in ahead]
        best = next(index for index, slope in enumerate(slopes) if slope <= min(slopes) + 1e-9 * abs(min(slopes)))
        at = ahead[best]
        slope = max(slopes[best], steps[-1][0] if steps else -np.inf)  # rounding must not bring a later step forward
        steps.append((slope, at, float(ladder.savings[at]) - saved))
        harm, saved = float(ladder.harms[at]), float(ladder.savings[at])
