"""Rewriting a graph into the words that a runtime executes fast; what it computes stays the same."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from alula.graph.coded import coded, is_dynamic
from alula.graph.editing import Editor, like, set_input
from alula.graph.model import Model

_INT32 = 2.0**31 - 1

_BLOCKED = frozenset({"MatMul"})  # ONNX Runtime has a kernel that multiplies by the codes of these


def join_recurrences(model: Model) -> Model:
    """Let marked LSTMs on codes be ONNX Runtime's DynamicQuantizeLSTM, which multiplies in integers in every step.

    It puts what is read, and in each step the state, on a grid of 8 bits by their extremes, as no standard operator
    does; so only layers are taken whose mark allows that (``QuantizeDynamic(recurrent=True)``).
    """
    if not any(_is_coded_recurrence(node) for node in model.graph):
        return model
    editor = Editor(model.edit())
    for node in [node for node in editor.graph if _is_coded_recurrence(node)]:
        _join_recurrence(editor, node)
    editor.model.opset_imports["com.microsoft"] = 1
    return model.edited(editor.model)


def _is_coded_recurrence(node: ir.Node) -> bool:
    """Whether a node is an LSTM that may round activations, with int8 codes of one direction for weights."""
    if node.op_type != "LSTM" or node.domain != "" or not is_dynamic(node):
        return False
    weights = [coded(value) for value in node.inputs[1:3]]
    return all(one is not None and not one.block and _shape(one.node.inputs[0])[0] == 1 for one in weights)


def _join_recurrence(editor: Editor, node: ir.Node) -> None:
    """Codes as [1, what is read, gates], and a scale and a zero point for each gate and unit, or for all."""
    given = [*node.inputs, *[None] * (8 - len(node.inputs))]
    parameters = []
    for place in (1, 2):
        source = coded(given[place])
        assert source is not None
        name, scale = source.codes.removesuffix(".codes"), editor.array(source.scale)
        turned = np.ascontiguousarray(editor.array(source.codes).transpose(0, 2, 1))
        scale = scale.reshape(1, -1) if scale.ndim else scale.reshape(1)
        given[place] = editor.constant(f"{name}.turned", turned)
        parameters += [
            editor.constant(f"{name}.scales", scale),
            editor.constant(f"{name}.zeros", np.zeros(scale.shape, np.int8)),
        ]
    sources = [coded(value) for value in node.inputs[1:3]]
    node.resize_inputs(12)
    for place, value in enumerate([*given, *parameters]):
        node.replace_input_with(place, value)
    node.op_type, node.domain = "DynamicQuantizeLSTM", "com.microsoft"
    for one in sources:
        if one is not None and not one.node.outputs[0].uses():
            editor.remove(one.node)
            for initializer in (one.codes, one.scale, one.zero_point):
                if initializer is not None:
                    editor.drop_constant(initializer)


def decode_weights(model: Model) -> Model:
    """Let weight-only codes be decoded once, when the file is loaded, instead of at every run.

    ONNX Runtime folds constants at load, but never a DequantizeLinear: a convolution behind one decodes its weight
    at every run, and is slower than float. Cast, Sub and Mul of the same codes say the same and are folded. Codes that
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


def _constant(value: ir.Value | None, depth: int = 16) -> bool:
    """Whether a value is known at load: an initializer, or computed from such in a few steps (see StoreSparse)."""
    producer = None if value is None else value.producer()
    if producer is None or not depth:
        return value is not None and value.is_initializer()
    return all(_constant(source, depth - 1) for source in producer.inputs if source is not None)


def _spell_out(editor: Editor, node: ir.Node) -> None:
    """(codes - zero point) * scale, in nodes that are folded."""
    codes, scale, *rest = [value for value in node.inputs if value is not None]
    output = node.outputs[0]
    name = str(output.name)
    shape = _shape(codes)
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


def _shape(value: ir.Value | None) -> tuple[int, ...]:
    """The shape of a value that is known at load."""
    assert value is not None
    assert value.shape is not None
    return tuple(int(length) for length in value.shape.numpy())


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


@dataclass(frozen=True, slots=True)
class _BiasedProduct:
    """MatMul of dequantized activations and a dequantized matrix [K, N], and the Add of a constant [N] behind it."""

    product: ir.Node
    activation: ir.Node  # DequantizeLinear
    weight: ir.Node  # DequantizeLinear
    addition: ir.Node
    bias: ir.Value


def join_biases(model: Model) -> Model:
    """Let a matrix product on codes and the bias behind it be one Gemm, which adds the bias in integers.

    ONNX Runtime computes MatMul and Add in two passes, and Gemm in one. Gemm takes matrices, so the leading axes are
    joined before and parted again behind it. The result's shape is not written into the graph: where ONNX Runtime
    knows it, it replaces an addition and the LayerNormalization behind it by a kernel that is slower than the two.
    """
    if not any(_match(node) for node in model.graph):
        return model
    editor = Editor(model.edit())
    for node in list(editor.graph):
        if found := _match(node):
            _join(editor, found)
    return model.edited(editor.model)


def _match(node: ir.Node) -> _BiasedProduct | None:
    if node.op_type != "MatMul" or node.outputs[0].is_graph_output() or len(node.outputs[0].uses()) != 1:
        return None
    activation, weight = (_dequantization(value) for value in node.inputs)
    addition = next(iter(node.outputs[0].uses())).node
    others = [value for value in addition.inputs if value is not node.outputs[0]]
    if activation is None or weight is None or addition.op_type != "Add" or len(others) != 1:
        return None
    bias = others[0]
    vector = _array(bias)
    if vector is None or not _constant(weight.inputs[0]):
        return None
    matrix = _shape(weight.inputs[0])
    if len(matrix) != 2 or vector.shape != matrix[1:]:
        return None
    blocked = int(weight.attributes.get_int("block_size", 0))
    scale = _array(activation.inputs[1])
    fits = vector.dtype == np.float32 and not blocked and scale is not None and scale.ndim == 0
    computed = not _constant(activation.inputs[0])
    return _BiasedProduct(node, activation, weight, addition, bias) if fits and computed and bias is not None else None


def _dequantization(value: ir.Value | None) -> ir.Node | None:
    producer = None if value is None else value.producer()
    return producer if producer is not None and producer.op_type == "DequantizeLinear" else None


def _array(value: ir.Value | None) -> np.ndarray | None:
    """The values of an initializer; None of anything else."""
    return value.const_value.numpy() if value is not None and _constant(value) and value.const_value else None


def _join(editor: Editor, found: _BiasedProduct) -> None:
    """Gemm(rows of codes, codes of the weight, codes of the bias), and back to the shape it had."""
    matrix, vector = _shape(found.weight.inputs[0]), _array(found.bias)
    first, second = _array(found.activation.inputs[1]), _array(found.weight.inputs[1])
    assert vector is not None
    assert first is not None
    assert second is not None
    scale = np.broadcast_to(first * second, vector.shape).astype(np.float32)  # [N]
    codes = np.rint(vector.astype(np.float64) / scale)  # [N]
    if not (np.abs(codes) < _INT32).all():
        return
    node, name = found.product, str(found.addition.outputs[0].name)
    constants = [
        editor.constant(f"{name}.bias.codes", codes.astype(np.int32)),
        editor.constant(f"{name}.bias.scale", scale),
    ]
    bias = editor.insert("DequantizeLinear", constants, f"{name}.bias", before=node, attributes={"axis": 0}).outputs
    source = found.activation.inputs[0]
    assert source is not None
    flat = _reshape(editor, source, (-1, matrix[0]), f"{name}.flat", node)
    rows = editor.insert("DequantizeLinear", [flat, *found.activation.inputs[1:]], f"{name}.rows", before=node).outputs
    product = editor.insert("Gemm", [*rows, node.inputs[1], *bias], f"{name}.matrix", before=node)
    leading = editor.insert("Shape", [source], f"{name}.axes", before=node, attributes={"end": -1}).outputs
    columns = editor.constant(f"{name}.columns", np.array([matrix[1]]))
    shape = editor.insert("Concat", [*leading, columns], f"{name}.shape", before=node, attributes={"axis": 0}).outputs
    result = editor.insert("Reshape", [*product.outputs, *shape], f"{name}.parted", before=node).outputs[0]
    if found.addition.outputs[0].is_graph_output():
        like(result, found.addition.outputs[0])
    found.addition.outputs[0].replace_all_uses_with(result, replace_graph_outputs=True)
    editor.remove(found.addition)
    editor.remove(node)
    product.name = node.name  # profilers know a layer by it
    editor.rename(result, name)
    editor.drop_constant(str(found.bias.name))
    if not found.activation.outputs[0].uses():
        editor.remove(found.activation)
