"""Constants repeated as they are told to be repeat the channels of a tensor, and nothing else."""

from __future__ import annotations

import re

import numpy as np
import pytest

from alula.graph.editing import Editor, like
from alula.graph.repeating import origin_of
from alula.testing.models import model_from_text, random_feeds

COMPUTED = {
    "convolution, normalisation, depthwise convolution, pool": (
        """n (float[b, 3, 8, 8] x) => (float[b, 4] y) { h = Conv (x, w, c)
        a = BatchNormalization (h, g, d, m, v) s = Sigmoid (a) p = Mul (a, s)
        q = Conv <group = 4> (p, u, e) z = PRelu (q, k) l = GlobalAveragePool (z) y = Flatten (l) }""",
        {"w": (4, 3, 3, 3), "c": (4,), "g": (4,), "d": (4,), "m": (4,), "v": (4,), "u": (4, 1, 3, 3), "e": (4,),
         "k": (4, 1, 1)},
        1, {"w", "c", "g", "d", "m", "v", "u", "e", "k"},
    ),
    "product, bias and one factor for all": (
        "n (float[b, t, 3] x) => (float[b, t, 4] y) { h = MatMul (x, w) a = Add (c, h) g = Gelu (a) y = Mul (g, k) }",
        {"w": (3, 4), "c": (4,), "k": (1,)}, -1, {"w", "c"},
    ),
    "two layers and a turn": (
        """n (float[b, 3] x) => (float[b, 4] y) { h = Gemm <transB = 1> (x, w, c) i = Gemm (x, v)
        d = Sub (h, i) t = Transpose (d) r = Tanh (t) y = Transpose (r) }""",
        {"w": (4, 3), "c": (4,), "v": (3, 4)}, -1, {"w", "c", "v"},
    ),
}  # fmt: skip
STAYS = {
    "read elsewhere": (
        "n (float[b, 3] x) => (float[b, 4] y, float[b, 4] z) { h = MatMul (x, w) y = Relu (h) z = Neg (h) }",
        "'h' is read elsewhere too",
    ),
    "an output": (
        "n (float[b, 3] x) => (float[b, 4] y, float[b, 4] h) { h = MatMul (x, w) y = Relu (h) }",
        "'h' is read elsewhere too",
    ),
    "not by channel": (
        "n (float[b, 3] x) => (float[b, 4] y) { h = MatMul (x, w) y = Softmax (h) }", "Softmax .* by itself",
    ),
    "an input": ("n (float[b, 3] x) => (float[b, 3] y) { y = Relu (x) }", "'x' is an input"),
    "one channel": ("n (float[b, 1] x) => (float[b, 1] y) { y = Relu (x) }", "single channel"),
    "in groups": (
        "n (float[b, 2, 4, 4] x) => (float[b, 4, 4, 4] y) { y = Conv <group = 2> (x, g) }", "Conv .* by itself",
    ),
    "fixed": ("n (float[b, 3] x) => (float[b, 5] y) { y = MatMul (x, f) }", "'f', which holds .* not to be changed"),
}  # fmt: skip
SHAPES = {"w": (3, 4), "f": (3, 5), "g": (4, 1, 1, 1)}


def weights(shapes):
    random = np.random.default_rng(0)
    return {name: random.uniform(0.5, 2, shape).astype(np.float32) for name, shape in shapes.items()}


def read(model):
    """The graph with a reader behind what it gives, which becomes the output under another name."""
    editor = Editor(model.edit())
    value = editor.graph.outputs[0]
    reader = editor.insert("Identity", [value], "read", after=value.producer())
    like(reader.outputs[0], value)
    editor.graph.outputs[0] = reader.outputs[0]
    return editor, value, reader


@pytest.mark.parametrize("name", COMPUTED)
def test_channels_are_repeated(name):
    text, shapes, axis, constants = COMPUTED[name]
    model = model_from_text(text, weights(shapes))
    editor, value, reader = read(model)
    origin = origin_of(editor.graph, value, axis, reader, set())
    assert {found for found, _ in origin.constants} == constants
    sources = np.array([0, 1, 2, 3, 2, 0])
    origin.repeat(editor, sources)
    like(reader.outputs[0], value)
    feeds = random_feeds(model)
    (expected,), (repeated,) = model.run(feeds).values(), model.edited(editor.model).run(feeds).values()
    np.testing.assert_allclose(repeated, np.take(expected, sources, axis), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", STAYS)
def test_what_cannot_be_repeated_says_why(name):
    text, reason = STAYS[name]
    used = {one: shape for one, shape in SHAPES.items() if f", {one})" in text}
    editor, value, reader = read(model_from_text(text, weights(used)))
    found = origin_of(editor.graph, value, 1, reader, {"f"})
    assert isinstance(found, str)
    assert re.search(reason, found), found
