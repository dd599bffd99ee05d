"""Operators that reduce axes, or run along one: sums, means, extremes, cumulative sums."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor

from alula.graph.ops.host import Int, Ints, ints, one_int


def _chosen(x: Tensor, axes: Ints | None, *, noop: int) -> list[int]:
    """The axes to reduce: those named; none named are all, or none where the graph says so."""
    chosen = [] if axes is None else ints(axes)
    return chosen if chosen or noop else list(range(x.ndim))


def _extreme(x: Tensor, axes: list[int], keep: bool, *, largest: bool) -> Tensor:
    """Minimum or maximum; of nothing, the greatest or least number of the type."""
    if x.dtype == torch.bool:
        return _extreme(x.to(torch.uint8), axes, keep, largest=largest).bool()
    if any(x.shape[axis] == 0 for axis in axes):
        reduced = _positive(axes, x.ndim)
        shape = [1 if axis in reduced else length for axis, length in enumerate(x.shape) if keep or axis not in reduced]
        return x.new_full(shape, _limit(x.dtype, largest=largest))
    return torch.amax(x, axes, keep) if largest else torch.amin(x, axes, keep)


def _limit(dtype: torch.dtype, *, largest: bool) -> float:
    if dtype.is_floating_point:
        return float("-inf") if largest else float("inf")
    return torch.iinfo(dtype).min if largest else torch.iinfo(dtype).max


def _positive(axes: list[int], rank: int) -> list[int]:
    return [axis % rank for axis in axes]


def _total(x: Tensor, axes: list[int], keep: int) -> Tensor:
    return torch.sum(x, axes, bool(keep), dtype=x.dtype) if axes else x


def _real(x: Tensor) -> Tensor:
    return x if x.is_floating_point() else x.double()


def reduce_l1(x: Tensor, axes: Ints | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0) -> Tensor:
    """ReduceL1."""
    chosen = _chosen(x, axes, noop=noop_with_empty_axes)
    return _total(torch.abs(x), chosen, keepdims)


def reduce_l2(x: Tensor, axes: Ints | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0) -> Tensor:
    """ReduceL2; at zero its gradient is zero."""
    chosen = _chosen(x, axes, noop=noop_with_empty_axes)
    return torch.linalg.vector_norm(_real(x), 2, chosen, bool(keepdims)).to(x.dtype) if chosen else torch.abs(x)


def reduce_log_sum(x: Tensor, axes: Ints | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0) -> Tensor:
    """ReduceLogSum."""
    chosen = _chosen(x, axes, noop=noop_with_empty_axes)
    return torch.log(_total(x, chosen, keepdims))


def reduce_log_sum_exp(
    x: Tensor, axes: Ints | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0
) -> Tensor:
    """ReduceLogSumExp."""
    chosen = _chosen(x, axes, noop=noop_with_empty_axes)
    return torch.logsumexp(_real(x), chosen, bool(keepdims)).to(x.dtype) if chosen else x


def reduce_max(x: Tensor, axes: Ints | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0) -> Tensor:
    """ReduceMax."""
    chosen = _chosen(x, axes, noop=noop_with_empty_axes)
    return _extreme(x, chosen, bool(keepdims), largest=True) if chosen else x


def reduce_mean(x: Tensor, axes: Ints | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0) -> Tensor:
    """ReduceMean."""
    chosen = _chosen(x, axes, noop=noop_with_empty_axes)
    return torch.mean(_real(x), chosen, bool(keepdims)).to(x.dtype) if chosen else x


def reduce_min(x: Tensor, axes: Ints | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0) -> Tensor:
    """ReduceMin."""
    chosen = _chosen(x, axes, noop=noop_with_empty_axes)
    return _extreme(x, chosen, bool(keepdims), largest=False) if chosen else x


def reduce_sum(x: Tensor, axes: Ints | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0) -> Tensor:
    """ReduceSum."""
    chosen = _chosen(x, axes, noop=noop_with_empty_axes)
    return _total(x, chosen, keepdims)


def reduce_sum_square(
    x: Tensor, axes: Ints | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0
) -> Tensor:
    """ReduceSumSquare."""
    chosen = _chosen(x, axes, noop=noop_with_empty_axes)
    return _total(x * x, chosen, keepdims)


def reduce_prod(x: Tensor, axes: Ints | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0) -> Tensor:
    """ReduceProd."""
    for axis in sorted(_positive(_chosen(x, axes, noop=noop_with_empty_axes), x.ndim), reverse=True):
        x = torch.prod(x, axis, bool(keepdims), dtype=x.dtype)
    return x


def arg_max(x: Tensor, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Tensor:
    """ArgMax."""
    if select_last_index:
        return x.shape[axis] - 1 - torch.argmax(torch.flip(x, [axis]), axis, bool(keepdims))
    return torch.argmax(x, axis, bool(keepdims))


def arg_min(x: Tensor, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Tensor:
    """ArgMin."""
    if select_last_index:
        return x.shape[axis] - 1 - torch.argmin(torch.flip(x, [axis]), axis, bool(keepdims))
    return torch.argmin(x, axis, bool(keepdims))


def _accumulate(
    function: Callable[..., Tensor], neutral: int, x: Tensor, axis: int, *, exclusive: int, reverse: int
) -> Tensor:
    x = torch.flip(x, [axis]) if reverse else x
    if exclusive and x.shape[axis]:
        first = torch.full_like(x.narrow(axis, 0, 1), neutral)
        x = torch.cat([first, x.narrow(axis, 0, x.shape[axis] - 1)], axis)
    found = function(x, axis, dtype=x.dtype)
    return torch.flip(found, [axis]) if reverse else found


def cumulative_sum(x: Tensor, axis: Int, *, exclusive: int = 0, reverse: int = 0) -> Tensor:
    """CumSum."""
    return _accumulate(torch.cumsum, 0, x, one_int(axis), exclusive=exclusive, reverse=reverse)


def cumulative_product(x: Tensor, axis: Int, *, exclusive: int = 0, reverse: int = 0) -> Tensor:
    """CumProd."""
    return _accumulate(torch.cumprod, 1, x, one_int(axis), exclusive=exclusive, reverse=reverse)


OPERATORS: Final[dict[str, Callable[..., Any]]] = {
    "ArgMax": arg_max,
    "ArgMin": arg_min,
    "CumProd": cumulative_product,
    "CumSum": cumulative_sum,
    "ReduceL1": reduce_l1,
    "ReduceL2": reduce_l2,
    "ReduceLogSum": reduce_log_sum,
    "ReduceLogSumExp": reduce_log_sum_exp,
    "ReduceMax": reduce_max,
    "ReduceMean": reduce_mean,
    "ReduceMin": reduce_min,
    "ReduceProd": reduce_prod,
    "ReduceSum": reduce_sum,
    "ReduceSumSquare": reduce_sum_square,
}
