"""How many units each coupling loses, from how much they matter and what they cost.

| symbol | code | shape | unit | meaning |
|---|---|---|---|---|
| s_ci | importances | list of [n_c] | any | importance of unit i of coupling c, at least 0; the least goes first |
| a | amount | | | share of all units that go, 0 <= a < 1 |
| v_c | costs | [couplings] | cost | what one unit of coupling c costs: weights, MACs, ms |
| B | budget | | cost | what must be saved |
| m_c | result | [couplings] | units | how many units of coupling c go; which: those of least importance |

Uniform: m_c = floor(a n_c). Global: the floor(a sum n_c) units of least s_ci / mean_i s_ci. By cost: units in the
order of s_ci / mean_i s_ci per cost until the sum of m_c v_c reaches B: the greedy solution of the knapsack problem
(Dantzig 1957, "Discrete-variable extremum problems"). Where importances add up, it is the best for each B that it meets
exactly.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from alula.errors import RecipeError

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Limits:
    """What a coupling keeps: at least the share ``least``, at least one unit, and a multiple of ``multiple``."""

    least: float = 0.1
    multiple: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.least <= 1:
            raise RecipeError(f"least must be between 0 and 1, got {self.least!r}")
        if self.multiple < 1:
            raise RecipeError(f"multiple must be at least 1, got {self.multiple!r}")

    def removable(self, count: int, size: int) -> int:
        """How many of ``size`` units go if ``count`` should: as many or fewer.

        >>> Limits(least=0.5, multiple=4).removable(5, 16), Limits(least=0.5, multiple=4).removable(15, 16)
        (4, 8)
        """
        stay = max(size - count, math.ceil(self.least * size), 1)
        return max(0, size - math.ceil(stay / self.multiple) * self.multiple)


def count_uniformly(importances: Sequence[Floats], amount: float, limits: Limits) -> list[int]:
    """The same share of each coupling."""
    return [limits.removable(math.floor(amount * len(one)), len(one)) for one in importances]


def count_globally(importances: Sequence[Floats], amount: float, limits: Limits) -> list[int]:
    """How many units of each coupling are among the least of all, each relative to the mean of its coupling.

    Among equals those come first that stand low in their own coupling, so that ties are spread over all of them.
    """
    if not importances:
        return []
    relative = np.concatenate([relative_importance(one) for one in importances])
    standing = np.concatenate([np.argsort(np.argsort(one, kind="stable")) / len(one) for one in importances])
    owners = np.repeat(np.arange(len(importances)), [len(one) for one in importances])
    least = np.lexsort((standing, relative))[: math.floor(amount * len(relative))]
    counts = np.bincount(owners[least], minlength=len(importances))
    return [limits.removable(int(count), len(one)) for count, one in zip(counts, importances, strict=True)]


def count_by_cost(importances: Sequence[Floats], costs: Sequence[float], budget: float, limits: Limits) -> list[int]:
    """As many units as save the budget, those first that matter least for what they save.

    Units go in steps from one allowed number to the next; the last step may save more than is left of the budget.

    Raises:
        RecipeError: a cost is not positive, or all that may go saves less than the budget.
    """
    if len(costs) != len(importances) or not all(0 < cost < math.inf for cost in costs):
        raise RecipeError(f"there must be a positive cost for each of the {len(importances)} couplings, got {costs}")
    counts, saved = [0] * len(importances), 0.0
    queue: list[tuple[float, int, int]] = []
    steps = [_steps(one, limits) for one in importances]
    for number, cost in enumerate(costs):
        _offer(queue, steps[number], number, cost, 0)
    while saved < budget:
        if not queue:
            raise RecipeError(
                f"at most {saved:g} can be saved within these limits, not {budget:g}; lower least or multiple"
            )
        _, number, index = heapq.heappop(queue)
        count = steps[number][index][0]
        saved += (count - counts[number]) * costs[number]
        counts[number] = count
        _offer(queue, steps[number], number, costs[number], index + 1)
    return counts


def _offer(
    queue: list[tuple[float, int, int]], steps: Sequence[tuple[int, float]], number: int, cost: float, index: int
) -> None:
    """Put a coupling's next step in line, by the importance that it loses per cost that it saves."""
    if index < len(steps):
        heapq.heappush(queue, (steps[index][1] / cost, number, index))


def _steps(importance: Floats, limits: Limits) -> list[tuple[int, float]]:
    """All allowed numbers of units to go, each with the mean importance of those that go with its step."""
    ordered = np.sort(relative_importance(importance))
    counts = sorted({limits.removable(count, len(ordered)) for count in range(1, len(ordered) + 1)} - {0})
    return [(count, float(ordered[before:count].mean())) for before, count in zip([0, *counts], counts, strict=False)]


def relative_importance(importance: Floats) -> Floats:  # [n] -> [n]
    """Importance relative to the mean of the coupling, so that layers of larger weights do not win for that alone."""
    return importance / max(float(importance.mean()), np.finfo(float).tiny)


def least_important(importances: Sequence[Floats], counts: Sequence[int]) -> list[NDArray[np.intp]]:
    """Which units go: so many of each coupling, of the least importance."""
    return [np.argsort(one, kind="stable")[:count] for one, count in zip(importances, counts, strict=True)]
