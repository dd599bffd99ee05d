"""Equalized layers give the same outputs from ranges that agree."""

from __future__ import annotations

import numpy as np
import pytest

from alula.errors import DataError
from alula.techniques import Context, Equalize
from alula.testing.conformance import relative_error, with_weight
from alula.testing.models import model_from_text

PAIRS = {
    "convolutions, one of them depthwise": (
        """n (float[b, 3, 8, 8] x) => (float[b, 5, 4, 4] y) { h = Conv (x, w, c) r = Relu (h)
        d = Conv <group = 6, pads = [1, 1, 1, 1]> (r, u, e) q = LeakyRelu (d)
        m = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (q) y = Conv (m, v) }""",
        {"w": (6, 3, 1, 1), "c": (6,), "u": (6, 1, 3, 3), "e": (6,), "v": (5, 6, 1, 1)},
        (2, 3, 8, 8), [("w", 0, "u", 0), ("u", 0, "v", 1)],
    ),
    "in groups": (
        """n (float[b, 4, 6, 6] x) => (float[b, 6, 6, 6] y) { h = Conv <group = 2> (x, w) r = Relu (h)
        y = Conv <group = 3> (r, v) }""",
        {"w": (6, 2, 1, 1), "v": (6, 2, 1, 1)}, (2, 4, 6, 6), [],
    ),
    "a head behind a mean": (
        """n (float[b, 3, 8, 8] x) => (float[b, 5] y) { h = Conv (x, w) a = Add (h, c) r = Relu (a)
        g = GlobalAveragePool (r) f = Flatten (g) y = Gemm <transB = 1> (f, v, e) }""",
        {"w": (6, 3, 3, 3), "c": (1, 6, 1, 1), "v": (5, 6), "e": (5,)}, (2, 3, 8, 8), [("w", 0, "v", 1)],
    ),
    "products with a bias of their own": (
        """n (float[b, t, 4] x) => (float[b, t, 3] y) { h = MatMul (x, w) a = Add (h, c) r = PRelu (a, s)
        y = MatMul (r, v) }""",
        {"w": (4, 6), "c": (6,), "s": (6,), "v": (6, 3)}, (2, 5, 4), [("w", 1, "v", 0)],
    ),
}  # fmt: skip
APART = {
    "what is no scale": "n (float[b, 4] x) => (float[b, 3] y) { h = MatMul (x, w) r = Sigmoid (h) y = MatMul (r, v) }",
    "cut off at six": (
        "n (float[b, 4] x) => (float[b, 3] y) <float zero = {0.0}, float six = {6.0}> { h = MatMul (x, w)"
        "r = Clip (h, zero, six) y = MatMul (r, v) }"
    ),
    "read twice": (
        "n (float[b, 4] x) => (float[b, 3] y, float[b, 6] o) { h = MatMul (x, w) r = Relu (h) y = MatMul (r, v)"
        "o = Tanh (r) }"
    ),
    "an output": (
        "n (float[b, 4] x) => (float[b, 3] y, float[b, 6] r) { h = MatMul (x, w) r = Relu (h) y = MatMul (r, v) }"
    ),
    "mixed by pooling": (
        "n (float[b, 2, 4] x) => (float[b, 2, 3] y) { h = MatMul (x, w)"
        "r = MaxPool <kernel_shape = [1], strides = [1]> (h) y = MatMul (r, v) }"
    ),
}  # fmt: skip


def made(text, shapes, seed=0):
    """A network whose channels differ a hundredfold."""
    random = np.random.default_rng(seed)
    weights = {}
    for name, shape in shapes.items():
        spread = np.exp(1.5 * random.standard_normal((shape[0], *[1] * (len(shape) - 1))))
        weights[name] = (random.standard_normal(shape) * spread).astype(np.float32)
    return model_from_text(text, weights)


def equalized(model):
    return Equalize().apply(model, Context(model.layers()))


@pytest.mark.parametrize("pair", PAIRS)
def test_outputs_stay_and_ranges_agree(pair):
    text, shapes, shape, axes = PAIRS[pair]
    model = made(text, shapes)
    x = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    result = equalized(model)
    assert result.notes
    assert relative_error(model.run({"x": x}), result.run({"x": x})) < 1e-5
    for first, gives, second, takes in axes:
        ranges = [
            np.abs(result.weight(name)).max(axis=tuple(one for one in range(len(shapes[name])) if one != axis))
            for name, axis in ((first, gives), (second, takes))
        ]
        np.testing.assert_allclose(*ranges, rtol=5e-3)


@pytest.mark.parametrize("text", APART.values(), ids=APART)
def test_what_does_not_keep_a_scale_is_left_alone(text):
    model = made(text, {"w": (4, 6), "v": (6, 3)})
    assert not equalized(model).notes
    assert equalized(model).weight("w").tolist() == model.weight("w").tolist()


def test_one_scale_for_a_whole_weight_becomes_usable():
    text, shapes, shape, _ = PAIRS["convolutions, one of them depthwise"]
    model = made(text, shapes, seed=2)
    x = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    errors = []
    for one in (model, equalized(model)):
        coarse = one
        for layer in one.layers():
            step = np.abs(one.weight(layer.weight)).max() / 127
            coarse = with_weight(coarse, layer.weight, lambda weight, step=step: np.rint(weight / step) * step)
        errors.append(relative_error(model.run({"x": x}), coarse.run({"x": x})))
    assert errors[1] < 0.5 * errors[0]


def test_shared_weights_and_broken_ones():
    text = "n (float[b, 6] x) => (float[b, 6] y) { h = MatMul (x, w) r = Relu (h) y = MatMul (r, w) }"
    model = made(text, {"w": (6, 6)})
    assert not equalized(model).notes
    text, shapes, *_ = PAIRS["a head behind a mean"]
    broken = with_weight(made(text, shapes), "v", lambda weight: np.where(weight == weight[0, 0], np.nan, weight))
    with pytest.raises(DataError, match="Gemm_0"):
        equalized(broken)
