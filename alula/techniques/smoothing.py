"""Outlier channels of an activation, moved into the weights that read it, where each column has a scale of its own."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np

from alula.errors import at
from alula.graph.editing import Editor
from alula.graph.layers import Layer
from alula.graph.statistics import Statistics
from alula.numerics.grids import finite_float32
from alula.numerics.smoothing import smoothing_factors
from alula.techniques.placement import Placement

Readers = Mapping[str, tuple[Layer, ...]]


def smoothable(placement: Placement, layers: Sequence[Layer], known: Collection[str] = ()) -> Readers:
    """Tensors whose codes are read by MatMul and Gemm layers only, and by which; their channels are the last axis.

    Those in ``known`` are quantized already and keep their scale; weights that several layers share stay as they are.
    """
    users = [layer.weight for layer in layers]
    by_name = {layer.name: layer for layer in layers if reads_rows(layer) and users.count(layer.weight) == 1}
    found = {}
    for tensor, readers in placement.readers.items():
        alone = tensor not in placement.everywhere and tensor not in placement.shares and tensor not in known
        if alone and readers and tensor not in placement.operands and all(name in by_name for name in readers):
            found[tensor] = tuple(by_name[name] for name in readers)
    return found


def reads_rows(layer: Layer) -> bool:
    """Whether the weight is a plain matrix on the right of the activation."""
    matrix = layer.operator in {"MatMul", "Gemm"} and len(layer.shape) == 2
    return matrix and (layer.operator == "Gemm" or layer.output_axis == 1)


def factors_for(editor: Editor, readers: Readers, statistics: Statistics, strength: float) -> dict[str, np.ndarray]:
    """What to divide each channel of a tensor by, and multiply its weights with: [K] per tensor."""
    factors = {}
    for tensor, layers in readers.items():
        low, high = _channel_extremes(tensor, statistics)
        columns = [_largest_by_input(editor, layer) for layer in layers]  # [K] each
        if all(not editor.shared(layer.weight) for layer in layers):
            activation = np.maximum(np.abs(low), np.abs(high))  # [K]
            factors[tensor] = smoothing_factors(activation, np.max(columns, axis=0), strength)
    return factors


def _largest_by_input(editor: Editor, layer: Layer) -> np.ndarray:
    with at(f"layer {layer.name!r}"):
        return np.asarray(np.abs(finite_float32(editor.array(layer.weight))).max(axis=layer.output_axis))


def smoothed_range(tensor: str, factors: np.ndarray, statistics: Statistics) -> tuple[float, float]:
    """The extremes of the tensor after division by the factors."""
    low, high = _channel_extremes(tensor, statistics)
    return float((low / factors).min()), float((high / factors).max())


def _channel_extremes(tensor: str, statistics: Statistics) -> tuple[np.ndarray, np.ndarray]:
    seen = statistics[tensor].channels[-1]
    return seen.minimum, seen.maximum


def scale_rows(editor: Editor, layer: Layer, factors: np.ndarray) -> None:
    """Multiply what the weight has for each input channel."""
    weight = editor.array(layer.weight)
    scaled = weight * np.expand_dims(factors, layer.output_axis)
    editor.replace_constant(layer.weight, scaled.astype(weight.dtype))
