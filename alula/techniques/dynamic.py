"""Dynamic quantization: weights fixed, activations quantized anew at every run by their own extremes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from alula.errors import RecipeError, at
from alula.graph.editing import Editor, like
from alula.graph.layers import Layer
from alula.graph.model import Model, Note
from alula.graph.statistics import Request
from alula.numerics.grids import Grid
from alula.numerics.grids import quantize as quantize_array
from alula.settings import check_settings
from alula.techniques.technique import Context, other_type


@dataclass(frozen=True, slots=True)
class QuantizeDynamic:
    """MatMul and Gemm in integers, with ranges of the activations found at run time (DynamicQuantizeLinear).

    Needs no calibration data. Convolutions are left in float: every CPU runtime computes a dynamic integer
    convolution slower than the float one.

    Attributes:
        weight_bits: 2 to 8; symmetric codes, stored in int8.
        per_channel: a scale per output channel.
    """

    weight_bits: int = 8
    per_channel: bool = True

    def __post_init__(self) -> None:
        check_settings(self)
        if not 2 <= self.weight_bits <= 8:
            raise RecipeError(f"weight_bits must be 2 to 8, got {self.weight_bits}")

    def requests(self, model: Model, layers: Sequence[Layer]) -> frozenset[Request]:  # noqa: ARG002
        """None: ranges are found at run time."""
        return frozenset()

    def apply(self, model: Model, context: Context) -> Model:
        """Quantize the MatMul and Gemm layers of the context.

        Raises:
            RecipeError: there is none.
            DataError: a weight is NaN or infinite (the layer is named).
        """
        editor = Editor(model.edit())
        notes, done = [], 0
        ranges: dict[str, ir.Node] = {}
        for layer in context.layers:
            reason = _obstacle(editor, layer)
            if reason:
                notes.append(Note(layer.name, f"stays in float: {reason}"))
                continue
            with at(f"layer {layer.name!r}"):
                self._quantize_layer(editor, layer, ranges)
            done += 1
        if not done:
            reasons = "; ".join(map(str, notes[:3]))
            raise RecipeError(
                f"dynamic quantization knows MatMul and Gemm in float32; none of the {len(context.layers)} layers is "
                "one" + (f" ({reasons})" if reasons else "")
            )
        if self.weight_bits < 8:
            text = f"weights of {self.weight_bits} bits are stored and multiplied in 8: neither smaller nor faster"
            notes.append(Note("QuantizeDynamic", text))
        return model.edited(editor.model, notes)

    def _quantize_layer(self, editor: Editor, layer: Layer, ranges: dict[str, ir.Node]) -> None:
        """The output is (u8 codes of x  x  s8 codes of W) * scale of x * scale of W + b."""
        weight = editor.array(layer.weight).astype(np.float32, copy=False)
        weight = weight if layer.output_axis == weight.ndim - 1 else np.ascontiguousarray(weight.T)  # [..., in, out]
        axis = weight.ndim - 1 if self.per_channel else None
        quantized = quantize_array(weight, Grid(self.weight_bits, narrow=True), axis=axis)
        node, name = editor.node(layer.name), layer.weight
        dynamic = _quantized_input(editor, layer, ranges)
        codes = editor.constant(f"{name}.codes", quantized.codes.astype(np.int8))  # MatMulInteger takes no int4
        scale = editor.constant(f"{name}.scale", quantized.scale)
        sums = editor.insert(
            "MatMulInteger", [dynamic.outputs[0], codes, dynamic.outputs[2]], f"{layer.output}.sums", before=node
        )
        real = editor.insert("Cast", sums.outputs, f"{layer.output}.cast", before=node, attributes={"to": 1})
        scales = editor.insert("Mul", [dynamic.outputs[1], scale], f"{layer.output}.scale", before=node)
        result = editor.insert("Mul", [real.outputs[0], scales.outputs[0]], f"{layer.output}.product", before=node)
        if len(node.inputs) > 2 and node.inputs[2] is not None:
            result = editor.insert("Add", [result.outputs[0], node.inputs[2]], f"{layer.output}.biased", before=node)
        _finish(editor, node, result.outputs[0])
        editor.drop_constant(name)


def _obstacle(editor: Editor, layer: Layer) -> str | None:
    """Why a layer cannot be computed with dynamic integers, or None."""
    if layer.operator not in {"MatMul", "Gemm"}:
        return f"dynamic integers are slow or missing for {layer.operator}"
    if reason := other_type(editor.graph, layer):
        return reason
    node = editor.node(layer.name)
    if layer.operator == "Gemm" and any(float(node.attributes.get_float(key, 1.0)) != 1.0 for key in ("alpha", "beta")):
        return "its alpha or beta is not 1"
    weight_index = next(index for index, value in enumerate(node.inputs) if value and value.name == layer.weight)
    return None if weight_index == 1 else "its weight is the left operand"


def _quantized_input(editor: Editor, layer: Layer, ranges: dict[str, ir.Node]) -> ir.Node:
    """The DynamicQuantizeLinear of the layer's input, shared by all layers that read it."""
    if layer.input not in ranges:
        value = editor.value(layer.input)
        ranges[layer.input] = editor.insert(
            "DynamicQuantizeLinear", [value], f"{layer.input}.dynamic", after=value.producer(), outputs=3
        )
    return ranges[layer.input]


def _finish(editor: Editor, node: ir.Node, result: ir.Value) -> None:
    output = node.outputs[0]
    name = str(output.name)
    like(result, output)
    output.replace_all_uses_with(result, replace_graph_outputs=True)
    editor.remove(node)
    editor.rename(result, name)
