"""Factorization: a layer becomes two, three or four smaller ones in a row."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np

from alula.errors import RecipeError, at
from alula.graph.cost import measure_cost
from alula.graph.editing import Editor
from alula.graph.layers import Layer
from alula.graph.matrices import no_matrix
from alula.graph.model import Model, Note
from alula.graph.statistics import AnyRequest, MomentRequest, Statistics
from alula.numerics.allocation import rounded_up
from alula.numerics.grids import finite_float32
from alula.numerics.ladders import Ladder as Rungs
from alula.numerics.ladders import climb
from alula.settings import check_settings
from alula.techniques.compensation import is_solvable, moments_of, why_no_moments
from alula.techniques.factor_chains import (
    Canonical,
    Chain,
    Ints,
    Ladder,
    Ranks,
    Singular,
    Tucker,
    ranks_of,
    write_chain,
)
from alula.techniques.technique import Context, other_type

Method = Literal["auto", "svd", "whitened", "tucker", "cp"]
Measure = Literal["energy", "share", "rank", "parameters", "macs"]
_BUDGETS: Final = ("parameters", "macs")
_FLOAT_BYTES: Final = 4
_LAYER_BYTES: Final = 130  # what one more layer takes in the file, with its names
_ROUNDING: Final = 1e-12  # of shares of energy, and of savings


@dataclass(frozen=True, slots=True)
class Factorize:
    """Replace layers by rows of smaller ones, where that leaves fewer parameters and multiply-accumulates.

    Gemm, MatMul and Conv become two (``svd``); Conv also three (``tucker``) or, without groups, one more than it has
    spatial axes and one (``cp``: four in two dimensions); a table becomes a narrow one and a MatMul.

    Attributes:
        kept: how much is kept, as ``by`` measures it.
        by: ``energy``: the least rank that keeps this share of the squared singular values. ``share``: this share of
            the full rank. ``rank``: this rank itself. ``parameters``, ``macs``: this share of what all chosen layers
            have together, divided so that little energy is lost.
        method: ``svd``: the nearest matrix. ``whitened``: the one whose outputs are nearest on calibration data; tables
            by ``svd``. ``tucker``, ``cp``: for Conv with a kernel, others by ``svd``. ``auto``: tucker for those, svd
            for others.
        multiple: ranks are multiples of it, where the full rank allows: kernels like some widths better.
        seed: of the random start of ``cp``.
    """

    kept: float = 0.9
    by: Measure = "energy"
    method: Method = "auto"
    multiple: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        check_settings(self)
        if self.by == "rank" and not (self.kept >= 1 and self.kept == int(self.kept)):
            raise RecipeError(f"kept must be a whole number from 1 on where it is a rank, got {self.kept!r}")
        if self.by != "rank" and not 0 < self.kept <= 1:
            raise RecipeError(f"kept must be above 0 and at most 1, got {self.kept!r}; 0.9 keeps 90 %")
        if self.multiple < 1:
            raise RecipeError(f"multiple must be at least 1, got {self.multiple!r}")

    def requests(self, model: Model, layers: Sequence[Layer]) -> frozenset[AnyRequest]:
        """Second moments of what the layers read, if the method weighs by them."""
        if self.method != "whitened":
            return frozenset()
        usable = (layer for layer in layers if is_solvable(layer) and self._obstacle(model, layer) is None)
        return frozenset(MomentRequest(layer.name) for layer in usable)

    def apply(self, model: Model, context: Context) -> Model:
        """Factorize those of the context's layers that become smaller and not slower; notes tell about each.

        Raises:
            RecipeError: the layers cannot be made as small as ``kept`` asks.
            DataError: a weight is NaN or infinite (the layer is named).
            ModelError: the method needs moments that were not collected.
        """
        whole = self._whole(model, context.layers)
        obstacles = {layer: self._obstacle(model, layer) or _unknown(whole[layer]) for layer in context.layers}
        layers = [layer for layer, reason in obstacles.items() if reason is None]
        notes = [Note(layer.name, f"stays whole: {reason}") for layer, reason in obstacles.items() if reason]
        if self.method == "whitened":
            unseen = ((layer, why_no_moments(layer)) for layer in layers if no_matrix(layer) is None)
            notes += [Note(layer.name, f"its inputs count alike: {reason}") for layer, reason in unseen if reason]
        divided = (
            self._divided(model, {layer: whole[layer] or 0 for layer in layers}, context.statistics)
            if self.by in _BUDGETS
            else {}
        )
        editor = Editor(model.edit())
        for layer in layers:
            with at(f"layer {layer.name!r}"):
                if self.by in _BUDGETS and layer not in divided:
                    notes.append(Note(layer.name, "stays whole: the budget asks nothing of it"))
                    continue
                chain = self._chain(model, layer, context.statistics)
                ranks = divided.get(layer) or self._ranks(chain)
                reason = _refusal(layer, chain, ranks, self.kept)
                if ranks is not None and reason is None:
                    write_chain(editor, layer, chain.links(ranks))
                notes.append(Note(layer.name, f"stays whole: {reason}" if reason else _figures(layer, chain, ranks)))
        return model.edited(editor.model, notes)

    def ladder(self, model: Model, layer: Layer, statistics: Statistics | None = None) -> Ladder:
        """What each rank of a layer costs and loses: for a search that measures the harm, and sets ranks.

        Raises:
            RecipeError: the layer cannot be factorized.
            DataError: a weight is NaN or infinite.
            ModelError: the method needs moments that were not collected.
        """
        with at(f"layer {layer.name!r}"):
            if reason := self._obstacle(model, layer):
                raise RecipeError(f"it cannot be factorized: {reason}")
            return ranks_of(self._chain(model, layer, statistics or Statistics()), self.multiple)

    def _chain(self, model: Model, layer: Layer, statistics: Statistics) -> Chain:
        weight = finite_float32(model.weight(layer.weight))
        node = next(node for node in model.graph if node.name == layer.name)
        if _has_kernel(layer) and self.method in ("auto", "tucker"):
            return Tucker(layer, node, weight)
        if _has_kernel(layer) and self.method == "cp":
            return Canonical(layer, node, weight, self.seed)
        weighted = self.method == "whitened" and is_solvable(layer)
        return Singular(layer, node, weight, moments_of(statistics, layer) if weighted else None)

    def _ranks(self, chain: Chain) -> Ranks | None:
        """The ranks of one layer by itself; None where none keeps as much energy as it must."""
        if self.by != "energy":
            wanted = [rounded_up(self.kept * full) if self.by == "share" else int(self.kept) for full in chain.full]
            rounded = [math.ceil(rank / self.multiple) * self.multiple for rank in wanted]
            return tuple(min(rank, full) for rank, full in zip(rounded, chain.full, strict=True))
        ladder = ranks_of(chain, self.multiple)
        keeps = np.flatnonzero(ladder.lost <= 1 - self.kept + _ROUNDING)
        if not len(keeps):
            return None
        return _row(ladder.ranks, keeps[np.lexsort((ladder.lost[keeps], ladder.parameters[keeps]))[0]])

    def _whole(self, model: Model, layers: Sequence[Layer]) -> dict[Layer, int | None]:
        """What the layers cost as they are, in parameters or multiply-accumulates; None where that is not known."""
        if self.by != "macs":
            return {layer: math.prod(layer.shape) for layer in layers}
        cost = measure_cost(model)
        return {layer: cost.layer(layer.name).macs for layer in layers}

    def _divided(self, model: Model, whole: Mapping[Layer, int], statistics: Statistics) -> dict[Layer, Ranks]:
        """The ranks of those layers that the budget wants smaller."""
        options, ladders, total = [], [], sum(whole.values())
        for layer, cost in whole.items():
            ranked = self.ladder(model, layer, statistics)
            size = math.prod(layer.shape)
            worth = (size - ranked.parameters) * _FLOAT_BYTES >= max(1, ranked.ranks.shape[1] * _LAYER_BYTES)
            gains = worth & ((ranked.macs < size) | (layer.operator == "Gather"))
            share = (ranked.parameters if self.by == "parameters" else ranked.macs)[gains] / size
            rising = np.argsort(-share, kind="stable")  # of savings
            options.append(ranked.ranks[gains][rising])
            ladders.append(Rungs(ranked.lost[gains][rising], (cost * (1 - share))[rising]))
        most = sum(float(rungs.savings.max(initial=0.0)) for rungs in ladders)
        budget = (1 - self.kept) * total * (1 - _ROUNDING)
        if most < budget:
            raise RecipeError(
                f"kept must be at least {1 - most / total:.1%} of the {self.by} of these {len(whole)} layers, which "
                f"the least ranks leave; got {self.kept:.1%}"
            )
        chosen = climb(ladders, budget)
        return {layer: _row(options[i], chosen[i]) for i, layer in enumerate(whole) if chosen[i] >= 0}

    def _obstacle(self, model: Model, layer: Layer) -> str | None:
        """Why a layer cannot be factorized, or None."""
        weight = model.graph.initializers[layer.weight]
        if layer.operator == "Gather":
            first = len(layer.shape) == 2 and layer.output_axis == 0
            reason = None if first else f"a table of shape {list(layer.shape)} is not looked up by row"
        else:
            reason = no_matrix(layer)
        if len(weight.uses()) > 1 or weight.is_graph_output():
            reason = "something else reads its weight too"
        if self.method == "cp" and _has_kernel(layer) and layer.groups > 1:
            reason = f"cp takes convolutions without groups, this has {layer.groups}"
        return reason or other_type(model.graph, layer)


def _has_kernel(layer: Layer) -> bool:
    return layer.operator == "Conv" and math.prod(layer.shape[2:]) > 1


def _unknown(cost: int | None) -> str | None:
    return "its multiply-accumulates cannot be told before running" if cost is None else None


def _row(ranks: Ints, index: int) -> Ranks:
    return tuple(int(rank) for rank in ranks[index])


def _refusal(layer: Layer, chain: Chain, ranks: Ranks | None, kept: float) -> str | None:
    """Why a layer would be no better for being factorized, or None."""
    if ranks is None:
        return f"no rank that makes it smaller keeps {kept:.1%} of its energy"
    size, rows = math.prod(layer.shape), np.array([ranks])
    slower = layer.operator != "Gather" and chain.macs(rows)[0] >= size
    saved = size - int(chain.parameters(rows)[0])
    if saved > 0 and not slower and saved * _FLOAT_BYTES < (added := len(ranks) * _LAYER_BYTES):
        return f"it saves {saved * _FLOAT_BYTES:,} bytes of weights, and the layers that come take about {added:,} more"
    return _figures(layer, chain, ranks) if saved <= 0 or slower else None


def _figures(layer: Layer, chain: Chain, ranks: Ranks | None) -> str:
    """What ranks cost, in words."""
    size, rows = math.prod(layer.shape), np.array([ranks])
    before = 0 if layer.operator == "Gather" else size
    return (
        f"rank {' x '.join(map(str, ranks or ()))} has {chain.parameters(rows)[0]:,} parameters for {size:,}, and "
        f"{chain.macs(rows)[0]:,} multiply-accumulates for {before:,} at each position"
    )
