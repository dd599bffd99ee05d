"""Normalisations: statistics of a tensor taken out, scale and shift put in; and the softmax family."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import functional as F

FIRST_OPSET_BY_AXIS: Final = 13  # before it, Softmax flattened all axes from ``axis`` on into one


def batch_norm(
    x: Tensor, scale: Tensor, shift: Tensor, mean: Tensor, variance: Tensor, *,
    training: bool, outputs: int = 1, **attributes: Any,
) -> tuple[Tensor, ...]:  # fmt: skip
    """BatchNormalization, x [N, C, ...]: by the batch's statistics and updating the running ones while training.

    ONNX's momentum is the share of the running statistics that stays, PyTorch's the share that goes. A graph that asks
    for training mode also gives out the running statistics that follow, which take the biased variance.
    """
    epsilon, momentum = attributes.get("epsilon", 1e-5), attributes.get("momentum", 0.9)
    if not attributes.get("training_mode", 0):
        return (F.batch_norm(x, mean, variance, scale, shift, training, 1 - momentum, epsilon),)
    axes = [axis for axis in range(x.ndim) if axis != 1]
    seen_variance, seen_mean = torch.var_mean(x, axes, correction=0)
    y = F.batch_norm(x, None, None, scale, shift, True, 0.0, epsilon)
    running = (
        old * momentum + new * (1 - momentum) for old, new in ((mean, seen_mean), (variance, seen_variance))
    )  # fmt: skip
    return (y, *running)[:outputs]


def layer_norm(
    x: Tensor, scale: Tensor, shift: Tensor | None = None, *,
    axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1, outputs: int = 1,
) -> tuple[Tensor, ...]:  # fmt: skip
    """LayerNormalization over the axes from ``axis`` on; mean and inverse deviation, where they are asked."""
    lengths = x.shape[axis:] if axis < 0 else x.shape[axis % x.ndim :]
    if scale.shape == lengths and (shift is None or shift.shape == lengths):
        y = F.layer_norm(x, lengths, scale, shift, epsilon)
    else:
        y = F.layer_norm(x, lengths, None, None, epsilon) * scale
        y = y if shift is None else y + shift
    if outputs == 1:
        return (y,)
    axes = list(range(axis % x.ndim, x.ndim))
    variance, mean = torch.var_mean(x.float(), axes, correction=0, keepdim=True)
    return (y, mean, torch.rsqrt(variance + epsilon))[:outputs]


def rms_norm(x: Tensor, scale: Tensor, *, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1) -> Tensor:
    """RMSNormalization over the axes from ``axis`` on."""
    axes = list(range(axis % x.ndim, x.ndim))
    lengths = x.shape[axis % x.ndim :]
    if scale.shape == lengths and scale.dtype == x.dtype:
        return F.rms_norm(x, lengths, scale, epsilon)
    wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    y = wide * torch.rsqrt(torch.mean(wide * wide, axes, keepdim=True) + epsilon)
    return (y.to(x.dtype) * scale).to(x.dtype)


def group_norm(
    x: Tensor, scale: Tensor, shift: Tensor, *, num_groups: int, epsilon: float = 1e-5, stash_type: int = 1
) -> Tensor:
    """GroupNormalization; before opset 21 scale and shift are of each group, since then of each channel."""
    per_group = scale.numel() == num_groups != x.shape[1]
    if per_group:
        scale, shift = (value.repeat_interleave(x.shape[1] // num_groups) for value in (scale, shift))
    return torch.group_norm(x, num_groups, scale, shift, epsilon)


def instance_norm(x: Tensor, scale: Tensor, shift: Tensor, *, epsilon: float = 1e-5) -> Tensor:
    """InstanceNormalization, x [N, C, ...]; space of one place gives the shift, where torch.nn.functional refuses."""
    return torch.group_norm(x, x.shape[1], scale, shift, epsilon)


def local_response_norm(x: Tensor, *, size: int, alpha: float = 1e-4, beta: float = 0.75, bias: float = 1.0) -> Tensor:
    """LRN: by the squares of the ``size`` nearest channels."""
    before = (size - 1) // 2
    squares = F.pad((x * x).movedim(1, -1), (before, size - 1 - before))  # [N, ..., C + size - 1]
    sums = squares.unfold(-1, size, 1).sum(-1).movedim(-1, 1)
    return x / (bias + alpha / size * sums) ** beta


def lp_norm(x: Tensor, *, axis: int = -1, p: int = 2) -> Tensor:
    """LpNormalization; what is all zeros stays."""
    norm: Tensor = torch.linalg.vector_norm(x, p, axis, keepdim=True)
    return x / norm.masked_fill(norm == 0, 1)


def mean_variance_norm(x: Tensor, *, axes: Sequence[int] = (0, 2, 3)) -> Tensor:
    """MeanVarianceNormalization; the norm has a gradient where all is alike, which the root of a variance has not."""
    centred = x - torch.mean(x, list(axes), keepdim=True)
    norm: Tensor = torch.linalg.vector_norm(centred, 2, list(axes), keepdim=True)
    share: float = (norm.numel() / x.numel()) ** 0.5
    return centred / (norm * share + 1e-9)


def _by_axis(function: Callable[[Tensor, int], Tensor], x: Tensor, axis: int | None, opset: int) -> Tensor:
    if opset >= FIRST_OPSET_BY_AXIS:
        return function(x, -1 if axis is None else axis)
    first = (1 if axis is None else axis) % x.ndim
    return function(x.reshape(math.prod(x.shape[:first]), math.prod(x.shape[first:])), 1).reshape(x.shape)


def softmax(x: Tensor, *, axis: int | None = None, opset: int) -> Tensor:
    """Softmax."""
    return _by_axis(torch.softmax, x, axis, opset)


def log_softmax(x: Tensor, *, axis: int | None = None, opset: int) -> Tensor:
    """LogSoftmax."""
    return _by_axis(torch.log_softmax, x, axis, opset)


def hardmax(x: Tensor, *, axis: int | None = None, opset: int) -> Tensor:
    """Hardmax: 1 at the first largest value, 0 elsewhere."""
    return _by_axis(_first_largest, x, axis, opset)


def _first_largest(x: Tensor, axis: int) -> Tensor:
    places = torch.argmax(x, axis, keepdim=True)
    return torch.zeros_like(x).scatter(axis, places, 1)


OPERATORS: Final[dict[str, Callable[..., Any]]] = {
    "BatchNormalization": batch_norm,
    "GroupNormalization": group_norm,
    "Hardmax": hardmax,
    "InstanceNormalization": instance_norm,
    "LRN": local_response_norm,
    "LayerNormalization": layer_norm,
    "LogSoftmax": log_softmax,
    "LpNormalization": lp_norm,
    "MeanVarianceNormalization": mean_variance_norm,
    "RMSNormalization": rms_norm,
    "Softmax": softmax,
}
