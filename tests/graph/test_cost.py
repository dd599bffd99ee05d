import numpy as np
import pytest

from alula.errors import DataError
from alula.graph.cost import measure_cost
from alula.recipe import Recipe, Step, apply_recipe
from alula.techniques import Cluster, Float16, QuantizeDynamic, QuantizeWeights
from alula.testing import (
    attention_network,
    dense_network,
    embedding_network,
    model_from_text,
    random_feeds,
    recurrent_network,
)
from tests.oracles import cost as oracle


def zeros(*shape):
    return np.zeros(shape, np.float32)


CONVOLUTIONS = [
    ("float[1, 4, 9] x", (3, 4, 3), "pads = [0, 0]", (1, 3, 7)),
    ("float[2, 4, 6, 5] x", (6, 4, 3, 2), "strides = [2, 1], pads = [1, 0, 1, 0]", (2, 6, 3, 4)),
    ("float[1, 4, 6, 6] x", (8, 2, 3, 3), "group = 2", (1, 8, 4, 4)),
    ("float[1, 4, 6, 6] x", (4, 1, 3, 3), "group = 4", (1, 4, 4, 4)),
    ("float[1, 2, 4, 4, 4] x", (3, 2, 2, 2, 2), "dilations = [2, 2, 2]", (1, 3, 2, 2, 2)),
]


@pytest.mark.parametrize(("port", "weight", "attributes", "made"), CONVOLUTIONS)
def test_convolution(port, weight, attributes, made):
    sizes = ", ".join(map(str, made))
    model = model_from_text(
        f"n ({port}) => (float[{sizes}] y) {{ y = Conv <{attributes}> (x, w) }}", {"w": zeros(*weight)}
    )
    cost = measure_cost(model)
    assert cost.layers[0].macs == cost.macs == oracle.convolution_macs(made, weight)
    assert cost.layers[0].parameters == np.prod(weight)


def test_transposed_convolution():
    model = model_from_text(
        "n (float[1, 4, 3, 3] x) => (float[1, 6, 7, 7] y) { y = ConvTranspose <strides = [2, 2], group = 2> (x, w) }",
        {"w": zeros(4, 3, 3, 3)},
    )
    assert measure_cost(model).macs == oracle.transposed_convolution_macs((1, 4, 3, 3), (4, 3, 3, 3))


@pytest.mark.parametrize(("operator", "gates"), [("LSTM", 4), ("GRU", 3), ("RNN", 1)])
@pytest.mark.parametrize(("direction", "directions"), [("forward", 1), ("bidirectional", 2)])
def test_recurrent(operator, gates, direction, directions):
    model = model_from_text(
        f"""n (float[5, b, 3] x) => (float[5, {directions}, b, 4] y) {{
            y = {operator} <hidden_size = 4, direction = "{direction}"> (x, w, r) }}""",
        {"w": zeros(directions, gates * 4, 3), "r": zeros(directions, gates * 4, 4)},
    )
    cost = measure_cost(model, {"x": (5, 2, 3)})
    assert cost.macs == oracle.recurrent_macs(5, 2, directions, gates, 4, 3)


def test_products_without_weights_count_apart():
    cost = measure_cost(attention_network(), {"x": (3, 5, 8)})
    assert cost.macs == 4 * oracle.product_macs((3, 5, 8), (8, 8))
    assert cost.other_macs == oracle.product_macs((3, 5, 8), (3, 8, 5)) + oracle.product_macs((3, 5, 5), (3, 5, 8))
    assert cost.total_macs == cost.macs + cost.other_macs


def test_a_table_costs_bytes_and_no_arithmetic():
    table = measure_cost(embedding_network()).layer("Gather_0")
    assert (table.macs, table.parameters, table.weight_bytes) == (0, 160, 640)


def lenet():
    text = """lenet (float[n, 1, 28, 28] x) => (float[n, 10] y) {
        a = Conv <pads = [2, 2, 2, 2]> (x, w1, b1)
        b = Relu (a)
        c = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (b)
        d = Conv (c, w2, b2)
        e = Relu (d)
        f = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (e)
        g = Flatten (f)
        h = Gemm <transB = 1> (g, w3, b3)
        i = Relu (h)
        j = Gemm <transB = 1> (i, w4, b4)
        k = Relu (j)
        y = Gemm <transB = 1> (k, w5, b5)
    }"""
    shapes = {
        "w1": (6, 1, 5, 5), "b1": (6,), "w2": (16, 6, 5, 5), "b2": (16,), "w3": (120, 400), "b3": (120,),
        "w4": (84, 120), "b4": (84,), "w5": (10, 84), "b5": (10,),
    }  # fmt: skip
    return model_from_text(text, {name: zeros(*shape) for name, shape in shapes.items()})


def test_lenet_by_hand():
    cost = measure_cost(lenet())
    assert cost.parameters == 61_706  # LeCun 1998: 156 + 2,416 (full connections) + 48,120 + 10,164 + 850
    assert cost.weight_bytes == 4 * 61_706
    assert [layer.macs for layer in cost.layers] == [117_600, 240_000, 48_000, 10_080, 840]
    assert cost.macs == 416_520
    assert cost.other_macs == 0
    assert cost.unknown == ()
    assert cost.layers[0].activation_bytes == 4 * (28 * 28 + 6 * 28 * 28)
    assert cost.peak_activation_bytes == 4 * 2 * 6 * 28 * 28  # the first Relu: its input and its output
    assert measure_cost(lenet(), {"x": (3, 1, 28, 28)}).macs == 3 * 416_520


def test_peak_of_a_branching_graph_by_the_oracle():
    text = """n (float[8] x) => (float[8] y) <int64[1] sixteen = {16}, int64[1] two = {2}> {
        a = Tile (x, sixteen)
        b = Neg (a)
        c = Neg (x)
        d = Concat <axis = 0> (b, a)
        e = ReduceSum (d)
        y = Add (c, e)
    }"""
    steps = [({"x"}, {"a"}), ({"a"}, {"b"}), ({"x"}, {"c"}), ({"a", "b"}, {"d"}), ({"d"}, {"e"}), ({"c", "e"}, {"y"})]
    sizes = {"x": 32, "a": 512, "b": 512, "c": 32, "d": 1024, "e": 4, "y": 32}
    cost = measure_cost(model_from_text(text))
    assert cost.peak_activation_bytes == oracle.peak_bytes(steps, sizes, {"y"})


def test_a_reshape_shares_its_memory():
    text = "n (float[4, 8] x) => (float[32] y) <int64[1] s = {32}> { a = Neg (x)\n b = Reshape (a, s)\n y = Neg (b) }"
    assert measure_cost(model_from_text(text)).peak_activation_bytes == 2 * 128


def test_shared_weights_count_once_in_the_sum():
    model = model_from_text(
        "n (float[b, 4] x) => (float[b, 4] y) { a = MatMul (x, w)\n y = MatMul (a, w) }", {"w": zeros(4, 4)}
    )
    cost = measure_cost(model)
    assert cost.parameters == 16
    assert [layer.parameters for layer in cost.layers] == [16, 16]


def test_what_cannot_be_told_is_none_and_named():
    text = """n (float[b, 4] x) => (float[m, 2] y) {
        i = NonZero (x)
        t = Transpose (i)
        f = Cast <to = 1> (t)
        y = MatMul (f, w)
    }"""
    cost = measure_cost(model_from_text(text, {"w": zeros(2, 2)}))
    assert cost.layers[0].macs is None
    assert cost.layers[0].activation_bytes is None
    assert set(cost.unknown) == {"i", "t", "f", "y"}


def test_wrong_shapes():
    with pytest.raises(DataError, match=r"input must be h: float32\[1, batch, 12\], got the shape \[2, 3, 12\]"):
        measure_cost(recurrent_network(), {"h": (2, 3, 12)})


@pytest.mark.parametrize(
    "technique", [Cluster(16), Float16(), QuantizeWeights(bits=4, smallest=1), QuantizeDynamic()], ids=str
)
def test_weights_that_are_computed_from_codes_are_multiplied_all_the_same(technique):
    model = dense_network()
    small = apply_recipe(model, Recipe((Step(technique),)))
    assert small.layers() != model.layers()
    assert measure_cost(small).macs == measure_cost(model).macs
    assert measure_cost(small).other_macs == 0


def test_recurrent_weights_of_codes_count(tmp_path):
    model = recurrent_network()
    small = apply_recipe(model, Recipe((Step(QuantizeWeights(bits=8, smallest=1)),)))
    feeds = random_feeds(model)
    assert measure_cost(small, feeds=feeds).macs == measure_cost(model, feeds=feeds).macs > 0
    model.save(tmp_path / "model.onnx")
    assert measure_cost(tmp_path / "model.onnx", feeds=feeds) == measure_cost(model, feeds=feeds)
