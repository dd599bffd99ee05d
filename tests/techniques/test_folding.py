"""Folding batch normalisation changes no output, and leaves alone, with a note, what it must not fold."""

from __future__ import annotations

import numpy as np
import pytest

from alula.errors import DataError
from alula.techniques import Context, FoldBatchNorm
from alula.testing.conformance import relative_error, with_weight
from alula.testing.models import convolution_network, model_from_text, random_feeds

NORM = "BatchNormalization <epsilon = 0.001> (a, scale, shift, mean, variance)"
IMAGE = "net (float[n, 4, 5, 5] x) => (float[n, C, H, H] y) {"


def weights_of(channels, **shapes):
    random = np.random.default_rng(0)
    weights = {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    for name in ("scale", "shift", "mean", "variance"):
        weights[name] = random.uniform(-2, 2, channels).astype(np.float32)
    weights["variance"] = np.abs(weights["variance"]) + np.float32(0.1)
    return weights


def fold(model, include=None):
    layers = tuple(layer for layer in model.layers() if include is None or layer.name in include)
    return FoldBatchNorm().apply(model, Context(layers))


def norms(model):
    return sum(node.op_type == "BatchNormalization" for node in model.graph)


FOLDED = {
    "Conv": ("net (float[n, 4, 5, 5] x) => (float[n, 6, 3, 3] y) { a = Conv (x, w, b) y = NORM }",
             6, {"w": (6, 4, 3, 3), "b": (6,)}),
    "Conv without bias": ("net (float[n, 4, 5, 5] x) => (float[n, 6, 3, 3] y) { a = Conv (x, w) y = NORM }",
                          6, {"w": (6, 4, 3, 3)}),
    "grouped Conv": ("net (float[n, 4, 5, 5] x) => (float[n, 6, 3, 3] y) { a = Conv <group = 2> (x, w) y = NORM }",
                     6, {"w": (6, 2, 3, 3)}),
    "Conv along one axis": ("net (float[n, 4, 9] x) => (float[n, 6, 7] y) { a = Conv (x, w, b) y = NORM }",
                            6, {"w": (6, 4, 3), "b": (6,)}),
    "ConvTranspose": ("net (float[n, 4, 5, 5] x) => (float[n, 6, 7, 7] y) { a = ConvTranspose (x, w, b) y = NORM }",
                      6, {"w": (4, 6, 3, 3), "b": (6,)}),
    "grouped ConvTranspose": (("net (float[n, 4, 5, 5] x) => (float[n, 6, 7, 7] y) "
                              "{ a = ConvTranspose <group = 2> (x, w) y = NORM }"), 6, {"w": (4, 3, 3, 3)}),
    "Gemm": ("net (float[n, 4] x) => (float[n, 6] y) { a = Gemm (x, w, b) y = NORM }", 6, {"w": (4, 6), "b": (6,)}),
    "Gemm, transposed": ("net (float[n, 4] x) => (float[n, 6] y) { a = Gemm <transB = 1> (x, w, b) y = NORM }",
                         6, {"w": (6, 4), "b": (6,)}),
    "Gemm with a bias row": ("net (float[n, 4] x) => (float[n, 6] y) { a = Gemm (x, w, b) y = NORM }",
                             6, {"w": (4, 6), "b": (1, 6)}),
    "Gemm with one bias": ("net (float[n, 4] x) => (float[n, 6] y) { a = Gemm (x, w, b) y = NORM }",
                           6, {"w": (4, 6), "b": ()}),
    "Gemm with alpha": ("net (float[n, 4] x) => (float[n, 6] y) { a = Gemm <alpha = 0.3> (x, w, b) y = NORM }",
                        6, {"w": (4, 6), "b": (6,)}),
}  # fmt: skip

KEPT = {
    "its output is read elsewhere": (
        "net (float[n, 4] x) => (float[n, 4] y, float[n, 4] z) { a = Gemm (x, w) y = NORM z = Relu (a) }",
        {"w": (4, 4)}, "something else reads"),
    "its output is an output": (
        "net (float[n, 4] x) => (float[n, 4] y, float[n, 4] a) { a = Gemm (x, w) y = NORM }",
        {"w": (4, 4)}, "something else reads"),
    "its weight is shared": (
        "net (float[n, 4] x) => (float[n, 4] y) { c = Gemm (x, w) a = Gemm (c, w) y = NORM }",
        {"w": (4, 4)}, "weight is read by something else"),
    "its weight is an output": (
        "net (float[n, 4] x) => (float[n, 4] y, float[4, 4] w) { a = Gemm (x, w) y = NORM }",
        {"w": (4, 4)}, "weight is read by something else"),
    "its bias is computed": (
        "net (float[n, 4] x) => (float[n, 4] y) { c = Tanh (x) a = Gemm (x, w, c) y = NORM }",
        {"w": (4, 4)}, "bias is computed"),
    "its bias is per example": (
        "net (float[2, 4] x) => (float[2, 4] y) { a = Gemm (x, w, b) y = NORM }",
        {"w": (4, 4), "b": (2, 4)}, "one number per channel"),
    "its beta": (
        "net (float[n, 4] x) => (float[n, 4] y) { a = Gemm <beta = 2.0> (x, w, b) y = NORM }",
        {"w": (4, 4), "b": (4,)}, "beta is not 1"),
    "no layer": (
        "net (float[n, 4] x) => (float[n, 4] y) { a = Relu (x) y = NORM }", {}, "does not directly follow"),
    "another operator": (
        "net (float[n, 4] x) => (float[n, 4] y) { a = MatMul (x, w) y = NORM }", {"w": (4, 4)},
        "does not directly follow"),
    "parameters that are computed": (
        ("net (float[n, 4] x, float[4] k) => (float[n, 4] y) { a = Gemm (x, w) scale2 = Exp (k) "
        "y = BatchNormalization (a, scale2, shift, mean, variance) }"), {"w": (4, 4)}, "computed, not constant"),
}  # fmt: skip


@pytest.mark.parametrize("case", FOLDED)
def test_it_folds_without_a_trace(case):
    text, channels, shapes = FOLDED[case]
    model = model_from_text(text.replace("NORM", NORM), weights_of(channels, **shapes))
    result = fold(model)
    assert (norms(model), norms(result)) == (1, 0)
    assert not result.notes
    feeds = random_feeds(model)
    assert relative_error(model.run(feeds), result.run(feeds)) < 1e-5
    assert len(result.graph.initializers) == 2, "weight and bias; the parameters of the normalisation are gone"


@pytest.mark.parametrize("case", KEPT)
def test_it_leaves_alone_what_it_must_and_says_so(case):
    text, shapes, reason = KEPT[case]
    model = model_from_text(text.replace("NORM", NORM), weights_of(4, **shapes))
    result = fold(model)
    assert norms(result) == 1
    assert reason in result.notes[0].text
    feeds = random_feeds(model)
    for name, wanted in model.run(feeds).items():
        np.testing.assert_array_equal(result.run(feeds)[name], wanted)


def test_a_bias_that_another_layer_shares_is_not_changed_for_it():
    text = """net (float[n, 4] x) => (float[n, 4] y, float[n, 4] z) {
        a = Gemm (x, w, b) y = NORM z = Gemm (x, v, b) }"""
    model = model_from_text(text.replace("NORM", NORM), weights_of(4, w=(4, 4), v=(4, 4), b=(4,)))
    feeds = random_feeds(model)
    result = fold(model)
    assert norms(result) == 0
    assert relative_error(model.run(feeds), result.run(feeds)) < 1e-5


def test_a_network_keeps_its_tensor_names():
    model = convolution_network()
    result = fold(model)
    assert (norms(model), norms(result)) == (2, 0)
    assert [layer.name for layer in result.layers()] == [layer.name for layer in model.layers()]
    names = {value.name for node in model.graph for value in node.outputs}
    assert {value.name for node in result.graph for value in node.outputs} < names
    feeds = random_feeds(model)
    assert relative_error(model.run(feeds), result.run(feeds)) < 1e-5


def test_only_into_the_layers_that_were_asked_for():
    model = convolution_network()
    result = fold(model, include={model.layers()[0].name})
    assert norms(result) == 1


def test_a_variance_that_cannot_be_is_refused_by_layer():
    model = convolution_network()
    broken = with_weight(model, "stem_variance", lambda variance: variance - 10)
    with pytest.raises(DataError, match=f"{model.layers()[0].name}.*variance"):
        fold(broken)
