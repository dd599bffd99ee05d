"""The parts of a quantized graph whose weights are rounded together: layers, or blocks where the graph has such."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

import numpy as np
import onnx_ir as ir

from alula.errors import ModelError
from alula.graph.blocks import Block, find_blocks
from alula.graph.coded import Coded, coded
from alula.graph.editing import Editor
from alula.graph.layers import Layer
from alula.graph.model import Model, Note
from alula.graph.residuals import residual_blocks

Granularity: TypeAlias = Literal["layer", "block"]

_BEHIND: Final = frozenset(
    {
        "Add",
        "BatchNormalization",
        "Clip",
        "Elu",
        "Gelu",
        "HardSigmoid",
        "HardSwish",
        "LeakyRelu",
        "PRelu",
        "Relu",
        "Sigmoid",
        "Softplus",
        "Tanh",
    }
)  # fmt: skip  (with constants beside what a layer gives, they belong to it: equation 25 of AdaRound)
_FARTHEST: Final = 0.5  # of the sum of squares: weights that are farther off were not what the codes were made of


@dataclass(frozen=True, slots=True)
class Part:
    """What lies between some tensors and another, and the codes in it.

    Attributes:
        name: of the layer or block.
        inputs: tensors of the quantized graph that it reads, before they are quantized.
        output: the tensor that it gives, which the float graph has too.
        weights: the float weight, an initializer of the float graph, by name of the DequantizeLinear of its codes.
        scales: initializers that are scales of activations, and which nothing else reads.
        layers: their names, in the order of the graph.
    """

    name: str
    inputs: tuple[str, ...]
    output: str
    weights: Mapping[str, str]
    scales: tuple[str, ...]
    layers: tuple[str, ...]


def parts_of(quantized: Model, original: Model, granularity: Granularity) -> tuple[tuple[Part, ...], tuple[Note, ...]]:
    """The parts of a quantized graph, in the order in which they are computed, and why other layers are in none.

    Blocks are those of the float graph with two layers or more, residual ones and others that it could do without: of
    those that overlap, one that reads a single tensor comes before one that reads several, and an inner one before one
    that holds it. Layers that are in none are parts of their own. To a layer, and to the sum of a residual block,
    belongs the activation function behind it.
    """
    finder = _Finder(quantized, original)
    layers, notes = finder.layers()
    order = {layer.name: number for number, layer in enumerate(original.layers())}
    found: list[Part] = []
    free = {layer.name: layer for layer in layers}
    for part in finder.blocks(layers) if granularity == "block" else ():
        if all(name in free for name in part.layers):
            found.append(part)
            free = {name: layer for name, layer in free.items() if name not in part.layers}
    for layer in free.values():
        single = finder.layer(layer)
        found += [single] if isinstance(single, Part) else []
        notes += [single] if isinstance(single, Note) else []
    return tuple(sorted(found, key=lambda part: order[part.layers[-1]])), tuple(notes)


class _Finder:
    """Finds the parts of one graph beside the float graph that it came from."""

    def __init__(self, quantized: Model, original: Model) -> None:
        self._model, self._original = quantized, original
        self._editor = Editor(quantized.edit())
        self._nodes = {str(node.name): node for node in self._editor.graph}
        self._before = {str(node.name): node for node in original.graph}
        self._floats = {str(value.name) for node in original.graph for value in node.outputs}

    def layers(self) -> tuple[list[Layer], list[Note]]:
        """The layers whose rounding can be learned, and why others stay."""
        found: list[Layer] = []
        notes: list[Note] = []
        met: dict[str, str] = {}
        for layer in self._original.layers():
            reason = self._obstacle(layer, met)
            if reason is None:
                found.append(layer)
                met.update({one.codes: layer.name for one in self._coded(layer).values()})
            else:
                notes.append(Note(layer.name, f"its rounding stays: {reason}"))
        return found, notes

    def _obstacle(self, layer: Layer, met: Mapping[str, str]) -> str | None:
        held = self._coded(layer)
        if not held:
            return "its weights are no codes that a DequantizeLinear reads"
        shared = next((met[one.codes] for one in held.values() if one.codes in met), None)
        if shared is not None:
            return f"its codes are those of {shared}"
        if not _inputs([self._nodes[layer.name]]):
            return "its input is a constant"
        if not all(self._fits(name, one) for name, one in held.items()):
            return ("its codes were made of other weights than those of the float graph; give the graph as it was just "
                    "before it was quantized, folded and evened out")  # fmt: skip
        return None

    def _coded(self, layer: Layer) -> dict[str, Coded]:
        """The codes of a layer by name of the float weight."""
        node = self._nodes.get(layer.name)
        before = self._before[layer.name]
        if node is None or len(node.inputs) < len(before.inputs) or node.op_type != before.op_type:
            return {}
        pairs = zip(before.inputs, node.inputs, strict=False)
        named = [(str(old.name), coded(new)) for old, new in pairs if old is not None and old.name in layer.weights]
        return {name: one for name, one in named if one is not None}

    def _fits(self, name: str, held: Coded) -> bool:
        """Whether codes may be those of a float weight."""
        weight = self._original.weight(name).astype(np.float64)
        if weight.shape != self._editor.array(held.codes).shape:
            return False
        error = held.values(self._editor).astype(np.float64) - weight
        return bool(np.square(error).sum() <= _FARTHEST * np.square(weight).sum())

    def blocks(self, layers: Sequence[Layer]) -> list[Part]:
        """Blocks as parts, those first that are to be taken where several overlap; of these layers two or more each."""
        known = find_blocks(self._original)
        others = {block.layers for block in known}
        added = [block for block in residual_blocks(self._original) if block.layers not in others]
        found = []
        for block in (*known, *added):
            inside = [layer for layer in layers if layer.name in block.layers]
            part = self.block(block, inside) if len(inside) > 1 else None
            found += [] if part is None else [part]
        return sorted(found, key=lambda part: (len(part.inputs) > 1, len(part.layers)))

    def block(self, block: Block, layers: Sequence[Layer]) -> Part | None:
        """A block as a part; None where the quantized graph has not its tensors."""
        try:
            start, end = self._editor.value(block.input), self._editor.value(block.output)
        except ModelError:
            return None
        end = self._with_activation(end)
        nodes = _between(self._editor.graph, start, end)
        if not {layer.name for layer in layers} <= {str(node.name) for node in nodes}:
            return None
        return self._part(block.name, nodes, end, layers)

    def _with_activation(self, end: ir.Value) -> ir.Value:
        """What the activation function behind a sum gives, where there is one in the float graph too."""
        node = end.producer()
        behind = [_given(one) for one in _behind(node)] if node is not None and node.op_type in {"Add", "Sum"} else []
        return next((value for value in reversed(behind) if value.name in self._floats), end)

    def layer(self, layer: Layer) -> Part | Note:
        """A layer, with what quantizes its inputs and the activation function behind it, as a part."""
        node = self._nodes[layer.name]
        behind = [node, *_behind(node)]
        known = [number for number, one in enumerate(behind) if str(_given(one).name) in self._floats]
        if not known:
            return Note(layer.name, "its rounding stays: the float graph does not compute what it gives")
        behind = behind[: known[-1] + 1]
        pairs = [one for value in node.inputs if value is not None for one in _pair(value)]
        return self._part(layer.name, [*pairs, *behind], _given(behind[-1]), [layer])

    def _part(self, name: str, nodes: Sequence[ir.Node], output: ir.Value, layers: Sequence[Layer]) -> Part:
        weights = {str(one.node.name): weight for layer in layers for weight, one in self._coded(layer).items()}
        inputs = tuple(str(value.name) for value in _inputs(nodes))
        names = tuple(layer.name for layer in layers)
        return Part(name, inputs, str(output.name), weights, tuple(_own_scales(nodes)), names)


def _between(graph: ir.Graph, start: ir.Value, end: ir.Value) -> list[ir.Node]:
    """The nodes that depend on one tensor and on which another depends, in order."""
    reached, inside = {start}, []
    for node in graph:
        if any(value in reached for value in node.inputs):
            inside.append(node)
            reached.update(node.outputs)
    needed, found = {end}, []
    for node in reversed(inside):
        if any(value in needed for value in node.outputs):
            found.append(node)
            needed.update(value for value in node.inputs if value is not None)
    return found[::-1]


def _behind(node: ir.Node) -> Iterator[ir.Node]:
    """Bias and activation function that alone read what a layer gives."""
    value = _given(node)
    while len(uses := value.uses()) == 1 and not value.is_graph_output():
        node = next(iter(uses)).node
        others = [one for one in node.inputs if one is not None and one is not value]
        if node.op_type not in _BEHIND or not all(map(_is_constant, others)):
            return
        yield node
        value = node.outputs[0]


def _given(node: ir.Node) -> ir.Value:
    """What a node gives; of a recurrent layer the first of its outputs that is there."""
    return next(value for value in node.outputs if value.name)


def _pair(value: ir.Value) -> list[ir.Node]:
    """The nodes that put a computed tensor on a grid and take it back, where they make a value; else none."""
    found: list[ir.Node] = []
    node = value.producer()
    for operators in (("DequantizeLinear",), ("Clip", "QuantizeLinear"), ("QuantizeLinear",)):
        if node is None or node.op_type not in operators:
            break
        found.insert(0, node)
        if node.op_type == "QuantizeLinear":
            return found
        source = node.inputs[0]
        node = None if source is None else source.producer()
    return []


def _inputs(nodes: Sequence[ir.Node]) -> list[ir.Value]:
    """What nodes read that none of them makes, without constants."""
    made = {value for node in nodes for value in node.outputs}
    read = [value for node in nodes for value in node.inputs if value is not None and value not in made]
    return [value for value in dict.fromkeys(read) if not _is_constant(value)]


def _is_constant(value: ir.Value) -> bool:
    """Whether a value is an initializer, or computed from such alone."""
    if value.const_value is not None or value.is_initializer():
        return True
    node = value.producer()
    return node is not None and bool(node.inputs) and all(one is None or _is_constant(one) for one in node.inputs)


def _own_scales(nodes: Sequence[ir.Node]) -> Iterator[str]:
    """Scales of activations that are put on their grid inside, and read nowhere else."""
    inside = set(nodes)
    for node in nodes:
        scale = node.inputs[1] if node.op_type == "QuantizeLinear" else None
        if scale is None or not scale.is_initializer():
            continue
        users = {use.node for use in scale.uses()}
        outputs = [value for user in users for value in user.outputs]
        if users <= inside and all(use.node in inside for value in outputs for use in value.uses()):
            yield str(scale.name)
