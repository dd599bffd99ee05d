"""Weights rounded by GPTQ stand in the graph as the textbook gives them, whatever the layer's layout."""

from __future__ import annotations

import numpy as np
import pytest

from alula.errors import DataError, ModelError, RecipeError
from alula.graph.editing import Editor
from alula.graph.running import Runner
from alula.graph.statistics import collect
from alula.numerics.grids import Grid
from alula.recipe import Recipe, Step, apply_recipe, requests_of
from alula.techniques import Context, QuantizeWeights
from alula.testing.models import embedding_network, model_from_text, random_feeds, recurrent_network
from tests.oracles.gptq import obq

LAYOUTS = {
    "MatMul": ("net (float[n, 16] x) => (float[n, 6] y) { y = MatMul (x, w) }", (16, 6)),
    "Gemm": ("net (float[n, 16] x) => (float[n, 6] y) { y = Gemm <transB = 1> (x, w) }", (6, 16)),
    "weight in front": ("net (float[16, 5] x) => (float[6, 5] y) { y = MatMul (w, x) }", (6, 16)),
    "Conv in groups": (
        "net (float[n, 4, 5, 5] x) => (float[n, 6, 3, 3] y) { y = Conv <group = 2> (x, w) }", (6, 2, 3, 3),
    ),
}  # fmt: skip


def made(layout: str):
    text, shape = LAYOUTS[layout]
    random = np.random.default_rng(0)
    model = model_from_text(text, {"w": random.standard_normal(shape).astype(np.float32)})
    (spec,) = model.inputs
    feeds = []
    for _ in range(4):
        x = random.standard_normal([8 if isinstance(axis, str) else axis for axis in spec.shape])
        feeds.append({"x": (x + np.roll(x, 1, -1)).astype(np.float32)})
    return model, feeds


def stored(model, feeds):
    """The weight that the graph computes with."""
    node = next(node for node in model.graph if node.op_type == "DequantizeLinear")
    graph = model.edit()
    graph.graph.outputs.append(next(one.outputs[0] for one in graph.graph if one.name == node.name))
    outputs = Runner(model.edited(graph), optimise=False)(feeds)
    return outputs[node.outputs[0].name]


@pytest.mark.parametrize("block", [None, 8])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_weight_is_that_of_the_textbook(layout, block):
    model, feeds = made(layout)
    technique = QuantizeWeights(4, block=block, rounding="gptq", search=False, by_size_of_inputs=False, smallest=1)
    recipe = Recipe((Step(technique),))
    statistics = collect(model, feeds, requests_of(recipe, model))
    (layer,) = model.layers()
    moments = statistics.moments(layer.name).matrix  # [groups, k, k]
    weight = model.weight("w")
    matrix = np.moveaxis(weight, layer.output_axis, 0).reshape(layer.groups, 6 // layer.groups, -1)
    damped = [one + 0.01 * np.diag(one).mean() * np.eye(len(one)) for one in moments]
    used = None if layout == "Conv in groups" else block  # of its two channels
    wanted = np.concatenate([obq(rows, one, Grid(4), range(len(one)), used)
                             for rows, one in zip(matrix, damped, strict=True)])  # fmt: skip
    given = stored(apply_recipe(model, recipe, statistics), feeds[0])
    np.testing.assert_allclose(np.moveaxis(given, layer.output_axis, 0).reshape(6, -1), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("settings", [{}, {"by_size_of_inputs": True}, {"rounding": "nearest", "by_outputs": True}])
@pytest.mark.parametrize("groups", [1, 2])
def test_blocks_of_channels_are_rounded_as_those_of_a_matrix(groups, settings):
    """A convolution whose kernel covers its input is a product with what it reads, place by place of the kernel."""
    random = np.random.default_rng(3)
    conv = model_from_text(
        f"net (float[n, {8 * groups}, 2, 3] x) => (float[n, 6, 1, 1] y) {{ y = Conv <group = {groups}> (x, w) }}",
        {"w": random.standard_normal((6, 8, 2, 3)).astype(np.float32)},
    )
    x = random.standard_normal((64, groups, 8, 6)).astype(np.float32)
    x += np.roll(x, 1, 2)
    technique = QuantizeWeights(**{"bits": 3, "block": 4, "rounding": "gptq", "smallest": 1,
                                   "by_size_of_inputs": False, **settings})  # fmt: skip
    recipe = Recipe((Step(technique),))
    feeds = [{"x": x.reshape(64, 8 * groups, 2, 3)}]
    given = stored(apply_recipe(conv, recipe, feeds), feeds[0])  # [6, 8, 2, 3]
    rows = 6 // groups
    for group in range(groups):
        own = conv.weight("w")[rows * group : rows * (group + 1)].reshape(rows, 8, 6).swapaxes(1, 2).reshape(rows, 48)
        read = x[:, group].swapaxes(1, 2).reshape(64, 48)
        gemm = model_from_text(
            f"net (float[n, 48] x) => (float[n, {rows}] y) {{ y = Gemm <transB = 1> (x, w) }}", {"w": own}
        )
        wanted = stored(apply_recipe(gemm, recipe, [{"x": read}]), {"x": read}).reshape(rows, 6, 8).swapaxes(1, 2)
        got = given[rows * group : rows * (group + 1)].reshape(rows, 8, 6)
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)


def test_the_outputs_move_less_than_by_rounding_to_the_nearest():
    model, feeds = made("MatMul")
    errors = []
    for rounding in ("nearest", "gptq"):
        recipe = Recipe((Step(QuantizeWeights(3, rounding=rounding, smallest=1)),))
        result = apply_recipe(model, recipe, collect(model, feeds, requests_of(recipe, model)))
        errors.append(sum(float(((result.run(one)["y"] - model.run(one)["y"]) ** 2).sum()) for one in feeds))
    assert errors[1] < 0.7 * errors[0]


@pytest.mark.parametrize("block", [None, 8])
@pytest.mark.parametrize("layout", ["MatMul", "Gemm"])
def test_ranges_by_the_outputs_err_less_in_them(layout, block):
    """Rounded to the nearest, over the same data: no worse than ranges by the weights, row by row."""
    model, feeds = made(layout)
    errors = []
    for by_outputs in (False, True):
        recipe = Recipe((Step(QuantizeWeights(3, block=block, by_outputs=by_outputs, smallest=1)),))
        given = stored(apply_recipe(model, recipe, feeds), feeds[0])
        change = (given - model.weight("w")) if layout == "MatMul" else (given - model.weight("w")).T  # [k, out]
        inputs = np.concatenate([one["x"] for one in feeds])
        errors.append(((inputs @ change) ** 2).sum(0))
    assert errors[1].sum() < errors[0].sum()
    if block is None:
        assert (errors[1] <= errors[0] * 1.001).all()


@pytest.mark.parametrize("network", [embedding_network, recurrent_network])
def test_what_is_no_matrix_is_rounded_to_the_nearest_and_said_so(network):
    model = network()
    recipe = Recipe((Step(QuantizeWeights(4, rounding="gptq", smallest=1)),))
    result = apply_recipe(model, recipe, collect(model, [random_feeds(model)], requests_of(recipe, model)))
    assert any("by its weights alone, to the nearest: its weight is that of a" in note.text for note in result.notes)


def test_without_statistics_and_with_impossible_settings_it_is_refused():
    model, _ = made("MatMul")
    with pytest.raises(ModelError, match="MatMul"):
        QuantizeWeights(4, rounding="gptq", smallest=1).apply(model, Context(model.layers()))
    with pytest.raises(RecipeError, match="'nearest', 'gptq' or 'hqq'"):
        QuantizeWeights(rounding="up")
    with pytest.raises(RecipeError, match="at least 0"):
        QuantizeWeights(rounding="gptq", damping=-0.1)


def test_layers_that_read_the_same_are_rounded_as_each_by_itself():
    """Together they are rows of one matrix; alone each is collected, and rounded, in a graph of its own."""
    random = np.random.default_rng(3)
    weights = {name: random.standard_normal((16, width)).astype(np.float32) for name, width in (("w", 6), ("v", 3))}
    both = model_from_text(
        "net (float[n, 16] x) => (float[n, 6] y, float[n, 3] z) { y = MatMul (x, w) z = MatMul (x, v) }", weights
    )
    feeds = [{"x": random.standard_normal((40, 16)).astype(np.float32)}]
    recipe = Recipe((Step(QuantizeWeights(bits=3, block=8, rounding="gptq", smallest=1)),))
    together = apply_recipe(both, recipe, feeds)
    for name, width in (("w", 6), ("v", 3)):
        alone = model_from_text(f"net (float[n, 16] x) => (float[n, {width}] y) {{ y = MatMul (x, {name}) }}",
                                {name: weights[name]})  # fmt: skip
        wanted = apply_recipe(alone, recipe, feeds)
        for part in ("codes", "scale"):
            np.testing.assert_array_equal(together.weight(f"{name}.{part}"), wanted.weight(f"{name}.{part}"))


def test_a_weight_that_is_not_finite_is_named_among_those_that_are_rounded_with_it():
    text = """net (float[n, 4] x) => (float[n, 2] y, float[n, 2] z) {
        [fine] y = MatMul (x, w) [damaged] z = MatMul (x, v) }"""
    model = model_from_text(text, {name: np.ones((4, 2), np.float32) for name in "wv"})
    recipe = Recipe((Step(QuantizeWeights(bits=4, rounding="gptq", smallest=1)),))
    seen = collect(model, [{"x": np.ones((3, 4), np.float32)}], requests_of(recipe, model))
    editor = Editor(model.edit())
    editor.replace_constant("v", np.full((4, 2), np.nan, np.float32))
    with pytest.raises(DataError, match="layer 'damaged'"):
        apply_recipe(model.edited(editor.model), recipe, seen)
