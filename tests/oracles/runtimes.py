"""Tiny models with known answers, and traces over them, for tests of targets and measurement."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper

from alula.graph.model import Model

FLOAT = TensorProto.FLOAT


def model_of(nodes, inputs, outputs, weights=(), opset=21):
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info(name, kind, shape) for name, kind, shape in inputs],
        [helper.make_tensor_value_info(name, kind, shape) for name, kind, shape in outputs],
        [numpy_helper.from_array(array, name) for name, array in weights],
    )
    return Model(ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)))


def doubler(batch="N"):
    """y = 2x, sum = x + 2x, over [batch, 4]."""
    nodes = [
        helper.make_node("Mul", ["x", "two"], ["y"]),
        helper.make_node("Add", ["x", "y"], ["sum:0"]),
    ]
    shape = [batch, 4]
    return model_of(
        nodes, [("x", FLOAT, shape)], [("y", FLOAT, shape), ("sum:0", FLOAT, shape)], [("two", np.float32(2))]
    )


def linear(size=64, scale=1.0):
    """y = x W, W [size, size] random."""
    weight = np.random.default_rng(0).standard_normal((size, size)).astype(np.float32) * np.float32(scale)
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="linear")
    return model_of([node], [("x", FLOAT, ["N", size])], [("y", FLOAT, ["N", size])], [("w", weight)])


def quantized_linear(size=64):
    """The linear model in QDQ int8: uint8 activations, int8 weights for each column."""
    weight = np.random.default_rng(0).standard_normal((size, size)).astype(np.float32)
    scales = (np.abs(weight).max(axis=0) / 127).astype(np.float32)
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "xs", "xz"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "xs", "xz"], ["xd"]),
        helper.make_node("DequantizeLinear", ["wq", "ws"], ["wd"], axis=1),
        helper.make_node("MatMul", ["xd", "wd"], ["y"], name="linear"),
    ]
    weights = [
        ("xs", np.float32(0.03)),
        ("xz", np.uint8(128)),
        ("wq", np.rint(weight / scales).astype(np.int8)),
        ("ws", scales),
    ]
    return model_of(nodes, [("x", FLOAT, ["N", size])], [("y", FLOAT, ["N", size])], weights)


def stateful():
    """A running sum: total [2, batch, 3] and a rate without axes beside x [batch, 3], as a streaming model has them."""
    nodes = [
        helper.make_node("Mul", ["x", "rate"], ["step"]),
        helper.make_node("Add", ["total", "step"], ["next"]),
        helper.make_node("Identity", ["step"], ["y"]),
    ]
    inputs = [("x", FLOAT, ["batch", 3]), ("total", FLOAT, [2, "batch", 3]), ("rate", FLOAT, [])]
    return model_of(nodes, inputs, [("y", FLOAT, ["batch", 3]), ("next", FLOAT, [2, "batch", 3])])


def feeds_for(model, rows=1, seed=0):
    generator = np.random.default_rng(seed)
    return {
        spec.name: generator.standard_normal([axis if isinstance(axis, int) else rows for axis in spec.shape]).astype(
            spec.dtype
        )
        for spec in model.inputs
    }


def trace_of(model, calls=1, rows=1):
    return tuple(("model", feeds_for(model, rows, seed)) for seed in range(calls))
