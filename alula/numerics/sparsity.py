"""Which weights become zero, and how many of each layer.

| symbol | code | shape | unit | meaning |
|---|---|---|---|---|
| w_ij | weights | [out, k] | of the weights | weight from input j to output i |
| x_j | norms | [k] | of the inputs | size of input j over the calibration data, its root mean square |
| s | scores | any | see below | importance of each weight; the least become zero |
| a | amount | () | share | share of the weights that are removed: 0 none, below 1 |
| | mask | as scores | bool | true where a weight becomes zero |
| n_l | shapes | | | shape of the weight of layer l |

Sources: magnitude, Han et al. 2015, "Learning both weights and connections", section 3; s_ij = |w_ij| ||x_j||, compared
within each row, Sun et al. 2024, "A simple and effective pruning approach for large language models" (Wanda), equation
1; n of m, Mishra et al. 2021, "Accelerating sparse deep neural networks", section 3; the cubic schedule, Zhu & Gupta
2018, "To prune, or not to prune", equation 1; the kept share of a layer in proportion to sum(n_l) / prod(n_l)
(Erdos-Renyi-kernel), Evci et al. 2020, "Rigging the lottery", section 3, (1).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from alula.errors import DataError, RecipeError

Mask = NDArray[np.bool_]


def count_removed(size: int, amount: float) -> int:
    """How many of ``size`` weights a share is, rounded down.

    >>> count_removed(100, 0.29)
    29

    Raises:
        RecipeError: the share is not from 0 up to but not including 1.
    """
    if not 0 <= amount < 1:
        raise RecipeError(f"amount must be at least 0 and below 1, got {amount!r}; 0.5 removes half")
    return math.floor(amount * size + 1e-9)  # 0.29 * 100 is a little below 29 in binary


def least(scores: np.ndarray, amount: float) -> Mask:
    """The share of least scores over the whole array; among equals the first.

    >>> least(np.array([[3.0, 1.0], [2.0, 4.0]]), 0.5).tolist()
    [[False, True], [True, False]]

    Raises:
        RecipeError: the share is impossible.
        DataError: a score is NaN.
    """
    _check_scores(scores)
    flat = scores.reshape(-1)
    count = count_removed(flat.size, amount)
    if not count:
        return np.zeros(scores.shape, np.bool_)
    edge = np.partition(flat, count - 1)[count - 1]
    mask: Mask = flat < edge
    equal = np.flatnonzero(flat == edge)
    mask[equal[: count - int(mask.sum())]] = True
    return mask.reshape(scores.shape)


def least_of_rows(scores: np.ndarray, amount: float) -> Mask:  # [..., k] -> [..., k]
    """The share of least scores in each row.

    >>> least_of_rows(np.array([[3.0, 1.0], [2.0, 4.0]]), 0.5).tolist()
    [[False, True], [True, False]]

    Raises:
        RecipeError: the share is impossible.
        DataError: a score is NaN.
    """
    _check_scores(scores)
    return _lowest(scores, count_removed(scores.shape[-1], amount))


def least_of_groups(scores: np.ndarray, kept: int, group: int, axis: int = -1) -> Mask:
    """All but the ``kept`` largest scores of every ``group`` neighbours along an axis: n of m, or n:m.

    A last group that is not full keeps as many, or all it has: what is missing counts as zeros, as it does in hardware.

    >>> least_of_groups(np.array([4.0, 1.0, 3.0, 2.0, 5.0]), 2, 4).tolist()
    [False, True, False, True, False]

    Raises:
        RecipeError: ``kept`` is not from 1 up to ``group``.
        DataError: a score is NaN.
    """
    if not 1 <= kept <= group:
        raise RecipeError(f"a pattern keeps at least 1 and at most all of a group, got {kept} of {group}")
    _check_scores(scores)
    rows = np.moveaxis(scores, axis, -1)  # [..., k]
    length = rows.shape[-1]
    missing = -length % group
    full = np.pad(rows.astype(np.float64), [(0, 0)] * (rows.ndim - 1) + [(0, missing)], constant_values=-np.inf)
    mask = _lowest(full.reshape(*full.shape[:-1], full.shape[-1] // group, group), group - kept)  # [..., groups, group]
    return np.moveaxis(mask.reshape(full.shape)[..., :length], -1, axis)


def _lowest(scores: np.ndarray, count: int) -> Mask:  # [..., k] -> [..., k]
    """The ``count`` lowest along the last axis; among equals the first."""
    mask = np.zeros(scores.shape, np.bool_)
    order = np.argsort(scores, axis=-1, kind="stable")
    np.put_along_axis(mask, order[..., :count], True, axis=-1)
    return mask


def weigh_by_inputs(weights: np.ndarray, norms: np.ndarray) -> np.ndarray:  # [..., out, k], [..., k] -> [..., out, k]
    """s_ij = |w_ij| ||x_j||.

    >>> weigh_by_inputs(np.array([[1.0, -2.0]]), np.array([3.0, 0.5])).tolist()
    [[3.0, 1.0]]

    Raises:
        DataError: there is not one norm for each input.
    """
    if norms.shape != (*weights.shape[:-2], weights.shape[-1]):
        raise DataError(f"weights of shape {list(weights.shape)} need a norm for each input, got {list(norms.shape)}")
    return np.asarray(np.abs(weights.astype(np.float64)) * norms[..., None, :])


def sparsity_at(step: int, *, final: float, steps: int, initial: float = 0.0, start: int = 0, every: int = 1) -> float:
    """s_t = s_f + (s_i - s_f) (1 - (t - t_0) / T)^3: much at first, while there is much to spare, little at the end.

    Args:
        step: t, the training step.
        final: s_f, the share removed from step ``start + steps`` on.
        steps: T = n dt, how long it takes.
        initial: s_i, the share removed up to step ``start``.
        start: t_0, the first step.
        every: dt, how many steps the share stays the same.

    >>> [sparsity_at(step, final=0.8, steps=4) for step in (0, 2, 4, 9)]
    [0.0, 0.7000000000000001, 0.8, 0.8]

    Raises:
        RecipeError: a share is not from 0 up to but not including 1, or a count is not positive.
    """
    for amount in (initial, final):
        count_removed(0, amount)
    if steps < 1 or every < 1:
        raise RecipeError(f"steps and every must be at least 1, got {steps} and {every}")
    passed = step - start
    if passed <= 0 or passed >= steps:
        return initial if passed <= 0 else final
    return final + (initial - final) * (1 - (passed - passed % every) / steps) ** 3


def allocate_globally(magnitudes: Sequence[np.ndarray], amount: float) -> list[float]:
    """The share of each layer that is among the least of all, but for one weight that stays at least.

    Equals are shared out in proportion.

    >>> allocate_globally([np.array([1.0, 5.0]), np.array([2.0, 3.0])], 0.5)
    [0.5, 0.5]

    Raises:
        RecipeError: the share is impossible.
        DataError: a magnitude is NaN.
    """
    flat = [np.asarray(one).reshape(-1) for one in magnitudes]
    whole = np.concatenate([*flat, np.zeros(0)])
    _check_scores(whole)
    count = count_removed(whole.size, amount)
    if not count:
        return [0.0] * len(flat)
    edge = np.partition(whole, count - 1)[count - 1]
    below = np.array([int((one < edge).sum()) for one in flat])
    equal = np.array([int((one == edge).sum()) for one in flat])
    due = np.floor(np.cumsum(equal) * ((count - below.sum()) / equal.sum()) + 1e-9)
    counts = below + np.diff(due, prepend=0)
    return [float(min(gone, one.size - 1)) / one.size if one.size else 0.0
            for gone, one in zip(counts, flat, strict=True)]  # fmt: skip


def allocate_by_shape(shapes: Sequence[Sequence[int]], amount: float) -> list[float]:
    """The share of each layer such that what it keeps is in proportion to sum(n_l) / prod(n_l): large layers lose most.

    Layers of which more than all would be kept keep all, and the others make up for it.

    >>> allocate_by_shape([(2, 2), (8, 8)], 0.5)
    [0.0, 0.53125]

    Raises:
        RecipeError: the share is impossible.
    """
    sizes = np.array([math.prod(shape) for shape in shapes], np.float64)
    sums = np.array([sum(shape) for shape in shapes], np.float64)
    count_removed(0, amount)
    kept = (1 - amount) * sizes.sum()
    whole = sizes == 0
    shares = np.zeros(len(shapes))
    while not whole.all():
        rest = np.where(whole, 1.0, sizes)
        shares = np.where(whole, 1.0, sums / rest * ((kept - sizes[whole].sum()) / sums[~whole].sum()))
        over = ~whole & (shares > 1)
        if not over.any():
            return [float(share) for share in 1 - shares]
        whole |= over
    return [0.0] * len(shapes)


def _check_scores(scores: np.ndarray) -> None:
    if np.isnan(scores).any():
        raise DataError(f"{int(np.isnan(scores).sum())} of {scores.size} scores are NaN; repair the weights first")
