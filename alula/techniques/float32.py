"""Full precision: a graph that computes in float16, or stores its weights so, becomes one in float32."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from alula.graph.editing import Editor, set_input
from alula.graph.layers import Layer
from alula.graph.model import Model, Note
from alula.graph.statistics import Request
from alula.graph.tidy import tidy
from alula.techniques.technique import Context

_HALF, _FULL = ir.DataType.FLOAT16, ir.DataType.FLOAT


@dataclass(frozen=True, slots=True)
class Float32:
    """Compute and store in float32 what the graph has in float16; its inputs and outputs keep their types.

    Integer kernels take float32 around them, and CPU runtimes cast float16 back and forth at each operator. The whole
    main graph is converted, whatever layers are chosen; a graph with bodies of If, Loop or Scan is left, and a note
    says so.
    """

    def requests(self, model: Model, layers: Sequence[Layer]) -> frozenset[Request]:  # noqa: ARG002
        """None: no data is needed."""
        return frozenset()

    def apply(self, model: Model, context: Context) -> Model:  # noqa: ARG002
        """The same graph in float32; the model itself where nothing is in float16."""
        return in_float32(model)


def in_float32(model: Model) -> Model:
    """The same graph in float32; the model itself where nothing is in float16."""
    if not _readers_of_halves(model.graph):
        return model
    if any(True for _ in model.graph.subgraphs()):
        return model.edited(model.edit(), [Note("float16", "stays: bodies of If, Loop or Scan are left as they are")])
    editor = Editor(model.edit())
    _unpack(editor)
    for name in [name for name, value in editor.graph.initializers.items() if value.dtype == _HALF]:
        if not editor.value(name).is_graph_output():
            editor.replace_constant(name, editor.array(name).astype(np.float32))
    for node in list(editor.graph):
        _retype(node)
    for value in [value for value in editor.graph.inputs if value.dtype == _HALF]:
        _cast_input(editor, value)
    for index, value in enumerate(list(editor.graph.outputs)):
        if value.dtype == _HALF and value.producer() is not None:
            _cast_output(editor, index, value)
    for node in editor.graph:
        for value in node.outputs:
            if value.dtype == _HALF and not value.is_graph_output():
                value.type = ir.TensorType(_FULL)  # a clone shares types with its original
    return tidy(model.edited(editor.model))  # casts that change nothing now hide weights


def computes_in_float16(model: Model) -> bool:
    """Whether a weight of the graph is in float16 and read as such."""
    return any(node.op_type != "Cast" for node in _readers_of_halves(model.graph))


def _readers_of_halves(graph: ir.Graph) -> list[ir.Node]:
    return [use.node for value in graph.initializers.values() if value.dtype == _HALF for use in value.uses()]


def _unpack(editor: Editor) -> None:
    """Weights that are only stored in float16, and cast where they are read, in float32."""
    for node in [node for node in _readers_of_halves(editor.graph) if node.op_type == "Cast"]:
        value, stored = node.outputs[0], node.inputs[0]
        if value.dtype != _FULL or value.is_graph_output() or stored is None:
            continue
        name = str(value.name)
        array = editor.array(str(stored.name)).astype(np.float32)
        editor.rename(value, f"{name}.cast")
        value.replace_all_uses_with(editor.constant(name, array))
        editor.remove(node)
        editor.drop_constant(str(stored.name))


def _retype(node: ir.Node) -> None:
    """Let what the node itself says of float16, the target of a Cast or a constant it holds, say float32."""
    if node.op_type == "Cast" and int(node.attributes.get_int("to", 0)) == int(_HALF):
        node.attributes["to"] = ir.AttrInt64("to", int(_FULL))
    for name, attribute in list(node.attributes.items()):
        if attribute.type == ir.AttributeType.TENSOR and attribute.value.dtype == _HALF:
            array = attribute.value.numpy().astype(np.float32)
            node.attributes[name] = ir.AttrTensor(name, ir.tensor(array))


def _cast_input(editor: Editor, value: ir.Value) -> None:
    readers = [use.node for use in value.uses()]
    real = editor.insert("Cast", [value], f"{value.name}.float32", attributes={"to": int(_FULL)}).outputs[0]
    real.shape, real.type = value.shape, ir.TensorType(_FULL)
    for node in readers:
        set_input(node, value, real)


def _cast_output(editor: Editor, index: int, value: ir.Value) -> None:
    name, producer = str(value.name), value.producer()
    half = editor.insert("Cast", [value], f"{name}.float16", after=producer, attributes={"to": int(_HALF)}).outputs[0]
    half.shape, half.type = value.shape, ir.TensorType(_HALF)
    editor.graph.outputs[index] = half
    editor.rename(value, f"{name}.float32")
    editor.rename(half, name)
    value.type = ir.TensorType(_FULL)
