"""Channels that stand out, split in two that sum to the same, so that a grid for all of them can be finer.

| symbol | code | shape | unit | meaning |
|---|---|---|---|---|
| max abs W_rj | magnitudes | [R, K] | of the weight | largest weight in channel j of those that share grid r |
| | places | [n] | | which channel is split, one after another; the other part becomes the last channel |
| | sources | [K + n] | | the channel that each part was |
| | shares | [K + n] | | the share of it, 2^-m after m splits; the shares of a channel sum to 1 |
| s | step | [R] or () | of the weight | the step of the grid that the weights will be put on |

    w x = w/2 x + w/2 x = w (x/2) + w (x/2)                         weights split, or activations: y stays
    round(w / s) = round((w - s/2) / 2s) + round((w + s/2) / 2s)    parts that are rounded to the same sum as the whole

The second line is Hermite's identity, floor(2a) = floor(a) + floor(a + 1/2), and holds except at ties. Plain halves are
rounded in the same direction, so that their errors add up to twice the whole's.

Source: R. Zhao et al. 2019, "Improving Neural Network Quantization without Retraining using Outlier Channel Splitting",
sections 3.2 to 3.4 (arXiv 1901.09504). There is one grid; for several, the split that takes most off the sum of squared
ranges, on which the noise of rounding depends, is ours: with one grid it is the same channel, the largest.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from alula.errors import DataError, RecipeError


def outlier_splits(magnitudes: ArrayLike, count: int) -> NDArray[np.intp]:
    """Which channels to split, one after another; parts are split again where they still stand out.

    Args:
        magnitudes: largest magnitude of each channel in each group that has a grid of its own, [R, K].
        count: how many splits.

    Returns:
        places [n], n = count; fewer where all that is left is 0, and nothing can be made smaller.

    Raises:
        DataError: they are no matrix, or one is negative, NaN or infinite.
        RecipeError: the count is negative.
    """
    given = np.asarray(magnitudes, np.float64)
    if given.ndim != 2 or not (np.isfinite(given).all() and (given >= 0).all()):
        raise DataError(f"magnitudes are finite, not negative, one per group and channel; got shape {given.shape}")
    if count < 0:
        raise RecipeError(f"channels are split 0 times or more, got {count}")
    groups, channels = given.shape
    parts = np.concatenate([given, np.zeros((groups, count))], axis=1)
    places: list[int] = []
    for width in range(channels, channels + count):
        if not parts[:, :width].any():
            break
        place = _widest(parts[:, :width])
        parts[:, place] /= 2
        parts[:, width] = parts[:, place]
        places.append(place)
    return np.array(places, np.intp)


def _widest(parts: NDArray[np.float64]) -> int:
    """The channel whose halves leave the least sum of squared ranges; the largest where no single one lessens it."""
    rows, largest = np.arange(len(parts)), parts.argmax(axis=1)
    ranges = parts[rows, largest]
    without = parts.copy()
    without[rows, largest] /= 2
    gains = np.bincount(largest, ranges**2 - without.max(axis=1) ** 2, minlength=parts.shape[1])
    return int(np.argmax(gains if gains.any() else parts.max(axis=0)))


def split_sources(places: ArrayLike, channels: int) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
    """The channel that each part was, and its share of it: sources and shares, [K + n] each."""
    splits = np.asarray(places, np.intp)
    sources = np.concatenate([np.arange(channels), np.zeros(len(splits), np.intp)])
    shares = np.ones(channels + len(splits), np.float32)
    for width, place in enumerate(splits.tolist(), channels):
        shares[place] /= 2
        shares[width], sources[width] = shares[place], sources[place]
    return sources, shares


def split_weights(weight: ArrayLike, places: ArrayLike, step: ArrayLike = 0.0) -> NDArray[Any]:
    """Weights of split channels, whose sums over the parts of each channel are the weights that there were.

    Args:
        weight: [R, K, ...], channels along the second axis.
        places: of :func:`outlier_splits`.
        step: of the grid, one or [R]; parts lie half a step apart. 0 gives plain halves.

    Returns:
        [R, K + n, ...], in the type that the weights have.

    Raises:
        DataError: the step is negative or not finite.
    """
    array, splits = np.asarray(weight), np.asarray(places, np.intp)
    steps = np.asarray(step, np.float64)
    if not (np.isfinite(steps).all() and (steps >= 0).all()):
        raise DataError("a step is finite and not negative")
    channels, half = array.shape[1], steps.reshape(-1, *[1] * (array.ndim - 2)) / 2
    added = np.zeros((array.shape[0], len(splits), *array.shape[2:]))
    parts = np.concatenate([array.astype(np.float64), added], axis=1)
    for width, place in enumerate(splits.tolist(), channels):
        whole = parts[:, place].copy()
        parts[:, place], parts[:, width] = (whole - half) / 2, (whole + half) / 2
    return parts.astype(array.dtype)
