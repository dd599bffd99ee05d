"""Weight-only quantization computes with exactly the weights that the definition of the grid gives."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
import torch

from alula.errors import DataError, RecipeError
from alula.graph.running import Runner
from alula.graph.trainable import trainable
from alula.numerics.grids import Grid, quantize
from alula.numerics.half_quadratic import half_quadratic_range
from alula.targets import OnnxRuntime, OpenVino
from alula.techniques import Context, QuantizeWeights
from alula.testing.conformance import relative_error, with_weight
from alula.testing.models import (
    convolution_network,
    dense_network,
    embedding_network,
    model_from_text,
    random_feeds,
    recurrent_network,
)
from tests.oracles.quantization import parameter_index
from tests.oracles.quantization import quantize as textbook_codes


def treat(model, include=None, **settings):
    layers = tuple(layer for layer in model.layers() if include is None or layer.name in include)
    return QuantizeWeights(**{"smallest": 1, "search": False, **settings}).apply(model, Context(layers))


def plain_run(model, feeds):
    """Run as the graph says it, in float: ONNX Runtime's optimiser computes MatMul of such weights in integers."""
    return Runner(model, optimise=False)(feeds)


def textbook(weight, bits, axis, *, block=None, symmetric=True):
    """The values that the codes of the weight stand for, element by element."""
    grid = Grid(bits, symmetric=symmetric, narrow=symmetric and bits > 4)
    codes, parameters = textbook_codes(weight, grid, axis, block)
    values = np.empty(weight.shape, np.float32)
    for index, code in codes.items():
        scale, zero_point = parameters[parameter_index(index, axis, block)]
        values[index] = (code - zero_point) * float(scale)
    return values


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("block", [None, 16, 32, 64])
def test_matmul_in_blocks(bits, block, symmetric):
    weight = np.random.default_rng(0).standard_normal((64, 6)).astype(np.float32)
    model = model_from_text("net (float[n, 64] x) => (float[n, 6] y) { y = MatMul (x, w) }", {"w": weight})
    result = treat(model, bits=bits, block=block, symmetric=symmetric)
    axis = 1 if block is None else 0
    values = textbook(weight, bits, axis, block=block, symmetric=symmetric)
    x = np.random.default_rng(1).standard_normal((3, 64)).astype(np.float32)
    np.testing.assert_allclose(plain_run(result, {"x": x})["y"], x @ values, rtol=1e-4, atol=1e-4)
    stored = result.graph.initializers["w.codes"].dtype
    assert stored == {2: ir.DataType.INT4, 3: ir.DataType.INT4, 4: ir.DataType.INT4, 8: ir.DataType.INT8}[bits]


@pytest.mark.parametrize("transposed", [0, 1])
def test_gemm_in_blocks_along_its_inputs(transposed):
    random = np.random.default_rng(0)
    weight, bias = random.standard_normal((6, 32) if transposed else (32, 6)).astype(np.float32), np.ones(6, np.float32)
    text = f"net (float[n, 32] x) => (float[n, 6] y) {{ y = Gemm <transB = {transposed}> (x, w, b) }}"
    result = treat(model_from_text(text, {"w": weight, "b": bias}), bits=4, block=16)
    axis = 1 if transposed else 0
    values = textbook(weight, 4, axis, block=16)
    x = random.standard_normal((3, 32)).astype(np.float32)
    expected = x @ (values.T if transposed else values) + bias
    np.testing.assert_allclose(plain_run(result, {"x": x})["y"], expected, rtol=1e-4, atol=1e-4)
    assert result.weight("w.scale").shape == ((6, 2) if transposed else (2, 6))


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [3, 4, 8])
@pytest.mark.parametrize("groups", [1, 2])
def test_convolutions_in_blocks_of_input_channels(groups, bits, symmetric, tmp_path):
    """As the graph says it, as both targets build it, and as the lift reads it."""
    random = np.random.default_rng(0)
    weight = (random.standard_normal((6, 8, 3, 2)) * random.uniform(0.2, 3, (6, 8, 1, 1))).astype(np.float32)
    text = f"net (float[n, {8 * groups}, 5, 5] x) => (float[n, 6, 3, 4] y) {{ y = Conv <group = {groups}> (x, w) }}"
    result = treat(model_from_text(text, {"w": weight}), bits=bits, block=4, symmetric=symmetric)
    assert result.weight("w.scale").shape == (6, 2, 3, 2)
    values = textbook(weight, bits, 1, block=4, symmetric=symmetric)
    feeds = {"x": random.standard_normal((2, 8 * groups, 5, 5)).astype(np.float32)}
    wanted = model_from_text(text, {"w": values}).run(feeds)["y"]
    close = {"rtol": 1e-4, "atol": 1e-4}
    np.testing.assert_allclose(plain_run(result, feeds)["y"], wanted, **close)
    np.testing.assert_allclose(trainable(result).eval()(torch.from_numpy(feeds["x"])).detach(), wanted, **close)
    for target in (OnnxRuntime(threads=1), OpenVino(threads=1)):
        built = target.build(result, tmp_path / type(target).__name__)
        np.testing.assert_allclose(target.open(built)(feeds)["y"], wanted, **close)


def test_one_block_of_all_channels_is_a_scale_for_each_place_of_the_kernel():
    weight = np.random.default_rng(0).standard_normal((4, 8, 1, 1)).astype(np.float32)
    model = model_from_text("net (float[n, 8, 2, 2] x) => (float[n, 4, 2, 2] y) { y = Conv (x, w) }", {"w": weight})
    feeds = random_feeds(model)
    whole, blocked = (plain_run(treat(model, bits=4, block=block), feeds)["y"] for block in (None, 8))
    np.testing.assert_allclose(blocked, whole, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "build", [convolution_network, dense_network, recurrent_network], ids=lambda build: build.__name__
)
@pytest.mark.parametrize("bits", [4, 8])
def test_whole_networks(build, bits):
    """The network whose weights are replaced by the textbook's values gives the same outputs."""
    model = build()
    reference = model
    for layer in model.layers():
        for name in layer.weights:
            values = textbook(model.weight(name), bits, layer.output_axis)
            reference = with_weight(reference, name, lambda _, values=values: values)
    feeds = random_feeds(model)
    result = treat(model, bits=bits)
    expected, outputs = reference.run(feeds), plain_run(result, feeds)
    for name, wanted in expected.items():
        np.testing.assert_allclose(outputs[name], wanted, rtol=1e-4, atol=1e-5)
    assert relative_error(expected, result.run(feeds)) < 0.02, "as ONNX Runtime likes it: integers in MatMulNBits"


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize(("shape", "axis"), [((20, 8), 0), ((20, 7), 0), ((7, 20), 1), ((20, 2, 3), 0)], ids=str)
def test_tables_by_row(bits, symmetric, shape, axis):
    table = np.random.default_rng(0).standard_normal(shape).astype(np.float32) + 0.5
    wanted = ", ".join(map(str, [*shape[:axis], "n", 2, *shape[axis + 1 :]]))
    text = f"net (int64[n, 2] x) => (float[{wanted}] y) {{ y = Gather <axis = {axis}> (table, x) }}"
    result = treat(model_from_text(text, {"table": table}), bits=bits, symmetric=symmetric)
    rows = np.array([[0, 19], [7, 3], [0, -1]])
    values = textbook(table, bits, axis, symmetric=symmetric)
    np.testing.assert_allclose(result.run({"x": rows})["y"], np.take(values, rows, axis=axis), rtol=1e-5, atol=1e-6)
    assert result.weight("table.codes").nbytes == (
        table.size // 2 if bits <= 4 and axis == 0 and shape[-1] % 2 == 0 else table.size
    )


def test_search_errs_less_than_the_extremes():
    random = np.random.default_rng(0)
    weight = random.standard_t(3, (256, 8)).astype(np.float32)
    model = model_from_text("net (float[n, 256] x) => (float[n, 8] y) { y = MatMul (x, w) }", {"w": weight})
    x = random.standard_normal((50, 256)).astype(np.float32)
    errors = [
        np.abs(treat(model, bits=4, search=search).run({"x": x})["y"] - x @ weight).mean() for search in (False, True)
    ]
    assert errors[1] < 0.9 * errors[0], errors


@pytest.mark.parametrize("block", [None, 16])
@pytest.mark.parametrize("symmetric", [True, False])
def test_half_quadratic_ranges_are_those_of_the_numerics(symmetric, block):
    """Layers get the weights that the function on an array gives; so do tables, and no data is asked for."""
    random, grid = np.random.default_rng(0), Grid(3, symmetric=symmetric)
    weight, table = random.standard_t(3, (64, 6)).astype(np.float32), random.standard_t(3, (9, 64)).astype(np.float32)
    text = "net (int64[n] x) => (float[n, 6] y) { r = Gather (table, x) y = MatMul (r, w) }"
    model = model_from_text(text, {"w": weight, "table": table})
    result = treat(model, bits=3, block=block, symmetric=symmetric, search=True, rounding="hqq")

    def values(array, axis, block=None):
        low, high = half_quadratic_range(array, grid, axis=axis, block=block)
        return quantize(array, grid, axis=axis, block=block, minimum=low, maximum=high).dequantize()

    expected = values(table, 0) @ values(weight, 1 if block is None else 0, block)
    np.testing.assert_allclose(plain_run(result, {"x": np.arange(9)})["y"], expected, rtol=1e-4, atol=1e-4)
    assert not QuantizeWeights(rounding="hqq").requests(model, model.layers())


def test_what_cannot_be_done_is_said():
    def notes(model, **settings):
        return " / ".join(map(str, treat(model, **settings).notes))

    assert "36 inputs are no multiple of 16" in notes(
        model_from_text("net (float[n, 36] x) => (float[n, 2] y) { y = MatMul (x, w) }", {"w": np.ones((36, 2), "f4")}),
        block=16,
    )
    assert "3 inputs are no multiple of 8" in notes(convolution_network(), block=8)
    assert "8 inputs are no multiple of 16" in notes(convolution_network(), block=16)
    assert "LSTM has no blocked form" in notes(recurrent_network(), block=8)
    assert "only 512 weights" in notes(dense_network(), smallest=1000)
    table = model_from_text("net (int64[n] x) => (float[n, 3] y) { y = Gather (w, x) }", {"w": np.ones((9, 3), "f4")})
    assert "stored in 8" in notes(table, bits=4)
    assert "float16" in notes(
        model_from_text("net (int64[n] x) => (float16[n, 3] y) { y = Gather (w, x) }", {"w": np.ones((9, 3), "f2")})
    )


def test_a_weight_that_others_need_in_float_stays():
    text = "net (float[n, 8] x) => (float[n, 8] y) { a = MatMul (x, w) y = MatMul (a, w) }"
    model = model_from_text(text, {"w": np.random.default_rng(0).standard_normal((8, 8)).astype(np.float32)})
    first, second = (layer.name for layer in model.layers())
    alone = treat(model, {first})
    assert alone.to_bytes() == model.to_bytes()
    assert f"shared with {second}" in str(alone.notes[0])
    both = treat(model, {first, second})
    assert sorted(both.graph.initializers) == ["w.codes", "w.scale", "w.zero_point"], "its codes are there once"


def test_embeddings_are_never_dequantized_whole():
    result = treat(embedding_network())
    assert all(node.inputs[0].name != "table.codes" for node in result.graph if node.op_type == "DequantizeLinear")


def test_broken_weights_are_refused_by_layer():
    with pytest.raises(DataError, match=r"layer 'MatMul_0'.*1 NaN"):
        treat(with_weight(dense_network(), "hidden_weight", lambda w: np.where(w == w.flat[5], np.nan, w)))


@pytest.mark.parametrize("settings", [{"by_outputs": True}, {"search": False}])
def test_half_quadratic_splitting_is_a_search_of_its_own(settings):
    with pytest.raises(RecipeError, match="itself a search for ranges, by the weights"):
        QuantizeWeights(rounding="hqq", **settings)


@pytest.mark.parametrize("settings", [{"bits": 1}, {"bits": 16}, {"block": 0}])
def test_impossible_settings_are_refused(settings):
    with pytest.raises(RecipeError, match=next(iter(settings))):
        QuantizeWeights(**settings)
