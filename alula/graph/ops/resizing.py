"""Operators that change the resolution of space: resampling, sampling along grids, blocks to channels.

Resampling is separable. Where one of torch's kernels does the same, it does it; else each axis is multiplied by a
matrix [new length, old length] of interpolation weights, or for the nearest value indexed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import functional as F

from alula.errors import ModelError
from alula.graph.ops.host import Floats, Ints, floats, ints

LINEAR: Final = {1: "linear", 2: "bilinear", 3: "trilinear"}
GRID_MODES: Final = {
    "linear": "bilinear",
    "bilinear": "bilinear",
    "nearest": "nearest",
    "cubic": "bicubic",
    "bicubic": "bicubic",
}
ROUNDING: Final[dict[str, Callable[[Tensor], Tensor]]] = {
    "round_prefer_floor": lambda places: torch.ceil(places - 0.5),
    "round_prefer_ceil": lambda places: torch.floor(places + 0.5),
    "floor": torch.floor,
    "ceil": torch.ceil,
}


@dataclass(frozen=True, slots=True)
class Resampling:
    """How values between the old places are found, by ONNX's attributes of Resize."""

    mode: str = "nearest"
    coordinate_transformation_mode: str = "half_pixel"
    nearest_mode: str = "round_prefer_floor"
    cubic_coeff_a: float = -0.75
    exclude_outside: int = 0
    antialias: int = 0
    extrapolation_value: float = 0.0


@dataclass(frozen=True, slots=True)
class Stretch:
    """One axis: its old and new length, the scale between them, and the part of it that is cropped."""

    old: int
    new: int
    scale: float
    start: float = 0.0
    end: float = 1.0

    def places(self, kind: str, index: Tensor) -> Tensor:
        """Where the new places lie on the old axis."""
        if kind == "tf_crop_and_resize":
            if self.new == 1:
                return torch.full_like(index, 0.5 * (self.start + self.end) * (self.old - 1))
            return self.start * (self.old - 1) + index * (self.end - self.start) * (self.old - 1) / (self.new - 1)
        if kind == "align_corners":
            last = self.old * self.scale - 1  # ONNX's; onnxruntime takes the whole new length
            return index * (self.old - 1) / last if self.new > 1 and last else torch.zeros_like(index)
        if kind == "pytorch_half_pixel" and self.new == 1:
            return torch.zeros_like(index)
        scale = torch.full_like(index, self.scale)  # a true division on every device, which a Python number is not
        if kind == "asymmetric":
            return index / scale
        places = (index + 0.5) / scale
        if kind == "half_pixel_symmetric":
            places = self.old / 2 * (1 - self.new / (scale * self.old)) + places
        return places - 0.5

    def length(self) -> int:
        """The new length that the scale asks for, their product rounded to float32 as runtimes round it."""
        mantissa, exponent = math.frexp(self.old * self.scale)
        return math.floor(math.ldexp(round(mantissa * 2**24), exponent - 24))


def resize(
    x: Tensor, roi: Floats | None = None, scales: Floats | None = None, sizes: Ints | None = None, *,
    axes: Sequence[int] | None = None, keep_aspect_ratio_policy: str = "stretch", opset: int, **attributes: Any,
) -> Tensor:  # fmt: skip
    """Resize. In opset 10 the second input is the scales."""
    if opset < 11:
        roi, scales = None, roi
        attributes = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "simple", **attributes}
    chosen = [axis % x.ndim for axis in axes] if axes is not None else list(range(x.ndim))
    factors = floats(scales) if scales is not None else []
    wanted = ints(sizes) if sizes is not None else []
    if not factors:
        factors, wanted = _fit(x, chosen, wanted, keep_aspect_ratio_policy)
    crops = attributes.get("coordinate_transformation_mode") == "tf_crop_and_resize"
    crop = floats(roi) if roi is not None and crops else []
    stretches = {}
    for index, (axis, factor) in enumerate(zip(chosen, factors, strict=True)):
        new = wanted[index] if wanted else Stretch(x.shape[axis], 0, factor).length()
        ends = (crop[index], crop[len(chosen) + index]) if crop else (0.0, 1.0)
        if new != x.shape[axis] or crop or factor != 1:
            stretches[axis] = Stretch(x.shape[axis], new, factor, *ends)
    return resample(x, stretches, Resampling(**attributes))


def upsample(x: Tensor, scales: Floats | None = None, *, mode: str = "nearest", opset: int) -> Tensor:
    """Upsample."""
    how: dict[str, Any] = {"mode": mode, "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    return resize(x, None, scales, opset=11, **how)


def _fit(x: Tensor, axes: Sequence[int], sizes: Sequence[int], policy: str) -> tuple[list[float], list[int]]:
    """Scales and lengths from the sizes wanted, with the aspect kept where the policy says so."""
    factors = [size / x.shape[axis] for axis, size in zip(axes, sizes, strict=True)]
    if policy == "stretch":
        return factors, list(sizes)
    factor = min(factors) if policy == "not_larger" else max(factors)
    return [factor] * len(axes), [math.floor(factor * x.shape[axis] + 0.5) for axis in axes]


def resample(x: Tensor, stretches: dict[int, Stretch], how: Resampling) -> Tensor:
    """Resample along each of the axes."""
    fast = _interpolate(x, stretches, how)
    if fast is not None:
        return fast
    kind = how.coordinate_transformation_mode
    y = x if x.is_floating_point() or how.mode == "nearest" else x.float()
    exact = torch.promote_types(y.dtype, torch.float32) if y.is_floating_point() else torch.float32
    outside = torch.zeros((), dtype=torch.bool, device=x.device)
    for axis, stretch in stretches.items():
        places = stretch.places(kind, torch.arange(stretch.new, dtype=exact, device=x.device))
        if how.mode == "nearest":
            y = y.index_select(axis, _nearest(places, stretch, how))
        else:
            weights = _weights(places, stretch, how).to(y.dtype)
            y = (y.movedim(axis, -1) @ weights.t()).movedim(-1, axis)
        beyond = (places < 0) | (places > stretch.old - 1)
        outside = outside | beyond.reshape([-1 if other == axis else 1 for other in range(x.ndim)])
    if kind == "tf_crop_and_resize":
        y = torch.where(outside, torch.full_like(y, how.extrapolation_value), y)
    return y.to(x.dtype)


def _interpolate(x: Tensor, stretches: dict[int, Stretch], how: Resampling) -> Tensor | None:
    """Torch's own kernel, where it does the same."""
    axes = x.ndim - 2
    if not 1 <= axes <= 3 or not stretches or min(stretches) < 2 or not x.is_floating_point():
        return None
    size = [stretches[axis].new if axis in stretches else x.shape[axis] for axis in range(2, x.ndim)]
    if how.mode == "nearest":
        repeats = all(_repeats(stretch, how) for stretch in stretches.values())
        return F.interpolate(x, size, mode="nearest") if repeats else None
    kind = how.coordinate_transformation_mode
    half = kind in ("half_pixel", "half_pixel_symmetric") or (kind == "pytorch_half_pixel" and min(size) > 1)
    exact = all(math.isclose(stretch.new, stretch.old * stretch.scale, rel_tol=1e-6) for stretch in stretches.values())
    cubic = how.mode == "cubic"
    plain = not how.antialias and not how.exclude_outside and not (cubic and (axes != 2 or how.cubic_coeff_a != -0.75))
    if not exact or not plain or not (half or kind == "align_corners"):
        return None
    return F.interpolate(x, size, mode="bicubic" if cubic else LINEAR[axes], align_corners=not half)


def _repeats(stretch: Stretch, how: Resampling) -> bool:
    """Whether each old value is repeated a whole number of times, to whose middle no rounding matters."""
    if stretch.scale != stretch.new // stretch.old or stretch.new % stretch.old:
        return False
    if how.coordinate_transformation_mode == "asymmetric":
        return how.nearest_mode in ("floor", "simple")
    return "half_pixel" in how.coordinate_transformation_mode and how.nearest_mode.startswith("round")


def _nearest(places: Tensor, stretch: Stretch, how: Resampling) -> Tensor:
    """Indices of the old values nearest to places; opset 10 rounds simply, up where an axis shrinks."""
    kind = how.nearest_mode
    if kind == "simple":
        kind = "ceil" if stretch.scale < 1 else "floor"
    return ROUNDING[kind](places).long().clamp(0, stretch.old - 1)


def _weights(places: Tensor, stretch: Stretch, how: Resampling) -> Tensor:
    """Interpolation weights [new, old] along one axis."""
    squeeze = min(stretch.scale, 1.0) if how.antialias else 1.0
    first = math.floor(-(1 if how.mode == "linear" else 2) / squeeze) + 1
    offsets = torch.arange(first, 2 - first, dtype=places.dtype, device=places.device)
    sources = (torch.ceil(places) - 1)[:, None] + offsets  # [new, taps]
    weights = _kernel((sources - places[:, None]).abs() * squeeze, how)
    if how.exclude_outside:
        weights = torch.where((sources >= 0) & (sources < stretch.old), weights, torch.zeros_like(weights))
    if how.antialias or how.exclude_outside:
        weights = weights / weights.sum(1, keepdim=True)
    columns = sources.long().clamp(0, stretch.old - 1)
    return weights.new_zeros(len(places), stretch.old).scatter_add(1, columns, weights)


def _kernel(x: Tensor, how: Resampling) -> Tensor:
    """Triangle, or the cubic convolution kernel (Keys, 1981, equation 4) with its free coefficient, at distances."""
    if how.mode == "linear":
        return (1 - x).clamp(min=0)
    a = how.cubic_coeff_a
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return torch.where(x <= 1, near, torch.where(x < 2, far, torch.zeros_like(x)))


def sample_grid(
    x: Tensor, grid: Tensor, *, mode: str = "linear", padding_mode: str = "zeros", align_corners: int = 0
) -> Tensor:
    """GridSample.

    Raises:
        ModelError: cubic in three dimensions.
    """
    if mode not in GRID_MODES or (GRID_MODES[mode] == "bicubic" and x.ndim != 4):
        raise ModelError(f"a grid of {x.ndim - 2} axes is not sampled in mode {mode!r}")
    return F.grid_sample(x, grid, GRID_MODES[mode], padding_mode, bool(align_corners))


def affine_grid(theta: Tensor, size: Ints, *, align_corners: int = 0) -> Tensor:
    """AffineGrid."""
    return F.affine_grid(theta, ints(size), bool(align_corners))


def depth_to_space(x: Tensor, *, blocksize: int, mode: str = "DCR") -> Tensor:
    """DepthToSpace: channels to blocks of space, depth first (DCR) or columns and rows first (CRD)."""
    if mode == "CRD":
        return F.pixel_shuffle(x, blocksize)
    batch, channels, rows, columns = x.shape
    blocks = x.reshape(batch, blocksize, blocksize, channels // blocksize**2, rows, columns)
    return blocks.permute(0, 3, 4, 1, 5, 2).reshape(batch, -1, rows * blocksize, columns * blocksize)


def space_to_depth(x: Tensor, *, blocksize: int, mode: str = "DCR") -> Tensor:
    """SpaceToDepth: blocks of space to channels, in the orders of DepthToSpace."""
    if mode == "CRD":
        return F.pixel_unshuffle(x, blocksize)
    batch, channels, rows, columns = x.shape
    blocks = x.reshape(batch, channels, rows // blocksize, blocksize, columns // blocksize, blocksize)
    return blocks.permute(0, 3, 5, 1, 2, 4).reshape(batch, -1, rows // blocksize, columns // blocksize)


OPERATORS: Final[dict[str, Callable[..., Any]]] = {
    "AffineGrid": affine_grid,
    "DepthToSpace": depth_to_space,
    "GridSample": sample_grid,
    "Resize": resize,
    "SpaceToDepth": space_to_depth,
    "Upsample": upsample,
}
