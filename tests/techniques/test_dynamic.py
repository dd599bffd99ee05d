"""Dynamic quantization against numpy, run by run."""

from __future__ import annotations

import numpy as np
import pytest

from alula.errors import DataError, RecipeError
from alula.techniques import Context, QuantizeDynamic
from alula.testing.conformance import relative_error, with_weight
from alula.testing.models import (
    attention_network,
    convolution_network,
    dense_network,
    model_from_text,
    random_feeds,
    recurrent_network,
)


def treat(model, technique=None, include=None):
    layers = tuple(layer for layer in model.layers() if include is None or layer.name in include)
    return (technique or QuantizeDynamic()).apply(model, Context(layers))


def integer_product(x, weight, bits, *, per_channel=True):
    """DynamicQuantizeLinear as ONNX defines it, symmetric weights, a product of integers; [n, in] x [in, out]."""
    low, high = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
    scale = np.float32((high - low) / 255)
    zero_point = np.clip(np.rint(np.float32(-low) / scale), 0, 255)
    codes = np.clip(np.rint(x / scale) + zero_point, 0, 255).astype(np.int64)
    highest = 2 ** (bits - 1) - 1
    size = np.abs(weight).max(axis=0) if per_channel else np.abs(weight).max()
    step = (size / highest).astype(np.float32)
    weight_codes = np.rint(weight / step).astype(np.int64)
    return ((codes - int(zero_point)) @ weight_codes) * float(scale) * step


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("bits", [2, 4, 7, 8])
def test_matmul_and_gemm_are_numpys(bits, per_channel):
    random = np.random.default_rng(0)
    weights = {
        "w": random.standard_normal((16, 9)).astype(np.float32),
        "v": random.standard_normal((5, 16)).astype(np.float32),
        "b": random.standard_normal(5).astype(np.float32),
    }
    model = model_from_text(
        "net (float[n, 16] x) => (float[n, 9] y, float[n, 5] z) { y = MatMul (x, w) z = Gemm <transB = 1> (x, v, b) }",
        weights,
    )
    result = treat(model, QuantizeDynamic(weight_bits=bits, per_channel=per_channel))
    for size in (1, 30):  # ranges are found anew
        x = random.standard_normal((4, 16)).astype(np.float32) * size + size
        outputs = result.run({"x": x})
        expected = integer_product(x, weights["w"], bits, per_channel=per_channel)
        np.testing.assert_allclose(outputs["y"], expected, rtol=1e-4, atol=1e-4 * size)
        expected = integer_product(x, weights["v"].T, bits, per_channel=per_channel) + weights["b"]
        np.testing.assert_allclose(outputs["z"], expected, rtol=1e-4, atol=1e-4 * size)
    assert sum(node.op_type == "DynamicQuantizeLinear" for node in result.graph) == 1, "both layers read one input"


def test_codes_are_bytes_whatever_their_width():
    result = treat(dense_network(), QuantizeDynamic(weight_bits=3))
    codes = result.weight("hidden_weight.codes")
    assert codes.dtype == np.int8
    assert np.abs(codes).max() == 3


def test_tensors_keep_their_names_and_weights_go():
    model = dense_network()
    result = treat(model)
    assert {"a", "scores"} <= {value.name for node in result.graph for value in node.outputs}
    assert "hidden_weight" not in result.graph.initializers
    assert result.weight_bytes < model.weight_bytes / 2
    assert not result.layers()


def test_what_stays_in_float_is_said():
    model = convolution_network()
    result = treat(model)
    said = {note.place for note in result.notes}
    assert said == {layer.name for layer in model.layers() if layer.operator == "Conv"}
    assert {layer.name for layer in result.layers()} == said


def test_attention():
    model = attention_network()
    feeds = random_feeds(model, batch=3)
    assert relative_error(model.run(feeds), treat(model).run(feeds)) < 0.05


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("net (float[n, 4] x) => (float[n, 4] y) { y = Gemm <alpha = 2.0> (x, w) }", "alpha or beta is not 1"),
        ("net (float[4, n] x) => (float[4, n] y) { y = MatMul (w, x) }", "left operand"),
    ],
)
def test_nothing_to_do_is_an_error_with_the_reason(text, reason):
    with pytest.raises(RecipeError, match=f"none of the 1 layers.*{reason}"):
        treat(model_from_text(text, {"w": np.ones((4, 4), np.float32)}))


def test_no_layers_at_all_is_an_error():
    with pytest.raises(RecipeError, match="none of the 0 layers"):
        treat(dense_network(), include=())


def test_broken_weights_are_refused_by_layer():
    model = with_weight(dense_network(), "hidden_weight", lambda weight: weight * np.inf)
    with pytest.raises(DataError, match=r"layer 'MatMul_0'"):
        treat(model)


@pytest.mark.parametrize("bits", [1, 9])
def test_impossible_widths_are_refused(bits):
    with pytest.raises(RecipeError, match="weight_bits"):
        QuantizeDynamic(weight_bits=bits)


@pytest.mark.parametrize(("directions", "layout", "says"), [(2, 0, "one direction"), (1, 1, "time first")])
def test_recurrences_that_no_kernel_computes_stay(directions, layout, says):
    way, shape = ("bidirectional" if directions == 2 else "forward"), ("3, b, 4" if not layout else "b, 3, 4")
    out = f"3, {directions}, b, 5" if not layout else f"b, 3, {directions}, 5"
    text = f"""n (float[{shape}] x) => (float[{out}] y) {{
        y = LSTM <hidden_size = 5, direction = "{way}", layout = {layout}> (x, w, r) }}"""
    random = np.random.default_rng(0)
    shapes = {"w": (directions, 20, 4), "r": (directions, 20, 5)}
    model = model_from_text(
        text, {name: random.standard_normal(one).astype(np.float32) for name, one in shapes.items()}
    )
    with pytest.raises(RecipeError, match=says):
        treat(model, QuantizeDynamic(recurrent=True))


def test_recurrences_are_codes_only_where_that_is_asked_for():
    model = recurrent_network()
    assert "LSTM" in [layer.operator for layer in treat(model, QuantizeDynamic()).layers()]
    for bits in (8, 4, 2):
        result = treat(model, QuantizeDynamic(weight_bits=bits, recurrent=True))
        assert {result.weight(f"{name}.codes").dtype for name in ("input_weight", "state_weight")} == {
            np.dtype(np.int8)
        }
        assert np.abs(result.weight("state_weight.codes")).max() == 2 ** (bits - 1) - 1
