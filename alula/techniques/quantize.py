"""Static quantization: weights and activations on fixed grids, computed in integers by the runtime."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from alula.errors import RecipeError, at
from alula.graph.editing import Editor
from alula.graph.layers import Layer
from alula.graph.matrices import no_matrix, weight_matrix
from alula.graph.model import Model, Note
from alula.graph.statistics import AnyRequest, Request, RowsRequest, Statistics
from alula.numerics.correction import expected_error_bias
from alula.numerics.grids import Floats, Grid, Quantized, codes_from, finite_float32, scale_and_zero_point
from alula.numerics.grids import quantize as quantize_array
from alula.numerics.ranges import MinMax, OutputError, RangeMethod, channel_mean_squared_error_range
from alula.settings import check_settings
from alula.techniques.biases import add_bias, alpha_of, put_bias
from alula.techniques.mean_shift import channel_axis, takes_bias
from alula.techniques.pairs import Parameters, insert_pair, parameters_of, source_of
from alula.techniques.placement import STATIC, Placement, place
from alula.techniques.smoothing import Readers, factors_for, scale_rows, smoothable, smoothed_range
from alula.techniques.technique import Context, other_type, out_of_range
from alula.techniques.weights import put_codes

_BIAS_LIMIT = 2.0**30  # codes of a bias are int32; half of its range leaves room for the sum it starts
_LARGEST_SCALE = 1e36  # times the largest code is still a float32
_UNEXCITED = (
    "calibration showed a single value of it, so that its codes can hold no other: on data that differ the outputs are "
    "wrong; calibrate on data that excite it, or exclude the layers that read it"
)
_NORMAL = float(np.finfo(np.float32).tiny)  # runtimes flush smaller scales to 0


@dataclass(frozen=True, slots=True)
class Quantize:
    """Weights and activations of Conv, Gemm and MatMul as integers (QuantizeLinear, DequantizeLinear).

    Attributes:
        weight_bits: 2 to 8; symmetric codes around 0, per output channel if ``per_channel``.
        activation_bits: 2 to 8, or 16; one scale per tensor. Fewer than 8 are simulated, by clipped codes of 8 bits.
        activation_signed: int8 instead of uint8. On x86 the pair uint8 x int8 runs up to 4x as fast; and ONNX Runtime
            1.32 does not open graphs of opset 21 in which int8 codes pass a Slice: its optimiser mistypes a node.
        activation_symmetric: the zero point is the middle code.
        range: how the range of an activation is found: MinMax, Percentile, MeanSquaredError, Entropy or OutputError.
        per_channel: a scale per output channel of a weight, otherwise one for all.
        weight_search: find each weight range by least squared error instead of the largest magnitude.
        bias_correction: take the shift of the mean output, that rounding the weights causes, off the bias.
        smoothing: move outlier channels of what MatMul and Gemm read into their weights: 0 leaves all to the
            activation, 1 all to the weight (SmoothQuant, Xiao et al. 2022); None does not. Costs a multiplication.
        products: also quantize matrix products of two activations (attention); operands of both signs are int8 with
            zero point 0, since kernels take no offset on the right.
        outputs: quantize what layers give, not only what they take (see ``placement.place``); not below 8 bits.
    """

    weight_bits: int = 8
    activation_bits: int = 8
    activation_signed: bool = False
    activation_symmetric: bool = False
    range: RangeMethod = field(default_factory=MinMax)
    per_channel: bool = True
    weight_search: bool = False
    bias_correction: bool = True
    smoothing: float | None = None
    products: bool = False
    outputs: bool = True

    def __post_init__(self) -> None:
        check_settings(self)
        if not 2 <= self.weight_bits <= 8:
            raise RecipeError(f"weight_bits must be 2 to 8, got {self.weight_bits}")
        if self.activation_bits not in {2, 3, 4, 5, 6, 7, 8, 16}:
            raise RecipeError(f"activation_bits must be 2 to 8, or 16, got {self.activation_bits}")
        if self.smoothing is not None and not 0 <= self.smoothing <= 1:
            raise RecipeError(f"smoothing must be 0 to 1, or None, got {self.smoothing}")

    def requests(self, model: Model, layers: Sequence[Layer]) -> frozenset[AnyRequest]:
        """Ranges of the tensors to quantize, and the mean of each input channel where biases are corrected."""
        layers = [layer for layer in layers if _obstacle(model, layer) is None]
        placement = self._place(model, layers)
        histogram = not isinstance(self.range, MinMax)
        ranges: set[AnyRequest] = {Request(placement.root(tensor), histogram) for tensor in placement.readers}
        if isinstance(self.range, OutputError):
            ranges |= {RowsRequest(layer.name) for layer in layers if no_matrix(layer) is None}
        if self.smoothing is not None:
            ranges |= {Request(tensor, channel_axis=-1) for tensor in smoothable(placement, layers)}
        if not self.bias_correction:
            return frozenset(ranges)
        nodes = {str(node.name): node for node in model.graph}
        corrected = [layer for layer in layers if takes_bias(nodes[layer.name], layer)]
        return frozenset(ranges | {Request(layer.input, channel_axis=channel_axis(layer)) for layer in corrected})

    def apply(self, model: Model, context: Context) -> Model:
        """Quantize the layers of the context.

        Raises:
            RecipeError: none of them can be computed in integers.
            DataError: a weight is NaN or infinite (the layer is named).
        """
        obstacles = {layer: reason for layer in context.layers if (reason := _obstacle(model, layer))}
        layers = [layer for layer in context.layers if layer not in obstacles]
        placement = self._place(model, layers)
        if not placement.nodes:
            raise RecipeError(_nothing_to_do(obstacles))
        editor = Editor(model.edit())
        known = {tensor: pair for tensor in placement.readers if (pair := parameters_of(editor, tensor)) is not None}
        factors = self._factors(editor, smoothable(placement, layers, known), context.statistics)
        ranges = self._ranges_by_outputs(model, layers, placement, context.statistics)
        ranges |= {tensor: smoothed_range(tensor, by, context.statistics) for tensor, by in factors.items()}
        scales = self._scales(placement, context.statistics, known, ranges)
        for layer in layers:
            with at(f"layer {layer.name!r}"):
                if layer.input in factors:
                    scale_rows(editor, layer, factors[layer.input])
                scale = scales[placement.root(layer.input)][0]
                means = _input_means(editor, layer, context.statistics, factors.get(layer.input))
                self._quantize_layer(editor, layer, scale, means)
        for tensor in placement.readers:
            if tensor not in known:
                pair = scales[placement.root(tensor)]
                insert_pair(editor, tensor, pair, placement, factors=factors.get(tensor), bits=self.activation_bits)
        notes = [Note(layer.name, f"stays in float: {reason}") for layer, reason in obstacles.items()]
        roots = sorted({placement.root(tensor) for tensor in placement.readers} - set(known))
        seen = {root: context.statistics[root] for root in roots}
        notes += [Note(tensor, _UNEXCITED) for tensor, one in seen.items() if one.minimum == one.maximum]
        return model.edited(_current(editor.model), [*notes, *self._bounds(layers)])

    def _bounds(self, layers: Sequence[Layer]) -> Iterator[Note]:
        """What no runtime does with what was asked for."""
        if min(self.weight_bits, self.activation_bits) < 7:
            text = f"weights of {self.weight_bits} bits and activations of {self.activation_bits} are simulated"
            yield Note("Quantize", f"{text}: kernels compute with 8 bits or in float, no faster than with 8")
        for layer in layers:
            if self.per_channel and _is_stack(layer):
                yield Note(layer.name, "one scale for all matrices: no kernel takes more")

    def _place(self, model: Model, layers: Sequence[Layer]) -> Placement:
        outputs = self.outputs and self.activation_bits >= 8  # no kernel computes with fewer
        return place(model, layers, products=self.products, outputs=outputs)

    @property
    def _sums_in_integers(self) -> bool:
        """Whether kernels do: with fewer bits a step of the sums is so large that a bias has to stay float."""
        return self.activation_bits >= 8 and self.weight_bits > 4

    @property
    def _activation_grid(self) -> Grid:
        return Grid(self.activation_bits, signed=self.activation_signed, symmetric=self.activation_symmetric)

    def _factors(self, editor: Editor, readers: Readers, statistics: Statistics) -> dict[str, np.ndarray]:
        return {} if self.smoothing is None else factors_for(editor, readers, statistics, self.smoothing)

    def _ranges_by_outputs(
        self, model: Model, layers: Sequence[Layer], placement: Placement, statistics: Statistics
    ) -> dict[str, tuple[float, float]]:
        """The range of each tensor that layers read by a matrix, where they are to be found by their outputs."""
        if not isinstance(self.range, OutputError):
            return {}
        readers: dict[str, list[Layer]] = {}
        for layer in layers:
            if no_matrix(layer) is None:
                readers.setdefault(placement.root(layer.input), []).append(layer)
        found = {}
        for tensor, group in readers.items():
            seen = statistics[tensor]
            with at(f"tensor {tensor!r}"):
                read = [(statistics.rows(one.name), weight_matrix(model.weight(one.weight), one)) for one in group]
                found[tensor] = self.range.range_for(read, (seen.minimum, seen.maximum), self._activation_grid)
        return found

    def _scales(
        self,
        placement: Placement,
        statistics: Statistics,
        known: Mapping[str, Parameters],
        ranges: Mapping[str, tuple[float, float]],
    ) -> dict[str, Parameters]:
        """Scale and zero point of every tensor that has its own.

        Those in ``known`` are quantized already; ``ranges`` are those found otherwise than from the statistics alone.
        """
        found = dict(known)
        for tensor in sorted({placement.root(tensor) for tensor in placement.readers} - set(known)):
            seen = statistics[tensor]
            signed = tensor in placement.operands and seen.minimum < 0
            grid = Grid(self.activation_bits) if signed else self._activation_grid
            with at(f"tensor {tensor!r}"):
                low, high = ranges.get(tensor, (seen.minimum, seen.maximum))
                if tensor not in ranges and not isinstance(self.range, MinMax):
                    low, high = self.range.range(*seen.sample(), grid)
                scale, zero_point = scale_and_zero_point(low, high, grid)
                held = grid.storage if grid.bits >= 8 else f"{'' if grid.signed else 'u'}int8"
                found[tensor] = scale, zero_point.astype(held)
        return found

    def _quantize_layer(
        self, editor: Editor, layer: Layer, input_scale: Floats, input_means: np.ndarray | None
    ) -> None:
        weight, node = editor.array(layer.weight), editor.node(layer.name)
        corrects = takes_bias(node, layer)
        bias = finite_float32(editor.array(layer.bias)) if corrects and layer.bias is not None else None
        quantized = self._quantize_weight(weight, layer, bias, input_scale)
        if self.bias_correction and corrects and input_means is not None:
            error = quantized.dequantize() - weight
            error = error if layer.output_axis == 0 else np.moveaxis(error, layer.output_axis, 0)
            shift = expected_error_bias(error, input_means, groups=layer.groups)
            if bias is not None or np.abs(shift).max(initial=0.0) > 0:
                bias = (np.zeros_like(shift) if bias is None else bias) - shift * alpha_of(node)
        put_codes(editor, layer, quantized)
        if bias is not None:
            base = layer.bias or f"{layer.weight.removesuffix('.weight')}.bias"
            if self._sums_in_integers:
                put_bias(editor, node, base, bias, (input_scale, quantized.scale))
            else:
                add_bias(editor, node, base, bias)

    def _quantize_weight(
        self, weight: np.ndarray, layer: Layer, bias: np.ndarray | None, input_scale: Floats
    ) -> Quantized:
        grid = Grid(self.weight_bits, signed=True, symmetric=True, narrow=True)
        axis = layer.output_axis if self.per_channel and not _is_stack(layer) else None
        low, high = None, None
        if self.weight_search:
            low, high = channel_mean_squared_error_range(weight, grid, axis=axis)
        quantized = quantize_array(weight, grid, axis=axis, minimum=low, maximum=high)
        if bias is None or bias.size == 0:
            return quantized
        widest = np.abs(bias.ravel()) if axis is not None and bias.size == quantized.scale.size else np.abs(bias).max()
        least = np.broadcast_to(widest / (_BIAS_LIMIT * np.float64(input_scale)), quantized.scale.shape)
        fits = least <= quantized.scale  # where it does not, the codes of the bias would overflow
        if fits.all() or least.max() > _LARGEST_SCALE:
            return quantized
        scale = np.where(fits, quantized.scale, least).astype(np.float32)
        codes = codes_from(weight, scale, quantized.zero_point, grid, axis=axis)
        return Quantized(codes, scale, quantized.zero_point, axis, None, grid)


def _obstacle(model: Model, layer: Layer) -> str | None:
    """Why a layer cannot be computed in integers with fixed ranges, or None."""
    if layer.operator not in STATIC:
        return f"no integer kernel computes {layer.operator} statically"
    if layer.input in model.graph.initializers:
        return "its input is a constant"
    return other_type(model.graph, layer) or out_of_range(model.weight(layer.weight))


def _is_stack(layer: Layer) -> bool:
    """Whether the weight of a MatMul is more than one matrix: ONNX Runtime refuses a scale per column then."""
    return layer.operator == "MatMul" and len(layer.shape) > 2


def _nothing_to_do(obstacles: Mapping[Layer, str]) -> str:
    reasons = "; ".join(f"{layer.name}: {reason}" for layer, reason in list(obstacles.items())[:3])
    return (
        f"static quantization knows {', '.join(sorted(STATIC))} in float32; none of the {len(obstacles)} layers is one"
        + (f" ({reasons})" if reasons else "")
    )


def _input_means(editor: Editor, layer: Layer, statistics: Statistics, factors: np.ndarray | None) -> np.ndarray | None:
    """Mean of each channel of what the layer reads, after smoothing; None where it was not collected."""
    source = source_of(editor, layer.input)
    seen = statistics[source].channels.get(channel_axis(layer)) if source in statistics else None
    means = None if seen is None else seen.mean
    return means if means is None or factors is None else means / factors


def _current(model: ir.Model) -> ir.Model:
    model.ir_version = max(model.ir_version, 10)
    return model
