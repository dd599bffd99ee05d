"""What must live and die together: channels, heads and features that a graph couples, found from the graph alone.

Every index along every axis of every tensor has a class; operators merge classes. Channel 3 of a convolution, the third
entry of the normalisation behind it, channel 3 of all that is added to it, and column 3 of the layer that reads it end
in one class: a unit. Units can go; but what an operator reads as a whole (a softmax, a layer normalisation, an output
of the graph) stays, and so does what is not understood.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Literal
from weakref import WeakKeyDictionary

import numpy as np
import onnx_ir as ir

from alula.graph.model import Model
from alula.graph.naming import told_apart

FROZEN = 0  # the class of all that must stay

Ids = np.ndarray  # [length] of an axis: the class of each index
Grain = Literal["first", "last", "longest"]
GRAINS: Final[tuple[Grain, ...]] = ("first", "last", "longest")
_ROUNDS = 3  # each may find axes that cannot carry units; one more is chosen behind each


@dataclass(frozen=True, slots=True, eq=False)
class Member:
    """Where units stand in one axis of one initializer: ``indices`` [units, k] that unit by unit go together."""

    initializer: str
    axis: int
    indices: np.ndarray
    produces: bool  # whether these are what a layer computes, not what it reads


@dataclass(frozen=True, slots=True, eq=False)
class Coupling:
    """Units of one kind: the channels of a stage, the heads of a layer, the features within them or between matrices.

    ``grain`` tells which of the axes that a reshape joins carries them: the heads, or the features within.
    """

    name: str
    size: int
    members: tuple[Member, ...]
    grain: Grain = "first"

    @property
    def places(self) -> tuple[tuple[str, int, bytes], ...]:
        """What tells these units from all others: where they stand in each initializer."""
        return tuple((member.initializer, member.axis, member.indices.tobytes()) for member in self.members)

    @property
    def producers(self) -> tuple[Member, ...]:
        """Where layers compute these units."""
        return tuple(member for member in self.members if member.produces)

    @property
    def initializers(self) -> frozenset[str]:
        """The names of all initializers that lose something."""
        return frozenset(member.initializer for member in self.members)


class Classes:
    """Classes of indices, merged as operators couple them (union by the smaller number)."""

    def __init__(self) -> None:
        self._parents = np.zeros(1, np.int64)  # [capacity]; a class whose parent is itself is a root
        self._count = 1

    def new(self, count: int) -> Ids:
        """So many classes of one index each."""
        first, self._count = self._count, self._count + count
        if self._count > len(self._parents):
            self._parents = np.concatenate([self._parents, np.arange(len(self._parents), 2 * self._count)])
        return np.arange(first, first + count)

    def roots(self, ids: Ids) -> Ids:
        """The classes that these were merged into."""
        found: Ids = self._parents[ids]
        while not np.array_equal(above := self._parents[found], found):
            found = above
        self._parents[ids] = found
        return found

    def merge(self, left: Ids, right: Ids) -> None:
        """Merge two axes, index by index."""
        while True:
            first, second = self.roots(left), self.roots(right)
            apart = first != second
            if not apart.any():
                return
            # Where one class meets several at once the least is written; the others are still apart in the next round.
            np.minimum.at(self._parents, np.maximum(first, second)[apart], np.minimum(first, second)[apart])

    def freeze(self, ids: Ids) -> None:
        """Let all indices stay."""
        self.merge(ids, np.full(len(ids), FROZEN))


@dataclass(slots=True)
class Axes:
    """The classes along the axes of all tensors of a graph; None for an axis whose length is free: it stays.

    Attributes:
        grain: which of the axes that a reshape joins or splits carries the units.
        barred: axes that cannot carry units, since they stay for another reason: the three of queries, keys and values.
        carriers: the axes that were chosen where there was a choice.
        beside: axes beside those. They stay, but only once it is known which carriers stay for a reason of their own.
        contracted: what products of activations sum over, and the tensors in which it must vanish with its weights.
    """

    grain: Grain = "first"
    classes: Classes = field(default_factory=Classes)
    by_value: dict[ir.Value, list[Ids | None]] = field(default_factory=dict)
    contracted: list[tuple[Ids, tuple[ir.Value, ...]]] = field(default_factory=list)
    barred: frozenset[tuple[ir.Value, int]] = frozenset()
    carriers: set[tuple[ir.Value, int]] = field(default_factory=set)
    beside: list[Ids] = field(default_factory=list)

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
        self.keep(left)
        self.keep(right)

    def freeze(self, value: ir.Value) -> None:
        """All axes of a tensor stay."""
        for ids in self.of(value):
            self.keep(ids)

    def keep(self, ids: Ids | None) -> None:
        """An axis stays."""
        if ids is not None:
            self.classes.freeze(ids)

    def contract(self, ids: Ids | None, *values: ir.Value) -> None:
        """An axis is summed over: terms may go that are zero when the weights of their unit are, in one of ``values``.

        Whether they are is decided when all is tied.
        """
        if ids is not None:
            self.contracted.append((ids, values))

    def carrier(self, value: ir.Value, several: Sequence[int]) -> int:
        """Which of several axes that are one axis elsewhere carries the units, by the grain."""
        lengths = {axis: len(ids) for axis in several if (ids := self.of(value)[axis]) is not None}
        wide = [axis for axis, length in lengths.items() if length > 1] or [several[0]]
        able = [axis for axis in wide if (value, axis) not in self.barred] or wide
        chosen = {"first": able[0], "last": able[-1], "longest": max(able, key=lambda axis: lengths[axis])}[self.grain]
        if len(wide) > 1:
            self.carriers.add((value, chosen))
        return chosen

    def stays(self, ids: Ids | None) -> bool:
        """Whether nothing of an axis can go."""
        return ids is None or not self.classes.roots(ids).any()


def _lengths(value: ir.Value) -> list[int | None]:
    if value.const_value is not None:
        return [int(length) for length in value.const_value.shape.numpy()]
    if value.shape is None:
        return []
    return [length if isinstance(length, int) else None for length in value.shape]


def _has_shape(value: ir.Value | None) -> bool:
    return value is None or not value.name or value.const_value is not None or value.shape is not None


def trace_axes(model: Model, grain: Grain = "first") -> Axes:
    """The classes of all axes, as the graph's operators merge them, at one grain."""
    from alula.graph.vanishing import vanishes

    axes = _tie_axes(model, grain)
    for ids in axes.beside:
        axes.keep(ids)
    for ids, values in axes.contracted:
        units = frozenset(axes.classes.roots(ids).tolist()) - {FROZEN}
        if not any(vanishes(axes, value, units) for value in values):
            axes.keep(ids)
    return axes


def _tie_axes(model: Model, grain: Grain) -> Axes:
    """All ties of the graph, with carriers that do not stay for another reason, as far as there are any."""
    barred: frozenset[tuple[ir.Value, int]] = frozenset()
    for _ in range(_ROUNDS):
        axes = _tie_once(model, grain, barred)
        stuck = {(value, axis) for value, axis in axes.carriers - barred if axes.stays(axes.of(value)[axis])}
        if not stuck:
            break
        barred |= stuck
    return axes


def _tie_once(model: Model, grain: Grain, barred: frozenset[tuple[ir.Value, int]]) -> Axes:
    from alula.graph.coupling import RULES
    from alula.graph.moves import keep_all

    axes = Axes(grain, barred=barred)
    for value in model.graph.inputs:
        axes.freeze(value)
    for node in model.graph:
        known = node.domain == "" and all(_has_shape(value) for value in (*node.inputs, *node.outputs))
        rule = RULES.get(node.op_type, keep_all) if known else keep_all
        rule(axes, node)
    for value in (*model.graph.outputs, *_read_in_bodies(model.graph)):
        axes.freeze(value)
    return axes


_TRACED: WeakKeyDictionary[Model, tuple[Axes, ...]] = WeakKeyDictionary()
_FOUND: WeakKeyDictionary[Model, tuple[Coupling, ...]] = WeakKeyDictionary()


def trace_grains(model: Model) -> tuple[Axes, ...]:
    """The classes of all axes at each grain that the graph has: one, where no reshape joins or splits axes.

    They are traced once, as a graph never changes.
    """
    if model not in _TRACED:
        coarse = trace_axes(model)
        finer = GRAINS[1:] if coarse.carriers else ()
        _TRACED[model] = (coarse, *(trace_axes(model, grain) for grain in finer))
    return _TRACED[model]


def _read_in_bodies(graph: ir.Graph) -> list[ir.Value]:
    """What bodies of If, Loop and Scan read: nothing is known of what they do with it."""
    return [value for body in graph.subgraphs() for node in body for value in node.inputs if value is not None]


def find_couplings(model: Model) -> tuple[Coupling, ...]:
    """All kinds of units that can go, in the order of the graph; features within heads behind the heads."""
    from alula.graph.export import as_model

    model = as_model(model)
    if model not in _FOUND:
        _FOUND[model] = couplings_of(model, trace_grains(model))
    return _FOUND[model]


def couplings_of(model: Model, grains: Sequence[Axes]) -> tuple[Coupling, ...]:
    """As :func:`find_couplings`, of axes that were traced before."""
    found: dict[tuple[tuple[str, int, bytes], ...], Coupling] = {}
    for axes in grains:
        for coupling in _couplings_at(model, axes):
            if coupling.size > 1 or axes is grains[0]:
                found.setdefault(coupling.places, coupling)
    order = {layer.weight: number for number, layer in enumerate(model.layers())}
    return told_apart(
        sorted(found.values(), key=lambda one: min(order.get(name, len(order)) for name in one.initializers))
    )


def _couplings_at(model: Model, axes: Axes) -> list[Coupling]:
    """The units at one grain, by their kind."""
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
            couplings.append(Coupling(_name(model, members), len(roots), members, axes.grain))
    return couplings


def _places(model: Model, axes: Axes) -> dict[int, dict[tuple[str, int], list[int]]]:
    """Where each class that may go stands: indices by initializer and axis."""
    places: dict[int, dict[tuple[str, int], list[int]]] = defaultdict(lambda: defaultdict(list))
    for name, value in model.graph.initializers.items():
        for axis, ids in enumerate(axes.by_value.get(value, [])):
            if ids is None:
                continue
            roots = axes.classes.roots(ids)
            for index in np.flatnonzero(roots != FROZEN).tolist():
                places[int(roots[index])][name, axis].append(index)
    return places


def _name(model: Model, members: Sequence[Member]) -> str:
    """The first layer that computes these units."""
    produced = {member.initializer for member in members if member.produces}
    return next(layer.name for layer in model.layers() if layer.weight in produced)
