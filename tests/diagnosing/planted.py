"""Networks of three layers, healthy or with one planted fault, and what quantizing them plainly makes of them."""

from __future__ import annotations

import numpy as np

import alula
from alula.graph.editing import Editor
from alula.graph.load import model_from_proto
from alula.graph.model import Model
from alula.testing import model_from_text, proto_from_text

CHAIN = """chain (float[n, 32] x) => (float[n, 8] y) {
    a = MatMul (x, w1)
    b = Relu (a)
    c = Gemm <transB = 1> (b, w2, b2)
    d = Relu (c)
    y = Gemm <transB = 1> (d, w3, b3)
}"""
SHARED = """shared (float[n, 32] x) => (float[n, 32] y) {
    a = MatMul (x, w)
    b = Relu (a)
    y = MatMul (b, w)
}"""


def weights(seed: int = 0) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    drawn = {"w1": (32, 32), "w2": (32, 32), "w3": (8, 32), "b2": (32,), "b3": (8,)}
    return {name: (random.uniform(-1, 1, shape) * 0.3).astype(np.float32) for name, shape in drawn.items()}


def chain(**changed: np.ndarray) -> Model:
    return model_from_text(CHAIN, weights() | changed)


def shared() -> Model:
    return model_from_text(SHARED, {"w": np.random.default_rng(1).uniform(-0.3, 0.3, (32, 32)).astype(np.float32)})


def smoothed_for_one_reader() -> Model:
    """What a tool makes of ``shared`` that moved the scales of x into its weight, which the second layer reads too."""
    model, factors = shared(), np.linspace(1, 6, 32, dtype=np.float32)
    text = """shared (float[n, 32] x) => (float[n, 32] y) {
        even = Mul (x, factors)
        w = DequantizeLinear <axis = 1> (codes, scale)
        a = MatMul (even, w)
        b = Relu (a)
        y = MatMul (b, w)
    }"""
    scaled = model.weight("w") / factors[:, None]
    scale = np.abs(scaled).max(axis=0) / 127
    given = {"factors": factors, "codes": np.rint(scaled / scale).astype(np.int8), "scale": scale}
    return model_from_proto(proto_from_text(text, given), allow_quantized=True)


def rows(count: int = 128, seed: int = 5) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, 32)).astype(np.float32)


def quantized(model: Model, data: np.ndarray, **settings) -> Model:
    return alula.quantize(model, data, technique=alula.Quantize(**settings))


def with_constant(model: Model, name: str, change) -> Model:
    """The model with the values of an initializer changed by a function of them."""
    editor = Editor(model.edit())
    before = editor.array(name)
    editor.replace_constant(name, np.asarray(change(before)).astype(before.dtype))
    return model.edited(editor.model)
