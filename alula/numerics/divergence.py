"""The range of least Kullback-Leibler divergence between a distribution and its rendering on a grid.

| symbol | code | shape | unit | meaning |
|---|---|---|---|---|
| x_i, c_i | values, counts | [n] | | distinct values, ascending, and how often each was seen |
| H | histogram | [B] | values | linear histogram |
| a, b | start, stop | | bins | the window tried: bins a .. b - 1 |
| L | levels | | codes | codes that the window is rendered with |
| P | reference | [b - a] | | H in the window, with all that lies outside added to its end bins |
| R | rendered | [b - a] | | H in the window, averaged over the occupied bins of each of L equal parts |

    argmin over a, b of  KL(P || R) = sum_i P_i log(P_i / R_i),     P and R normalised

Source: S. Migacz 2017, "8-bit Inference with TensorRT", pages 38-39, where a = 0 (magnitudes), B = 2048, L = 128. Ours:
windows with two ends; and a histogram that is drawn over the bulk of the values where outliers would leave most of its
bins empty, so that none is too large to be cut off.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[Any]

_FLOOR: Final = 1e-10  # probability given to what the grid cannot render, so that the divergence stays finite
_OCCUPIED: Final = 1 / 4  # share of bins that must hold something before a histogram is fine enough to judge by
_HALF_CELL: Final = 2.0**-8  # relative half width of the cell that a value of a FloatHistogram stands for


@dataclass(frozen=True, slots=True)
class _Histogram:
    counts: Array  # [B]
    below: float  # seen below the first bin
    above: float  # seen above the last bin
    zero: int  # the bin edge at, or next to, the value 0


def least_divergent_range(values: Array, counts: Array, levels: int, bins: int, candidates: int) -> tuple[float, float]:
    """The best window around 0 for values other than 0, in the values' unit (Migacz 2017; see the module).

    Args:
        values: ascending, without 0, [n].
        counts: positive, [n].
        levels: codes of the grid; with as many as bins nothing is lost and the whole range returned.
        bins: linear bins of the histogram.
        candidates: windows tried per end.
    """
    if len(values) == 0:
        return 0.0, 0.0
    low, high = min(float(values[0]), 0.0), max(float(values[-1]), 0.0)
    if levels >= bins:
        return low, high
    histogram, low, high = _resolving_histogram(values, counts, low, high, bins)
    start, stop = _best_window(histogram, levels, candidates)
    step = (high - low) / bins
    return min(low + start * step, 0.0), max(low + stop * step if stop < bins else high, 0.0)


def divergence(histogram: Array, below: float, above: float, window: tuple[int, int], levels: int) -> float:
    """KL(P || R) of one window of a histogram [B], with what was seen below and above it (Migacz 2017)."""
    start, stop = window
    inside = histogram[start:stop]
    reference = inside.astype(np.float64)
    reference[0] += below + histogram[:start].sum()
    reference[-1] += above + histogram[stop:].sum()
    parts = -(-np.arange(levels + 1) * len(inside) // levels)  # first bin of each part
    occupied = inside > 0
    shared = np.add.reduceat(inside, parts[:-1]) / np.maximum(np.add.reduceat(occupied, parts[:-1], dtype=np.int64), 1)
    rendered = np.repeat(shared, np.diff(parts)) * occupied
    total = rendered.sum()
    if total == 0:
        return float("inf")
    p, r = reference / reference.sum(), np.maximum(rendered / total, _FLOOR)
    held = p > 0
    return float(np.sum(p[held] * np.log(p[held] / r[held])))


def _best_window(histogram: _Histogram, levels: int, candidates: int) -> tuple[int, int]:
    """A bound on magnitudes first; then, where both sides hold values, each end alone. The widest of equals."""
    bins, zero = len(histogram.counts), histogram.zero

    def best(windows: Iterator[tuple[int, int]]) -> tuple[int, int]:
        tried = sorted({w for w in windows if w[1] - w[0] >= levels}, key=lambda w: w[0] - w[1])
        return min(tried, key=lambda w: divergence(histogram.counts, histogram.below, histogram.above, w, levels))

    limits = np.linspace(0, max(zero, bins - zero), 2 * candidates)[1:].round().astype(int).tolist()
    start, stop = best((max(zero - t, 0), min(zero + t, bins)) for t in limits)
    if 0 < zero < bins:
        start, stop = best((int(a), stop) for a in [*np.linspace(0, zero, candidates).round(), start])
        start, stop = best((start, int(b)) for b in [*np.linspace(zero, bins, candidates).round(), stop])
    return start, stop


def _resolving_histogram(
    values: Array, counts: Array, low: float, high: float, bins: int
) -> tuple[_Histogram, float, float]:
    """The histogram and its ends, halved until enough bins hold something; few distinct values never fill many."""
    edges, cumulative = _distribution(values, counts, low, high)
    while True:
        passed = np.interp(np.linspace(low, high, bins + 1), edges, cumulative)
        inside = np.diff(passed)
        distinct = int(np.count_nonzero((values >= low) & (values <= high)))
        if int(np.count_nonzero(inside)) >= min(_OCCUPIED * bins, distinct):
            break
        limit = max(-low, high) / 2
        low, high = max(low, -limit), min(high, limit)
    zero = round(bins * -low / (high - low))
    return _Histogram(inside, float(passed[0]), float(cumulative[-1] - passed[-1]), zero), low, high


def _distribution(values: Array, counts: Array, low: float, high: float) -> tuple[Array, Array]:
    """The cumulative distribution, each value spread over its cell: edges [2n] ascending, cumulative counts [2n].

    Without the cells a histogram of floats would show as a comb on linear bins that are finer than its own.
    """
    half = np.abs(values) * _HALF_CELL
    gap = np.diff(values) / 2
    left = np.maximum(values - np.minimum(half, np.r_[np.inf, gap]), low)
    right = np.minimum(values + np.minimum(half, np.r_[gap, np.inf]), high)
    after = np.cumsum(counts, dtype=np.float64)
    edges = np.stack([left, right], axis=1).ravel()
    cumulative = np.stack([np.r_[0.0, after[:-1]], after], axis=1).ravel()
    return edges, cumulative
