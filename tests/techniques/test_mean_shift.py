"""Biases take back what rounded weights add to mean outputs, by calibration or by normalisations."""

from __future__ import annotations

import numpy as np
import pytest

from alula.graph.editing import Editor
from alula.quantization import quantize
from alula.recipe import Recipe, Step, apply_recipe
from alula.techniques import FoldBatchNorm, QuantizeWeights
from alula.techniques.mean_shift import normalised_means
from alula.testing.models import attention_network, convolution_network, model_from_text

NORMALS = 40_000  # rows: what a normalisation is fed, so that it gives the normal numbers that it tells of
COARSE = {"bits": 2, "smallest": 1, "search": False}


def network(between, layer="Gemm <transB = 1, alpha = 0.5> (b, w, c)", opset=21):
    text = f"""net (float[n, 4] x) => (float[n, 3] y) {{
        a = BatchNormalization <epsilon = 0.5> (x, scale, shift, mean, variance)
        b = {between}
        y = {layer}
    }}"""
    random = np.random.default_rng(0)
    weights = {
        "scale": np.array([2, -1, 0.5, 3]), "shift": np.array([0.5, 1, -1, 0]), "mean": np.array([1, 2, -3, 0]),
        "variance": np.array([1, 4, 0.25, 0]), "w": random.standard_normal((3, 4)), "c": random.standard_normal(3),
        "low": np.array(-0.5), "high": np.array(1),
    }  # fmt: skip
    used = {name: array.astype(np.float32) for name, array in weights.items() if name in text}
    return model_from_text(text, used, opset=opset)


def what_it_remembers():
    rows = np.random.default_rng(1).standard_normal((NORMALS, 4))
    return (rows * [1, 2, 0.5, 0] + [1, 2, -3, 0]).astype(np.float32)


def mean_output(model, x):
    (output,) = model.run({model.inputs[0].name: x}).values()
    return output.mean(0, dtype=np.float64)


@pytest.mark.parametrize(
    "between", ["Relu (a)", "Clip (a, low, high)", "Clip (a, , high)", "Clip (a, low)", "Clip (a)", "Identity (a)"]
)
def test_mean_outputs_stay(between):
    """Measured with rows that the normalisation remembers: the correction takes off nearly all of the shift."""
    model, x = network(between), what_it_remembers()
    wanted = mean_output(model, x)
    shifts = {}
    for by in (None, "data", "normalisations"):
        made = quantize(model, x, technique=QuantizeWeights(bias_correction=by, **COARSE))
        shifts[by] = np.abs(mean_output(made, x) - wanted)
    assert shifts[None].max() > 0.02
    assert shifts["data"].max() < 0.01 * shifts[None].max()
    assert shifts["normalisations"].max() < 0.1 * shifts[None].max()


@pytest.mark.parametrize("groups", [1, 2])
def test_convolutions_in_groups(groups):
    random = np.random.default_rng(2)
    text = f"""net (float[n, 4, 1, 1] x) => (float[n, 6, 1, 1] y) {{
        a = BatchNormalization (x, scale, shift, zero, one)
        b = Relu (a)
        y = Conv <group = {groups}> (b, w)
    }}"""
    weights = {"scale": random.uniform(0.5, 2, 4), "shift": random.standard_normal(4), "zero": np.zeros(4),
               "one": np.ones(4), "w": random.standard_normal((6, 4 // groups, 1, 1))}  # fmt: skip
    model = model_from_text(text, {name: array.astype(np.float32) for name, array in weights.items()})
    x = random.standard_normal((NORMALS, 4, 1, 1)).astype(np.float32)
    wanted = mean_output(model, x)
    before, after = (
        np.abs(mean_output(quantize(model, technique=QuantizeWeights(bias_correction=by, **COARSE)), x) - wanted)
        for by in (None, "normalisations")
    )
    assert after.max() < 0.1 * before.max()


def test_normalisations_are_read_first_and_folded_after():
    made = quantize(convolution_network(), technique=QuantizeWeights(bias_correction="normalisations", **COARSE))
    assert "BatchNormalization" not in {node.op_type for node in made.graph}
    told = [str(note) for note in made.notes if "not corrected" in str(note)]
    assert len(told) == 3  # the first layer, the one behind a plain convolution, the one behind a pool
    assert all("does not read straight from a batch normalisation" in note for note in told)
    folded = Recipe((Step(FoldBatchNorm()), Step(QuantizeWeights(bias_correction="normalisations", **COARSE))))
    late = apply_recipe(convolution_network(), folded)
    assert sum("not corrected" in str(note) for note in late.notes) == 4


def test_scales_of_channels_are_the_same_before_and_after_folding():
    model = network("Relu (a)", "Gemm <transB = 1> (b, w, c)")
    folding = Step(FoldBatchNorm())
    conv = convolution_network()
    for one in (model, conv):
        first = apply_recipe(one, Recipe((folding, Step(QuantizeWeights(**COARSE)))))
        second = apply_recipe(one, Recipe((Step(QuantizeWeights(**COARSE)), folding)))
        feeds = {spec.name: np.ones([2, *(spec.shape or ())[1:]], np.float32) for spec in one.inputs}
        for name, wanted in first.run(feeds).items():
            np.testing.assert_allclose(second.run(feeds)[name], wanted, rtol=1e-4, atol=1e-5)


def test_what_is_not_corrected_is_said():
    made = quantize(attention_network(), technique=QuantizeWeights(bias_correction="normalisations", **COARSE))
    assert "a MatMul has no bias of its own" in " / ".join(map(str, made.notes))
    text = "net (float[n, 4] x, float[3] c) => (float[n, 3] y) { y = Gemm <transB = 1> (x, w, c) }"
    computed = model_from_text(text, {"w": np.eye(3, 4, dtype=np.float32)})
    rows = {"x": np.ones((2, 4), np.float32), "c": np.ones(3, np.float32)}
    made = quantize(computed, [rows], technique=QuantizeWeights(bias_correction="data", **COARSE))
    assert "its bias is computed, or does not count" in " / ".join(map(str, made.notes))


@pytest.mark.parametrize("between", ["Clip (a, high, low)", "LeakyRelu (a)", "Relu (x)"])
def test_what_tells_no_mean(between):
    model = network(between)
    (layer,) = model.layers()
    assert normalised_means(Editor(model.edit()), layer) is None


def test_channels_that_never_change():
    """A variance of 0 is no deviation at all, whatever the scale."""
    model = network("Relu (a)")
    (layer,) = model.layers()
    means = normalised_means(Editor(model.edit()), layer)
    assert means[3] == 0
    assert (means[:3] > 0).all()
