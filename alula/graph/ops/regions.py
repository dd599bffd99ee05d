"""Pooling of regions of interest: boxes [x1, y1, x2, y2] cut into a grid of cells, each reduced to one value."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True, slots=True)
class Points:
    """Where regions are sampled along one axis of space, between which pixels, and which points count."""

    low: Tensor  # [regions, cells, points]
    high: Tensor
    rest: Tensor  # of the way from low to high
    counts: Tensor  # 1, or 0 beyond the image

    used: Tensor  # whether a region with few points has this one; [regions, 1, points]

    @classmethod
    def between(cls, start: Tensor, extent: Tensor, cells: int, length: int, ratio: int) -> Points:
        """``ratio`` points in each cell along an axis of the image, or where it is 0 one for each pixel of a cell."""
        wanted = torch.full_like(extent, ratio) if ratio else torch.ceil(extent.detach() / cells).clamp(min=1)
        most = ratio or (int(wanted.max()) if len(wanted) else 1)
        point = torch.arange(most, dtype=start.dtype, device=start.device)
        cell = torch.arange(cells, dtype=start.dtype, device=start.device)[:, None]
        step = (point + 0.5) / wanted[:, None, None]
        places = start[:, None, None] + (cell + step) * (extent / cells)[:, None, None]
        bounded = places.clamp(0, length - 1)
        low = bounded.detach().floor()
        inside = (places >= -1) & (places <= length)
        return cls(
            low.long(),
            (low.long() + 1).clamp(max=length - 1),
            bounded - low,
            inside.to(start.dtype),
            point < wanted[:, None, None],
        )

    def means(self, length: int) -> Tensor:
        """Weights [regions, cells, length] of the mean over a cell's points."""
        counts = self.counts * self.used
        weights = self.rest.new_zeros(*self.low.shape[:2], length)
        weights = weights.scatter_add(2, self.low, (1 - self.rest) * counts).scatter_add(
            2, self.high, self.rest * counts
        )
        return weights / self.used.sum(2, keepdim=True)


def align_regions(
    x: Tensor, rois: Tensor, batch_indices: Tensor, *, mode: str = "avg", output_height: int = 1, output_width: int = 1,
    opset: int, **attributes: Any,
) -> Tensor:  # fmt: skip
    """RoiAlign: means of points sampled in each cell of each region (He et al., 2017, "Mask R-CNN", section 3).

    In mode "max" the maximum is, as in ONNX, of the weighted corners around the points, not of the points.
    """
    kind = attributes.get("coordinate_transformation_mode", "half_pixel" if opset >= 16 else "output_half_pixel")
    half = kind == "half_pixel"
    corners = rois * attributes.get("spatial_scale", 1.0) - (0.5 if half else 0.0)
    extents = corners[:, 2:] - corners[:, :2]
    extents = extents if half else extents.clamp(min=1.0)
    ratio = attributes.get("sampling_ratio", 0)
    rows = Points.between(corners[:, 1], extents[:, 1], output_height, x.shape[2], ratio)
    columns = Points.between(corners[:, 0], extents[:, 0], output_width, x.shape[3], ratio)
    return (_means if mode == "avg" else _maxima)(x, batch_indices.long(), rows, columns)


def _means(x: Tensor, images: Tensor, rows: Points, columns: Points) -> Tensor:
    """Image by image, whose regions share its pixels."""
    down, across = rows.means(x.shape[2]), columns.means(x.shape[3])
    found, order = [], []
    for image in range(x.shape[0]):
        chosen = (images == image).nonzero()[:, 0]
        cut = torch.einsum("rph,chw->rcpw", down[chosen], x[image])
        found.append(cut @ across[chosen].transpose(1, 2)[:, None])
        order.append(chosen)
    return torch.cat(found)[torch.argsort(torch.cat(order))]


def _maxima(x: Tensor, images: Tensor, rows: Points, columns: Points) -> Tensor:
    shape = (*rows.low.shape[1:], *columns.low.shape[1:])
    taken = []
    for down, height in ((rows.low, 1 - rows.rest), (rows.high, rows.rest)):
        for across, width in ((columns.low, 1 - columns.rest), (columns.high, columns.rest)):
            pixels = x.movedim(1, -1)[images[:, None, None], down.flatten(1)[:, :, None], across.flatten(1)[:, None]]
            weights = (height * rows.counts).flatten(1)[:, :, None] * (width * columns.counts).flatten(1)[:, None]
            taken.append(pixels * weights[..., None])
    largest = torch.stack(taken).amax(0).reshape(len(images), *shape, x.shape[1])  # [regions, oH, pH, oW, pW, C]
    used = rows.used[..., None, None, None] & columns.used[:, :, None, None, :, None]
    largest = torch.where(used, largest, torch.full_like(largest, float("-inf")))
    return largest.amax((2, 4)).movedim(-1, 1)


def pool_regions(x: Tensor, rois: Tensor, *, pooled_shape: Sequence[int], spatial_scale: float = 1.0) -> Tensor:
    """MaxRoiPool: rois [regions, 5] are image, x1, y1, x2, y2; cells beyond the image are 0."""
    found = []
    for image, *box in rois.tolist():
        left, top, right, bottom = (math.floor(value * spatial_scale + 0.5) for value in box)
        right, bottom = max(right, left), max(bottom, top)
        part = x[int(image), :, max(top, 0) : max(bottom + 1, 0), max(left, 0) : max(right + 1, 0)]
        missing = (
            max(-left, 0),
            right + 1 - max(left, 0) - part.shape[2],
            max(-top, 0),
            bottom + 1 - max(top, 0) - part.shape[1],
        )
        cells = F.adaptive_max_pool2d(F.pad(part, missing, value=float("-inf")), list(pooled_shape))
        found.append(torch.where(cells.isneginf(), torch.zeros_like(cells), cells))
    return torch.stack(found) if found else x.new_zeros(0, x.shape[1], *pooled_shape)


OPERATORS: Final[dict[str, Callable[..., Any]]] = {"MaxRoiPool": pool_regions, "RoiAlign": align_regions}
