import numpy as np
import pytest

from alula.errors import RecipeError
from alula.graph.layers import select
from alula.testing import convolution_network, dense_network, embedding_network, model_from_text, recurrent_network


def only_layer(text, **weights):
    (layer,) = model_from_text(text, {name: np.ones(shape, np.float32) for name, shape in weights.items()}).layers()
    return layer


def test_convolution():
    stem, depthwise, point, classifier = convolution_network().layers()
    assert (stem.operator, stem.weight, stem.bias, stem.input, stem.output) == (
        "Conv", "stem_weight", "stem_bias", "image", "a",
    )  # fmt: skip
    assert (stem.shape, stem.output_axis, stem.input_axes, stem.groups) == ((8, 3, 3, 3), 0, (1, 2, 3), 1)
    assert depthwise.depthwise
    assert not stem.depthwise
    assert not point.depthwise
    assert (classifier.operator, classifier.output_axis, classifier.input_axes) == ("Gemm", 0, (1,))


def test_transposed_convolution():
    layer = only_layer(
        "n (float[1, 4, 3] x) => (float[1, 2, 5] y) { y = ConvTranspose (x, w, b) }", w=(4, 2, 3), b=(2,)
    )
    assert (layer.bias, layer.output_axis, layer.input_axes) == ("b", 1, (0, 2))


def test_gemm_that_is_not_transposed():
    layer = only_layer("n (float[b, 4] x) => (float[b, 2] y) { y = Gemm (x, w) }", w=(4, 2))
    assert (layer.output_axis, layer.input_axes, layer.bias) == (1, (0,), None)


def test_matmul_with_its_weight_on_either_side():
    right = only_layer("n (float[b, 4] x) => (float[b, 2] y) { y = MatMul (x, w) }", w=(4, 2))
    assert (right.output_axis, right.input_axes, right.input) == (1, (0,), "x")
    left = only_layer("n (float[4, b] x) => (float[2, b] y) { y = MatMul (w, x) }", w=(2, 4))
    assert (left.output_axis, left.input_axes, left.input) == (0, (1,), "x")


def test_table():
    layer = embedding_network().layers()[0]
    assert (layer.operator, layer.weight, layer.input, layer.output_axis) == ("Gather", "table", "tokens", 0)
    last = only_layer("n (int64[b] i) => (float[5, b] y) { y = Gather <axis = -1> (w, i) }", w=(5, 7))
    assert last.output_axis == 1


def test_recurrent():
    layer = recurrent_network().layers()[0]
    assert layer.weights == ("input_weight", "state_weight")
    assert (layer.bias, layer.output_axis, layer.input_axes) == ("gate_bias", 1, (2,))


def test_a_recurrent_layer_that_gives_its_state_only():
    layer = only_layer(
        "n (float[5, b, 3] x) => (float[1, b, 4] h) { , h = GRU <hidden_size = 4> (x, w, r) }",
        w=(1, 12, 3),
        r=(1, 12, 4),
    )
    assert layer.output == "h"


@pytest.mark.parametrize(
    "text",
    [
        "n (float[b, 4] x, float[4, 2] w) => (float[b, 2] y) { y = MatMul (x, w) }",
        "n (float[b, 4] x) => (float[b] y) { y = MatMul (x, v) }",
        "n (float[4, b] x) => (float[b, 2] y) { y = Gemm <transA = 1> (x, m) }",
        "n (int64[b] i) => (int64[b] y) { y = Gather (k, i) }",
        "n (float[b, 4] x) => (float[b, 2] y) { y = mine.MatMul (x, m) }",
    ],
)
def test_no_layers(text):
    weights = {"v": np.ones(4, np.float32), "m": np.ones((4, 2), np.float32), "k": np.arange(5)}
    assert model_from_text(text, weights).layers() == ()


def test_select():
    layers = convolution_network().layers()
    names = [layer.name for layer in layers]
    assert [layer.name for layer in select(layers)] == names
    assert [layer.name for layer in select(layers, ["Conv_*"], ["Conv_1"])] == ["Conv_0", "Conv_2"]
    assert [layer.name for layer in select(layers, ["Op:Gemm"])] == ["Gemm_0"]
    assert select((), ["*"]) == ()
    with pytest.raises(RecipeError, match=r"pattern 'conv\*' matches none of 4 layers; they are called Conv_0, Conv_1"):
        select(layers, ["conv*"])
    with pytest.raises(RecipeError, match="'Op:LSTM' matches none"):
        select(layers, ["*"], ["Op:LSTM"])


def test_layers_are_in_the_order_of_the_graph():
    assert [layer.operator for layer in dense_network().layers()] == ["MatMul", "Gemm"]
