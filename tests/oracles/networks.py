"""Tiny graphs whose outputs NumPy gives in one line."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper

from alula.graph.model import Model


def make_model(nodes, inputs, outputs, weights=()):
    """A Model from onnx nodes; inputs and outputs are (name, type, shape)."""
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info(*value) for value in inputs],
        [helper.make_tensor_value_info(*value) for value in outputs],
        [numpy_helper.from_array(array, name) for name, array in dict(weights).items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return Model(ir.serde.deserialize_model(proto))


def weights_of(features=4, classes=3, seed=0):
    return np.random.default_rng(seed).normal(size=(features, classes)).astype(np.float32)


def linear(features=4, classes=3, *, rows="rows", seed=0):
    """logits = x @ w, and doubled = 2 * logits as a second output."""
    return make_model(
        [
            helper.make_node("MatMul", ["x", "w"], ["logits"]),
            helper.make_node("Add", ["logits", "logits"], ["doubled"]),
        ],
        [("x", TensorProto.FLOAT, [rows, features])],
        [("logits", TensorProto.FLOAT, [rows, classes]), ("doubled", TensorProto.FLOAT, [rows, classes])],
        {"w": weights_of(features, classes, seed)},
    )


def sigmoid(features=4):
    """probability = sigmoid(x @ w), one column."""
    return make_model(
        [helper.make_node("MatMul", ["x", "w"], ["logit"]), helper.make_node("Sigmoid", ["logit"], ["probability"])],
        [("x", TensorProto.FLOAT, ["rows", features])],
        [("probability", TensorProto.FLOAT, ["rows", 1])],
        {"w": weights_of(features, 1)},
    )


def two_inputs():
    """total = a + float(b)."""
    return make_model(
        [helper.make_node("Cast", ["b"], ["c"], to=TensorProto.FLOAT), helper.make_node("Add", ["a", "c"], ["total"])],
        [("a", TensorProto.FLOAT, ["rows", 2]), ("b", TensorProto.INT64, ["rows", 2])],
        [("total", TensorProto.FLOAT, ["rows", 2])],
    )


def accumulator():
    """A stream: new_state = state + x, level = state + x."""
    return make_model(
        [
            helper.make_node("Add", ["state", "x"], ["new_state"]),
            helper.make_node("Identity", ["new_state"], ["level"]),
        ],
        [("x", TensorProto.FLOAT, [1]), ("state", TensorProto.FLOAT, [1])],
        [("new_state", TensorProto.FLOAT, [1]), ("level", TensorProto.FLOAT, [1])],
    )
