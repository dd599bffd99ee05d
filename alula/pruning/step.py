"""One round of pruning: how much each unit matters, and as many of them gone as the goal asks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Final, TypeAlias

import numpy as np
import torch
from torch import Tensor

from alula.errors import DataError, RecipeError
from alula.graph.blocks import without_blocks
from alula.graph.channels import Coupling, find_couplings
from alula.graph.gradients import RandomProjection, unit_sensitivities
from alula.graph.layers import select
from alula.graph.model import Model, Note
from alula.graph.removal import remove_units
from alula.graph.statistics import Statistics, collect
from alula.graph.staying import why_none_goes
from alula.numerics.allocation import Limits, least_important, rounded_down
from alula.numerics.ladders import climb, convex_ladder
from alula.pruning.choice import BLOCKS, Pruning
from alula.pruning.goal import Goal, Kind, relative_costs
from alula.pruning.ladders import (
    Feeds,
    Place,
    Rungs,
    Whole,
    blocks_apart,
    measured_harms,
    rungs_of,
    savings_of,
    summed_harms,
)
from alula.task_rows import fixed_batch
from alula.techniques.compensation import compensate, moment_requests
from alula.techniques.criteria import criterion_named, or_magnitude
from alula.techniques.prune import computed_by, untold_notes
from alula.training.batches import batches_of
from alula.training.finetuning import loss_fitting

CALIBRATION_BATCHES: Final = 32
CALIBRATION_ROWS: Final = 16  # of each
SENSITIVITY_BATCHES: Final = 4  # of those, to measure how far outputs move
DAMPING: Final = 0.01  # of the brain surgeon's second moments
TOLERANCE: Final = 0.01  # of the goal: how much more than it may be saved
TRIES: Final = 12
FAR: Final = 1.15  # of the goal: what is passed further than that is tried again with finer widths


@dataclass(frozen=True, slots=True)
class Gone:
    """What is taken out: units by the name of their coupling, and blocks."""

    units: Mapping[str, Sequence[int]]
    blocks: tuple[str, ...] = ()


Choose: TypeAlias = Callable[[float], Gone]
"""What goes at a strength from 0, where nothing does, to 1, where all goes that may."""
Batches: TypeAlias = Sequence[tuple[Feeds, Tensor | None]]


class Step:
    """One round: importances once, then the strength that meets the goal."""

    def __init__(self, original: Model, model: Model, batches: Batches, goal: Goal, pruning: Pruning) -> None:
        self._model, self._pruning, self._goal, self._batches = model, pruning, goal, batches
        self._layers = select(model.layers(), pruning.include, pruning.exclude)
        self._couplings = computed_by(model, self._layers)
        if not self._couplings:
            raise RecipeError(f"no units of the chosen layers can go; {why_none_goes(model, self._layers)}")
        self._example = one_example(model, batches)
        self._original_sizes = {one.name: one.size for one in find_couplings(original)}
        self._costs = relative_costs(original, goal, self._example)
        self._statistics, self._notes = Statistics(), list[Note]()

    def pruned(self, share: float = 1.0) -> Model:
        """The graph at a share of the way from the original to the goal.

        Raises:
            RecipeError: the limits do not let that much go.
        """
        importances, wanted = self._importances(), self._goal.wanted(share)
        gone, notes = self._nearest(importances, wanted)
        smaller = without(self._made_up(gone.units), gone)
        return smaller.edited(smaller.edit(), [*self._notes, *notes])

    def _nearest(self, importances: list[np.ndarray], wanted: Mapping[Kind, float]) -> tuple[Gone, list[Note]]:
        """What meets the goal; where widths that kernels like pass it by far, with finer ones."""
        tried: list[tuple[float, Gone, tuple[int, ...]]] = []
        unmet: RecipeError | None = None
        for blocks in self._widths():
            by_harm = self._pruning.scope != "uniform"
            choose = self._by_harm(importances, blocks) if by_harm else self._uniformly(importances, blocks)
            try:
                gone = meet(choose, lambda gone: self._saved(gone, wanted), wanted)
            except RecipeError as error:
                unmet = unmet or error
                continue
            passed = min(times / wanted[kind] for kind, times in self._saved(gone, wanted).items())
            tried.append((passed, gone, blocks))
            if passed <= FAR:
                break
        if not tried:
            assert unmet is not None
            raise unmet
        passed, gone, blocks = min(tried, key=lambda one: one[0])
        return gone, self._on_widths(tried, unmet, blocks)

    def _widths(self) -> list[tuple[int, ...]]:
        """Multiples to try for the widths of couplings, the one that kernels like best first."""
        choices = [BLOCKS[number:] for number in range(len(BLOCKS) + 1)]
        limits = {tuple(self._limits(one, blocks) for one in self._couplings): blocks for blocks in reversed(choices)}
        return list(limits.values())[::-1]

    @staticmethod
    def _on_widths(tried: Sequence[tuple[float, Gone, tuple[int, ...]]], unmet: RecipeError | None,
                   blocks: tuple[int, ...]) -> list[Note]:  # fmt: skip
        first, *_ = tried
        if blocks == first[2] and (unmet is None or blocks == BLOCKS):
            return []
        why = "could not be met" if unmet is not None else f"would be passed {first[0]:.2f} times"
        finer = f"multiples of {blocks[0]}" if blocks else "any number of units"
        return [Note("pruning", f"widths are {finer}: with the multiples that kernels like best, the goal {why}")]

    def _saved(self, gone: Gone, wanted: Mapping[Kind, float]) -> dict[Kind, float]:
        """How many times less of each kind; none behind the first that is far from enough, since timing takes long."""
        smaller = without(self._model, gone)
        saved: dict[Kind, float] = {}
        for kind, cost in self._costs.items():
            saved[kind] = 1 / cost(smaller)
            if saved[kind] * (1 + TOLERANCE) < wanted[kind]:
                break
        return saved

    def _importances(self) -> list[np.ndarray]:
        name, model, couplings = self._pruning.criterion, self._model, self._couplings
        criterion = criterion_named(name, seed=self._pruning.seed, damping=DAMPING)
        by_labels = name in ("taylor", "fisher")  # whose gradients are taken here, where the labels are
        requests = frozenset() if by_labels else criterion.requests(model, couplings)
        if self._pruning.compensate:
            requests |= moment_requests(model, couplings)
        if requests:
            self._statistics = collect(model, (feeds for feeds, _ in self._batches), requests)
        if by_labels:
            rows = self._batches if name == "taylor" else single_rows(model, self._batches)
            seen = unit_sensitivities(model, couplings, rows, loss_of(model, self._batches, self._pruning.seed))
            orders = [seen[one.name] for one in couplings]
            return [order.first_order if name == "taylor" else order.second_order for order in orders]
        told = criterion.importances(model, couplings, self._statistics)
        self._notes = untold_notes(couplings, told, name)
        if self._notes and self._pruning.scope == "absolute":
            raise RecipeError(
                f"{name} tells nothing of {self._notes[0].place}, and the size of weights does not compare with what "
                "it tells of others; use scope='global', or exclude the layers"
            )
        return or_magnitude(model, couplings, told)

    def _limits(self, coupling: Coupling, blocks: Sequence[int]) -> Limits:
        """What a coupling keeps: of what it had in the original, whatever earlier rounds took."""
        size = max(self._original_sizes.get(coupling.name, 0), coupling.size)
        limits = self._pruning.limits(size, blocks)
        return replace(limits, least=min(1.0, limits.least * size / coupling.size))

    def _uniformly(self, importances: list[np.ndarray], blocks: Sequence[int]) -> Choose:
        def choose(strength: float) -> Gone:
            counts = [self._limits(one, blocks).removable(rounded_down(strength * one.size), one.size)
                      for one in self._couplings]  # fmt: skip
            pairs = zip(self._couplings, least_important(importances, counts), strict=True)
            return Gone({one.name: units.tolist() for one, units in pairs if len(units)})

        return choose

    def _by_harm(self, importances: list[np.ndarray], blocks: Sequence[int]) -> Choose:
        places: list[Place] = []
        harms = []
        for coupling, importance in zip(self._couplings, importances, strict=True):
            rungs = rungs_of(coupling, importance, self._limits(coupling, blocks))
            if rungs.counts:
                places.append(rungs)
                harms.append(self._harms(rungs, importance))
        if self._pruning.blocks:
            whole = blocks_apart(self._model, {layer.name for layer in self._layers})
            places += whole
            harms += [self._measured(block) for block in whole]
        kind = self._goal.kind
        savings = savings_of(self._model, places, self._costs[kind], self._example, smooth=kind != "latency")
        ladders = [convex_ladder(*pair) for pair in zip(harms, savings, strict=True)]
        total = sum(float(ladder.savings[-1]) for ladder in ladders)

        def choose(strength: float) -> Gone:
            chosen = climb(ladders, strength * total * (1 - 1e-9))
            return _gone([(place, rung) for place, rung in zip(places, chosen, strict=True) if rung >= 0])

        return choose

    def _harms(self, rungs: Rungs, importance: np.ndarray) -> np.ndarray:
        if self._pruning.scope == "sensitivity":
            return self._measured(rungs)
        return summed_harms(rungs, importance, relative=self._pruning.scope == "global")

    def _measured(self, place: Place) -> np.ndarray:
        smaller = (self._without(place, rung) for rung in range(place.rungs))
        return measured_harms(self._model, smaller, [feeds for feeds, _ in self._batches[:SENSITIVITY_BATCHES]])

    def _without(self, place: Place, rung: int) -> Model:
        """The graph without what is gone at one rung of one place, as it will be: what reads it makes up for it."""
        if not isinstance(place, Rungs):
            return place.without(self._model, rung)
        return place.without(self._made_up({place.coupling.name: place.units(rung)}), rung)

    def _made_up(self, units: Mapping[str, Sequence[int]]) -> Model:
        """The graph with the layers that read these units changed for the best, where that is asked for."""
        if not (self._pruning.compensate and units):
            return self._model
        return compensate(self._model, self._couplings, units, self._statistics, DAMPING)


def _gone(taken: Sequence[tuple[Place, int]]) -> Gone:
    """What goes when places stand at rungs; units inside a block that goes are gone with it."""
    blocks = [place.block for place, _ in taken if isinstance(place, Whole)]
    inside = {layer for block in blocks for layer in block.layers}
    units = {place.coupling.name: place.units(rung) for place, rung in taken if isinstance(place, Rungs)}
    left = {name: numbers for name, numbers in units.items() if name.partition("#")[0] not in inside}
    return Gone(left, tuple(block.name for block in blocks))


def without(model: Model, gone: Gone) -> Model:
    """The graph without what is taken out: blocks first, since units narrow them; units that went with one are gone."""
    smaller = without_blocks(model, gone.blocks) if gone.blocks else model
    units = gone.units
    if gone.blocks:
        sizes = {coupling.name: coupling.size for coupling in find_couplings(smaller)}
        before = {coupling.name: coupling.size for coupling in find_couplings(model)}
        units = {name: numbers for name, numbers in units.items() if sizes.get(name) == before[name]}
    return remove_units(smaller, units) if units else smaller


def meet(choose: Choose, saved: Callable[[Gone], Mapping[Kind, float]], wanted: Mapping[Kind, float]) -> Gone:
    """What goes at the least strength that saves as much of each kind as is wanted, by halving.

    Args:
        choose: what goes at a strength.
        saved: how many times less that makes of each kind.
        wanted: how many times less it is to be.

    Raises:
        RecipeError: even all that may go is not enough.
    """

    def excess(times: Mapping[Kind, float]) -> float:  # at most 1 where all is saved that is wanted
        return max(wanted[kind] / one for kind, one in times.items())

    nothing = choose(0.0)
    if excess(saved(nothing)) <= 1:
        return nothing
    low, high, best = 0.0, 1.0, choose(1.0)
    at_most = saved(best)
    if excess(at_most) > 1 + (TOLERANCE if "latency" in wanted else 0):
        most = ", ".join(f"{kind} become {times:.2f} times less at most, not {wanted[kind]:.2f}"
                         for kind, times in at_most.items() if times < wanted[kind])  # fmt: skip
        raise RecipeError(
            f"within the limits {most}; lower least or multiple, include more layers, or drop whole blocks first"
        )
    for _ in range(TRIES):
        middle = (low + high) / 2
        candidate = choose(middle)
        share = excess(saved(candidate))
        if share > 1:
            low = middle
            continue
        high, best = middle, candidate
        if share > 1 - TOLERANCE:
            break
    return best


def calibration_batches(model: Model, data: Any, labels: Any = None, *, seed: int = 0) -> Batches:
    """A few batches of the training data, as feeds and labels.

    Raises:
        DataError: there are none, or they do not fit the model.
    """
    batches = batches_of(model, data, labels, batch_size=CALIBRATION_ROWS, seed=seed)
    with torch.random.fork_rng():  # a loader's own draws are seeded; the user's go on as if nothing had been read
        found: list[tuple[Feeds, Tensor | None]] = [
            ({name: tensor.numpy() for name, tensor in batch.inputs.items()}, batch.labels)
            for batch in islice(batches.epoch(0), CALIBRATION_BATCHES)
        ]
    if not found:
        raise DataError("there are no data to prune by; give at least one batch")
    return found


def one_example(model: Model, batches: Batches) -> dict[str, np.ndarray]:
    """The first row of the first batch; as many as a graph of fixed batch takes."""
    return {name: array[: fixed_batch(model) or 1] for name, array in batches[0][0].items()}


def single_rows(model: Model, batches: Batches) -> Batches:
    """Each row by itself, where the graph leaves the batch free: the Fisher information is that of single examples."""
    if fixed_batch(model) is not None:
        return batches
    return [
        (
            {name: array[row : row + 1] for name, array in feeds.items()},
            None if labels is None else labels[row : row + 1],
        )
        for feeds, labels in batches
        for row in range(len(next(iter(feeds.values()))))
    ]


def loss_of(model: Model, batches: Batches, seed: int) -> Callable[[Any, Any], Tensor]:
    """What gradients are taken of: the loss that labels call for; else a random projection of the outputs.

    Labels speak of the first output alone, so where there are several of floating-point numbers they are not read.
    """
    labels = batches[0][1]
    if labels is None or sum(np.issubdtype(spec.dtype, np.floating) for spec in model.outputs) > 1:
        return RandomProjection(seed)
    fitting, name = loss_fitting(model, labels.numpy()), model.outputs[0].name

    def loss(outputs: Any, labels: Any) -> Tensor:
        first: Tensor = outputs[0] if isinstance(outputs, tuple) else outputs
        return fitting({name: first}, {}, labels)

    return loss
