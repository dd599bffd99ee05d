"""Static quantization: weights and activations on fixed grids, computed in integers by the runtime."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from alula.errors import RecipeError, at
from alula.graph.editing import Editor, like, set_input
from alula.graph.layers import Layer
from alula.graph.model import Model, Note
from alula.graph.statistics import Request, Statistics
from alula.numerics.correction import expected_error_bias
from alula.numerics.grids import Floats, Grid, Quantized, codes_from, scale_and_zero_point
from alula.numerics.grids import quantize as quantize_array
from alula.numerics.ranges import MinMax, RangeMethod, channel_mean_squared_error_range
from alula.techniques.folding import set_bias
from alula.techniques.placement import STATIC, Placement, place
from alula.techniques.technique import Context
from alula.techniques.weights import put_codes

_BIAS_LIMIT = 2.0**30  # codes of a bias are int32; half of its range leaves room for the sum it starts


@dataclass(frozen=True, slots=True)
class Quantize:
    """Weights and activations of Conv, Gemm and MatMul as integers (QuantizeLinear, DequantizeLinear).

    Attributes:
        weight_bits: 2 to 8; symmetric codes around 0, per output channel if ``per_channel``.
        activation_bits: 2 to 8, or 16; one scale per tensor.
        activation_signed: int8 instead of uint8. On x86 the pair uint8 x int8 runs up to 4x as fast.
        activation_symmetric: the zero point is the middle code.
        range: how the range of an activation is found: MinMax, Percentile, MeanSquaredError or Entropy.
        per_channel: a scale per output channel of a weight, otherwise one for all.
        weight_search: find each weight range by least squared error instead of the largest magnitude.
        bias_correction: take the shift of the mean output, that rounding the weights causes, off the bias.
        products: also quantize matrix products of two activations (attention); operands of both signs are int8 with
            zero point 0, since kernels take no offset on the right.
        outputs: quantize what layers give, not only what they take (see ``placement.place``).
    """

    weight_bits: int = 8
    activation_bits: int = 8
    activation_signed: bool = False
    activation_symmetric: bool = False
    range: RangeMethod = field(default_factory=MinMax)
    per_channel: bool = True
    weight_search: bool = False
    bias_correction: bool = True
    products: bool = False
    outputs: bool = True

    def __post_init__(self) -> None:
        if not 2 <= self.weight_bits <= 8:
            raise RecipeError(f"weight_bits must be 2 to 8, got {self.weight_bits}")
        if self.activation_bits != 16 and not 2 <= self.activation_bits <= 8:
            raise RecipeError(f"activation_bits must be 2 to 8, or 16, got {self.activation_bits}")

    def requests(self, model: Model, layers: Sequence[Layer]) -> frozenset[Request]:
        """Ranges of the tensors to quantize, and the mean of each input channel where biases are corrected."""
        placement = self._place(model, layers)
        histogram = not isinstance(self.range, MinMax)
        ranges = {Request(placement.root(tensor), histogram) for tensor in placement.readers}
        if not self.bias_correction:
            return frozenset(ranges)
        corrected = [layer for layer in layers if layer.operator in {"Conv", "Gemm"}]
        return frozenset(ranges | {Request(layer.input, channel_axis=1) for layer in corrected})

    def apply(self, model: Model, context: Context) -> Model:
        """Quantize the layers of the context.

        Raises:
            RecipeError: none of them can be computed in integers.
            DataError: a weight is NaN or infinite (the layer is named).
        """
        placement = self._place(model, context.layers)
        if not placement.nodes:
            raise RecipeError(
                f"static quantization knows {sorted(STATIC)}; none of the {len(context.layers)} layers is one"
            )
        editor = Editor(model.edit())
        scales = self._scales(placement, context.statistics)
        notes = []
        for layer in context.layers:
            if layer.operator not in STATIC:
                notes.append(
                    Note(layer.name, f"{layer.operator} stays in float: no integer kernel computes it statically")
                )
                continue
            with at(f"layer {layer.name!r}"):
                self._quantize_layer(editor, layer, scales[placement.root(layer.input)][0], context.statistics)
        for tensor in placement.readers:
            _insert_pair(editor, tensor, scales[placement.root(tensor)], placement)
        return model.edited(_current(editor.model), notes)

    def _place(self, model: Model, layers: Sequence[Layer]) -> Placement:
        return place(model, layers, products=self.products, outputs=self.outputs)

    @property
    def _activation_grid(self) -> Grid:
        return Grid(self.activation_bits, signed=self.activation_signed, symmetric=self.activation_symmetric)

    def _scales(self, placement: Placement, statistics: Statistics) -> dict[str, tuple[Floats, np.ndarray]]:
        """Scale and zero point of every tensor that has its own."""
        found = {}
        for tensor in {placement.root(tensor) for tensor in placement.readers}:
            seen = statistics[tensor]
            signed = tensor in placement.operands and seen.minimum < 0
            grid = Grid(self.activation_bits) if signed else self._activation_grid
            with at(f"tensor {tensor!r}"):
                low, high = (seen.minimum, seen.maximum)
                if not isinstance(self.range, MinMax):
                    low, high = self.range.range(*seen.sample(), grid)
                found[tensor] = scale_and_zero_point(low, high, grid)
        return found

    def _quantize_layer(self, editor: Editor, layer: Layer, input_scale: Floats, statistics: Statistics) -> None:
        weight = editor.array(layer.weight).astype(np.float32, copy=False)
        bias = None if layer.bias is None else editor.array(layer.bias).astype(np.float32)
        quantized = self._quantize_weight(weight, layer, bias, input_scale)
        node = editor.node(layer.name)
        channels = None if layer.input not in statistics else statistics[layer.input].channel_mean
        if self.bias_correction and channels is not None and layer.operator in {"Conv", "Gemm"}:
            error = quantized.dequantize() - weight
            error = error if layer.output_axis == 0 else np.moveaxis(error, layer.output_axis, 0)
            shift = expected_error_bias(error, channels, groups=layer.groups)
            if bias is not None or np.abs(shift).max(initial=0.0) > 0:
                bias = (np.zeros_like(shift) if bias is None else bias) - shift * _alpha(node)
        put_codes(editor, layer, quantized)
        if bias is not None and layer.operator in {"Conv", "Gemm"}:
            _quantize_bias(editor, layer, bias, quantized, input_scale)

    def _quantize_weight(
        self, weight: np.ndarray, layer: Layer, bias: np.ndarray | None, input_scale: Floats
    ) -> Quantized:
        grid = Grid(self.weight_bits, signed=True, symmetric=True, narrow=True)
        axis = layer.output_axis if self.per_channel and weight.ndim == len(layer.shape) else None
        low, high = None, None
        if self.weight_search:
            low, high = channel_mean_squared_error_range(weight, grid, axis=axis)
        quantized = quantize_array(weight, grid, axis=axis, minimum=low, maximum=high)
        if bias is None or bias.size == 0:
            return quantized
        widest = np.abs(bias) if axis is not None and bias.size == quantized.scale.size else np.abs(bias).max()
        least = (widest / (_BIAS_LIMIT * input_scale)).astype(np.float32)  # a smaller scale would overflow the bias
        if (least <= quantized.scale).all():
            return quantized
        scale = np.maximum(quantized.scale, least.reshape(quantized.scale.shape))
        codes = codes_from(weight, scale, quantized.zero_point, grid, axis=axis)
        return Quantized(codes, scale, quantized.zero_point, axis, None, grid)


def _alpha(node: ir.Node) -> float:
    """Factor of a Gemm's product."""
    return float(node.attributes.get_float("alpha", 1.0)) / float(node.attributes.get_float("beta", 1.0))


def _quantize_bias(editor: Editor, layer: Layer, bias: np.ndarray, quantized: Quantized, input_scale: Floats) -> None:
    """The bias as int32 on the grid of the sums it joins: scale = scale of input x scale of weight."""
    node = editor.node(layer.name)
    scale = (input_scale * quantized.scale).astype(np.float32)
    joins = _alpha(node) == 1.0 and bias.ndim == 1 and scale.size in {1, bias.size} and float(scale.min()) > 0
    if not joins:
        set_bias(editor, node, layer, bias.astype(np.float32))
        return
    codes = np.clip(np.rint(bias / scale), -(2**31), 2**31 - 1).astype(np.int32)
    base = layer.bias or f"{layer.weight.removesuffix('.weight')}.bias"
    inputs = [editor.constant(f"{base}.codes", codes), editor.constant(f"{base}.scale", scale)]
    dequantized = editor.insert("DequantizeLinear", inputs, f"{base}.dequantized", before=node, attributes={"axis": 0})
    if len(node.inputs) < 3:
        node.resize_inputs(3)
    node.replace_input_with(2, dequantized.outputs[0])
    if layer.bias is not None:
        editor.drop_constant(layer.bias)


def _insert_pair(editor: Editor, tensor: str, parameters: tuple[Floats, np.ndarray], placement: Placement) -> None:
    """QuantizeLinear and DequantizeLinear behind a tensor, for those that read its codes."""
    value = editor.value(tensor)
    readers = [use.node for use in value.uses()]
    if tensor not in placement.everywhere:
        readers = [node for node in readers if str(node.name) in placement.readers[tensor]]
    exported = tensor in placement.everywhere and value.is_graph_output()
    constants = [
        editor.constant(f"{tensor}.scale", parameters[0]),
        editor.constant(f"{tensor}.zero_point", parameters[1]),
    ]
    producer = value.producer()
    coded = editor.insert("QuantizeLinear", [value, *constants], f"{tensor}.codes", after=producer)
    real = editor.insert("DequantizeLinear", [coded.outputs[0], *constants], f"{tensor}.dequantized", after=coded)
    for node in readers:
        set_input(node, value, real.outputs[0])
    if exported:
        _export_instead(editor, value, real.outputs[0])


def _export_instead(editor: Editor, value: ir.Value, other: ir.Value) -> None:
    """Let a graph output be another tensor, under the same name."""
    name = str(value.name)
    like(other, value)
    outputs = editor.graph.outputs
    for index, output in enumerate(outputs):
        if output is value:
            outputs[index] = other
    editor.rename(value, f"{name}.float")
    editor.rename(other, name)


def _current(model: ir.Model) -> ir.Model:
    model.ir_version = max(model.ir_version, 10)
    return model
