"""A piece of a graph as a graph of its own, and its weights back in the whole."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from onnx_ir import convenience

from alula.errors import ModelError
from alula.graph.editing import Editor
from alula.graph.model import Model


def cut_out(model: Model, inputs: Sequence[str], outputs: Sequence[str]) -> Model:
    """What a graph computes between tensors: a graph that takes the first and gives the second, under their names.

    Raises:
        ModelError: there is no tensor of a name, or the outputs depend on more than the inputs.
    """
    whole = model.edit()
    values = {str(value.name): value for node in whole.graph for value in node.outputs}
    values |= {str(value.name): value for value in whole.graph.inputs}
    for name in (*inputs, *outputs):
        if name not in values:
            raise ModelError(f"the graph computes no tensor {name!r}; nothing can be cut out there")
    try:
        piece = convenience.extract(whole.graph, list(inputs), list(outputs))
    except ValueError as error:
        raise ModelError(
            f"what leads to {', '.join(outputs)} reads more than {', '.join(inputs)}; name all that goes in ({error})"
        ) from error
    used = {value for node in piece.all_nodes() for value in node.inputs if value is not None}
    for name in [name for name, value in piece.initializers.items() if value not in used]:
        del piece.initializers[name]
    for value in (*piece.inputs, *piece.outputs):
        if value.dtype is None:
            value.type = ir.TensorType(ir.DataType.FLOAT)
    return Model(ir.Model(piece, ir_version=whole.ir_version, producer_name=whole.producer_name))


def graft(model: Model, piece: Model) -> Model:
    """The graph with the weights of a piece that was cut out of it and trained."""
    editor = Editor(model.edit())
    for name in piece.graph.initializers:
        if name not in model.graph.initializers:
            raise ModelError(f"the graph has no weight {name!r}; the piece was not cut out of it")
        if not np.array_equal(piece.weight(name), model.weight(name)):
            editor.replace_constant(name, piece.weight(name))
    return model.edited(editor.model)
