"""Pooling: windows of space, or all of it, reduced to one value."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import functional as F

from alula.errors import ModelError
from alula.graph.ops.host import Ints, ints
from alula.graph.ops.windows import Window, pad_space

MAXIMA: Final[dict[int, Callable[..., Any]]] = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
MEANS: Final[dict[int, Callable[..., Tensor]]] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


def pool_maximum(
    x: Tensor, *, kernel_shape: Sequence[int], storage_order: int = 0, outputs: int = 1, **attributes: Any
) -> tuple[Tensor, ...]:
    """MaxPool, and where in the flat tensor each maximum stands."""
    window = Window.over(x.shape[2:], kernel_shape, **attributes)
    axes, lengths = len(kernel_shape), x.shape[2:]
    _check(axes)
    lacking = window.missing(lengths)
    pads = [*window.pads[:axes], *(after + more for after, more in zip(window.pads[axes:], lacking, strict=True))]
    even = pads[:axes] == pads[axes:] and all(
        2 * before <= size for before, size in zip(pads, kernel_shape, strict=False)
    )
    whole = not x.is_floating_point()
    source = x.double() if whole else x
    if not even:
        source = pad_space(source, pads, float("-inf"))
    padding = pads[:axes] if even else [0] * axes
    found = MAXIMA[axes](
        source, list(kernel_shape), window.strides, padding, window.dilations, return_indices=outputs > 1
    )  # fmt: skip
    if outputs == 1:
        return (found.to(x.dtype) if whole else found,)
    values, places = found
    before = [0] * axes if even else pads[:axes]
    indices = _flat_places(x, places, source.shape[2:], before, by_column=bool(storage_order))
    return values.to(x.dtype), indices


def _flat_places(x: Tensor, places: Tensor, padded: Sequence[int], before: Sequence[int], *, by_column: bool) -> Tensor:
    """Places in padded space of one channel as places in the whole flat tensor, rows or columns first."""
    coordinates = []
    for length in reversed(padded):
        coordinates.append(places % length)
        places = places // length
    coordinates = [place - start for place, start in zip(reversed(coordinates), before, strict=True)]
    order = list(range(len(coordinates)))
    if by_column:
        order.reverse()
    flat = torch.zeros_like(coordinates[0])
    for axis in order:
        flat = flat * x.shape[2 + axis] + coordinates[axis]
    channel = torch.arange(x.shape[0] * x.shape[1], device=x.device)
    return flat + (channel * math.prod(x.shape[2:])).reshape(*x.shape[:2], *[1] * len(coordinates))


def pool_mean(x: Tensor, *, kernel_shape: Sequence[int], count_include_pad: int = 0, **attributes: Any) -> Tensor:
    """AveragePool: over what is not padding, unless that counts too."""
    window = Window.over(x.shape[2:], kernel_shape, **attributes)
    axes = len(kernel_shape)
    _check(axes)
    plain = max(window.dilations) == 1 and not any(window.missing(x.shape[2:]))
    even = list(window.pads[:axes]) == list(window.pads[axes:])
    fits = even and all(2 * pad <= size for pad, size in zip(window.pads, kernel_shape, strict=False))
    if plain and fits:
        return MEANS[axes](
            x, list(kernel_shape), window.strides, window.pads[:axes], count_include_pad=bool(count_include_pad)
        )  # fmt: skip
    ones = torch.ones_like(x[:1, :1])
    if count_include_pad:
        ones = pad_space(ones, window.pads, 1.0)
        pads = [0] * axes + window.missing(x.shape[2:])
    else:
        pads = _with_rest(window, x.shape[2:])
    counts = _sum_windows(pad_space(ones, pads), window)
    return _sum_windows(pad_space(x, _with_rest(window, x.shape[2:])), window) / counts


def pool_norm(x: Tensor, *, kernel_shape: Sequence[int], p: int = 2, **attributes: Any) -> Tensor:
    """LpPool: the p-norm of each window."""
    window = Window.over(x.shape[2:], kernel_shape, **attributes)
    powers = pad_space(x.abs() ** p, _with_rest(window, x.shape[2:]))
    sums = _sum_windows(powers, window)
    some = sums > 0  # the root has no finite slope at zero
    return torch.where(some, torch.where(some, sums, torch.ones_like(sums)) ** (1 / p), torch.zeros_like(sums))


def _with_rest(window: Window, lengths: Sequence[int]) -> list[int]:
    axes = len(window.kernel_shape)
    rest = zip(window.pads[axes:], window.missing(lengths), strict=True)
    return [*window.pads[:axes], *(after + more for after, more in rest)]


def _sum_windows(x: Tensor, window: Window) -> Tensor:
    """Sums over windows of what is padded already: a convolution of each channel with ones."""
    convolutions = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
    ones = x.new_ones([x.shape[1], 1, *window.kernel_shape])
    function = convolutions[len(window.kernel_shape)]
    return function(x, ones, None, window.strides, 0, window.dilations, x.shape[1])


def _check(axes: int) -> None:
    if axes not in MAXIMA:
        raise ModelError(f"pooling must have 1 to 3 spatial axes, the window has {axes}")


def pool_all_mean(x: Tensor) -> Tensor:
    """GlobalAveragePool."""
    return x.mean(list(range(2, x.ndim)), keepdim=True)


def pool_all_maximum(x: Tensor) -> Tensor:
    """GlobalMaxPool."""
    return x.amax(list(range(2, x.ndim)), keepdim=True)


def pool_all_norm(x: Tensor, *, p: int = 2) -> Tensor:
    """GlobalLpPool."""
    norm: Tensor = torch.linalg.vector_norm(x, p, list(range(2, x.ndim)), keepdim=True)
    return norm


def undo_pool(
    x: Tensor, indices: Tensor, output_shape: Ints | None = None, *, kernel_shape: Sequence[int], **attributes: Any
) -> Tensor:
    """MaxUnpool: each value where its maximum stood, zeros elsewhere."""
    window = Window.over(x.shape[2:], kernel_shape, **attributes)
    axes = len(kernel_shape)
    lengths = [
        (length - 1) * stride + size - before - after
        for length, stride, size, before, after in zip(
            x.shape[2:], window.strides, kernel_shape, window.pads[:axes], window.pads[axes:], strict=True
        )
    ]
    shape = [*x.shape[:2], *lengths]
    flat = x.new_zeros(math.prod(shape)).scatter(0, indices.reshape(-1), x.reshape(-1)).reshape(shape)
    if output_shape is None:
        return flat
    wanted = ints(output_shape)
    return pad_space(flat, [0] * axes + [want - have for want, have in zip(wanted[2:], lengths, strict=True)])


OPERATORS: Final[dict[str, Callable[..., Any]]] = {
    "AveragePool": pool_mean,
    "GlobalAveragePool": pool_all_mean,
    "GlobalLpPool": pool_all_norm,
    "GlobalMaxPool": pool_all_maximum,
    "LpPool": pool_norm,
    "MaxPool": pool_maximum,
    "MaxUnpool": undo_pool,
}
