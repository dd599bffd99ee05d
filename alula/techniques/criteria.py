"""How much the units of each coupling matter, by one criterion or another."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from alula.errors import RecipeError, at
from alula.graph.channels import Coupling
from alula.graph.model import Model
from alula.graph.statistics import ActivityRequest, AnyRequest, GradientRequest, Statistics
from alula.graph.units import Sighting, computing_rows, readers_of, rows_of, sightings_of
from alula.numerics.brain_surgeon import Quadratic, harms_in_order
from alula.numerics.importance import distance_to_others, magnitude
from alula.techniques.compensation import check_size, is_solvable, least_squares_of, moment_requests

Floats: TypeAlias = NDArray[np.float64]
CriterionName: TypeAlias = Literal[
    "l1", "l2", "batch-norm scale", "geometric median", "random", "taylor", "fisher", "brain surgeon", "zeros",
    "activation",
]  # fmt: skip
CRITERIA: Final[tuple[str, ...]] = get_args(CriterionName)


class Criterion(Protocol):
    """What makes a unit matter."""

    def requests(self, model: Model, couplings: Sequence[Coupling]) -> frozenset[AnyRequest]:
        """The statistics that :meth:`importances` will read."""
        ...

    def importances(self, model: Model, couplings: Sequence[Coupling], statistics: Statistics) -> list[Floats | None]:
        """Of each coupling, the importance of its units, [units], at least 0; None where the criterion cannot tell."""
        ...


class _WithoutStatistics:
    """What criteria share that read weights alone, or nothing."""

    __slots__ = ()

    def requests(self, model: Model, couplings: Sequence[Coupling]) -> frozenset[AnyRequest]:  # noqa: ARG002
        """None."""
        return frozenset()


@dataclass(frozen=True, slots=True)
class OfWeights(_WithoutStatistics):
    """The size of the weights that compute a unit, or what else a function tells of them: [n, k] -> [n]."""

    function: Callable[[np.ndarray], Floats] = magnitude

    def importances(
        self,
        model: Model,
        couplings: Sequence[Coupling],
        statistics: Statistics,  # noqa: ARG002
    ) -> list[Floats | None]:
        """The function of each coupling's weights."""
        return [self.function(computing_rows(coupling, model.weight)) for coupling in couplings]


@dataclass(frozen=True, slots=True)
class BatchNormScale(_WithoutStatistics):
    """The mean size of a unit's scales in batch normalisations; nothing is told where there are none."""

    def importances(
        self,
        model: Model,
        couplings: Sequence[Coupling],
        statistics: Statistics,  # noqa: ARG002
    ) -> list[Floats | None]:
        """The mean over all normalisations that a unit goes through."""
        scales = {
            str(node.inputs[1].name)
            for node in model.graph
            if node.op_type == "BatchNormalization" and node.inputs[1] is not None
        }
        return [_mean_scale(model, coupling, scales) for coupling in couplings]


def _mean_scale(model: Model, coupling: Coupling, scales: set[str]) -> Floats | None:
    rows = [
        np.abs(rows_of(model.weight(member.initializer), member))
        for member in coupling.members
        if member.initializer in scales
    ]
    return np.concatenate(rows, axis=1).mean(1) if rows else None


@dataclass(frozen=True, slots=True)
class Random(_WithoutStatistics):
    """Drawn: the control."""

    seed: int = 0

    def importances(
        self,
        model: Model,  # noqa: ARG002
        couplings: Sequence[Coupling],
        statistics: Statistics,  # noqa: ARG002
    ) -> list[Floats | None]:
        """Uniform numbers, of each coupling apart."""
        return [np.random.default_rng([self.seed, number]).random(one.size) for number, one in enumerate(couplings)]


@dataclass(frozen=True, slots=True)
class OfGradients:
    """The change of the loss when a unit becomes zero, to first or second order of its weights."""

    order: Literal[1, 2] = 1

    def requests(self, model: Model, couplings: Sequence[Coupling]) -> frozenset[AnyRequest]:  # noqa: ARG002
        """Gradients of all couplings."""
        return frozenset({GradientRequest()})

    def importances(
        self,
        model: Model,  # noqa: ARG002
        couplings: Sequence[Coupling],
        statistics: Statistics,
    ) -> list[Floats | None]:
        """Read off the statistics."""
        found: list[Floats | None] = []
        for coupling in couplings:
            seen = statistics.sensitivities(coupling.name)
            importance = seen.first_order if self.order == 1 else seen.second_order
            check_size(f"gradients of {coupling.name!r}", len(importance), coupling.size)
            found.append(importance)
        return found


@dataclass(frozen=True, slots=True)
class OfActivity:
    """How active the tensors are that show a unit: by the share of values that are not 0, or by their mean size."""

    by: Literal["share", "size"] = "share"

    def requests(self, model: Model, couplings: Sequence[Coupling]) -> frozenset[AnyRequest]:
        """The activity of each tensor that shows units of a coupling."""
        seen = (sighting for sightings in sightings_of(model, couplings) for sighting in sightings)
        return frozenset(ActivityRequest(sighting.tensor, sighting.axis) for sighting in seen)

    def importances(self, model: Model, couplings: Sequence[Coupling], statistics: Statistics) -> list[Floats | None]:
        """The mean over all tensors that show a unit; nothing is told where none does, or no value is ever 0."""
        means = [
            np.mean([self._activity(one, statistics) for one in sightings], axis=0) if sightings else None
            for sightings in sightings_of(model, couplings)
        ]
        if self.by == "size":
            return means
        return [None if mean is None or (mean == 1).all() else mean for mean in means]  # no zero anywhere: no order

    def _activity(self, seen: Sighting, statistics: Statistics) -> Floats:  # -> [units]
        activity = statistics.activity(seen.tensor, seen.axis)
        channels = 1 - activity.zeros if self.by == "share" else activity.magnitude
        check_size(f"activity of {seen.tensor!r}", len(channels), seen.length)
        return np.asarray(channels[seen.indices].mean(1))


@dataclass(frozen=True, slots=True)
class BrainSurgeon:
    """The error that stays in the layers that read a unit when all that they read else makes up for it."""

    damping: float = 0.01

    def requests(self, model: Model, couplings: Sequence[Coupling]) -> frozenset[AnyRequest]:
        """Second moments of what each layer reads that has a matrix and reads a unit."""
        return moment_requests(model, couplings)

    def importances(self, model: Model, couplings: Sequence[Coupling], statistics: Statistics) -> list[Floats | None]:
        """Harms in the order in which units go; nothing is told where no layer with a matrix reads them."""
        found: list[Floats | None] = []
        for coupling in couplings:
            quadratics = [
                Quadratic(matrix, hessian, reader.columns)
                for reader in readers_of(model, coupling)
                if is_solvable(reader.layer)
                for matrix, hessian in zip(
                    *least_squares_of(model, reader.layer, statistics, self.damping), strict=True
                )
            ]
            with at(f"units of {coupling.name!r}"):
                found.append(harms_in_order(quadratics) if quadratics else None)
        return found


_BY_NAME: Final[Mapping[str, Any]] = {
    "l1": OfWeights(functools.partial(magnitude, p=1)),
    "l2": OfWeights(),
    "geometric median": OfWeights(distance_to_others),
    "batch-norm scale": BatchNormScale(),
    "taylor": OfGradients(1),
    "fisher": OfGradients(2),
    "zeros": OfActivity("share"),
    "activation": OfActivity("size"),
}  # those that have settings are made below


def criterion_named(name: str, *, seed: int = 0, damping: float = 0.01) -> Criterion:
    """The criterion of this name.

    Args:
        name: one of :data:`CRITERIA`.
        seed: of the random one.
        damping: of the brain surgeon's second moments.

    Raises:
        RecipeError: there is none of this name.
    """
    if name == "random":
        return Random(seed)
    if name == "brain surgeon":
        return BrainSurgeon(damping)
    if name not in _BY_NAME:
        raise RecipeError(f"criterion must be one of {', '.join(CRITERIA)}; got {name!r}")
    found: Criterion = _BY_NAME[name]
    return found


def importances(
    model: Model, couplings: Sequence[Coupling], criterion: Criterion, statistics: Statistics
) -> list[Floats]:
    """How much the units of each coupling matter, [units] each; by l2 where the criterion cannot tell.

    Raises:
        ModelError: statistics that the criterion reads were not collected, or are of a graph of other widths.
    """
    return or_magnitude(model, couplings, criterion.importances(model, couplings, statistics))


def or_magnitude(model: Model, couplings: Sequence[Coupling], found: Sequence[Floats | None]) -> list[Floats]:
    """What was found, or the size of the weights that compute a unit."""
    return [
        magnitude(computing_rows(coupling, model.weight)) if one is None else one
        for coupling, one in zip(couplings, found, strict=True)
    ]
