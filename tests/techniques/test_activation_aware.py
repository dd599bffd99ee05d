"""Scaled layers give the same outputs in float, and err less once their weights are rounded."""

from __future__ import annotations

import numpy as np
import pytest

from alula.errors import DataError, ModelError, RecipeError
from alula.graph.running import Runner
from alula.graph.statistics import collect
from alula.numerics.grids import Grid, quantize
from alula.numerics.ranges import channel_mean_squared_error_range
from alula.recipe import Recipe, Step, apply_recipe
from alula.techniques import ActivationAware, Context, QuantizeWeights
from alula.testing.conformance import relative_error, with_weight
from alula.testing.models import model_from_text

GATED = """n (float[b, 3, 16] x) => (float[b, 3, 16] y) <float two = {2.0}, int64[1] last = {-1}> {
    p = Pow (x, two) m = ReduceMean (p, last) r = Sqrt (m) h = Div (x, r) n = Mul (h, g)
    i = MatMul (n, gate) s = Sigmoid (i) q = Mul (i, s) u = MatMul (n, up) o = Mul (q, u) d = MatMul (o, down)
    y = Add (x, d) }"""
SHAPES = {"g": (16,), "gate": (16, 32), "up": (16, 32), "down": (32, 16)}
POINTWISE = """n (float[b, 3, 5, 5] x) => (float[b, 6, 5, 5] y) { h = Conv <pads = [1, 1, 1, 1]> (x, w, c)
    r = Relu (h) y = Conv (r, v, e) }"""


def made(text, shapes, seed=0):
    """A network of which a few channels are large."""
    random = np.random.default_rng(seed)
    weights = {name: random.standard_normal(shape).astype("f4") / 4 for name, shape in shapes.items()}
    for name in ("g", "up", "w"):
        if name in weights:
            axis = 0 if name == "w" else -1
            large = np.where(np.arange(shapes[name][axis]) % 8 == 0, 12, 1).astype("f4")
            weights[name] *= large.reshape([-1 if place == axis % len(shapes[name]) else 1
                                            for place in range(len(shapes[name]))])  # fmt: skip
    return model_from_text(text, weights)


def feeds_for(model, seed=1):
    random = np.random.default_rng(seed)
    (spec,) = model.inputs
    return [{"x": random.standard_normal([4, *spec.shape[1:]]).astype("f4")} for _ in range(8)]


def treated(model, feeds, technique, layers=None):
    chosen = tuple(layer for layer in model.layers() if layers is None or layer.name in layers)
    return technique.apply(model, Context(chosen, collect(model, feeds, technique.requests(model, chosen))))


def harm(model, feeds, name, *, block):
    """Mean squared error of what a layer gives, its weight rounded and its input as it is, row by row of the data."""
    layer = next(layer for layer in model.layers() if layer.weight == name)
    seen = Runner(_with_output(model, layer.input))
    weight = model.weight(name)
    grid = Grid(3)
    low, high = channel_mean_squared_error_range(weight, grid, axis=0, block=block)
    change = quantize(weight, grid, axis=0, block=block, minimum=low, maximum=high).dequantize() - weight
    rows = np.concatenate([seen(one)[layer.input].reshape(-1, len(weight)) for one in feeds])
    return float(((rows.astype(np.float64) @ change) ** 2).sum(1).mean())


def _with_output(model, tensor):
    graph = model.edit()
    graph.graph.outputs.append(next(value for node in graph.graph for value in node.outputs if value.name == tensor))
    return model.edited(graph)


@pytest.mark.parametrize("symmetric", [True, False])
def test_a_gated_block_stays_as_it_is_and_rounds_better(symmetric):
    model = made(GATED, SHAPES)
    feeds = feeds_for(model)
    aware = ActivationAware(3, 8, symmetric)
    result = treated(model, feeds, aware)
    assert relative_error(model.run(feeds[0]), result.run(feeds[0])) < 1e-5
    notes = {note.place: note.text for note in result.notes}
    assert sorted(notes) == ["n", "o"]
    assert "in g; rounding MatMul_" in notes["n"]
    assert "in up; rounding" in notes["o"]
    changed = {name for name in SHAPES if not np.array_equal(model.weight(name), result.weight(name))}
    assert changed == {"g", "gate", "up", "down"}
    errors = []
    for one in (model, result):
        quantized = apply_recipe(one, Recipe((Step(QuantizeWeights(3, 8, symmetric, smallest=1)),)))
        runs = [(model.run(feed)["y"], Runner(quantized, optimise=False)(feed)["y"]) for feed in feeds]
        errors.append(sum(float(((given - wanted) ** 2).sum()) for wanted, given in runs))
    assert errors[1] < 0.7 * errors[0], errors


def test_the_harm_told_is_that_of_the_layers_on_the_data():
    model = made(GATED, SHAPES)
    feeds = feeds_for(model)
    result = treated(model, feeds, ActivationAware(3, 8))
    shares = {note.place: float(note.text.split("errs ")[1].split()[0]) for note in result.notes}
    # the rows of `down` are as before; those of gate are too, and those of up are divided: so by `down` alone
    before, after = (harm(one, feeds, "down", block=8) for one in (model, result))
    assert after < before
    assert shares["o"] == pytest.approx(after / before, rel=2e-2)


def test_factors_are_powers_of_what_the_input_measures():
    model = made(GATED, SHAPES)
    feeds = feeds_for(model)
    result = treated(model, feeds, ActivationAware(3, 8))
    factors = model.weight("g") / result.weight("g")
    np.testing.assert_allclose(result.weight("gate"), model.weight("gate") * factors[:, None], rtol=1e-5)
    rows = np.concatenate([Runner(_with_output(model, "n"))(one)["n"].reshape(-1, 16) for one in feeds])
    exponents = np.polyfit(np.log(np.sqrt((rows**2).mean(0))), np.log(np.abs(factors)), 1)
    assert 0 < exponents[0] < 1
    assert exponents[0] * 20 == pytest.approx(round(exponents[0] * 20), abs=1e-3)


def test_pointwise_convolutions():
    model = made(POINTWISE, {"w": (16, 3, 3, 3), "c": (16,), "v": (6, 16, 1, 1), "e": (6,)})
    feeds = feeds_for(model)
    result = treated(model, feeds, ActivationAware(3))
    assert relative_error(model.run(feeds[0]), result.run(feeds[0])) < 1e-5
    notes = {note.place: note.text for note in result.notes}
    assert "in w, c; rounding" in notes["r"]
    assert "the weight of shape [16, 3, 3, 3] is no matrix with a column for each channel" in notes["x"]


@pytest.mark.parametrize(("text", "words"), [
    ("n = LayerNormalization (x, g) d = MatMul (n, w) y = Add (n, d)", "Add_0 reads it too"),
    ("h = MatMul (x, w) n = Gelu (h) y = MatMul (n, v)", "Gelu 'Gelu_0' before it does not keep a factor"),
    ("n = LayerNormalization (x, g) h = MatMul (n, w) k = MatMul (v, n) y = Add (h, k)",
     "weight of shape [16, 16] is no matrix with a column for each channel"),
    ("n = LayerNormalization (x, g) h = MatMul (n, w) y = MatMul (h, w)", "the weight is read elsewhere too"),
])  # fmt: skip
def test_what_is_left_alone_is_said(text, words):
    shapes = {name: shape for name, shape in {"g": (16,), "w": (16, 16), "v": (16, 16)}.items() if name in text}
    model = made(f"n (float[16, 16] x) => (float[16, 16] y) {{ {text} }}", shapes)
    random = np.random.default_rng(0)
    feeds = [{"x": random.standard_normal((16, 16)).astype("f4")}]
    result = treated(model, feeds, ActivationAware(3, 8))
    (told,) = (note.text for note in result.notes if note.place == "n")
    assert words in told
    for name in shapes:
        np.testing.assert_array_equal(model.weight(name), result.weight(name))


def test_layers_that_are_not_asked_for_stay():
    model = made(GATED, SHAPES)
    feeds = feeds_for(model)
    gate, up, down = (layer.name for layer in model.layers())
    only = treated(model, feeds, ActivationAware(3, 8), layers={gate, down})
    notes = {note.place: note.text for note in only.notes}
    assert f"{up} reads it too" in notes["n"]
    assert "'up', by which it could be divided, is not to be changed" in notes["o"]
    assert only.to_bytes() == model.to_bytes()


def test_inputs_of_even_size_need_no_scale():
    text = "n (float[b, 16] x) => (float[b, 4] y) { n = LayerNormalization (x, g) y = MatMul (n, w) }"
    model = model_from_text(text, {"g": np.ones(16, "f4"), "w": np.ones((16, 4), "f4")})
    result = treated(model, feeds_for(model), ActivationAware(4, 8))
    assert "that would not help" in str(result.notes[0])
    assert result.to_bytes() == model.to_bytes()


def test_what_is_broken_or_impossible_is_refused():
    model = made(GATED, SHAPES)
    feeds = feeds_for(model)
    with pytest.raises(ModelError, match="second moments"):
        ActivationAware(3, 8).apply(model, Context(model.layers()))
    broken = with_weight(model, "down", lambda weight: np.where(weight == weight[0, 0], np.nan, weight))
    statistics = collect(model, feeds, ActivationAware(3, 8).requests(model, model.layers()))
    with pytest.raises(DataError, match="layer 'MatMul_"):
        ActivationAware(3, 8).apply(broken, Context(broken.layers(), statistics))
    for settings, words in (
        ({"bits": 1}, "bits"),
        ({"block": 0}, "block"),
        ({"points": 0}, "points must be at least 1"),
    ):
        with pytest.raises(RecipeError, match=words):
            ActivationAware(**settings)
