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
from alula.techniques.technique import Context

_FOLDABLE = frozenset({"Conv", "ConvTranspose", "Gemm"})


@dataclass(frozen=True, slots=True)
class FoldBatchNorm:
    """Fold each BatchNormalization into the Conv, ConvTranspose or Gemm before it; the outputs stay the same.

    A normalisation that does not directly follow such a layer stays, and a note says so.
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
            reason = _obstacle(editor, node, layers)
            if reason is None:
                layer = layers[str(node.inputs[0].name)]  # type: ignore[union-attr]
                with at(f"layer {layer.name!r}"):
                    _fold(editor, node, layer)
            else:
                notes.append(Note(str(node.name), f"batch normalisation not folded: {reason}"))
        return model.edited(editor.model, notes)


def _obstacle(editor: Editor, node: ir.Node, layers: dict[str, Layer]) -> str | None:
    """Why this normalisation cannot be folded, or None."""
    source = node.inputs[0]
    assert source is not None
    layer = layers.get(str(source.name))
    if layer is None:
        return "it does not directly follow a selected Conv, ConvTranspose or Gemm"
    if len(source.uses()) > 1 or source.is_graph_output():
        return "something else reads the layer's output too"
    if any(value is None or not value.is_initializer() for value in node.inputs[1:5]):
        return "its parameters are computed, not constant"
    if int(node.attributes.get_int("training_mode", 0)):
        return "it is in training mode"
    if editor.shared(layer.weight):
        return "the layer's weight is read by something else too"
    return _bias_obstacle(editor, editor.node(layer.name), layer, channels=editor.array(str(node.inputs[1].name)).size)  # type: ignore[union-attr]


def _bias_obstacle(editor: Editor, node: ir.Node, layer: Layer, *, channels: int) -> str | None:
    """Why the layer's bias cannot take up the shift of a normalisation, or None."""
    if layer.bias is None and len(node.inputs) > 2 and node.inputs[2] is not None:
        return "the layer's bias is computed, not constant"
    if float(node.attributes.get_float("beta", 1.0)) != 1.0:
        return "the layer's beta is not 1"
    if layer.bias is not None and editor.array(layer.bias).size not in {1, channels}:
        return "the layer's bias is not one number per channel"
    return None


def _fold(editor: Editor, normalisation: ir.Node, layer: Layer) -> None:
    parameters = [str(value.name) for value in normalisation.inputs[1:5]]  # type: ignore[union-attr]
    scale, offset, mean, variance = map(editor.array, parameters)
    node = editor.node(layer.name)
    channel_axis = layer.output_axis if layer.operator != "ConvTranspose" else 1
    weight, bias = fold_batch_norm(
        editor.array(layer.weight),
        None if layer.bias is None else np.broadcast_to(editor.array(layer.bias).ravel(), scale.shape),
        scale=scale,
        offset=offset,
        mean=mean,
        variance=variance,
        epsilon=float(normalisation.attributes.get_float("epsilon", 1e-5)),
        output_axis=channel_axis,
    )
    editor.replace_constant(layer.weight, weight)
    set_bias(editor, node, layer, bias)
    output, result = node.outputs[0], normalisation.outputs[0]
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
