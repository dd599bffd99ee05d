"""What rounded weights add to a layer's mean output, told by what the layer reads on average."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from alula.graph.editing import Editor
from alula.graph.known import producer_of
from alula.graph.layers import Layer
from alula.graph.statistics import Statistics
from alula.numerics.correction import clipped_normal_mean, expected_error_bias
from alula.techniques.biases import alpha_of
from alula.techniques.folding import set_bias
from alula.techniques.folding_codes import Normalisation


def channel_axis(layer: Layer) -> int:
    """The axis of a layer's input that runs over channels."""
    return 1 if layer.operator == "Conv" else -1


def takes_bias(node: ir.Node, layer: Layer) -> bool:
    """Whether the layer has a constant bias that counts, or may be given one."""
    computed = layer.bias is None and len(node.inputs) > 2 and node.inputs[2] is not None
    counts = float(node.attributes.get_float("beta", 1.0)) != 0.0
    return layer.operator in {"Conv", "Gemm"} and counts and not computed


def why_uncorrected(editor: Editor, layer: Layer) -> str | None:
    """Why no shift can be taken off a layer's bias, or None."""
    if layer.operator not in {"Conv", "Gemm"}:
        return f"a {layer.operator} has no bias of its own"
    if not takes_bias(editor.node(layer.name), layer):
        return "its bias is computed, or does not count"
    if layer.bias is not None and editor.array(layer.bias).size not in {1, layer.shape[layer.output_axis]}:
        return "its bias is not one number per channel"
    return None


def correct_bias(editor: Editor, layer: Layer, error: np.ndarray, means: np.ndarray) -> None:
    """Take off a layer's bias what its rounded weights add to its mean output.

    Args:
        editor: of the graph.
        layer: a Conv or Gemm, without :func:`why_uncorrected`.
        error: rounded weight - weight, in the weight's shape.
        means: of each channel of what the layer reads, [channels].
    """
    node, channels = editor.node(layer.name), layer.shape[layer.output_axis]
    shift = expected_error_bias(np.moveaxis(error, layer.output_axis, 0), means, groups=layer.groups) * alpha_of(node)
    bias = np.zeros(channels, np.float32) if layer.bias is None else editor.array(layer.bias).ravel()
    if shift.any():
        set_bias(editor, node, layer, (bias - shift).astype(np.float32))


def seen_means(statistics: Statistics, layer: Layer) -> np.ndarray | None:  # [channels]
    """Mean of each channel of what a layer reads, as calibration saw it; None where it did not look."""
    seen = statistics.get(layer.input)
    channels = None if seen is None else seen.channels.get(channel_axis(layer))
    return None if channels is None else channels.mean


def normalised_means(editor: Editor, layer: Layer) -> np.ndarray | None:  # [channels]
    """Mean of each channel of what a layer reads straight from a batch normalisation, through Relu or Clip or nothing.

    What the normalisation gives is taken for normal numbers (Nagel et al. 2019, section 4.2.1). None: the layer reads
    something else.
    """
    node, ends = editor.value(layer.input).producer(), (-math.inf, math.inf)
    if node is not None and node.op_type in {"Relu", "Clip"}:
        ends, node = _ends(editor, node), producer_of(node.inputs[0])
    by = None if node is None else normalisation_of(editor, node)
    if by is None or math.isnan(sum(map(abs, ends))) or ends[0] > ends[1]:
        return None
    spread = np.sqrt(by.variance.astype(np.float64) / (by.variance + by.epsilon))
    return clipped_normal_mean(by.offset, np.abs(by.scale) * spread, low=ends[0], high=ends[1])


def normalisation_of(editor: Editor, node: ir.Node) -> Normalisation | None:
    """The parameters of a batch normalisation that goes by constants; None of any other node."""
    if node.op_type != "BatchNormalization" or node.domain != "" or int(node.attributes.get_int("training_mode", 0)):
        return None
    if any(value is None or not value.is_initializer() for value in node.inputs[1:5]):
        return None
    scale, offset, mean, variance = (editor.array(str(value.name)) for value in node.inputs[1:5])  # type: ignore[union-attr]
    return Normalisation(scale, offset, mean, variance, float(node.attributes.get_float("epsilon", 1e-5)))


def _ends(editor: Editor, node: ir.Node) -> tuple[float, float]:
    """What Relu or Clip clips to; NaN where that is computed."""
    if node.op_type == "Relu":
        return 0.0, math.inf
    bounds = [node.inputs[index] if index < len(node.inputs) else None for index in (1, 2)]
    low, high = (
        free if value is None else float(editor.array(str(value.name))) if value.is_initializer() else math.nan
        for value, free in zip(bounds, (-math.inf, math.inf), strict=True)
    )
    return low, high
