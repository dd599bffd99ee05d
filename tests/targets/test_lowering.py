import numpy as np
import onnx
import onnxruntime
import pytest

from alula.graph.load import load_model
from alula.graph.statistics import collect
from alula.measurement.parity import check_parity
from alula.recipe import Recipe, Step, apply_recipe, requests_of
from alula.targets import OnnxRuntime
from alula.targets.lowering import decode_weights, join_biases, join_recurrences
from alula.techniques import Quantize, QuantizeDynamic, QuantizeWeights
from alula.testing import convolution_network, model_from_text, random_feeds, recurrent_network

RANDOM = np.random.default_rng(0)
THREE_AXES = "n (float[b, s, 32] x) => (float[b, s, 48] y) { h = MatMul (x, w) y = Add (h, bias) }"


def weight(*shape):
    return RANDOM.standard_normal(shape).astype(np.float32)


def operators(model):
    return [node.op_type for node in model.graph]


def executed(model, tmp_path):
    """Operators that ONNX Runtime runs after its optimisations."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 4
    onnxruntime.InferenceSession(model.to_bytes(), options, providers=["CPUExecutionProvider"])
    return [node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node]


def quantized(model, technique=None):
    recipe = Recipe((Step(technique or Quantize()),))
    feeds = [random_feeds(model, seed=seed) for seed in range(4)]
    return apply_recipe(model, recipe, collect(model, feeds, requests_of(recipe, model)))


def assert_equal(first, second, tolerance=1e-5):
    feeds = random_feeds(first, seed=9)
    for name, want in first.run(feeds).items():
        np.testing.assert_allclose(second.run(feeds)[name], want, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    "technique",
    [
        QuantizeWeights(smallest=1),
        QuantizeWeights(smallest=1, symmetric=False),
        QuantizeWeights(smallest=1, bits=4),
    ],
)
@pytest.mark.parametrize("network", [convolution_network, recurrent_network])
def test_codes_of_weights_are_decoded_at_load(network, technique, tmp_path):
    model = quantized(network(), technique)
    lowered = decode_weights(model)
    assert_equal(model, lowered)
    matrices = sum(node.op_type == "MatMul" for node in model.graph)
    assert operators(model).count("DequantizeLinear") > matrices
    assert operators(lowered).count("DequantizeLinear") <= matrices
    assert not {"DequantizeLinear", "Cast"} & set(executed(lowered, tmp_path)) or matrices
    assert lowered.size_bytes < model.size_bytes * 1.2


def test_blocked_codes_of_a_gemm_are_decoded_at_load():
    model = model_from_text(
        "n (float[b, 64] x) => (float[b, 16] y) { y = Gemm <transB = 1> (x, w) }", {"w": weight(16, 64)}
    )
    for symmetric in (True, False):
        coded = quantized(model, QuantizeWeights(bits=4, block=16, symmetric=symmetric, smallest=1))
        lowered = decode_weights(coded)
        assert "DequantizeLinear" not in operators(lowered)
        assert_equal(coded, lowered)


def test_codes_that_an_integer_kernel_reads_are_left():
    model = quantized(convolution_network())
    assert decode_weights(model) is model


@pytest.mark.parametrize(
    "text",
    [
        THREE_AXES,
        "n (float[b, s, 32] x) => (float[b, s, 48] z) { h = MatMul (x, w) y = Add (bias, h) z = Relu (y) }",
        "n (float[b, 32] x) => (float[b, 48] y) { h = MatMul (x, w) y = Add (h, bias) }",
    ],
)
def test_product_and_bias_become_one_integer_operator(text, tmp_path):
    model = quantized(model_from_text(text, {"w": weight(32, 48), "bias": weight(48)}))
    joined = join_biases(model)
    assert "MatMul" not in operators(joined)
    names = {node.op_type: node.name for node in joined.graph}
    assert names["Gemm"] == next(node.name for node in model.graph if node.op_type == "MatMul")
    assert [spec.name for spec in joined.outputs] == [spec.name for spec in model.outputs]
    assert_equal(model, joined, tolerance=1e-3)  # the bias moves by half a step of the sums
    assert "QGemm" in executed(joined, tmp_path)
    assert "DequantizeLinear" not in executed(joined, tmp_path)


def test_products_that_share_their_input_are_all_joined(tmp_path):
    text = (
        "n (float[b, s, 32] x) => (float[b, s, 48] y, float[b, s, 48] z) "
        "{ h = MatMul (x, w) y = Add (h, bias) i = MatMul (x, v) z = Add (i, bias) }"
    )
    model = quantized(model_from_text(text, {"w": weight(32, 48), "v": weight(32, 48), "bias": weight(48)}))
    joined = join_biases(model)
    assert_equal(model, joined, tolerance=1e-3)  # the bias moves by half a step of the sums
    assert executed(joined, tmp_path).count("QGemm") == 2


@pytest.mark.parametrize("bias", [weight(1, 1, 48), weight(1), np.full(48, 1e9, np.float32)])
def test_a_bias_that_does_not_fit_is_left(bias):
    model = quantized(model_from_text(THREE_AXES, {"w": weight(32, 48), "bias": bias}))
    joined = join_biases(model)
    assert "MatMul" in operators(joined)
    assert_equal(model, joined)


def test_a_product_that_something_else_reads_is_left():
    text = "n (float[b, s, 32] x) => (float[b, s, 48] y, float[b, s, 48] h) { h = MatMul (x, w) y = Add (h, bias) }"
    model = quantized(model_from_text(text, {"w": weight(32, 48), "bias": weight(48)}))
    assert join_biases(model) is model


def test_what_is_built_is_lowered(tmp_path):
    model = quantized(model_from_text(THREE_AXES, {"w": weight(32, 48), "bias": weight(48)}))
    target = OnnxRuntime(threads=1)
    artifact = target.build(model, tmp_path)
    assert "Gemm" in [node.op_type for node in onnx.load(artifact.path).graph.node]
    feeds = random_feeds(model)
    np.testing.assert_allclose(target.open(artifact)(feeds)["y"], model.run(feeds)["y"], rtol=1e-3, atol=1e-3)


def recurrence_on_integers(model, per_channel, frames):
    """An LSTM step by step: what is read, and the state in each step, on 8 bits by their extremes."""

    def product(rows, codes, scale):  # [b, k], [g, k], [g] or []
        low, high = min(rows.min(), 0), max(rows.max(), 0)
        step = (high - low) / 255
        zero = np.clip(np.rint(-low / step), 0, 255)
        on_grid = np.clip(np.rint(rows / step) + zero, 0, 255) - zero
        return on_grid @ codes.T * step * scale

    sigmoid = lambda x: 1 / (1 + np.exp(-x))  # noqa: E731
    parts = {name: (model.weight(f"{name}.codes")[0].astype(float), model.weight(f"{name}.scale"))
             for name in ("input_weight", "state_weight")}  # fmt: skip
    assert all((scale.ndim == 1) == per_channel for _, scale in parts.values())
    bias = model.weight("gate_bias")[0].reshape(2, -1).sum(0)
    h, c, found = np.zeros((frames.shape[1], 12)), np.zeros((frames.shape[1], 12)), []
    read = product(frames.reshape(-1, 8), *parts["input_weight"]).reshape(*frames.shape[:2], -1)
    for step in read:
        gates = step + (product(h, *parts["state_weight"]) if h.any() else 0) + bias
        i, o, f, g = np.split(gates, 4, axis=1)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        found.append(h)
    return np.array(found)


@pytest.mark.parametrize("per_channel", [True, False])
def test_a_marked_recurrence_is_computed_in_integers(per_channel, tmp_path):
    model = quantized(recurrent_network(), QuantizeDynamic(per_channel=per_channel, recurrent=True))
    target = OnnxRuntime(threads=1)
    artifact = target.build(model, tmp_path)
    built = [node.op_type for node in onnx.load(artifact.path).graph.node]
    assert "DynamicQuantizeLSTM" in built
    assert "LSTM" not in built
    feeds = random_feeds(model, seed=9) | {"h": np.zeros((1, 2, 12), np.float32), "c": np.zeros((1, 2, 12), np.float32)}
    outputs = target.open(artifact)(feeds)
    wanted = recurrence_on_integers(model, per_channel, feeds["frames"])
    np.testing.assert_allclose(outputs["next_h"][0], wanted[-1], atol=1e-4)
    assert np.abs(model.run(feeds)["next_h"][0] - wanted[-1]).max() > 1e-4, "in float it is something else"
    assert check_parity({"model": model}, target, {"model": artifact}, [("model", feeds)]).ok


def test_a_recurrence_of_weights_alone_stays_in_float(tmp_path):
    model = quantized(recurrent_network(), QuantizeWeights(smallest=1))
    assert join_recurrences(model) is model
    unmarked = quantized(recurrent_network(), QuantizeDynamic())
    assert operators(join_recurrences(unmarked)).count("LSTM") == 1
    marked = quantized(recurrent_network(), QuantizeDynamic(recurrent=True))
    assert "LSTM" in operators(marked)
    loaded = load_model(marked.save(tmp_path / "marked.onnx"), allow_quantized=True)
    assert operators(join_recurrences(loaded)).count("DynamicQuantizeLSTM") == 1
