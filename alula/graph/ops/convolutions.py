"""Convolutions of every kind."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import functional as F

from alula.errors import ModelError
from alula.graph.ops.host import Ints, ints
from alula.graph.ops.windows import Window, pad_space, pad_unevenly

CONVOLUTIONS: Final = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
TRANSPOSED: Final = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


def convolve(x: Tensor, w: Tensor, b: Tensor | None = None, *, group: int = 1, **attributes: Any) -> Tensor:
    """Conv: x [N, C, ...], w [M, C / group, ...] -> [N, M, ...]."""
    _check_axes(x)
    window = Window.over(x.shape[2:], **{"kernel_shape": list(w.shape[2:]), **attributes})
    x, padding = pad_unevenly(x, window.pads)
    return CONVOLUTIONS[x.ndim - 2](x, w, b, window.strides, padding, window.dilations, group)


def convolve_transposed(
    x: Tensor, w: Tensor, b: Tensor | None = None, *, group: int = 1,
    output_padding: Sequence[int] = (), output_shape: Sequence[int] = (), **attributes: Any,
) -> Tensor:  # fmt: skip
    """ConvTranspose: x [N, C, ...], w [C, M / group, ...] -> [N, M, ...]."""
    _check_axes(x)
    axes = x.ndim - 2
    kind = attributes.pop("auto_pad", "NOTSET")
    window = Window.over(x.shape[2:], **{"kernel_shape": list(w.shape[2:]), **attributes})
    extra = list(output_padding) or [0] * axes
    full = [
        (length - 1) * stride + reach + more
        for length, stride, reach, more in zip(x.shape[2:], window.strides, window.reach, extra, strict=True)
    ]
    if output_shape or kind in ("SAME_UPPER", "SAME_LOWER"):
        wanted = list(output_shape) or [
            length * stride for length, stride in zip(x.shape[2:], window.strides, strict=True)
        ]
        extra = [more + max(0, want - have) for more, want, have in zip(extra, wanted, full, strict=True)]
        window = replace(window, pads=_transposed_pads(full, wanted, kind))
    return _cut_transposed(x, w, b, window, extra, group)


def _cut_transposed(
    x: Tensor, w: Tensor, b: Tensor | None, window: Window, extra: Sequence[int], group: int
) -> Tensor:  # fmt: skip
    """A transposed convolution, its padding cut off the result: by torch's kernel where it can, else afterwards."""
    axes = len(extra)
    before, after = list(window.pads[:axes]), list(window.pads[axes:])
    function = TRANSPOSED[axes]
    longer = [start - end + more for start, end, more in zip(before, after, extra, strict=True)]
    fits = (
        0 <= more < max(pair)
        for more, pair in zip(longer, zip(window.strides, window.dilations, strict=True), strict=True)
    )
    if all(fits) and min(before) >= 0:
        return function(x, w, b, window.strides, before, longer, group, window.dilations)
    y = function(x, w, None, window.strides, 0, 0, group, window.dilations)
    y = pad_space(y, [*(-start for start in before), *(more - end for more, end in zip(extra, after, strict=True))])
    return y if b is None else y + b.reshape([1, -1] + [1] * axes)  # beyond the last window there is the bias alone


def _transposed_pads(full: Sequence[int], wanted: Sequence[int], kind: str) -> list[int]:
    """What to cut off before and after; the odd rest after for SAME_UPPER, else before."""
    surplus = [max(0, have - want) for have, want in zip(full, wanted, strict=True)]
    small, large = [amount // 2 for amount in surplus], [amount - amount // 2 for amount in surplus]
    return small + large if kind == "SAME_UPPER" else large + small


def _check_axes(x: Tensor) -> None:
    if x.ndim - 2 not in CONVOLUTIONS:
        raise ModelError(f"a convolution must have 1 to 3 spatial axes, the input has {x.ndim - 2}")


def columns_to_image(x: Tensor, image_shape: Ints, block_shape: Ints, **attributes: Any) -> Tensor:
    """Col2Im: x [N, C * block, blocks] -> [N, C, ...], what overlaps added up."""
    image, block = ints(image_shape), ints(block_shape)
    window = Window.over(image, block, **attributes)
    axes = len(block)
    padded = [length + window.pads[axis] + window.pads[axes + axis] for axis, length in enumerate(image)]
    positions = window.positions(image)
    grids = [
        torch.arange(count, device=x.device)[:, None] * stride + torch.arange(size, device=x.device) * dilation
        for count, stride, size, dilation in zip(positions, window.strides, block, window.dilations, strict=True)
    ]  # of each axis [positions, block]
    places = torch.zeros((), dtype=torch.long, device=x.device)
    for axis, grid in enumerate(grids):
        shape = [1] * (2 * axes)
        shape[axis], shape[axes + axis] = grid.shape[1], grid.shape[0]
        places = places * padded[axis] + grid.t().reshape(shape)  # [block..., positions...]
    channels = x.shape[1] // _product(block)
    values = x.reshape(x.shape[0], channels, -1)
    canvas = x.new_zeros(x.shape[0], channels, _product(padded))
    y = canvas.index_add(2, places.reshape(-1), values).reshape(x.shape[0], channels, *padded)
    for axis, length in enumerate(image):
        y = y.narrow(2 + axis, window.pads[axis], length)
    return y


def _product(lengths: Sequence[int]) -> int:
    product = 1
    for length in lengths:
        product *= length
    return product


def convolve_deformed(
    x: Tensor, w: Tensor, offset: Tensor, b: Tensor | None = None, mask: Tensor | None = None, *,
    group: int = 1, offset_group: int = 1, **attributes: Any,
) -> Tensor:  # fmt: skip
    """DeformConv in two dimensions: every tap of every window reads at its own offset, between pixels bilinearly.

    x [N, C, H, W], w [M, C / group, kH, kW], offset [N, offset_group * kH * kW * 2, oH, oW], mask alike without the 2.
    """
    if x.ndim != 4:
        raise ModelError(f"a deformed convolution must have 2 spatial axes, the input has {x.ndim - 2}")
    window = Window.over(x.shape[2:], **{"kernel_shape": list(w.shape[2:]), **attributes})
    rows, columns = window.positions(x.shape[2:])
    taps = w.shape[2] * w.shape[3]
    batch, channels = x.shape[:2]
    moved = offset.reshape(batch * offset_group, taps, 2, rows, columns)
    starts = [
        torch.arange(count, device=x.device) * stride - before
        for count, stride, before in zip((rows, columns), window.strides, window.pads, strict=False)
    ]
    tap = torch.stack(
        torch.meshgrid(
            *(
                torch.arange(size, device=x.device) * dilation
                for size, dilation in zip(w.shape[2:], window.dilations, strict=True)
            ),
            indexing="ij",
        ),
        -1,
    ).reshape(taps, 2)
    y = starts[0][:, None] + tap[:, 0, None, None] + moved[:, :, 0]  # [N * offset_group, taps, oH, oW]
    z = starts[1] + tap[:, 1, None, None] + moved[:, :, 1]
    corners = min(x.shape[2:]) > 1  # whole places come out whole; one pixel has no distance between corners
    pairs = ((z, x.shape[3]), (y, x.shape[2]))
    units = [2 * place / (size - 1) - 1 if corners else (2 * place + 1) / size - 1 for place, size in pairs]
    grid = torch.stack(units, -1).reshape(batch * offset_group, taps * rows, columns, 2)
    source = x.reshape(batch * offset_group, channels // offset_group, *x.shape[2:])
    read = F.grid_sample(source, grid, mode="bilinear", padding_mode="zeros", align_corners=corners)
    read = read.reshape(batch, channels, taps, rows * columns)
    if mask is not None:
        weights = mask.reshape(batch, offset_group, 1, taps, rows * columns)
        read = (read.reshape(batch, offset_group, -1, taps, rows * columns) * weights).reshape(read.shape)
    kernels = w.reshape(group, w.shape[0] // group, -1)  # [group, M / group, C / group * taps]
    windows = read.reshape(batch, group, -1, rows * columns)
    result = torch.einsum("gmk,ngkp->ngmp", kernels, windows).reshape(batch, w.shape[0], rows, columns)
    return result if b is None else result + b.reshape(1, -1, 1, 1)


OPERATORS: Final[dict[str, Callable[..., Any]]] = {
    "Col2Im": columns_to_image,
    "Conv": convolve,
    "ConvTranspose": convolve_transposed,
    "DeformConv": convolve_deformed,
}
