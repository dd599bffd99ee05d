"""Outlier channel splitting: channels that stand out are there twice, so that a grid for all of them can be finer."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import onnx_ir as ir

from alula.errors import at
from alula.graph.editing import Editor, like, set_input
from alula.graph.layers import Layer
from alula.graph.model import Model, Note
from alula.graph.repeating import origin_of
from alula.graph.rescaling import multiples_behind
from alula.graph.statistics import Request, Statistics
from alula.numerics.grids import Grid, finite_float32
from alula.numerics.grids import quantize as quantize_array
from alula.numerics.outlier_splitting import outlier_splits, split_sources, split_weights
from alula.numerics.ranges import channel_mean_squared_error_range
from alula.settings import check_rules, check_settings
from alula.techniques.mean_shift import channel_axis
from alula.techniques.smoothing import reads_rows
from alula.techniques.technique import Context, other_type

SETTLING: Final = 2  # parts lie half a step apart, which moves the range by a quarter of one at most
CHEAP: Final = 64  # weights that a channel meets: copying it is then a small share of what is done with it


@dataclass(frozen=True, slots=True)
class SplitOutliers:
    """Split the input channels of layers that stand out in two that sum to the same; the outputs stay.

    To be put before Quantize or QuantizeWeights. Where a layer computes the channel, and only
    operators lie between that treat each channel by itself, that layer computes it twice
    (:mod:`alula.graph.repeating`). Elsewhere a Gather copies it at run time, where each channel meets at least 64
    weights; or it stays, with a note.

    Attributes:
        expansion: channels to add, as a share of those that there are, rounded up.
        by: what stands out: the ``weights`` that read the channel, which are split so that both parts are rounded to
            the same sum as the whole; or the ``activations`` that calibration saw, which are halved.
        grid_bits: of the grid that the weights will be put on, 2 to 8; by activations it is not used.
        per_channel: that grid has a step per output channel, otherwise one for all.
        search: its ranges are those of least squared error instead of the extremes.
        copies: whether a Gather may copy channels at run time.
    """

    expansion: float = 0.02
    by: Literal["weights", "activations"] = "weights"
    grid_bits: int = 8
    per_channel: bool = True
    search: bool = False
    copies: bool = True

    def __post_init__(self) -> None:
        check_settings(self)
        check_rules(self, [
            ("expansion", "0 to 1", 0 <= self.expansion <= 1), ("grid_bits", "2 to 8", 2 <= self.grid_bits <= 8),
        ])  # fmt: skip

    def requests(self, model: Model, layers: Sequence[Layer]) -> frozenset[Request]:
        """By activations: the range of each channel that the layers read."""
        if self.by == "weights":
            return frozenset()
        editor = Editor(model.edit())
        read = [layer for layer in layers if _obstacle(editor, layer) is None]
        return frozenset(Request(layer.input, channel_axis=channel_axis(layer)) for layer in read)

    def apply(self, model: Model, context: Context) -> Model:
        """Split channels that the context's layers read.

        Raises:
            DataError: a weight is NaN or infinite (the layer is named).
            ModelError: ranges of activations were not collected.
        """
        editor, notes = Editor(model.edit()), []
        chosen = {layer.name for layer in context.layers}
        fixed = {name for layer in model.layers() if layer.name not in chosen for name in layer.weights}
        for layer in context.layers:
            with at(f"layer {layer.name!r}"):
                reason = _obstacle(editor, layer)
                told = self._split(editor, layer, context.statistics, fixed) if reason is None else _left(reason)
            notes.append(Note(layer.name, told))
        return model.edited(editor.model, notes)

    def _split(self, editor: Editor, layer: Layer, statistics: Statistics, fixed: Collection[str]) -> str:
        """Split channels of what one layer reads, and tell which, or why not."""
        axes = (layer.output_axis, layer.input_axes[0])
        weight = np.moveaxis(finite_float32(editor.array(layer.weight)), axes, (0, 1))  # [out, in, ...]
        channels = weight.shape[1]
        magnitudes = self._magnitudes(weight, layer, statistics)
        if magnitudes is None:
            return _left("calibration did not see the channels that it reads one by one")
        places = outlier_splits(magnitudes, math.ceil(self.expansion * channels))
        if not len(places):
            return _left("none is asked for, or all are 0")
        sources, shares = split_sources(places, channels)
        told = self._repeat(editor, layer, sources, shares, fixed)
        if told is None:
            return _left(f"what computes {layer.input!r} cannot do it twice, and it is not to be copied")
        parts = self._parts(weight, places) if self.by == "weights" else weight[:, sources]
        editor.replace_constant(layer.weight, np.ascontiguousarray(np.moveaxis(parts, (0, 1), axes)))
        return f"of the {channels} channels that it reads {_listed(sources[channels:])} are there twice, {told}"

    def _magnitudes(self, weight: np.ndarray, layer: Layer, statistics: Statistics) -> np.ndarray | None:
        """The largest magnitude in each channel, by the grids that it is put on: [out or 1, in]."""
        if self.by == "weights":
            along = tuple(range(2, weight.ndim)) if self.per_channel else (0, *range(2, weight.ndim))
            found = np.abs(weight).max(axis=along, initial=0.0)
            return np.asarray(found.reshape(-1, weight.shape[1]))
        seen = statistics[layer.input].channels.get(channel_axis(layer))
        return None if seen is None else np.maximum(np.abs(seen.minimum), np.abs(seen.maximum))[None]

    def _parts(self, weight: np.ndarray, places: np.ndarray) -> np.ndarray:
        """Weights half a step apart, of the grid that the parts themselves have: [out, in + n, ...]."""
        parts = split_weights(weight, places)
        for _ in range(SETTLING):
            parts = split_weights(weight, places, self._step(parts))
        return parts

    def _step(self, parts: np.ndarray) -> np.ndarray:
        grid, axis = Grid(self.grid_bits, narrow=self.grid_bits > 4), 0 if self.per_channel else None
        low, high = channel_mean_squared_error_range(parts, grid, axis=axis) if self.search else (None, None)
        return quantize_array(parts, grid, axis=axis, minimum=low, maximum=high).scale

    def _repeat(
        self, editor: Editor, layer: Layer, sources: np.ndarray, shares: np.ndarray, fixed: Collection[str]
    ) -> str | None:
        """Let a layer read channels as often as they are listed, halved if activations are; how, or None."""
        node, value, axis = editor.node(layer.name), editor.value(layer.input), channel_axis(layer)
        halve = self.by == "activations"
        origin = origin_of(editor.graph, value, axis, node, fixed)
        can_halve = not halve or not isinstance(multiples_behind(editor.graph, value, axis, fixed=fixed), str)
        if not isinstance(origin, str) and can_halve:
            origin.repeat(editor, sources)
            if halve:
                _multiply(editor, value, axis, shares)
            return f"in {', '.join(name for name, _ in origin.constants)}"
        if not self.copies or math.prod(layer.shape) < CHEAP * layer.shape[layer.input_axes[0]]:
            return None
        copied = _copied(editor, layer, sources, shares if halve else None)
        set_input(node, value, copied)
        return f"copied at run time, since {origin if isinstance(origin, str) else 'they cannot be halved before'}"


def _multiply(editor: Editor, value: ir.Value, axis: int, shares: np.ndarray) -> None:
    """Multiply the channels of a tensor by powers of two, in the constants that it is a multiple of."""
    multiples = multiples_behind(editor.graph, value, axis)
    assert not isinstance(multiples, str)
    for one in multiples:
        editor.replace_constant(one.initializer, one.divided(editor.array(one.initializer), 1 / shares))


def _copied(editor: Editor, layer: Layer, sources: np.ndarray, shares: np.ndarray | None) -> ir.Value:
    """What a layer reads with channels as often as they are listed, times their shares."""
    node, value, axis = editor.node(layer.name), editor.value(layer.input), channel_axis(layer)
    places = editor.constant(f"{layer.weight}.sources", sources.astype(np.int64))
    nodes = [editor.insert("Gather", [value, places], f"{layer.weight}.copied", before=node, attributes={"axis": axis})]
    if shares is not None:
        by = shares.reshape(-1, *[1] * (len(layer.shape) - 2))
        factors = editor.constant(f"{layer.weight}.shares", by)
        nodes.append(editor.insert("Mul", [*nodes[0].outputs, factors], f"{layer.weight}.halved", before=node))
    for made in nodes:
        like(made.outputs[0], value)
        if value.shape is not None:
            lengths = [*value.shape]
            lengths[axis] = len(sources)
            made.outputs[0].shape = ir.Shape(lengths)
    return nodes[-1].outputs[0]


def _obstacle(editor: Editor, layer: Layer) -> str | None:
    """Why no channel that a layer reads can be split, or None."""
    if not (reads_rows(layer) or (layer.operator == "Conv" and layer.groups == 1)) or min(layer.shape) == 0:
        return f"the weight of shape {list(layer.shape)} of a {layer.operator} is no matrix on the right of its input"
    if layer.input in editor.graph.initializers:
        return "its input is a constant"
    if editor.shared(layer.weight):
        return "its weight is read elsewhere too"
    return other_type(editor.graph, layer)


def _left(reason: str) -> str:
    return f"no channel is split: {reason}"


def _listed(channels: np.ndarray) -> str:
    shown = ", ".join(map(str, channels[:8].tolist()))
    return shown if len(channels) <= 8 else f"{shown} and {len(channels) - 8} more"
