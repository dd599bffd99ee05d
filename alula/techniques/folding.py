"""Batch normalisation that follows a layer becomes part of the layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from alula.errors import at
from alula.graph.editing import Editor, like
from alula.graph.layers import Layer
from alula.graph.model import Model, Note
from alula.graph.statistics import Request
from alula.numerics.folding import fold_batch_norm
from alula.techniques.folding_codes import Normalisation, codes_before, codes_obstacle, fold_into_codes
from alula.techniques.technique import Context

_FOLDABLE = frozenset({"Conv", "ConvTranspose", "Gemm"})


@dataclass(frozen=True, slots=True)
class FoldBatchNorm:
    """Fold each BatchNormalization into the Conv, ConvTranspose or Gemm before it; the outputs stay the same.

    Where the layer's weight is held as codes, its scales take the normalisation up and the codes stay. A normalisation
    that does not directly follow such a layer stays, and a note says so.
    """

    def requests(self, model: Model, layers: Sequence[Layer]) -> frozenset[Request]:  # noqa: ARG002
        """None: folding needs no data."""
        return frozenset()

    def apply(self, model: Model, context: Context) -> Model:
        """Fold what can be folded."""
        editor = Editor(model.edit())
        layers = {layer.output: layer for layer in context.layers if layer.operator in _FOLDABLE}
        notes = []
        for node in [node for node in editor.graph if node.op_type == "BatchNormalization"]:
            reason = _obstacle(editor, node) or _folded(editor, node, layers.get(str(node.inputs[0].name)))  # type: ignore[union-attr]
            if reason is not None:
                notes.append(Note(str(node.name), f"batch normalisation not folded: {reason}"))
        return model.edited(editor.model, notes)


def _obstacle(editor: Editor, node: ir.Node) -> str | None:
    """Why this normalisation can be folded into nothing, or None."""
    source = node.inputs[0]
    assert source is not None
    if editor.shared(str(source.name)):
        return "something else reads the layer's output too"
    if any(value is None or not value.is_initializer() for value in node.inputs[1:5]):
        return "its parameters are computed, not constant"
    return "it is in training mode" if int(node.attributes.get_int("training_mode", 0)) else None


def _folded(editor: Editor, node: ir.Node, layer: Layer | None) -> str | None:
    """Fold a normalisation into the layer before it; or why it stays."""
    names = [str(value.name) for value in node.inputs[1:5]]  # type: ignore[union-attr]
    scale, offset, mean, variance = map(editor.array, names)
    by = Normalisation(scale, offset, mean, variance, float(node.attributes.get_float("epsilon", 1e-5)))
    held = codes_before(node)
    if held is not None:
        reason = codes_obstacle(editor, *held, by)
        if reason is None:
            with at(f"layer {held[0].name!r}"):
                fold_into_codes(editor, *held, by)
    elif layer is None:
        reason = "it does not directly follow a selected Conv, ConvTranspose or Gemm"
    else:
        reason = _layer_obstacle(editor, layer, by)
        if reason is None:
            with at(f"layer {layer.name!r}"):
                _fold(editor, layer, by)
    if reason is None:
        _take_out(editor, node, names)
    return reason


def _layer_obstacle(editor: Editor, layer: Layer, by: Normalisation) -> str | None:
    if editor.shared(layer.weight):
        return "the layer's weight is read by something else too"
    return _bias_obstacle(editor, editor.node(layer.name), layer, channels=by.scale.size)


def _bias_obstacle(editor: Editor, node: ir.Node, layer: Layer, *, channels: int) -> str | None:
    """Why the layer's bias cannot take up the shift of a normalisation, or None."""
    if layer.bias is None and len(node.inputs) > 2 and node.inputs[2] is not None:
        return "the layer's bias is computed, not constant"
    if float(node.attributes.get_float("beta", 1.0)) != 1.0:
        return "the layer's beta is not 1"
    if layer.bias is not None and editor.array(layer.bias).size not in {1, channels}:
        return "the layer's bias is not one number per channel"
    return None


def _fold(editor: Editor, layer: Layer, by: Normalisation) -> None:
    weight, bias = fold_batch_norm(
        editor.array(layer.weight),
        None if layer.bias is None else np.broadcast_to(editor.array(layer.bias).ravel(), by.scale.shape),
        scale=by.scale,
        offset=by.offset,
        mean=by.mean,
        variance=by.variance,
        epsilon=by.epsilon,
        output_axis=layer.output_axis if layer.operator != "ConvTranspose" else 1,
    )
    editor.replace_constant(layer.weight, weight)
    set_bias(editor, editor.node(layer.name), layer, bias)


def _take_out(editor: Editor, normalisation: ir.Node, parameters: Sequence[str]) -> None:
    """Let the layer's output be that of the normalisation, under its name."""
    output, result = normalisation.inputs[0], normalisation.outputs[0]
    assert output is not None
    name = str(result.name)
    result.replace_all_uses_with(output, replace_graph_outputs=True)
    editor.remove(normalisation)
    for parameter in set(parameters) & set(editor.graph.initializers):
        editor.drop_constant(parameter)
    editor.rename(output, name)
    like(output, result)


def set_bias(editor: Editor, node: ir.Node, layer: Layer, bias: np.ndarray) -> None:
    """Give a Conv, ConvTranspose or Gemm this bias, leaving a bias that is shared with other nodes alone."""
    if layer.bias is not None and not editor.shared(layer.bias):
        editor.replace_constant(layer.bias, bias)
        return
    value = editor.constant(f"{layer.weight.removesuffix('.weight')}.bias", bias)
    if len(node.inputs) < 3:
        node.resize_inputs(3)
    node.replace_input_with(2, value)
