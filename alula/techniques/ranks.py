"""Which share of its rank each layer keeps, by how far the outputs move when it alone keeps less."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal, TypeAlias

import numpy as np

from alula.errors import DataError, RecipeError
from alula.graph.cost import measure_cost
from alula.graph.layers import Layer, select
from alula.graph.model import Model
from alula.graph.running import Runner, relative_change
from alula.graph.statistics import collect
from alula.numerics.ladders import climb, convex_ladder
from alula.techniques.factorize import Factorize
from alula.techniques.technique import Context

Feeds: TypeAlias = Mapping[str, np.ndarray]
Saved: TypeAlias = Literal["parameters", "macs"]
SHARES: Final = (0.8, 0.6, 0.45, 0.3, 0.2, 0.1)  # of the full rank, that are tried


@dataclass(frozen=True, slots=True)
class _Option:
    """A layer at a share of its rank: how far that moves the outputs, squared, and what it saves."""

    share: float
    harm: float
    saved: float


def choose_shares(
    model: Model,
    kept: float,
    feeds: Sequence[Feeds],
    *,
    by: Saved = "parameters",
    technique: Factorize | None = None,
    include: tuple[str, ...] = ("*",),
) -> dict[str, float]:
    """The share of its rank that each layer is to keep, by its name, for steps of ``Factorize(share, by="share")``.

    Each layer alone is factorized at several shares, and it is measured how far the outputs move; shares are then
    chosen so that enough is saved at the least sum of squares of that. Layers that are not named stay whole.

    Args:
        model: the graph.
        kept: share of the model's parameters or multiply-accumulates that is kept at most.
        feeds: what outputs are compared on, and ``whitened`` weighs by.
        by: what is saved.
        technique: its method, multiple and seed are used.
        include: patterns of the layers that may be factorized.

    Raises:
        RecipeError: the layers cannot save that much.
        DataError: there are no feeds, they do not fit, or the outputs are not finite.
    """
    if not 0 < kept <= 1:
        raise RecipeError(f"kept must be above 0 and at most 1, got {kept!r}; 0.5 keeps half of the {by}")
    if not feeds:
        raise DataError("feeds are empty; give at least one example")
    method, layers = technique or Factorize(), select(model.layers(), include)
    statistics = collect(model, feeds, method.requests(model, layers))
    whole = _count(model, by, feeds[0])

    def options(layer: Layer) -> list[_Option]:
        made = []
        for share in SHARES:
            smaller = replace(method, kept=share, by="share").apply(model, Context((layer,), statistics))
            saved = whole - _count(smaller, by, feeds[0])
            if saved > 0:
                made.append(_Option(share, relative_change(before, Runner(smaller), feeds) ** 2, saved))
        return made

    before = Runner(model)
    tried = {layer.name: options(layer) for layer in layers}
    ladders = [
        convex_ladder(np.array([one.harm for one in made]), np.array([one.saved for one in made]))
        for made in tried.values()
    ]
    rungs = climb(ladders, (1 - kept) * whole)
    return {name: made[rung].share for (name, made), rung in zip(tried.items(), rungs, strict=True) if rung >= 0}


def _count(model: Model, by: Saved, feeds: Feeds) -> float:
    cost = measure_cost(model, {name: array.shape for name, array in feeds.items()})
    return float(cost.parameters if by == "parameters" else cost.total_macs)
