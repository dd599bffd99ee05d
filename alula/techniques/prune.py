"""Structured pruning: channels, heads and features taken out, with all that lives and dies with them."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np

from alula.errors import ModelError, RecipeError
from alula.graph.channels import Coupling, find_couplings
from alula.graph.layers import Layer
from alula.graph.model import Model, Note
from alula.graph.removal import remove_units
from alula.graph.statistics import Request
from alula.numerics.importance import distance_to_others, magnitude
from alula.techniques.technique import Context

Criterion = Literal["l1", "l2", "batch-norm scale", "geometric median", "random"]
_OF_ROWS: Final[dict[str, Callable[[np.ndarray], np.ndarray]]] = {
    "geometric median": distance_to_others,
    "l1": functools.partial(magnitude, p=1),
    "l2": magnitude,
}  # importance of units by their weights [n, k]


@dataclass(frozen=True, slots=True)
class Prune:
    """Take out the units that matter least; nothing is trained afterwards.

    Attributes:
        amount: share of the units to take out, from 0 up to but not including 1.
        criterion: how much a unit matters. ``l1`` and ``l2``: the size of the weights that compute it. ``geometric
            median``: how far they are from those of its siblings. ``batch-norm scale``: the size of its scale in the
            batch normalisations behind it, where there are any, else as ``l2``. ``random``: the control.
        scope: ``uniform`` takes the same share of each coupling; ``global`` compares units over the whole graph, by
            their importance relative to the mean of their coupling.
        least: share of its units that a coupling keeps at least.
        multiple: what the number of units that a coupling keeps is rounded up to: kernels like some widths better.
        seed: of the random criterion.
    """

    amount: float
    criterion: Criterion = "l2"
    scope: Literal["uniform", "global"] = "global"
    least: float = 0.1
    multiple: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.amount < 1:
            raise RecipeError(f"amount must be at least 0 and below 1, got {self.amount!r}; 0.3 takes out 30 %")
        if not 0 <= self.least <= 1:
            raise RecipeError(f"least must be between 0 and 1, got {self.least!r}")
        if self.multiple < 1:
            raise RecipeError(f"multiple must be at least 1, got {self.multiple!r}")
        known = (*_OF_ROWS, "batch-norm scale", "random")
        if self.criterion not in known or self.scope not in ("uniform", "global"):
            raise RecipeError(f"criterion must be one of {', '.join(known)}, and scope uniform or global; got "
                              f"{self.criterion!r} and {self.scope!r}")  # fmt: skip

    def requests(self, model: Model, layers: Sequence[Layer]) -> frozenset[Request]:  # noqa: ARG002
        """None: weights alone decide."""
        return frozenset()

    def apply(self, model: Model, context: Context) -> Model:
        """The graph without the units that matter least among those that the chosen layers compute.

        Raises:
            RecipeError: no unit of the chosen layers can go.
            ModelError: a weight is not finite (the layer is named).
        """
        _check_finite(model, context.layers)
        chosen = {layer.weight for layer in context.layers}
        couplings = [
            coupling
            for coupling in find_couplings(model)
            if {member.initializer for member in coupling.members if member.produces} <= chosen
        ]
        if not couplings:
            raise RecipeError(
                f"none of the {len(context.layers)} layers computes channels, heads or features that can go: what a "
                "graph gives out, and what a softmax or layer normalisation reads as a whole, stays"
            )
        scores = [self._importance(model, coupling, number) for number, coupling in enumerate(couplings)]
        gone = {
            coupling.name: units.tolist()
            for coupling, units in zip(couplings, self._least_important(scores), strict=True)
            if len(units)
        }
        produced = {member.initializer for one in couplings for member in one.members if member.produces}
        kept = [layer for layer in context.layers if layer.weight not in produced]
        smaller = remove_units(model, gone) if gone else model
        reason = "keeps its channels: they are read as a whole, or shared with others"
        notes = [Note(layer.name, reason) for layer in kept]
        return smaller.edited(smaller.edit(), notes)

    def _importance(self, model: Model, coupling: Coupling, number: int) -> np.ndarray:  # [units]
        if self.criterion == "random":
            return np.random.default_rng([self.seed, number]).random(coupling.size)
        if self.criterion == "batch-norm scale":
            scales = _scales(model, coupling)
            if scales is not None:
                return scales
        rows = np.concatenate(
            [
                _rows(model.weight(member.initializer), member.axis, member.indices)
                for member in coupling.members
                if member.produces
            ],
            axis=1,
        )
        return _OF_ROWS[self.criterion if self.criterion in _OF_ROWS else "l2"](rows)

    def _least_important(self, scores: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The units of each coupling to take out."""
        if self.scope == "uniform":
            counts = [math.floor(self.amount * len(one)) for one in scores]
        else:
            counts = _count_globally(scores, self.amount)
        limited = [self._limited(count, len(one)) for count, one in zip(counts, scores, strict=True)]
        return [np.argsort(one, kind="stable")[:count] for count, one in zip(limited, scores, strict=True)]

    def _limited(self, count: int, size: int) -> int:
        """How many of ``size`` units go: some stay, and those that stay are as many as kernels like."""
        stay = max(size - count, math.ceil(self.least * size), 1)
        return max(0, size - math.ceil(stay / self.multiple) * self.multiple)


def _count_globally(scores: Sequence[np.ndarray], amount: float) -> list[int]:
    """How many units of each coupling are among the least of all, each relative to the mean of its coupling.

    Among equals those come first that stand low in their own coupling, so that ties are spread over all of them.
    """
    relative = np.concatenate([one / max(float(one.mean()), np.finfo(float).tiny) for one in scores])
    standing = np.concatenate([np.argsort(np.argsort(one, kind="stable")) / len(one) for one in scores])
    owners = np.repeat(np.arange(len(scores)), [len(one) for one in scores])
    least = np.lexsort((standing, relative))[: math.floor(amount * len(relative))]
    return [int(count) for count in np.bincount(owners[least], minlength=len(scores))]


def _check_finite(model: Model, layers: Sequence[Layer]) -> None:
    for layer in layers:
        for name in layer.weights:
            weight = model.weight(name)
            if weight.dtype.kind == "f" and not np.isfinite(weight).all():
                raise ModelError(f"layer {layer.name!r}: its weights hold NaN or infinity; what matters cannot be told")


def _rows(weight: np.ndarray, axis: int, indices: np.ndarray) -> np.ndarray:  # -> [units, weights of each]
    """All weights of each unit, in one row."""
    taken = np.take(weight, indices.reshape(-1), axis)
    return np.moveaxis(taken, axis, 0).reshape(len(indices), -1)


def _scales(model: Model, coupling: Coupling) -> np.ndarray | None:
    """The mean size of each unit's scales in batch normalisations; None where there are none."""
    scales = {
        str(node.inputs[1].name)
        for node in model.graph
        if node.op_type == "BatchNormalization" and node.inputs[1] is not None
    }
    rows = [
        np.abs(_rows(model.weight(member.initializer), 0, member.indices))
        for member in coupling.members
        if member.initializer in scales
    ]
    return np.concatenate(rows, axis=1).mean(1) if rows else None
