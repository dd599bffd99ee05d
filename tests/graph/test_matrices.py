"""A layer's weight as a matrix: it multiplies what the layer reads, and comes back as it was."""

from __future__ import annotations

import numpy as np
import pytest

from alula.errors import ModelError
from alula.graph.matrices import from_matrix, matrix_shape, no_matrix, weight_matrix
from alula.graph.running import Runner
from alula.testing.models import embedding_network, model_from_text, random_feeds, recurrent_network

PRODUCTS = {
    "gemm": "net (float[n, 5] x) => (float[n, 3] y) { y = Gemm (x, w) }",
    "gemm transposed": "net (float[n, 5] x) => (float[n, 3] y) { y = Gemm <transB = 1> (x, w) }",
    "matmul": "net (float[n, 5] x) => (float[n, 3] y) { y = MatMul (x, w) }",
    "matmul from the left": "net (float[5, n] x) => (float[3, n] y) { y = MatMul (w, x) }",
}


def product(kind):
    shape = (5, 3) if kind in ("gemm", "matmul") else (3, 5)
    weight = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    model = model_from_text(PRODUCTS[kind], {"w": weight})
    return model, model.layers()[0], weight


@pytest.mark.parametrize("kind", PRODUCTS)
def test_the_matrix_multiplies_what_a_product_reads(kind):
    model, layer, weight = product(kind)
    matrix = weight_matrix(weight, layer)
    assert matrix.shape == (1, 3, 5) == matrix_shape(layer)
    x = random_feeds(model, batch=4)["x"]
    y = Runner(model)({"x": x})["y"]
    rows, expected = (x.T, y.T) if "left" in kind else (x, y)
    np.testing.assert_allclose(rows @ matrix[0].T, expected, rtol=1e-5, atol=1e-6)


def convolution(groups=2):
    weight = np.random.default_rng(1).standard_normal((6, 4 // groups, 2, 3)).astype(np.float32)
    text = f"net (float[n, 4, 2, 3] x) => (float[n, 6, 1, 1] y) {{ y = Conv <group = {groups}> (x, w) }}"
    return model_from_text(text, {"w": weight}), weight


@pytest.mark.parametrize("groups", [1, 2])
def test_the_matrices_multiply_what_a_convolution_reads(groups):
    model, weight = convolution(groups)
    matrix = weight_matrix(weight, model.layers()[0])
    assert matrix.shape == (groups, 6 // groups, 4 // groups * 6)
    x = random_feeds(model, batch=3)["x"]
    rows = x.reshape(3, groups, -1)  # the kernel covers all of space: one position
    expected = Runner(model)({"x": x})["y"].reshape(3, 6)
    np.testing.assert_allclose(np.einsum("ngk,gok->ngo", rows, matrix).reshape(3, 6), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", [*PRODUCTS, "convolution"])
def test_a_matrix_comes_back_as_the_weight_it_was(kind):
    model, weight = convolution() if kind == "convolution" else product(kind)[::2]
    back = from_matrix(weight_matrix(weight, model.layers()[0]), model.layers()[0])
    np.testing.assert_array_equal(back, weight)
    assert back.flags.c_contiguous


def test_what_is_no_matrix_is_named():
    layers = [*recurrent_network().layers(), *embedding_network().layers()]
    stack = model_from_text(
        "net (float[2, n, 5] x) => (float[2, n, 3] y) { y = MatMul (x, w) }", {"w": np.ones((2, 5, 3), np.float32)}
    )
    for layer in [*layers, *stack.layers()]:
        if layer.operator in ("LSTM", "Gather") or len(layer.shape) == 3:
            assert no_matrix(layer)
            with pytest.raises(ModelError, match=layer.name):
                weight_matrix(np.ones(layer.shape), layer)
    assert {layer.operator for layer in layers} >= {"LSTM", "Gather"}


def test_other_shapes_are_refused():
    _, layer, weight = product("gemm")
    with pytest.raises(ModelError, match="weight of shape"):
        weight_matrix(weight.T, layer)
    with pytest.raises(ModelError, match="matrix of shape"):
        from_matrix(weight, layer)
