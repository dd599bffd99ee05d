import numpy as np
import pytest

from alula.errors import DataError
from alula.graph.channels import find_couplings
from alula.graph.shapes import infer_shapes, observe_shapes
from alula.graph.tidy import tidy
from alula.testing import (
    attention_network,
    convolution_network,
    dense_network,
    embedding_network,
    model_from_text,
    random_feeds,
    recurrent_network,
)


@pytest.mark.parametrize(
    "network", [attention_network, convolution_network, dense_network, embedding_network, recurrent_network]
)
def test_shapes_are_those_that_a_run_gives(network):
    model = network()
    feeds = random_feeds(model, batch=3)
    shapes = infer_shapes(model, {name: array.shape for name, array in feeds.items()})
    assert None not in shapes.values()
    for name, array in model.run(feeds).items():
        assert shapes[name] == array.shape
    for name, value in model.graph.initializers.items():
        assert shapes[name] == tuple(value.const_value.shape)


def test_free_axes_are_one_and_axes_of_one_name_are_equal():
    model = model_from_text(
        "n (float[b, 4] x, float[b, 2] y, float[m] z) => (float[b, c] o) { o = Concat <axis = 1> (x, y) }"
    )
    assert infer_shapes(model)["o"] == (1, 6)
    shapes = infer_shapes(model, {"x": (5, 4)})
    assert (shapes["y"], shapes["z"], shapes["o"]) == ((5, 2), (1,), (5, 6))


def test_shape_arithmetic_is_followed():
    text = """n (float[b, t, 6] x) => (float[b, t, 2, 3] y) <int64[2] heads = {2, 3}> {
        s = Shape <start = 0, end = 2> (x)
        r = Concat <axis = 0> (s, heads)
        y = Reshape (x, r)
    }"""
    assert infer_shapes(model_from_text(text), {"x": (4, 7, 6)})["y"] == (4, 7, 2, 3)


def test_unknown_is_none():
    shapes = infer_shapes(model_from_text("n (float[4] x) => (int64[1, k] y) { y = NonZero (x) }"))
    assert shapes["y"] is None


def test_large_weights_stay_out_of_inference():
    model = model_from_text(
        "n (float[b, 1000] x) => (float[b, 1000] y) { y = MatMul (x, w) }", {"w": np.ones((1000, 1000), np.float32)}
    )
    assert infer_shapes(model)["y"] == (1, 1000)
    assert model.weight("w").size == 1_000_000


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"z": (1, 4)}, r"no inputs named \['z'\]; it has x, y"),
        ({"x": (1, 5)}, r"input must be x: float32\[b, 4\], got the shape \[1, 5\]"),
        ({"x": (1, 4, 1)}, "input must be"),
        ({"x": (-1, 4)}, "input must be"),
        ({"x": (2, 4), "y": (3, 4)}, "input must be"),
    ],
)
def test_wrong_shapes(given, message):
    model = model_from_text("n (float[b, 4] x, float[b, 4] y) => (float[b, 4] o) { o = Add (x, y) }")
    with pytest.raises(DataError, match=message):
        infer_shapes(model, given)


def test_shape_arithmetic_through_operators_that_inference_does_not_follow():
    text = """n (float[b, t, 6] x) => (float[b, t, k, 3] y) <int64[1] one = {-1}, int64 first = {0}, int64 second = {1},
            int64[2] rest = {-1, 3}> {
        s = Shape (x)
        b = Gather (s, first)
        t = Gather (s, second)
        b1 = Reshape (b, one)
        t1 = Reshape (t, one)
        r = Concat <axis = 0> (b1, t1, rest)
        z = Reshape (x, r)
        y = Relu (z)
    }"""
    model = model_from_text(text)
    shapes = infer_shapes(model, {"x": (4, 7, 6)})
    assert shapes["y"] == (4, 7, 2, 3)
    assert {name for name, shape in shapes.items() if shape is None} == set()
    assert model.outputs[0].shape == ("b", "t", "k", 3)


NONZERO = "n (float[4] x) => (float[k] y, int64[1, k] z) { i = NonZero (x) y = Compress (x, kept) z = Neg (i) }"


def test_shapes_that_depend_on_values_are_observed():
    model = model_from_text(NONZERO, {"kept": np.array([True, False, True])})
    shapes = observe_shapes(model, {"x": np.array([1, 0, 2, 3], np.float32)})
    assert (shapes["i"], shapes["y"], shapes["z"]) == ((1, 3), (2,), (1, 3))
    assert infer_shapes(model)["i"] is None


def test_a_graph_that_does_not_run_leaves_shapes_unknown():
    text = "n (float[4] x) => (int64[3, 99] y) { i = NonZero (x) y = Add (i, big) }"
    model = model_from_text(text, {"big": np.zeros((3, 99), np.int64)})
    shapes = observe_shapes(model, {"x": np.array([1, 0, 2, 3], np.float32)})
    assert (shapes["x"], shapes["i"]) == ((4,), None)


def attention():
    """Attention of two heads whose number the graph leaves to be told by -1."""
    text = """net (float[batch, sequence, 4] x) => (float[batch, sequence, 4] y)
        <int64[1] zero = {0}, int64[1] one = {1}, int64[1] rest = {-1}, int64[1] size = {2}> {
        shape = Shape (x)
        b = Gather (shape, zero)
        s = Gather (shape, one)
        to_heads = Concat <axis = 0> (b, s, rest, size)
        back = Concat <axis = 0> (b, s, rest)
        q0 = MatMul (x, query)
        k0 = MatMul (x, key)
        v0 = MatMul (x, value)
        q1 = Reshape (q0, to_heads)
        k1 = Reshape (k0, to_heads)
        v1 = Reshape (v0, to_heads)
        q = Transpose <perm = [0, 2, 1, 3]> (q1)
        k = Transpose <perm = [0, 2, 3, 1]> (k1)
        v = Transpose <perm = [0, 2, 1, 3]> (v1)
        scores = MatMul (q, k)
        p = Softmax <axis = -1> (scores)
        o0 = MatMul (p, v)
        o1 = Transpose <perm = [0, 2, 1, 3]> (o0)
        o = Reshape (o1, back)
        y = MatMul (o, output)
    }"""
    random = np.random.default_rng(0)
    weights = {name: random.standard_normal((4, 4)).astype(np.float32) for name in ("query", "key", "value", "output")}
    return model_from_text(text, weights)


def test_lengths_behind_computed_targets_are_settled_so_that_heads_are_seen():
    model, settled = attention(), tidy(attention())
    heads = [one for one in find_couplings(settled) if one.initializers >= {"query", "key", "value", "output"}]
    assert [(one.size, one.members[0].indices.shape) for one in heads] == [(2, (2, 2))]
    lengths = {str(value.name): value.shape for node in settled.graph for value in node.outputs}
    assert [isinstance(length, int) for length in lengths["q"]] == [False, True, False, True]
    for batch, sequence in ((1, 1), (3, 6)):
        x = np.random.default_rng(1).standard_normal((batch, sequence, 4)).astype(np.float32)
        np.testing.assert_array_equal(settled.run({"x": x})["y"], model.run({"x": x})["y"])


@pytest.mark.parametrize(
    ("computed", "length"),
    [
        ("n = Div (t, t)", 1),
        ("n = Min (t, eight)", None),  # cut off at a limit
        ("u = Add (t, seven) d = Div (u, eight) n = Mul (d, eight)", None),  # rounded up to windows
        ("u = Mul (t, eight) n = Div (u, t)", 8),
    ],
)
def test_only_lengths_that_never_change_are_settled(computed, length):
    model = tidy(
        model_from_text(
            "n (float[b, t] x) => (float[n, 1] y) <int64[1] eight = {8}, int64[1] seven = {7}, int64[1] one = {1}> {"
            f"t = Shape <start = 1, end = 2> (x) {computed} p = Concat <axis = 0> (n, one)"
            "z = ConstantOfShape (p) y = Relu (z) }"
        )
    )
    (made,) = (node.outputs[0] for node in model.graph if node.op_type == "ConstantOfShape")
    found = made.shape[0]
    assert found == length if length is not None else not isinstance(found, int)


def test_free_axes_without_a_name_have_no_part_either():
    text = """n (float[?, ?, 6] x) => (float[b, t, k, 3] y) <int64[2] heads = {-1, 3}> {
        s = Shape <end = 2> (x)
        r = Concat <axis = 0> (s, heads)
        h = Reshape (x, r)
        y = Relu (h)
    }"""
    (made,) = (node.outputs[0] for node in tidy(model_from_text(text)).graph if node.op_type == "Reshape")
    assert [length if isinstance(length, int) else None for length in made.shape] == [None, None, 2, 3]
