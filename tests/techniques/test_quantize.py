"""Static quantization against a network computed in integers by loops, and its parts against their definitions."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from alula.errors import DataError, ModelError, RecipeError
from alula.graph.running import Runner
from alula.graph.statistics import Statistics, collect
from alula.numerics.ranges import Entropy, MeanSquaredError, MinMax, OutputError, Percentile
from alula.techniques import Context, Quantize
from alula.testing.conformance import relative_error, with_weight
from alula.testing.models import attention_network, convolution_network, model_from_text, random_feeds
from tests.oracles import integer_network

RANGES = [MinMax(), Percentile(99.0), MeanSquaredError(), Entropy()]


def quantized(model, feeds, technique, include=None):
    layers = tuple(layer for layer in model.layers() if include is None or layer.name in include)
    statistics = collect(model, [feeds], technique.requests(model, layers))
    return technique.apply(model, Context(layers, statistics)), statistics


def exposing(model, names):
    """The model with tensors of uint8 codes as outputs too, run without optimisation, so that they exist."""
    graph = model.edit()
    values = {value.name: value for node in graph.graph for value in node.outputs}
    for name in names:
        values[name].dtype = ir.DataType.UINT8
        graph.graph.outputs.append(values[name])
    return Runner(model.edited(graph), optimise=False)


@pytest.fixture(scope="module")
def textbook():
    model = model_from_text(integer_network.TEXT, integer_network.make_weights())
    feeds = {"x": np.random.default_rng(1).standard_normal((3, 3, 6, 6)).astype(np.float32)}
    technique = Quantize(weight_bits=7, bias_correction=False)  # sums of 7-bit weights saturate on no processor
    result, statistics = quantized(model, feeds, technique)
    ranges = {name: (statistics[name].minimum, statistics[name].maximum) for name in ("x", "r", "c", "s", "g")}
    return model, feeds, result, integer_network.run(feeds["x"], integer_network.make_weights(), ranges, bits=7)


def test_every_code_is_the_textbooks(textbook):
    _, feeds, result, (codes, _, _) = textbook
    outputs = exposing(result, [f"{name}.codes" for name in codes])(feeds)
    for name, expected in codes.items():
        got = outputs[f"{name}.codes"].astype(np.int64)
        assert np.abs(got - expected).max() <= 1, f"{name}: within one step"
        assert (got == expected).mean() > 0.99, f"{name}: but for ties"


def test_the_runtimes_integer_kernels_give_the_textbooks_output(textbook):
    _, feeds, result, (codes, y, scale) = textbook
    one_step = np.abs(integer_network.make_weights()["w3"]).max() * float(scale["g"][0])
    np.testing.assert_allclose(result.run(feeds)["y"], y, atol=one_step)
    assert np.abs(result.run(feeds)["y"] - y).mean() < one_step / 4
    assert codes["r"].min() == scale["r"][1] == 0, "the saturation of the codes is the Relu"


def test_it_is_close_to_the_float_network(textbook):
    model, feeds, result, _ = textbook
    assert relative_error(model.run(feeds), result.run(feeds)) < 0.05


@pytest.mark.parametrize("method", RANGES, ids=lambda method: type(method).__name__)
@pytest.mark.parametrize(("signed", "symmetric"), [(False, False), (True, False), (True, True), (False, True)])
def test_scales_are_those_of_the_range_method(method, signed, symmetric):
    """The scale that stands in the graph covers exactly the range that the method gives for the sample."""
    model = convolution_network()
    feeds = random_feeds(model, batch=8)
    technique = Quantize(range=method, activation_signed=signed, activation_symmetric=symmetric)
    result, statistics = quantized(model, feeds, technique)
    low, high = (feeds["image"].min(), feeds["image"].max())
    if not isinstance(method, MinMax):
        low, high = method.range(*statistics["image"].sample(), technique._activation_grid)
    step = max(high, -low) / 127 if symmetric else (high - low) / 255
    scale = float(result.weight("image.scale"))
    assert scale == pytest.approx(step, rel=0.01)
    zero_point = result.weight("image.zero_point")
    assert zero_point.dtype == (np.int8 if signed else np.uint8)
    if symmetric:
        assert zero_point == (0 if signed else 128)


def test_bias_correction_takes_the_mean_shift_away():
    """On inputs whose mean is the same everywhere, the mean output per channel is that of the float layer."""
    text = "net (float[n, 6] x) => (float[n, 4] y) { y = Gemm <transB = 1, alpha = 0.5, beta = 2.0> (x, w, b) }"
    random = np.random.default_rng(0)
    model = model_from_text(text, {"w": random.standard_normal((4, 6)).astype(np.float32), "b": np.ones(4, np.float32)})
    feeds = {"x": (random.standard_normal((500, 6)) + 3).astype(np.float32)}
    expected = model.run(feeds)["y"].mean(axis=0)
    shifts = {
        correct: np.abs(
            quantized(model, feeds, Quantize(weight_bits=3, bias_correction=correct))[0].run(feeds)["y"].mean(axis=0)
            - expected
        ).max()
        for correct in (False, True)
    }
    assert shifts[True] < 0.01 < 0.2 < shifts[False], shifts


def test_bias_correction_gives_a_layer_a_bias_that_had_none():
    model = model_from_text(
        "net (float[n, 2, 4, 4] x) => (float[n, 4, 4, 4] y) { y = Conv <group = 2> (x, w) }",
        {"w": np.random.default_rng(0).standard_normal((4, 1, 1, 1)).astype(np.float32)},
    )
    feeds = {"x": np.random.default_rng(1).uniform(0, 2, (8, 2, 4, 4)).astype(np.float32)}
    result, _ = quantized(model, feeds, Quantize(weight_bits=2, per_channel=False, activation_bits=16))
    np.testing.assert_allclose(
        result.run(feeds)["y"].mean(axis=(0, 2, 3)), model.run(feeds)["y"].mean(axis=(0, 2, 3)), atol=1e-3
    )


def test_a_huge_bias_beside_tiny_weights_does_not_overflow():
    """A bias of 100 on the grid of weights around 1e-9 would need codes beyond int32: the weight's scale gives way."""
    random = np.random.default_rng(0)
    weight = random.standard_normal((3, 2, 1, 1)).astype(np.float32)
    weight[1] *= 1e-9
    model = model_from_text(
        "net (float[n, 2, 3, 3] x) => (float[n, 3, 3, 3] y) { y = Conv (x, w, b) }",
        {"w": weight, "b": np.array([1, 100, -1], np.float32)},
    )
    feeds = {"x": random.standard_normal((2, 2, 3, 3)).astype(np.float32)}
    for technique in (Quantize(), Quantize(per_channel=False), Quantize(weight_search=True)):
        result, _ = quantized(model, feeds, technique)
        step = float(result.weight("y.scale"))
        np.testing.assert_allclose(result.run(feeds)["y"], model.run(feeds)["y"], atol=1.5 * step)
        codes = result.weight("b.codes")
        assert codes.dtype == np.int32
        assert np.abs(codes.astype(np.int64)).max() < 2**31 - 1, "not saturated"


def test_a_bias_beyond_every_scale_stays_in_float():
    model = model_from_text(
        "net (float[n, 2] x) => (float[n, 3] y) { y = Gemm (x, w, b) }",
        {"w": np.ones((2, 3), np.float32), "b": np.full(3, 1e10, np.float32)},
    )
    feeds = {"x": np.full((1, 2), 1e-36, np.float32)}
    result, _ = quantized(model, feeds, Quantize())
    assert "b" in result.graph.initializers
    np.testing.assert_allclose(result.run(feeds)["y"], 1e10, rtol=1e-6)


def test_a_computed_bias_is_kept():
    model = model_from_text(
        "net (float[n, 4] x) => (float[n, 4] y) { c = Tanh (x) y = Gemm (x, w, c) }",
        {"w": np.eye(4, dtype=np.float32) + 0.1},
    )
    feeds = {"x": np.random.default_rng(0).standard_normal((9, 4)).astype(np.float32)}
    result, _ = quantized(model, feeds, Quantize())
    assert relative_error(model.run(feeds), result.run(feeds)) < 0.02


def test_other_layers_stay_as_they_are():
    model = convolution_network()
    feeds = random_feeds(model)
    first = model.layers()[0].name
    result, _ = quantized(model, feeds, Quantize(), include={first})
    assert {layer.name for layer in result.layers()} == {layer.name for layer in model.layers()} - {first}


def test_two_steps_with_other_settings_share_the_tensors_between_them():
    """First some layers, then others at 16 bits: a tensor that the first step quantized keeps its one pair."""
    model = model_from_text(integer_network.TEXT, integer_network.make_weights())
    feeds = {"x": np.random.default_rng(1).standard_normal((3, 3, 6, 6)).astype(np.float32)}
    first, second, third = model.layers()
    fine = Quantize(activation_bits=16)
    requests = Quantize().requests(model, (first,)) | fine.requests(model, (second, third))
    statistics = collect(model, [feeds], requests)
    between = Quantize().apply(model, Context((first,), statistics))
    result = fine.apply(between, Context(between.layers(), statistics))
    assert not result.layers(), "all are quantized"
    assert relative_error(model.run(feeds), result.run(feeds)) < 0.05
    quantizers = [node for node in result.graph if node.op_type == "QuantizeLinear"]
    read = [str(node.inputs[0].name) for node in quantizers]
    assert len(read) == len(set(read))
    assert not any(node.inputs[0].producer() and node.inputs[0].producer().op_type == "DequantizeLinear"
                   for node in quantizers)  # fmt: skip


def test_products_of_two_activations():
    model = attention_network()
    feeds = random_feeds(model, batch=4)
    plain, _ = quantized(model, feeds, Quantize())
    both, _ = quantized(model, feeds, Quantize(products=True))
    pairs = [sum(node.op_type == "QuantizeLinear" for node in result.graph) for result in (plain, both)]
    assert pairs[1] > pairs[0]
    assert relative_error(model.run(feeds), both.run(feeds)) < 0.05


def test_stacks_of_matrices_have_one_scale_and_say_so():
    model = model_from_text(
        "net (float[3, n, 8] x) => (float[3, n, 6] y) { y = MatMul (x, w) }",
        {"w": np.random.default_rng(0).standard_normal((3, 8, 6)).astype(np.float32)},
    )
    result, _ = quantized(model, random_feeds(model), Quantize())
    assert result.weight("w.scale").shape == ()
    assert any("one scale for all matrices" in note.text for note in result.notes)


@pytest.mark.parametrize("settings", [{"weight_bits": 1}, {"weight_bits": 9}, {"activation_bits": 9}])
def test_impossible_widths_are_refused(settings):
    with pytest.raises(RecipeError, match=next(iter(settings))):
        Quantize(**settings)


def test_statistics_that_are_missing_are_named():
    model = convolution_network()
    with pytest.raises(ModelError, match="no statistics were collected for tensor"):
        Quantize().apply(model, Context(model.layers(), Statistics()))


def test_nan_weights_are_refused_by_layer():
    model = convolution_network()
    layer = model.layers()[2]
    statistics = collect(model, [random_feeds(model)], Quantize().requests(model, model.layers()))
    broken = with_weight(model, layer.weight, lambda weight: weight * np.nan)
    with pytest.raises(DataError, match=layer.name):
        Quantize().apply(broken, Context(broken.layers(), statistics))
    broken = with_weight(model, layer.bias, lambda bias: bias * np.nan)
    with pytest.raises(DataError, match=layer.name):
        Quantize().apply(broken, Context(broken.layers(), statistics))


def test_ranges_by_outputs_are_those_of_the_layers_that_read_the_tensor():
    """A channel of large values that no weight listens to does not cost the others their codes."""
    random = np.random.default_rng(0)
    weight = random.standard_normal((6, 4)).astype(np.float32)
    weight[5] = 0
    model = model_from_text("net (float[n, 6] x) => (float[n, 4] y) { y = MatMul (x, w) }", {"w": weight})
    x = random.standard_normal((200, 6)).astype(np.float32)
    x[:, 5] *= 50
    wanted, errors = model.run({"x": x})["y"], {}
    for method in (MeanSquaredError(), OutputError()):
        technique = Quantize(range=method, outputs=False, weight_bits=8)
        errors[type(method)] = relative_error({"y": wanted}, quantized(model, {"x": x}, technique)[0].run({"x": x}))
    assert errors[OutputError] < errors[MeanSquaredError] / 4


def test_ranges_by_outputs_fall_back_to_the_squared_error_where_no_matrix_reads():
    model = convolution_network()
    feeds = random_feeds(model, batch=8)
    by_outputs, _ = quantized(model, feeds, Quantize(range=OutputError(100)))
    by_values, statistics = quantized(model, feeds, Quantize(range=MeanSquaredError()))
    read = {layer.input for layer in model.layers()}
    shared = [name for name in by_values.graph.initializers if name.endswith(".scale") and name in
              by_outputs.graph.initializers and name.removesuffix(".scale") in set(statistics) - read]  # fmt: skip
    assert shared
    for name in shared:
        assert by_outputs.weight(name) == pytest.approx(by_values.weight(name))
