"""The geometry of a window that slides over space, as ONNX's attributes tell it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True, slots=True)
class Window:
    """A window; every sequence has one entry per spatial axis, ``pads`` two: all before, then all after."""

    kernel_shape: Sequence[int]
    strides: Sequence[int] = ()
    dilations: Sequence[int] = ()
    pads: Sequence[int] = ()
    auto_pad: str = "NOTSET"
    ceil_mode: int = 0

    @classmethod
    def over(cls, lengths: Sequence[int], kernel_shape: Sequence[int], **attributes: Any) -> Window:
        """The window with every default filled in, its padding told by numbers, over space of these lengths."""
        axes = len(kernel_shape)
        window = cls(**{"kernel_shape": kernel_shape, **attributes})
        window = replace(
            window,
            strides=list(window.strides) or [1] * axes,
            dilations=list(window.dilations) or [1] * axes,
            pads=list(window.pads) or [0] * (2 * axes),
        )
        if window.auto_pad not in ("SAME_UPPER", "SAME_LOWER"):
            return window
        return replace(window, pads=window.same(lengths), ceil_mode=0)

    def same(self, lengths: Sequence[int]) -> list[int]:
        """Padding that leaves ceil(length / stride) positions; an odd rest goes to the end, or to the beginning."""
        missing = [
            max(0, (-(-length // stride) - 1) * stride + reach - length)
            for length, stride, reach in zip(lengths, self.strides, self.reach, strict=True)
        ]
        small, large = [amount // 2 for amount in missing], [amount - amount // 2 for amount in missing]
        return small + large if self.auto_pad == "SAME_UPPER" else large + small

    @property
    def reach(self) -> list[int]:
        """Places from a window's first to its last, along each axis."""
        return [(kernel - 1) * dilation + 1 for kernel, dilation in zip(self.kernel_shape, self.dilations, strict=True)]

    def positions(self, lengths: Sequence[int]) -> list[int]:
        """How many windows there are along each axis; where that is rounded up, none begins in the padding after."""
        axes, found = len(self.kernel_shape), []
        for axis, length in enumerate(lengths):
            before, after, stride = self.pads[axis], self.pads[axes + axis], self.strides[axis]
            room = length + before + after - self.reach[axis]
            count = (-(-room // stride) if self.ceil_mode else room // stride) + 1
            if self.ceil_mode and (count - 1) * stride >= length + before:
                count -= 1
            found.append(count)
        return found

    def missing(self, lengths: Sequence[int]) -> list[int]:
        """Places that the last window lacks along each axis, beyond all padding, where positions are rounded up."""
        needed = [
            (count - 1) * stride + reach
            for count, stride, reach in zip(self.positions(lengths), self.strides, self.reach, strict=True)
        ]
        axes = len(self.kernel_shape)
        given = [length + self.pads[axis] + self.pads[axes + axis] for axis, length in enumerate(lengths)]
        return [max(0, need - have) for need, have in zip(needed, given, strict=True)]


def pad_space(x: Tensor, pads: Sequence[int], value: float = 0.0) -> Tensor:
    """The tensor with space padded: all before, then all after."""
    axes = len(pads) // 2
    if not any(pads):
        return x
    pairs = list(zip(pads[:axes], pads[axes:], strict=True))
    return F.pad(x, [amount for pair in reversed(pairs) for amount in pair], value=value)


def pad_unevenly(x: Tensor, pads: Sequence[int], value: float = 0.0) -> tuple[Tensor, list[int]]:
    """Pads that are alike on both sides are left to the kernel that follows, which has them for nothing."""
    axes = len(pads) // 2
    if list(pads[:axes]) == list(pads[axes:]):
        return x, list(pads[:axes])
    return pad_space(x, pads, value), [0] * axes
