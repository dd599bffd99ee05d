"""Half precision: weights rounded to float16 and nothing else, or the whole graph."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from alula.errors import DataError
from alula.techniques import Context, Float16
from alula.testing.conformance import relative_error, with_weight
from alula.testing.models import attention_network, convolution_network, dense_network, model_from_text, random_feeds

TEXT = "net (float[n, 4] x) => (float[n, 4] y) { a = MatMul (x, w) y = Gemm (a, v, b) }"


def model_of(w=1.0, v=1.0):
    random = np.random.default_rng(0)
    weights = {name: random.standard_normal((4, 4)).astype(np.float32) for name in ("w", "v")}
    return model_from_text(
        TEXT, {"w": weights["w"] * np.float32(w), "v": weights["v"] * np.float32(v), "b": np.ones(4, np.float32)}
    )


def treat(model, include=None, **settings):
    layers = tuple(layer for layer in model.layers() if include is None or layer.name in include)
    return Float16(**settings).apply(model, Context(layers))


@pytest.mark.parametrize("build", [convolution_network, attention_network], ids=lambda build: build.__name__)
def test_storing_rounds_weights_to_half_and_nothing_else(build):
    model = build()
    rounded = model
    for layer in model.layers():
        for name in filter(None, (*layer.weights, layer.bias)):
            rounded = with_weight(rounded, name, lambda weight: weight.astype(np.float16))
    feeds = random_feeds(model)
    result = treat(model)
    for name, wanted in rounded.run(feeds).items():
        np.testing.assert_array_equal(result.run(feeds)[name], wanted)
    assert result.weight_bytes < 0.7 * model.weight_bytes


@pytest.mark.parametrize("build", [convolution_network, attention_network, dense_network], ids=lambda b: b.__name__)
def test_computing_in_half_is_as_close_as_half_is(build):
    model = build()
    feeds = random_feeds(model)
    result = treat(model, compute=True)
    assert 0 < relative_error(model.run(feeds), result.run(feeds)) < 5e-3
    assert result.outputs == model.outputs, "interface types stay"
    assert {ir.DataType.FLOAT16} == {result.graph.initializers[layer.weight].dtype for layer in result.layers()}


def test_layers_that_were_not_asked_for_compute_in_full_precision():
    model = model_of()
    first, second = model.layers()
    result = treat(model, {first.name}, compute=True)
    assert result.weight(second.weight).dtype == np.float32
    assert result.weight(first.weight).dtype == np.float16


@pytest.mark.parametrize("compute", [False, True])
def test_values_beyond_float16_stay_and_a_note_says_so(compute):
    model = model_of(w=1e6, v=1e-4)
    result = treat(model, compute=compute)
    np.testing.assert_array_equal(result.weight("w"), model.weight("w"))
    assert any("w" in str(note) and "beyond float16" in str(note) for note in result.notes)


def test_weights_whose_digits_would_go_stay():
    model = model_of(w=1e-6)
    result = treat(model)
    np.testing.assert_array_equal(result.weight("w"), model.weight("w"))
    assert any("loses digits" in note.text for note in result.notes)
    zero = with_weight(model, "w", np.zeros_like)
    assert treat(zero).weight_bytes < zero.weight_bytes / 1.9, "zeros have no digits to lose"


def test_constants_that_are_clipped_are_noted():
    text = "net (float[n, 4] x) => (float[n, 4] y) { a = MatMul (x, w) m = Min (a, limit) y = Relu (m) }"
    model = model_from_text(text, {"w": np.eye(4, dtype=np.float32), "limit": np.full(4, 1e9, np.float32)})
    assert any(note.place == "limit" and "4 values beyond 65504" in note.text
               for note in treat(model, compute=True).notes)  # fmt: skip


@pytest.mark.parametrize("compute", [False, True])
@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_broken_weights_are_refused_by_layer(compute, poison):
    broken = with_weight(model_of(), "v", lambda weight: weight * poison)
    with pytest.raises(DataError, match=r"'Gemm_0'.*'v'"):
        treat(broken, compute=compute)


def test_a_weight_that_others_need_in_float_stays():
    model = model_from_text(
        "net (float[n, 4] x) => (float[n, 4] y) { a = MatMul (x, w) y = MatMul (a, w) }", {"w": np.eye(4, dtype="f4")}
    )
    result = treat(model, {model.layers()[0].name})
    assert result.to_bytes() == model.to_bytes()
    assert "shared with" in str(result.notes[0])
    assert sorted(treat(model).graph.initializers) == ["w.float16"]


def test_other_types_stay_and_a_note_says_so():
    model = model_from_text(
        "net (double[n, 4] x) => (double[n, 4] y) { y = MatMul (x, w) }", {"w": np.eye(4, dtype=np.float64)}
    )
    assert "not float32 but float64" in str(treat(model).notes[0])
