"""What a profiler timed, assigned to layers: made-up times with real names, and real profiles of tiny graphs."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from alula.quantization import quantize
from alula.recipe import Recipe, Step, apply_recipe
from alula.search.calibration import calibrate
from alula.search.layer_rows import layer_rows
from alula.search.layer_times import Share, assign, split_time, with_shares
from alula.targets import NodeTime, OnnxRuntime, OpenVino
from alula.techniques import Quantize, QuantizeDynamic
from alula.testing.models import convolution_network, random_feeds
from tests.oracles.networks import make_model
from tests.oracles.tasks import classification, network

CONVERSIONS = {"QuantizeLinear", "DequantizeLinear", "ReorderInput", "ReorderOutput", "Transpose"}
TARGETS = [pytest.param(OnnxRuntime(threads=1), id="onnxruntime"), pytest.param(OpenVino(threads=1), id="openvino")]


def residual():
    """x -> conv "a" -> Relu -> conv "b" -> + x -> Relu, two images in a row."""
    rng = np.random.default_rng(0)
    weights = {name: rng.normal(size=(8, 8, 3, 3)).astype(np.float32) for name in ("wa", "wb")}
    nodes = [
        helper.make_node("Conv", ["x", "wa"], ["ta"], name="a", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["ta"], ["ra"], name="relu_a"),
        helper.make_node("Conv", ["ra", "wb"], ["tb"], name="b", pads=[1, 1, 1, 1]),
        helper.make_node("Add", ["tb", "ra"], ["sum"], name="add"),
        helper.make_node("Relu", ["sum"], ["y"], name="relu_b"),
    ]
    shape = ["rows", 8, 16, 16]
    return make_model(nodes, [("x", TensorProto.FLOAT, shape)], [("y", TensorProto.FLOAT, shape)], weights)


def layers_of(*times, original, candidate=None):
    return [share.layer for share in assign(times, original, candidate or original)]


def test_names_that_fusion_decorates():
    names = ["first", "first_token_3", "fused first", "first/MatMulAddFusion/", "first/WithoutBiases/Dequantization"]
    for name in names:
        assert layers_of(NodeTime(name, "MatMul", 1.0), original=network()) == ["first"], name


def test_names_that_are_not_of_the_graph():
    for name, operator in (("firstly", "MatMul"), ("", "MatMul"), ("Reorder", "ReorderOutput"), ("first/x", "Reorder")):
        assert layers_of(NodeTime(name, operator, 1.0), original=network()) == [None], name


def test_blocked_convolutions_are_called_after_what_they_write():
    times = (NodeTime("y_nchwc", "Conv", 1.0), NodeTime("ra_nchwc", "Conv", 1.0))
    assert layers_of(*times, original=residual()) == ["b", "a"]


def test_names_of_the_runtime_s_own_with_what_was_fused():
    times = (NodeTime("Multiply_12", "Convolution", 1.0, "float32", ("Multiply_12", "relu_a")),
             NodeTime("Multiply_13", "Convolution", 1.0, "float32", ("b", "add")))  # fmt: skip
    assert layers_of(*times, original=residual()) == ["a", "b"]


def test_each_layer_is_taken_once():
    times = (NodeTime("ra_nchwc", "Conv", 1.0), NodeTime("y_nchwc", "Conv", 1.0), NodeTime("y_nchwc", "Conv", 1.0))
    assert layers_of(*times, original=residual()) == ["a", "b", None]


def test_products_of_activations_are_no_layers():
    model = make_model(
        [helper.make_node("MatMul", ["x", "w"], ["h"], name="layer"),
         helper.make_node("MatMul", ["h", "x"], ["y"], name="product")],
        [("x", TensorProto.FLOAT, [4, 4])], [("y", TensorProto.FLOAT, [4, 4])], {"w": np.eye(4, dtype=np.float32)},
    )  # fmt: skip
    shares = assign((NodeTime("product", "MatMul", 1.0, "float32"),), model, model)
    assert [(share.layer, share.kind) for share in shares] == [(None, "other")]


def test_kinds():
    model = network()
    times = [
        NodeTime("first", "QLinearMatMul", 1.0, "int8"),
        NodeTime("second", "MatMul", 1.0, "float32"),
        NodeTime("x.codes/QuantizeLinear", "QuantizeLinear", 1.0, "float32"),
        NodeTime("Transpose", "Transpose", 1.0, "uint8"),
        NodeTime("r1", "Relu", 1.0, "float32"),
    ]
    kinds = [share.kind for share in assign(times, model, model)]
    assert kinds == ["int8", "floating", "conversions", "conversions", "other"]


def test_a_cast_of_the_original_is_no_conversion():
    model = make_model(
        [helper.make_node("Cast", ["x"], ["y"], name="theirs", to=TensorProto.FLOAT)],
        [("x", TensorProto.INT64, [4])], [("y", TensorProto.FLOAT, [4])],
    )  # fmt: skip
    times = (NodeTime("theirs", "Cast", 1.0), NodeTime("ours", "Cast", 1.0))
    assert [share.kind for share in assign(times, model, model)] == ["other", "conversions"]


def test_split_counts_calls_and_adds_up():
    def share(milliseconds, kind, layer=None):
        return Share(NodeTime("n", "Op", milliseconds), layer, kind)

    shares = {
        "encoder": (share(3.0, "int8", "a"), share(1.0, "conversions")),
        "decoder": (share(2.0, "floating", "b"), share(1.0, "other")),
    }
    split = split_time(shares, {"encoder": 1, "decoder": 2})
    assert split.total_ms == 10.0
    assert (split.int8, split.floating, split.conversions, split.other) == (0.3, 0.4, 0.1, 0.2)
    assert (split.conversion_count, split.node_count) == (1, 4)


def test_no_time_at_all_splits_into_nothing():
    split = split_time({"model": ()}, {})
    assert (split.total_ms, split.int8, split.other, split.node_count) == (0.0, 0.0, 0.0, 0)
    rows = layer_rows("model", network(), network(), {})
    assert with_shares(rows, {"model": ()}, {}, 0.0) == rows


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("technique", [None, Quantize(), QuantizeDynamic()], ids=["float", "static", "dynamic"])
def test_every_layer_of_a_real_profile_is_found(target, technique, tmp_path):
    task = classification(n=40)
    recipe = Recipe(() if technique is None else (Step(technique),))
    original = task.parts["model"]
    candidate = apply_recipe(original, recipe, calibrate(task, [recipe]).statistics["model"])
    feeds = {"x": np.zeros((64, 32), np.float32)}
    shares = assign(target.profile(target.build(candidate, tmp_path), feeds, runs=3), original, candidate)
    assert {share.layer for share in shares} - {None} == {"first", "second", "last"}
    kinds = {share.kind for share in shares if share.layer is not None}
    computes_in_int8 = technique is not None and not (
        target.name == "openvino" and isinstance(technique, QuantizeDynamic)
    )
    assert kinds == ({"int8"} if computes_in_int8 else {"floating"})
    rows = with_shares(layer_rows("model", original, candidate, {}), {"model": shares}, {},
                       sum(share.time.milliseconds for share in shares))  # fmt: skip
    assert sum(row.latency_share or 0.0 for row in rows) <= 1 + 1e-9


@pytest.mark.parametrize("target", TARGETS)
def test_fused_convolutions_of_a_real_profile_are_found(target, tmp_path):
    model = residual()
    times = target.profile(target.build(model, tmp_path), {"x": np.ones((1, 8, 16, 16), np.float32)}, runs=3)
    assert {share.layer for share in assign(times, model, model)} - {None} == {"a", "b"}


def test_conversions_are_as_many_as_the_runtime_keeps(tmp_path):
    """Of int8 networks, one with a layer in float, by the operators of the graph that ONNX Runtime writes down."""
    float_model, target = convolution_network(), OnnxRuntime(threads=1)
    images = random_feeds(float_model, batch=4)
    depthwise = float_model.layers()[1].name
    for exclude in ((), (depthwise,)):
        model = quantize(float_model, images, exclude=exclude)
        artifact = target.build(model, tmp_path / str(len(exclude)))
        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
        onnxruntime.InferenceSession(str(artifact.path), options, providers=["CPUExecutionProvider"])
        kept = [node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node]
        shares = assign(target.profile(artifact, images, runs=2), float_model, model)
        split = split_time({"model": shares}, {"model": 1})
        assert split.node_count == len(kept)
        assert split.conversion_count == sum(operator in CONVERSIONS for operator in kept) > 0
