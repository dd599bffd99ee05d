"""Rewriting a graph into the words that a runtime executes fast; what it computes stays the same."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from alula.graph.editing import Editor, set_input
from alula.graph.model import Model

_BLOCKED = frozenset({"MatMul"})  # ONNX Runtime has a kernel that multiplies by the codes of these


def decode_weights(model: Model) -> Model:
    """Let weight-only codes be decoded once, when the file is loaded, instead of at every run.

    ONNX Runtime folds constants at load, but never a DequantizeLinear: a convolution behind one decodes its weight
    at every run, 2.6x slower than float. Cast, Sub and Mul of the same codes say the same and are folded. Codes that
    an integer kernel reads, beside quantized activations or in a MatMul, are left.
    """
    if not any(_decodes_each_run(node) for node in model.graph):
        return model
    editor = Editor(model.edit())
    for node in [node for node in editor.graph if _decodes_each_run(node)]:
        _spell_out(editor, node)
    return model.edited(editor.model)


def _decodes_each_run(node: ir.Node) -> bool:
    """Whether this DequantizeLinear of constant codes feeds only nodes that compute in float."""
    if node.op_type != "DequantizeLinear" or not _constant(node.inputs[0]):
        return False
    users = [use.node for use in node.outputs[0].uses()]
    return bool(users) and not any(user.op_type in _BLOCKED or _computes_on_codes(user) for user in users)


def _computes_on_codes(node: ir.Node) -> bool:
    """Whether an input of the node is a quantized activation."""
    producers = [value.producer() for value in node.inputs if value is not None]
    return any(
        producer is not None and producer.op_type == "DequantizeLinear" and not _constant(producer.inputs[0])
        for producer in producers
    )


def _constant(value: ir.Value | None) -> bool:
    return value is not None and value.is_initializer()


def _spell_out(editor: Editor, node: ir.Node) -> None:
    """(codes - zero point) * scale, in nodes that are folded."""
    codes, scale, *rest = [value for value in node.inputs if value is not None]
    output = node.outputs[0]
    name = str(output.name)
    shape = editor.array(str(codes.name)).shape
    parameter = _parameter_shape(node, shape, editor.array(str(scale.name)).shape)
    split = _split_shape(node, shape)
    real = editor.insert("Cast", [codes], f"{name}.real", before=node, attributes={"to": 1}).outputs[0]
    if split is not None:
        real = _reshape(editor, real, split, f"{name}.blocks", node)
    if rest:
        zeros = editor.array(str(rest[0].name)).astype(np.float32).reshape(parameter)
        if zeros.any():
            offset = editor.constant(f"{name}.offset", zeros)
            real = editor.insert("Sub", [real, offset], f"{name}.moved", before=node).outputs[0]
    factors = editor.constant(f"{name}.factors", editor.array(str(scale.name)).reshape(parameter))
    real = editor.insert("Mul", [real, factors], f"{name}.product", before=node).outputs[0]
    if split is not None:
        real = _reshape(editor, real, shape, f"{name}.whole", node)
    for user in [use.node for use in output.uses()]:
        set_input(user, output, real)
    editor.remove(node)
    for value in (scale, *rest):
        editor.drop_constant(str(value.name))


def _reshape(editor: Editor, value: ir.Value, shape: tuple[int, ...], name: str, before: ir.Node) -> ir.Value:
    target = editor.constant(f"{name}.shape", np.array(shape, np.int64))
    return editor.insert("Reshape", [value, target], name, before=before).outputs[0]


def _split_shape(node: ir.Node, shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """The shape with the blocked axis split in two, or None where scales are not per block."""
    block = int(node.attributes.get_int("block_size", 0))
    if not block:
        return None
    axis = int(node.attributes.get_int("axis", 1)) % len(shape)
    return (*shape[:axis], shape[axis] // block, block, *shape[axis + 1 :])


def _parameter_shape(node: ir.Node, shape: tuple[int, ...], scale: tuple[int, ...]) -> tuple[int, ...]:
    """The shape in which scale and zero point broadcast with the (split) codes."""
    if not scale or not shape:
        return ()
    axis = int(node.attributes.get_int("axis", 1)) % len(shape)
    if _split_shape(node, shape) is not None:
        return (*scale[: axis + 1], 1, *scale[axis + 1 :])
    return tuple(-1 if index == axis else 1 for index in range(len(shape)))
