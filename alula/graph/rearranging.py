"""One form for moves that exporters write in several steps: splits by way of sequences, transposes between reshapes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import onnx_ir as ir

from alula.graph.fold import constant_value

Length = int | ir.SymbolicDim


def split_sequences(graph: ir.Graph) -> int:
    """Make a Split of each SplitToSequence whose parts are only picked by number; give how many were made.

    What ``torch.split`` and ``chunk`` are exported to; a sequence that is read otherwise is left alone. Parts that drop
    their axis (``keepdims`` 0) are squeezed.
    """
    return sum(_split_sequence(graph, node) for node in list(graph))


def _split_sequence(graph: ir.Graph, node: ir.Node) -> bool:
    if node.op_type != "SplitToSequence" or node.domain != "":
        return False
    source, sequence = node.inputs[0], node.outputs[0]
    readers = [use.node for use in sequence.uses()]
    if source is None or source.shape is None or sequence.is_graph_output() or not readers:
        return False
    axis = int(node.attributes.get_int("axis", 0)) % len(source.shape)
    lengths = _part_lengths(node, source.shape[axis])
    picked = [_picked(reader, graph, 0 if lengths is None else len(lengths)) for reader in readers]
    if lengths is None or any(number is None for number in picked):
        return False
    parts = _insert_split(graph, node, axis, lengths)
    dropped = len(node.inputs) == 1 and not int(node.attributes.get_int("keepdims", 1))
    for reader, number in zip(readers, picked, strict=True):
        assert number is not None
        made = _squeezed(graph, reader, parts[number], axis) if dropped else parts[number]
        _replace(reader.outputs[0], made)
        graph.remove(reader, safe=True)
    graph.remove(node, safe=True)
    return True


def _part_lengths(node: ir.Node, whole: int | ir.SymbolicDim) -> list[int] | None:
    """The lengths of the parts; None where they are not known."""
    given = node.inputs[1] if len(node.inputs) > 1 else None
    if given is not None and given.const_value is None:
        return None
    if given is not None and given.const_value is not None and given.const_value.numpy().ndim == 1:
        return [int(length) for length in given.const_value.numpy()]
    if not isinstance(whole, int):
        return None
    length = 1 if given is None or given.const_value is None else int(given.const_value.numpy())
    return [min(length, whole - start) for start in range(0, whole, length)] if length > 0 else None


def _picked(node: ir.Node, graph: ir.Graph, count: int) -> int | None:
    """The number of the part that a node picks; None where it does something else."""
    if node.op_type != "SequenceAt" or node.domain != "" or node.graph is not graph:
        return None
    position = node.inputs[1]
    if position is None or position.const_value is None:
        return None
    number = int(position.const_value.numpy())
    return number % count if -count <= number < count else None


def _insert_split(graph: ir.Graph, node: ir.Node, axis: int, lengths: Sequence[int]) -> Sequence[ir.Value]:
    source = node.inputs[0]
    assert source is not None
    assert source.shape is not None
    constant = _constant(graph, f"{node.outputs[0].name}.lengths", lengths)
    names = [_free_name(graph, f"{node.outputs[0].name}.{number}") for number in range(len(lengths))]
    values = [ir.Value(name=name, type=source.type) for name in names]
    for value, length in zip(values, lengths, strict=True):
        value.shape = ir.Shape([length if place == axis else one for place, one in enumerate(source.shape)])
    split = ir.node("Split", [source, constant], {"axis": axis}, outputs=values, name=node.name)
    graph.insert_before(node, split)
    return values


def _squeezed(graph: ir.Graph, before: ir.Node, part: ir.Value, axis: int) -> ir.Value:
    constant = _constant(graph, f"{part.name}.axis", [axis])
    made = ir.Value(name=_free_name(graph, f"{part.name}.squeezed"), type=part.type)
    assert part.shape is not None
    made.shape = ir.Shape([length for place, length in enumerate(part.shape) if place != axis])
    graph.insert_before(before, ir.node("Squeeze", [part, constant], outputs=[made], name=before.name))
    return made


def _replace(old: ir.Value, new: ir.Value) -> None:
    """Let all read the new tensor, which takes over the name where that is the model's interface."""
    if old.is_graph_output():
        name = str(old.name)
        old.name = f"{name}.replaced"
        new.name = name
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)


def join_transposes(graph: ir.Graph) -> int:
    """Show the heads that exporters hide in a batch axis between two reshapes; give how many were found.

    The keys of attention are transposed, [n, heads, t, size] to [n, heads, size, t], by way of [n * heads, t, size]:
    one Transpose does. Queries, keys and values are split into heads, [t, n, width] to [n, heads, t, size], by way of
    [t, n * heads, size]: a Reshape to [t, n, heads, size] and a Transpose do.
    """
    return sum(_join_transpose(graph, node) for node in list(graph))


def _join_transpose(graph: ir.Graph, last: ir.Node) -> bool:
    swap = _only_producer(last, "Reshape", "Transpose")
    first = _only_producer(swap, "Transpose", "Reshape") if swap is not None else None
    source = first.inputs[0] if first is not None else None
    if swap is None or first is None or source is None:
        return False
    shapes = [value.shape for value in (source, first.outputs[0], last.outputs[0])]
    if any(shape is None or _unnamed(shape) for shape in shapes):
        return False
    given, joined, made = (list(shape) for shape in shapes if shape is not None)
    order = list(swap.attributes.get_ints("perm", ()))
    if order == [0, 2, 1] and joined[1:] == given[-2:] and made == [*given[:-2], given[-1], given[-2]]:
        places = [*range(len(given) - 2), len(given) - 1, len(given) - 2]
        new = [ir.node("Transpose", [source], {"perm": places}, num_outputs=1, name=last.name)]
    elif order == [1, 0, 2] and _splits_heads(given, joined, made):
        target = _constant(
            graph,
            f"{last.outputs[0].name}.heads",
            [0, 0, *(length for length in (made[1], made[3]) if isinstance(length, int))],
        )
        split = ir.node("Reshape", [source, target], num_outputs=1, name=f"{last.name}.heads")
        split.outputs[0].name = _free_name(graph, f"{last.outputs[0].name}.split")
        new = [split, ir.node("Transpose", split.outputs, {"perm": (1, 2, 0, 3)}, num_outputs=1, name=last.name)]
    else:
        return False
    ir.convenience.replace_nodes_and_values(graph, last, [last], new, last.outputs, new[-1].outputs)
    return True


def _splits_heads(given: Sequence[Length], joined: Sequence[Length], made: Sequence[Length]) -> bool:
    """Whether [t, n, width] becomes [n, heads, t, size] by way of [t, n * heads, size]."""
    if len(given) != 3 or len(joined) != 3 or len(made) != 4:
        return False
    known = isinstance(made[1], int) and isinstance(made[3], int) and given[2] == made[1] * made[3]
    return known and joined[2] == made[3] and joined[0] == given[0] == made[2] and given[1] == made[0]


def _only_producer(node: ir.Node, operator: str, before: str) -> ir.Node | None:
    """What computes a node's first input, where these are the operators."""
    source = node.inputs[0] if node.op_type == operator and node.domain == "" and node.inputs else None
    producer = source.producer() if source is not None else None
    return producer if producer is not None and producer.op_type == before and producer.domain == "" else None


def _unnamed(shape: Iterable[Length]) -> bool:
    """Whether an axis has neither length nor name, so that it is equal to none."""
    return any(not isinstance(length, int) and length.value is None for length in shape)


def _constant(graph: ir.Graph, name: str, numbers: Sequence[int]) -> ir.Value:
    value = constant_value(_free_name(graph, name), np.array(numbers, np.int64))
    graph.register_initializer(value)
    return value


def _free_name(graph: ir.Graph, name: str) -> str:
    """The name, or one with a number where it is taken."""
    taken = {*graph.initializers, *(value.name for value in graph.inputs)}
    taken |= {value.name for node in graph.all_nodes() for value in node.outputs}
    number, free = 1, name
    while free in taken:
        number += 1
        free = f"{name}_{number}"
    return free
