"""One fault is planted in each network: its cause and its layer must come out first; the healthy are not accused."""

from __future__ import annotations

import json

import numpy as np
import pytest
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static

import alula
from alula.diagnosing.diagnosis import diagnose
from alula.diagnosing.result import Diagnosis
from alula.errors import DataError, ModelError, RecipeError
from alula.testing import (
    convolution_network,
    dense_network,
    model_from_text,
    random_feeds,
    recurrent_network,
)
from tests.diagnosing.planted import (
    CHAIN,
    chain,
    quantized,
    rows,
    shared,
    smoothed_for_one_reader,
    weights,
    with_constant,
)

FIRST, SECOND, THIRD = "MatMul_0", "Gemm_0", "Gemm_1"


class Reader(CalibrationDataReader):
    def __init__(self, name: str, data: np.ndarray) -> None:
        self._left = iter([{name: data[start : start + 16]} for start in range(0, len(data), 16)])

    def get_next(self):
        return next(self._left, None)


def accused(diagnosis: Diagnosis) -> set[tuple[str, str]]:
    return {(finding.layer, finding.cause) for finding in diagnosis.findings}


def first(diagnosis: Diagnosis) -> tuple[str, str]:
    """The worst layer and the cause found first, which must be of one piece."""
    finding = diagnosis.findings[0]
    assert diagnosis.layers[0].name == finding.layer
    assert diagnosis.layers[0].cause == finding.cause
    return finding.layer, finding.cause


@pytest.mark.parametrize(("network", "technique"), [
    ("chain", alula.Quantize()),
    ("chain", alula.QuantizeDynamic()),
    ("chain", alula.Quantize(activation_bits=16)),
    ("convolutions", alula.Quantize()),
    ("convolutions", alula.QuantizeWeights(smallest=1)),
])  # fmt: skip
def test_a_healthy_network_is_not_accused(network, technique) -> None:
    model = chain() if network == "chain" else convolution_network()
    data = rows() if network == "chain" else random_feeds(model, batch=64)["image"]
    found = diagnose(alula.quantize(model, data, technique=technique), model, data, vnni=True)
    assert found.findings == ()
    assert found.sqnr_db > 30
    assert len(found.layers) == len(model.layers())
    assert [row.cause for row in found.layers] == [""] * len(found.layers)


def test_an_outlier_channel_of_an_activation() -> None:
    data = rows()
    data[:, 7] *= 60
    model = chain(w1=weights()["w1"] * np.where(np.arange(32) == 7, 1 / 60, 1)[:, None].astype(np.float32))
    found = diagnose(quantized(model, data), model, data, vnni=True)
    assert first(found) == (FIRST, "outlier channel")
    assert found.findings[0].values["channel"] == 7
    row = found.layers[0]
    assert row.activations_db < row.weights_db - 10
    assert row.activations_db == pytest.approx(row.added_db, abs=1)


def test_an_outlier_channel_of_weights_with_one_scale() -> None:
    large = weights()["w2"].copy()
    large[3] *= 80
    small = weights()["w3"].copy()
    small[:, 3] /= 80
    model = chain(w2=large, w3=small)
    found = diagnose(quantized(model, rows(), per_channel=False, activation_bits=16), model, rows(), vnni=True)
    assert first(found) == (SECOND, "outlier channel")
    assert found.layer(SECOND).weights_db < found.layer(SECOND).activations_db


def test_dead_channels_of_weights_with_one_scale() -> None:
    large = weights()["w2"].copy()
    large[3] *= 300
    small = weights()["w3"].copy()
    small[:, 3] /= 300
    model = chain(w2=large, w3=small)
    found = diagnose(quantized(model, rows(), per_channel=False, activation_bits=16), model, rows(), vnni=True)
    assert first(found) == (SECOND, "dead channel")


def test_channels_that_share_a_scale_though_most_are_narrow() -> None:
    widths = np.where(np.arange(32) < 4, 1, 0.3)[:, None].astype(np.float32)
    model = chain(w2=weights()["w2"] * widths, w3=weights()["w3"] / widths.T)
    settings = {"weight_bits": 6, "activation_bits": 16}
    found = diagnose(quantized(model, rows(), per_channel=False, **settings), model, rows(), vnni=True)
    finding = next(one for one in found.findings if one.layer == SECOND)
    assert finding.cause == "one scale for all channels"
    measured = [
        diagnose(quantized(model, rows(), per_channel=each, **settings), model, rows(), layers=0).layer(SECOND)
        for each in (False, True)
    ]
    gain = measured[1].weights_db - measured[0].weights_db
    assert finding.values["gain_db"] == pytest.approx(gain, abs=2)


def test_a_clipped_range() -> None:
    model = chain()
    broken = with_constant(quantized(model, rows()), "b.scale", lambda scale: scale / 8)
    found = diagnose(broken, model, rows(), vnni=True)
    assert first(found) == (SECOND, "saturated activation")
    assert found.findings[0].values["clipped"] > 0.1
    assert found.distributions[0].high < found.distributions[0].edges[-1] / 4


def test_a_range_that_never_occurs() -> None:
    model = chain()
    broken = with_constant(quantized(model, rows()), "d.scale", lambda scale: scale * 30)
    found = diagnose(broken, model, rows(), vnni=True)
    assert first(found) == (THIRD, "range unlike the data")
    assert found.findings[0].values["ratio"] == pytest.approx(30, rel=0.1)


def test_calibration_on_other_data() -> None:
    model = chain()
    found = diagnose(quantized(model, 50 * rows(seed=1)), model, rows(), vnni=True)
    assert {cause for _, cause in accused(found)} == {"range unlike the data"}
    assert {layer for layer, _ in accused(found)} == {FIRST, SECOND, THIRD}


def test_a_shifted_bias() -> None:
    model = chain()
    small = quantized(model, rows())
    broken = with_constant(small, "b2.codes", lambda codes: codes + 3000)
    found = diagnose(broken, model, rows(), vnni=True)
    assert first(found) == (SECOND, "mean shift")
    assert found.layer(SECOND).shift > 0.9
    assert found.layer(THIRD).shift < 0.5  # it hands on what it was given, and adds nothing of the kind


def test_a_weight_that_two_layers_read() -> None:
    found = diagnose(smoothed_for_one_reader(), shared(), rows(), vnni=True)
    assert first(found) == ("MatMul_1", "reused weight")


def test_a_weight_that_two_layers_read_is_no_cause_if_its_codes_are_right() -> None:
    small = quantized(shared(), rows(), weight_bits=3)
    found = diagnose(small, shared(), rows(), vnni=True)
    assert found.error > 0.05
    assert "reused weight" not in {cause for _, cause in accused(found)}


def test_a_skewed_activation() -> None:
    data = np.random.default_rng(3).lognormal(0, 1.3, (128, 32)).astype(np.float32)
    model = chain(w1=(weights()["w1"] / 4))
    found = diagnose(quantized(model, data, activation_bits=4), model, data, vnni=True)
    assert first(found) == (FIRST, "skewed distribution")


def test_a_depthwise_layer_whose_filters_share_a_scale() -> None:
    model = convolution_network()
    widths = np.where(np.arange(8) < 6, 1, 100).astype(np.float32)
    editor = with_constant(model, "depthwise_weight", lambda w: w * widths[:, None, None, None])
    editor = with_constant(editor, "depthwise_bias", lambda b: b * widths)
    model = with_constant(editor, "pointwise_weight", lambda w: w / widths[None, :, None, None])
    images = random_feeds(model, batch=64)["image"]
    found = diagnose(quantized(model, images, per_channel=False, activation_bits=16), model, images, vnni=True)
    assert ("Conv_1", "depthwise range spread") in accused(found)
    assert found.findings[0].layer == "Conv_1"


def test_sums_that_overflow_without_vnni() -> None:
    model = chain(w2=np.where(weights()["w2"] > 0, 0.3, -0.3).astype(np.float32))
    wide, narrow = (quantized(model, rows(), weight_bits=bits, activation_bits=4) for bits in (8, 7))
    assert (SECOND, "accumulator overflow without VNNI") in accused(diagnose(wide, model, rows(), vnni=False))
    for small, vnni in ((wide, True), (narrow, False)):
        causes = {cause for _, cause in accused(diagnose(small, model, rows(), vnni=vnni))}
        assert "accumulator overflow without VNNI" not in causes


def test_another_checkpoint_is_recognised() -> None:
    model, other = chain(), chain(w2=weights(9)["w2"])
    found = diagnose(quantized(other, rows()), model, rows(), vnni=True)
    assert first(found) == (SECOND, "other weights")


def test_ratios_are_those_of_numpy() -> None:
    """The oracle runs the graph's own numbers through numpy, layer by layer."""
    model, data = chain(), rows(64)
    small = quantized(model, data)
    found = diagnose(small, model, data, vnni=True)
    value = {name: small.weight(name) for name in small.graph.initializers}

    def real(name: str, axis: int) -> np.ndarray:
        scale = value[f"{name}.scale"]
        return value[f"{name}.codes"].astype(np.float64) * (scale[None, :] if axis else scale[:, None])

    def on_grid(x: np.ndarray, name: str) -> np.ndarray:
        scale, zero = float(value[f"{name}.scale"]), int(value[f"{name}.zero_point"])
        return (np.clip(np.rint(x / scale) + zero, 0, 255) - zero) * scale

    def decibels(wanted: np.ndarray, given: np.ndarray) -> float:
        return float(10 * np.log10(np.sum(wanted**2) / np.sum((given - wanted) ** 2)))

    w = {name: array.astype(np.float64) for name, array in weights().items()}
    a = data @ w["w1"]
    b = np.maximum(a, 0)
    c = b @ w["w2"].T + w["b2"]
    bias = value["b2.codes"] * value["b2.scale"].astype(np.float64)
    second = found.layer(SECOND)
    assert second.weights_db == pytest.approx(decibels(c, b @ real("w2", 0).T + bias), abs=0.1)
    assert second.activations_db == pytest.approx(decibels(c, on_grid(b, "b") @ w["w2"].T + w["b2"]), abs=0.1)
    assert second.added_db == pytest.approx(decibels(c, on_grid(b, "b") @ real("w2", 0).T + bias), abs=0.1)
    running = np.maximum(on_grid(data, "x") @ real("w1", 1), 0)
    assert second.sqnr_db == pytest.approx(decibels(c, on_grid(running, "b") @ real("w2", 0).T + bias), abs=0.1)
    alone = np.maximum(on_grid(b, "b") @ real("w2", 0).T + bias, 0) @ w["w3"].T + w["b3"]
    y = np.maximum(c, 0) @ w["w3"].T + w["b3"]
    assert second.error == pytest.approx(np.sqrt(np.sum((alone - y) ** 2) / np.sum(y**2)), rel=0.02)
    outputs = small.run({"x": data})["y"]
    assert found.sqnr_db == pytest.approx(decibels(y, outputs), abs=0.1)


@pytest.mark.parametrize("form", [QuantFormat.QDQ, QuantFormat.QOperator], ids=lambda form: form.name)
def test_what_onnx_runtime_quantized(form, tmp_path) -> None:
    model = convolution_network()
    images = random_feeds(model, batch=64)["image"]
    model.save(tmp_path / "float.onnx")
    quantize_static(tmp_path / "float.onnx", tmp_path / "small.onnx", Reader("image", images), quant_format=form,
                    activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8)  # fmt: skip
    found = diagnose(tmp_path / "small.onnx", tmp_path / "float.onnx", images, vnni=True)
    assert {row.name for row in found.layers} == {layer.name for layer in model.layers()}
    assert {row.bits for row in found.layers} == {"int8 x uint8"}
    assert all(row.sqnr_db > 25 and row.added_db >= row.sqnr_db - 3 for row in found.layers)
    assert found.sqnr_db > 30
    small = alula.load_model(tmp_path / "small.onnx", allow_quantized=True).run({"image": images})["scores"]
    wanted = model.run({"image": images})["scores"]
    assert found.error == pytest.approx(np.linalg.norm(small - wanted) / np.linalg.norm(wanted), rel=1e-3)


def test_a_range_that_onnx_runtime_clips(tmp_path) -> None:
    """The activation behind the layer is gone from the graph, and its name is on the layer's output."""
    model, images = convolution_network(), random_feeds(convolution_network(), batch=64)["image"]
    model.save(tmp_path / "float.onnx")
    quantize_static(tmp_path / "float.onnx", tmp_path / "small.onnx", Reader("image", images),
                    activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8)  # fmt: skip
    small = alula.load_model(tmp_path / "small.onnx", allow_quantized=True)
    assert "d" not in {value.name for node in small.graph for value in node.outputs}
    broken = with_constant(small, "e_scale", lambda scale: scale / 10)
    found = diagnose(broken, model, images, vnni=True)
    assert first(found) == ("Conv_2", "saturated activation")


def test_what_onnx_runtime_quantized_dynamically(tmp_path) -> None:
    model, data = dense_network(), random_feeds(dense_network(), batch=64)["features"]
    model.save(tmp_path / "float.onnx")
    quantize_dynamic(tmp_path / "float.onnx", tmp_path / "small.onnx")
    found = diagnose(tmp_path / "small.onnx", model, data, vnni=True)
    assert all(row.weights_db > 30 and row.activations_db > 30 for row in found.layers)
    assert found.findings == ()


def test_weights_alone_make_all_of_the_noise() -> None:
    found = diagnose(alula.quantize(chain(), technique=alula.QuantizeWeights(bits=4, smallest=1)), chain(), rows())
    assert all(row.added_db == row.weights_db and row.activations_db == np.inf for row in found.layers)
    assert {row.bits for row in found.layers} == {"int4"}


def test_recurrent_layers_and_states() -> None:
    model = recurrent_network()
    feeds = [random_feeds(model, batch=4, seed=seed) for seed in range(4)]
    found = diagnose(alula.quantize(model, technique=alula.QuantizeWeights(smallest=1)), model, feeds)
    assert {row.operator for row in found.layers} == {"LSTM", "MatMul"}
    assert all(row.added_db > 30 for row in found.layers)


def test_layers_in_float_are_said_and_add_nothing() -> None:
    model = chain()
    small = alula.quantize(model, rows(), exclude=[SECOND])
    found = diagnose(small, model, rows())
    assert found.layer(SECOND).bits == "float32"
    assert found.layer(SECOND).added_db is None
    assert f"{SECOND}: stays in float in the quantized model" in map(str, found.notes)


def test_layers_that_are_not_found_are_said() -> None:
    model = chain()
    small = quantized(model, rows())
    graph = small.edit()
    for node in graph.graph:
        for value in node.outputs:
            if value.name in ("a", "b", "c"):
                value.name = f"other_{value.name}"
    found = diagnose(small.edited(graph), model, rows())
    notes = [str(note) for note in found.notes]
    assert any(note.startswith(f"{FIRST}: not matched") for note in notes)
    assert any(note.startswith(f"{SECOND}: not matched") for note in notes)
    assert [row.name for row in found.layers] == [THIRD]


def test_only_so_many_layers_are_tried_alone_and_the_rest_is_said() -> None:
    steps = []
    found = diagnose(quantized(chain(), rows()), chain(), rows(), layers=1, on_progress=lambda *at: steps.append(at))
    assert sum(row.error is not None for row in found.layers) == 1
    assert steps == [(1, 1)]
    assert any("2 add less noise" in str(note) for note in found.notes)


def test_data_may_come_from_a_generator_and_batches_do_not_matter() -> None:
    model, data = chain(), rows(64)
    small = quantized(model, data)
    whole = diagnose(small, model, {"x": data})
    parts = diagnose(small, model, ({"x": data[start : start + 16]} for start in range(0, 64, 16)))
    assert parts == whole
    assert parts.runs == 4


def test_it_is_plain_data() -> None:
    found = diagnose(quantized(chain(), rows()), chain(), rows())
    assert Diagnosis.from_json(json.loads(json.dumps(found.to_json(), allow_nan=False))) == found
    assert "no layer shows a known cause" in str(found)
    with pytest.raises(KeyError):
        found.layer("nothing")


def test_outputs_that_are_not_finite_are_worst() -> None:
    model = chain()
    broken = with_constant(quantized(model, rows()), "w3.scale", lambda scale: scale * np.float32(3e38))
    found = diagnose(broken, model, rows())
    assert found.layers[0].name == THIRD
    assert found.error == np.inf
    assert found.sqnr_db == -np.inf
    assert "not finite" in str(found)


@pytest.mark.parametrize(("given", "original", "message"), [
    (chain(), chain(), "no quantized operator"),
    (quantized(chain(), rows()), quantized(chain(), rows()), "must be a float model"),
    (quantized(chain(), rows()), dense_network(), "must have the original's inputs"),
    (
        quantized(chain(), rows()),
        model_from_text("other (float[n, 32] x) => (float[n, 8] y) { k = Neg (x)  y = MatMul (k, w) }",
                        {"w": np.ones((32, 8), np.float32)}),
        "none of the 1 layers",
    ),
], ids=["not quantized", "swapped", "other inputs", "other architecture"])  # fmt: skip
def test_models_that_are_no_pair_are_refused(given, original, message) -> None:
    with pytest.raises(ModelError, match=message):
        diagnose(given, original, rows())


@pytest.mark.parametrize(("data", "message"), [
    ([], "no data"),
    (np.zeros((0, 32), np.float32), "0 rows"),
    (np.full((4, 32), np.nan, np.float32), "must be finite"),
    (np.zeros((4, 31), np.float32), "input must be"),
], ids=["none", "empty", "NaN", "shape"])  # fmt: skip
def test_data_that_do_not_fit_are_refused(data, message) -> None:
    with pytest.raises(DataError, match=message):
        diagnose(quantized(chain(), rows()), chain(), data)


def test_settings_are_checked() -> None:
    with pytest.raises(RecipeError, match="layers must be a whole number"):
        diagnose(quantized(chain(), rows()), chain(), rows(), layers=1.5)
    with pytest.raises(ModelError, match="no such file"):
        diagnose("nothing.onnx", chain(), rows())


def test_the_text_of_the_chain_is_what_the_oracle_computes() -> None:
    assert model_from_text(CHAIN, weights()).run({"x": rows(2)})["y"].shape == (2, 8)
