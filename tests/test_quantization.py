"""The one-technique front door: files, modules and models in, a quantized model with a reason out."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from alula.errors import AlulaError, DataError, ModelError, RecipeError
from alula.graph.feeds import ROWS, feeds_of
from alula.quantization import quantize
from alula.techniques import Equalize, Float16, FoldBatchNorm, Quantize, QuantizeDynamic, QuantizeWeights, Recode
from alula.testing.conformance import relative_error
from alula.testing.models import (
    attention_network,
    convolution_network,
    dense_network,
    embedding_network,
    model_from_text,
    random_feeds,
    recurrent_network,
)


def images(rows=40, seed=0):
    return np.random.default_rng(seed).standard_normal((rows, 3, 8, 8)).astype(np.float32)


def operators(model):
    return {node.op_type for node in model.graph}


def test_static_where_there_is_data():
    model = convolution_network()
    result = quantize(model, images())
    assert "because there is calibration data" in str(result.notes[-1])
    assert "QuantizeLinear" in operators(result)
    assert "BatchNormalization" not in operators(result)
    assert not result.layers()
    feeds = {"image": images(8, seed=1)}
    assert relative_error(model.run(feeds), result.run(feeds)) < 0.1
    assert result.outputs == model.outputs


def test_dynamic_without_data():
    result = quantize(dense_network())
    assert str(result.notes[-1]).startswith("quantize: QuantizeDynamic")
    assert "DynamicQuantizeLinear" in operators(result)


def test_weights_alone_without_data_and_products():
    random = np.random.default_rng(0)
    model = model_from_text(
        "net (float[n, 8, 9, 9] x) => (float[n, 16, 7, 7] y) { y = Conv (x, w) }",
        {"w": random.standard_normal((16, 8, 3, 3)).astype(np.float32)},
    )
    result = quantize(model)
    assert str(result.notes[-1]).startswith("quantize: QuantizeWeights")
    assert result.size_bytes < model.size_bytes / 2


def test_the_choice_is_logged(caplog):
    with caplog.at_level(logging.INFO, "alula"):
        quantize(dense_network())
    assert "QuantizeDynamic, because there is no calibration data" in caplog.text


def test_the_choice_looks_at_the_chosen_layers_only():
    result = quantize(recurrent_network(), include=["Op:LSTM"])
    assert str(result.notes[-1]).startswith("quantize: QuantizeWeights")


def test_the_same_data_in_every_form_gives_the_same_bytes():
    model, x = convolution_network(), images(ROWS * 2)
    wanted = quantize(model, x).to_bytes()
    assert quantize(model, {"image": x}).to_bytes() == wanted
    assert quantize(model, ({"image": part} for part in np.split(x, 2))).to_bytes() == wanted


def test_a_technique_of_ones_own():
    result = quantize(convolution_network(), technique=Float16())
    assert "Float16, because it was asked for" in str(result.notes[-1])
    assert quantize(dense_network(), [random_feeds(dense_network())], technique=Quantize(activation_bits=16))


def test_layers_kept_in_float_by_pattern():
    model = convolution_network()
    last = model.layers()[-1].name
    result = quantize(model, images(), exclude=["Op:Gemm"])
    assert [layer.name for layer in result.layers()] == [last]
    np.testing.assert_array_equal(result.weight(result.layers()[0].weight), model.weight(model.layers()[-1].weight))
    with pytest.raises(RecipeError, match=r"'nonsense' matches none"):
        quantize(model, images(), exclude=["nonsense"])


def test_a_file(tmp_path):
    path = dense_network().save(tmp_path / "model.onnx")
    assert quantize(path).to_bytes() == quantize(str(path)).to_bytes() == quantize(dense_network()).to_bytes()
    with pytest.raises(ModelError, match=r"nothing\.onnx"):
        quantize(tmp_path / "nothing.onnx")


def test_a_module():
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.ReLU(), torch.nn.Linear(32, 4))
    x = torch.randn(64, 16)
    result = quantize(module, x.numpy(), example=x[:2])
    assert not result.layers()
    (name,) = (spec.name for spec in result.inputs)
    (output,) = result.run({name: x.numpy()}).values()
    assert relative_error({"y": module(x).detach().numpy()}, {"y": output}) < 0.05
    with pytest.raises(ModelError, match="example"):
        quantize(module)


def test_rows_come_in_slices_that_the_graph_takes(caplog):
    free, fixed = convolution_network().inputs, model_from_text(
        "net (float[4, 2] x) => (float[4, 2] y) { y = Relu (x) }"
    ).inputs  # fmt: skip
    assert [len(feed["image"]) for feed in feeds_of(free, images(37))] == [ROWS, ROWS, 5]
    assert [len(feed["x"]) for feed in feeds_of(fixed, np.zeros((10, 2), np.float32))] == [4, 4]
    assert "2 rows left over" in caplog.text
    with pytest.raises(DataError, match="has 3 rows, the model takes 4"):
        list(feeds_of(fixed, np.zeros((3, 2), np.float32)))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (np.zeros((0, 3, 8, 8), np.float32), "0 rows"),
        ([], "empty"),
        (np.ones((), np.float32), "0 rows"),
        ("images.npz", "got str"),
        (3, "got int"),
        ([3], "a feed is a mapping"),
        (np.zeros((2, 3, 8, 9), np.float32), "image"),
        (np.zeros((2, 3, 8, 8)), "float64"),
        ({"picture": np.zeros((2, 3, 8, 8), np.float32)}, "missing.*image"),
        (np.full((2, 3, 8, 8), np.nan, np.float32), "NaN"),
    ],
)
def test_data_that_does_not_fit_is_refused(data, words):
    with pytest.raises(DataError, match=words):
        quantize(convolution_network(), data)


def test_several_inputs_want_names_and_equal_lengths():
    model = model_from_text(
        "net (float[n, 4] x, float[n, 4] z) => (float[n, 2] y) { s = Add (x, z) y = MatMul (s, w) }",
        {"w": np.ones((4, 2), np.float32)},
    )
    rows = np.ones((6, 4), np.float32)
    assert quantize(model, {"x": rows, "z": rows})
    with pytest.raises(DataError, match="one array is for models of one input"):
        quantize(model, rows)
    with pytest.raises(DataError, match="same number of rows"):
        quantize(model, {"x": rows, "z": rows[:3]})


def test_a_technique_that_needs_data_says_so():
    with pytest.raises(DataError, match="Quantize needs calibration data"):
        quantize(dense_network(), technique=Quantize())


@pytest.mark.parametrize(
    ("network", "words"),
    [
        (convolution_network, r"or data=alula\.synthesise\(model, 256\), made up from what its 2 batch norm"),
        (dense_network, "none can be made up: the graph has no batch normalisation that keeps statistics"),
        (embedding_network, "none can be made up: input 'tokens' takes int64"),
    ],
)
def test_the_way_out_of_missing_data_is_named(network, words):
    with pytest.raises(DataError, match=words):
        quantize(network(), technique=Quantize())


def test_a_model_without_layers_is_refused():
    with pytest.raises(AlulaError):
        quantize(model_from_text("net (float[n] x) => (float[n] y) { y = Relu (x) }"), np.ones((3,), np.float32))


def test_attention_with_data():
    model = attention_network()
    x = np.random.default_rng(0).standard_normal((64, 5, 8)).astype(np.float32)
    assert relative_error(model.run({"x": x}), quantize(model, x).run({"x": x})) < 0.05


def test_graphs_with_inputs_in_float16_are_calibrated_in_float32():
    text = "n (float16[b, 16] x) => (float16[b, 8] y) { h = MatMul (x, w) y = Relu (h) }"
    weight = np.random.default_rng(0).standard_normal((16, 8)).astype(np.float16)
    model = model_from_text(text, {"w": weight})
    x = np.random.default_rng(1).standard_normal((32, 16)).astype(np.float16)
    result = quantize(model, x)
    assert result.inputs[0].dtype == np.float16
    error = np.abs(result.run({"x": x})["y"] - model.run({"x": x})["y"]).max()
    assert error < 0.2


def test_quantizing_nothing_is_said():
    model = model_from_text("n (float[b, 16] x) => (float[b, 16] y) { y = Relu (x) }")
    assert any("nothing was quantized" in str(note) for note in quantize(model).notes)


def test_a_graph_that_gives_nan_on_calibration_data_is_refused():
    text = "n (float[b, 4] x) => (float[b, 4] y) { h = MatMul (x, w) y = Sqrt (h) }"
    model = model_from_text(text, {"w": np.eye(4, dtype=np.float32)})
    with pytest.raises(DataError, match=r"output 'y' holds NaN"):
        quantize(model, -np.ones((4, 4), np.float32), technique=Quantize())


def test_layers_that_are_quantized_already_are_left_alone_by_name(tmp_path):
    model = dense_network()
    first, *_, last = model.layers()
    half = quantize(model, technique=QuantizeWeights(bits=8, smallest=1), exclude=[last.name])
    whole = quantize(half.save(tmp_path / "half.onnx"), technique=QuantizeWeights(bits=4, smallest=1))
    assert f"{first.name}: left alone: it is quantized already" in list(map(str, whole.notes))
    assert not whole.layers()
    with pytest.raises(RecipeError, match=rf"all \d+ layers are quantized already \({first.name}"):
        quantize(whole, technique=QuantizeWeights(bits=4, smallest=1))
    dynamic = quantize(model)
    with pytest.raises(RecipeError, match="are quantized already"):
        quantize(dynamic)


@pytest.mark.parametrize("technique", [Recode("nf4"), FoldBatchNorm(), Equalize()], ids=str)
def test_what_was_done_is_not_called_nothing(technique):
    notes = list(map(str, quantize(convolution_network(), technique=technique).notes))
    assert not any("nothing was quantized" in note for note in notes), notes


def test_what_calibration_never_excited_is_told():
    result = quantize(dense_network(), np.zeros((40, 16), np.float32))
    assert any("calibration showed a single value of it" in str(note) for note in result.notes)
    assert not any("single value" in str(note) for note in quantize(convolution_network(), images()).notes)


@pytest.mark.parametrize("size", [1e-40, 1e37])
@pytest.mark.parametrize("technique", [QuantizeWeights(8, smallest=1), Recode("ternary"), Recode("nf4")], ids=str)
def test_weights_beyond_what_scales_can_be_stay(size, technique):
    weight = np.random.default_rng(0).uniform(0.5, 1, (64, 48)).astype(np.float32) * np.float32(size)
    model = model_from_text("g (float[n, 64] x) => (float[n, 48] y) { y = MatMul (x, w) }", {"w": weight})
    result = quantize(model, technique=technique)
    assert len(result.layers()) == 1
    assert any("stays in float: its weights" in str(note) for note in result.notes)


def test_bits_that_nothing_runs_are_told():
    for technique, words in (
        (QuantizeWeights(3, smallest=1), "codes of 3 bits are stored in 4"),
        (QuantizeWeights(6, smallest=1), "codes of 6 bits are stored in 8"),
        (QuantizeDynamic(weight_bits=4), "weights of 4 bits are stored and multiplied in 8"),
    ):
        assert any(words in str(note) for note in quantize(dense_network(), technique=technique).notes)
    simulated = quantize(convolution_network(), images(), technique=Quantize(weight_bits=4, activation_bits=4))
    assert any("are simulated" in str(note) for note in simulated.notes)


def test_double_weights_are_told_what_helps():
    model = model_from_text("g (double[n, 8] x) => (double[n, 4] y) { y = MatMul (x, w) }", {"w": np.ones((8, 4))})
    notes = quantize(model, technique=QuantizeWeights(8, smallest=1)).notes
    assert any("export the network in float32" in str(note) for note in notes)
