"""Zeros whose harm the weights that stay make up for (SparseGPT).

| symbol | code | shape | unit | meaning |
|---|---|---|---|---|
| W | weights | [out, k] | of the weights | one layer's matrix: y = W x |
| H | moments | [k, k] | inputs squared | mean of x x^T over the calibration data, damped on its diagonal |
| U | factor | [k, k] | 1 / inputs | upper triangular, H^-1 = U^T U |
| B | block | () | columns | columns whose updates of the columns behind them are applied at once |
| M | mask | [out, k] | bool | true where a weight becomes zero |
| e_j | errors | [out, B] | weights x inputs | w_j / U_jj of removed weights, else 0 |

Column by column, from the left: a removed weight w_j changes those behind it by -w_j [H_F^-1]_j: / [H_F^-1]_jj = -e_j
U_j:, with F = {j, ...} the columns that may still change. Within each block, the weights are removed that increase the
squared error of the outputs least: by w_j^2 / [H_F^-1]_jj = w_j^2 / U_jj^2.

Source: Frantar & Alistarh 2023, "SparseGPT: massive language models can be accurately pruned in one shot", algorithm 1
and equations 3 to 5. The factor 2 of their Hessian changes nothing. The weights of inputs that calibration never saw
cost nothing: they are the first to go, and no other changes for them.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from alula.errors import DataError, RecipeError
from alula.numerics.sparsity import Mask, count_removed, least, least_of_groups

Floats = NDArray[np.float64]
Span = tuple[int, int]  # first column, and the one behind the last


def sparse_gpt(
    weights: np.ndarray,
    moments: np.ndarray,
    amount: float = 0.0,
    *,
    pattern: tuple[int, int] | None = None,
    run: int | None = None,
    block: int = 128,
    damping: float = 0.01,
) -> Floats:  # [out, k] -> [out, k]
    """Weights of which a share is zero, the others changed so that the outputs change least.

    Weights that are zero already stay zero, and count.

    Args:
        weights: [out, k].
        moments: [k, k], mean of x x^T.
        amount: share of the weights to remove; a pattern sets its own.
        pattern: (n, m) keeps n of each m neighbouring columns.
        run: columns within which the groups of a pattern lie, all k unless told; k is a multiple of it.
        block: columns of a block.
        damping: share of the mean of the diagonal that is added to it.

    Raises:
        DataError: weights or moments are not finite, do not fit each other, or the damped moments are not positive.
        RecipeError: the share, the pattern, the block or the damping is impossible.
    """
    if block < 1 or damping < 0:
        raise RecipeError(f"block must be at least 1 and damping at least 0, got {block} and {damping}")
    _check(weights, moments, run)
    factor = inverse_factor(moments, damping)
    changed: Floats = weights.astype(np.float64)
    zeros, mask = changed == 0, np.zeros(changed.shape, np.bool_)
    costs = _seen(moments) / np.diag(factor) ** 2  # [k], of a weight's square
    for spans in _blocks(changed.shape[1], block, pattern, run):
        first, last = spans[0][0], spans[-1][1]
        errors = np.zeros((len(changed), last - first))
        for start, stop in spans:
            columns = slice(start, stop)
            losses = np.where(zeros[:, columns], -1.0, changed[:, columns] ** 2 * costs[columns])
            due = min(
                count_removed(len(changed) * stop, amount),
                count_removed(changed.size, amount) - int(zeros[:, stop:].sum()),  # those behind go anyway
            )
            mask[:, columns] = zeros[:, columns] | _choose(losses, due - int(mask.sum()), pattern)
            for column in range(start, stop):
                error = np.where(mask[:, column], changed[:, column], 0.0) / factor[column, column]
                changed[:, column:last] -= np.outer(error, factor[column, column:last])
                errors[:, column - first] = error
        changed[:, last:] -= errors @ factor[first:last, last:]
    changed[mask] = 0.0
    return changed


def inverse_factor(moments: np.ndarray, damping: float = 0.01) -> Floats:  # [k, k] -> [k, k]
    """U, upper triangular, with (H + damping * mean(diag H) I)^-1 = U^T U.

    Where nothing was seen at all, H is the identity.

    Raises:
        DataError: the damped moments are not positive definite.
    """
    from scipy.linalg import lapack

    size = len(moments)
    flipped: Floats = np.array(moments[::-1, ::-1], np.float64, order="F")
    if size == 0:
        return flipped
    mean = float(np.trace(flipped)) / size
    flipped[np.diag_indices(size)] += damping * mean if mean > 0 else 1.0
    reverse, failed = lapack.dpotrf(flipped, lower=1, overwrite_a=1)  # H = R R^T, R upper triangular: from the end on
    inverse, singular = lapack.dtrtri(reverse, lower=1, overwrite_c=1) if not failed else (reverse, failed)
    if failed or singular:
        raise DataError(
            f"second moments of {size} inputs are not positive definite with damping {damping}; raise the damping"
        )
    return np.ascontiguousarray(inverse[::-1, ::-1])


def _seen(moments: np.ndarray) -> Mask:  # [k, k] -> [k]
    """Which inputs calibration saw; all, where it saw none, so that size alone decides."""
    seen = np.diag(moments) > 0
    return seen if seen.any() else ~seen


def _blocks(columns: int, block: int, pattern: tuple[int, int] | None, run: int | None) -> Iterator[list[Span]]:
    """The blocks, each as the spans of columns whose mask is chosen at once; no group of a pattern lies in two."""
    width = block if pattern is None else pattern[1]
    within = columns if pattern is None or run is None else run
    ends = [(start, start + within) for start in range(0, columns, max(within, 1))]
    spans = [(start, min(start + width, stop)) for first, stop in ends for start in range(first, stop, width)]
    together = 1 if pattern is None else max(1, block // width)
    for start in range(0, len(spans), together):
        yield spans[start : start + together]


def _choose(losses: Floats, wanted: int, pattern: tuple[int, int] | None) -> Mask:  # [out, span] -> [out, span]
    """The weights of a span to remove: those of a pattern, or as many as are wanted of those that matter least."""
    if pattern is not None:
        kept, group = pattern
        return least_of_groups(losses, kept, group)
    order = min(max(wanted, 0), losses.size)
    if order == losses.size:
        return np.ones(losses.shape, np.bool_)
    return least(losses, order / losses.size)


def _check(weights: np.ndarray, moments: np.ndarray, run: int | None) -> None:
    if weights.ndim != 2 or moments.shape != (weights.shape[1], weights.shape[1]):
        raise DataError(
            f"weights [out, k] need second moments [k, k], got {list(weights.shape)} and {list(moments.shape)}"
        )
    if run is not None and (run < 1 or weights.shape[1] % run):
        raise RecipeError(f"the groups of a pattern lie in runs that divide the {weights.shape[1]} columns, got {run}")
    for name, array in (("weights", weights), ("second moments", moments)):
        if not np.isfinite(array.astype(np.float64)).all():
            raise DataError(f"{name} hold NaN or infinity; repair them first")
