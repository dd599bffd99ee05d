"""Recipes are plain data: written down, read back, replayed; what does not exist is refused."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alula.errors import DataError, ModelError, RecipeError
from alula.graph.statistics import collect
from alula.numerics.ranges import Entropy, MeanSquaredError, MinMax, OutputError, Percentile
from alula.recipe import Recipe, Step, apply_recipe, requests_of, steps_for
from alula.techniques import (
    ActivationAware,
    Context,
    Float16,
    FoldBatchNorm,
    Prune,
    Quantize,
    QuantizeDynamic,
    QuantizeWeights,
    Recode,
    Rotate,
    Sparsify,
    SplitOutliers,
)
from alula.testing.conformance import relative_error
from alula.testing.models import convolution_network, dense_network, random_feeds

WIDTHS = st.integers(2, 8)
RANGES = st.one_of(
    st.just(MinMax()),
    st.builds(Percentile, st.floats(50, 100)),
    st.builds(MeanSquaredError, st.integers(8, 400)),
    st.builds(OutputError, st.integers(8, 400)),
    st.builds(Entropy, st.integers(2, 9999), st.integers(8, 99)),
)
TECHNIQUES = st.one_of(
    st.just(FoldBatchNorm()),
    st.builds(Rotate, heads=st.booleans(), seed=st.integers(0, 2**40)),
    st.builds(
        ActivationAware,
        bits=WIDTHS,
        block=st.none() | st.integers(1, 512),
        symmetric=st.booleans(),
        search=st.booleans(),
        points=st.integers(1, 50),
    ),
    st.builds(
        SplitOutliers,
        expansion=st.floats(0, 1),
        by=st.sampled_from(["weights", "activations"]),
        grid_bits=WIDTHS,
        per_channel=st.booleans(),
        search=st.booleans(),
        copies=st.booleans(),
    ),
    st.builds(Float16, compute=st.booleans()),
    st.builds(QuantizeDynamic, weight_bits=WIDTHS, per_channel=st.booleans(), recurrent=st.booleans()),
    st.builds(
        QuantizeWeights,
        bits=WIDTHS,
        block=st.none() | st.integers(1, 512),
        symmetric=st.booleans(),
        smallest=st.integers(0, 10_000),
        rounding=st.just("hqq"),
    ),
    st.builds(
        QuantizeWeights,
        bits=WIDTHS,
        block=st.none() | st.integers(1, 512),
        symmetric=st.booleans(),
        search=st.booleans(),
        by_outputs=st.booleans(),
        smallest=st.integers(0, 10_000),
        rounding=st.sampled_from(["nearest", "gptq"]),
        by_size_of_inputs=st.booleans(),
        damping=st.floats(0, 1),
        bias_correction=st.sampled_from([None, "data", "normalisations"]),
    ),
    st.builds(
        Recode,
        format=st.sampled_from(["float8_e4m3", "float8_e5m2", "float4_e2m1", "nf4", "ternary"]),
        block=st.none() | st.integers(1, 512),
    ),
    st.builds(Recode, format=st.sampled_from(["mxfp8", "mxfp4"]), block=st.none() | st.just(32)),
    st.builds(
        Quantize,
        weight_bits=WIDTHS,
        activation_bits=st.sampled_from([2, 3, 4, 8, 16]),
        activation_signed=st.booleans(),
        activation_symmetric=st.booleans(),
        range=RANGES,
        per_channel=st.booleans(),
        weight_search=st.booleans(),
        bias_correction=st.booleans(),
        smoothing=st.none() | st.floats(0, 1),
        products=st.booleans(),
        outputs=st.booleans(),
    ),
)
PATTERNS = st.lists(st.text(min_size=1, max_size=6), max_size=3).map(tuple)
STEPS = st.builds(Step, TECHNIQUES, PATTERNS, PATTERNS, st.text(min_size=1, max_size=6))
RECIPES = st.lists(STEPS, max_size=4).map(lambda steps: Recipe(tuple(steps)))


@settings(max_examples=200, deadline=None)
@given(RECIPES)
def test_every_recipe_comes_back_from_json(recipe):
    text = json.dumps(recipe.to_json())
    assert Recipe.from_json(json.loads(text)) == recipe
    assert Recipe.from_json(json.loads(text)).fingerprint == recipe.fingerprint
    assert recipe.describe()
    assert "\n" not in Recipe(tuple(dataclasses.replace(step, include=("*",), exclude=(), part="*")
                                    for step in recipe.steps)).describe()  # fmt: skip


def test_the_strategies_above_know_every_setting():
    """A setting that is added must be added there, too."""
    drawn = {
        "ActivationAware": 5,
        "Float16": 1,
        "FoldBatchNorm": 0,
        "QuantizeDynamic": 3,
        "QuantizeWeights": 10,
        "Quantize": 11,
        "Recode": 2,
        "Rotate": 2,
        "SplitOutliers": 6,
    }
    kinds = (
        ActivationAware,
        Float16,
        FoldBatchNorm,
        Quantize,
        QuantizeDynamic,
        QuantizeWeights,
        Recode,
        Rotate,
        SplitOutliers,
    )
    assert {kind.__name__: len(dataclasses.fields(kind)) for kind in kinds} == drawn


@settings(max_examples=100, deadline=None)
@given(RECIPES, RECIPES)
def test_fingerprints_differ_where_recipes_do(first, second):
    assert (first.fingerprint == second.fingerprint) == (first.to_json() == second.to_json())


def test_only_what_differs_from_defaults_is_written():
    recipe = Recipe((Step(Quantize(range=Percentile(99.9), per_channel=False), exclude=("Op:Gemm",)),))
    assert recipe.to_json() == {
        "steps": [
            {
                "technique": "Quantize",
                "range": {"name": "Percentile", "percentile": 99.9},
                "per_channel": False,
                "layers.exclude": ["Op:Gemm"],
            }
        ]
    }
    assert recipe.describe() == "Quantize(range=Percentile(percentile=99.9), per_channel=False) except Op:Gemm"
    assert Recipe().describe() == "nothing"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({}, "this is not one"),
        ([], "this is not one"),
        ({"steps": {}}, "this is not one"),
        ({"steps": ["Quantize"]}, "this is not one"),
        ({"steps": [{}]}, "no technique called None"),
        ({"steps": [{"technique": "os.system"}]}, "no technique called 'os.system'"),
        ({"steps": [{"technique": ["Quantize"]}]}, "no technique called"),
        ({"steps": [{"technique": "Quantize", "bits": 8}]}, r"Quantize has no setting \['bits'\]"),
        ({"steps": [{"technique": "Quantize", "weight_bits": 11}]}, "weight_bits must be 2 to 8"),
        ({"steps": [{"technique": "Quantize", "weight_bits": "8"}]}, "whole number, got '8'"),
        ({"steps": [{"technique": "Quantize", "weight_bits": 4.0}]}, "whole number, got 4.0"),
        ({"steps": [{"technique": "Quantize", "weight_bits": True}]}, "whole number, got True"),
        ({"steps": [{"technique": "Quantize", "per_channel": 1}]}, "True or False, got 1"),
        ({"steps": [{"technique": "Quantize", "range": 5}]}, "a RangeMethod, got 5"),
        ({"steps": [{"technique": "Quantize", "range": {}}]}, "no range method called None"),
        ({"steps": [{"technique": "Quantize", "range": {"name": "Guess"}}]}, "no range method called 'Guess'"),
        ({"steps": [{"technique": "Quantize", "range": {"name": "Percentile", "percentile": 0}}]}, "above 0"),
        ({"steps": [{"technique": "Quantize", "range": {"name": "Percentile", "percentile": []}}]}, "a number"),
        ({"steps": [{"technique": "Quantize", "weight_bits": {"name": "MinMax"}}]}, "whole number"),
        ({"steps": [{"technique": "QuantizeWeights", "block": "16"}]}, "whole number or None"),
        ({"steps": [{"technique": "Quantize", "smoothing": True}]}, "a number or None"),
        ({"steps": [{"technique": "Recode", "format": "float6"}]}, "'ternary', got 'float6'"),
        ({"steps": [{"technique": "Recode", "format": "mxfp4", "block": 16}]}, "of 32 by its specification"),
        ({"steps": [{"technique": "Quantize", "smoothing": 1.5}]}, "smoothing must be 0 to 1"),
        ({"steps": [{"technique": "Quantize", "layers.include": "abc"}]}, "layers.include"),
        ({"steps": [{"technique": "Quantize", "layers.exclude": [1]}]}, "layers.exclude"),
        ({"steps": [{"technique": "Quantize", "layers.part": 3}]}, "layers.part"),
        ({"steps": [{"technique": "Quantize", "layers.nonsense": []}]}, "no setting"),
    ],
)
def test_what_is_not_a_recipe_is_refused(data, words):
    with pytest.raises(RecipeError, match=words):
        Recipe.from_json(data)


Json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
KEYS = [field.name for kind in (Quantize, QuantizeWeights) for field in dataclasses.fields(kind)]


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.sampled_from([*KEYS, "layers.include", "layers.part"]), Json, max_size=3), st.booleans())
def test_damaged_recipes_are_refused_as_such(values, weights):
    technique = "QuantizeWeights" if weights else "Quantize"
    try:
        recipe = Recipe.from_json({"steps": [{"technique": technique, **values}]})
    except RecipeError:
        return
    assert isinstance(recipe.steps[0].technique, (Quantize, QuantizeWeights))
    assert Recipe.from_json(recipe.to_json()) == recipe


def test_patterns_that_match_nothing_are_refused_with_the_step():
    recipe = Recipe((Step(FoldBatchNorm()), Step(QuantizeWeights(), include=("decoder.*",))))
    with pytest.raises(RecipeError, match=r"step 2, QuantizeWeights: layer pattern 'decoder\.\*' matches none of 4"):
        apply_recipe(convolution_network(), recipe, collect(convolution_network(), [], []))
    with pytest.raises(RecipeError, match=r"'decoder\.\*' matches none"):
        requests_of(recipe, convolution_network())


def test_steps_are_for_parts():
    recipe = Recipe((Step(QuantizeWeights(), part="enc*"), Step(Float16(), part="decoder")))
    assert [steps_for(recipe, part) for part in ("encoder", "decoder", "model")] == [
        recipe.steps[:1], recipe.steps[1:], (),
    ]  # fmt: skip
    model = dense_network()
    assert apply_recipe(model, recipe, collect(model, [], []), "model") is model


@pytest.mark.parametrize("method", [MinMax(), Percentile()], ids=lambda method: type(method).__name__)
def test_statistics_of_the_original_serve_the_folded_graph(method):
    """Requests name tensors of the original graph; applied to it, the recipe finds everything it asked for."""
    model = convolution_network()
    feeds = random_feeds(model, batch=8)
    recipe = Recipe((Step(FoldBatchNorm()), Step(Quantize(range=method))))
    requests = requests_of(recipe, model)
    tensors = {value.name for node in model.graph for value in node.outputs} | {spec.name for spec in model.inputs}
    assert {request.tensor for request in requests} <= tensors
    statistics = collect(model, [feeds], requests)
    before = model.to_bytes()
    result = apply_recipe(model, recipe, statistics)
    assert model.to_bytes() == before
    assert not any(node.op_type == "BatchNormalization" for node in result.graph)
    assert relative_error(model.run(feeds), result.run(feeds)) < 0.05
    assert apply_recipe(convolution_network(), recipe, statistics).to_bytes() == result.to_bytes()
    folded = apply_recipe(model, Recipe(recipe.steps[:1]), statistics)
    again = collect(folded, [feeds], requests_of(Recipe(recipe.steps[1:]), folded))
    for tensor, seen in again.items():
        np.testing.assert_allclose(seen.maximum, statistics[tensor].maximum, rtol=1e-4)


def test_techniques_one_after_another():
    model = convolution_network()
    feeds = random_feeds(model, batch=8)
    recipe = Recipe(
        (
            Step(FoldBatchNorm()),
            Step(Quantize(), include=("Op:Conv",)),
            Step(QuantizeWeights(bits=8, smallest=1), include=("Op:Gemm",)),
        )
    )
    result = apply_recipe(model, recipe, collect(model, [feeds], requests_of(recipe, model)))
    assert not result.layers()
    assert relative_error(model.run(feeds), result.run(feeds)) < 0.05


def test_a_path_stands_for_a_model_and_a_step_that_finds_no_layer_says_so(tmp_path):
    dense_network().save(tmp_path / "net.onnx")
    recipe = Recipe((Step(Float16()), Step(QuantizeWeights())))
    made = apply_recipe(tmp_path / "net.onnx", recipe)
    assert [note.place for note in made.notes] == ["step 2, QuantizeWeights"]
    assert "no layer has weights in plain sight" in made.notes[0].text
    with pytest.raises(ModelError, match="nowhere"):
        apply_recipe(tmp_path / "nowhere.onnx", recipe)


def test_each_step_sees_what_the_graph_makes_of_the_feeds_by_then():
    """Behind a layer that is narrower, second moments are of its width: those of the original would not fit."""
    model = dense_network()
    feeds = [random_feeds(model, batch=8, seed=seed) for seed in range(3)]
    prune, sparsify = Prune(0.5, criterion="activation"), Sparsify(0.5, criterion="sparsegpt")
    recipe = Recipe((Step(prune), Step(sparsify)))
    narrower = apply_recipe(model, Recipe((Step(prune),)), feeds)
    by_hand = sparsify.apply(narrower, Context(narrower.layers(), collect(
        narrower, feeds, sparsify.requests(narrower, narrower.layers()))))  # fmt: skip
    assert apply_recipe(model, recipe, feeds).fingerprint == by_hand.fingerprint
    with pytest.raises(ModelError, match="the second moments of layer 'Gemm_0' are of 32 values, the graph has 16 now"):
        apply_recipe(model, recipe, collect(model, feeds, requests_of(recipe, model)))
    with pytest.raises(DataError, match="give a list"):
        apply_recipe(model, recipe, iter(feeds))
