"""Where channels can be mixed by an orthogonal matrix Q with nothing else noticing: residual streams, values of heads.

A tensor is on a stream of n channels if its last axis, or a span of it, consists of runs of n entries that may be
turned alike: each run x becomes x Q. What operators do then follows from algebra:

| operator | with x Q in place of x |
|---|---|
| sums of tensors on the stream, products with one number per row, means and choices along other axes | turned too |
| the sum of squares, or the mean of squares, of a run | stays |
| the mean of a run; a number per row that is added | stays, is turned; if Q leaves rows of equal entries alone |
| a normalisation of rows without gain and shift | turned too |
| a layer's constant weight, a table, a constant that is added | takes Q, or its transpose, up along one axis |

So normalisations are understood in any spelling. A gain by channel is no such thing, but where only layers read what it
gives, it belongs to their weights. Anything else is an obstacle: the stream stays as it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import onnx_ir as ir

Use = tuple[ir.Node, int]  # who reads a constant, and as which input


def last_of(value: ir.Value) -> int:
    """The length of a tensor's last axis: 1 of scalars, 0 where it is free or unknown."""
    if value.const_value is not None:
        shape = value.const_value.shape.numpy()
    elif value.shape is not None:
        shape = tuple(length if isinstance(length, int) else 0 for length in value.shape)
    else:
        return 0
    return int(shape[-1]) if shape else 1


def rank_of(value: ir.Value) -> int:
    """How many axes a tensor has, -1 where that is unknown."""
    shape = value.const_value.shape if value.const_value is not None else value.shape
    return -1 if shape is None else len(shape)


def is_constant(value: ir.Value | None) -> bool:
    """Whether a tensor is an initializer."""
    return value is not None and value.is_initializer() and value.const_value is not None


@dataclass(slots=True, eq=False)
class Gain:
    """What a normalisation does to each channel behind it: where its gain and its shift stand."""

    use: Use
    shift: Use | None = None


@dataclass(frozen=True, slots=True)
class Lane:
    """How a tensor lies on its stream: which span of its last axis, and which gain it carries."""

    start: int
    stop: int
    gain: Gain | None = None


@dataclass(frozen=True, slots=True)
class Place:
    """Channels of the stream in a constant: a span of one axis; behind a gain, for layers that read it."""

    use: Use
    axis: int
    start: int
    stop: int
    gain: Gain | None = None
    layer: ir.Node | None = None  # that multiplies by the constant, or looks it up


@dataclass(slots=True, eq=False)
class Stream:
    """Tensors that turn together.

    Attributes:
        graph: the graph that they are of.
        size: n, how many channels turn.
        source: the name of the tensor that it was found by.
        lanes: the tensors on it.
        places: the constants on it, by use and axis.
        keeps_mean: whether Q must leave rows of equal entries alone.
        obstacles: why it cannot be turned; none where it can.
    """

    graph: ir.Graph
    size: int
    source: str
    lanes: dict[ir.Value, Lane] = field(default_factory=dict)
    places: dict[tuple[ir.Node, int, int], Place] = field(default_factory=dict)
    keeps_mean: bool = False
    obstacles: list[str] = field(default_factory=list)
    _waiting: list[ir.Value] = field(default_factory=list)

    def join(self, value: ir.Value, lane: Lane | None = None) -> None:
        """Take a tensor in, as a whole if no lane is given."""
        last = last_of(value)
        lane = lane or Lane(0, last)
        if value in self.lanes:
            self._agree(value, lane)
            return
        if last % self.size or lane.start % self.size or lane.stop % self.size or last < self.size:
            known = f"{last} channels, no multiple of {self.size}" if last else "channels whose number is not known"
            self.bar(f"{value.name!r} has {known}")
            return
        self.lanes[value] = lane
        self._waiting.append(value)

    def _agree(self, value: ir.Value, lane: Lane) -> None:
        known = self.lanes[value]
        gain = known.gain or lane.gain
        if known.gain is not lane.gain and gain is not None:
            self.bar(f"{value.name!r} is scaled by channel by {gain.use[0].name!r} and yet a part of the stream itself")
        elif known != lane:
            self.bar(f"{value.name!r} is on it by two spans of its channels")

    def put(self, use: Use, axis: int, lane: Lane, layer: ir.Node | None = None) -> None:
        """Note a constant whose axis lies along a lane."""
        node, index = use
        self.places[node, index, axis] = Place(use, axis, lane.start, lane.stop, lane.gain, layer)

    def bar(self, reason: str) -> None:
        """Note why the stream cannot be turned."""
        if reason not in self.obstacles:
            self.obstacles.append(reason)

    def trace(self) -> None:
        """Follow all tensors to what makes and what reads them."""
        while self._waiting:
            value = self._waiting.pop(0)
            if value.is_graph_output():
                self.bar(f"{value.name!r} is an output of the graph")
            maker = value.producer()
            if maker is None:
                self.bar(f"{value.name!r} is an input of the graph")
            for node in ([] if maker is None else [maker]) + [use.node for use in value.uses()]:
                self._visit(node, value)

    def _visit(self, node: ir.Node, value: ir.Value) -> None:
        from alula.graph.stream_rules import RULES

        rule = RULES.get(node.op_type)
        if node.graph is not self.graph:
            self.bar(f"{value.name!r} is read in the body of an If, Loop or Scan")
        elif rule is None or node.domain not in ("", "com.microsoft"):
            verb = "makes" if value.producer() is node else "reads"
            self.bar(f"{node.op_type} {node.name!r} {verb} {value.name!r}, and would see that channels are mixed")
        else:
            rule(self, node, value)


def find_residual_streams(graph: ir.Graph) -> list[Stream]:
    """The streams of all tensors that are normalised over their last axis, in the order of the graph."""
    from alula.graph.stream_rules import normalised_inputs

    return _traced(graph, normalised_inputs(graph), [])


def find_value_streams(graph: ir.Graph, others: list[Stream]) -> list[Stream]:
    """The streams of what attention weighs: heads of values, between the layer that gives and the one that reads them.

    Args:
        graph: the graph.
        others: streams that were found before; what is on them is on no other.
    """
    from alula.graph.stream_rules import is_product_of_activations

    seeds = (node.inputs[1] for node in graph if is_product_of_activations(node))
    found = _traced(graph, (value for value in seeds if value is not None), others)
    return [stream for stream in found if not any(stream.lanes.keys() & other.lanes.keys() for other in others)]


def _traced(graph: ir.Graph, seeds: Iterator[ir.Value], others: list[Stream]) -> list[Stream]:
    known = {value for stream in others for value in stream.lanes}
    found = []
    for value in seeds:
        if value in known or last_of(value) < 2:
            continue
        stream = Stream(graph, last_of(value), str(value.name))
        stream.join(value)
        stream.trace()
        known |= stream.lanes.keys()
        found.append(stream)
    return found
