"""The float graph, the quantized one, and each layer's part of it on float inputs, side by side in one graph.

| symbol | meaning |
|---|---|
| x, W, y | what a layer reads in the float network, its weights, what it gives |
| x^, W^ | the same, as codes stand for them |
| f | the layer |

    running       y' of the quantized network  -  y         all noise that arrives at this layer's output
    added         its part of the quantized network, on x  -  y
    weights       f(x, W^)  -  y
    activations   f(x^, W)  -  y

Each difference is reduced to sums inside the graph, so that no activation is handed out: a pass needs the memory of a
few inferences on one batch, whatever the number of examples.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias

import numpy as np
import onnx_ir as ir

from alula.diagnosing.matching import Match, Matching
from alula.graph.editing import Editor
from alula.graph.layers import Layer
from alula.graph.model import Model
from alula.graph.running import Runner
from alula.graph.slices import Copier, move_in
from alula.numerics.noise import decibels, relative_error, shift_share

Kind: TypeAlias = Literal["running", "added", "weights", "activations"]
INSIDE: Final = "quantized:"  # the prefix of the quantized graph's tensors
ALONE: Final = "alone:"


@dataclass(slots=True)
class Noise:
    """Sums over everything seen: of squares of what should come out, of the errors; of errors by channel."""

    signal: float = 0.0
    noise: float = 0.0
    count: int = 0
    totals: np.ndarray | None = None  # [C]

    def add(self, signal: np.ndarray, noise: np.ndarray, count: int, totals: np.ndarray | None) -> None:
        """Add what one run showed: sums of squares by row, and errors by channel."""
        self.signal += float(signal.sum(dtype=np.float64))
        with np.errstate(invalid="ignore"):  # NaN and infinities of a broken network: all noise
            seen = float(noise.sum(dtype=np.float64))
            self.noise += seen if np.isfinite(seen) else np.inf
            self.count += count
            if totals is not None:
                self.totals = totals.astype(np.float64) + (0.0 if self.totals is None else self.totals)

    @property
    def sqnr_db(self) -> float:
        """The ratio of signal to noise, in decibels."""
        return decibels(self.signal, self.noise)

    @property
    def error(self) -> float:
        """The relative error: sqrt(noise / signal)."""
        return relative_error(self.signal, self.noise)

    @property
    def shift(self) -> float:
        """The share of the noise that is one constant per channel."""
        return 0.0 if self.totals is None else shift_share(self.totals, self.noise, self.count)


@dataclass(frozen=True, slots=True)
class _Reading:
    """The names of what one comparison gives out."""

    signal: str
    noise: str
    size: str
    totals: str | None


@dataclass(slots=True)
class Twin:
    """Runs both networks on feeds, and adds up the noise of each layer, by name and kind."""

    runner: Runner
    readings: Mapping[tuple[str, Kind], _Reading]
    noise: dict[tuple[str, Kind], Noise] = field(default_factory=dict)

    def __call__(self, feeds: Mapping[str, np.ndarray]) -> None:
        """Run once, and add what was seen.

        Raises:
            DataError: the feeds do not fit.
        """
        outputs = self.runner(feeds)
        for key, reading in self.readings.items():
            totals = None if reading.totals is None else outputs[reading.totals]
            seen = self.noise.setdefault(key, Noise())
            seen.add(outputs[reading.signal], outputs[reading.noise], int(outputs[reading.size]), totals)


def make_twin(original: Model, quantized: Model, matching: Matching) -> Twin:
    """Both graphs in one, with the comparisons of all matched layers.

    Raises:
        ModelError: ONNX Runtime refuses the graph.
    """
    editor = Editor(original.edit())
    whole = move_in(editor, quantized, INSIDE)
    for value in list(editor.graph.outputs):
        editor.graph.outputs.remove(value)
    copier, readings = Copier(editor, ALONE), dict[tuple[str, Kind], _Reading]()
    for match in matching.matches:
        output = editor.value(match.output)
        reader = _Comparing(editor, match.layer, output)
        readings[match.layer.name, "running"] = reader.compare(_real(editor, whole[_name(match)], match, whole))
        if match.quantized:
            for kind, value in _alone(editor, copier, match, matching).items():
                readings[match.layer.name, kind] = reader.compare(value)
    _order(editor.graph)
    return Twin(Runner(original.edited(editor.model)), readings)


def with_one_layer(original: Model, quantized: Model, match: Match, matching: Matching) -> Model:
    """The float graph with one layer computed as the quantized graph does."""
    editor = Editor(original.edit())
    editor.model.opset_imports.update(quantized.edit().opset_imports)
    old = editor.value(match.output)
    new = _part(editor, Copier(editor, ALONE), match, matching)
    new.type, new.shape = old.type, old.shape
    name = str(old.name)
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    editor.rename(old, f"{name}.float")
    new.name = name
    editor.graph.sort()
    return original.edited(editor.model)


def _order(graph: ir.Graph) -> None:
    """Sort the nodes so that ONNX Runtime, which works back from the last, reduces each layer before the next one runs.

    Otherwise it runs both networks first, and holds what every layer gave.
    """
    graph.sort()
    last = [node for node in graph if not any(value.uses() for value in node.outputs)]
    graph.remove(last)
    graph.extend(reversed(last))


def _alone(editor: Editor, copier: Copier, match: Match, matching: Matching) -> dict[Kind, ir.Value]:
    """What a layer gives on float inputs: by its quantized part; with its weights, its activation alone as codes."""
    held = copier.copy(match.part.nodes, _begin(editor, copier, match, matching))
    values: dict[Kind, ir.Value] = {"added": _real(editor, held[match.part.end], match, {}, copier)}
    if not match.quantizes_activations or match.operands.activation is None or not match.operands.weights:
        return values
    if match.output != match.layer.output:
        return values  # the end is behind an activation, the layer alone is before
    node, replaced = editor.node(match.layer.name), dict[str, ir.Value]()
    for name, operand in match.operands.weights.items():
        replaced[name] = operand.dequantized(editor, copier, held, transposed=match.operands.transposed)
    values["weights"] = _clone(editor, node, match.layer, replaced)
    activation = match.operands.activation.dequantized(editor, copier, held)
    values["activations"] = _clone(editor, node, match.layer, {match.layer.input: activation})
    return values


def _part(editor: Editor, copier: Copier, match: Match, matching: Matching) -> ir.Value:
    """The end of a layer's part of the quantized graph, in real numbers, copied to the float graph's tensors."""
    held = copier.copy(match.part.nodes, _begin(editor, copier, match, matching))
    return _real(editor, held[match.part.end], match, {}, copier)


def _begin(editor: Editor, copier: Copier, match: Match, matching: Matching) -> dict[ir.Value, ir.Value]:
    """The float tensors, as codes where need be, that stand for those at which a part begins."""
    known = {}
    for value in match.part.begins:
        name, codes = matching.stops.get(str(value.name), (str(value.name), None))
        source = editor.value(name)
        if codes is not None:
            constants = [None if one is None else copier.constant(one) for one in codes]
            source = editor.append("QuantizeLinear", [source, *constants], f"{name}.codes")
        known[value] = source
    return known


def _real(
    editor: Editor, value: ir.Value, match: Match, named: Mapping[str, ir.Value], copier: Copier | None = None
) -> ir.Value:
    """A part's end as real numbers."""
    if match.codes is None:
        return value
    parts = [None if one is None else copier.constant(one) if copier else named[str(one.name)] for one in match.codes]
    return editor.append("DequantizeLinear", [value, *parts], f"{match.output}.real")


def _clone(editor: Editor, node: ir.Node, layer: Layer, replaced: Mapping[str, ir.Value]) -> ir.Value:
    """What a float layer gives with some of its inputs replaced."""
    inputs = [None if value is None else replaced.get(str(value.name), value) for value in node.inputs]
    index = next(index for index, value in enumerate(node.outputs) if value.name == layer.output)
    outputs = [ir.Value(name=editor.claim(f"{layer.output}.again")) for _ in node.outputs]
    attributes = list(node.attributes.values())
    copied = ir.Node(node.domain, node.op_type, inputs, attributes, outputs=outputs, name=editor.claim(node.op_type))
    editor.graph.append(copied)
    return outputs[index]


class _Comparing:
    """Adds to a graph the nodes that compare tensors with one float tensor."""

    def __init__(self, editor: Editor, layer: Layer, wanted: ir.Value) -> None:
        self._editor, self._wanted = editor, wanted
        rank = None if wanted.shape is None else len(wanted.shape)
        self._rank = len(layer.shape) if "Conv" in layer.operator else rank
        self._channel = 1 if "Conv" in layer.operator else -1
        self._signal = self._squares(wanted)
        self._size = _expose(editor, editor.append("Size", [wanted], f"{wanted.name}.size"), ir.DataType.INT64)

    def compare(self, given: ir.Value) -> _Reading:
        """Compare another tensor of the same shape."""
        error = self._editor.append("Sub", [given, self._wanted], f"{self._wanted.name}.error")
        totals = None
        if self._rank is not None and self._rank > 1:
            others = [axis for axis in range(self._rank) if axis != self._channel % self._rank]
            totals = _expose(self._editor, self._reduce("ReduceSum", error, others))
        return _Reading(self._signal, self._squares(error), self._size, totals)

    def _squares(self, value: ir.Value) -> str:
        """Sums of squares by row, which are added up in float64; of everything where the rank is unknown."""
        axes = list(range(1, self._rank)) if self._rank is not None and self._rank > 1 else []
        return _expose(self._editor, self._reduce("ReduceSumSquare", value, axes))

    def _reduce(self, operator: str, value: ir.Value, axes: list[int]) -> ir.Value:
        given = [self._editor.constant(f"axes_{'_'.join(map(str, axes))}", np.array(axes, np.int64))] if axes else []
        return self._editor.append(operator, [value, *given], f"{value.name}/{operator}", {"keepdims": 0})


def _expose(editor: Editor, value: ir.Value, data_type: ir.DataType = ir.DataType.FLOAT) -> str:
    value.type = ir.TensorType(data_type)
    editor.graph.outputs.append(value)
    return str(value.name)


def _name(match: Match) -> str:
    return str(match.part.end.name)
