"""What must live and die together: channels, heads and features that a graph couples, found from the graph alone.

Every index along every axis of every tensor has a class; operators merge classes. Channel 3 of a convolution, the third
entry of the normalisation behind it, channel 3 of all that is added to it, and column 3 of the layer that reads it end
in one class: a unit. Units can go; but what an operator reads as a whole (a softmax, a layer normalisation, an output
of the graph) stays, and so does what is not understood.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from alula.errors import ModelError
from alula.graph.model import Model

FROZEN = 0  # the class of all that must stay

Ids = np.ndarray  # [length] of an axis: the class of each index


@dataclass(frozen=True, slots=True, eq=False)
class Member:
    """Where units stand in one axis of one initializer: ``indices`` [units, k] that unit by unit go together."""

    initializer: str
    axis: int
    indices: np.ndarray
    produces: bool  # whether these are what a layer computes, not what it reads


@dataclass(frozen=True, slots=True, eq=False)
class Coupling:
    """Units of one kind: the channels of a stage, the heads of a layer, the features between two matrices."""

    name: str
    size: int
    members: tuple[Member, ...]

    @property
    def initializers(self) -> frozenset[str]:
        """The names of all initializers that lose something."""
        return frozenset(member.initializer for member in self.members)


class Classes:
    """Classes of indices, merged as operators couple them (union by the smaller number, paths halved)."""

    def __init__(self) -> None:
        self._parents = [FROZEN]

    def new(self, count: int) -> Ids:
        """So many classes of one index each."""
        first = len(self._parents)
        self._parents.extend(range(first, first + count))
        return np.arange(first, first + count)

    def root(self, number: int) -> int:
        """The class that a class was merged into."""
        parents = self._parents
        while parents[number] != number:
            parents[number] = parents[parents[number]]
            number = parents[number]
        return number

    def roots(self, ids: Ids) -> Ids:
        """The classes of all indices of an axis."""
        return np.array([self.root(int(number)) for number in ids], dtype=np.int64)

    def merge(self, left: Ids, right: Ids) -> None:
        """Merge two axes, index by index."""
        for one, other in zip(left.tolist(), right.tolist(), strict=True):
            first, second = sorted((self.root(one), self.root(other)))
            self._parents[second] = first

    def freeze(self, ids: Ids) -> None:
        """Let all indices stay."""
        self.merge(ids, np.full(len(ids), FROZEN))


@dataclass(slots=True)
class Axes:
    """The classes along the axes of all tensors of a graph; None for an axis whose length is free: it stays."""

    classes: Classes
    by_value: dict[ir.Value, list[Ids | None]]

    def of(self, value: ir.Value) -> list[Ids | None]:
        """The axes of a tensor, new ones where it was not met before."""
        if value not in self.by_value:
            self.by_value[value] = [self._new(length) for length in _lengths(value)]
        return self.by_value[value]

    def _new(self, length: int | None) -> Ids | None:
        return None if length is None else self.classes.new(length)

    def tie(self, left: Ids | None, right: Ids | None) -> None:
        """Two axes are one; where their lengths differ or are unknown, both stay."""
        if left is not None and right is not None and len(left) == len(right):
            self.classes.merge(left, right)
            return
        for ids in (left, right):
            if ids is not None:
                self.classes.freeze(ids)

    def freeze(self, value: ir.Value) -> None:
        """All axes of a tensor stay."""
        for ids in self.of(value):
            self.keep(ids)

    def keep(self, ids: Ids | None) -> None:
        """An axis stays."""
        if ids is not None:
            self.classes.freeze(ids)


def _lengths(value: ir.Value) -> list[int | None]:
    if value.const_value is not None:
        return [int(length) for length in value.const_value.shape.numpy()]
    if value.shape is None:
        return []
    return [length if isinstance(length, int) else None for length in value.shape]


def _has_shape(value: ir.Value | None) -> bool:
    return value is None or not value.name or value.const_value is not None or value.shape is not None


def trace_axes(model: Model) -> Axes:
    """The classes of all axes, as the graph's operators merge them."""
    from alula.graph.coupling import RULES, keep_all

    axes = Axes(Classes(), {})
    for value in model.graph.inputs:
        axes.freeze(value)
    for node in model.graph:
        known = node.domain == "" and all(_has_shape(value) for value in (*node.inputs, *node.outputs))
        rule = RULES.get(node.op_type, keep_all) if known else keep_all
        rule(axes, node)
    for value in (*model.graph.outputs, *_read_in_bodies(model.graph)):
        axes.freeze(value)
    return axes


def _read_in_bodies(graph: ir.Graph) -> list[ir.Value]:
    """What bodies of If, Loop and Scan read: nothing is known of what they do with it."""
    return [value for body in graph.subgraphs() for node in body for value in node.inputs if value is not None]


def find_couplings(model: Model) -> tuple[Coupling, ...]:
    """All kinds of units that can go, in the order of the graph."""
    return couplings_of(model, trace_axes(model))


def couplings_of(model: Model, axes: Axes) -> tuple[Coupling, ...]:
    """As :func:`find_couplings`, of axes that were traced before."""
    places = _places(model, axes)
    kinds: dict[tuple[tuple[str, int, int], ...], list[int]] = defaultdict(list)
    for root, found in places.items():
        kinds[tuple((name, axis, len(indices)) for (name, axis), indices in sorted(found.items()))].append(root)
    producing = {(layer.weight, layer.output_axis) for layer in model.layers()}
    couplings = []
    for kind, roots in kinds.items():
        members = tuple(
            Member(name, axis, np.array([places[root][name, axis] for root in roots]), (name, axis) in producing)
            for name, axis, _ in kind
        )
        if any(member.produces for member in members):
            couplings.append(Coupling(_name(model, members), len(roots), members))
    order = {layer.weight: number for number, layer in enumerate(model.layers())}
    return _told_apart(sorted(couplings, key=lambda one: min(order.get(name, len(order)) for name in one.initializers)))


def _told_apart(couplings: Sequence[Coupling]) -> tuple[Coupling, ...]:
    """Each with a name of its own: a layer whose channels go different ways has several couplings."""
    met: Counter[str] = Counter()
    named = []
    for coupling in couplings:
        met[coupling.name] += 1
        number = met[coupling.name]
        named.append(coupling if number == 1 else replace(coupling, name=f"{coupling.name}#{number}"))
    return tuple(named)


def _places(model: Model, axes: Axes) -> dict[int, dict[tuple[str, int], list[int]]]:
    """Where each class that may go stands: indices by initializer and axis."""
    places: dict[int, dict[tuple[str, int], list[int]]] = defaultdict(lambda: defaultdict(list))
    for name, value in model.graph.initializers.items():
        for axis, ids in enumerate(axes.by_value.get(value, [])):
            if ids is None:
                continue
            for index, root in enumerate(axes.classes.roots(ids).tolist()):
                if root != FROZEN:
                    places[root][name, axis].append(index)
    return places


def _name(model: Model, members: Sequence[Member]) -> str:
    """The first layer that computes these units."""
    produced = {member.initializer for member in members if member.produces}
    return next(layer.name for layer in model.layers() if layer.weight in produced)


def coupling_named(couplings: Sequence[Coupling], name: str) -> Coupling:
    """The coupling of this name.

    Raises:
        ModelError: there is none; the message lists those that are there.
    """
    found = next((coupling for coupling in couplings if coupling.name == name), None)
    if found is None:
        known = ", ".join(coupling.name for coupling in couplings[:8])
        raise ModelError(f"no units are called {name!r}; the graph has {known or 'none that can go'}")
    return found
