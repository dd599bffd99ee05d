"""Operators that take elements by index, or put them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import functional as F

from alula.graph.ops.host import Int, one_int

REDUCTIONS: Final = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}  # torch's names by ONNX's


def _counted_from_start(indices: Tensor, length: int) -> Tensor:
    """Indices from the end, which are negative, counted from the start."""
    indices = indices.long()
    return torch.where(indices < 0, indices + length, indices)


def gather(data: Tensor, indices: Tensor, *, axis: int = 0) -> Tensor:
    """Gather: whole slices along an axis."""
    places = _counted_from_start(indices, data.shape[axis])
    axis %= data.ndim
    if axis == 0 and data.ndim == 2 and data.is_floating_point():
        return F.embedding(places, data)  # its backward adds rows up faster
    taken = data.index_select(axis, places.reshape(-1))
    return taken.reshape(data.shape[:axis] + places.shape + data.shape[axis + 1 :])


def gather_elements(data: Tensor, indices: Tensor, *, axis: int = 0) -> Tensor:
    """GatherElements."""
    return torch.gather(data, axis, _counted_from_start(indices, data.shape[axis]))


def gather_nd(data: Tensor, indices: Tensor, *, batch_dims: int = 0) -> Tensor:
    """GatherND: the last axis of ``indices`` tells places along the axes after the batch's."""
    depth = indices.shape[-1]
    rows = math.prod(data.shape[:batch_dims])
    flat, wanted = (
        data.reshape(rows, *data.shape[batch_dims:]),
        indices.reshape(rows, -1, depth),
    )  # [rows, places, depth]
    batch = torch.arange(rows, device=data.device)[:, None].expand(wanted.shape[:2])
    places = [_counted_from_start(wanted[..., axis], flat.shape[1 + axis]) for axis in range(depth)]
    return flat[(batch, *places)].reshape(indices.shape[:-1] + data.shape[batch_dims + depth :])


def scatter_elements(
    data: Tensor, indices: Tensor, updates: Tensor, *, axis: int = 0, reduction: str = "none"
) -> Tensor:
    """ScatterElements, and Scatter before it."""
    places = _counted_from_start(indices, data.shape[axis])
    if reduction == "none":
        return data.scatter(axis, places, updates)
    return data.scatter_reduce(axis, places, updates, REDUCTIONS[reduction])


def scatter_nd(data: Tensor, indices: Tensor, updates: Tensor, *, reduction: str = "none") -> Tensor:
    """ScatterND: whole slices, at places told by the last axis of ``indices``."""
    depth = indices.shape[-1]
    places = torch.zeros(indices.shape[:-1], dtype=torch.long, device=data.device)
    for axis in range(depth):
        places = places * data.shape[axis] + _counted_from_start(indices[..., axis], data.shape[axis])
    slices = data.shape[depth:]
    flat = data.reshape(math.prod(data.shape[:depth]), math.prod(slices))  # [places, slice]
    rows = places.reshape(-1)
    new = updates.reshape(len(rows), flat.shape[1])
    if reduction == "none":
        return flat.index_put((rows,), new).reshape(data.shape)
    if reduction == "add":
        return flat.index_add(0, rows, new).reshape(data.shape)
    each = rows[:, None].expand(new.shape)
    return flat.scatter_reduce(0, each, new, REDUCTIONS[reduction]).reshape(data.shape)


def top_k(x: Tensor, k: Int, *, axis: int = -1, largest: int = 1, sorted: int = 1) -> tuple[Tensor, ...]:
    """TopK: values and indices; of equal values the first come first."""
    order = torch.sort(x, dim=axis, descending=bool(largest), stable=True)
    count = one_int(k)
    return order.values.narrow(axis, 0, count), order.indices.narrow(axis, 0, count)


def one_hot(indices: Tensor, depth: Int, values: Tensor, *, axis: int = -1) -> Tensor:
    """OneHot: ``values`` are off and on; an index outside of the depth is off everywhere."""
    length = one_int(depth)
    places = torch.where(indices < 0, indices + length, indices)
    hot = places.unsqueeze(-1) == torch.arange(length, device=indices.device)
    return torch.where(hot, values[1], values[0]).movedim(-1, axis)


def nonzero(x: Tensor) -> Tensor:
    """NonZero [rank, found]."""
    return torch.nonzero(x if x.ndim else x.reshape(1)).t()


def compress(x: Tensor, condition: Tensor, *, axis: int | None = None) -> Tensor:
    """Compress: the slices where the condition, which may be shorter than the axis, is true."""
    places = torch.nonzero(condition.reshape(-1)).reshape(-1)
    return x.reshape(-1)[places] if axis is None else x.index_select(axis, places)


def unique(x: Tensor, *, axis: int | None = None, sorted: int = 1, outputs: int = 1) -> tuple[Tensor, ...]:
    """Unique: values, where each first stands, which value stands at each place, and counts."""
    found = torch.unique(x.detach(), sorted=True, return_inverse=True, return_counts=True, dim=axis)
    inverse, counts = found[1].reshape(-1), found[2]
    places = torch.arange(len(inverse), device=x.device)
    first = torch.full((len(counts),), len(inverse), device=x.device).scatter_reduce(0, inverse, places, "amin")
    if not sorted:
        order = torch.argsort(first)
        inverse = torch.argsort(order)[inverse]
        first, counts = first[order], counts[order]
    values = x.reshape(-1)[first] if axis is None else x.index_select(axis, first)  # so a gradient passes
    return (values, first, inverse, counts)[:outputs]


def tensor_scatter(
    past: Tensor, update: Tensor, write_indices: Tensor | None = None, *, axis: int = -2, mode: str = "linear"
) -> Tensor:
    """TensorScatter: writes a run of steps into a cache, from each row's index on."""
    axis %= past.ndim
    steps = torch.arange(update.shape[axis], device=past.device)
    start = torch.zeros(past.shape[0], dtype=torch.long, device=past.device) if write_indices is None else write_indices
    places = start[:, None] + steps  # [N, steps]
    if mode == "circular":
        places = places % past.shape[axis]
    shape = [places.shape[0]] + [places.shape[1] if index == axis else 1 for index in range(1, past.ndim)]
    return past.scatter(axis, places.reshape(shape).expand(update.shape), update)


def suppress(
    boxes: Tensor, scores: Tensor, most: Int = 0, overlap: Tensor | None = None, threshold: Tensor | None = None, *,
    center_point_box: int = 0,
) -> Tensor:  # fmt: skip
    """NonMaxSuppression: [chosen, 3] of batch, class and box. It decides, so no gradient passes it."""
    count = one_int(most)
    corners = _corners(boxes.detach(), centered=bool(center_point_box))
    limit = 0.0 if overlap is None else float(overlap)
    found: list[list[int]] = []
    for batch in range(scores.shape[0]):
        for group in range(scores.shape[1]):
            values = scores[batch, group]
            order = torch.argsort(values, descending=True, stable=True)
            order = order if threshold is None else order[values[order] > threshold]
            kept: list[int] = []
            while len(order) and len(kept) < count:
                box, order = int(order[0]), order[1:]
                kept.append(box)
                order = order[_overlap(corners[batch, box], corners[batch, order]) <= limit]
            found += [[batch, group, box] for box in kept]
    return torch.tensor(found, dtype=torch.int64, device=boxes.device).reshape(-1, 3)


def _corners(boxes: Tensor, *, centered: bool) -> Tensor:
    """Boxes [..., 4] as least and greatest coordinates."""
    if centered:
        middle, size = boxes[..., :2], boxes[..., 2:]
        return torch.cat([middle - size / 2, middle + size / 2], -1)
    first, second = boxes[..., :2], boxes[..., 2:]
    return torch.cat([torch.minimum(first, second), torch.maximum(first, second)], -1)


def _overlap(one: Tensor, others: Tensor) -> Tensor:
    """Intersection over union of a box [4] with each of others [n, 4]."""
    sides = (torch.minimum(one[2:], others[:, 2:]) - torch.maximum(one[:2], others[:, :2])).clamp(min=0)
    common = sides.prod(-1)
    union = (one[2:] - one[:2]).prod() + (others[:, 2:] - others[:, :2]).prod(-1) - common
    return torch.where(union > 0, common / union, torch.zeros_like(common))


def scatter(data: Tensor, indices: Tensor, updates: Tensor, *, axis: int = 0) -> Tensor:
    """Scatter."""
    return scatter_elements(data, indices, updates, axis=axis)


OPERATORS: Final[dict[str, Callable[..., Any]]] = {
    "Compress": compress,
    "Gather": gather,
    "GatherElements": gather_elements,
    "GatherND": gather_nd,
    "NonMaxSuppression": suppress,
    "NonZero": nonzero,
    "OneHot": one_hot,
    "Scatter": scatter,
    "ScatterElements": scatter_elements,
    "ScatterND": scatter_nd,
    "TensorScatter": tensor_scatter,
    "TopK": top_k,
    "Unique": unique,
}
