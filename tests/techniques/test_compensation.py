"""Layers that make up for what went: the least-squares solution, and nothing lost where nothing need be."""

from __future__ import annotations

import numpy as np
import pytest

from alula.errors import ModelError
from alula.graph.channels import find_couplings
from alula.graph.removal import remove_units
from alula.graph.running import Runner
from alula.graph.statistics import Statistics, _exposing, collect
from alula.techniques.compensation import compensate, moment_requests
from alula.testing.conformance import with_weight
from alula.testing.models import convolution_network, model_from_text, random_feeds

DENSE = "net (float[n, 6] x) => (float[n, 3] y) { a = MatMul (x, w) b = Relu (a) y = Gemm (b, v, c) }"
GROUPED = """net (float[n, 4, 5, 5] x) => (float[n, m, s, t] y) {
    a = Conv <pads = [1, 1, 1, 1]> (x, w) b = Relu (a) y = Conv <group = 2, pads = [1, 1, 1, 1]> (b, v)
}"""


def drawn(text, **shapes):
    random = np.random.default_rng(0)
    return model_from_text(text, {name: random.standard_normal(s).astype(np.float32) for name, s in shapes.items()})


def compensated(model, batches, gone, damping=0.0):
    couplings = find_couplings(model)
    statistics = collect(model, batches, moment_requests(model, couplings))
    return compensate(model, couplings, {couplings[0].name: gone}, statistics, damping)


def test_the_reader_is_the_least_squares_solution_on_what_is_left():
    model = drawn(DENSE, w=(6, 8), v=(8, 3), c=(3,))
    batches = [random_feeds(model, batch=30, seed=seed) for seed in range(3)]
    gone = [1, 5, 6]
    result = compensated(model, batches, gone)
    x = np.concatenate([feeds["x"] for feeds in batches])
    h = np.maximum(x @ model.weight("w"), 0).astype(np.float64)
    kept = np.delete(np.arange(8), gone)
    fitted = np.linalg.lstsq(h[:, kept], h @ model.weight("v"), rcond=None)[0]
    np.testing.assert_allclose(result.weight("v")[kept], fitted, rtol=1e-3, atol=1e-4)
    assert not result.weight("v")[gone].any()
    np.testing.assert_array_equal(result.weight("w"), model.weight("w"))


def test_a_grouped_convolution_makes_up_within_each_group():
    model = drawn(GROUPED, w=(6, 4, 3, 3), v=(4, 3, 3, 3))
    batches = [random_feeds(model, batch=40)]
    (coupling,) = find_couplings(model)
    without = remove_units(model, {coupling.name: [1]})
    better = remove_units(compensated(model, batches, [1]), {coupling.name: [1]})
    expected, plain, result = (Runner(one, threads=1)(batches[0])["y"] for one in (model, without, better))
    b = Runner(_exposing(model, ["b"]), threads=1)(batches[0])["b"]
    for group in range(2):
        channels = np.array([0, 2]) + 3 * group
        padded = np.pad(b[:, channels], ((0, 0), (0, 0), (1, 1), (1, 1)))
        rows = [padded[:, :, i : i + 3, j : j + 3].reshape(40, -1) for i in range(5) for j in range(5)]
        wanted = expected[:, 2 * group : 2 * group + 2].transpose(2, 3, 0, 1).reshape(-1, 2)
        stacked = np.concatenate(rows).astype(np.float64)
        best = stacked @ np.linalg.lstsq(stacked, wanted, rcond=None)[0]
        got = result[:, 2 * group : 2 * group + 2].transpose(2, 3, 0, 1).reshape(-1, 2)
        np.testing.assert_allclose(got, best, rtol=1e-2, atol=1e-2)
    assert np.linalg.norm(result - expected) < np.linalg.norm(plain - expected)


def test_a_layer_that_reads_two_kinds_of_units_makes_up_for_both_at_once():
    text = """net (float[n, 6] x) => (float[n, 3] y) {
        a = MatMul (x, w) b = Relu (a) c = MatMul (x, u) d = Tanh (c) e = Concat <axis = 1> (b, d) y = MatMul (e, v)
    }"""
    model = drawn(text, w=(6, 5), u=(6, 4), v=(9, 3))
    feeds = random_feeds(model, batch=50)
    couplings = find_couplings(model)
    statistics = collect(model, [feeds], moment_requests(model, couplings))
    gone = {couplings[0].name: [0, 3], couplings[1].name: [1]}
    result = compensate(model, couplings, gone, statistics, damping=0.0)
    x = feeds["x"]
    e = np.concatenate([np.maximum(x @ model.weight("w"), 0), np.tanh(x @ model.weight("u"))], 1).astype(np.float64)
    kept = np.delete(np.arange(9), [0, 3, 6])
    fitted = np.linalg.lstsq(e[:, kept], e @ model.weight("v"), rcond=None)[0]
    np.testing.assert_allclose(result.weight("v")[kept], fitted, rtol=1e-3, atol=1e-4)


def test_what_others_can_replace_is_not_missed():
    model = drawn(DENSE, w=(6, 8), v=(8, 3), c=(3,))
    w = model.weight("w").copy()
    w[:, 4:] = 2 * w[:, :4]
    doubled = model_from_text(DENSE, {"w": w, "v": model.weight("v"), "c": model.weight("c")})
    feeds = random_feeds(doubled, batch=30)
    (coupling,) = find_couplings(doubled)
    smaller = remove_units(compensated(doubled, [feeds], [4, 5, 6, 7]), {coupling.name: [4, 5, 6, 7]})
    other = random_feeds(doubled, batch=30, seed=1)
    expected, result = (Runner(one, threads=1)(other)["y"] for one in (doubled, smaller))
    np.testing.assert_allclose(result, expected, rtol=1e-3, atol=1e-3)


def test_nothing_gone_nothing_changed():
    model = convolution_network()
    result = compensate(model, find_couplings(model), {}, Statistics())
    assert result.fingerprint == model.fingerprint


def test_layers_that_cannot_are_named():
    text = (
        "net (float[n, 2, 5, 5] x) => (float[n, c, h, w] y) { a = Conv (x, k) b = Relu (a) y = ConvTranspose (b, u) }"
    )
    model = drawn(text, k=(3, 2, 1, 1), u=(3, 2, 2, 2))
    result = compensated(model, [random_feeds(model)], [0])
    assert any("does not make up" in note.text and "ConvTranspose" in note.place for note in result.notes)


def test_moments_that_were_not_collected_are_asked_for():
    model = drawn(DENSE, w=(6, 8), v=(8, 3), c=(3,))
    (coupling,) = find_couplings(model)
    with pytest.raises(ModelError, match="second moments of layer"):
        compensate(model, [coupling], {coupling.name: [0]}, Statistics())


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused_by_the_name_of_their_layer(poison):
    model = drawn(DENSE, w=(6, 8), v=(8, 3), c=(3,))
    couplings = find_couplings(model)
    statistics = collect(model, [random_feeds(model)], moment_requests(model, couplings))
    broken = with_weight(model, "v", lambda v: np.where(v == v[0, 0], poison, v))
    with pytest.raises(ModelError, match=r"layer 'Gemm_.*NaN"):
        compensate(broken, couplings, {couplings[0].name: [0]}, statistics)
