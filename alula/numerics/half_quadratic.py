"""Steps and zero points of the least p-norm of a weight's errors: a few large ones for many small ones (HQQ).

| symbol | code | shape | unit | meaning |
|---|---|---|---|---|
| W | unit | [rows, n] | steps | weights that share a step, divided by the step that their extremes give |
| s, z | step, zero | [rows, 1] | steps, codes | what is looked for; z is whole |
| Q | codes | [rows, n] | codes | clip(round(W / s) + z, lowest, highest) |
| E | error | [rows, n] | steps | W - s (Q - z) |
| W_e | | [rows, n] | steps | what of the errors is counted but not fitted: of large ones most, of small ones nothing |
| p, beta, kappa | norm, penalty, growth | () | | 0 < p <= 1; what W_e costs to differ from E, and its growth |

    minimise over s, z, W_e    sum |W_e|^p + beta / 2 sum (W_e - E)^2      beta <- kappa beta, round after round
      W_e   <-  sign(E) max(|E| - |E|^(p - 1) / beta, 0)                   generalised soft threshold
      s, z  <-  least squares of  W - W_e  by  s (Q - z),  Q as it is

Source: H. Badri and A. Shaji 2023, "Half-Quadratic Quantization of Large Machine Learning Models", whose p, beta and
kappa these are. What differs: they fit a fractional zero point and leave s as it was. ONNX's zero points are codes, so
z is rounded in each round and s fitted to what is left, which makes of each round a grid that can be stored; symmetric
grids, which they have not, get their s. Errors are counted in steps, so that beta means the same whatever the size of
the weights; and of all rounds, the start among them, each row keeps the one of the least sum |E|^p.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from alula.errors import RecipeError
from alula.numerics.grids import (
    Floats,
    Grid,
    extremes,
    finite_float32,
    parameter_shape,
    round_to_codes,
    scale_and_zero_point,
)
from alula.numerics.ranges import as_parameter, in_pieces, rows_of

Ends: TypeAlias = tuple[NDArray[np.floating], NDArray[np.floating]]


def half_quadratic_range(
    weight: ArrayLike,
    grid: Grid,
    *,
    axis: int | None,
    block: int | None = None,
    norm: float = 0.7,
    penalty: float = 10.0,
    growth: float = 1.01,
    iterations: int = 20,
) -> Ends:
    """The range of each channel or block with the least sum |w - Q(w)|^p found; no worse than its extremes.

    Args:
        weight: any shape.
        grid: the grid that it will be quantized to, to the nearest code.
        axis: the axis whose channels, or along which blocks, have a range of their own; None for one range.
        block: elements per block along the axis; the last may be short.
        norm: p, above 0 and up to 1.
        penalty: beta in the first round, by squared steps.
        growth: kappa, at least 1.
        iterations: rounds; 0 gives the extremes' grid.

    Returns:
        minimum and maximum, float64, in parameter shape (see `alula.numerics.grids`): `scale_and_zero_point` makes of
        them the step and zero point that were found.

    Raises:
        DataError: a weight is NaN or infinite.
        RecipeError: axis and block do not fit the shape, or a number is out of its bounds.
    """
    if not 0 < norm <= 1 or not penalty > 0 or growth < 1 or iterations < 0:
        raise RecipeError(
            "half-quadratic splitting needs a norm above 0 and up to 1, a penalty above 0, a growth of at least 1 and "
            f"at least 0 iterations, got {norm}, {penalty}, {growth}, {iterations}"
        )
    array = finite_float32(weight)
    shape = parameter_shape(array.shape, axis, block)
    if array.size == 0:
        return np.zeros(shape), np.zeros(shape)
    told = {"norm": norm, "penalty": penalty, "growth": growth}
    pieces = in_pieces(rows_of(array, axis, block))
    ends = [_ends_of_rows(rows, grid, iterations, **told) for rows in pieces]
    low, high = (as_parameter(np.concatenate(end), array.shape, axis, block) for end in zip(*ends, strict=True))
    return low, high


def _ends_of_rows(  # [r, n] -> [r], [r]
    rows: Floats, grid: Grid, iterations: int, *, norm: float, penalty: float, growth: float
) -> Ends:
    scale, zero_point = scale_and_zero_point(*extremes(rows, axis=0), grid)
    unit = rows / scale[:, None]
    step, zero = np.ones((len(rows), 1), np.float32), zero_point.astype(np.float32)[:, None]
    best, least = (step, zero), np.full((len(rows), 1), np.inf, np.float32)
    for _ in range(iterations + 1):
        codes = round_to_codes(unit, step, zero, grid) - zero
        error = unit - step * codes
        powers = np.abs(error) ** np.float32(norm)
        total = powers.sum(axis=1, keepdims=True)
        best = (np.where(total < least, step, best[0]), np.where(total < least, zero, best[1]))
        least = np.minimum(total, least)
        target = unit - _thresholded(error, powers, np.float32(penalty))
        step, zero = _least_squares(codes, target, step, zero, grid)
        penalty *= growth
    size, offset = (best[0][:, 0] * scale.astype(np.float64), best[1][:, 0])
    return np.asarray((grid.lowest - offset) * size), np.asarray((grid.highest - offset) * size)


def _thresholded(error: Floats, powers: Floats, penalty: np.float32) -> Floats:
    """sign(E) max(|E| - |E|^(p - 1) / beta, 0), given |E|^p: all [r, n]."""
    size = np.abs(error)
    cut = np.divide(powers, size * penalty, out=np.zeros_like(size), where=size > 0)
    return np.asarray(np.copysign(np.maximum(size - cut, 0), error))


def _least_squares(codes: Floats, target: Floats, step: Floats, zero: Floats, grid: Grid) -> tuple[Floats, Floats]:
    """The step and whole zero point with which codes, given here less the zero point, come closest to a target."""
    if not grid.symmetric:
        middle, goal = codes.mean(axis=1, keepdims=True), target.mean(axis=1, keepdims=True)
        slope = _ratio(codes - middle, target - goal, step)
        moved = np.clip(np.rint(zero + middle - goal / slope), grid.lowest, grid.highest)
        codes, zero = codes + (zero - moved), moved
    return _ratio(codes, target, step), zero


def _ratio(codes: Floats, target: Floats, otherwise: Floats) -> Floats:  # [r, n], [r, n], [r, 1] -> [r, 1]
    """The factor of codes that comes closest to a target, where it is positive."""
    product, square = (np.einsum("rn, rn -> r", codes, other)[:, None] for other in (target, codes))
    return np.asarray(np.divide(product, square, out=otherwise.copy(), where=(product > 0) & (square > 0)))
