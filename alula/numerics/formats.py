"""Number formats of weights that are no even grid: small floats, microscaling, normal floats, ternary.

| symbol | code | shape | unit | meaning |
|---|---|---|---|---|
| x | array | [...] | of the tensor | values to store |
| p | elements | [...] | of the format | what the format holds of x / s |
| s | scale | parameter shape | of the tensor | a normal float32, never 0; 1 where all values are 0 |
| a | magnitude | parameter shape | of the tensor | the largest abs(x) that shares a scale |
| m | mantissa_bits | | bits | digits behind the leading one |
| e | exponent | | | floor(log2 abs(x)), at least that of the smallest normal number |

    x' = s p

    small float     p = round_half_even(x / s / 2^(e - m)) 2^(e - m), saturated        s = a / largest
    microscaling    the same in blocks of 32                                           s = 2^(floor(log2 a) - e_max)
    normal float    p = the nearest of 16 quantiles of the normal distribution         s = a
    ternary         p = sign(x) where abs(x) > t, else 0                               s = mean of abs(x) where p != 0

The parameter shape is that of :mod:`alula.numerics.grids`; the last block may be short. ``e_max`` is the exponent of
the format's largest number.

Sources: Micikevicius et al. 2022, "FP8 formats for deep learning", table 1 (E4M3, E5M2); OCP Microscaling Formats (MX)
Specification 1.0, sections 5.3 (elements), 5.4 (scales of type E8M0) and 6.3 (conversion); Dettmers et al. 2023,
"QLoRA", section 3 and appendix E (NF4); Li et al. 2016, "Ternary weight networks", section 2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from alula.errors import RecipeError
from alula.numerics.clusters import nearest
from alula.numerics.grids import Floats, Grid, Quantized, codes_from, extremes, finite_float32, parameter_shape, spread
from alula.numerics.grids import quantize as quantize_to_grid

MICROSCALING_BLOCK: Final = 32
TERNARY_THRESHOLD: Final = 0.7  # of the mean magnitude: near the best one for normal weights (Li et al. 2016)

_LARGEST: Final = float(np.finfo(np.float32).max)
_LARGEST_POWER: Final = np.float32(2.0**127)
_SMALLEST_NORMAL: Final = float(np.finfo(np.float32).tiny)
_LEAST_EXPONENT: Final = -126  # of a scale: E8M0 has 2^-127 too, which is subnormal as float32 and flushed to 0


@dataclass(frozen=True, slots=True)
class FloatFormat:
    """A float of few bits, with a sign and gradual underflow; what lies beyond ``largest`` saturates.

    Attributes:
        mantissa_bits: digits behind the leading one.
        smallest_exponent: of the smallest normal number.
        largest: the largest finite number.
    """

    mantissa_bits: int
    smallest_exponent: int
    largest: float

    @property
    def largest_exponent(self) -> int:
        """Of the largest number: e_max of the microscaling specification."""
        return int(np.frexp(self.largest)[1]) - 1

    @property
    def values(self) -> Floats:
        """Every finite number of the format, ascending, 0 once."""
        digits = np.arange(1 << self.mantissa_bits) / (1 << self.mantissa_bits)  # [2^m]
        exponents = np.arange(self.smallest_exponent, self.largest_exponent + 1)
        normal = np.ldexp(1 + digits, exponents[:, None]).ravel()
        positive = np.append(np.ldexp(digits, self.smallest_exponent), normal[normal <= self.largest])
        return np.unique(np.concatenate([-positive, positive])).astype(np.float32)


E4M3: Final = FloatFormat(3, -6, 448.0)  # float8 E4M3FN: no infinities, one NaN
E5M2: Final = FloatFormat(2, -14, 57344.0)  # float8 E5M2
E2M1: Final = FloatFormat(1, 0, 6.0)  # float4 E2M1

NORMAL_FLOAT: Final[Floats] = np.array(
    [
        -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
        -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
        0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
    ],
    np.float32,
)  # fmt: skip
"""NF4, ascending: quantiles of the normal distribution, seven below 0 and eight above (QLoRA, appendix E)."""


@dataclass(frozen=True, slots=True, eq=False)
class Scaled:
    """An array as numbers of a format times scales; both float32."""

    elements: Floats  # shape of the array
    scale: Floats  # parameter shape
    axis: int | None
    block: int | None

    def values(self) -> Floats:
        """The float32 array that they stand for."""
        return self.elements * spread(self.scale, self.elements.shape, self.axis, self.block)


def round_to(array: ArrayLike, form: FloatFormat) -> Floats:
    """The nearest numbers of a format, ties to the even digit; beyond the largest they saturate.

    >>> round_to([0.3, 5.0, 70.0], E2M1).tolist()
    [0.5, 4.0, 6.0]

    Raises:
        DataError: a value is NaN or infinite.
    """
    values = np.clip(finite_float32(array), -form.largest, form.largest)
    exponents = np.maximum(np.frexp(values)[1] - 1, form.smallest_exponent)
    step = np.ldexp(np.float32(1), exponents - form.mantissa_bits)
    return np.asarray(np.rint(values / step) * step)


def to_float(array: ArrayLike, form: FloatFormat, *, axis: int | None = None, block: int | None = None) -> Scaled:
    """Numbers of a format, scaled so that the largest of each channel or block becomes the format's largest.

    Args:
        array: any real type and shape, also 0-d and empty.
        form: ``E4M3``, ``E5M2``, ``E2M1``, or another.
        axis: the axis whose channels, or along which blocks, have a scale of their own; None: one for all.
        block: elements per block; the last block may be short.

    Raises:
        DataError: a value is NaN or infinite.
        RecipeError: axis and block do not fit the shape.
    """
    values = finite_float32(array)
    scale = _scale(_magnitude(values, axis, block), form.largest)
    return Scaled(round_to(_divided(values, scale, axis, block), form), scale, axis, block)


def to_microscaling(array: ArrayLike, form: FloatFormat, *, axis: int) -> Scaled:
    """Blocks of 32 along an axis, each with a power of two as its scale (OCP MX 1.0, section 6.3).

    The largest of a block may lie up to a seventh beyond the format's largest (E4M3, E5M2; E2M1: a third), where it
    saturates, as the specification has it.

    Args:
        array: any real type, of at least one axis.
        form: ``E2M1`` for MXFP4, ``E4M3`` or ``E5M2`` for MXFP8.
        axis: along which blocks lie; the last block may be short.

    Raises:
        DataError: a value is NaN or infinite.
        RecipeError: the array has no such axis.
    """
    values = finite_float32(array)
    magnitude = _magnitude(values, axis, MICROSCALING_BLOCK)
    exponents = np.maximum(np.frexp(magnitude)[1] - 1 - form.largest_exponent, _LEAST_EXPONENT)
    scale = np.ldexp(np.float32(1), np.where(magnitude > 0, exponents, 0))
    return Scaled(round_to(_divided(values, scale, axis, MICROSCALING_BLOCK), form), scale, axis, MICROSCALING_BLOCK)


def to_normal_float(array: ArrayLike, *, axis: int | None = None, block: int | None = None) -> Scaled:
    """The nearest of the 16 numbers of NF4, the largest of each channel or block being 1 or -1 (QLoRA, section 3).

    Raises:
        DataError: a value is NaN or infinite.
        RecipeError: axis and block do not fit the shape.
    """
    values = finite_float32(array)
    scale = _scale(_magnitude(values, axis, block), 1.0)
    codes = nearest(_divided(values, scale, axis, block), NORMAL_FLOAT)
    return Scaled(NORMAL_FLOAT[codes], scale, axis, block)


def to_ternary(
    array: ArrayLike, *, axis: int | None = None, block: int | None = None, threshold: float | None = None
) -> Scaled:
    """-1, 0 or 1 times a scale, of least squared error.

    Whichever values are not to be 0, the best scale is the mean of their magnitudes. The best choice of them is the k
    largest, k such that (sum of their magnitudes)^2 / k is greatest (Li et al. 2016, section 2): one sort finds it.

    Args:
        array: any real type and shape, also 0-d and empty.
        axis: the axis whose channels, or along which blocks, have a scale of their own; None: one for all.
        block: elements per block; the last block may be short.
        threshold: not the best choice, but what is larger than this share of the mean magnitude
            (``TERNARY_THRESHOLD``, as published).

    Raises:
        DataError: a value is NaN or infinite.
        RecipeError: axis and block do not fit the shape, or the threshold is negative.
    """
    if threshold is not None and threshold < 0:
        raise RecipeError(f"a threshold of magnitudes is at least 0, got {threshold}; None finds the best")
    values = finite_float32(array)
    groups = _groups(np.abs(values), axis, block)  # [parameter shape, members]
    if threshold is None:
        least = _best_least(groups)
    else:
        members = _groups(np.ones(values.shape, np.float32), axis, block).sum(-1)
        limit = threshold * groups.sum(-1, dtype=np.float64) / np.maximum(members, 1)
        least = groups.min(-1, where=groups > limit[..., None], initial=np.inf)
    kept = (groups >= least[..., None]) & (groups > 0)
    scale = _scale(groups.sum(-1, where=kept, dtype=np.float64) / np.maximum(kept.sum(-1), 1), 1.0)
    large = np.abs(values) >= spread(least, values.shape, axis, block)
    return Scaled(np.sign(values) * large, scale, axis, block)


def to_shifted_grid(array: ArrayLike, grid: Grid, *, axis: int | None = None, block: int | None = None) -> Quantized:
    """An even grid whose steps are powers of two, so that scaling is a shift of bits; nothing saturates.

    Each step is the smallest power of two that covers the range of its channel or block.

    Raises:
        DataError: a value is NaN or infinite.
        RecipeError: the grid is not symmetric, or axis and block do not fit the shape.
    """
    if not grid.symmetric:
        raise RecipeError(
            "steps that are powers of two are for symmetric grids: the others' zero point follows the step"
        )
    values = np.clip(finite_float32(array), -_LARGEST_POWER, _LARGEST_POWER)  # no code stands for an infinity
    fine = quantize_to_grid(values, grid, axis=axis, block=block)
    digits, exponents = np.frexp(fine.scale)
    scale = np.ldexp(np.float32(1), exponents - (digits == 0.5))
    codes = codes_from(values, scale, fine.zero_point, grid, axis=axis, block=block)
    return Quantized(codes, scale, fine.zero_point, axis, block, grid)


def _magnitude(values: Floats, axis: int | None, block: int | None) -> Floats:
    """The largest magnitude that shares a scale, in parameter shape."""
    low, high = extremes(values, axis=axis, block=block)
    return np.maximum(-low, high)


def _scale(magnitude: NDArray[np.floating], reach: float) -> Floats:
    """Scales by which ``reach`` stands for a magnitude: normal, 1 for 0, and no product of both infinite."""
    finite = np.nextafter(np.float32(_LARGEST / reach), np.float32(0))
    scale = np.clip(magnitude.astype(np.float64) / reach, _SMALLEST_NORMAL, finite)
    return np.where(magnitude > 0, scale, 1.0).astype(np.float32)


def _divided(values: Floats, scale: Floats, axis: int | None, block: int | None) -> Floats:
    return np.asarray(values / spread(scale, values.shape, axis, block))


def _groups(values: Floats, axis: int | None, block: int | None) -> Floats:  # -> [parameter shape, members]
    """What shares a scale side by side; a short block, and one without any value, is filled up with zeros."""
    shape, groups = parameter_shape(values.shape, axis, block), values
    if axis is None:
        groups = values.reshape(-1)
    elif block is None:
        groups = np.moveaxis(values, axis, 0).reshape(shape[0], values.size // max(shape[0], 1))
    else:
        axis %= values.ndim
        missing = shape[axis] * block - values.shape[axis]
        filled = np.pad(values, [(0, missing if one == axis else 0) for one in range(values.ndim)])
        groups = np.moveaxis(filled.reshape(*shape[: axis + 1], block, *shape[axis + 1 :]), axis + 1, -1)
    return groups if groups.shape[-1] else np.zeros((*shape, 1), np.float32)


def _best_least(groups: Floats) -> Floats:
    """The smallest magnitude to keep: the k-th largest of each group, with (sum of the k largest)^2 / k greatest."""
    falling = -np.sort(-groups, axis=-1)
    counts = np.arange(1, groups.shape[-1] + 1)
    best = (falling.cumsum(-1, dtype=np.float64) ** 2 / counts).argmax(-1)
    return np.take_along_axis(falling, best[..., None], -1)[..., 0]
