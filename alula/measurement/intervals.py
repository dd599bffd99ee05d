"""Intervals of medians and quantiles of repeated timings.

=======  ==========================================================================================
symbol   meaning
=======  ==========================================================================================
n        independent repetitions (rounds)
x(k)     the k-th smallest of n values, counted from 1
k        largest count with 2 * P(Bin(n, 1/2) <= k - 1) <= 1 - confidence
=======  ==========================================================================================

The interval [x(k), x(n + 1 - k)] holds the median with at least the stated probability whatever the distribution is:
the inverted sign test (David and Nagaraja, Order Statistics, 3rd ed., section 7.1).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from alula.errors import DataError

Floats = npt.NDArray[np.float64]


def median_interval(values: npt.ArrayLike, confidence: float = 0.95) -> tuple[float, float, float]:
    """Lower end, upper end and exact coverage of the sign-test interval of the median.

    Args:
        values: independent repetitions. [n]
        confidence: wanted probability; with too few values for it, the extremes and their smaller coverage come back.

    Raises:
        DataError: no values.
    """
    ordered = np.sort(np.asarray(values, dtype=np.float64))  # [n]
    count = len(ordered)
    if count == 0:
        raise DataError("an interval needs at least one value, got none")
    rank, tail = 1, 0.5**count
    while 2 * (wider := tail + math.comb(count, rank) * 0.5**count) <= 1 - confidence:
        rank, tail = rank + 1, wider
    return float(ordered[rank - 1]), float(ordered[count - rank]), max(0.0, 1 - 2 * tail)


def quantiles_with_intervals(
    turns: Sequence[Floats],
    quantiles: Sequence[float],
    *,
    confidence: float = 0.95,
    resamples: int = 400,
    seed: int = 0,
) -> Floats:
    """Each quantile of all values together, with its bootstrap interval.

    Whole turns are drawn, not single values: values of one turn resemble each other, and drawing them alone would make
    the interval too narrow (Davison and Hinkley, Bootstrap Methods, section 3.8).

    Args:
        turns: the values of each turn. [turns][replays]
        quantiles: in [0, 1]. [q]
        confidence: probability of each interval.
        resamples: bootstrap draws.
        seed: of the draws.

    Returns:
        value, low and high of each quantile. [q, 3]
    """
    generator = np.random.default_rng(seed)
    pooled = np.quantile(np.concatenate(turns), quantiles)  # [q]
    drawn = np.empty((resamples, len(quantiles)))  # [resamples, q]
    for row in drawn:
        picked = generator.integers(len(turns), size=len(turns))  # [turns]
        row[:] = np.quantile(np.concatenate([turns[index] for index in picked]), quantiles)
    low, high = np.quantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2], axis=0)  # [q] each
    return np.stack([pooled, np.minimum(low, pooled), np.maximum(high, pooled)], axis=1)
