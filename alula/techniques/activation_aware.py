"""Activation-aware scaling: weights that meet large inputs are given finer steps, before all are rounded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import onnx_ir as ir

from alula.errors import at
from alula.graph.editing import Editor
from alula.graph.layers import Layer
from alula.graph.matrices import from_matrix, weight_matrix
from alula.graph.model import Model, Note
from alula.graph.rescaling import Multiple, multiples_behind
from alula.graph.statistics import AnyRequest, MomentRequest, Statistics
from alula.numerics.activation_aware import Protection, harm_of_rounding, protecting_factors
from alula.settings import check_rules, check_settings
from alula.techniques.compensation import moments_of, why_no_moments
from alula.techniques.smoothing import reads_rows
from alula.techniques.technique import Context, other_type
from alula.techniques.weights import QuantizeWeights


@dataclass(frozen=True, slots=True)
class ActivationAware:
    """Multiply what a layer's weights have for each input, and divide the input, so that rounding them harms least.

    To be put before :class:`QuantizeWeights` with the same bits, block and so on; by itself it changes no output. The
    division is folded into what computes the input: gain and bias of a normalisation, or a layer in front, where only
    operators lie between that keep a factor (:mod:`alula.graph.rescaling`). Where it cannot be, or where not all that
    reads the input can be scaled, all stays, and a note says so.

    Attributes:
        bits: of the weights, as in QuantizeWeights.
        block: weights that share a scale along the summed axis; None for one scale per output channel.
        symmetric: the zero point is 0.
        search: each range is found by least squared error instead of the extremes.
        points: exponents tried for each tensor, from 0, which scales nothing, to below 1.
    """

    bits: int = 4
    block: int | None = 32
    symmetric: bool = True
    search: bool = True
    points: int = 20

    def __post_init__(self) -> None:
        check_settings(self)
        check_rules(self, [("points", "at least 1", self.points >= 1)])
        self._rounding()

    def _rounding(self) -> QuantizeWeights:
        return QuantizeWeights(self.bits, self.block, self.symmetric, self.search)

    def requests(self, model: Model, layers: Sequence[Layer]) -> frozenset[AnyRequest]:
        """Second moments of what the layers read that can be scaled."""
        found, _ = _inputs(Editor(model.edit()), model, layers)
        return frozenset(MomentRequest(layer.name) for one in found for layer in one.readers)

    def apply(self, model: Model, context: Context) -> Model:
        """Scale the inputs of the context's layers.

        Raises:
            DataError: a weight is NaN or infinite (the layer is named).
            ModelError: second moments were not collected.
        """
        editor = Editor(model.edit())
        inputs, notes = _inputs(editor, model, context.layers)
        chosen = [self._protection(model, one, context.statistics) for one in inputs]
        for one, protection in zip(inputs, chosen, strict=True):
            if protection.exponent > 0:
                one.scale(editor, protection.factors)
            notes.append(_told(one, protection))
        return model.edited(editor.model, notes)

    def _protection(self, model: Model, one: _Input, statistics: Statistics) -> Protection:
        """The factors that harm the layers least, all together, that read an input."""
        moments = [moments_of(statistics, layer)[0] for layer in one.readers]  # [k, k] each
        matrices = [weight_matrix(model.weight(layer.weight), layer)[0] for layer in one.readers]  # [out, k] each
        roundings = [partial(_on_grid, layer, self._rounding()) for layer in one.readers]

        def harm(factors: np.ndarray) -> float:
            parts = zip(matrices, moments, roundings, strict=True)
            return sum(harm_of_rounding(matrix, seen, factors, rounded) for matrix, seen, rounded in parts)

        size = np.sqrt(np.mean([np.diag(seen) for seen in moments], axis=0))  # [k]
        return protecting_factors(size, harm, self.points)


@dataclass(frozen=True, slots=True, eq=False)
class _Input:
    """A tensor that can be scaled: the layers that read it, and the constants that it is a multiple of."""

    tensor: str
    readers: tuple[Layer, ...]
    multiples: tuple[Multiple, ...]

    def scale(self, editor: Editor, factors: np.ndarray) -> None:
        """Divide what is read, multiply what reads: [k]."""
        for multiple in self.multiples:
            editor.replace_constant(multiple.initializer, multiple.divided(editor.array(multiple.initializer), factors))
        for layer in self.readers:
            weight = editor.array(layer.weight)
            scaled = weight_matrix(weight, layer) * factors
            editor.replace_constant(layer.weight, from_matrix(scaled, layer).astype(weight.dtype))


def _inputs(editor: Editor, model: Model, layers: Sequence[Layer]) -> tuple[list[_Input], list[Note]]:
    """The tensors to scale, and why the others are not."""
    chosen = {layer.name: layer for layer in layers}
    fixed = {name for layer in model.layers() if layer.name not in chosen for name in layer.weights}
    found, notes = [], []
    for tensor in dict.fromkeys(layer.input for layer in layers if layer.operator != "Gather"):
        value = editor.value(tensor)
        readers = _readers(editor, value, chosen)
        reason = readers if isinstance(readers, str) else None
        if not isinstance(readers, str):
            axis = 1 if readers[0].operator == "Conv" else -1
            multiples = multiples_behind(editor.graph, value, axis, fixed=fixed)
            if isinstance(multiples, str):
                reason = multiples
            else:
                found.append(_Input(tensor, readers, multiples))
        if reason is not None:
            notes.append(Note(tensor, f"is not scaled: {reason}"))
    return found, notes


def _readers(editor: Editor, value: ir.Value, chosen: Mapping[str, Layer]) -> tuple[Layer, ...] | str:
    """The layers that are all that reads a tensor, or why it stays."""
    if value.is_graph_output():
        return "it is an output of the graph"
    nodes = [use.node for use in value.uses()]
    for node in nodes:
        layer = chosen.get(str(node.name)) if node.graph is editor.graph and nodes.count(node) == 1 else None
        if layer is None or layer.input != value.name:
            return f"{node.name or node.op_type} reads it too, and cannot be scaled or is not to be"
        reason = _obstacle(editor, layer)
        if reason is not None:
            return f"of {layer.name}, which reads it, {reason}"
    readers = tuple(chosen[str(node.name)] for node in nodes)
    if len({layer.operator == "Conv" for layer in readers}) > 1:
        return "its channels are along another axis for each of its readers"
    return readers


def _obstacle(editor: Editor, layer: Layer) -> str | None:
    """Why a layer cannot be scaled by what it reads, or None."""
    pointwise = layer.operator == "Conv" and layer.groups == 1 and set(layer.shape[2:]) == {1}
    if not pointwise and not reads_rows(layer):
        return f"the weight of shape {list(layer.shape)} is no matrix with a column for each channel"
    if editor.shared(layer.weight):
        return "the weight is read elsewhere too"
    return other_type(editor.graph, layer) or why_no_moments(layer)


def _on_grid(layer: Layer, rounding: QuantizeWeights, matrix: np.ndarray) -> np.ndarray:  # [out, k] -> [out, k]
    with at(f"layer {layer.name!r}"):
        quantized = rounding.nearest(from_matrix(matrix[None], layer), layer)
    return np.asarray(weight_matrix(quantized.dequantize(), layer)[0])


def _told(one: _Input, protection: Protection) -> Note:
    readers, folded = (", ".join(names) for names in (
        [layer.name for layer in one.readers], [multiple.initializer for multiple in one.multiples]))  # fmt: skip
    if protection.exponent == 0:
        return Note(one.tensor, f"is not scaled: that would not help to round {readers}")
    share = protection.harm / protection.before
    return Note(
        one.tensor,
        f"divided by its size^{protection.exponent:.3g}, in {folded}; rounding {readers}, which make up for it, "
        f"errs {share:.3g} times as much in squares as before",
    )
