"""What it costs to take columns out of a matrix when all others may make up for it, and the matrix that does so.

| symbol | code | shape | unit | meaning |
|---|---|---|---|---|
| W | matrix | [rows, k] | | a layer: y = W x |
| M | moments | [k, k] | x^2 | mean of x x^T over what the layer reads |
| lambda | damping | | | what is added to the diagonal, as a share of its mean, so that M can be inverted |
| H | hessian | [k, k] | x^2 | M + lambda mean(diag M) I: the error of a change D is tr(D H D^T), mean of |D x|^2 |
| S | columns | [s] or [n, s] | | columns that go together: those of a unit, or of each of n units |
| L | result | [n] | y^2 | error that is left when unit i goes and the other columns are changed for the best |

For one unit, L = tr(W_S ([H^-1]_SS)^-1 W_S^T), and the best change is D = -W_S ([H^-1]_SS)^-1 [H^-1]_S: , after which
the inverse of H without S is [H^-1] - [H^-1]_:S ([H^-1]_SS)^-1 [H^-1]_S: . Taken out one after another, units leave the
matrix that is the least-squares solution on the columns K that are left, W_K + W_S H_SK (H_KK)^-1.

Sources: Hassibi and Stork 1993, "Second order derivatives for network pruning: Optimal Brain Surgeon", equation 5;
Frantar and Alistarh 2022, "Optimal Brain Compression", section 4, for the inverse that is brought up to date, and for
groups of columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from alula.errors import DataError, RecipeError

Floats = NDArray[np.float64]
BLOCK_ROWS = 64  # of the inverse that are brought up to date at a time: they stay in the cache
LEAST_DAMPING = 1e-8  # below it, float64 cannot tell columns apart that always agree


@dataclass(frozen=True, slots=True, eq=False)
class Quadratic:
    """A layer that may lose units: ``matrix`` [rows, k], ``hessian`` [k, k], and each unit's ``columns`` [n, s]."""

    matrix: NDArray[np.floating]
    hessian: Floats
    columns: NDArray[np.integer]


def damped(moments: Floats, damping: float = 0.01) -> Floats:  # [k, k] -> [k, k]
    """H = M + lambda mean(diag M) I, which can be inverted; I itself where M is 0.

    Raises:
        RecipeError: the damping is negative.
        DataError: the moments are not finite.
    """
    if not damping >= 0:
        raise RecipeError(f"damping must be at least 0, got {damping!r}; 0.01 adds 1 % of the mean of the diagonal")
    if not np.isfinite(moments).all():
        raise DataError("second moments hold NaN or infinity; clean the calibration data")
    size = float(np.mean(np.diag(moments))) if len(moments) else 0.0
    made = moments.astype(np.float64)
    made.flat[:: len(moments) + 1] += max(damping, LEAST_DAMPING) * size or 1.0
    return made


def removal_harms(  # [rows, k], [k, k], [n, s] -> [n]
    matrix: NDArray[np.floating], inverse: Floats, columns: NDArray[np.integer]
) -> Floats:
    """L of each unit, if it alone went.

    >>> removal_harms(np.array([[3.0, 1.0]]), np.linalg.inv(np.diag([1.0, 4.0])), np.array([[0], [1]])).tolist()
    [9.0, 4.0]
    """
    weights = matrix.astype(np.float64)[:, columns].swapaxes(0, 1)  # [n, rows, s]
    blocks = inverse[columns[:, :, None], columns[:, None, :]]  # [n, s, s]
    solved = np.linalg.solve(blocks, weights.swapaxes(1, 2) @ weights)  # [n, s, s]
    return np.asarray(np.trace(solved, axis1=1, axis2=2))


def remove_columns(  # [rows, k], [k, k], [s] -> [rows, k], [k, k]
    matrix: NDArray[np.floating], inverse: Floats, columns: NDArray[np.integer]
) -> tuple[Floats, Floats]:
    """W after the best change, its columns S exactly 0; the inverse of H without S, its rows and columns S 0."""
    changed, left = matrix.astype(np.float64), inverse.copy()
    _remove(changed, left, columns)
    return changed, left


def _remove(matrix: Floats, inverse: Floats, columns: NDArray[np.integer]) -> None:
    """As :func:`remove_columns`, in place: the inverse is the largest thing there is."""
    solved = np.linalg.solve(inverse[np.ix_(columns, columns)], inverse[columns])  # [s, k]
    matrix -= matrix[:, columns] @ solved
    for start in range(0, len(inverse), BLOCK_ROWS):  # no second matrix of its size
        inverse[start : start + BLOCK_ROWS] -= inverse[start : start + BLOCK_ROWS, columns] @ solved
    matrix[:, columns] = 0
    inverse[columns], inverse[:, columns] = 0, 0


def compensated(  # [rows, k], [k, k] -> [rows, k]
    matrix: NDArray[np.floating], hessian: Floats, columns: NDArray[np.integer]
) -> Floats:
    """W with columns S at 0 and all others changed for the best: least squares in one step."""
    wide = matrix.astype(np.float64)
    gone = np.unique(columns)
    kept = np.setdiff1d(np.arange(wide.shape[1]), gone)
    result = np.zeros_like(wide)
    if len(kept):
        error = wide[:, gone] @ hessian[np.ix_(gone, kept)]  # [rows, kept]
        result[:, kept] = wide[:, kept] + np.linalg.solve(hessian[np.ix_(kept, kept)], error.T).T
    return result


def harms_in_order(layers: Sequence[Quadratic]) -> Floats:  # -> [n]
    """The harm that each unit does when it goes, all less harmful ones gone before it; summed over the layers.

    Units go one by one, the least harmful first, and every layer is changed for the best each time. A unit never counts
    for less than one that went before it, so that sorting the result gives the order in which they went.
    """
    states: list[tuple[Floats, Floats]] = [
        (layer.matrix.astype(np.float64), np.asarray(np.linalg.inv(layer.hessian), np.float64)) for layer in layers
    ]
    units = len(layers[0].columns)
    left, result, least = np.arange(units), np.zeros(units), 0.0
    for turn in range(units):
        harms = np.zeros(len(left))
        for layer, (matrix, inverse) in zip(layers, states, strict=True):
            harms += removal_harms(matrix, inverse, layer.columns[left])
        chosen = int(np.argmin(harms))
        least = max(float(harms[chosen]), least)
        result[left[chosen]] = least * (1 + turn * np.finfo(np.float64).eps)  # equal ones in the order they went
        for layer, (matrix, inverse) in zip(layers, states, strict=True):
            _remove(matrix, inverse, layer.columns[left[chosen]])
        left = np.delete(left, chosen)
    return result
