"""What a layer of a quantized graph multiplies, whatever operators say so: its activation, and its weights.

| written as | activation | weight |
|---|---|---|
| Conv, Gemm, MatMul, LSTM, ... | the data input, behind its QuantizeLinear, DequantizeLinear | the constant inputs |
| QLinearConv, QLinearMatMul, QGemm | codes, scale, zero point | codes, scale, zero point |
| ConvInteger, MatMulInteger | codes and scale of DynamicQuantizeLinear | codes, the other factor of its scale |
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Final

import ml_dtypes
import onnx_ir as ir

from alula.graph.editing import Editor
from alula.graph.layers import Layer
from alula.graph.slices import Copier

CODED: Final = frozenset({"QLinearConv", "QLinearMatMul", "QGemm"})
INTEGER: Final = frozenset({"ConvInteger", "MatMulInteger"})
PLAIN: Final = frozenset({"Conv", "ConvTranspose", "GRU", "Gather", "Gemm", "LSTM", "MatMul", "RNN"})
OPAQUE: Final = frozenset(
    {"DynamicQuantizeLSTM", "DynamicQuantizeMatMul", "GatherBlockQuantized", "MatMulIntegerToFloat", "MatMulNBits"}
)  # known to be layers, but not how they split
ANCHORS: Final = CODED | INTEGER | PLAIN | OPAQUE
_PRODUCTS: Final = frozenset({"Gemm", "MatMul", "MatMulInteger", "QGemm", "QLinearMatMul"})
_OUTPUT_SCALE: Final = {"QLinearConv": 6, "QLinearMatMul": 6, "QGemm": 7}


@dataclass(frozen=True, slots=True)
class Operand:
    """A tensor as a quantized node reads it: real numbers, or codes and what makes real numbers of them."""

    value: ir.Value
    scale: ir.Value | None = None
    zero_point: ir.Value | None = None
    axis: int = 1

    @property
    def parts(self) -> tuple[ir.Value, ...]:
        """All tensors that it is made of."""
        return tuple(value for value in (self.value, self.scale, self.zero_point) if value is not None)

    def dequantized(
        self, editor: Editor, copier: Copier, held: Mapping[ir.Value, ir.Value], *, transposed: bool = False
    ) -> ir.Value:
        """It as real numbers in a graph that it is copied to; ``held`` are the tensors that are there already."""
        value, *rest = (held[one] if one in held else copier.constant(one) for one in self.parts)
        if self.scale is not None:
            rank = 0 if value.shape is None else len(value.shape)
            attributes = {"axis": self.axis % rank if rank else self.axis}
            value = editor.append("DequantizeLinear", [value, *rest], f"{value.name}.real", attributes)
        if transposed:
            value = editor.append("Transpose", [value], f"{value.name}.turned", {"perm": [1, 0]})
        return value


@dataclass(frozen=True, slots=True)
class Operands:
    """The activation (None where it cannot be told apart), and weights by the float layer's initializer."""

    activation: Operand | None
    weights: Mapping[str, Operand] = field(default_factory=dict)
    transposed: bool = False  # the weight is laid out the other way round than the float layer's


def is_anchor(node: ir.Node, moving: Collection[str]) -> bool:
    """Whether a node of a quantized graph is a layer: it multiplies by constants.

    Args:
        node: the node.
        moving: names of the tensors that depend on the graph's inputs.
    """
    if node.op_type not in ANCHORS or node.domain not in ("", "com.microsoft"):
        return False
    return node.op_type in OPAQUE or any(_is_constant(value, moving) for value in _weight_candidates(node))


def _is_constant(value: ir.Value | None, moving: Collection[str]) -> bool:
    return value is not None and value.name not in moving


def operands_of(anchor: ir.Node, layer: Layer, node: ir.Node, moving: Collection[str]) -> Operands:
    """What an anchor multiplies, beside the ``node`` of the float layer that it stands for."""
    if anchor.op_type in CODED:
        weight = Operand(*_three(anchor, 3), axis=_code_axis(anchor))
        return Operands(Operand(*_three(anchor, 0)), {layer.weight: weight}, _is_transposed(anchor, layer))
    if anchor.op_type in INTEGER:
        return _integer(anchor, layer, moving)
    if anchor.op_type == node.op_type and layer.operator != "Gather":
        return _same_form(anchor, layer, node, moving)
    if {anchor.op_type, node.op_type} == {"Gemm", "MatMul"} and _is_constant(anchor.inputs[1], moving):
        weights = {layer.weight: Operand(_input(anchor, 1))}
        return Operands(Operand(_input(anchor, 0)), weights, _is_transposed(anchor, layer))
    return Operands(None)


def output_codes(node: ir.Node) -> tuple[ir.Value, ir.Value | None] | None:
    """Scale and zero point of the codes that a node gives out; None where it gives real numbers."""
    index = _OUTPUT_SCALE.get(node.op_type)
    if index is None or len(node.inputs) <= index or node.inputs[index] is None:
        return None
    return _input(node, index), node.inputs[index + 1] if len(node.inputs) > index + 1 else None


def codes_behind(operand: Operand) -> tuple[str, ir.Value | None, ir.Value | None]:
    """Type of the codes that an operand is made of, their scale and zero point; "float32" where it is none."""
    if operand.scale is not None:
        return _type(operand.value, operand.zero_point), operand.scale, operand.zero_point
    value: ir.Value | None = operand.value
    while value is not None and (node := value.producer()) is not None:
        if node.op_type == "DequantizeLinear":
            zero = node.inputs[2] if len(node.inputs) > 2 else None
            return _type(node.inputs[0], zero), node.inputs[1], zero
        if node.op_type not in ("Transpose", "Reshape", "Cast", "Identity", "Squeeze", "Unsqueeze", "MaxPool"):
            break
        value = node.inputs[0]
    return "float32", None, None


def range_of(operand: Operand) -> tuple[float, float] | None:
    """The numbers that a quantized activation can stand for; None where that is found anew in each run, or free."""
    kind, scale, zero = codes_behind(operand)
    step = None if scale is None or scale.const_value is None else scale.const_value.numpy()
    if step is None or step.size != 1 or not kind.lstrip("u").startswith("int"):
        return None
    offset = 0 if zero is None or zero.const_value is None else int(zero.const_value.numpy().reshape(()))
    low, high = ((code - offset) * float(step.reshape(())) for code in codes_taken(operand, kind))
    return low, high


def codes_taken(operand: Operand, kind: str) -> tuple[int, int]:
    """The least and largest code: those of the type, or between which they are clipped, as of fewer bits."""
    limits = ml_dtypes.iinfo(kind)  # type: ignore[no-untyped-call]
    node = operand.value.producer()
    while node is not None and node.op_type == "DequantizeLinear" and node.inputs[0] is not None:
        node = node.inputs[0].producer()
    ends = [int(limits.min), int(limits.max)]
    if node is not None and node.op_type == "Clip":
        for index, value in enumerate(node.inputs[1:3]):
            if value is not None and value.const_value is not None:
                ends[index] = int(value.const_value.numpy().reshape(()))
    return ends[0], ends[1]


def _same_form(anchor: ir.Node, layer: Layer, node: ir.Node, moving: Collection[str]) -> Operands:
    """The operator is the float one: its inputs stand where they stood."""
    activation, weights = None, {}
    for index, value in enumerate(node.inputs):
        held = anchor.inputs[index] if index < len(anchor.inputs) else None
        if value is None or held is None:
            continue
        if value.name == layer.input:
            activation = Operand(held)
        elif value.name in (*layer.weights, layer.bias) and _is_constant(held, moving):
            weights[str(value.name)] = Operand(held)
    transposed = layer.operator == "Gemm" and _is_transposed(anchor, layer)
    return Operands(activation, weights, transposed)


def _integer(anchor: ir.Node, layer: Layer, moving: Collection[str]) -> Operands:
    """MatMulInteger: the activation's scale is that of its DynamicQuantizeLinear, the weight's what multiplies it."""
    quantizer = _input(anchor, 0).producer()
    if quantizer is None or quantizer.op_type != "DynamicQuantizeLinear":
        return Operands(None)
    step = quantizer.outputs[1]
    zeros = [anchor.inputs[index] if len(anchor.inputs) > index else None for index in (2, 3)]
    activation = Operand(_input(anchor, 0), step, zeros[0])
    factors = [value for use in step.uses() if use.node.op_type == "Mul" for value in use.node.inputs
               if value is not None and value is not step and _scales_of(use.node, anchor)]  # fmt: skip
    if len(factors) != 1 or not _is_constant(factors[0], moving):
        return Operands(activation)
    axis = 0 if anchor.op_type == "ConvInteger" else -1
    weight = Operand(_input(anchor, 1), factors[0], zeros[1], axis)
    return Operands(activation, {layer.weight: weight}, _is_transposed(anchor, layer))


def _scales_of(product: ir.Node, anchor: ir.Node) -> bool:
    """Whether a product of scales is what the sums of an anchor are multiplied with."""
    sums = anchor.outputs[0]
    casts = [use.node.outputs[0] for use in sums.uses() if use.node.op_type == "Cast"]
    return any(use.node is reader.node for cast in casts for use in cast.uses() for reader in product.outputs[0].uses())


def _weight_candidates(node: ir.Node) -> list[ir.Value | None]:
    if node.op_type == "Gather":
        return [node.inputs[0]]
    positions = (3,) if node.op_type in CODED else (0, 1) if node.op_type == "MatMul" else (1,)
    return [node.inputs[index] for index in positions if index < len(node.inputs)]


def _code_axis(anchor: ir.Node) -> int:
    if anchor.op_type == "QLinearConv":
        return 0
    return 0 if anchor.op_type == "QGemm" and int(anchor.attributes.get_int("transB", 0)) else -1


def _is_transposed(anchor: ir.Node, layer: Layer) -> bool:
    if anchor.op_type not in _PRODUCTS or len(layer.shape) != 2:
        return False
    output_axis = 0 if "Gemm" in anchor.op_type and int(anchor.attributes.get_int("transB", 0)) else 1
    return layer.input_axes != () and output_axis != layer.output_axis


def _type(codes: ir.Value | None, zero_point: ir.Value | None) -> str:
    for value in (codes, zero_point):
        if value is not None and value.dtype is not None:
            return str(value.dtype.numpy())
    return "uint8"  # what QuantizeLinear gives without a zero point


def _three(node: ir.Node, first: int) -> tuple[ir.Value, ir.Value | None, ir.Value | None]:
    return _input(node, first), node.inputs[first + 1], node.inputs[first + 2]


def _input(node: ir.Node, index: int) -> ir.Value:
    value = node.inputs[index]
    assert value is not None
    return value
