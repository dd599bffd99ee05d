"""Constants divided as they are told to be divide the tensor, channel by channel."""

from __future__ import annotations

import re

import numpy as np
import pytest

from alula.graph.editing import Editor
from alula.graph.rescaling import multiples_behind
from alula.testing.models import model_from_text

ALONG_THE_LAST = {
    "layer normalisation": (
        "n (float[b, 5, 4] x) => (float[b, 5, 4] t) { t = LayerNormalization (x, g, c) }",
        {"g": (4,), "c": (4,)}, ["g", "c"],
    ),
    "normalisation without a bias, as ONNX Runtime calls it": (
        "n (float[b, 5, 4] x) => (float[b, 5, 4] t) { t = SimplifiedLayerNormalization (x, g) }", {"g": (4,)}, ["g"],
    ),
    "normalisation in single steps": (
        """n (float[b, 5, 4] x) => (float[b, 5, 4] t) <float two = {2.0}, int64[1] last = {-1}> { p = Pow (x, two)
        m = ReduceMean (p, last) r = Sqrt (m) q = Reciprocal (r) h = Mul (x, q) t = Mul (g, h) }""",
        {"g": (4,)}, ["g"],
    ),
    "product, bias and activation function": (
        "n (float[b, 5, 3] x) => (float[b, 5, 4] t) { h = MatMul (x, w) a = Add (c, h) t = Relu (a) }",
        {"w": (3, 4), "c": (4,)}, ["c", "w"],
    ),
    "one bias for all": (
        "n (float[b, 3] x) => (float[b, 4] t) { h = Gemm <transB = 1> (x, w, c) t = LeakyRelu (h) }",
        {"w": (4, 3), "c": ()}, ["w", "c"],
    ),
    "two layers": (
        "n (float[b, 3] x) => (float[b, 4] t) { h = MatMul (x, w) i = Gemm (x, v) d = Sub (h, i) t = Div (d, k) }",
        {"w": (3, 4), "v": (3, 4), "k": ()}, ["w", "v"],
    ),
    "a gate": (
        """n (float[b, 3] x) => (float[b, 4] t) { g = MatMul (x, v) s = Sigmoid (g) q = Mul (g, s) u = MatMul (x, w)
        t = Mul (q, u) }""",
        {"w": (3, 4), "v": (3, 4)}, ["w"],
    ),
    "heads": (
        """n (float[b, 5, 6] x, float[b, 2, 5, 5] p) => (float[b, 5, 6] t)
        <int64[4] apart = {0, 0, 2, 3}, int64[3] joined = {0, 0, 6}> { h = MatMul (x, w) a = Add (h, c)
        r = Reshape (a, apart) q = Transpose <perm = [0, 2, 1, 3]> (r) o = MatMul (p, q)
        m = Transpose <perm = [0, 2, 1, 3]> (o) t = Reshape (m, joined) }""",
        {"w": (6, 6), "c": (6,)}, ["w", "c"],
    ),
    "heads with a scale for all": (
        """n (float[b, 5, 6] x, float[b, 2, 5, 5] p) => (float[b, 5, 6] t)
        <int64[4] apart = {0, 0, 2, 3}, int64[3] joined = {0, 0, 6}> { h = MatMul (x, w)
        r = Reshape (h, apart) q = Transpose <perm = [0, 2, 1, 3]> (r) o = MatMul (p, q) z = Mul (o, k)
        m = Transpose <perm = [0, 2, 1, 3]> (z) t = Reshape (m, joined) }""",
        {"w": (6, 6), "k": ()}, ["k"],
    ),
    "a head behind a mean": (
        """n (float[b, 3, 4, 4] x) => (float[b, 6] t) { h = Conv (x, w, c) g = GlobalAveragePool (h)
        t = Flatten (g) }""",
        {"w": (6, 3, 3, 3), "c": (6,)}, ["w", "c"],
    ),
}  # fmt: skip
ALONG_THE_SECOND = {
    "convolution": (
        """n (float[b, 4, 6, 6] x) => (float[b, 6, 3, 3] t) { h = Conv <group = 2> (x, w, c) r = PRelu (h, s)
        t = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (r) }""",
        {"w": (6, 2, 1, 1), "c": (6,), "s": (6, 1, 1)}, ["w", "c"],
    ),
    "normalised batches": (
        """n (float[b, 4, 6, 6] x) => (float[b, 4, 6, 6] t) { h = BatchNormalization (x, g, c, m, v)
        t = Relu (h) }""",
        {"g": (4,), "c": (4,), "m": (4,), "v": (4,)}, ["g", "c"],
    ),
    "weight on the left": (
        "n (float[b, 3, 5] x) => (float[b, 4, 5] t) { h = MatMul (w, x) t = Add (h, c) }",
        {"w": (4, 3), "c": (4, 1)}, ["w", "c"],
    ),
}  # fmt: skip
NETWORKS = {name: (*told, -1) for name, told in ALONG_THE_LAST.items()}
NETWORKS |= {name: (*told, 1) for name, told in ALONG_THE_SECOND.items()}
APART = {
    "what is no multiple": ("h = MatMul (x, w) t = Sigmoid (h)", "Sigmoid 'Sigmoid_0' before it does not keep"),
    "a reader beside": ("h = MatMul (x, w) t = Relu (h) o = Tanh (h)", "'h', which it is computed from, is read"),
    "an input": ("t = Relu (x)", "'x' is an input of the graph"),
    "a factor for all channels": (
        "h = MatMul (x, v) t = Mul (h, y)", "the channels of .*, which it is computed from, are not its own",
    ),
    "a sum over channels": ("h = MatMul (x, w) t = Softmax (h)", "Softmax"),
    "a weight that is read twice": ("h = MatMul (x, w) t = MatMul (h, w)", "'w', which it is computed from, is read"),
}  # fmt: skip


def built(text, shapes):
    random = np.random.default_rng(0)
    return model_from_text(text, {name: random.uniform(0.5, 2, shape).astype("f4") for name, shape in shapes.items()})


@pytest.mark.parametrize("name", NETWORKS)
def test_the_tensor_is_divided_channel_by_channel(name):
    text, shapes, wanted, axis = NETWORKS[name]
    model = built(text, shapes)
    editor = Editor(model.edit())
    multiples = multiples_behind(editor.graph, editor.value("t"), axis)
    assert not isinstance(multiples, str), multiples
    assert [multiple.initializer for multiple in multiples] == wanted
    random = np.random.default_rng(1)
    feeds = {spec.name: random.standard_normal([2 if isinstance(one, str) else one for one in spec.shape]).astype("f4")
             for spec in model.inputs}  # fmt: skip
    before = model.run(feeds)["t"]
    factors = np.exp(random.standard_normal(before.shape[axis])).astype("f4")
    for multiple in multiples:
        divided = multiple.divided(editor.array(multiple.initializer), factors)
        assert divided.dtype == np.float32
        editor.replace_constant(multiple.initializer, divided)
    shape = [-1 if place == axis % before.ndim else 1 for place in range(before.ndim)]
    after = model.edited(editor.model).run(feeds)["t"]
    np.testing.assert_allclose(after, before / factors.reshape(shape), rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize(("body", "words"), APART.values(), ids=APART)
def test_why_there_are_none(body, words):
    out = ", float[b, 4] o" if "o =" in body else ""
    model = built(f"n (float[b, 4] x, float[b, 1] y) => (float[b, 4] t{out}) {{ {body} }}", {"w": (4, 4), "v": (4, 1)})
    editor = Editor(model.edit())
    reason = multiples_behind(editor.graph, editor.value("t"), -1)
    assert isinstance(reason, str)
    assert re.search(words, reason), reason


def test_constants_and_what_must_not_change():
    model = built("n (float[b, 3] x) => (float[b, 4] t) { t = MatMul (x, w) }", {"w": (3, 4)})
    graph = model.graph
    assert "not to be changed" in str(multiples_behind(graph, graph.outputs[0], -1, fixed=["w"]))
    assert "it is a constant" in str(multiples_behind(graph, graph.initializers["w"], -1))
    assert "not known" in str(multiples_behind(graph, graph.outputs[0], 0)), "of the batch"
    half = model_from_text(
        "n (float16[b, 3] x) => (float16[b, 4] t) { t = MatMul (x, w) }", {"w": np.ones((3, 4), "f2")}
    )
    assert "not in float32" in str(multiples_behind(half.graph, half.graph.outputs[0], -1))
