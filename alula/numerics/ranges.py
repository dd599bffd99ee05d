"""Which range of values a grid should cover.

| symbol | code | shape | unit | meaning |
|---|---|---|---|---|
| x_i | values | [n] | of the tensor | distinct values seen, ascending |
| c_i | counts | [n] | values | how often each was seen |
| l, h | minimum, maximum | | of the tensor | the ends of the range; beyond them values saturate |
| Q | | | | quantize to the grid over [l, h], and back |
| t | limit | [k, rows] | of the largest magnitude | bound on both ends: l = max(min x, -t), h = min(max x, t) |
| f | factor | [k, rows] | | by how much one end is drawn in, 0 < f <= 1 |
| P, R | | [bins] | | histogram as it is, and as the grid renders it |

    min-max              l = min x,  h = max x
    percentile p         a share (100 - p) / 2 of the values lies beyond either end; symmetric: 100 - p beyond +-h
    mean squared error   argmin over l, h of  sum_i c_i (x_i - Q(x_i))^2
    entropy              argmin over l, h of  KL(P || R) = sum_b P_b log(P_b / R_b)
    output error         argmin over l, h of  (w - Q(w))^T M (w - Q(w)),  M [k, k] the mean of x x^T; of activations
                         sum over layers W that read x of  |W (x - Q(x))|^2 / |W x|^2

Sources: H. Wu et al. 2020, "Integer Quantization for Deep Learning Inference" (calibration by maximum, percentile and
entropy); M. Nagel et al. 2021, "A White Paper on Neural Network Quantization", section 3.1 (mean squared error);
S. Migacz 2017, "8-bit Inference with TensorRT" (entropy).

A sample comes from `FloatHistogram.occupied` or from `np.unique(weight, return_counts=True)`. A range need not hold 0:
the grid widens it so that it does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from alula.errors import DataError, RecipeError
from alula.numerics.divergence import least_divergent_range
from alula.numerics.grids import (
    Floats,
    Grid,
    extremes,
    finite_float32,
    parameter_shape,
    quantize,
    scale_and_zero_point,
)
from alula.settings import check_settings

Array: TypeAlias = NDArray[Any]
Range: TypeAlias = tuple[float, float]

_DEEPEST: Final = 1e-3  # smallest factor tried
_SLICE: Final = 1 << 16  # elements quantized at a time, to stay in cache


class RangeMethod(Protocol):
    """How to choose a range from a sample; the object is its own configuration."""

    def range(self, values: ArrayLike, counts: ArrayLike, grid: Grid) -> Range:
        """Minimum and maximum for values [n] (ascending) seen counts [n] times, on this grid."""
        ...


@dataclass(frozen=True, slots=True)
class MinMax:
    """The whole range that was seen."""

    def range(self, values: ArrayLike, counts: ArrayLike, grid: Grid) -> Range:  # noqa: ARG002 - one signature for all
        """Least and greatest value.

        Raises:
            DataError: the sample is empty, unsorted or not finite.
        """
        seen, _ = _sample(values, counts)
        return float(seen[0]), float(seen[-1])


@dataclass(frozen=True, slots=True)
class Percentile:
    """The middle `percentile` per cent of the values; on a symmetric grid, of their magnitudes."""

    percentile: float = 99.99

    def __post_init__(self) -> None:
        check_settings(self)
        if not 0 < self.percentile <= 100:
            raise RecipeError(f"a percentile lies above 0 and up to 100, got {self.percentile}")

    def range(self, values: ArrayLike, counts: ArrayLike, grid: Grid) -> Range:
        """The weighted quantiles (inverted distribution function: a value that was seen).

        Raises:
            DataError: the sample is empty, unsorted or not finite.
        """
        seen, weights = _sample(values, counts)
        if grid.symmetric:
            order = np.argsort(np.abs(seen), kind="stable")
            limit = _quantile(np.abs(seen)[order], weights[order], self.percentile / 100)
            return max(float(seen[0]), -limit), min(float(seen[-1]), limit)
        share = (100 + self.percentile) / 200
        return -_quantile(-seen[::-1], weights[::-1], share), _quantile(seen, weights, share)


@dataclass(frozen=True, slots=True)
class MeanSquaredError:
    """The range with the least squared error of quantization.

    A bound on magnitudes is searched first; on an asymmetric grid each end is then refined alone. Every search tries
    `candidates` factors: half of them geometrically spaced over three decades, the rest around the best of those.
    """

    candidates: int = 100

    def __post_init__(self) -> None:
        check_settings(self)
        _require_candidates(self.candidates)

    def range(self, values: ArrayLike, counts: ArrayLike, grid: Grid) -> Range:
        """The best range found; no worse than min-max.

        Raises:
            DataError: the sample is empty, unsorted or not finite.
        """
        seen, weights = _sample(values, counts)
        rows, size = _normalised(seen[None])  # [1, n], [1]
        share = (weights / weights.sum()).astype(np.float32)
        low, high = _ends(rows)  # [1]

        def error(lower: Array, upper: Array) -> Array:  # [k, 1], [k, 1] -> [k, 1]
            return _squared_error(rows, share, lower, upper, grid)

        lower, upper = _least(error, low, high, grid, self.candidates)
        return float((lower * size)[0]), float((upper * size)[0])


@dataclass(frozen=True, slots=True)
class OutputError(MeanSquaredError):
    """The range with which the layers that read a tensor give the least squared error, each relative to its outputs.

    Where no layer reads the tensor by a matrix it is that of the least squared error of the values themselves.
    """

    candidates: int = 60

    def range_for(self, readers: Sequence[tuple[Array, Array]], extremes: Range, grid: Grid) -> Range:
        """The range of least error of what layers give, sum over layers of |W (x - Q(x))|^2 / |W x|^2.

        Args:
            readers: of each layer rows x that it reads, [groups, n, k], and its matrix W, [groups, out, k].
            extremes: the whole range that was seen of the tensor.
            grid: the grid that it will be quantized to.

        Raises:
            DataError: rows or a matrix are not finite, or do not fit each other.
        """
        size = max(-extremes[0], extremes[1], 0.0) or 1.0
        layers = [_reader(rows, matrix, size) for rows, matrix in readers]
        low, high = (np.array([end / size]) for end in (min(extremes[0], 0.0), max(extremes[1], 0.0)))

        def error(lower: Array, upper: Array) -> Array:  # [k, 1], [k, 1] -> [k, 1]
            lower, upper = np.broadcast_arrays(lower, upper)
            each = [sum(_given_error(layer, *ends, grid) for layer in layers)
                    for ends in zip(lower[:, 0], upper[:, 0], strict=True)]  # fmt: skip
            return np.array(each)[:, None]

        lower, upper = _least(error, low, high, grid, self.candidates)
        return float((lower * size)[0]), float((upper * size)[0])


def _reader(rows: Array, matrix: Array, size: float) -> tuple[Floats, Floats, float]:
    """Rows and matrix of a layer, and the square of what it gives; of long matrices a short one of equal lengths."""
    unit, weights = finite_float32(rows) / np.float32(size), finite_float32(matrix)
    if unit.ndim != 3 or weights.ndim != 3 or unit.shape[::2] != weights.shape[::2]:
        raise DataError(f"rows [groups, n, k] and matrix [groups, out, k] do not fit: {rows.shape}, {matrix.shape}")
    if weights.shape[1] > weights.shape[2]:
        weights = np.asarray(np.linalg.qr(weights, mode="r"))  # |W e| = |R e|
    given = float(np.square(unit @ weights.swapaxes(1, 2), dtype=np.float64).sum())
    return unit, weights, given or 1.0


def _given_error(layer: tuple[Floats, Floats, float], low: float, high: float, grid: Grid) -> float:
    rows, matrix, given = layer
    change = quantize(rows, grid, minimum=np.float32(low), maximum=np.float32(high)).dequantize() - rows
    return float(np.square(change @ matrix.swapaxes(1, 2), dtype=np.float64).sum()) / given


@dataclass(frozen=True, slots=True)
class Entropy:
    """The range whose rendering on the grid loses the least information about the distribution (Migacz 2017).

    Exact zeros are left out: every grid renders them exactly. `bins` is the resolution of the distribution,
    `candidates` the number of ranges tried per end; see `alula.numerics.divergence`.
    """

    bins: int = 2048
    candidates: int = 100

    def __post_init__(self) -> None:
        check_settings(self)
        _require_candidates(self.candidates)
        if self.bins < 2:
            raise RecipeError(f"a distribution needs at least 2 bins, got bins={self.bins}")

    def range(self, values: ArrayLike, counts: ArrayLike, grid: Grid) -> Range:
        """The best range found.

        Raises:
            DataError: the sample is empty, unsorted or not finite.
        """
        seen, weights = _sample(values, counts)
        low, high = float(seen[0]), float(seen[-1])
        seen, weights = seen[seen != 0], weights[seen != 0]
        if not grid.symmetric:
            return least_divergent_range(seen, weights, grid.levels, self.bins, self.candidates)
        magnitudes, index = np.unique(np.abs(seen), return_inverse=True)
        levels = grid.highest - grid.middle + 1
        _, limit = least_divergent_range(
            magnitudes, np.bincount(index, weights, len(magnitudes)), levels, self.bins, self.candidates
        )
        return max(low, -limit), min(high, limit)


def channel_mean_squared_error_range(
    weight: ArrayLike, grid: Grid, *, axis: int | None, block: int | None = None, candidates: int = 50
) -> tuple[Floats, Floats]:
    """The range of each channel or block with the least squared error under a bound on magnitudes (Nagel et al. 2021).

    Args:
        weight: any shape.
        grid: the grid that it will be quantized to.
        axis: the axis whose channels, or along which blocks, have a range of their own; None for one range.
        block: elements per block along the axis; the last may be short.
        candidates: factors tried, as in `MeanSquaredError`.

    Returns:
        minimum and maximum, float32, in parameter shape (see `alula.numerics.grids`).

    Raises:
        DataError: a weight is NaN or infinite.
        RecipeError: axis and block do not fit the shape, or there are too few candidates.
    """
    _require_candidates(candidates)
    array = finite_float32(weight)
    low, high = extremes(array, axis=axis, block=block)
    if array.size == 0:
        return low, high
    rows = rows_of(array, axis, block)  # [R, elements]
    limits = np.concatenate(
        [_row_limits(piece, grid, candidates) for piece in in_pieces(rows)]
    )  # [R], of the rows' unit
    limit = as_parameter(limits, array.shape, axis, block)
    lower, upper = _bounded(low.astype(np.float64), high.astype(np.float64), limit)
    return lower.astype(np.float32), upper.astype(np.float32)


def output_error_range(
    rows: ArrayLike, moments: ArrayLike, grid: Grid, *, candidates: int = 50
) -> tuple[Floats, Floats]:  # [R, k], [k, k] -> [R], [R]
    """The range of each row of a layer's matrix with the least squared error of what it gives, y = w x.

    Args:
        rows: weights, [R, k].
        moments: mean of x x^T over what the layer reads, [k, k].
        grid: the grid that they will be quantized to, to the nearest code.
        candidates: bounds on magnitudes that are tried, as in `MeanSquaredError`.

    Raises:
        DataError: a weight or moment is NaN or infinite, or they do not fit each other.
        RecipeError: there are too few candidates.
    """
    _require_candidates(candidates)
    array, products = finite_float32(rows), np.asarray(moments, np.float64)
    if array.ndim != 2 or products.shape != (array.shape[1], array.shape[1]) or not np.isfinite(products).all():
        raise DataError(
            f"rows [R, k] need finite second moments [k, k], got {list(array.shape)} and {list(products.shape)}"
        )
    if array.size == 0:
        return np.zeros(len(array), np.float32), np.zeros(len(array), np.float32)
    unit, size = _normalised(array)
    low, high = _ends(unit)

    def error(limits: Array) -> Array:  # [c, R] -> [c, R]
        found = np.empty(limits.shape)
        for one, limit in enumerate(limits):
            given = quantize(unit, grid, axis=0, minimum=np.maximum(low, -limit), maximum=np.minimum(high, limit))
            change = given.dequantize().astype(np.float64) - unit
            found[one] = ((change @ products) * change).sum(1)
        return found

    limit = size * _search(error, candidates, rows=len(array))
    lower, upper = _bounded(low * size, high * size, limit)
    return lower.astype(np.float32), upper.astype(np.float32)


def _row_limits(rows: Array, grid: Grid, candidates: int) -> Array:  # [r, elements] -> [r]
    unit, size = _normalised(rows)
    low, high = _ends(unit)
    ones = np.ones(unit.shape[1], np.float32)
    return size * _search(
        lambda t: _squared_error(unit, ones, *_bounded(low, high, t), grid), candidates, rows=len(rows)
    )


def _least(
    error: Callable[[Array, Array], Array], low: Array, high: Array, grid: Grid, candidates: int
) -> tuple[Array, Array]:  # [1], [1] -> [1], [1]
    """The range within [low, high] of least error: both ends under one bound, then each end by itself."""
    limit = _search(lambda t: error(*_bounded(low, high, t)), candidates, rows=1)
    lower, upper = _bounded(low, high, limit)
    if not grid.symmetric and low < 0 < high:
        at_lower, at_upper = lower / low, upper / high
        lower = low * _search(lambda f: error(low * f, upper), candidates, rows=1, start=at_lower)
        upper = high * _search(lambda f: error(lower, high * f), candidates, rows=1, start=at_upper)
    return lower, upper


def _ends(rows: Array) -> tuple[Array, Array]:  # [R, n] -> [R], [R]
    return np.minimum(rows.min(axis=1), 0.0), np.maximum(rows.max(axis=1), 0.0)


def _bounded(low: Array, high: Array, limit: Array) -> tuple[Array, Array]:
    return np.maximum(low, -limit), np.minimum(high, limit)


def _search(
    error: Callable[[Array], Array], candidates: int, *, rows: int, start: Array | None = None
) -> Array:  # -> [rows]
    """Per row the factor in (0, 1] of least error, the largest of equals; coarse first, then fine around the best."""
    first = np.ones(rows) if start is None else start
    coarse = np.tile(np.geomspace(1.0, _DEEPEST, candidates // 2)[:, None], rows)  # [k, rows]
    at = np.argmin(error(coarse), axis=0)  # [rows]
    column = np.arange(rows)
    above, below = coarse[np.maximum(at - 1, 0), column], coarse[np.minimum(at + 1, len(coarse) - 1), column]
    steps = np.linspace(0.0, 1.0, candidates - candidates // 2)[:, None]
    tried = np.concatenate([coarse[at, column][None], first[None], above + (below - above) * steps])  # [k, rows]
    tried = -np.sort(-tried, axis=0)
    return np.asarray(tried[np.argmin(error(tried), axis=0), column])


def _squared_error(rows: Array, weights: Array, low: Array, high: Array, grid: Grid) -> Array:
    """sum_i w_i (x_i - Q(x_i))^2 of rows [R, n] for k ranges each, low and high [k, R], weights [n]; [k, R]."""
    scale, zero_point = scale_and_zero_point(low, high, grid)  # [k, R]
    offset = zero_point.astype(np.float32)
    bottom, top = np.float32(grid.lowest) - offset, np.float32(grid.highest) - offset  # [k, R]
    error = np.empty_like(rows)
    result = np.empty(scale.shape, np.float64)
    for k, step in enumerate(scale[..., None]):  # step: [R, 1]
        np.divide(rows, step, out=error)
        np.rint(error, out=error)
        np.maximum(error, bottom[k, :, None], out=error)
        np.minimum(error, top[k, :, None], out=error)
        error *= step
        error -= rows
        error *= error
        result[k] = error @ weights
    return result


def _normalised(rows: Array) -> tuple[Floats, Array]:  # [R, n] -> [R, n], [R]
    """Rows divided by their largest magnitude, so that squares neither overflow nor vanish."""
    size = np.abs(rows).max(axis=1).astype(np.float64)
    size[size == 0] = 1.0
    return (rows / size[:, None]).astype(np.float32), size


def in_pieces(rows: Array) -> list[Array]:
    """Rows [R, elements] in pieces that stay in the cache while they are worked on; at least one element is there."""
    return np.array_split(rows, min(len(rows), -(-rows.size // _SLICE)))


def rows_of(array: Floats, axis: int | None, block: int | None) -> Array:
    """The elements that share a range, a row each; short blocks are filled with zeros, which cost no error."""
    if axis is None:
        return array.reshape(1, -1)
    if block is None:
        return np.moveaxis(array, axis, 0).reshape(array.shape[axis], -1)
    last = np.moveaxis(array, axis, -1)  # [..., n]
    missing = -last.shape[-1] % block
    return np.pad(last, [(0, 0)] * (last.ndim - 1) + [(0, missing)]).reshape(-1, block)


def as_parameter(factors: Array, shape: tuple[int, ...], axis: int | None, block: int | None) -> Array:
    """Factors [R], in the order of `rows_of`, in parameter shape."""
    wanted = parameter_shape(shape, axis, block)
    if axis is None or block is None:
        return factors.reshape(wanted)
    moved = np.moveaxis(np.empty(wanted, np.bool_), axis, -1).shape
    return np.moveaxis(factors.reshape(moved), -1, axis)


def _quantile(values: Array, weights: Array, share: float) -> float:
    """The least value with at least this share of the weight at or below it."""
    cumulative = np.cumsum(weights)
    at = np.searchsorted(cumulative, share * cumulative[-1] * (1 - 1e-12), side="left")
    return float(values[min(int(at), len(values) - 1)])


def _sample(values: ArrayLike, counts: ArrayLike) -> tuple[Array, Array]:
    """The values that were seen and how often, float64 [n], checked."""
    seen, often = np.asarray(values, np.float64), np.asarray(counts, np.float64)
    if seen.ndim != 1 or seen.shape != often.shape:
        raise DataError(f"a sample is values [n] and counts [n], got shapes {seen.shape} and {often.shape}")
    if not (np.isfinite(seen).all() and np.isfinite(often).all() and (often >= 0).all() and (np.diff(seen) >= 0).all()):
        raise DataError("a sample is finite values in ascending order and counts that are not negative")
    seen, often = seen[often > 0], often[often > 0]
    if len(seen) == 0:
        raise DataError("a range needs at least one value, got none; give calibration data that reaches this tensor")
    return seen, often


def _require_candidates(candidates: int) -> None:
    if candidates < 8:
        raise RecipeError(f"a search for a range needs at least 8 candidates, got {candidates}")
