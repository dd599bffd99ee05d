"""Factorization: which rank, for which layers, and what is said of those that stay whole."""

from __future__ import annotations

import numpy as np
import pytest

from alula.errors import DataError, ModelError, RecipeError
from alula.graph.cost import measure_cost
from alula.graph.statistics import MomentRequest, collect
from alula.graph.trainable import restored, trainable
from alula.recipe import Recipe, Step, apply_recipe
from alula.targets import OnnxRuntime, OpenVino
from alula.techniques.factorize import Factorize
from alula.techniques.technique import Context
from alula.testing.conformance import relative_error, with_weight
from alula.testing.models import convolution_network, embedding_network, model_from_text, random_feeds


def normal(*shape):
    return np.random.default_rng(list(shape)).standard_normal(shape).astype(np.float32)


def of_rank(rank, rows, columns, noise=0.0):
    left = np.random.default_rng(rank).standard_normal((rows, rank))
    return (left @ normal(rank, columns) + noise * normal(rows, columns)).astype(np.float32)


def network():
    """A product of low rank, a convolution, a product without structure, a narrow one."""
    text = """net (float[n, 16, 8, 8] x) => (float[n, 3] y) {
        a = Conv <pads = [1, 1, 1, 1]> (x, kernel, shift)
        b = Relu (a)
        p = GlobalAveragePool (b)
        f = Flatten (p)
        c = MatMul (f, low)
        d = Relu (c)
        e = Gemm <transB = 1> (d, plain, shift2)
        y = MatMul (e, narrow)
    }"""
    weights = {"kernel": normal(24, 16, 3, 3), "shift": normal(24), "low": of_rank(4, 24, 40, 0.05),
               "plain": normal(32, 40), "shift2": normal(32), "narrow": normal(32, 3)}  # fmt: skip
    return model_from_text(text, weights)


def treat(model, *, feeds=None, include=None, **settings):
    technique = Factorize(**settings)
    layers = tuple(layer for layer in model.layers() if include is None or layer.weight in include)
    statistics = collect(model, feeds or [random_feeds(model)], technique.requests(model, layers))
    return technique.apply(model, Context(layers, statistics))


def notes(model):
    return " / ".join(map(str, model.notes))


def test_energy_finds_the_rank_that_is_there():
    model = network()
    for kept in (0.5, 0.9, 0.99):
        result = treat(model, kept=kept, include={"low"})
        rank = result.weight("low.0").shape[1]
        squares = np.linalg.svd(model.weight("low").astype(np.float64))[1] ** 2
        shares = squares.cumsum() / squares.sum()
        assert rank == int(np.argmax(shares >= kept)) + 1
        assert f"rank {rank} has {rank * 64:,} parameters for 960" in notes(result)
    assert rank == 4


def test_of_a_kernel_the_cheapest_pair_of_ranks_that_keeps_the_energy():
    model = network()
    result = treat(model, kept=0.6, include={"kernel"})
    (layer,) = [layer for layer in model.layers() if layer.weight == "kernel"]
    ladder = Factorize(0.6).ladder(model, layer)
    found = (result.weight("kernel.1").shape[0], result.weight("kernel.1").shape[1])
    size = sum(result.weight(f"kernel.{number}").size for number in range(3))
    assert found in {tuple(pair) for pair in ladder.ranks[ladder.lost <= 0.4].tolist()}
    assert size == ladder.parameters[ladder.lost <= 0.4].min()


def test_shares_and_ranks_are_of_the_full_rank_and_rounded_up():
    model = network()
    ranks = {}
    share, rank = {"kept": 0.3, "by": "share"}, {"kept": 5, "by": "rank"}
    for settings in (share, {**share, "multiple": 4}, rank, {**rank, "method": "cp"}):
        result = treat(model, **settings)
        kernel = result.weight("kernel.0").shape[0], result.weight("kernel.1").shape[0]
        ranks[tuple(settings.values())] = (*kernel, result.weight("low.0").shape[1], result.weight("plain.0").shape[0])
    assert ranks == {
        (0.3, "share"): (5, 8, 8, 10),  # of 16, 24, 24, 32
        (0.3, "share", 4): (8, 8, 8, 12),
        (5, "rank"): (5, 5, 5, 5),
        (5, "rank", "cp"): (5, 5, 5, 5),
    }


@pytest.mark.parametrize("by", ["parameters", "macs"])
@pytest.mark.parametrize("kept", [0.9, 0.6, 0.3])
@pytest.mark.parametrize("method", ["auto", "svd", "whitened"])
def test_a_budget_is_met_and_spent_where_it_harms_least(method, kept, by):
    model = network()
    result = treat(model, kept=kept, by=by, method=method)
    layers = [layer.name for layer in model.layers()]
    before, after = measure_cost(model), measure_cost(result)
    if by == "macs":
        now, then = after.macs, before.macs
    else:
        biases = sum(model.weight(name).size for name in ("shift", "shift2"))
        now, then = after.parameters - biases, before.parameters - biases
    assert 0.9 * kept * then <= now <= kept * then
    assert {note.place for note in result.notes} == set(layers), "each layer is told about"


def test_a_budget_takes_from_the_layer_of_low_rank_first():
    result = treat(network(), kept=0.8, by="parameters", include={"low", "plain"})
    assert "plain" in result.graph.initializers, notes(result)
    assert "the budget asks nothing of it" in notes(result)
    assert result.weight("low.0").shape[1] >= 4


def test_a_budget_that_cannot_be_met_is_refused_with_what_can():
    with pytest.raises(RecipeError, match=r"kept must be at least \d+\.\d% of the parameters of these 4 layers"):
        treat(network(), kept=0.01, by="parameters")


@pytest.mark.parametrize("method", ["auto", "whitened", "cp"])
def test_what_would_grow_stays_whole_with_the_figures(method):
    model = network()
    result = treat(model, kept=0.9, by="share", method=method)
    assert "narrow" in result.graph.initializers
    assert "stays whole: rank 3 has 105 parameters for 96, and 105 multiply-accumulates for 96" in notes(result)
    full = treat(model, kept=1.0, by="share", method=method, include={"low", "plain", "narrow"})
    assert full.graph.initializers.keys() == model.graph.initializers.keys()


def test_what_would_be_slower_stays_whole_though_smaller():
    """The first link of Tucker runs before the stride, at 16 times the positions."""
    text = "net (float[n, 32, 16, 16] x) => (float[n, 32, 4, 4] y) { y = Conv <strides = [4, 4]> (x, w) }"
    model = model_from_text(text, {"w": normal(32, 32, 2, 2)})
    result = treat(model, kept=0.5, by="share")
    assert "1,536 parameters" not in notes(result)
    assert "rank 16 x 16 has 2,048 parameters for 4,096, and 9,728 multiply-accumulates for 4,096" in notes(result)
    assert "w" in result.graph.initializers
    assert "w.1" in treat(model, kept=0.5, by="share", method="svd").graph.initializers


def test_whitened_errs_less_where_it_was_calibrated():
    """The inputs of the layer vary in few directions."""
    mixing = (np.random.default_rng(1).standard_normal((24, 24)) * np.geomspace(1, 0.01, 24)).astype(np.float32)
    model = model_from_text("net (float[n, 24] x) => (float[n, 40] y) { y = MatMul (x, w) }", {"w": normal(24, 40)})
    feeds = [{"x": np.random.default_rng(seed).standard_normal((64, 24)).astype(np.float32) @ mixing.T} for seed in (0, 1)]  # fmt: skip  # noqa: E501
    errors = [
        relative_error(model.run(feeds[1]), treat(model, kept=6, by="rank", method=m, feeds=feeds[:1]).run(feeds[1]))
        for m in ("svd", "whitened")
    ]
    assert errors[1] < 0.5 * errors[0], errors


def test_whitened_loses_the_energy_of_outputs_that_is_said():
    text = "net (float[n, 6, 7, 7] x) => (float[n, 8, 4, 4] y) { y = Conv <group = 2, strides = [2, 2], pads = [1, 1, 1, 1]> (x, w) }"  # fmt: skip  # noqa: E501
    model, technique = model_from_text(text, {"w": normal(8, 3, 3, 3)}), Factorize(2, by="rank", method="whitened")
    feeds = random_feeds(model, batch=50)
    (layer,) = model.layers()
    statistics = collect(model, [feeds], technique.requests(model, model.layers()))
    ladder = technique.ladder(model, layer, statistics)
    result = technique.apply(model, Context(model.layers(), statistics))
    assert relative_error(model.run(feeds), result.run(feeds)) ** 2 == pytest.approx(ladder.lost[1], rel=1e-2)


def test_only_layers_that_are_weighted_are_asked_about():
    model = embedding_network()
    assert Factorize(method="svd").requests(model, model.layers()) == frozenset()
    matrix = model.layers()[1]
    assert Factorize(method="whitened").requests(model, model.layers()) == {MomentRequest(matrix.name)}
    with pytest.raises(ModelError, match=f"layer '{matrix.name}'.*no second moments"):
        Factorize(0.5, by="share", method="whitened").apply(model, Context((matrix,)))
    assert "table.0" in treat(model, kept=0.3, by="share", method="whitened", include={"table"}).graph.initializers


def test_what_cannot_be_done_is_said():
    text = """net (float[n, 3, 4, 4] x, float[5, n, 6] s, float[3, n, 8] m)
        => (float[n, 5, 9, 9] y, float[5, 1, n, 4] z, float[3, n, 6] p, float[n, 5, 9, 9] q) {
        y = ConvTranspose <strides = [2, 2]> (x, w)
        z = RNN <hidden_size = 4> (s, i, r)
        p = MatMul (m, stack)
        q = ConvTranspose <strides = [2, 2]> (x, w)
    }"""
    weights = {"w": normal(3, 5, 3, 3), "i": normal(1, 4, 6), "r": normal(1, 4, 4), "stack": normal(3, 8, 6)}
    told = notes(treat(model_from_text(text, weights)))
    for reason in ("something else reads its weight too", "its weight is that of a RNN", "is a stack of matrices"):
        assert reason in told, told
    table = model_from_text(
        "net (int64[n] t) => (float[6, n] y) { y = Gather <axis = 1> (w, t) }", {"w": normal(6, 20)}
    )
    assert "is not looked up by row" in notes(treat(table))
    half = model_from_text("net (float16[n, 8] x) => (float16[n, 8] y) { y = MatMul (x, w) }", {"w": np.ones((8, 8), "f2")})  # fmt: skip  # noqa: E501
    assert "float16" in notes(treat(half))
    assert "without groups, this has 8" in notes(treat(convolution_network(), method="cp"))
    with pytest.raises(RecipeError, match=r"layer 'Gather_0': it cannot be factorized: a table of shape \[6, 20\]"):
        Factorize().ladder(table, table.layers()[0])


@pytest.mark.parametrize("settings", [{"kept": 0.4, "by": "share"}, {"kept": 0.4, "by": "share", "method": "cp"}])
@pytest.mark.parametrize("target", [OnnxRuntime(threads=1), OpenVino(threads=1)], ids=lambda target: target.name)
def test_runtimes_compute_what_the_graph_says(settings, target, tmp_path):
    result = treat(network(), **settings)
    feeds = random_feeds(result)
    opened = target.open(target.build(result, tmp_path))
    assert relative_error(result.run(feeds), opened(feeds)) < 1e-4


def test_factors_are_trained_as_any_weights():
    result = treat(network(), kept=0.4, by="share")
    module = trainable(result)
    names = set(module.initializer_names.values())
    assert {"kernel.0", "kernel.1", "kernel.2", "low.0", "low.1"} <= names
    assert restored(module).to_bytes() == result.to_bytes()


def test_same_bytes_and_the_input_unchanged():
    model = network()
    before = model.to_bytes()
    first, again = (treat(model, kept=0.5, by="share", method="cp") for _ in range(2))
    assert first.to_bytes() == again.to_bytes()
    assert model.to_bytes() == before
    assert [layer.name for layer in first.layers() if layer.name in {one.name for one in model.layers()}] == [
        layer.name for layer in model.layers()
    ], "the last link keeps the name"


def test_broken_weights_are_refused_by_layer():
    model = with_weight(network(), "low", lambda weight: np.where(weight == weight.flat[5], np.nan, weight))
    for settings in ({}, {"kept": 0.5, "by": "parameters"}):
        with pytest.raises(DataError, match=r"layer 'MatMul_\d+'.*1 NaN"):
            Factorize(**settings).apply(model, Context(model.layers()))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kept": 0.0}, "above 0"),
        ({"kept": 1.5}, "at most 1"),
        ({"kept": 2.5, "by": "rank"}, "whole number"),
        ({"kept": 0, "by": "rank"}, "whole number"),
        ({"by": "luck"}, "by must be"),
        ({"method": "luck"}, "method must be"),
        ({"multiple": 0}, "at least 1"),
    ],
)
def test_nonsense_is_refused(settings, message):
    with pytest.raises(RecipeError, match=message):
        Factorize(**settings)


def test_a_layer_whose_file_would_grow_stays_with_the_figure():
    draw = np.random.default_rng(0).standard_normal
    model = model_from_text(
        "g (float[b, 4] x) => (float[b, 3] y) { h = MatMul (x, w) r = Relu (h) y = MatMul (r, o) }",
        {"w": draw((4, 8)).astype(np.float32), "o": draw((8, 3)).astype(np.float32)},
    )
    made = apply_recipe(model, Recipe((Step(Factorize(0.5, multiple=1)),)))
    assert made.size_bytes <= model.size_bytes
    assert sum("bytes of weights, and the layers that come take about" in str(note) for note in made.notes) > 0
