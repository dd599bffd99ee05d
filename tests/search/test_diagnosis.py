"""Each cause is planted in a synthetic layer and must be found with its numbers; clean layers must give nothing."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from alula.graph.model import Model
from alula.graph.statistics import Request, collect
from alula.search.diagnosis import diagnose, ranges_of
from alula.search.sensitivity import Harm

RNG = np.random.default_rng(0)


def build(nodes, initializers, shape) -> Model:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in initializers.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return Model(ir.serde.deserialize_model(proto))


def linear(weight: np.ndarray, before=(), extra=None) -> Model:
    source = before[-1].output[0] if before else "x"
    node = helper.make_node("MatMul", [source, "w"], ["y"], name="linear")
    return build([*before, node], {"w": weight.astype(np.float32), **(extra or {})}, ["n", weight.shape[0]])


def watch(model: Model, x: np.ndarray, axis: int = -1):
    layer = model.layers()[-1]
    requests = [Request(layer.input, histogram=True, channel_axis=axis), Request(layer.output)]
    return collect(model, [{"x": x.astype(np.float32)}], requests)


def causes(model, x, axis=-1, **options):
    return {finding.cause: finding for finding in diagnose(model, watch(model, x, axis), **options)}


CLEAN = RNG.normal(size=(64, 64))


@pytest.mark.parametrize(
    "x",
    [
        RNG.normal(size=(500, 64)),
        np.maximum(RNG.normal(size=(500, 64)), 0),
        RNG.uniform(-1, 1, size=(500, 64)),
        RNG.exponential(size=(500, 64)),
        RNG.laplace(size=(500, 64)),
    ],
    ids=["normal", "rectified", "uniform", "exponential", "laplace"],
)
def test_a_clean_layer_has_no_findings(x) -> None:
    assert causes(linear(CLEAN), x, vnni=True) == {}


def test_an_outlier_activation_channel_is_found_with_its_number_and_ratio() -> None:
    x = RNG.uniform(-1, 1, size=(500, 64))
    x[:, 17] *= 20
    found = causes(linear(CLEAN), x)
    assert set(found) == {"outlier channel"}
    finding = found["outlier channel"]
    assert finding.layer == "linear"
    assert finding.values["channel"] == 17
    assert finding.values["ratio"] == pytest.approx(20, rel=0.05)
    assert finding.values["channels"] == 1
    assert "activation channel 17" in finding.text
    assert "float" in finding.fix


def test_an_outlier_weight_channel_asks_for_per_channel_weights() -> None:
    weight = RNG.uniform(-1, 1, size=(64, 64))
    weight[:, 5] *= 50
    finding = causes(linear(weight), RNG.normal(size=(500, 64)))["outlier channel"]
    assert finding.values["channel"] == 5
    assert finding.values["ratio"] == pytest.approx(50, rel=0.1)
    assert finding.fix == "per-channel weights"


@pytest.mark.parametrize(("factor", "is_found"), [(7.0, False), (10.0, True)])
def test_the_outlier_threshold_is_eight(factor, is_found) -> None:
    x = RNG.choice([-1.0, 1.0], size=(500, 64))
    x[:, 3] *= factor
    assert ("outlier channel" in causes(linear(CLEAN), x)) is is_found


def test_a_saturated_activation_is_found() -> None:
    x = RNG.normal(size=(500, 64))
    for row in range(8):  # a few huge values, in 8 of 64 channels
        x[row * 7, :] = np.where(np.arange(64) == row, 100.0, x[row * 7, :])
    statistics = watch(linear(CLEAN), x, axis=0)
    found = {f.cause: f for f in diagnose(linear(CLEAN), statistics)}
    finding = found["saturated activation"]
    assert finding.values["largest"] == 100
    assert finding.values["ratio"] == pytest.approx(100 / np.quantile(np.abs(x), 0.999), rel=0.3)
    assert "skewed distribution" not in found  # the tail is the better name


@pytest.mark.parametrize("decomposed", [False, True])
def test_a_tail_after_a_layer_normalisation_is_named_so(decomposed) -> None:
    gain = np.ones(64, np.float32)
    gain[9] = 30.0
    x = RNG.normal(size=(2000, 64))
    x[::400, 9] = 12.0  # rarely large, so the 99.9 percentile does not hold it
    x[:, 9] *= np.where(np.arange(2000) % 400 == 0, 1.0, 0.001)
    extra = {"gain": gain, "shift": np.zeros(64, np.float32)}
    if decomposed:
        before = [
            helper.make_node("ReduceMean", ["x"], ["mean"], axes=[-1]),
            helper.make_node("Sub", ["x", "mean"], ["centred"]),
            helper.make_node("Mul", ["centred", "centred"], ["square"]),
            helper.make_node("ReduceMean", ["square"], ["variance"], axes=[-1]),
            helper.make_node("Sqrt", ["variance"], ["deviation"]),
            helper.make_node("Div", ["centred", "deviation"], ["unit"]),
            helper.make_node("Mul", ["unit", "gain"], ["scaled"]),
            helper.make_node("Add", ["scaled", "shift"], ["normal"]),
        ]
    else:
        before = [helper.make_node("LayerNormalization", ["x", "gain", "shift"], ["normal"])]
    found = causes(linear(CLEAN, before, extra), x)
    assert found["layer normalisation tail"].text.startswith("its input comes from a layer normalisation")
    assert "saturated activation" not in found


def test_a_tail_after_a_residual_sum_is_named_so() -> None:
    before = [helper.make_node("Tanh", ["x"], ["branch"]), helper.make_node("Add", ["x", "branch"], ["sum"])]
    x = RNG.normal(size=(2000, 64))
    x[::2000, :] *= 60
    assert "residual sum" in causes(linear(CLEAN, before), x)["layer normalisation tail"].text


def test_a_lopsided_distribution_is_found() -> None:
    x = RNG.uniform(size=(2000, 64)) ** 30  # most values near 0, 1 in 100 beyond 0.74: no tail, only lopsided
    finding = causes(linear(CLEAN), x)["skewed distribution"]
    v = x.astype(np.float64)
    oracle = np.mean((v - v.mean()) ** 3) / v.std() ** 3
    assert finding.values["skewness"] == pytest.approx(oracle, rel=0.15)


def test_a_dead_input_is_found_and_nothing_else_is_said() -> None:
    found = causes(linear(CLEAN), np.full((50, 64), 3.0))
    assert set(found) == {"dead range"}
    assert found["dead range"].values == {"value": 3.0, "count": 3200.0}


def test_a_dead_output_is_found() -> None:
    found = causes(linear(np.zeros((64, 64))), RNG.normal(size=(50, 64)))
    assert "its output is 0" in found["dead range"].text


def depthwise(channels: int = 40) -> Model:
    weight = RNG.normal(size=(channels, 1, 3, 3)).astype(np.float32)
    node = helper.make_node("Conv", ["x", "w"], ["y"], name="depthwise", group=channels, pads=[1, 1, 1, 1])
    return build([node], {"w": weight}, ["n", channels, 8, 8])


@pytest.mark.parametrize(("decades", "is_found"), [(2.0, True), (0.8, False)])
def test_a_spread_of_depthwise_channels_is_found(decades, is_found) -> None:
    widths = np.logspace(-decades, 0, 40)
    x = RNG.uniform(-1, 1, size=(10, 40, 8, 8)) * widths[:, None, None]
    found = causes(depthwise(), x, axis=1)
    assert ("depthwise range spread" in found) is is_found
    if is_found:
        oracle = np.quantile(widths, 0.95) / np.quantile(widths, 0.05)
        assert found["depthwise range spread"].values["ratio"] == pytest.approx(oracle, rel=0.1)


def test_accumulator_overflow_is_looked_for_only_without_vnni() -> None:
    weight = RNG.choice([-1.0, 1.0], size=(64, 64))  # every integer weight is +-127
    x = RNG.normal(size=(500, 64))
    assert causes(linear(weight), x, vnni=True) == {}
    found = causes(linear(weight), x, vnni=False)
    assert found["accumulator overflow without VNNI"].values["fraction"] == 1.0
    narrow = np.where(np.arange(64) == 0, 4.0, 1.0)[:, None] * weight  # 32 + 32 fits; only the pair with 127 does not
    assert causes(linear(narrow), x, vnni=False)["accumulator overflow without VNNI"].values["fraction"] == 1 / 32


def test_a_range_that_clips_is_found() -> None:
    x = RNG.uniform(-1, 1, size=(500, 64))
    assert causes(linear(CLEAN), x, ranges={"x": (-1.0, 1.0)}) == {}
    finding = causes(linear(CLEAN), x, ranges={"x": (-0.9, 0.9)})["saturated activation"]
    assert finding.values["clipped"] == pytest.approx(0.1 - 1.8 / 255, abs=0.01)


def test_only_harmful_layers_are_looked_at_the_worst_first() -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="one"),
        helper.make_node("MatMul", ["h", "w"], ["g"], name="two"),
        helper.make_node("MatMul", ["g", "w"], ["y"], name="three"),
    ]
    weight = RNG.uniform(-1, 1, size=(64, 64)).astype(np.float32)
    weight[:, 5] *= 50
    model = build(nodes, {"w": weight}, ["n", 64])
    x = RNG.normal(size=(10, 64)).astype(np.float32)
    statistics = collect(model, [{"x": x}], [])
    harms = {"one": Harm(0.05, 1.0, 8), "two": Harm(0.001, 1.0, 8), "three": Harm(0.5, 0.9, 8)}
    found = diagnose(model, statistics, harms, part="encoder")
    assert [finding.layer for finding in found] == ["three", "one"]
    assert {finding.part for finding in found} == {"encoder"}


def test_ranges_are_read_from_a_quantized_graph() -> None:
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]),
        helper.make_node("MatMul", ["d", "w"], ["y"], name="linear"),
    ]
    parts = {"s": np.float32(0.5), "z": np.uint8(10), "w": CLEAN.astype(np.float32)}
    assert ranges_of(build(nodes, parts, ["n", 64])) == {"x": (-5.0, 122.5)}
    assert ranges_of(linear(CLEAN)) == {}
