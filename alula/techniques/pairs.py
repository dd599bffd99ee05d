"""The QuantizeLinear and DequantizeLinear behind an activation."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import onnx_ir as ir

from alula.graph.editing import Editor, like, set_input
from alula.numerics.grids import Floats
from alula.techniques.placement import Placement

Parameters: TypeAlias = tuple[Floats, np.ndarray]  # scale and zero point, both of shape ()
_NAMES = ("scale", "zero_point")


def insert_pair(
    editor: Editor,
    tensor: str,
    parameters: Parameters,
    placement: Placement,
    *,
    factors: np.ndarray | None,
    bits: int,
) -> None:
    """Behind a tensor, for those that read its codes; what it holds is divided by ``factors`` before, if there are any.

    Codes of fewer than 8 bits are clipped ones of 8: QuantizeLinear saturates at few widths, and ONNX Runtime's
    optimiser gives those of 4 bits to operators that do not take them.
    """
    value = editor.value(tensor)
    readers = [use.node for use in value.uses()]
    if tensor not in placement.everywhere:
        readers = [node for node in readers if str(node.name) in placement.readers[tensor]]
    exported = tensor in placement.everywhere and value.is_graph_output()
    root = placement.root(tensor)  # one scale for what is only moved, so that training keeps it one
    constants = [editor.constant(f"{root}.{key}", array) for key, array in zip(_NAMES, parameters, strict=True)]
    source, producer = value, value.producer()
    if factors is not None:
        shrink = editor.constant(f"{tensor}.smoothing", (1.0 / factors).astype(np.float32))
        producer = editor.insert("Mul", [value, shrink], f"{tensor}.smooth", after=producer)
        source = producer.outputs[0]
    coded = editor.insert("QuantizeLinear", [source, *constants], f"{tensor}.codes", after=producer)
    if bits < 8:
        coded = _clipped(editor, coded, parameters[1].dtype, bits)
    real = editor.insert("DequantizeLinear", [coded.outputs[0], *constants], f"{tensor}.dequantized", after=coded)
    for node in readers:
        set_input(node, value, real.outputs[0])
    if exported:
        _export_instead(editor, value, real.outputs[0])


def _clipped(editor: Editor, coded: ir.Node, dtype: np.dtype, bits: int) -> ir.Node:
    """Codes held to the grid of fewer bits."""
    low = 0 if dtype.kind == "u" else -(1 << (bits - 1))
    sign = "codes" if low else "unsigned_codes"
    ends = zip(("least", "most"), (low, low + (1 << bits) - 1), strict=True)
    bounds = [editor.constant(f"{sign}.{bits}.{key}", np.array(end, dtype)) for key, end in ends]
    codes = coded.outputs[0]
    return editor.insert("Clip", [codes, *bounds], f"{codes.name}.clipped", after=coded)


def _pair_behind(editor: Editor, tensor: str) -> tuple[ir.Node, ir.Node] | None:
    """The QuantizeLinear and DequantizeLinear that an earlier step left behind a tensor, given what comes after."""
    real = editor.value(tensor).producer()
    coded = real.inputs[0].producer() if real is not None and real.op_type == "DequantizeLinear" else None  # type: ignore[union-attr]
    if coded is not None and coded.op_type == "Clip":
        coded = coded.inputs[0].producer()  # type: ignore[union-attr]
    return (coded, real) if real is not None and coded is not None and coded.op_type == "QuantizeLinear" else None


def parameters_of(editor: Editor, tensor: str) -> Parameters | None:
    """Scale and zero point of a tensor that an earlier step quantized."""
    pair = _pair_behind(editor, tensor)
    if pair is None:
        return None
    scale, zero_point = (editor.array(str(value.name)) for value in pair[1].inputs[1:3])  # type: ignore[union-attr]
    return scale, zero_point


def source_of(editor: Editor, tensor: str) -> str:
    """The name that statistics know a tensor by, which an earlier step may have quantized."""
    pair = _pair_behind(editor, tensor)
    if pair is None or not tensor.endswith(".dequantized"):
        return tensor  # an output of the graph kept its name
    return str(pair[0].inputs[0].name)  # type: ignore[union-attr]


def _export_instead(editor: Editor, value: ir.Value, other: ir.Value) -> None:
    """Let a graph output be another tensor, under the same name."""
    name = str(value.name)
    like(other, value)
    outputs = editor.graph.outputs
    for index, output in enumerate(outputs):
        if output is value:
            outputs[index] = other
    editor.rename(value, f"{name}.float")
    editor.rename(other, name)
