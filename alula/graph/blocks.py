"""Whole blocks that a graph can do without: residual blocks, sub-layers and layers of transformers, repeated layers.

A block lies between two tensors of one shape and type, made by the same kind of operator: everything that comes of the
first and reaches an output passes through the second, and weights lie between. What reads the second can then read the
first instead. Blocks end in what sums, normalises or activates, not in a product itself or its bias.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from alula.graph.editing import Editor
from alula.graph.model import Model, Note
from alula.graph.naming import called, told_apart

_LONGEST_PERIOD = 4  # sub-layers of a layer: attention, cross-attention, feed-forward, convolution
_KEEPS_SHAPE = frozenset(
    {"Add", "BatchNormalization", "LayerNormalization", "Mul", "RMSNormalization", "Relu", "Sub", "Sum"}
)


@dataclass(frozen=True, slots=True)
class Block:
    """What lies between two tensors: the name tells its first and last layer."""

    name: str
    input: str
    output: str
    layers: tuple[str, ...]


def find_blocks(model: Model) -> tuple[Block, ...]:
    """All blocks, in the order of the graph, each behind those inside it.

    Of tensors with the same layers between them the last ones are taken. Blocks in a row whose kinds repeat (attention,
    feed-forward, attention, feed-forward) are joined to layers, which are blocks too.
    """
    flow = _Flow(model)
    smallest = [block for node in flow.nodes if (block := flow.nearest(node)) is not None]
    latest = {block.layers: block for block in smallest}  # the last of those with the same layers
    found = {**latest, **{block.layers: block for block in _joined(flow, list(latest.values()))}}
    order = {layer.name: number for number, layer in enumerate(model.layers())}
    ordered = sorted(found.values(), key=lambda block: (order[block.layers[-1]], len(block.layers)))
    return told_apart(ordered)


def without_blocks(model: Model, names: Iterable[str]) -> Model:
    """The graph without some of its blocks: what read a block's output reads its input.

    Names of inputs and outputs stay, a note tells what went, and so go all nodes and weights that nothing needs any
    more. A block inside another that goes is gone with it.

    Raises:
        ModelError: there is no block of a name.
    """
    blocks = find_blocks(model)
    chosen = [called(blocks, name, "blocks") for name in dict.fromkeys(names)]
    if not chosen:
        return model
    editor = Editor(model.edit())
    inputs = {block.output: block.input for block in sorted(chosen, key=lambda block: len(block.layers))}
    for block in chosen:
        _pass_by(editor, block.output, _before(block.input, inputs))
    RemoveUnusedNodesPass()(editor.model)
    notes = [Note(block.name, f"taken out whole: {len(block.layers)} layers") for block in chosen]
    return model.edited(editor.model, notes)


def _before(tensor: str, inputs: Mapping[str, str]) -> str:
    """What is there instead of a tensor, if it is the output of a block that goes."""
    while tensor in inputs:
        tensor = inputs[tensor]
    return tensor


def _pass_by(editor: Editor, output: str, given: str) -> None:
    """Let all that reads a tensor read another; an output of the graph becomes a copy of it."""
    old, new = editor.value(output), editor.value(given)
    if not old.is_graph_output():
        old.replace_all_uses_with(new)
        return
    node = editor.insert("Identity", [new], f"{output}.copy", before=old.producer())
    made = node.outputs[0]
    made.shape, made.type = old.shape, old.type
    old.replace_all_uses_with(made, replace_graph_outputs=True)
    editor.rename(old, f"{output}.gone")
    editor.rename(made, output)


class _Flow:
    """What each node comes to: the nodes that all paths from it to the outputs pass through."""

    def __init__(self, model: Model) -> None:
        self.nodes = list(model.graph)
        self._layers = {layer.name for layer in model.layers()}
        self._numbers = {node: number for number, node in enumerate(self.nodes)}
        self._readers = [self._read_by(node) for node in self.nodes]
        self._next = self._meetings()

    def _read_by(self, node: ir.Node) -> list[int]:
        """Numbers of the nodes that read a node; one past the last for outputs, and for bodies of If, Loop and Scan."""
        end = len(self.nodes)
        readers = {self._numbers.get(use.node, end) for value in node.outputs for use in value.uses()}
        return sorted(readers | ({end} if any(value.is_graph_output() for value in node.outputs) else set()))

    def _meetings(self) -> list[int]:
        """The nearest node that all paths from a node pass through, by its number: its immediate post-dominator.

        As the nearest common ancestor of its readers in the tree made so far (Cooper, Harvey and Kennedy 2001).
        """
        end = len(self.nodes)
        following = [end] * (end + 1)
        for number in reversed(range(end)):
            meeting: int | None = None
            for reader in self._readers[number]:
                meeting = reader if meeting is None else _common(following, meeting, reader)
            following[number] = end if meeting is None else meeting
        return following

    def nearest(self, node: ir.Node) -> Block | None:
        """The smallest block that a node's output is the input of."""
        number = self._next[self._numbers[node]]
        while number < len(self.nodes):
            last = self.nodes[number]
            if _alike(node, last) and not self._multiplies(node) and not self._multiplies(last):
                layers = self.between(node, last)
                if layers is None or layers:
                    return _block(node, last, layers) if layers else None
            number = self._next[number]
        return None

    def _multiplies(self, node: ir.Node) -> bool:
        """Whether this is a layer's product, or the sum of one with its bias."""
        if node.op_type == "Add" and any(value is not None and value.const_value is not None for value in node.inputs):
            node = next((made for value in node.inputs if value and (made := value.producer()) is not None), node)
        return node.name in self._layers

    def between(self, first: ir.Node, last: ir.Node) -> tuple[str, ...] | None:
        """The layers between two nodes; None where something of the same shape goes around the first.

        The stream of a residual network goes around the inner half of a block, which is none by itself.
        """
        start, end = self._numbers[first], self._numbers[last]
        source, inside = first.outputs[0], self._reach(start, end)
        made_inside = {value for number in inside for value in self.nodes[number].outputs}
        for number in inside:
            for value in self.nodes[number].inputs:
                if value is None or value is source or value in made_inside or value.const_value is not None:
                    continue
                if _same_form(value, source):
                    return None
        return tuple(str(self.nodes[number].name) for number in inside if self.nodes[number].name in self._layers)

    def kind(self, block: Block) -> tuple[str, ...]:
        """What tells blocks of different kinds apart: the operators in them."""
        by_output = {str(value.name): number for number, node in enumerate(self.nodes) for value in node.outputs}
        inside = self._reach(by_output[block.input], by_output[block.output])
        return tuple(self.nodes[number].op_type for number in inside)

    def _reach(self, start: int, end: int) -> list[int]:
        """Numbers of the nodes that depend on one node, up to another, which all of them come to; in order."""
        reached = {start}
        for number in range(start, end):
            if number in reached:
                reached.update(reader for reader in self._readers[number] if reader <= end)
        return sorted(reached - {start})


def _common(following: Sequence[int], left: int, right: int) -> int:
    """Where the ways from two nodes meet; numbers grow along them."""
    while left != right:
        if left < right:
            left = following[left]
        else:
            right = following[right]
    return left


def _alike(first: ir.Node, last: ir.Node) -> bool:
    """Whether two nodes are of one kind and make one tensor each, of the same shape and type."""
    if (first.op_type, first.domain) != (last.op_type, last.domain) or len(first.outputs) + len(last.outputs) != 2:
        return False
    one, other = first.outputs[0], last.outputs[0]
    return _same_form(one, other) or (_may_be_same(one, other) and _streams(other, one))


def _same_form(one: ir.Value, other: ir.Value) -> bool:
    """Whether two tensors have the same known shape and type."""
    if one.shape is None or other.shape is None or one.dtype != other.dtype:
        return False
    known = all(isinstance(length, int) or length.value is not None for length in one.shape)
    return known and list(one.shape) == list(other.shape)


def _may_be_same(one: ir.Value, other: ir.Value) -> bool:
    """Whether two tensors differ at most in what their free axes are called."""
    if one.shape is None or other.shape is None or one.dtype != other.dtype or len(one.shape) != len(other.shape):
        return False
    pairs = zip(one.shape, other.shape, strict=True)
    return all(a == b or not (isinstance(a, int) or isinstance(b, int)) for a, b in pairs)


def _streams(later: ir.Value, earlier: ir.Value) -> bool:
    """Whether a tensor flows into another through operators that keep shapes: around a residual block."""
    pending, met = [later], {later}
    while pending:
        value = pending.pop()
        node = value.producer()
        if value is earlier:
            return True
        for given in node.inputs if node is not None and node.op_type in _KEEPS_SHAPE else ():
            if given is not None and given not in met and _may_be_same(given, later):
                met.add(given)
                pending.append(given)
    return False


def _block(first: ir.Node, last: ir.Node, layers: Sequence[str]) -> Block:
    name = layers[0] if len(layers) == 1 else f"{layers[0]}..{layers[-1]}"
    return Block(name, str(first.outputs[0].name), str(last.outputs[0].name), tuple(layers))


def _joined(flow: _Flow, blocks: Sequence[Block]) -> Iterator[Block]:
    """Layers of several blocks in a row whose kinds come again in the same order."""
    for row in _rows(blocks):
        kinds = [flow.kind(block) for block in row]
        for period in range(2, min(_LONGEST_PERIOD, len(row) - 1) + 1):
            if len(set(kinds[:period])) > 1 and kinds[:-period] == kinds[period:]:
                for members in max((_grouped(row, period, first) for first in range(period)), key=_nearness):
                    layers = tuple(layer for block in members for layer in block.layers)
                    yield Block(f"{layers[0]}..{layers[-1]}", members[0].input, members[-1].output, layers)
                break


def _grouped(row: Sequence[Block], period: int, first: int) -> list[Sequence[Block]]:
    return [row[start : start + period] for start in range(first, len(row) - period + 1, period)]


def _nearness(groups: Sequence[Sequence[Block]]) -> float:
    """How much of their path the names of layers in a group have in common: that of a layer's halves more than others'.

    A row may begin in the middle of a layer.
    """
    paths = [[layer.split(".") for block in group for layer in block.layers] for group in groups]
    return sum(_shared_depth(names) for names in paths) / max(len(paths), 1)


def _shared_depth(paths: Sequence[Sequence[str]]) -> int:
    """How many leading words all paths share.

    >>> _shared_depth([["layers", "0", "up"], ["layers", "0", "down"]])
    2
    """
    return sum(1 for _ in takewhile(lambda words: len(set(words)) == 1, zip(*paths, strict=False)))


def _rows(blocks: Sequence[Block]) -> Iterator[list[Block]]:
    """Blocks of which each begins where the one before ends."""
    by_input = {block.input: block for block in blocks}
    for block in blocks:
        if block.input not in {other.output for other in blocks}:
            row = [block]
            while row[-1].output in by_input:
                row.append(by_input[row[-1].output])
            yield row
