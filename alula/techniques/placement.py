"""Where 8-bit arithmetic begins and ends in a graph: which nodes compute on codes, and which tensors are quantized.

A runtime keeps a run of nodes in integers only when every tensor between them is quantized, and pays a conversion at
each border. So a weight-bearing node takes along the cheap nodes behind it (additions, pools, reshapes), as long as
something further on computes on codes again.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import onnx_ir as ir

from alula.graph.layers import Layer
from alula.graph.model import Model

PASSING = frozenset({"MaxPool", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose"})  # values are only moved
JOINING = frozenset({"Add", "Concat", "AveragePool", "GlobalAveragePool"})  # values are combined
ABSORBED = frozenset({"Relu", "Clip"})  # done by the saturation of the codes behind them
FOLDED = frozenset({"BatchNormalization"})  # becomes part of the layer before it, after training perhaps
STATIC = frozenset({"Conv", "Gemm", "MatMul"})


@dataclass(frozen=True, slots=True)
class Placement:
    """Names of the nodes that compute on codes; per quantized tensor the nodes that read its codes; shared scales.

    ``everywhere`` are the tensors that exist as codes only: every reader, and the graph output, gets those.
    ``operands`` are those read by a product of two activations, or the tensors whose scales they use.
    """

    nodes: frozenset[str]
    readers: dict[str, tuple[str, ...]]
    everywhere: frozenset[str]
    shares: dict[str, str]
    operands: frozenset[str]

    def root(self, tensor: str) -> str:
        """The tensor whose scale this one uses."""
        while tensor in self.shares:
            tensor = self.shares[tensor]
        return tensor


def place(model: Model, layers: Iterable[Layer], *, products: bool, outputs: bool) -> Placement:
    """Decide for the given layers.

    Args:
        model: the graph.
        layers: those to compute on codes; other operators than Conv, Gemm and MatMul are passed over.
        products: also matrix products of two activations (attention).
        outputs: also quantize the outputs of layers, not only the inputs: ONNX Runtime computes a convolution
            on codes only between two quantized tensors; OpenVINO better chooses by itself.
    """
    chosen = {layer.name for layer in layers if layer.operator in STATIC}
    nodes = _trimmed(model.graph, _reached(model.graph, chosen, products=products), chosen)
    readers: dict[str, tuple[str, ...]] = {}
    everywhere, operands, turned = set(), set(), set()
    shares: dict[str, str] = {}
    for node in model.graph:
        if str(node.name) not in nodes:
            continue
        for value in _data_inputs(node):
            readers[str(value.name)] = tuple(sorted(_codes_readers(value, nodes)))
            if node.op_type == "MatMul" and str(node.name) not in chosen:
                operands.add(str(value.name))
        result = _result(node)
        if outputs and (node.op_type not in {"Gemm", "MatMul"} or _feeds(result, nodes)):
            everywhere.add(str(result.name))
            readers.setdefault(str(result.name), ())
        if node.op_type in PASSING:
            shares[str(result.name)] = str(_data_inputs(node)[0].name)
            if node.op_type == "Transpose":
                turned.add(str(result.name))
    if outputs:
        shares = {tensor: source for tensor, source in shares.items() if tensor in readers}
    else:  # one pair, before the values are moved: a second one would only stand in the runtime's way
        once = set(shares) - turned  # ONNX Runtime's optimiser breaks int8 codes that it moves behind a Transpose
        readers = {tensor: names for tensor, names in readers.items() if tensor not in once}
    placement = Placement(frozenset(nodes), readers, frozenset(everywhere), shares, frozenset(operands))
    return replace(placement, operands=frozenset(placement.root(tensor) for tensor in operands))


def _reached(graph: ir.Graph, chosen: set[str], *, products: bool) -> set[str]:
    """The chosen nodes and what can follow them in codes."""
    nodes: set[str] = set()
    carried: set[ir.Value] = set()
    for node in graph:
        inputs = _data_inputs(node)
        follows = node.op_type in PASSING | JOINING and bool(inputs) and all(value in carried for value in inputs)
        product = products and node.op_type == "MatMul" and len(inputs) == 2 and all(map(_is_float32, inputs))
        if str(node.name) in chosen or (follows and _plain(node)) or product:
            nodes.add(str(node.name))
            carried.add(_result(node))
    return nodes


def _trimmed(graph: ir.Graph, nodes: set[str], chosen: set[str]) -> set[str]:
    """Without the followers behind which nothing computes on codes."""
    kept = set(nodes)
    for node in reversed(graph):
        name = str(node.name)
        follower = name in kept and name not in chosen and node.op_type != "MatMul"
        if follower and not _feeds(_result(node), kept):
            kept.discard(name)
    return kept


def _feeds(value: ir.Value, nodes: set[str]) -> bool:
    return bool(_codes_readers(value, nodes))


def _plain(node: ir.Node) -> bool:
    """Whether all inputs of a joining node are activations; a constant operand would need a scale of its own."""
    return node.op_type not in {"Add", "Concat"} or len(_data_inputs(node)) == len(node.inputs)


def _data_inputs(node: ir.Node) -> list[ir.Value]:
    """The activations that a node reads: not its weights, shapes or axes."""
    count = {"Add": 2, "MatMul": 2, "Concat": len(node.inputs)}.get(node.op_type, 1)
    inputs = [value for value in node.inputs[:count] if value is not None]
    return [value for value in inputs if value.const_value is None and not value.is_initializer()]


def _result(node: ir.Node) -> ir.Value:
    """The tensor behind a node, beyond a normalisation that it can take up and an activation that saturation does."""
    if node.op_type in PASSING:
        return node.outputs[0]
    output = _beyond(node.outputs[0], FOLDED) if node.op_type in STATIC else node.outputs[0]
    return _beyond(output, ABSORBED)


def _beyond(output: ir.Value, kinds: frozenset[str]) -> ir.Value:
    """What the only reader of a tensor makes of it, if it is one of these kinds and reads constants beside it."""
    uses = list(output.uses())
    if len(uses) != 1 or output.is_graph_output():
        return output
    follower = uses[0].node
    constant = all(value is None or value.is_initializer() for value in follower.inputs[1:])
    absorbed = follower.op_type in kinds and constant and follower.graph is output.graph
    return follower.outputs[0] if absorbed else output


def _codes_readers(value: ir.Value, nodes: set[str]) -> set[str]:
    """Those of the nodes that read the value; bodies of If and Loop, which may use the same names, do not count."""
    readers = {str(use.node.name) for use in value.uses() if use.node.graph is value.graph}
    return readers & nodes


def _is_float32(value: ir.Value) -> bool:
    return value.dtype in {None, ir.DataType.FLOAT}
