"""A piece of a graph as a graph of its own, and its weights, or all of it, back in the whole."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import onnx_ir as ir
from onnx_ir import convenience

from alula.errors import ModelError
from alula.graph.editing import Editor
from alula.graph.model import Model, Note
from alula.graph.slices import Copier


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
        _typed(value)
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


def copy_out(model: Model, nodes: Iterable[ir.Node], inputs: Iterable[ir.Value], outputs: Iterable[ir.Value]) -> Model:
    """Nodes of a graph, in their order, as a graph of their own; what they read is among the inputs, or constant.

    Unlike :func:`cut_out` it looks at nothing else of the graph, so that many small pieces of a large one cost little.
    """
    editor, known = _blank(model, inputs)
    found = Copier(editor, "").copy(nodes, known)
    editor.graph.outputs.extend(_typed(found[value]) for value in outputs)
    return Model(editor.model)


def substitute(model: Model, pieces: Mapping[str, Model]) -> Model:
    """The graph with others in place of some nodes, each of which gives the same tensors of the same inputs.

    Args:
        model: the graph, without bodies of If, Loop or Scan.
        pieces: what stands for a node, by the node's name; under each name what stands for several, which read the
            same. Tensors of the same name are the same.
    """
    editor, found = _blank(model, model.graph.inputs)
    copier, notes, placed = Copier(editor, ""), list[Note](), set[int]()
    values = {str(value.name): value for node in model.graph for value in node.outputs}
    for node in model.graph:
        piece = pieces.get(str(node.name))
        if piece is None:
            found = copier.copy([node], found)
            continue
        if id(piece) in placed:
            continue
        placed.add(id(piece))
        named = {str(value.name): value for value in node.inputs if value is not None}
        inner = Copier(editor, "")
        given = {value: found[named[str(value.name)]] for value in piece.graph.inputs}
        made = inner.copy(piece.graph, given)
        found |= {values[str(value.name)]: made[value] for value in piece.graph.outputs}
        notes += piece.notes
    editor.graph.outputs.extend(found.get(value) or copier.constant(value) for value in model.graph.outputs)
    editor.model.ir_version = max([model.ir_version, *(piece.ir_version for piece in pieces.values())])
    return model.edited(editor.model, notes)


def _blank(model: Model, inputs: Iterable[ir.Value]) -> tuple[Editor, dict[ir.Value, ir.Value]]:
    """A graph of inputs alone, and what stands for each."""
    known = {value: _typed(ir.Value(name=value.name, type=value.type, shape=value.shape)) for value in inputs}
    graph = ir.Graph(
        list(known.values()), [], nodes=[], opset_imports=dict(model.graph.opset_imports), name=model.graph.name
    )
    blank = ir.Model(graph, ir_version=model.ir_version)
    blank.metadata_props.update(model.metadata)
    return Editor(blank), known


def _typed(value: ir.Value) -> ir.Value:
    if value.dtype is None:
        value.type = ir.TensorType(ir.DataType.FLOAT)
    return value
