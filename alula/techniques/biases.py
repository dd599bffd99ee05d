"""The bias of a layer that computes on codes: int32, on the grid of the sums that it joins."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import ArrayLike

from alula.graph.coded import coded
from alula.graph.editing import Editor, like, set_input
from alula.numerics.grids import bias_scale


def put_bias(editor: Editor, node: ir.Node, name: str, bias: np.ndarray, factors: tuple[ArrayLike, ArrayLike]) -> None:
    """Give a Conv or Gemm this bias: as codes where they are exact enough, else as float32.

    Args:
        editor: of the graph.
        node: the Conv or Gemm, with codes for its input and its weight.
        name: what the initializers are called after.
        bias: float, one number per channel as a rule.
        factors: scales of the input, (), and of the weight, () or [channels]: their product is the grid of the sums.
    """
    take_bias(editor, node)
    scale = bias_scale(*factors)
    wanted = np.asarray(factors[0], np.float64) * np.asarray(factors[1], np.float64)
    exact = np.allclose(scale, wanted, rtol=1e-6, atol=0)  # else runtimes would flush it, or it overflows
    joins = exact and alpha_of(node) == 1.0 and bias.ndim == 1 and scale.size in {1, bias.size}
    if not joins or (np.abs(bias) > wanted * (2**31 - 1)).any():
        node.replace_input_with(2, editor.constant(name, bias.astype(np.float32)))
        return
    codes = np.rint(bias / scale.astype(np.float64)).astype(np.int32)
    inputs = [editor.constant(f"{name}.codes", codes), editor.constant(f"{name}.scale", scale)]
    dequantized = editor.insert("DequantizeLinear", inputs, f"{name}.dequantized", before=node, attributes={"axis": 0})
    node.replace_input_with(2, dequantized.outputs[0])


def add_bias(editor: Editor, node: ir.Node, name: str, bias: np.ndarray) -> None:
    """Let an Add behind a Conv or Gemm bring the bias, in float32; what the layer gave keeps its name.

    ONNX Runtime rounds a float bias of a layer of codes to the grid of the sums, which is wide where codes have few
    bits; it leaves an Add alone.
    """
    take_bias(editor, node)
    value = node.outputs[0]
    given, spatial = str(value.name), len(value.shape or ()) - 2 if node.op_type == "Conv" else 0
    whole = bias.astype(np.float32) * np.float32(node.attributes.get_float("beta", 1.0))
    addend = editor.constant(name, whole.reshape(*whole.shape, *(1,) * max(spatial, 0)))
    behind = editor.insert("Add", [value, addend], f"{given}.biased", after=node)
    made = behind.outputs[0]
    like(made, value)
    value.replace_all_uses_with(made, replace_graph_outputs=True)
    set_input(behind, made, value)
    editor.rename(value, f"{given}.unbiased")
    editor.rename(made, given)


def addend_of(node: ir.Node) -> ir.Value | None:
    """The constant that an Add right behind a layer brings it as its bias (:func:`add_bias`), or None."""
    uses = node.outputs[0].uses()
    behind = next(iter(uses)).node if len(uses) == 1 and not node.outputs[0].is_graph_output() else None
    if behind is None or behind.op_type != "Add" or (len(node.inputs) > 2 and node.inputs[2] is not None):
        return None
    constants = [value for value in behind.inputs if value is not None and value.is_initializer()]
    return constants[0] if len(constants) == 1 and len(constants[0].uses()) == 1 else None


def bias_of(editor: Editor, node: ir.Node) -> np.ndarray | None:
    """The constant bias of a node, read from its codes where it has such; None: there is none, or it is computed."""
    value = node.inputs[2] if len(node.inputs) > 2 else None
    held = coded(value)
    if held is not None:
        return held.values(editor)
    return editor.array(str(value.name)) if value is not None and value.is_initializer() else None


def take_bias(editor: Editor, node: ir.Node) -> None:
    """Leave a node without a bias, and the graph without what made it, where nothing else reads that."""
    if len(node.inputs) < 3:
        node.resize_inputs(3)
    value = node.inputs[2]
    held = coded(value)
    node.replace_input_with(2, None)
    if value is None or value.uses():
        return
    names = [str(value.name)] if held is None else [held.codes, held.scale]
    if held is not None:
        editor.remove(held.node)
    for name in names:
        if name in editor.graph.initializers:
            editor.drop_constant(name)


def alpha_of(node: ir.Node) -> float:
    """What the product of a Gemm weighs, as a multiple of its bias."""
    return float(node.attributes.get_float("alpha", 1.0)) / float(node.attributes.get_float("beta", 1.0))
