"""What a tensor's channels come from, constant by constant: as those are repeated, so are the channels.

From the tensor backwards, as far as operators treat each channel by itself: activation functions, sums and products
with constants or with tensors that come from the same place, pools, batch normalisations, depthwise convolutions; up to
the weights and biases of the layers that compute the channels. What is computed on the way must be read there only.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
import onnx_ir as ir

from alula.graph.editing import Editor

Along: TypeAlias = tuple[ir.Value, int]
"""A tensor, and its axis that runs over the channels."""


@dataclass(frozen=True, slots=True, eq=False)
class Origin:
    """Where channels come from: constants and tensors with the axis of their channels, and depthwise convolutions."""

    constants: tuple[tuple[str, int], ...]
    tensors: tuple[Along, ...]
    depthwise: tuple[ir.Node, ...]

    def repeat(self, editor: Editor, sources: np.ndarray) -> None:
        """Let each channel be what the one of this number was: [channels from now on]."""
        for name, axis in self.constants:
            editor.replace_constant(name, np.take(editor.array(name), sources, axis))
        for value, axis in self.tensors:
            assert value.shape is not None
            lengths = list(value.shape)
            value.shape = ir.Shape([*lengths[:axis], len(sources), *lengths[axis + 1 :]])
        for node in self.depthwise:
            node.attributes["group"] = ir.AttrInt64("group", len(sources))


def origin_of(graph: ir.Graph, value: ir.Value, axis: int, reader: ir.Node, fixed: Collection[str]) -> Origin | str:
    """What to repeat so that a tensor's channels are repeated and nothing else changes; or why that cannot be.

    Args:
        graph: the graph, with shapes.
        value: the tensor.
        axis: its channels, from 0 or, if negative, from the last.
        reader: the only node that is to see more channels.
        fixed: names of initializers that must not change.
    """
    if value.shape is None or value.shape[axis] == 1:
        return "it has a single channel, or their number is not known before it runs"
    walk = _Walk(graph, reader)
    return walk.told(value, axis % len(value.shape), fixed)


class _Walk:
    """All that lies between a tensor and the constants that hold its channels."""

    def __init__(self, graph: ir.Graph, reader: ir.Node) -> None:
        self._graph = graph
        self._nodes = {reader}
        self._axes: dict[ir.Value, int] = {}
        self._constants: dict[ir.Value, int] = {}
        self._depthwise: list[ir.Node] = []

    def told(self, value: ir.Value, axis: int, fixed: Collection[str]) -> Origin | str:
        waiting: list[Along] = [(value, axis)]
        while waiting:
            one, along = waiting.pop()
            if self._axes.setdefault(one, along) != along:
                return f"{one.name!r} is read along two axes"
            parts = self._before(one, along)
            if isinstance(parts, str):
                return parts
            waiting += [part for part in parts if self._axes.get(part[0]) != part[1]]
        reason = self._obstacle(fixed)
        constants = tuple((str(one.name), along) for one, along in self._constants.items())
        return reason or Origin(constants, tuple(self._axes.items()), tuple(self._depthwise))

    def _before(self, value: ir.Value, axis: int) -> list[Along] | str:
        """The tensors that the channels of one come from; constants are kept."""
        node = value.producer()
        if node is None or node.graph is not self._graph:
            return f"{value.name!r} is an input of the graph"
        alone = value is node.outputs[0] and not any(other.uses() for other in node.outputs[1:])
        rule = _RULES.get(node.op_type) if node.domain == "" and alone and value.shape is not None else None
        parts = None if rule is None else rule(node, axis)
        if parts is None:
            return f"{node.op_type} {node.name!r} before it does not treat each channel by itself"
        self._nodes.add(node)
        if node.op_type == "Conv" and len(parts) and not parts[0][0].is_initializer():
            self._depthwise.append(node)
        wide = [(one, along) for one, along in parts if _shape(one)[along] != 1]
        for one, along in wide:
            if one.is_initializer() and self._constants.setdefault(one, along) != along:
                return f"{one.name!r} holds its channels along two axes"
        return [part for part in wide if not part[0].is_initializer()]

    def _obstacle(self, fixed: Collection[str]) -> str | None:
        """Why something of all this must stay as it is, or None."""
        for value in (*self._axes, *self._constants):
            if value.is_graph_output() or any(use.node not in self._nodes for use in value.uses()):
                return f"{value.name!r} is read elsewhere too"
        held = next((str(value.name) for value in self._constants if value.name in fixed), None)
        return None if held is None else f"{held!r}, which holds its channels, is not to be changed"


def _lengths(value: ir.Value) -> Sequence[object] | None:
    """The shape of a tensor: a number for each axis, or a name where the length is free."""
    known = value.shape if value.const_value is None else value.const_value.shape
    return None if known is None else list(known)


def _shape(value: ir.Value) -> Sequence[object]:
    found = _lengths(value)
    assert found is not None
    return found


def _rank(value: ir.Value) -> int:
    return len(_shape(value))


def _shaped(values: Sequence[ir.Value | None]) -> list[ir.Value] | None:
    """Those that are there; None where the shape of one is not known."""
    given = [value for value in values if value is not None]
    return None if any(_lengths(value) is None for value in given) else given


def _elementwise(node: ir.Node, axis: int) -> list[Along] | None:
    """Inputs that broadcast to the output, counted from the last axis."""
    return _broadcast(node.inputs, axis - _rank(node.outputs[0]))


def _broadcast(values: Sequence[ir.Value | None], back: int) -> list[Along] | None:
    given = _shaped(values)
    return None if given is None else [(one, _rank(one) + back) for one in given if _rank(one) + back >= 0]


def _first(node: ir.Node, axis: int) -> list[Along] | None:
    given = _shaped(node.inputs[:1]) if axis == 1 else None
    return None if given is None else [(given[0], 1)]


def _channel_norm(node: ir.Node, axis: int) -> list[Along] | None:
    """Gain, bias, mean and variance, and what is normalised."""
    first, rest = _first(node, axis), _constants(node.inputs[1:])
    return None if first is None or rest is None else first + [(value, 0) for value in rest]


def _constants(values: Sequence[ir.Value | None]) -> list[ir.Value] | None:
    """Initializers with known values; None where one is something else."""
    given = _shaped(values)
    known = given is not None and all(one.is_initializer() and one.const_value is not None for one in given)
    return given if known else None


def _convolution(node: ir.Node, axis: int) -> list[Along] | None:
    """Weight and bias; of a depthwise convolution with one output a channel, what it reads comes first."""
    held = _constants(node.inputs[1:]) if axis == 1 else None
    if held is None:
        return None
    groups, shape = int(node.attributes.get_int("group", 1)), _shape(held[0])
    parts = [(value, 0) for value in held]
    if groups == 1:
        return parts
    first = _first(node, axis)
    return [*first, *parts] if first is not None and groups == shape[0] and shape[1] == 1 else None


def _gemm(node: ir.Node, axis: int) -> list[Along] | None:
    held = _constants(node.inputs[1:])
    if held is None or axis != 1:
        return None
    by_rows = bool(node.attributes.get_int("transB", 0))
    return [(held[0], 0 if by_rows else 1), *(_broadcast(held[1:], -1) or [])]


def _matmul(node: ir.Node, axis: int) -> list[Along] | None:
    held = _constants(node.inputs[1:])
    last = held is not None and axis == _rank(node.outputs[0]) - 1
    return [(held[0], _rank(held[0]) - 1)] if held is not None and last and _rank(held[0]) > 1 else None


def _transpose(node: ir.Node, axis: int) -> list[Along] | None:
    given = _shaped(node.inputs[:1])
    order = node.attributes.get_ints("perm", tuple(range(_rank(node.outputs[0])))[::-1])
    return None if given is None else [(given[0], int(order[axis]))]


def _flatten(node: ir.Node, axis: int) -> list[Along] | None:
    """[n, channels, 1, ...] that becomes [n, channels]."""
    first = _first(node, axis)
    if first is None or int(node.attributes.get_int("axis", 1)) != 1:
        return None
    return first if all(length == 1 for length in _shape(first[0][0])[2:]) else None


_RULES: Final[dict[str, Callable[[ir.Node, int], list[Along] | None]]] = {
    **dict.fromkeys((
        "Abs", "Add", "Cast", "Celu", "Clip", "Div", "Dropout", "Elu", "Erf", "Exp", "Gelu", "HardSigmoid", "HardSwish",
        "Identity", "LeakyRelu", "Max", "Min", "Mish", "Mul", "Neg", "PRelu", "Pow", "Relu", "Selu", "Sigmoid",
        "Softplus", "Softsign", "Sqrt", "Sub", "Tanh", "ThresholdedRelu",
    ), _elementwise),
    **dict.fromkeys(("AveragePool", "GlobalAveragePool", "GlobalMaxPool", "MaxPool"), _first),
    **dict.fromkeys(("BatchNormalization", "InstanceNormalization"), _channel_norm),
    "Conv": _convolution,
    "Flatten": _flatten,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "Transpose": _transpose,
}  # fmt: skip
"""Which of a node's inputs the channels along an axis of its output come from, and along which axes; None: unknown."""
