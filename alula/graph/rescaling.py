"""Which constants a tensor's channels are multiples of: as they are divided, so is the tensor, and all else stays.

From the tensor backwards, as far as operators keep a positive factor of each channel: activation functions like ReLU,
sums, one side of a product, normalisations up to their gain and bias, layers up to their weights, and moves of axes.
So the values that attention mixes are followed through its heads to the layer that computes them.

| symbol | code | shape | meaning |
|---|---|---|---|
| c | channels | broadcasts with a tensor | which channel each value is a multiple of; length 1 where it is the same |
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

Channels: TypeAlias = NDArray[np.intp]
Part: TypeAlias = tuple[ir.Value, Channels]
Ways: TypeAlias = list[list[Part]]
"""What else must be divided for a node's output to be: all parts of any one way."""


@dataclass(frozen=True, slots=True, eq=False)
class Multiple:
    """A constant that a tensor is a multiple of, channel by channel: ``channels`` broadcasts with it."""

    initializer: str
    channels: Channels

    def divided(self, array: np.ndarray, factors: np.ndarray) -> np.ndarray:  # factors: [channels of the tensor]
        """The constant with which each channel of the tensor is divided by its factor."""
        return np.asarray(array / factors[self.channels], array.dtype)


def multiples_behind(
    graph: ir.Graph, value: ir.Value, axis: int, *, fixed: Collection[str] = ()
) -> tuple[Multiple, ...] | str:
    """The constants to divide so that a tensor is divided along an axis and nothing else is; or why there are none.

    Args:
        graph: the graph, with shapes.
        value: the tensor; its readers do not matter.
        axis: the axis of the channels, of known length.
        fixed: names of initializers that must not change.
    """
    if value.is_initializer():
        return f"it is a constant, {value.name!r}"
    shape = _lengths(value)
    length = shape[axis] if shape is not None and -len(shape) <= axis < len(shape) else None
    if shape is None or length is None:
        return "the number of its channels is not known before it runs"
    channels = np.arange(length).reshape([length if place == axis % len(shape) else 1 for place in range(len(shape))])
    found = _before(graph, value, channels, fixed)
    return found if isinstance(found, str) else tuple(found)


def _behind(graph: ir.Graph, value: ir.Value, channels: Channels, fixed: Collection[str]) -> list[Multiple] | str:
    """What a tensor on the way is a multiple of, which nothing else may read."""
    if len(value.uses()) != 1 or value.is_graph_output():
        return f"{value.name!r}, which it is computed from, is read elsewhere too"
    if value.is_initializer():
        return _constant(value, channels, fixed)
    fitting = _fitted(channels, _lengths(value))
    if fitting is None:
        return f"the channels of {value.name!r}, which it is computed from, are not its own"
    return _before(graph, value, fitting, fixed)


def _before(graph: ir.Graph, value: ir.Value, channels: Channels, fixed: Collection[str]) -> list[Multiple] | str:
    """What the node that gives a tensor is to read."""
    node = value.producer()
    if node is None or node.graph is not graph:
        return f"{value.name!r} is an input of the graph"
    rule = _RULES.get(node.op_type) if node.domain == "" and value is node.outputs[0] else None
    reason = f"{node.op_type} {node.name!r} before it does not keep a factor of its channels"
    for way in rule(node, channels) if rule is not None else []:
        found: list[Multiple] = []
        for part in way:
            behind = _behind(graph, *part, fixed)
            if isinstance(behind, str):
                reason = behind
                break
            found += behind
        else:
            return found
    return reason


def _constant(value: ir.Value, channels: Channels, fixed: Collection[str]) -> list[Multiple] | str:
    name, tensor = str(value.name), value.const_value
    if name in fixed:
        return f"{name!r}, by which it could be divided, is not to be changed"
    if tensor is None or tensor.dtype != ir.DataType.FLOAT:
        return f"{name!r}, by which it could be divided, is not in float32"
    rank = len(tensor.shape)
    while channels.ndim > rank and channels.shape[0] == 1:  # what is broadcast keeps its rank
        channels = channels[0]
    return [Multiple(name, channels)]


def _lengths(value: ir.Value) -> tuple[int | None, ...] | None:
    """The shape of a tensor, None for an axis whose length is free."""
    if value.shape is None:
        return None
    return tuple(length if isinstance(length, int) else None for length in value.shape)


def _fitted(channels: Channels, shape: tuple[int | None, ...] | None) -> Channels | None:
    """Channels with as many axes as a shape that is to have them all; None where it has not."""
    if shape is None:
        return None
    spare = max(channels.ndim - len(shape), 0)
    if math.prod(channels.shape[:spare]) != 1:
        return None
    kept = channels.reshape((1,) * (len(shape) - channels.ndim) + channels.shape[spare:])
    return kept if all(mine in (1, length) for mine, length in zip(kept.shape, shape, strict=True)) else None


def _inputs(node: ir.Node, *places: int) -> list[ir.Value]:
    """Those of some inputs that are there."""
    given = (node.inputs[place] for place in places if place < len(node.inputs))
    return [value for value in given if value is not None]


def _first(node: ir.Node, channels: Channels) -> Ways:
    return [[(value, channels) for value in _inputs(node, 0)]]


def _pool(node: ir.Node, channels: Channels) -> Ways:
    return [] if _only(channels, 1) is None else _first(node, channels)


def _sum(node: ir.Node, channels: Channels) -> Ways:
    return [[(value, channels) for value in _inputs(node, 0, 1)]]


def _product(node: ir.Node, channels: Channels) -> Ways:
    """One of both sides: a constant where there is one."""
    sides = sorted(_inputs(node, 0, 1), key=lambda value: not value.is_initializer())
    return [[(value, channels)] for value in sides]


def _matmul(node: ir.Node, channels: Channels) -> Ways:
    """The right side for what differs between columns, the left one for what differs between rows."""
    left, right = _inputs(node, 0, 1)
    ranks = [len(value.shape) if value.shape is not None else 0 for value in (left, right)]
    if min(ranks) < 2 or min(channels.shape[-2:]) != 1:
        return []
    return [[(right if channels.shape[-2] == 1 else left, channels)]]


def _gemm(node: ir.Node, channels: Channels) -> Ways:
    columns = _only(channels, 1)
    if columns is None:
        return []
    by_rows = bool(node.attributes.get_int("transB", 0))
    weight = [(value, columns.reshape((-1, 1) if by_rows else (1, -1))) for value in _inputs(node, 1)]
    return [weight + [(bias, columns[None]) for bias in _inputs(node, 2)]]


def _convolution(node: ir.Node, channels: Channels) -> Ways:
    rows = _only(channels, 1)
    if rows is None:
        return []
    weight = [(value, rows.reshape(-1, *[1] * (channels.ndim - 1))) for value in _inputs(node, 1)]
    return [weight + [(bias, rows) for bias in _inputs(node, 2)]]


def _channel_norm(node: ir.Node, channels: Channels) -> Ways:
    """Gain and bias along axis 1."""
    along = _only(channels, 1)
    return [] if along is None else [[(value, along) for value in _inputs(node, 1, 2)]]


def _layer_norm(node: ir.Node, channels: Channels) -> Ways:
    """Gain, and bias where there is one, along the axes that are normalised."""
    axis = int(node.attributes.get_int("axis", -1)) % channels.ndim
    if math.prod(channels.shape[:axis]) != 1:
        return []
    return [[(value, channels.reshape(channels.shape[axis:])) for value in _inputs(node, 1, 2)]]


def _transpose(node: ir.Node, channels: Channels) -> Ways:
    order = node.attributes.get_ints("perm", tuple(range(channels.ndim))[::-1])
    return [[(value, channels.transpose(np.argsort(order))) for value in _inputs(node, 0)]]


def _reshape(node: ir.Node, channels: Channels) -> Ways:
    """The last axes of both shapes that hold the same elements, as few as hold all that differs."""
    (source,) = _inputs(node, 0)
    before, after = _lengths(source), _lengths(node.outputs[0])
    if before is None or after is None:
        return []
    differing = [axis for axis, length in enumerate(channels.shape) if length != 1]
    for start in range(min(differing, default=len(after)), -1, -1):
        ours, count = after[start:], _count(after[start:])
        theirs = next((before[place:] for place in range(len(before), -1, -1) if _count(before[place:]) == count), None)
        if count is not None and theirs is not None:
            spread = np.broadcast_to(channels.reshape(channels.shape[start:]), [int(one or 0) for one in ours])
            moved = _narrowed(spread.reshape([int(one or 0) for one in theirs]))
            return [[(source, moved)]]
    return []


def _count(lengths: tuple[int | None, ...]) -> int | None:
    """How many elements some axes hold, where that is known."""
    known = [length for length in lengths if length is not None]
    return math.prod(known) if len(known) == len(lengths) else None


def _narrowed(channels: Channels) -> Channels:
    """Length 1 for each axis along which nothing differs."""
    for axis in range(channels.ndim):
        first = channels.take([0], axis) if channels.shape[axis] else channels
        channels = first if (channels == first).all() else channels
    return channels


def _only(channels: Channels, axis: int) -> Channels | None:
    """The channels along the one axis that they may differ along, [n]; None where they differ along others."""
    fits = channels.ndim > axis and channels.size == channels.shape[axis]
    return channels.reshape(-1) if fits else None


_RULES: Final[dict[str, Callable[[ir.Node, Channels], Ways]]] = {
    **dict.fromkeys(("Abs", "Div", "Dropout", "Identity", "LeakyRelu", "Neg", "PRelu", "Relu"), _first),
    **dict.fromkeys(("AveragePool", "GlobalAveragePool", "GlobalMaxPool", "MaxPool"), _pool),
    **dict.fromkeys(("Add", "Sub"), _sum),
    "Mul": _product,
    "MatMul": _matmul,
    "Gemm": _gemm,
    "Conv": _convolution,
    **dict.fromkeys(("BatchNormalization", "InstanceNormalization"), _channel_norm),
    **dict.fromkeys(("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization"), _layer_norm),
    "Transpose": _transpose,
    **dict.fromkeys(("Flatten", "Reshape", "Squeeze", "Unsqueeze"), _reshape),
}
"""f(x / s) = f(x) / s for what each of these reads, as far as it is named."""
