"""Batch normalisation behind a layer whose weight is held as codes: the scales take it up, and the codes stay.

So what quantization-aware training leaves, with normalisations that were trained as such, becomes what runs in integers
without rounding anything again.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from alula.graph.coded import Coded, coded
from alula.graph.editing import Editor
from alula.graph.known import producer_of
from alula.numerics.folding import fold_batch_norm
from alula.techniques.biases import add_bias, addend_of, bias_of, put_bias, take_bias


@dataclass(frozen=True, slots=True)
class Normalisation:
    """Parameters of a batch normalisation: gamma, beta, running mean and variance, [channels] each."""

    scale: np.ndarray
    offset: np.ndarray
    mean: np.ndarray
    variance: np.ndarray
    epsilon: float


def codes_before(normalisation: ir.Node) -> tuple[ir.Node, Coded] | None:
    """The Conv or Gemm right before a normalisation and its weight, where that is held as codes."""
    node = producer_of(normalisation.inputs[0])
    if node is not None and node.op_type == "Add":
        layers = (one for one in map(producer_of, node.inputs) if one is not None)
        node = next((one for one in layers if addend_of(one) is not None), None)
    weight = None if node is None or node.op_type not in {"Conv", "Gemm"} else coded(node.inputs[1])
    return None if node is None or weight is None else (node, weight)


def codes_obstacle(editor: Editor, node: ir.Node, weight: Coded, by: Normalisation) -> str | None:
    """Why the scales of a weight cannot take up a normalisation, or None."""
    if editor.shared(str(node.inputs[1].name)) or any(  # type: ignore[union-attr]
        editor.shared(name) for name in (weight.codes, weight.scale)
    ):
        return "the layer's weight is read by something else too"
    if float(node.attributes.get_float("beta", 1.0)) != 1.0:
        return "the layer's beta is not 1"
    if len(node.inputs) > 2 and node.inputs[2] is not None and bias_of(editor, node) is None:
        return "the layer's bias is computed, not constant"
    steps = editor.array(weight.scale)
    if steps.size > 1 and not weight.block and weight.axis % editor.array(weight.codes).ndim != _output_axis(node):
        return "its weight has no scale per output channel"
    if _turned(editor, weight, by.scale, _output_axis(node)) is None:
        return "a factor of it is not positive, and the least code, or one with an offset, has no opposite"
    return None


def fold_into_codes(editor: Editor, node: ir.Node, weight: Coded, by: Normalisation) -> None:
    """Let the scales of a weight, and the bias, take up a normalisation.

    Raises:
        DataError: the folded numbers are not finite, or the channels do not fit.
    """
    axis, channels = _output_axis(node), by.scale.size
    steps = editor.array(weight.scale)
    steps = np.broadcast_to(steps.ravel(), channels) if steps.size == 1 else steps
    addend = addend_of(node)
    bias = bias_of(editor, node) if addend is None else editor.array(str(addend.name))
    bias = None if bias is None else np.broadcast_to(bias.ravel(), channels)
    folded, shift = fold_batch_norm(steps, bias, scale=by.scale, offset=by.offset, mean=by.mean, variance=by.variance,
                                    epsilon=by.epsilon, output_axis=axis if steps.ndim > 1 else 0)  # fmt: skip
    turned = _turned(editor, weight, by.scale, axis)
    assert turned is not None  # no obstacle
    editor.replace_constant(weight.codes, turned)
    scale = np.where(folded == 0, steps, np.abs(folded)).astype(np.float32)
    editor.replace_constant(weight.scale, scale)
    if weight.zero_point is not None:
        zero = editor.array(weight.zero_point)
        editor.replace_constant(weight.zero_point, np.broadcast_to(zero, folded.shape).copy())
    if not weight.block:
        weight.node.attributes["axis"] = ir.AttrInt64("axis", axis)
    if addend is None:
        _put_shift(editor, node, weight, shift.astype(np.float32), scale)
    else:
        shape = [-1, *(1 for _ in editor.array(str(addend.name)).shape[1:])]
        editor.replace_constant(str(addend.name), shift.astype(np.float32).reshape(shape))


def _put_shift(editor: Editor, node: ir.Node, weight: Coded, shift: np.ndarray, steps: np.ndarray) -> None:
    """The bias: on the grid of the sums where there is one."""
    name = f"{str(node.inputs[1].name).removesuffix('.weight')}.bias"  # type: ignore[union-attr]
    read = producer_of(node.inputs[0])
    source = read.inputs[1] if read is not None and read.op_type == "DequantizeLinear" else None
    steady = source is not None and source.is_initializer() and editor.array(str(source.name)).size == 1
    if _is_narrow(editor, weight, read):
        add_bias(editor, node, name, shift)
    elif weight.block or not steady:
        take_bias(editor, node)
        node.replace_input_with(2, editor.constant(name, shift))
    else:
        put_bias(editor, node, name, shift, (editor.array(str(source.name)), steps))  # type: ignore[union-attr]


def _is_narrow(editor: Editor, weight: Coded, read: ir.Node | None) -> bool:
    """Whether weights or activations have so few bits that nothing sums in integers: a bias needs a finer grid."""
    made = None if read is None else producer_of(read.inputs[0])
    clipped = made is not None and made.op_type == "Clip"
    return clipped or editor.array(weight.codes).dtype.name in {"int4", "uint4"}


def _turned(editor: Editor, weight: Coded, factors: np.ndarray, axis: int) -> np.ndarray | None:
    """The codes times the sign of each channel's factor; None where they would leave their type, or have an offset."""
    codes = editor.array(weight.codes)
    if weight.zero_point is not None and editor.array(weight.zero_point).astype(np.int64).any():
        return codes if (factors > 0).all() else None
    shape = [-1 if index == axis else 1 for index in range(codes.ndim)]
    turned = codes.astype(np.int64) * np.sign(factors).astype(np.int64).reshape(shape)
    stored: np.ndarray = turned.astype(codes.dtype)
    return stored if (stored.astype(np.int64) == turned).all() else None


def _output_axis(node: ir.Node) -> int:
    return 1 if node.op_type == "Gemm" and not node.attributes.get_int("transB", 0) else 0
