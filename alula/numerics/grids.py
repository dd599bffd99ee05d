"""Uniform integer grids, and the plain functions that put an array on one and take it back.

| symbol | code | shape | unit | meaning |
|---|---|---|---|---|
| x | array | [...] | of the tensor | values to quantize |
| s | scale | parameter shape | of the tensor | width of a step, a normal float32, never 0 |
| z | zero_point | parameter shape | codes | the code that stands for 0 exactly |
| q | codes | [...] | codes | integers in [lowest, highest] |

    q  = clip(round_half_even(x / s) + z, lowest, highest)      ONNX QuantizeLinear
    x' = (q - z) s                                              ONNX DequantizeLinear

The parameter shape is ONNX's (opset 21): () per tensor, (C,) per axis, and for blocks the array's shape with `axis`
replaced by ceil(n / block); the last block may be short.

Source: ONNX operators QuantizeLinear and DequantizeLinear; B. Jacob et al. 2018, "Quantization and Training of Neural
Networks for Efficient Integer-Arithmetic-Only Inference", equation 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import ml_dtypes
import numpy as np
from numpy.typing import ArrayLike, NDArray

from alula.errors import DataError, RecipeError

Array: TypeAlias = NDArray[Any]
Floats: TypeAlias = NDArray[np.float32]

_WIDTHS: Final = (2, 3, 4, 5, 6, 7, 8, 16)
_LARGEST: Final = float(np.finfo(np.float32).max)
_LARGEST_SUM_SCALE: Final = 1e36  # times the largest code is still a float32
_SMALLEST_NORMAL: Final = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True, slots=True)
class Grid:
    """Evenly spaced integers that stand for real numbers.

    Attributes:
        bits: width of a code, 2 to 8 or 16.
        signed: codes around 0 rather than from 0.
        symmetric: the zero point is fixed at `middle`; otherwise it follows the range.
        narrow: the lowest code is not used, so that a symmetric grid has as many steps below zero as above.

    Raises:
        RecipeError: the width is not one of 2 to 8 or 16.
    """

    bits: int
    signed: bool = True
    symmetric: bool = True
    narrow: bool = False

    def __post_init__(self) -> None:
        if self.bits not in _WIDTHS:
            raise RecipeError(f"a grid has 2 to 8 or 16 bits, got bits={self.bits}; choose one of {_WIDTHS}")

    @property
    def middle(self) -> int:
        """The zero point of the symmetric grid: 0 if signed, else half the codes."""
        return 0 if self.signed else (1 << (self.bits - 1))

    @property
    def lowest(self) -> int:
        """The smallest code."""
        return self.middle - (1 << (self.bits - 1)) + int(self.narrow)

    @property
    def highest(self) -> int:
        """The largest code."""
        return self.middle + (1 << (self.bits - 1)) - 1

    @property
    def levels(self) -> int:
        """How many codes there are."""
        return self.highest - self.lowest + 1

    @property
    def storage(self) -> np.dtype[Any]:
        """The smallest type of ONNX that holds the codes: int2, int4, int8, int16, or their unsigned kin."""
        width = self.bits if self.bits in {2, 4, 16} else 8
        name = f"{'' if self.signed else 'u'}int{width}"
        return np.dtype(getattr(ml_dtypes, name) if width < 8 else name)


@dataclass(frozen=True, slots=True, eq=False)
class Quantized:
    """An array on a grid. `codes` and `zero_point` have the grid's storage type, `scale` is float32."""

    codes: Array  # shape of the array
    scale: Floats  # parameter shape
    zero_point: Array  # parameter shape
    axis: int | None
    block: int | None
    grid: Grid

    def dequantize(self) -> Floats:
        """The float32 array that the codes stand for."""
        return dequantize(self.codes, self.scale, self.zero_point, axis=self.axis, block=self.block)


def parameter_shape(shape: tuple[int, ...], axis: int | None, block: int | None) -> tuple[int, ...]:
    """The shape of scale and zero point for an array of this shape.

    Raises:
        RecipeError: the axis is not one of the array's, or the block has no axis or is smaller than 1.
    """
    if axis is None:
        if block is not None:
            raise RecipeError(f"blocks run along an axis, got block={block} and no axis; give the axis too")
        return ()
    if not -len(shape) <= axis < len(shape):
        raise RecipeError(f"the axis must be one of the array's, got axis={axis} for shape {shape}")
    if block is None:
        return (shape[axis],)
    if block < 1:
        raise RecipeError(f"a block holds at least 1 element, got block={block}")
    axis %= len(shape)
    return (*shape[:axis], -(-shape[axis] // block), *shape[axis + 1 :])


def scale_and_zero_point(minimum: ArrayLike, maximum: ArrayLike, grid: Grid) -> tuple[Floats, Array]:
    """The finest step that covers [minimum, maximum] widened to hold 0, and the code of 0 (Jacob et al. 2018, eq. 1).

    symmetric:   s = max(maximum / (highest - middle), -minimum / (middle - lowest)),   z = middle
    asymmetric:  s = (maximum - minimum) / (highest - lowest),                          z = round(lowest - minimum / s)
                                                                            (s here before it is rounded to float32)

    A range of width 0 gets scale 1. Scales are held at or above the smallest normal float32, because runtimes flush
    subnormals to zero, and low enough that no float32 is quantized to a code that stands for an infinity.

    Args:
        minimum: lower ends, any shape.
        maximum: upper ends, of a shape that broadcasts with it.
        grid: the grid to cover them with.

    Returns:
        scale (float32) and zero point (the grid's storage type), both of the broadcast shape.

    Raises:
        DataError: an end is NaN or infinite, or a minimum lies above its maximum.
    """
    low, high = _ordered_ends(minimum, maximum)  # both float64, broadcast shape
    low, high = np.clip(low, -_LARGEST, 0.0), np.clip(high, 0.0, _LARGEST)
    if grid.symmetric:
        up, down = high / (grid.highest - grid.middle), -low / (grid.middle - grid.lowest)
        scale = _normal(np.maximum(up, down))
        zero_point = np.full(scale.shape, grid.middle)
        reach = np.where(up >= down, grid.highest - grid.middle, grid.middle - grid.lowest)
    else:
        scale = _normal((high - low) / (grid.highest - grid.lowest))
        below = -low / np.where(
            high > low, high - low, 1.0
        )  # a half stays a half, so that [-t, t] rounds alike for any t
        zero_point = np.rint(grid.lowest + below * (grid.highest - grid.lowest)).astype(np.int64)
        reach = np.maximum(grid.highest - zero_point, zero_point - grid.lowest)
    finite = np.nextafter((_LARGEST / reach).astype(np.float32), np.float32(0))
    return np.asarray(np.minimum(scale, finite)), np.asarray(zero_point.astype(grid.storage))


def bias_scale(input_scale: ArrayLike, weight_scale: ArrayLike) -> Floats:
    """The scale of the sums that a layer's products come to, on whose grid its bias is added: the product of both."""
    product = np.asarray(input_scale, np.float64) * np.asarray(weight_scale, np.float64)
    return np.asarray(np.clip(product, _SMALLEST_NORMAL, _LARGEST_SUM_SCALE).astype(np.float32))


def extremes(array: ArrayLike, *, axis: int | None = None, block: int | None = None) -> tuple[Floats, Floats]:
    """The least and the greatest value per tensor, channel or block, each in parameter shape; 0 where there is none.

    Raises:
        DataError: a value is NaN or infinite.
        RecipeError: axis and block do not fit the shape.
    """
    values = finite_float32(array)
    shape = parameter_shape(values.shape, axis, block)
    if values.size == 0:
        return np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    if axis is not None and block is not None:
        starts = np.arange(0, values.shape[axis], block)
        return np.minimum.reduceat(values, starts, axis=axis), np.maximum.reduceat(values, starts, axis=axis)
    others = tuple(i for i in range(values.ndim) if axis is None or i != axis % values.ndim)
    return np.asarray(values.min(axis=others)), np.asarray(values.max(axis=others))


def quantize(
    array: ArrayLike,
    grid: Grid,
    *,
    axis: int | None = None,
    block: int | None = None,
    minimum: ArrayLike | None = None,
    maximum: ArrayLike | None = None,
) -> Quantized:
    """Put an array on a grid, per tensor, per channel along `axis`, or per `block` of elements along `axis`.

    Inside the range no value moves by more than half a step (up to float32 rounding, and except where the top of the
    range lies within a step of the largest float32). Outside it values saturate.

    Args:
        array: any real type and shape, also 0-d and empty.
        grid: the codes to use.
        axis: the axis whose channels, or along which blocks, have a scale of their own.
        block: elements per block; the last block may be short.
        minimum: lower ends of the range, broadcast to the parameter shape; the array's own where left out.
        maximum: upper ends, likewise.

    Raises:
        DataError: a value is NaN or infinite as float32, or the given range is not finite, ordered and of
            a fitting shape.
        RecipeError: axis and block do not fit the shape.
    """
    values = finite_float32(array)
    shape = parameter_shape(values.shape, axis, block)
    low: ArrayLike | None = minimum
    high: ArrayLike | None = maximum
    if low is None or high is None:
        own_low, own_high = extremes(values, axis=axis, block=block)
        low, high = own_low if low is None else low, own_high if high is None else high
    scale, zero_point = scale_and_zero_point(_fit(low, shape), _fit(high, shape), grid)
    codes = codes_from(values, scale, zero_point, grid, axis=axis, block=block)
    return Quantized(codes, scale, zero_point, axis, block, grid)


def codes_from(
    array: ArrayLike,
    scale: ArrayLike,
    zero_point: ArrayLike,
    grid: Grid,
    *,
    axis: int | None = None,
    block: int | None = None,
) -> Array:
    """The codes that ONNX QuantizeLinear gives: divided in float32, rounded half to even, saturated to the grid.

    Args:
        array: finite values, any shape.
        scale: float32, parameter shape.
        zero_point: integers, parameter shape.
        grid: its lowest and highest codes bound the result, its storage types it.
        axis: the axis that the parameters belong to.
        block: elements per block along the axis.

    Raises:
        DataError: scale or zero point has not the parameter shape.
        RecipeError: axis and block do not fit the shape.
    """
    values = np.asarray(array).astype(np.float32, copy=False)
    step, offset = (spread(one, values.shape, axis, block) for one in (scale, zero_point))
    return stored(round_to_codes(values, step, offset, grid), grid)


def round_to_codes(values: Floats, scale: Floats, offset: Floats, grid: Grid) -> Floats:
    """Codes as float32: of float32 values, by scales and zero points that broadcast with them."""
    with np.errstate(over="ignore"):  # a quotient too large for float32 saturates, as it should
        codes = np.asarray(values / scale)
    np.rint(codes, out=codes)
    codes += offset
    return np.clip(codes, grid.lowest, grid.highest, out=codes)


def stored(codes: Floats, grid: Grid) -> Array:
    """Whole numbers of a grid in its storage type, by way of int8: ten times as fast as from float to int4."""
    whole = codes.astype(f"{'' if grid.signed else 'u'}int{16 if grid.bits == 16 else 8}")
    return whole.astype(grid.storage, copy=False)


def dequantize(
    codes: Array, scale: ArrayLike, zero_point: ArrayLike, *, axis: int | None = None, block: int | None = None
) -> Floats:
    """The float32 values that ONNX DequantizeLinear gives: (codes - zero_point) * scale.

    Raises:
        DataError: scale or zero point has not the parameter shape.
        RecipeError: axis and block do not fit the shape.
    """
    values = np.array(codes, dtype=np.float32)
    values -= spread(zero_point, values.shape, axis, block)
    values *= spread(scale, values.shape, axis, block)
    return values


def finite_float32(array: ArrayLike) -> Floats:
    """The array as float32, refused unless every value is finite as float32.

    Raises:
        DataError: how many values are NaN, and how many infinite or beyond float32; or the array is not of numbers.
    """
    given = np.asarray(array)
    if given.dtype.kind in "cOSUMm":
        raise DataError(f"values must be real numbers, got an array of type {given.dtype}; convert it first")
    with np.errstate(over="ignore"):
        values = given.astype(np.float32, copy=False)
    finite = int(np.count_nonzero(np.isfinite(values)))
    if finite < values.size:
        nan = int(np.count_nonzero(np.isnan(values)))
        raise DataError(
            f"values must be finite, got {nan} NaN and {values.size - finite - nan} infinite (as float32) "
            f"of {values.size}; repair or retrain what produced them before quantizing"
        )
    return values


def _normal(scale: Array) -> Floats:
    """Scales as normal float32 numbers; 1 instead of 0."""
    return np.where(scale > 0, np.maximum(scale, _SMALLEST_NORMAL), 1.0).astype(np.float32)


def _ordered_ends(minimum: ArrayLike, maximum: ArrayLike) -> tuple[Array, Array]:
    low, high = np.broadcast_arrays(np.asarray(minimum, np.float64), np.asarray(maximum, np.float64))
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        raise DataError("the ends of a range must be finite, got NaN or infinity; look for it in the calibration data")
    if (wrong := low > high).any():
        raise DataError(
            f"a range runs from its minimum up to its maximum, got [{low[wrong][0]:g}, {high[wrong][0]:g}] "
            f"in {int(wrong.sum())} of {low.size}; swap the ends"
        )
    return low, high


def _fit(ends: ArrayLike, shape: tuple[int, ...]) -> Array:
    ends = np.asarray(ends, np.float64)
    try:
        return np.broadcast_to(ends, shape)
    except ValueError:
        raise DataError(f"a range of shape {ends.shape} does not fit; give one end or an array of {shape}") from None


def spread(parameter: ArrayLike, shape: tuple[int, ...], axis: int | None, block: int | None) -> Floats:
    """Repeat a scale or zero point so that it broadcasts with an array of this shape.

    Raises:
        DataError: it has not the parameter shape.
        RecipeError: axis and block do not fit the shape.
    """
    values = np.asarray(parameter).astype(np.float32, copy=False)
    if values.shape != (wanted := parameter_shape(shape, axis, block)):
        raise DataError(f"scale and zero point of this array have shape {wanted}, got {values.shape}")
    if axis is None:
        return values
    axis %= len(shape)
    if block is None:
        return values.reshape(tuple(-1 if i == axis else 1 for i in range(len(shape))))
    inside = tuple(slice(None) for _ in shape[:axis])
    return np.repeat(values, block, axis=axis)[(*inside, slice(shape[axis]))]
