"""Tiny networks of the shapes that techniques trip over: each is treated rightly, or refused with a reason."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from alula.graph.model import Model
from alula.testing.models import model_from_text

BATCH_NORM = ("scale", "shift", "mean", "variance")


def odd_models() -> dict[str, Callable[[], Model]]:
    """The networks by what is odd about them; each call of a value builds the same one anew."""
    return {name: _builder(text, shapes) for name, (text, shapes) in _NETWORKS.items()}


def _builder(text: str, shapes: Mapping[str, tuple[int, ...]]) -> Callable[[], Model]:
    return lambda: model_from_text(f"net {text}", _weights(shapes))


def _weights(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Normal numbers; of variances, the magnitudes. A name that ends in _half or _double has that type."""
    random, weights = np.random.default_rng(1), {}
    for name, shape in shapes.items():
        array = random.standard_normal(shape) / np.sqrt(max(1, int(np.prod(shape[1:]))))
        kind = np.float16 if name.endswith("_half") else np.float64 if name.endswith("_double") else np.float32
        weights[name] = (np.abs(array) + 0.5 if "variance" in name else array).astype(kind)
    return weights


_NETWORKS: dict[str, tuple[str, dict[str, tuple[int, ...]]]] = {
    "one channel": (
        (
            "(float[n, 1, 5, 5] x) => (float[n, 1] y) { a = Conv (x, w, b) r = Relu (a) p = GlobalAveragePool (r) "
            "f = Flatten (p) y = Gemm (f, v, c) }"
        ),
        {"w": (1, 1, 3, 3), "b": (1,), "v": (1, 1), "c": (1,)},
    ),
    "no multiple of any block": (
        "(float[n, 13] x) => (float[n, 3] y) { a = MatMul (x, w) r = Relu (a) y = MatMul (r, v) }",
        {"w": (13, 37), "v": (37, 3)},
    ),
    "grouped convolution": (
        (
            "(float[n, 6, 7, 7] x) => (float[n, 4, 4, 4] y) "
            "{ y = Conv <group = 2, strides = [2, 2], pads = [1, 1, 1, 1]> (x, w, b) }"
        ),
        {"w": (4, 3, 3, 3), "b": (4,)},
    ),
    "depthwise convolution without bias": (
        "(float[n, 6, 7, 7] x) => (float[n, 12, 5, 5] y) { y = Conv <group = 6> (x, w) }",
        {"w": (12, 1, 3, 3)},
    ),
    "transposed convolution": (
        "(float[n, 3, 4, 4] x) => (float[n, 5, 9, 9] y) { y = ConvTranspose <strides = [2, 2]> (x, w, b) }",
        {"w": (3, 5, 3, 3), "b": (5,)},
    ),
    "grouped transposed convolution": (
        "(float[n, 4, 4, 4] x) => (float[n, 6, 6, 6] y) { y = ConvTranspose <group = 2> (x, w) }",
        {"w": (4, 3, 3, 3)},
    ),
    "one axis": (
        "(float[n, 4, 16] x) => (float[n, 8, 14] y) { a = Conv (x, w, b) y = Relu (a) }",
        {"w": (8, 4, 3), "b": (8,)},
    ),
    "three axes": (
        "(float[n, 2, 4, 4, 4] x) => (float[n, 3, 3, 3, 3] y) { y = Conv (x, w, b) }",
        {"w": (3, 2, 2, 2, 2), "b": (3,)},
    ),
    "Gemm with factors": (
        "(float[n, 8] x) => (float[n, 6] y) { y = Gemm <alpha = 0.5, beta = 2.0> (x, w, b) }",
        {"w": (8, 6), "b": (6,)},
    ),
    "Gemm whose bias counts for nothing": (
        "(float[n, 8] x) => (float[n, 6] y) { y = Gemm <transB = 1, beta = 0.0> (x, w, b) }",
        {"w": (6, 8), "b": (6,)},
    ),
    "Gemm without bias": (
        "(float[n, 8] x) => (float[n, 6] y) { y = Gemm <alpha = 2.0, beta = 3.0, transB = 1> (x, w) }",
        {"w": (6, 8)},
    ),
    "Gemm with one bias for all": (
        "(float[n, 8] x) => (float[n, 6] y) { y = Gemm (x, w, b) }",
        {"w": (8, 6), "b": ()},
    ),
    "Gemm with a bias row": (
        "(float[n, 8] x) => (float[n, 6] y) { y = Gemm (x, w, b) }",
        {"w": (8, 6), "b": (1, 6)},
    ),
    "Gemm with a bias per example": (
        "(float[2, 8] x) => (float[2, 6] y) { y = Gemm (x, w, b) }",
        {"w": (8, 6), "b": (2, 1)},
    ),
    "Gemm with a computed bias": (
        "(float[n, 8] x) => (float[n, 8] y) { c = Tanh (x) y = Gemm (x, w, c) }",
        {"w": (8, 8)},
    ),
    "Conv with a computed bias": (
        "(float[n, 3, 5, 5] x, float[4] c) => (float[n, 4, 3, 3] y) { b = Tanh (c) y = Conv (x, w, b) }",
        {"w": (4, 3, 3, 3)},
    ),
    "computed bias before a normalisation": (
        (
            "(float[n, 3, 5, 5] x, float[4] c) => (float[n, 4, 3, 3] y) { b = Tanh (c) a = Conv (x, w, b) "
            "y = BatchNormalization (a, scale, shift, mean, variance) }"
        ),
        {"w": (4, 3, 3, 3), **dict.fromkeys(BATCH_NORM, (4,))},
    ),
    "weight on the left": (
        "(float[n, 8, 5] x) => (float[n, 6, 5] y) { y = MatMul (w, x) }",
        {"w": (6, 8)},
    ),
    "a matrix per example": (
        "(float[3, n, 8] x) => (float[3, n, 6] y) { y = MatMul (x, w) }",
        {"w": (3, 8, 6)},
    ),
    "a vector on the right": (
        "(float[n, 8] x) => (float[n] y) { r = MatMul (x, w) y = MatMul (r, v) }",
        {"w": (8, 6), "v": (6,)},
    ),
    "one weight for two layers": (
        "(float[n, 8] x) => (float[n, 8] y) { a = MatMul (x, w) r = Relu (a) y = MatMul (r, w) }",
        {"w": (8, 8)},
    ),
    "one table and matrix": (
        (
            "(int64[n, 3] x) => (float[n, 3, 20] y) { a = Gather (w, x) t = Transpose <perm = [1, 0]> (w) "
            "y = MatMul (a, t) }"
        ),
        {"w": (20, 8)},
    ),
    "one bias for two layers": (
        "(float[n, 4, 5, 5] x) => (float[n, 4, 3, 3] y) { a = Conv (x, w, b) c = Conv (x, v, b) y = Add (a, c) }",
        {"w": (4, 4, 3, 3), "v": (4, 4, 3, 3), "b": (4,)},
    ),
    "a layer's output is an output": (
        (
            "(float[n, 3, 5, 5] x) => (float[n, 4, 3, 3] a, float[n, 2, 1, 1] y) "
            "{ a = Conv (x, w, b) r = Relu (a) y = Conv (r, v) }"
        ),
        {"w": (4, 3, 3, 3), "b": (4,), "v": (2, 4, 3, 3)},
    ),
    "an input for two layers": (
        "(float[n, 8] x) => (float[n, 6] y, float[n, 5] z) { y = MatMul (x, w) z = Gemm <transB = 1> (x, v) }",
        {"w": (8, 6), "v": (5, 8)},
    ),
    "a weight is an output": (
        (
            "(float[n, 8] x) => (float[n, 6] y, float[8, 6] w, float[6] b) { a = MatMul (x, w) c = Add (a, b) "
            "y = Gemm (c, v, b) }"
        ),
        {"w": (8, 6), "b": (6,), "v": (6, 6)},
    ),
    "a body reads weight and activation": (
        (
            "(float[n, 8] x, bool flag) => (float[n, 8] y) { a = MatMul (x, w) y = If (flag) "
            "<then_branch = yes () => (float[n, 8] p) { p = Relu (a) }, "
            "else_branch = no () => (float[n, 8] q) { q = MatMul (a, w) }> }"
        ),
        {"w": (8, 8)},
    ),
    "a body reads a weight before its layer": (
        (
            "(float[n, 8] x, bool flag) => (float[n, 8] y) { a = If (flag) "
            "<then_branch = yes () => (float[n, 8] p) { p = MatMul (x, w) }, "
            "else_branch = no () => (float[n, 8] q) { q = Relu (x) }> y = MatMul (a, w) }"
        ),
        {"w": (8, 8)},
    ),
    "a body reads a convolution": (
        (
            "(float[n, 3, 5, 5] x, bool flag) => (float[n, 4, 3, 3] y) { a = Conv (x, w, b) y = If (flag) "
            "<then_branch = yes () => (float[n, 4, 3, 3] p) { p = Relu (a) }, "
            "else_branch = no () => (float[n, 4, 3, 3] q) { t = Tanh (x) q = Conv (t, w, b) }> }"
        ),
        {"w": (4, 3, 3, 3), "b": (4,)},
    ),
    "a table along another axis": (
        "(int32[n] x) => (float[6, n] y) { y = Gather <axis = 1> (w, x) }",
        {"w": (6, 20)},
    ),
    "both directions": (
        (
            "(float[5, n, 6] x) => (float[5, 2, n, 4] y) "
            '{ y = LSTM <hidden_size = 4, direction = "bidirectional"> (x, w, r, b) }'
        ),
        {"w": (2, 16, 6), "r": (2, 16, 4), "b": (2, 32)},
    ),
    "only the last state": (
        "(float[5, n, 6] x) => (float[1, n, 4] y) { , y = GRU <hidden_size = 4> (x, w, r, b) }",
        {"w": (1, 12, 6), "r": (1, 12, 4), "b": (1, 24)},
    ),
    "half precision": (
        (
            "(float16[n, 3, 5, 5] x) => (float16[n, 2] y) { a = Conv (x, w_half, b_half) r = Relu (a) "
            "p = GlobalAveragePool (r) f = Flatten (p) y = Gemm (f, v_half, c_half) }"
        ),
        {"w_half": (4, 3, 3, 3), "b_half": (4,), "v_half": (4, 2), "c_half": (2,)},
    ),
    "half precision weights": (
        "(float[n, 8] x) => (float[n, 6] y) { w = Cast <to = 1> (w_half) y = MatMul (x, w) }",
        {"w_half": (8, 6)},
    ),
    "half precision table": (
        "(int64[n] x) => (float16[n, 6] y) { y = Gather (w_half, x) }",
        {"w_half": (20, 6)},
    ),
    "double precision": (
        "(double[n, 8] x) => (double[n, 6] y) { y = MatMul (x, w_double) }",
        {"w_double": (8, 6)},
    ),
    "normalisations of every kind": (
        (
            "(float[n, 4] x) => (float[n, 4] y, float[n, 4] d) { "
            "a = Gemm <transB = 1, alpha = 0.5, beta = 2.0> (x, w1, b1) "
            "c = BatchNormalization <epsilon = 0.1> (a, scale, shift, mean, variance) "
            "d = Gemm (c, w2, b2) e = BatchNormalization (d, scale, shift, mean, variance) "
            "f = Gemm (e, w3) g = BatchNormalization (f, scale, shift, mean, variance) "
            "y = BatchNormalization (g, scale, shift, mean, variance) }"
        ),
        {"w1": (4, 4), "b1": (4,), "w2": (4, 4), "b2": (1, 4), "w3": (4, 4), **dict.fromkeys(BATCH_NORM, (4,))},
    ),
    "a joined constant": (
        (
            "(float[1, 2, 4, 4] x) => (float[1, 3, 2, 2] y) { a = Conv (x, w, b) c = Concat <axis = 1> (a, k) "
            "y = Conv (c, v) }"
        ),
        {"w": (2, 2, 1, 1), "b": (2,), "k": (1, 2, 4, 4), "v": (3, 4, 3, 3)},
    ),
    "a convolution of a constant": (
        "(float[n, 3, 3, 3] x) => (float[n, 3, 3, 3] y) { a = Conv (k, w, b) y = Add (x, a) }",
        {"k": (1, 3, 5, 5), "w": (3, 3, 3, 3), "b": (3,)},
    ),
}
