"""Rounding one column after another, where those that are still free make up for the error (GPTQ).

| symbol | code | shape | unit | meaning |
|---|---|---|---|---|
| W | weights | [out, k] | of the weights | one layer's matrix: y = W x |
| H | moments | [k, k] | inputs squared | mean of x x^T over the calibration data, damped on its diagonal |
| U | factor | [k, k] | 1 / inputs | upper triangular, H^-1 = U^T U, columns in the order in which they are rounded |
| Q | quantized | [out, k] | codes | W on the grid; a scale per row, or per row and block of columns |
| e_j | error | [out] | weights x inputs | (w_j - q_j) / U_jj, q_j what the codes of column j stand for |
| B | span | () | columns | columns whose updates of the columns behind them are applied at once |

Column by column: w_j is rounded to the nearest code, and all columns behind it change by -e_j U_j: , which is the least
of tr(D H D^T) among all changes D that put column j on the grid and leave those before it (the optimal brain surgeon's
step). The scales of a block are found when its first column comes, from its weights as they are by then.

The order of columns is theirs, or by falling H_jj: what is seen most is rounded while most can still make up for it.
Blocks stay together then, the one with the largest mean H_jj first, so that their scales can wait for them.

Source: Frantar et al. 2023, "GPTQ: accurate post-training quantization for generative pre-trained transformers",
algorithm 1; the order is the option ``act-order`` of its authors' code. Columns that calibration never saw are rounded
to the nearest code, and nothing changes for them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from alula.errors import DataError, RecipeError
from alula.numerics.grids import Grid, Quantized, extremes, finite_float32, round_to_codes, scale_and_zero_point, stored
from alula.numerics.sparse_gpt import inverse_factor

Floats: TypeAlias = NDArray[np.float64]
Ends: TypeAlias = tuple[NDArray[np.float32], NDArray[np.float32]]
FindRange: TypeAlias = Callable[[NDArray[np.float32], NDArray[np.intp]], Ends]
"""The range of each row of weights [out, n], given the numbers of their columns [n]: lower and upper ends, [out]."""


def gptq(
    weights: np.ndarray,
    moments: np.ndarray,
    grid: Grid,
    *,
    block: int | None = None,
    find_range: FindRange | None = None,
    by_size_of_inputs: bool = False,
    span: int = 32,
    damping: float = 0.01,
) -> Quantized:
    """Weights on a grid, rounded so that the layer's outputs change least.

    Args:
        weights: [out, k].
        moments: [k, k], mean of x x^T.
        grid: the codes to use.
        block: columns that share a scale in each row, the last ones perhaps fewer; None: one scale per row.
        find_range: of the rows of some columns; their extremes unless told.
        by_size_of_inputs: round columns by falling mean square of what they read.
        span: columns whose updates of those behind are applied at once: a matter of speed alone.
        damping: share of the mean of the diagonal of the moments that is added to it.

    Returns:
        The matrix on the grid: with blocks along axis 1, else with scales along axis 0.

    Raises:
        DataError: weights or moments are not finite, do not fit each other, or the damped moments are not positive.
        RecipeError: the block, the span or the damping is impossible.
    """
    if (block is not None and block < 1) or span < 1 or not 0 <= damping < np.inf:
        raise RecipeError(f"block and span must be at least 1 and damping at least 0, got {block}, {span}, {damping}")
    from scipy.linalg.blas import dgemm

    matrix: Floats = finite_float32(weights).astype(np.float64)
    _check_moments(matrix.shape, moments)
    rows, columns = matrix.shape
    width = block or max(columns, 1)
    order = _order(np.diag(moments), width) if by_size_of_inputs else np.arange(columns)
    factor = inverse_factor(moments[np.ix_(order, order)], damping)
    free = np.ascontiguousarray(matrix.T[order])  # [k, out]: a column lies in one piece
    whole = np.empty((columns, rows), np.float32)  # codes
    scale, zero_point = scale_and_zero_point(np.zeros((max(1, -(-columns // width)), rows)), 0.0, grid)
    for start in range(0, columns, span):
        stop = min(start + span, columns)
        errors = np.empty((stop - start, rows))
        for column in range(start, stop):
            before = errors[: column - start]  # what columns of this span have left to those behind them
            number = order[column] // width
            if column == 0 or order[column - 1] // width != number:  # a block begins
                last = column + min(width, columns - number * width)
                by_then = free[column:last] - factor[start:column, column:last].T @ before
                ends = (find_range or _extremes_of_rows)(by_then.T.astype(np.float32), order[column:last])
                scale[number], zero_point[number] = scale_and_zero_point(*ends, grid)
                step, offset = scale[number], zero_point[number].astype(np.float32)
            values = free[column] - factor[start:column, column] @ before
            whole[column] = round_to_codes(values.astype(np.float32), step, offset, grid)
            errors[column - start] = (values - (whole[column] - offset) * step) / factor[column, column]
        if stop < columns:  # in place: [out, k] is how Fortran sees it
            dgemm(-1.0, errors.T, factor[start:stop, stop:], 1.0, free[stop:].T, overwrite_c=1)
    codes = stored(whole[np.argsort(order)].T, grid)
    if block is None:
        return Quantized(codes, scale[0], zero_point[0], 0, None, grid)
    blocks = -(-columns // width)
    return Quantized(codes, scale[:blocks].T, zero_point[:blocks].T, 1, block, grid)


def _order(seen: NDArray[np.floating], width: int) -> NDArray[np.intp]:  # [k] -> [k]
    """Columns by falling H_jj, block by block, the block of the largest mean first."""
    starts = range(0, len(seen), width)
    blocks = sorted((np.arange(start, min(start + width, len(seen))) for start in starts),
                    key=lambda columns: -float(seen[columns].mean()))  # fmt: skip
    return np.concatenate([columns[np.argsort(-seen[columns], kind="stable")] for columns in blocks])


def _extremes_of_rows(rows: NDArray[np.float32], columns: NDArray[np.intp]) -> Ends:  # noqa: ARG001
    return extremes(rows, axis=0)


def _check_moments(shape: tuple[int, ...], moments: np.ndarray) -> None:
    if len(shape) != 2 or moments.shape != (shape[1], shape[1]):
        raise DataError(f"weights [out, k] need second moments [k, k], got {list(shape)} and {list(moments.shape)}")
    if not np.isfinite(moments.astype(np.float64)).all():
        raise DataError("second moments hold NaN or infinity; clean the calibration data")
