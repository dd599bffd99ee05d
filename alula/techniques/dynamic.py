"""Dynamic quantization: weights fixed, activations quantized anew at every run by their own extremes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from alula.errors import RecipeError, at
from alula.graph.coded import mark_dynamic
from alula.graph.editing import Editor, like
from alula.graph.layers import Layer
from alula.graph.model import Model, Note
from alula.graph.statistics import Request
from alula.numerics.grids import Grid
from alula.numerics.grids import quantize as quantize_array
from alula.settings import check_settings
from alula.techniques.technique import Context, other_type
from alula.techniques.weights import put_codes


@dataclass(frozen=True, slots=True)
class QuantizeDynamic:
    """MatMul and Gemm in integers, with ranges of the activations found at run time (DynamicQuantizeLinear).

    Needs no calibration data. Convolutions are left in float: every CPU runtime computes a dynamic integer
    convolution slower than the float one.

    Attributes:
        weight_bits: 2 to 8; symmetric codes, stored in int8.
        per_channel: a scale per output channel.
        recurrent: also LSTM layers of one direction. ONNX has no words for integers inside the recurrence: the graph
            holds codes behind DequantizeLinear, and a mark by which ONNX Runtime gets its DynamicQuantizeLSTM; that
            rounds what is read, and the state in each step, too. Other runtimes compute them in float.
    """

    weight_bits: int = 8
    per_channel: bool = True
    recurrent: bool = False

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
            recurrent = self.recurrent and layer.operator == "LSTM"
            reason = _recurrent_obstacle(editor, layer) if recurrent else _obstacle(editor, layer)
            if reason:
                notes.append(Note(layer.name, f"stays in float: {reason}"))
                continue
            with at(f"layer {layer.name!r}"):
                if recurrent:
                    self._quantize_recurrence(editor, layer)
                else:
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

    def _quantize_recurrence(self, editor: Editor, layer: Layer) -> None:
        """Codes of both weights, a scale per gate and unit; the mark says that activations may be rounded too."""
        for index, name in enumerate(layer.weights):
            axis, grid = layer.output_axis if self.per_channel else None, Grid(self.weight_bits, narrow=True)
            made = quantize_array(editor.array(name), grid, axis=axis)
            codes, zero_point = made.codes.astype(np.int8), made.zero_point.astype(np.int8)
            put_codes(editor, layer, replace(made, codes=codes, zero_point=zero_point, grid=Grid(8)), index)
        mark_dynamic(editor.node(layer.name))
        editor.model.ir_version = max(editor.model.ir_version, 10)

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


def _recurrent_obstacle(editor: Editor, layer: Layer) -> str | None:
    """Why an LSTM cannot be computed with dynamic integers, or None."""
    node = editor.node(layer.name)
    if layer.shape[0] != 1 or int(node.attributes.get_int("layout", 0)) != 0:
        return "dynamic integers are for an LSTM of one direction, time first"
    if any(editor.shared(name) for name in layer.weights):
        return "its weights are read elsewhere too"
    return other_type(editor.graph, layer)


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
