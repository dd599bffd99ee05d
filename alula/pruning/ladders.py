"""What each place of a graph can lose, rung by rung: units in their order or a whole block, the harm, what is saved."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np

from alula.graph.blocks import Block, find_blocks, without_blocks
from alula.graph.channels import Coupling
from alula.graph.cost import measure_cost
from alula.graph.model import Model
from alula.graph.removal import remove_units
from alula.numerics.allocation import Limits, relative_importance
from alula.pruning.goal import Cost

RUNGS: Final = 8  # at most, of one coupling
Feeds = Mapping[str, np.ndarray]


class Place(Protocol):
    """What can be taken out of one place of a graph, rung by rung."""

    @property
    def rungs(self) -> int:
        """How many there are."""
        ...

    def without(self, model: Model, rung: int) -> Model:
        """The graph without what is gone at a rung."""
        ...

    def geometry(self, model: Model, macs: Mapping[str, int | None]) -> object:
        """What the cost of each rung depends on: places of the same are measured once."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Rungs:
    """How many units of a coupling may go, rising; and in which order."""

    coupling: Coupling
    order: np.ndarray  # [units], the least important first
    counts: tuple[int, ...]

    @property
    def rungs(self) -> int:
        """How many numbers of units there are."""
        return len(self.counts)

    def units(self, rung: int) -> list[int]:
        """The units that are gone at a rung."""
        return [int(unit) for unit in self.order[: self.counts[rung]]]

    def without(self, model: Model, rung: int) -> Model:
        """The graph without them."""
        return remove_units(model, {self.coupling.name: self.units(rung)})

    def geometry(self, model: Model, macs: Mapping[str, int | None]) -> object:
        """The shapes and multiplications of all layers that units reach."""
        axes = {(member.initializer, member.axis): member.indices.shape for member in self.coupling.members}
        touched = [layer for layer in model.layers() if any(name in layer.weights for name, _ in axes)]
        shapes = tuple((layer.operator, layer.shape, layer.groups, macs[layer.name],
                        tuple(sorted((axis, shape) for (name, axis), shape in axes.items() if name in layer.weights)))
                       for layer in touched)  # fmt: skip
        return self.counts, shapes


@dataclass(frozen=True, slots=True)
class Whole:
    """A block, which goes as a whole."""

    block: Block
    rungs: int = 1

    def without(self, model: Model, rung: int) -> Model:  # noqa: ARG002
        """The graph without the block."""
        return without_blocks(model, [self.block.name])

    def geometry(self, model: Model, macs: Mapping[str, int | None]) -> object:
        """The shapes and multiplications of its layers."""
        inside = [layer for layer in model.layers() if layer.name in self.block.layers]
        return tuple((layer.operator, layer.shape, layer.groups, macs[layer.name]) for layer in inside)


def blocks_apart(model: Model, layers: Collection[str]) -> list[Whole]:
    """Blocks of these layers, of two layers at least, that lie apart: the smallest ones."""
    blocks = [block for block in find_blocks(model) if set(block.layers) <= set(layers) and len(block.layers) > 1]
    smallest: list[Block] = []
    for block in sorted(blocks, key=lambda one: len(one.layers)):
        if not any(set(other.layers) & set(block.layers) for other in smallest):
            smallest.append(block)
    return [Whole(block) for block in smallest]


def rungs_of(coupling: Coupling, importance: np.ndarray, limits: Limits) -> Rungs:
    """The rungs of one coupling: numbers of units that the limits allow, evenly spread."""
    allowed = sorted({limits.removable(count, coupling.size) for count in range(1, coupling.size + 1)} - {0})
    picked = np.unique(np.linspace(0, len(allowed) - 1, min(RUNGS, len(allowed))).round().astype(int))
    counts = tuple(allowed[index] for index in picked) if allowed else ()
    return Rungs(coupling, np.argsort(importance, kind="stable"), counts)


def summed_harms(rungs: Rungs, importance: np.ndarray, *, relative: bool) -> np.ndarray:  # -> [rungs]
    """The importance of all that is gone at each rung."""
    values = relative_importance(importance) if relative else importance
    total = np.cumsum(values[rungs.order])
    return np.array([float(total[count - 1]) for count in rungs.counts])


def measured_harms(model: Model, smaller: Iterable[Model], batches: Sequence[Feeds]) -> np.ndarray:  # -> [rungs]
    """How far the outputs move in each smaller graph: the mean over outputs y of |y' - y|^2 / |y|^2 over all batches.

    Args:
        model: the graph.
        smaller: the graph at each rung.
        batches: what the outputs are compared on.
    """
    names = [spec.name for spec in model.outputs if np.issubdtype(spec.dtype, np.floating)]
    names = names or [model.outputs[0].name]
    wanted = [_outputs(model, feeds, names) for feeds in batches]
    sizes = np.sum([[float((y**2).sum()) for y in ys] for ys in wanted], axis=0)  # [outputs]
    sizes[sizes == 0] = 1.0
    harms = []
    for other in smaller:
        pairs = ((_outputs(other, feeds, names), ys) for feeds, ys in zip(batches, wanted, strict=True))
        moved = [[float(((found - y) ** 2).sum()) for found, y in zip(*pair, strict=True)] for pair in pairs]
        harms.append(float((np.sum(moved, axis=0) / sizes).mean()))
    return np.array(harms)


def _outputs(model: Model, feeds: Feeds, names: Sequence[str]) -> list[np.ndarray]:
    found = model.run(feeds)
    return [found[name].astype(np.float64) for name in names]


def savings_of(
    model: Model, every: Sequence[Place], cost: Cost, feeds: Feeds, *, smooth: bool = False
) -> list[np.ndarray]:
    """What each rung saves, as a share of the original's cost; places of the same geometry are measured once.

    Args:
        model: the graph.
        every: the places.
        cost: of a graph.
        feeds: one example.
        smooth: the cost is a polynomial of second degree in the width of a coupling, as counts are, since both sides of
            a layer may narrow. Then two rungs tell all.
    """
    shapes = {name: array.shape for name, array in feeds.items()}
    macs = {layer.name: layer.macs for layer in measure_cost(model, shapes).layers}
    now, known = cost(model), dict[object, np.ndarray]()
    found = []
    for place in every:
        key = place.geometry(model, macs)
        if key not in known:
            known[key] = _savings(model, place, cost, now, smooth=smooth)
        found.append(known[key])
    return found


def _savings(model: Model, place: Place, cost: Cost, now: float, *, smooth: bool) -> np.ndarray:  # -> [rungs]
    rungs = range(place.rungs)
    if not (smooth and isinstance(place, Rungs) and len(rungs) > 2):
        return np.array([now - cost(place.without(model, rung)) for rung in rungs])
    counts = np.array(place.counts, np.float64)
    told = [len(rungs) // 2, len(rungs) - 1]
    saved = [now - cost(place.without(model, rung)) for rung in told]
    powers = np.stack([counts, counts**2], 1)  # [rungs, 2]
    return np.asarray(powers @ np.linalg.solve(powers[told], saved))
