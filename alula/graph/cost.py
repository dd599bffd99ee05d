"""What a graph costs: parameters, bytes, multiply-accumulates, activation memory; counted, not measured.

==========  ==================================================================================
one MAC     one multiplication and one addition
Conv        positions of the output x output channels x (input channels / groups) x kernel
transposed  positions of the input x input channels x (output channels / groups) x kernel
MatMul      elements of the output x length of the summed axis
LSTM, GRU   steps x batch x (elements of W + elements of R), all directions
Gather      0
==========  ==================================================================================
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from alula.errors import ModelError
from alula.graph.known import computed_from_constants
from alula.graph.layers import RECURRENT, Layer
from alula.graph.model import Model
from alula.graph.shapes import Shape, infer_shapes, observe_shapes

_PRODUCTS = frozenset({"MatMul", "Gemm", "Conv", "ConvTranspose", "ConvInteger", "MatMulInteger"})
_VIEWS = frozenset({"Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze"})  # give the memory they are given


@dataclass(frozen=True, slots=True)
class LayerCost:
    """Cost of one layer; ``macs`` and ``activation_bytes`` (its input and output) are None where shapes are unknown."""

    name: str
    operator: str
    parameters: int
    weight_bytes: int
    macs: int | None
    activation_bytes: int | None


@dataclass(frozen=True, slots=True)
class Cost:
    """Cost of a graph for inputs of given shapes; weights that several layers share count once.

    ``parameters`` are the elements of all floating-point initializers of at least one axis, so that codes are none;
    ``macs`` those of layers and of products with weights that are computed from codes or the like, ``other_macs`` those
    of products without weights (attention); ``peak_activation_bytes`` the most that inputs,
    outputs and intermediate tensors need at any one node, each freed after its last reader. ``unknown`` names the
    tensors that are missing from the sums because their shape cannot be told before running.
    """

    layers: tuple[LayerCost, ...]
    parameters: int
    weight_bytes: int
    macs: int
    other_macs: int
    peak_activation_bytes: int
    unknown: tuple[str, ...] = ()

    @property
    def total_macs(self) -> int:
        """Multiply-accumulates with weights and without."""
        return self.macs + self.other_macs

    def layer(self, name: str) -> LayerCost:
        """The cost of the layer of this name.

        Raises:
            ModelError: there is none.
        """
        found = next((layer for layer in self.layers if layer.name == name), None)
        if found is None:
            raise ModelError(f"the graph has no layer named {name!r}; it has {[layer.name for layer in self.layers]}")
        return found


def measure_cost(
    model: Model | str | Path,
    input_shapes: Mapping[str, Shape] | None = None,
    *,
    feeds: Mapping[str, np.ndarray] | None = None,
) -> Cost:
    """Count what one run of the graph costs.

    Args:
        model: the graph, or the path of its file.
        input_shapes: shapes of its inputs by name; free axes that are not given have length 1.
        feeds: the inputs themselves, instead: the graph runs on them where shapes depend on values.

    Raises:
        DataError: an input is unknown, or its shape does not fit the graph.
        ModelError: it is no model.
    """
    from alula.graph.export import as_model

    model = as_model(model)
    shapes = infer_shapes(model, input_shapes) if feeds is None else observe_shapes(model, feeds)
    layers = tuple(_layer_cost(model, layer, shapes) for layer in model.layers())
    constant = computed_from_constants(model.graph)
    names = {layer.name for layer in model.layers()}
    others = [node for node in model.graph if node.name not in names and node not in constant]
    decoded = [node for node in others if any(_is_constant(value, constant) for value in node.inputs[:2])]
    floats = [
        value.const_value
        for value in model.graph.initializers.values()
        if value.const_value is not None and value.const_value.dtype.is_floating_point()
    ]
    return Cost(
        layers=layers,
        parameters=sum(tensor.size for tensor in floats if len(tensor.shape) > 0),
        weight_bytes=model.weight_bytes,
        macs=sum(layer.macs or 0 for layer in layers) + _sum_macs(decoded, shapes),
        other_macs=_sum_macs([node for node in others if node not in decoded], shapes),
        peak_activation_bytes=_peak_activation_bytes(model.graph, shapes),
        unknown=tuple(name for name, shape in shapes.items() if shape is None),
    )


def _layer_cost(model: Model, layer: Layer, shapes: Mapping[str, Shape | None]) -> LayerCost:
    names = {*layer.weights, *([layer.bias] if layer.bias else [])}
    tensors = [tensor for name in names if (tensor := model.graph.initializers[name].const_value) is not None]
    node = next(node for node in model.graph if node.name == layer.name)
    values = [value for value in (*node.inputs, *node.outputs) if value is not None and value.name == layer.input]
    values += [value for value in node.outputs if value.name == layer.output]
    activations = [_tensor_bytes(value, shapes) for value in values]
    return LayerCost(
        name=layer.name,
        operator=layer.operator,
        parameters=sum(tensor.size for tensor in tensors),
        weight_bytes=sum(tensor.nbytes for tensor in tensors),
        macs=_layer_macs(model, layer, shapes),
        activation_bytes=None if None in activations else sum(filter(None, activations)),
    )


def _layer_macs(model: Model, layer: Layer, shapes: Mapping[str, Shape | None]) -> int | None:
    given, made = shapes.get(layer.input), shapes.get(layer.output)
    if layer.operator == "Gather":
        return 0
    if layer.operator in RECURRENT:
        return None if given is None else given[0] * given[1] * sum(model.weight(name).size for name in layer.weights)
    if layer.operator == "ConvTranspose":
        return None if given is None else math.prod(given) * math.prod(layer.shape[1:])
    if made is None:
        return None
    return math.prod(made) * math.prod(layer.shape[axis] for axis in layer.input_axes)


def _is_constant(value: ir.Value | None, computed: Collection[ir.Node]) -> bool:
    return value is not None and (value.is_initializer() or value.producer() in computed)


def _sum_macs(nodes: Sequence[ir.Node], shapes: Mapping[str, Shape | None]) -> int:
    return sum(_product_macs(node, shapes) or 0 for node in nodes)


def _product_macs(node: ir.Node, shapes: Mapping[str, Shape | None]) -> int | None:
    """Multiply-accumulates of a product of computed tensors; 0 for other nodes, None if shapes are unknown."""
    if node.domain != "" or node.op_type not in _PRODUCTS | RECURRENT:
        return 0
    read = [shapes.get(str(value.name)) if value is not None else None for value in node.inputs]
    read = read[: 3 if node.op_type in RECURRENT else 2]
    made = shapes.get(str(node.outputs[0].name)) if node.op_type not in RECURRENT else ()
    known = [shape for shape in read if shape is not None]
    return None if made is None or len(known) < len(read) else _macs_of(node, known, made)


def _macs_of(node: ir.Node, read: Sequence[Shape], made: Shape) -> int:
    left, right = read[:2]
    if node.op_type in RECURRENT:
        return left[0] * left[1] * sum(map(math.prod, read[1:]))
    if node.op_type == "ConvTranspose":
        return math.prod(left) * math.prod(right[1:])
    if node.op_type in {"Conv", "ConvInteger"}:
        return math.prod(made) * math.prod(right[1:])
    summed = left[0] if node.op_type == "Gemm" and int(node.attributes.get_int("transA", 0)) else left[-1]
    return math.prod(made) * summed


def _tensor_bytes(value: ir.Value, shapes: Mapping[str, Shape | None]) -> int | None:
    shape = shapes.get(str(value.name))
    if shape is None:
        return None
    bits = 32 if value.dtype is None else value.dtype.bitwidth
    return (math.prod(shape) * bits + 7) // 8


def _peak_activation_bytes(graph: ir.Graph, shapes: Mapping[str, Shape | None]) -> int:
    """The most memory that tensors alive at one node take, nodes running in the order of the graph."""
    owner: dict[ir.Value, ir.Value] = {}  # of a view: the tensor whose memory it shows
    last: dict[ir.Value, int] = {}
    constant = computed_from_constants(graph)  # weights, as a runtime holds them after load
    nodes = [node for node in graph if node not in constant]
    for index, node in enumerate(nodes):
        for value in node.outputs:
            source = node.inputs[0] if node.op_type in _VIEWS and node.inputs else None
            owner[value] = value if source is None or source.is_initializer() else owner.get(source, source)
            last[owner[value]] = index
        for value in _read_by(node):
            last[owner.get(value, value)] = index
    for value in graph.outputs:
        last[owner.get(value, value)] = len(nodes)
    alive = {value: _tensor_bytes(value, shapes) or 0 for value in graph.inputs}
    peak = sum(alive.values())
    for index, node in enumerate(nodes):
        alive.update({v: _tensor_bytes(v, shapes) or 0 for v in node.outputs if owner[v] is v and v.name})
        peak = max(peak, sum(alive.values()))
        alive = {value: size for value, size in alive.items() if last.get(value, -1) > index}
    return peak


def _read_by(node: ir.Node) -> list[ir.Value]:
    """What a node reads, bodies of control flow included; weights are no activations."""
    read = [value for value in node.inputs if value is not None]
    for attribute in node.attributes.values():
        bodies = [attribute.as_graph()] if attribute.type == ir.AttributeType.GRAPH else []
        bodies += list(attribute.as_graphs()) if attribute.type == ir.AttributeType.GRAPHS else []
        read += [value for body in bodies for inner in body.all_nodes() for value in inner.inputs if value is not None]
    return [value for value in read if not value.is_initializer()]
