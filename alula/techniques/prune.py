"""Structured pruning: channels, heads and features taken out, with all that lives and dies with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from alula.errors import RecipeError
from alula.graph.channels import Coupling, find_couplings
from alula.graph.layers import Layer
from alula.graph.model import Model, Note
from alula.graph.removal import remove_units
from alula.graph.statistics import AnyRequest
from alula.graph.staying import why_none_goes, why_units_stay
from alula.numerics.allocation import Limits, count_globally, count_uniformly, least_important
from alula.settings import check_settings
from alula.techniques.compensation import compensate, moment_requests
from alula.techniques.criteria import Criterion, CriterionName, criterion_named, or_magnitude
from alula.techniques.technique import Context, check_weights


@dataclass(frozen=True, slots=True)
class Prune:
    """Take out the units that matter least; nothing is trained afterwards.

    Attributes:
        amount: share of the units to take out, from 0 up to but not including 1.
        criterion: how much a unit matters. ``l1`` and ``l2``: the size of the weights that compute it. ``geometric
            median``: how far they are from those of its siblings. ``batch-norm scale``: the size of its scale in the
            batch normalisations behind it. ``taylor`` and ``fisher``: the change of the outputs when it becomes zero,
            to first and second order. ``zeros`` and ``activation``: how often it is not zero, and its mean size,
            after its Relu. ``brain surgeon``: the error that stays when the layers that read it make up for it,
            which they then do. ``random``: the control. Where the criterion cannot tell, ``l2`` does.
        scope: ``uniform`` takes the same share of each coupling; ``global`` compares units over the whole graph, by
            their importance relative to the mean of their coupling.
        least: share of its units that a coupling keeps at least.
        multiple: what the number of units that a coupling keeps is rounded up to: kernels like some widths better.
        seed: of the random criterion.
        compensate: whether layers make up for what they no longer read, by least squares on calibration data.
        damping: of that: what is added to the diagonal of the second moments, as a share of its mean.
    """

    amount: float
    criterion: CriterionName = "l2"
    scope: Literal["uniform", "global"] = "global"
    least: float = 0.1
    multiple: int = 1
    seed: int = 0
    compensate: bool = False
    damping: float = 0.01

    def __post_init__(self) -> None:
        check_settings(self)
        if not 0 <= self.amount < 1:
            raise RecipeError(f"amount must be at least 0 and below 1, got {self.amount!r}; 0.3 takes out 30 %")
        if not 0 <= self.damping < float("inf"):
            raise RecipeError(f"damping must be at least 0 and finite, got {self.damping!r}")
        Limits(self.least, self.multiple)

    def requests(self, model: Model, layers: Sequence[Layer]) -> frozenset[AnyRequest]:
        """What the criterion reads, and second moments where layers make up for what they lose."""
        couplings = computed_by(model, layers)
        moments = moment_requests(model, couplings) if self._compensates else frozenset()
        return self._criterion.requests(model, couplings) | moments

    @property
    def _compensates(self) -> bool:
        return self.compensate or self.criterion == "brain surgeon"

    @property
    def _criterion(self) -> Criterion:
        return criterion_named(self.criterion, seed=self.seed, damping=self.damping)

    def apply(self, model: Model, context: Context) -> Model:
        """The graph without the units that matter least among those that the chosen layers compute.

        Raises:
            RecipeError: no unit of the chosen layers can go.
            ModelError: a weight is not finite (the layer is named).
        """
        check_weights(model, context.layers)
        couplings = computed_by(model, context.layers)
        if not context.layers:
            raise RecipeError(
                "there is no layer whose weights are numbers to prune by: none at all, or codes or computed ones; "
                "prune first, and quantize, cluster or store sparse afterwards"
            )
        if not couplings:
            raise RecipeError(
                f"none of the {len(context.layers)} layers computes channels, heads or features that can go; "
                f"{why_none_goes(model, context.layers)}"
            )
        told = self._criterion.importances(model, couplings, context.statistics)
        notes = untold_notes(couplings, told, self.criterion)
        gone = self._least_important(couplings, or_magnitude(model, couplings, told))
        if self._compensates:
            model = compensate(model, couplings, gone, context.statistics, self.damping)
        smaller = remove_units(model, gone) if gone else model
        if not gone:
            notes.append(Note("pruning", "nothing was taken out: amount, least and multiple leave nothing to go"))
        produced = {member.initializer for one in couplings for member in one.members if member.produces}
        kept = [layer for layer in context.layers if layer.weight not in produced]
        notes += [Note(layer.name, f"keeps its channels: {_why_kept(model, layer, context.layers)}") for layer in kept]
        return smaller.edited(smaller.edit(), notes)

    def _least_important(
        self, couplings: Sequence[Coupling], importances: Sequence[np.ndarray]
    ) -> dict[str, list[int]]:
        """The units to take out, by the name of their coupling."""
        count = count_uniformly if self.scope == "uniform" else count_globally
        counts = count(importances, self.amount, Limits(self.least, self.multiple))
        chosen = least_important(importances, counts)
        return {one.name: units.tolist() for one, units in zip(couplings, chosen, strict=True) if len(units)}


def _why_kept(model: Model, layer: Layer, chosen: Sequence[Layer]) -> str:
    """Why the units of a chosen layer are not among those that may go."""
    for coupling in find_couplings(model):
        produced = {member.initializer for member in coupling.members if member.produces}
        if layer.weight in produced:
            others = produced - {weight for one in chosen for weight in one.weights}
            return f"they are one with those of {', '.join(sorted(others)[:3])}, which was not chosen"
    return why_units_stay(model, layer)


def untold_notes(couplings: Sequence[Coupling], told: Sequence[object | None], criterion: str) -> list[Note]:
    """A note for each coupling that a criterion tells nothing of."""
    return [
        Note(coupling.name, f"its units are compared by l2: {criterion} tells nothing of them")
        for coupling, one in zip(couplings, told, strict=True)
        if one is None
    ]


def computed_by(model: Model, layers: Sequence[Layer]) -> list[Coupling]:
    """The couplings whose units these layers alone compute."""
    chosen = {layer.weight for layer in layers}
    return [
        coupling
        for coupling in find_couplings(model)
        if {member.initializer for member in coupling.members if member.produces} <= chosen
    ]
