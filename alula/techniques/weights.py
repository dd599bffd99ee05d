"""Weight-only quantization: the file shrinks, the arithmetic stays in float (or as the runtime likes it)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import ml_dtypes
import numpy as np
import onnx_ir as ir

from alula.errors import RecipeError, at
from alula.graph.editing import Editor, like, set_input
from alula.graph.layers import Layer
from alula.graph.model import Model, Note
from alula.graph.statistics import AnyRequest, MomentRequest, Request, Statistics
from alula.numerics.grids import Grid, Quantized, finite_float32
from alula.numerics.grids import quantize as quantize_array
from alula.numerics.half_quadratic import half_quadratic_range
from alula.numerics.ranges import channel_mean_squared_error_range
from alula.settings import check_settings
from alula.techniques.compensation import moments_of, why_no_moments
from alula.techniques.mean_shift import channel_axis, correct_bias, normalised_means, seen_means, why_uncorrected
from alula.techniques.rounding import Ranges, Rounding, unknown_inputs
from alula.techniques.technique import Context, other_readers, other_type, out_of_range

_UNTOLD = "it does not read straight from a batch normalisation, with constants and no more than Relu or Clip between"


@dataclass(frozen=True, slots=True)
class QuantizeWeights:
    """Weights as integers, everything else in float.

    Attributes:
        bits: 2 to 8; stored in 4 or 8. (ONNX has 2-bit types from opset 25 on, and OpenVINO reads none of them.)
        block: weights that share a scale along the summed axis; of convolutions, along the input channels, each place
            of the kernel by itself. None for one scale per output channel.
        symmetric: the zero point is 0.
        search: find each range by least squared error instead of the extremes.
        by_outputs: that is the error of the layer's outputs on the calibration data, not of its weights.
        rounding: ``nearest``; or ``gptq``: one column of the layer's matrix after another, those that are still free
            making up for the error on the calibration data; tables and recurrent layers are rounded to the nearest.
            Or ``hqq``: to the nearest, in ranges of the least sum of |error|^0.7 of the weights, which needs no data.
        by_size_of_inputs: GPTQ rounds columns by falling mean square of what they read, not in their order.
        damping: of GPTQ: share of the mean of the second moments' diagonal that is added to it.
        smallest: layers with fewer weights stay in float: their scales would eat the gain.
        bias_correction: take the shift of the mean output, that rounding causes, off the biases of Conv and Gemm: by
            means of the calibration ``data``; or by what the ``normalisations`` right before the layers say, which
            needs no data, but normalisations that are not folded yet (``FoldBatchNorm`` can come after). None: do not.
    """

    bits: int = 8
    block: int | None = None
    symmetric: bool = True
    search: bool = True
    by_outputs: bool = False
    smallest: int = 1024
    rounding: Literal["nearest", "gptq", "hqq"] = "nearest"
    by_size_of_inputs: bool = True
    damping: float = 0.01
    bias_correction: Literal["data", "normalisations"] | None = None

    def __post_init__(self) -> None:
        check_settings(self)
        if not 2 <= self.bits <= 8:
            raise RecipeError(f"bits must be 2 to 8, got {self.bits}")
        if self.block is not None and self.block < 1:
            raise RecipeError(f"block must be at least 1, got {self.block}")
        if not 0 <= self.damping < math.inf:
            raise RecipeError(f"damping must be at least 0 and finite, got {self.damping}")
        if self.smallest < 0:
            raise RecipeError(f"smallest must be at least 0, got {self.smallest}")
        if self.rounding == "hqq" and (self.by_outputs or not self.search):
            raise RecipeError(
                'rounding="hqq" is itself a search for ranges, by the weights; leave search=True and by_outputs=False, '
                'or take rounding="nearest"'
            )

    def requests(self, model: Model, layers: Sequence[Layer]) -> frozenset[AnyRequest]:
        """Second moments of what the layers read, for GPTQ and errors of outputs; means, to correct biases by."""
        moments = {MomentRequest(layer.name) for layer in layers if self._weighs(model, layer, layers)}
        if self.bias_correction != "data":
            return frozenset(moments)
        editor = Editor(model.edit())
        means = {
            Request(layer.input, channel_axis=channel_axis(layer)) for layer in layers
            if self._obstacle(model, layer, layers) is None and self._why_uncorrected(editor, layer) is None
        }  # fmt: skip
        return frozenset(moments | means)

    def _weighs(self, model: Model, layer: Layer, layers: Sequence[Layer]) -> bool:
        """Whether second moments of what a layer reads are used."""
        asked = self.rounding == "gptq" or (self.search and self.by_outputs)
        known = asked and unknown_inputs(model, layer, layer.weight) is None
        return known and self._obstacle(model, layer, layers) is None

    def apply(self, model: Model, context: Context) -> Model:
        """Quantize the weights of the context's layers.

        Raises:
            DataError: a weight is NaN or infinite (the layer is named).
        """
        editor = Editor(model.edit())
        notes: list[Note] = []
        treated = []
        for layer in context.layers:
            with at(f"layer {layer.name!r}"):
                reason = self._obstacle(model, layer, context.layers)
            if reason:
                notes.append(Note(layer.name, f"stays in float: {reason}"))
            else:
                treated.append(layer)
        for group, moments in self._groups(model, context, treated):
            for layer, rounded in zip(group, self._rounded(editor, group, moments), strict=True):
                with at(f"layer {layer.name!r}"):
                    notes += self._quantize_layer(editor, layer, rounded, context.statistics)
        held = 4 if self.bits <= 4 else 8
        if held > self.bits and context.layers:
            text = (
                f"codes of {self.bits} bits are stored in {held}, the fewest that runtimes read: no smaller than {held}"
            )
            notes.append(Note("QuantizeWeights", text))
        editor.model.ir_version = max(editor.model.ir_version, 10)
        return model.edited(editor.model, notes)

    def _obstacle(self, model: Model, layer: Layer, layers: Sequence[Layer]) -> str | None:
        """Why nothing is gained from this layer, or None."""
        size = int(np.prod(layer.shape))
        if size < self.smallest:
            return f"only {size} weights"
        shared = (other_readers(model.graph, layers, name) for name in layer.weights)
        found = next((f"its weight cannot change: {reason}" for reason in shared if reason), None)
        beyond = (out_of_range(model.weight(name)) for name in layer.weights)
        return other_type(model.graph, layer) or found or next((reason for reason in beyond if reason), None)

    def _why_uncorrected(self, editor: Editor, layer: Layer) -> str | None:
        """Why a layer's bias is not corrected, or None."""
        if self.bias_correction == "data" and layer.input in editor.graph.initializers:
            return "its input is a constant"
        return why_uncorrected(editor, layer)

    def _correct_bias(self, editor: Editor, layer: Layer, error: np.ndarray, statistics: Statistics) -> list[Note]:
        reason, means = self._why_uncorrected(editor, layer), None
        if reason is None and self.bias_correction == "data":
            means, reason = seen_means(statistics, layer), "calibration did not look at what it reads"
        elif reason is None:
            means, reason = normalised_means(editor, layer), _UNTOLD
        if means is None:
            return [Note(layer.name, f"its bias is not corrected: {reason}")]
        correct_bias(editor, layer, error, means)
        return []

    def _groups(
        self, model: Model, context: Context, layers: Sequence[Layer]
    ) -> Iterator[tuple[list[Layer], np.ndarray | None]]:
        """Layers by the second moments of what they read, which some share; those that use none, each by itself."""
        groups: dict[int, tuple[list[Layer], np.ndarray]] = {}
        for layer in layers:
            with at(f"layer {layer.name!r}"):
                if not self._weighs(model, layer, context.layers):
                    yield [layer], None
                    continue
                moments = moments_of(context.statistics, layer)
            groups.setdefault(id(moments), ([], moments))[0].append(layer)
        yield from groups.values()

    def _rounded(
        self, editor: Editor, group: Sequence[Layer], moments: np.ndarray | None
    ) -> Sequence[Quantized | None]:
        """The weights of layers that read the same, by its second moments; None where these are not used."""
        if moments is None:
            return [None] * len(group)
        weights = []
        for layer in group:
            with at(f"layer {layer.name!r}"):
                weights.append(finite_float32(editor.array(layer.weight)))
        _, block, _ = self._grouping(group[0], group[0].shape)
        with at(f"layer {', '.join(repr(layer.name) for layer in group)}"):
            return self._rounding(block).quantized(weights, group, moments)

    def _quantize_layer(
        self, editor: Editor, layer: Layer, rounded: Quantized | None, statistics: Statistics
    ) -> list[Note]:
        notes = []
        if rounded is None and (self.rounding == "gptq" or self.by_outputs):
            notes.append(Note(layer.name, f"by its weights alone, to the nearest: {_why_nearest(layer)}"))
        for index, name in enumerate(layer.weights):
            weight = editor.array(name).astype(np.float32, copy=False)
            axis, block, reason = self._grouping(layer, weight.shape)
            if reason:
                notes.append(Note(layer.name, reason))
            quantized = self._nearest(weight, axis, block) if rounded is None or index else rounded
            if self.bias_correction is not None and index == 0:
                notes += self._correct_bias(editor, layer, quantized.dequantize() - weight, statistics)
            if layer.operator == "Gather":
                if self.bits < 8 and not _packable(layer, quantized):
                    notes.append(
                        Note(layer.name, f"codes of {self.bits} bits are stored in 8: Gather takes no smaller type")
                    )
                _put_table(editor, layer, quantized)
            else:
                put_codes(editor, layer, quantized, index)
        return notes

    def nearest(self, weight: np.ndarray, layer: Layer) -> Quantized:
        """A weight of a layer rounded to the nearest, in ranges by itself alone.

        Raises:
            DataError: it is NaN or infinite.
        """
        axis, block, _ = self._grouping(layer, weight.shape)
        return self._nearest(weight, axis, block)

    @property
    def _grid(self) -> Grid:
        return Grid(self.bits, signed=True, symmetric=self.symmetric, narrow=self.symmetric and self.bits > 4)

    def _rounding(self, block: int | None) -> Rounding:
        ranges: Ranges = "extremes" if not self.search else "outputs" if self.by_outputs else "weights"
        nearest = self.rounding == "nearest"
        return Rounding(self._grid, block, ranges, nearest, self.by_size_of_inputs, self.damping)

    def _nearest(self, weight: np.ndarray, axis: int | None, block: int | None) -> Quantized:
        low: np.ndarray | None = None
        high: np.ndarray | None = None
        if self.rounding == "hqq":
            low, high = half_quadratic_range(weight, self._grid, axis=axis, block=block)
        elif self.search:
            low, high = channel_mean_squared_error_range(weight, self._grid, axis=axis, block=block)
        return quantize_array(weight, self._grid, axis=axis, block=block, minimum=low, maximum=high)

    def _grouping(self, layer: Layer, shape: tuple[int, ...]) -> tuple[int | None, int | None, str | None]:
        """Axis and block of the scales of a weight, and a note where blocks were asked for and cannot be."""
        if layer.operator in {"LSTM", "GRU", "RNN"} and shape[0] > 1:
            return None, None, "one scale for both directions: ONNX scales run along one axis"
        if self.block is None:
            return layer.output_axis, None, None
        if layer.operator not in {"MatMul", "Gemm", "Conv"}:
            return layer.output_axis, None, f"a scale per channel, not per block: {layer.operator} has no blocked form"
        axis = layer.input_axes[0]
        if shape[axis] % self.block:
            return layer.output_axis, None, f"a scale per channel: {shape[axis]} inputs are no multiple of {self.block}"
        return axis, self.block, None


def _why_nearest(layer: Layer) -> str:
    """Why second moments of what a layer reads are not there."""
    return why_no_moments(layer) or "its input is a constant"


def put_codes(editor: Editor, layer: Layer, quantized: Quantized, index: int = 0) -> None:
    """Let a layer read ``DequantizeLinear(codes)`` in place of its weight.

    The dequantized tensor takes over the weight's name when no other node reads the float weight.
    """
    name = layer.weights[index]
    weight, node = editor.value(name), editor.node(layer.name)
    narrow = quantized.grid.bits in {2, 3}  # kept in 4 bits, the fewest that every runtime reads
    storage = np.dtype(ml_dtypes.int4) if narrow else quantized.codes.dtype
    codes, zero_point = quantized.codes.astype(storage), quantized.zero_point.astype(storage)
    inputs = [editor.constant(f"{name}.codes", codes), editor.constant(f"{name}.scale", quantized.scale)]
    if quantized.block is None or not quantized.grid.symmetric:  # ONNX Runtime fuses Gemm only with a zero point
        inputs.append(editor.constant(f"{name}.zero_point", zero_point))
    attributes = {} if quantized.axis is None else {"axis": quantized.axis}
    if quantized.block is not None:
        attributes["block_size"] = quantized.block
    dequantized = editor.insert(
        "DequantizeLinear", inputs, f"{name}.dequantized", before=node, attributes=attributes
    ).outputs[0]
    dequantized.shape, dequantized.dtype = ir.Shape(list(quantized.codes.shape)), ir.DataType.FLOAT
    set_input(node, weight, dequantized)
    if editor.drop_constant(name):
        editor.rename(dequantized, name)


def _put_table(editor: Editor, layer: Layer, quantized: Quantized) -> None:
    """Gather codes and scales of the rows that are looked up, then multiply: the table is never dequantized whole."""
    name, node = layer.weight, editor.node(layer.name)
    rows = _looked_up_codes(editor, layer, quantized)  # integers that are `middle` above the codes
    middle = 8 if _packable(layer, quantized) else 0
    real = editor.insert("Cast", [rows], f"{layer.output}.cast", before=node, attributes={"to": 1}).outputs[0]
    zeros = quantized.zero_point.astype(np.float32) + middle
    if zeros.any():
        offset = _looked_up(editor, layer, zeros, "zero_point")
        real = editor.insert("Sub", [real, offset], f"{layer.output}.moved", before=node).outputs[0]
    factors = _looked_up(editor, layer, quantized.scale, "scale")
    product = editor.insert("Mul", [real, factors], f"{layer.output}.product", before=node).outputs[0]
    like(product, node.outputs[0])
    _take_over(editor, node, product)
    editor.drop_constant(name)


def _packable(layer: Layer, quantized: Quantized) -> bool:
    """Whether two codes share a byte: Gather takes no 4-bit type, so they are packed by hand."""
    shape = quantized.codes.shape
    return quantized.grid.bits <= 4 and layer.output_axis == 0 and shape[-1] % 2 == 0


def _looked_up_codes(editor: Editor, layer: Layer, quantized: Quantized) -> ir.Value:
    """The codes of the rows that are looked up, as integers; packed ones are taken apart after the look-up."""
    node, name = editor.node(layer.name), layer.weight
    codes = quantized.codes.astype(np.int8)
    attributes = {"axis": layer.output_axis}
    if not _packable(layer, quantized):
        table = editor.constant(f"{name}.codes", codes)
        return editor.insert(
            "Gather", [table, node.inputs[1]], f"{layer.output}.codes", before=node, attributes=attributes
        ).outputs[0]
    low, high = np.split((codes + 8).astype(np.uint8), 2, axis=-1)  # [..., D / 2] each
    table = editor.constant(f"{name}.codes", low | (high << 4))
    pairs = editor.insert(
        "Gather", [table, node.inputs[1]], f"{layer.output}.pairs", before=node, attributes=attributes
    ).outputs
    mask, above, four = (
        editor.constant(f"{name}.{key}", np.array(value, np.uint8))
        for key, value in (("mask", 0x0F), ("above", 0xF0), ("shift", 4))
    )
    first = editor.insert("BitwiseAnd", [*pairs, mask], f"{layer.output}.low", before=node).outputs
    last = editor.insert("BitwiseAnd", [*pairs, above], f"{layer.output}.above", before=node).outputs
    second = editor.insert(  # masked before, since OpenVINO's BitShift rounds to the nearest
        "BitShift", [*last, four], f"{layer.output}.high", before=node, attributes={"direction": "RIGHT"}
    ).outputs
    return editor.insert(
        "Concat", [*first, *second], f"{layer.output}.codes", before=node, attributes={"axis": -1}
    ).outputs[0]


def _looked_up(editor: Editor, layer: Layer, parameter: np.ndarray, what: str) -> ir.Value:
    """The scale or zero point of the rows that are looked up, in a shape that broadcasts with them."""
    shape = [1] * len(layer.shape)
    shape[layer.output_axis] = -1
    node = editor.node(layer.name)
    table = editor.constant(f"{layer.weight}.{what}", parameter.astype(np.float32).reshape(shape))
    return editor.insert(
        "Gather",
        [table, node.inputs[1]],
        f"{layer.output}.{what}",
        before=node,
        attributes={"axis": layer.output_axis},
    ).outputs[0]


def _take_over(editor: Editor, node: ir.Node, result: ir.Value) -> None:
    """Replace a node by the tensor that now holds its result, under the same name."""
    output = node.outputs[0]
    name = str(output.name)
    output.replace_all_uses_with(result, replace_graph_outputs=True)
    editor.remove(node)
    editor.rename(result, name)
