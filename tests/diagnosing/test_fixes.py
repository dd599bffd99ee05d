"""Fixes meet the causes that were found, in the form of the model that was given, and what they gave is measured."""

from __future__ import annotations

import json

import numpy as np
import pytest

import alula
from alula.diagnosing.diagnosis import diagnose
from alula.diagnosing.fixes import adapted, apply_fixes
from alula.diagnosing.result import Diagnosis, LayerNoise
from alula.errors import DataError
from alula.search.result import Finding
from alula.techniques import Quantize, QuantizeDynamic, QuantizeWeights
from tests.diagnosing.planted import chain, quantized, rows, shared, smoothed_for_one_reader, weights, with_constant


def diagnosis_of(cause: str, fix: str = "", operator: str = "Conv") -> Diagnosis:
    row = LayerNoise("one", operator, "int8", 10.0)
    return Diagnosis((row,), (Finding("model", "one", cause, "", {}, fix),), (), 0.5, 6.0, None, 1)


def spread_chain():
    """A chain whose second layer has one wide output channel, which the third makes up for."""
    large, small = weights()["w2"].copy(), weights()["w3"].copy()
    large[3] *= 300
    small[:, 3] /= 300
    return chain(w2=large, w3=small)


def test_a_scale_per_channel_mends_dead_channels() -> None:
    model = spread_chain()
    small = quantized(model, rows(), per_channel=False, activation_bits=16)
    fixed = apply_fixes(small, model, rows(), vnni=True)
    assert fixed.after.error < fixed.before.error / 10
    assert fixed.recipe.steps[-1].technique == Quantize(activation_bits=16)
    assert any("a scale per channel, because of dead channel in Gemm_0" in words for words in fixed.done)
    wanted, given = (one.run({"x": rows()})["y"] for one in (model, fixed.model))
    assert fixed.after.error == pytest.approx(np.linalg.norm(given - wanted) / np.linalg.norm(wanted), rel=1e-3)


def test_an_outlier_channel_is_moved_into_the_weights() -> None:
    data = rows()
    data[:, 7] *= 60
    model = chain(w1=weights()["w1"] * np.where(np.arange(32) == 7, 1 / 60, 1)[:, None].astype(np.float32))
    fixed = apply_fixes(quantized(model, data), model, data, vnni=True)
    assert fixed.after.error < fixed.before.error / 3
    assert fixed.recipe.steps[-1].technique.smoothing is not None


def test_a_wrong_range_is_found_anew() -> None:
    model = chain()
    broken = with_constant(quantized(model, rows()), "b.scale", lambda scale: scale / 8)
    found = diagnose(broken, model, rows(), vnni=True)
    fixed = apply_fixes(broken, model, rows(), diagnosis=found, vnni=True)
    assert fixed.before is found
    assert fixed.after.findings == ()
    assert fixed.after.error < 0.03 < found.error


def test_a_layer_in_which_nothing_varies_stays_in_float() -> None:
    """The second layer reads zeros, and the codes of its bias are wrong."""
    model = chain(w1=-np.abs(weights()["w1"]))
    data = np.abs(rows())
    broken = with_constant(quantized(model, data), "b2.codes", lambda codes: codes + 2**29)
    fixed = apply_fixes(broken, model, data, vnni=True)
    assert ("Gemm_0", "dead range") in {(one.layer, one.cause) for one in fixed.before.findings}
    assert fixed.after.layer("Gemm_0").bits == "float32"
    assert any("left in float" in words and "Gemm_0" in words for words in fixed.done)
    assert fixed.after.error < 0.03 < fixed.before.error


def test_layers_are_not_all_left_in_float() -> None:
    """Both readers of one weight are accused: it is quantized anew, as neither alone is to blame."""
    fixed = apply_fixes(smoothed_for_one_reader(), shared(), rows(), vnni=True)
    assert {one.cause for one in fixed.before.findings} >= {"reused weight"}
    assert fixed.after.error < 0.03 < fixed.before.error
    assert not any("left in float" in words for words in fixed.done)


def test_nothing_is_changed_where_nothing_was_found() -> None:
    model = chain()
    fixed = apply_fixes(alula.quantize(model, rows(), exclude=["Gemm_0"]), model, rows(), vnni=True)
    assert fixed.done == ()
    assert fixed.after.layer("Gemm_0").bits == "float32"
    assert "no cause was found" in str(fixed)
    assert json.loads(json.dumps(fixed.to_json(), allow_nan=False))["recipe"] == fixed.recipe.to_json()


@pytest.mark.parametrize(("cause", "fix", "operator", "base", "wanted"), [
    ("outlier channel", "per-channel weights", "Conv", Quantize(per_channel=False), (Quantize(), False)),
    ("outlier channel", "keep in float", "Conv", Quantize(), (Quantize(), True)),
    ("outlier channel", "keep in float", "MatMul", Quantize(), (Quantize(smoothing=0.8), False)),
    ("depthwise range spread", "cross-layer equalisation", "Conv", Quantize(), (Quantize(), True)),
    ("accumulator overflow without VNNI", "", "Conv", Quantize(), (Quantize(weight_bits=7), False)),
    ("mean shift", "", "Conv", Quantize(bias_correction=False), (Quantize(), False)),
    ("mean shift", "", "Conv", QuantizeWeights(bits=4), (QuantizeWeights(bits=4, rounding="gptq"), False)),
    ("dead channel", "", "MatMul", QuantizeDynamic(per_channel=False), (QuantizeDynamic(), False)),
    ("saturated activation", "", "MatMul", QuantizeDynamic(), (QuantizeDynamic(), False)),
    ("range unlike the data", "", "Conv", Quantize(), (Quantize(), False)),
])  # fmt: skip
def test_what_is_done_about_each_cause(cause, fix, operator, base, wanted) -> None:
    assert adapted(base, diagnosis_of(cause, fix, operator))[:2] == wanted


def test_ranges_by_least_error_for_tails_and_skew() -> None:
    for cause in ("saturated activation", "skewed distribution", "layer normalisation tail", "coarse activations"):
        technique, _, _ = adapted(Quantize(), diagnosis_of(cause))
        assert type(technique.range).__name__ == "MeanSquaredError"


def test_weights_alone_are_rounded_by_gptq() -> None:
    model = chain()
    small = alula.quantize(model, technique=QuantizeWeights(bits=4, smallest=1, search=False))
    fixed = apply_fixes(small, model, rows(), vnni=True)
    assert isinstance(fixed.recipe.steps[-1].technique, QuantizeWeights)
    assert fixed.recipe.steps[-1].technique.bits == 4


def test_a_generator_is_refused_in_words() -> None:
    with pytest.raises(DataError, match="several walks"):
        apply_fixes(quantized(chain(), rows()), chain(), iter([{"x": rows()}]))
