"""Tidying: constants folded, identities and dead nodes gone, weights in plain sight under their own names."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from alula.graph.fold import UNKNOWN, Folder, constant_value, known_axes
from alula.graph.forms import join_pads, pool_means
from alula.graph.model import Model
from alula.graph.rearranging import join_transposes, split_sequences
from alula.graph.shapes import annotate_shapes, settle_lengths

BLOCKS = "alula.blocks"  # metadata of a folded weight: the blocks of the original's first axis, in their order now
_ROUNDS = 8  # each round of folding may teach shape inference something; real graphs need two or three


def tidy(model: Model) -> Model:
    """An equal model without what only clutters: what techniques look for stands in plain sight.

    Constant nodes become initializers; what is computed from constants alone is folded, weights where the file does not
    grow by it; Identity, Dropout, casts and transposes that change nothing, and everything unused go; splits by way of
    a sequence become Split. A weight that was transposed, reshaped or cut keeps its name; its metadata says how its
    axes lie now (``alula.transposed``) or in what order its blocks (``alula.blocks``). Bodies of If, Loop and Scan are
    left as they are.
    """
    graph = model.edit()
    tidy_graph(graph)
    return model.edited(graph)


def tidy_graph(model: ir.Model) -> None:
    """:func:`tidy`, in place, of a copy that nobody else holds."""
    lift_constants(model.graph)
    folder = Folder(model)
    original = {name: value.const_value for name, value in model.graph.initializers.items()}
    for _ in range(_ROUNDS):
        annotate_shapes(model)
        _settle_casts(model.graph)
        changes = split_sequences(model.graph) + join_transposes(model.graph)
        changes += folder.fold_small() + _fix_reshapes(folder) + folder.fold_weights()
        changes += sum(_bypass(node) for node in list(model.graph))
        RemoveUnusedNodesPass()(model)
        if not changes:
            break
    _restore_names(folder, original)
    join_pads(model.graph)
    pool_means(model.graph)
    annotate_shapes(model)
    RemoveUnusedNodesPass()(model)
    settle_lengths(model)


def lift_constants(graph: ir.Graph) -> None:
    """Make initializers of the Constant nodes of the main graph, under the names of their outputs."""
    for node in list(graph):
        if node.op_type != "Constant" or node.domain != "" or node.outputs[0].is_graph_output():
            continue
        tensor = ir.convenience.get_const_tensor(node.outputs[0])
        if tensor is None or tensor.dtype == ir.DataType.STRING:
            continue
        output = node.outputs[0]
        graph.remove(node)
        value = constant_value(str(output.name), tensor.numpy())
        graph.register_initializer(value)
        output.replace_all_uses_with(value)


def _fix_reshapes(folder: Folder) -> int:
    """Give a Reshape whose result has at most one free axis a constant target, with -1 there."""
    changes = 0
    for node in list(folder.graph):
        target = _target(folder, node)
        if target is None:
            continue
        name, number = f"{node.outputs[0].name}.shape", 0
        while name in folder.graph.initializers:
            name, number = f"{node.outputs[0].name}.shape{number}", number + 1
        constant = constant_value(name, np.where(target == UNKNOWN, -1, target))
        folder.graph.register_initializer(constant)
        node.replace_input_with(1, constant)
        changes += 1
    return changes


def _target(folder: Folder, node: ir.Node) -> np.ndarray | None:
    """The shape that a Reshape gives, if its target is computed and at most one axis of it is free."""
    if node.op_type != "Reshape" or node.domain != "" or len(node.inputs) != 2:
        return None
    asked, made = node.inputs[1], node.outputs[0].shape
    if asked is None or asked.is_initializer():
        return None
    for target in (folder.partial.get(asked), None if made is None else known_axes(made)):
        if target is None:
            continue
        free = target <= 0  # a 0 or -1 of its own leaves no room for another
        if not free.any() or (free.sum() == 1 and target[free][0] == UNKNOWN):
            return target
    return None


def _settle_casts(graph: ir.Graph) -> None:
    """Make a Cast of each CastLike whose type is known; a Cast of a constant can be folded."""
    for node in list(graph):
        if node.op_type != "CastLike" or node.domain != "" or node.inputs[1] is None or node.inputs[1].dtype is None:
            continue
        cast = ir.node("Cast", [node.inputs[0]], {"to": int(node.inputs[1].dtype)}, num_outputs=1, name=node.name)
        ir.convenience.replace_nodes_and_values(graph, node, [node], [cast], node.outputs, cast.outputs)


def _bypass(node: ir.Node) -> bool:
    """Take out a node that gives its first input unchanged."""
    if not node.inputs or node.inputs[0] is None or node.domain != "" or not _changes_nothing(node):
        return False
    source, output = node.inputs[0], node.outputs[0]
    if output.is_graph_output():
        if source.producer() is None or source.is_graph_output() or source.graph is not node.graph:
            return False  # the names of inputs and outputs are the model's interface
        name = output.name
        output.name = f"{name}.dropped"
        source.name = name
    source.type = source.type or output.type
    source.shape = source.shape or output.shape
    ir.convenience.replace_all_uses_with(output, source, replace_graph_outputs=True)
    node.graph.remove(node, safe=True)  # type: ignore[union-attr]
    return True


def _changes_nothing(node: ir.Node) -> bool:
    source = node.inputs[0]
    assert source is not None
    match node.op_type:
        case "Identity" | "Concat":
            return len(node.inputs) == 1
        case "Dropout":
            trains = node.inputs[2] if len(node.inputs) > 2 else None
            mask_used = len(node.outputs) > 1 and (node.outputs[1].uses() or node.outputs[1].is_graph_output())
            return not mask_used and (trains is None or _is_false(trains))
        case "Cast":
            return source.dtype is not None and source.dtype == node.attributes.get_int("to", 0)
        case "Transpose":
            perm = node.attributes.get_ints("perm", ())
            return bool(perm) and list(perm) == sorted(perm)
        case _:
            return False


def _is_false(value: ir.Value) -> bool:
    return value.is_initializer() and value.const_value is not None and not value.const_value.numpy().any()


def _restore_names(folder: Folder, original: dict[str, ir.TensorProtocol | None]) -> None:
    """Name folded weights after what they were made of, where that is gone from the graph."""
    made: dict[tuple[str, ...], list[ir.Value]] = defaultdict(list)
    for value in folder.graph.initializers.values():
        sources = folder.sources.get(value, ())
        if sources and not any(source in folder.graph.initializers for source in sources):
            made[sources].append(value)
    taken = {value.name for node in folder.graph.all_nodes() for value in node.outputs}
    for sources, values in made.items():
        shared = sum(sources[0] in others for others in made) > 1 or len(values) > 1
        for index, value in enumerate(values):
            exact = len(sources) == 1 and not shared and _says_layout(folder, value, original[sources[0]])
            suffix = "" if exact or len(sources) > 1 else ".folded"
            name = "+".join(sources) + suffix + (f".{index}" if shared else "")
            if name not in taken and name not in folder.graph.initializers and len(sources) <= 4:
                value.name = name


def _says_layout(folder: Folder, value: ir.Value, original: ir.TensorProtocol | None) -> bool:
    """Whether the value is the original weight but for a layout that its metadata tells."""
    if value not in folder.changed:
        return True
    if original is None or value.const_value is None or value.const_value.dtype != original.dtype:
        return False
    order = _block_order(original.numpy(), value.const_value.numpy())
    if order is not None:
        value.metadata_props[BLOCKS] = ",".join(map(str, order))
    return order is not None


def _block_order(original: np.ndarray, now: np.ndarray) -> tuple[int, ...] | None:
    """The order in which 3 or 4 equal blocks of the first axis (gates of a recurrent layer) were put together again."""
    for count in (4, 3):
        if now.size != original.size or original.ndim == 0 or original.shape[0] % count:
            continue
        old, new = original.reshape(count, -1), now.reshape(count, -1)  # (blocks, elements)
        order = tuple(next((i for i in range(count) if np.array_equal(old[i], block)), -1) for block in new)
        if sorted(order) == list(range(count)):
            return order
    return None
