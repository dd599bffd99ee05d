"""What one run shows of one tensor, read off the array. :mod:`alula.graph.probes` finds the same inside the graph."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import count
from typing import NamedTuple

import numpy as np

SAMPLE_LIMIT = 8_192  # values of one tensor and row that enter its histogram; minimum and maximum see all of them
SAMPLED_ROWS = 32  # rows that raise the limit


class Reduction(NamedTuple):
    """Of each channel along an axis, [C] each; or of the whole tensor, [] each."""

    minimum: np.ndarray
    maximum: np.ndarray
    total: np.ndarray


@dataclass(frozen=True, slots=True, eq=False)
class Summary:
    """One tensor in one run: reductions by channel axis, or by None where no axis was asked for; some of the values."""

    shape: tuple[int, ...]
    reductions: Mapping[int | None, Reduction]
    sample: np.ndarray | None = None

    @property
    def size(self) -> int:
        """How many values the tensor has."""
        return math.prod(self.shape)

    def is_finite(self) -> bool:
        """Whether all totals are: as cheap a test for NaN and infinity as there is. A false alarm is an overflow."""
        return all(math.isfinite(reduction.total.sum()) for reduction in self.reductions.values())


def summarise(array: np.ndarray, axes: Iterable[int], *, sample: bool) -> Summary:
    """The summary of an array that holds something, by numpy; its totals overflow only where float64 does."""
    with np.errstate(over="ignore"):
        array = array.astype(np.float32, copy=False)
    reductions: dict[int | None, Reduction] = {axis: _reduce_channels(array, axis) for axis in axes}
    if not reductions:
        reductions[None] = Reduction(array.min(), array.max(), np.asarray(_total(array)))
    return Summary(array.shape, reductions, _sample(array) if sample else None)


def _reduce_channels(array: np.ndarray, axis: int) -> Reduction:  # [..., C, ...] -> [C]
    others = tuple(index for index in range(array.ndim) if index != axis % array.ndim)
    return Reduction(array.min(axis=others), array.max(axis=others), _channel_totals(array, axis % array.ndim))


def _channel_totals(array: np.ndarray, axis: int) -> np.ndarray:  # [..., C, ...] -> [C]
    """Sums in float32 over the inner axes, which numpy does pairwise, then in float64 over the outer ones."""
    with np.errstate(over="ignore", invalid="ignore"):
        inner = array.sum(axis=tuple(range(axis + 1, array.ndim)))  # [..., C]
    if not np.isfinite(inner).all():
        inner = array.sum(axis=tuple(range(axis + 1, array.ndim)), dtype=np.float64)
    return np.asarray(inner.sum(axis=tuple(range(axis)), dtype=np.float64))


def _total(array: np.ndarray) -> float:
    """The sum; pairwise in float32 along rows, then in float64; all in float64 where float32 overflows."""
    flat = np.ascontiguousarray(array).reshape(-1)
    whole = flat.size - flat.size % 1024
    with np.errstate(over="ignore", invalid="ignore"):
        rows = flat[:whole].reshape(-1, 1024).sum(axis=1)
    if not np.isfinite(rows).all():
        return float(flat.sum(dtype=np.float64))
    return float(rows.sum(dtype=np.float64) + flat[whole:].sum(dtype=np.float64))


def _sample(array: np.ndarray) -> np.ndarray:
    """Evenly spaced values of an array, in memory order."""
    flat = np.ascontiguousarray(array).reshape(-1)
    rows = min(array.shape[0], SAMPLED_ROWS) if array.ndim else 1
    return flat[:: stride_of(flat.size, rows * SAMPLE_LIMIT)]


def stride_of(size: int, limit: int) -> int:
    """A step that takes at most ``limit`` values and comes by every channel: it shares no factor with any axis."""
    least = max(1, -(-size // limit))
    return next(step for step in count(least) if math.gcd(step, size) <= 1)
