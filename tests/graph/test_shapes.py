import numpy as np
import pytest

from alula.errors import DataError
from alula.graph.shapes import infer_shapes, observe_shapes
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
