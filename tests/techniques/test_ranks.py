"""Shares of ranks are chosen by what the outputs show."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from alula import Factorize, Recipe, Step, apply_recipe, measure_cost
from alula.errors import DataError, RecipeError
from alula.graph.running import Runner, relative_change
from alula.techniques import Context
from alula.techniques.ranks import SHARES, choose_shares
from alula.testing.models import model_from_text

TEXT = "n (float[b, 32] x) => (float[b, 16] y) { h = MatMul (x, u) r = Tanh (h) s = MatMul (r, v) y = MatMul (s, w) }"


def network(rank: int = 32, seed: int = 0):
    """Three layers; the second is of some rank."""
    random = np.random.default_rng(seed)

    def draw(*shape: int):
        return random.standard_normal(shape).astype(np.float32) / np.float32(shape[0]) ** 0.5

    return model_from_text(TEXT, {"u": draw(32, 32), "v": draw(32, rank) @ draw(rank, 32), "w": draw(32, 16)})


def feeds(count: int = 2):
    random = np.random.default_rng(1)
    return [{"x": random.standard_normal((16, 32)).astype(np.float32)} for _ in range(count)]


def share_kept(model, smaller, by: str) -> float:
    costs = [measure_cost(one, {"x": (16, 32)}) for one in (model, smaller)]
    counts = [cost.parameters if by == "parameters" else cost.total_macs for cost in costs]
    return counts[1] / counts[0]


def factorized(model, shares):
    steps = (Step(Factorize(share, by="share"), include=(name,)) for name, share in shares.items())
    return apply_recipe(model, Recipe(tuple(steps)))


@pytest.mark.parametrize("by", ["parameters", "macs"])
@pytest.mark.parametrize("kept", [0.9, 0.7, 0.5])
def test_the_budget_is_met(by, kept):
    model = network()
    assert share_kept(model, factorized(model, choose_shares(model, kept, feeds(), by=by)), by) <= kept


def test_a_layer_of_low_rank_goes_first():
    model = network(rank=3)
    second = model.layers()[1].name
    assert list(choose_shares(model, 0.85, feeds())) == [second]


def test_the_sum_of_harms_is_near_the_least_of_all_combinations():
    """Greedy steps of convex ladders: no worse than a few hundredths above the best combination there is."""
    model, data = network(seed=3), feeds()
    before, names = Runner(model), [layer.name for layer in model.layers()]
    harms: dict[tuple[str, float], float] = {}
    saved: dict[tuple[str, float], float] = {}
    for layer, share in itertools.product(model.layers(), SHARES):
        smaller = Factorize(share, by="share").apply(model, Context((layer,)))
        gain = 1 - share_kept(model, smaller, "parameters")
        if gain > 0:
            saved[layer.name, share] = gain
            harms[layer.name, share] = relative_change(before, Runner(smaller), data) ** 2
    choices = [[None, *(share for name, share in harms if name == one)] for one in names]
    totals = [
        sum(harms[name, share] for name, share in zip(names, picked, strict=True) if share)
        for picked in itertools.product(*choices)
        if sum(saved[name, share] for name, share in zip(names, picked, strict=True) if share) >= 0.35
    ]
    chosen = choose_shares(model, 0.65, data)
    assert sum(harms[name, share] for name, share in chosen.items()) <= 1.25 * min(totals)


def test_what_cannot_be_done_is_refused():
    model = network()
    with pytest.raises(RecipeError, match=r"at most .* can be saved"):
        choose_shares(model, 0.01, feeds())
    with pytest.raises(RecipeError, match="above 0"):
        choose_shares(model, 0.0, feeds())
    with pytest.raises(DataError, match="feeds are empty"):
        choose_shares(model, 0.5, [])
