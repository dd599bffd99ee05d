"""How many units each coupling loses, from how much they matter.

| symbol | code | shape | unit | meaning |
|---|---|---|---|---|
| s_ci | importances | list of [n_c] | any | importance of unit i of coupling c, at least 0; the least goes first |
| a | amount | | | share of all units that go, 0 <= a < 1 |
| m_c | result | [couplings] | units | how many units of coupling c go; which: those of least importance |

Uniform: m_c = floor(a n_c). Global: the floor(a sum n_c) units of least s_ci / mean_i s_ci. What units save is weighed
in :mod:`alula.numerics.ladders`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from alula.errors import RecipeError

Floats = NDArray[np.float64]

_ROUNDING = 1e-9


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
        stay = max(size - count, rounded_up(self.least * size), 1)
        return max(0, size - math.ceil(stay / self.multiple) * self.multiple)


def rounded_down(count: float) -> int:
    """A count that a share gives, as a whole number: 0.29 of 100 are a little less than 29 in binary.

    >>> rounded_down(0.29 * 100), rounded_up(0.07 * 100)
    (29, 7)
    """
    return math.floor(count + _ROUNDING)


def rounded_up(count: float) -> int:
    """The whole number above a count that a share gives, or the count itself."""
    return math.ceil(count - _ROUNDING)


def count_uniformly(importances: Sequence[Floats], amount: float, limits: Limits) -> list[int]:
    """The same share of each coupling."""
    return [limits.removable(rounded_down(amount * len(one)), len(one)) for one in importances]


def count_globally(importances: Sequence[Floats], amount: float, limits: Limits) -> list[int]:
    """How many units of each coupling are among the least of all, each relative to the mean of its coupling.

    Among equals those come first that stand low in their own coupling, so that ties are spread over all of them.
    """
    if not importances:
        return []
    relative = np.concatenate([relative_importance(one) for one in importances])
    standing = np.concatenate([np.argsort(np.argsort(one, kind="stable")) / len(one) for one in importances])
    owners = np.repeat(np.arange(len(importances)), [len(one) for one in importances])
    least = np.lexsort((standing, relative))[: rounded_down(amount * len(relative))]
    counts = np.bincount(owners[least], minlength=len(importances))
    return [limits.removable(int(count), len(one)) for count, one in zip(counts, importances, strict=True)]


def relative_importance(importance: Floats) -> Floats:  # [n] -> [n]
    """Importance relative to the mean of the coupling, so that layers of larger weights do not win for that alone."""
    return importance / max(float(importance.mean()), np.finfo(float).tiny)


def least_important(importances: Sequence[Floats], counts: Sequence[int]) -> list[NDArray[np.intp]]:
    """Which units go: so many of each coupling, of the least importance."""
    return [np.argsort(one, kind="stable")[:count] for one, count in zip(importances, counts, strict=True)]
