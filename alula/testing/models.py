"""Tiny models of every kind, the same bytes each time, and inputs for them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import onnx.parser
from onnx import numpy_helper

from alula.graph.load import model_from_proto
from alula.graph.model import Model


def proto_from_text(text: str, weights: Mapping[str, np.ndarray] | None = None, *, opset: int = 21) -> onnx.ModelProto:
    """An ONNX message from onnx's text format and arrays for its initializers.

    >>> proto = proto_from_text("net (float[n, 2] x) => (float[n, 2] y) { y = Add(x, w) }", {"w": np.ones(2)})
    >>> [node.op_type for node in proto.graph.node]
    ['Add']

    Args:
        text: a graph as ``onnx.parser`` reads it.
        weights: initializers by name.
        opset: version of the ONNX operators.
    """
    graph = onnx.parser.parse_graph(text)
    for name, array in (weights or {}).items():
        graph.initializer.append(numpy_helper.from_array(np.asarray(array), name))
    domains = {node.domain for node in graph.node} - {""}
    imports = [onnx.helper.make_opsetid("", opset), *(onnx.helper.make_opsetid(name, 1) for name in sorted(domains))]
    return onnx.helper.make_model(graph, opset_imports=imports, ir_version=10)


def model_from_text(text: str, weights: Mapping[str, np.ndarray] | None = None, *, opset: int = 21) -> Model:
    """A Model from onnx's text format and arrays for its initializers; see :func:`proto_from_text`.

    Raises:
        ModelError: the graph is not one that alula takes.
    """
    return model_from_proto(proto_from_text(text, weights, opset=opset))


def random_feeds(model: Model, *, batch: int = 2, seed: int = 0) -> dict[str, np.ndarray]:
    """Inputs that fit the model: normal numbers, or whole ones from 0 to 7; free axes have length ``batch``."""
    random = np.random.default_rng(seed)
    feeds = {}
    for spec in model.inputs:
        shape = tuple(axis if isinstance(axis, int) else batch for axis in spec.shape or ())
        if np.issubdtype(spec.dtype, np.integer):
            feeds[spec.name] = random.integers(0, 8, shape).astype(spec.dtype)
        else:
            feeds[spec.name] = random.standard_normal(shape).astype(spec.dtype)
    return feeds


def convolution_network(seed: int = 0) -> Model:
    """Images [batch, 3, 8, 8] to scores [batch, 10]: convolutions plain, depthwise and pointwise, with batch norms."""
    text = """convolution_network (float[batch, 3, 8, 8] image) => (float[batch, 10] scores) {
        a = Conv <pads = [1, 1, 1, 1]> (image, stem_weight, stem_bias)
        b = BatchNormalization (a, stem_scale, stem_shift, stem_mean, stem_variance)
        c = Relu (b)
        d = Conv <pads = [1, 1, 1, 1], strides = [2, 2], group = 8> (c, depthwise_weight, depthwise_bias)
        e = Relu (d)
        f = Conv (e, pointwise_weight, pointwise_bias)
        g = BatchNormalization (f, point_scale, point_shift, point_mean, point_variance)
        h = Relu (g)
        i = GlobalAveragePool (h)
        j = Flatten (i)
        scores = Gemm <transB = 1> (j, classifier_weight, classifier_bias)
    }"""
    random = np.random.default_rng(seed)
    weights = {
        "stem_weight": _normal(random, 8, 3, 3, 3),
        "stem_bias": _normal(random, 8),
        "depthwise_weight": _normal(random, 8, 1, 3, 3),
        "depthwise_bias": _normal(random, 8),
        "pointwise_weight": _normal(random, 16, 8, 1, 1),
        "pointwise_bias": _normal(random, 16),
        "classifier_weight": _normal(random, 10, 16),
        "classifier_bias": _normal(random, 10),
    }
    for name, channels in (("stem", 8), ("point", 16)):
        weights[f"{name}_scale"] = 1 + 0.1 * _normal(random, channels)
        weights[f"{name}_shift"] = _normal(random, channels)
        weights[f"{name}_mean"] = _normal(random, channels)
        weights[f"{name}_variance"] = 1 + np.abs(_normal(random, channels))
    return model_from_text(text, weights)


def dense_network(seed: int = 0) -> Model:
    """Rows [batch, 16] to scores [batch, 4]: MatMul with bias, then Gemm."""
    text = """dense_network (float[batch, 16] features) => (float[batch, 4] scores) {
        a = MatMul (features, hidden_weight)
        b = Add (a, hidden_bias)
        c = Relu (b)
        scores = Gemm <transB = 1> (c, output_weight, output_bias)
    }"""
    random = np.random.default_rng(seed)
    weights = {
        "hidden_weight": _normal(random, 16, 32),
        "hidden_bias": _normal(random, 32),
        "output_weight": _normal(random, 4, 32),
        "output_bias": _normal(random, 4),
    }
    return model_from_text(text, weights)


def recurrent_network(seed: int = 0) -> Model:
    """Frames [6, batch, 8] and states [1, batch, 12] to scores [6, batch, 3] and the next states: an LSTM."""
    text = """recurrent_network (float[6, batch, 8] frames, float[1, batch, 12] h, float[1, batch, 12] c)
        => (float[6, batch, 3] scores, float[1, batch, 12] next_h, float[1, batch, 12] next_c)
        <int64[1] one = {1}> {
        a, next_h, next_c = LSTM <hidden_size = 12> (frames, input_weight, state_weight, gate_bias, , h, c)
        b = Squeeze (a, one)
        d = MatMul (b, output_weight)
        scores = Add (d, output_bias)
    }"""
    random = np.random.default_rng(seed)
    weights = {
        "input_weight": _normal(random, 1, 48, 8),
        "state_weight": _normal(random, 1, 48, 12),
        "gate_bias": _normal(random, 1, 96),
        "output_weight": _normal(random, 12, 3),
        "output_bias": _normal(random, 3),
    }
    return model_from_text(text, weights)


def embedding_network(seed: int = 0) -> Model:
    """Tokens [batch, 5], numbers below 20, to vectors [batch, 6]: a table, a mean and a matrix."""
    text = """embedding_network (int64[batch, 5] tokens) => (float[batch, 6] vectors) <int64[1] axis = {1}> {
        a = Gather (table, tokens)
        b = ReduceMean <keepdims = 0> (a, axis)
        vectors = MatMul (b, output_weight)
    }"""
    random = np.random.default_rng(seed)
    return model_from_text(text, {"table": _normal(random, 20, 8), "output_weight": _normal(random, 8, 6)})


def attention_network(seed: int = 0) -> Model:
    """Sequences [batch, 5, 8] to sequences of that shape: one head of attention, residual, layer normalisation."""
    text = """attention_network (float[batch, 5, 8] x) => (float[batch, 5, 8] y) <float scale = {0.35355338}> {
        n = LayerNormalization (x, norm_scale, norm_shift)
        q = MatMul (n, query_weight)
        k = MatMul (n, key_weight)
        v = MatMul (n, value_weight)
        t = Transpose <perm = [0, 2, 1]> (k)
        s = MatMul (q, t)
        scaled = Mul (s, scale)
        p = Softmax <axis = -1> (scaled)
        o = MatMul (p, v)
        r = MatMul (o, output_weight)
        y = Add (r, x)
    }"""
    random = np.random.default_rng(seed)
    weights = {f"{name}_weight": _normal(random, 8, 8) for name in ("query", "key", "value", "output")}
    weights |= {"norm_scale": 1 + 0.1 * _normal(random, 8), "norm_shift": _normal(random, 8)}
    return model_from_text(text, weights)


def _normal(random: np.random.Generator, *shape: int) -> np.ndarray:
    fan_in = max(1, int(np.prod(shape[1:])))
    return np.asarray(random.standard_normal(shape) / np.sqrt(fan_in), np.float32)
