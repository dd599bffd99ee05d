"""Split channels give the same outputs, and make a coarse grid usable where a channel stands out."""

from __future__ import annotations

import numpy as np
import pytest

from alula.errors import DataError, RecipeError
from alula.graph.statistics import collect
from alula.techniques import Context, FoldBatchNorm, QuantizeDynamic, QuantizeWeights, SplitOutliers
from alula.testing.conformance import relative_error, with_weight
from alula.testing.models import convolution_network, dense_network, model_from_text, random_feeds

ROW = """n (float[b, 12, 6, 6] x) => (float[b, 5, 6, 6] y) { h = Conv (x, w, c) r = Relu (h)
    d = Conv <group = 16, pads = [1, 1, 1, 1]> (r, u, e) q = LeakyRelu (d) y = Conv (q, v) }"""
SHAPES = {"w": (16, 12, 1, 1), "c": (16,), "u": (16, 1, 3, 3), "e": (16,), "v": (5, 16, 1, 1)}


def made(outlier=1.0, seed=0):
    random = np.random.default_rng(seed)
    weights = {name: random.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()}
    weights["v"][:, 3] *= outlier
    weights["u"][3] *= 0 if outlier == 0 else 1 / outlier
    return model_from_text(ROW, weights)


def split(model, feeds=None, layers=None, **settings):
    technique = SplitOutliers(**settings)
    chosen = tuple(layer for layer in model.layers() if layers is None or layer.name in layers)
    requests = technique.requests(model, chosen)
    statistics = collect(model, [feeds], requests) if requests else None
    return technique.apply(model, Context(chosen, statistics) if statistics is not None else Context(chosen))


@pytest.mark.parametrize("by", ["weights", "activations"])
@pytest.mark.parametrize("expansion", [0.01, 0.3, 1.0])
@pytest.mark.parametrize("build", [made, convolution_network, dense_network], ids=lambda build: build.__name__)
def test_outputs_stay(build, by, expansion):
    model = build()
    feeds = random_feeds(model)
    result = split(model, feeds, by=by, expansion=expansion, grid_bits=4)
    assert any("there twice" in note.text for note in result.notes)
    assert relative_error(model.run(feeds), result.run(feeds)) < 1e-5


def test_layers_that_compute_a_channel_compute_it_twice():
    model = made(outlier=10.0)
    result = split(model, expansion=0.01, layers={"Conv_0", "Conv_1", "Conv_2"}, copies=False)
    names = {layer.weight: layer.shape for layer in result.layers()}
    assert names == {"w": (17, 12, 1, 1), "u": (17, 1, 3, 3), "v": (5, 17, 1, 1)}
    np.testing.assert_array_equal(result.weight("w")[16], model.weight("w")[3])
    assert not any(node.op_type == "Gather" for node in result.graph)
    assert "3 are there twice, in u, e, w, c" in str(result.notes[-1])


def test_activations_are_halved_where_they_are_computed():
    model = made()
    feeds = random_feeds(model)
    result = split(model, feeds, by="activations", expansion=0.01, copies=False)
    layer = result.layers()[-1]
    assert layer.shape == (5, 17, 1, 1)
    place = int(np.flatnonzero((result.weight("u")[:16] != model.weight("u")).any(axis=(1, 2, 3)))[0])
    np.testing.assert_array_equal(result.weight("u")[[place, 16]], np.stack([model.weight("u")[place] / 2] * 2))
    np.testing.assert_array_equal(result.weight("v")[:, [place, 16]], np.stack([model.weight("v")[:, place]] * 2, 1))


def test_what_is_read_elsewhere_too_is_copied_or_left():
    text = """n (float[b, 8] x) => (float[b, 80] y, float[b, 4] z) { h = MatMul (x, w) r = Relu (h)
        y = MatMul (r, v) z = MatMul (r, u) }"""
    random = np.random.default_rng(0)
    shapes = {"w": (8, 8), "v": (8, 80), "u": (8, 4)}
    model = model_from_text(
        text, {name: random.standard_normal(one).astype(np.float32) for name, one in shapes.items()}
    )
    feeds = random_feeds(model)
    for by in ("weights", "activations"):
        result = split(model, feeds, by=by, expansion=0.1)
        told = {note.place: note.text for note in result.notes}
        assert "copied at run time" in told["MatMul_1"]
        assert "not to be copied" in told["MatMul_2"]  # four weights a channel
        assert [layer.shape for layer in result.layers()] == [(8, 8), (9, 80), (8, 4)]
        assert relative_error(model.run(feeds), result.run(feeds)) < 1e-6
    assert [layer.shape for layer in split(model, copies=False).layers()] == list(shapes.values())


def test_a_layer_that_was_not_asked_for_keeps_its_weight():
    model = made(outlier=10.0)
    result = split(model, layers={"Conv_2"}, copies=False)
    assert all(np.array_equal(result.weight(name), model.weight(name)) for name in SHAPES)


@pytest.mark.parametrize("per_channel", [False, True])
def test_rounding_errs_less_where_a_channel_stands_out(per_channel):
    model = made(outlier=12.0)
    feeds = random_feeds(model, batch=16)
    expected, errors = model.run(feeds), []
    for one in (model, split(model, expansion=0.2, grid_bits=4, per_channel=per_channel)):
        rounded = with_weight(one, "v", lambda weight: _on_grid(weight, per_channel))
        errors.append(relative_error(expected, rounded.run(feeds)))
    assert errors[1] < 0.8 * errors[0], errors


def _on_grid(weight, per_channel):
    step = np.abs(weight).max(axis=(1, 2, 3) if per_channel else None, keepdims=True) / 7
    return (np.rint(weight / step) * step).astype(np.float32)


def test_parts_are_rounded_to_the_sum_of_the_whole():
    """On the grid of the parts, the split layer is what the whole one would be with the same step."""
    model = made(outlier=12.0)
    whole, parts = model.weight("v"), split(model, expansion=0.01, grid_bits=4, per_channel=False).weight("v")
    step = np.abs(parts).max() / 7
    codes = np.rint(parts / step)
    summed = codes[:, :16].copy()
    summed[:, 3] += codes[:, 16]
    np.testing.assert_array_equal(summed, np.rint(whole / step))


def test_it_is_followed_by_what_it_is_for():
    model = FoldBatchNorm().apply(convolution_network(), Context(convolution_network().layers()))
    feeds = random_feeds(model)
    result = split(model, expansion=0.2, grid_bits=8)
    small = QuantizeWeights(smallest=1).apply(result, Context(result.layers()))
    assert relative_error(model.run(feeds), small.run(feeds)) < 0.05
    dense = split(dense_network(), expansion=0.2)
    fast = QuantizeDynamic().apply(dense, Context(dense.layers()))
    feeds = random_feeds(dense_network())
    assert relative_error(dense_network().run(feeds), fast.run(feeds)) < 0.05


def test_dead_and_broken_weights():
    dead = with_weight(made(), "v", np.zeros_like)
    assert "all are 0" in str(split(dead, layers={"Conv_2"}).notes[-1])
    assert "none is asked for" in str(split(made(), expansion=0.0).notes[-1])
    broken = with_weight(made(), "v", lambda weight: np.where(weight == weight[0, 0], np.nan, weight))
    with pytest.raises(DataError, match="Conv_2"):
        split(broken)


@pytest.mark.parametrize(
    "settings", [{"expansion": -0.1}, {"expansion": 1.1}, {"grid_bits": 1}, {"grid_bits": 9}, {"by": "luck"}]
)
def test_settings_that_make_no_sense_are_refused(settings):
    with pytest.raises(RecipeError, match=next(iter(settings))):
        SplitOutliers(**settings)
