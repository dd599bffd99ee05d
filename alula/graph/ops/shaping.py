"""Operators that move elements about and compute nothing."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import functional as F

from alula.errors import ModelError
from alula.graph.ops.casting import type_of
from alula.graph.ops.host import Int, Ints, Number, ints, number, one_int

PAD_MODES: Final = {"constant": "constant", "edge": "replicate", "reflect": "reflect", "wrap": "circular"}


def identity(x: Tensor) -> Tensor:
    """Identity."""
    return x


def reshape(x: Tensor, shape: Ints, *, allowzero: int = 0) -> Tensor:
    """Reshape: a length of 0 is that of x, unless ``allowzero``; -1 is what remains."""
    lengths = ints(shape)
    if not allowzero:
        lengths = [x.shape[axis] if length == 0 else length for axis, length in enumerate(lengths)]
    return x.reshape(lengths)


def transpose(x: Tensor, *, perm: Sequence[int] | None = None) -> Tensor:
    """Transpose; without ``perm`` the axes are reversed."""
    return x.permute(list(perm) if perm is not None else list(range(x.ndim))[::-1])


def flatten(x: Tensor, *, axis: int = 1) -> Tensor:
    """Flatten: the axes before ``axis`` become one, the others another."""
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


def squeeze(x: Tensor, axes: Ints | None = None) -> Tensor:
    """Squeeze."""
    chosen = [axis for axis, length in enumerate(x.shape) if length == 1] if axes is None else ints(axes)
    return x.squeeze(tuple(chosen)) if chosen else x


def unsqueeze(x: Tensor, axes: Ints) -> Tensor:
    """Unsqueeze: the axes are those of the result."""
    rank = x.ndim + len(ints(axes))
    for axis in sorted(axis % rank for axis in ints(axes)):
        x = x.unsqueeze(axis)
    return x


def concat(*parts: Tensor, axis: int) -> Tensor:
    """Concat."""
    return torch.cat(parts, axis)


def split(
    x: Tensor, split: Ints | None = None, *, axis: int = 0, num_outputs: int | None = None, outputs: int
) -> tuple[Tensor, ...]:
    """Split: into the lengths given, or into equal ones, of which the last may be shorter."""
    if split is not None:
        return torch.split(x, ints(split), axis)
    length = x.shape[axis]
    each = -(-length // (num_outputs or outputs))
    lengths = [max(0, min(each, length - each * index)) for index in range(num_outputs or outputs)]
    return torch.split(x, lengths, axis)


def cut(x: Tensor, starts: Ints, ends: Ints, axes: Ints | None = None, steps: Ints | None = None) -> Tensor:
    """Slice: bounds are clamped; a negative step goes backwards."""
    first, last = ints(starts), ints(ends)
    chosen = ints(axes) if axes is not None else list(range(len(first)))
    strides = ints(steps) if steps is not None else [1] * len(first)
    for axis, start, end, step in zip(chosen, first, last, strides, strict=True):
        x = _cut_axis(x, axis % x.ndim, start, end, step)
    return x


def _cut_axis(x: Tensor, axis: int, start: int, end: int, step: int) -> Tensor:
    if step > 0:
        return x[(slice(None),) * axis + (slice(start, end, step),)]
    length = x.shape[axis]
    first = min(max(start if start >= 0 else start + length, 0), length - 1)
    last = max(end if end >= 0 else end + length, -1) if end > -length - 1 else -1
    indices = torch.arange(first, last, step, device=x.device) if first > last else torch.arange(0, device=x.device)
    return x.index_select(axis, indices)


def pad(
    x: Tensor, pads: Ints, constant_value: Number | None = None, axes: Ints | None = None, *,
    mode: str = "constant", value: float = 0.0,
) -> Tensor:  # fmt: skip
    """Pad: ``pads`` are what goes before each axis, then what goes after each; negative ones take away."""
    amounts = ints(pads)
    chosen = [axis % x.ndim for axis in ints(axes)] if axes is not None else list(range(x.ndim))
    half = len(chosen)
    by_axis = {axis: (amounts[index], amounts[half + index]) for index, axis in enumerate(chosen)}
    if mode not in PAD_MODES:
        raise ModelError(f"Pad has no mode {mode!r}")
    if mode != "constant":
        return _pad_by_index(x, by_axis, mode)
    flat = [amount for axis in reversed(range(x.ndim)) for amount in by_axis.get(axis, (0, 0))]
    return F.pad(x, flat, value=value if constant_value is None else number(constant_value))


def _pad_by_index(x: Tensor, amounts: dict[int, tuple[int, int]], mode: str) -> Tensor:
    """Padding that repeats what is there after cutting: by torch's kernel where that does it, else axis by axis."""
    for axis, (before, after) in amounts.items():
        x = _cut_axis(x, axis, max(0, -before), x.shape[axis] + min(0, after), 1)
    amounts = {axis: (max(0, pair[0]), max(0, pair[1])) for axis, pair in amounts.items() if max(pair) > 0}
    if x.is_floating_point() and 3 <= x.ndim <= 5 and all(_fits(x, axis, pair) for axis, pair in amounts.items()):
        flat = [amount for axis in reversed(range(2, x.ndim)) for amount in amounts.get(axis, (0, 0))]
        return F.pad(x, flat, mode=PAD_MODES[mode]) if amounts else x
    for axis, (before, after) in amounts.items():
        places = torch.arange(-before, x.shape[axis] + after, device=x.device)
        x = x.index_select(axis, _reflected(places, x.shape[axis], mode))
    return x


def _fits(x: Tensor, axis: int, pair: tuple[int, int]) -> bool:
    """Whether torch's kernels, which take x [N, C, ...], pad this axis by so much."""
    return axis >= 2 and max(pair) < x.shape[axis]


def _reflected(places: Tensor, length: int, mode: str) -> Tensor:
    """Where in 0..length - 1 a place outside of it is read."""
    if mode == "edge":
        return places.clamp(0, length - 1)
    if mode == "wrap":
        return places.remainder(length)
    if length == 1:
        return torch.zeros_like(places)
    period = 2 * (length - 1)
    folded = places.remainder(period)
    return torch.minimum(folded, period - folded)


def tile(x: Tensor, repeats: Ints) -> Tensor:
    """Tile."""
    return x.repeat(ints(repeats))


def expand(x: Tensor, shape: Ints) -> Tensor:
    """Expand: broadcast both ways."""
    wanted = ints(shape)
    lengths = [1] * (len(wanted) - x.ndim) + list(x.shape)
    wanted = [1] * (len(lengths) - len(wanted)) + wanted
    return x.expand([have if want == 1 else want for have, want in zip(lengths, wanted, strict=True)])


def constant(
    *, value: Tensor | None = None, value_float: float | None = None, value_floats: Sequence[float] | None = None,
    value_int: int | None = None, value_ints: Sequence[int] | None = None, anchor: Tensor,
) -> Tensor:  # fmt: skip
    """Constant, of numbers."""
    if value is not None:
        return value
    floats = value_float if value_float is not None else value_floats
    if floats is not None:
        return torch.tensor(floats, dtype=torch.float32, device=anchor.device)
    whole = value_int if value_int is not None else value_ints
    return torch.tensor(whole, dtype=torch.int64, device=anchor.device)


def constant_of_shape(shape: Ints, *, value: Tensor | None = None, anchor: Tensor) -> Tensor:
    """ConstantOfShape; 0 unless told."""
    if value is None:
        return torch.zeros(ints(shape), device=anchor.device)
    return value.reshape(()).expand(ints(shape)).clone()


def count_up(start: Int, limit: Int, delta: Int, *, anchor: Tensor) -> Tensor:
    """Range."""
    bounds = [bound.item() if isinstance(bound, Tensor) else bound for bound in (start, limit, delta)]
    kind = next((bound.dtype for bound in (start, limit, delta) if isinstance(bound, Tensor)), torch.int64)
    return torch.arange(*bounds, dtype=kind, device=anchor.device)


def eye_like(x: Tensor, *, dtype: int | None = None, k: int = 0) -> Tensor:
    """EyeLike."""
    rows, columns = x.shape
    kind = x.dtype if dtype is None else type_of(dtype)
    places = torch.arange(rows, device=x.device)[:, None] + k == torch.arange(columns, device=x.device)
    return places.to(kind)


def triangle(x: Tensor, k: Int = 0, *, upper: int = 1) -> Tensor:
    """Trilu."""
    return torch.triu(x, one_int(k)) if upper else torch.tril(x, one_int(k))


def shape_of(x: Tensor, *, start: int = 0, end: int | None = None) -> Tensor:
    """Shape, as a tensor."""
    return torch.tensor(tuple(x.shape)[start:end], dtype=torch.int64, device=x.device)


def size_of(x: Tensor) -> Tensor:
    """Size, as a tensor."""
    return torch.tensor(x.numel(), dtype=torch.int64, device=x.device)


def center_crop_pad(x: Tensor, shape: Ints, *, axes: Sequence[int] | None = None) -> Tensor:
    """CenterCropPad: cut or pad with zeros around the middle."""
    chosen = list(axes) if axes is not None else list(range(x.ndim))
    for axis, wanted in zip(chosen, ints(shape), strict=True):
        have = x.shape[axis]
        if have >= wanted:
            x = x.narrow(axis, (have - wanted) // 2, wanted)
        else:
            before = (wanted - have) // 2
            flat = [0, 0] * (x.ndim - axis % x.ndim - 1) + [before, wanted - have - before]
            x = F.pad(x, flat)
    return x


def reverse_sequence(x: Tensor, lengths: Tensor, *, batch_axis: int = 1, time_axis: int = 0) -> Tensor:
    """ReverseSequence: of each sequence of the batch, the first so many steps."""
    steps = torch.arange(x.shape[time_axis], device=x.device)[:, None]  # [T, 1]
    source = torch.where(steps < lengths, lengths - 1 - steps, steps)  # [T, N]
    source = source if time_axis < batch_axis else source.t()
    return torch.gather(x, time_axis, source.reshape(source.shape + (1,) * (x.ndim - 2)).expand(x.shape))


OPERATORS: Final[dict[str, Callable[..., Any]]] = {
    "CenterCropPad": center_crop_pad,
    "Concat": concat,
    "Constant": constant,
    "ConstantOfShape": constant_of_shape,
    "Expand": expand,
    "EyeLike": eye_like,
    "Flatten": flatten,
    "Identity": identity,
    "Pad": pad,
    "Range": count_up,
    "Reshape": reshape,
    "ReverseSequence": reverse_sequence,
    "Shape": shape_of,
    "Size": size_of,
    "Slice": cut,
    "Split": split,
    "Squeeze": squeeze,
    "Tile": tile,
    "Transpose": transpose,
    "Trilu": triangle,
    "Unsqueeze": unsqueeze,
}
