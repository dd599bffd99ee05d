"""A batch normalisation behind codes goes into their scales, and no output changes."""

from __future__ import annotations

import numpy as np
import pytest

from alula.graph.load import model_from_proto
from alula.techniques import Context, FoldBatchNorm
from alula.testing import proto_from_text

IMAGE = """net (float[n, 4, 5, 5] x) => (float[n, 6, 3, 3] y) {
    i = QuantizeLinear (x, t, z) r = DequantizeLinear (i, t, z)
    v = DequantizeLinear <axis = 0> (w, s, o)
    BIAS
    y = BatchNormalization <epsilon = 0.001> (a, scale, shift, mean, variance) }"""
NARROW = IMAGE.replace("BIAS", "b = DequantizeLinear <axis = 0> (c, u) a = Conv (r, v, b)")
CASES = {
    "a bias of codes": (NARROW, (6, 4, 3, 3), (6,)),
    "no bias": (IMAGE.replace("BIAS", "a = Conv (r, v)"), (6, 4, 3, 3), (6,)),
    "a float bias": (IMAGE.replace("BIAS", "a = Conv (r, v, f)"), (6, 4, 3, 3), (6,)),
    "groups": (IMAGE.replace("BIAS", "a = Conv <group = 2> (r, v)"), (6, 2, 3, 3), (6,)),
    "one scale": (IMAGE.replace("BIAS", "a = Conv (r, v)"), (6, 4, 3, 3), ()),
    "a float input": (IMAGE.replace("BIAS", "a = Conv (x, v, f)"), (6, 4, 3, 3), (6,)),
    "blocks": (IMAGE.replace("BIAS", "a = Conv (r, v)").replace("axis = 0", "axis = 1, block_size = 2"),
               (6, 4, 3, 3), (6, 2, 3, 3)),
    "Gemm": ("""net (float[n, 4] x) => (float[n, 6] y) {
        i = QuantizeLinear (x, t, z) r = DequantizeLinear (i, t, z) v = DequantizeLinear <axis = 1> (w, s, o)
        a = Gemm (r, v, f)
        y = BatchNormalization (a, scale, shift, mean, variance) }""", (4, 6), (6,)),
    "Gemm, transposed": ("""net (float[n, 4] x) => (float[n, 6] y) {
        i = QuantizeLinear (x, t, z) r = DequantizeLinear (i, t, z) v = DequantizeLinear <axis = 0> (w, s, o)
        a = Gemm <transB = 1> (r, v, f)
        y = BatchNormalization (a, scale, shift, mean, variance) }""", (6, 4), (6,)),
}  # fmt: skip
FACTORS = np.array([1.5, -0.7, 0.0, 2.0, -1.0, 0.3], np.float32)


def weights_of(shape, scales, factors=FACTORS, least=-7):
    draw = np.random.default_rng(0)
    steps = draw.uniform(0.01, 0.1, scales).astype(np.float32)
    return {
        "t": np.float32(0.02), "z": np.uint8(128), "w": draw.integers(least, 8, shape).astype(np.int8), "s": steps,
        "o": np.zeros(scales, np.int8), "c": draw.integers(-9999, 9999, 6).astype(np.int32),
        "u": (np.float32(0.02) * steps).astype(np.float32), "f": draw.normal(size=6).astype(np.float32),
        "scale": factors, "shift": draw.normal(size=6).astype(np.float32),
        "mean": draw.normal(size=6).astype(np.float32), "variance": draw.uniform(0.1, 2, 6).astype(np.float32),
    }  # fmt: skip


def loaded(text, weights):
    used = {name: array for name, array in weights.items() if any(f"{before}{name}{after}" in text for before in " ("
                                                                 for after in ",)")}  # fmt: skip
    return model_from_proto(proto_from_text(text, used), allow_quantized=True)


def fold(model):
    return FoldBatchNorm().apply(model, Context(model.layers()))


@pytest.mark.parametrize("words", CASES)
def test_outputs_stay_and_codes_too(words):
    text, shape, scales = CASES[words]
    weights = weights_of(shape, scales)
    model = loaded(text, weights)
    folded = fold(model)
    assert not [node for node in folded.graph if node.op_type == "BatchNormalization"], folded.notes
    inputs = {"x": np.random.default_rng(1).normal(size=(3, *[4, 5, 5][: len(shape) - 1])).astype(np.float32)}
    expected, found = (one.run(inputs)["y"] for one in (model, folded))
    half = 0.01 * folded.graph.initializers["s"].const_value.numpy().max()  # of a step of the grid of sums
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=half + 1e-5)
    codes = folded.graph.initializers["w"].const_value.numpy()
    axis = 1 if words == "Gemm" else 0
    signs = np.sign(FACTORS).astype(np.int8).reshape([-1 if index == axis else 1 for index in range(len(shape))])
    np.testing.assert_array_equal(codes, weights["w"] * signs)
    assert (folded.graph.initializers["s"].const_value.numpy() > 0).all()


def test_the_bias_lies_on_the_grid_of_the_sums():
    text, shape, scales = CASES["a bias of codes"]
    folded = fold(loaded(text, weights_of(shape, scales)))
    (layer,) = (node for node in folded.graph if node.op_type == "Conv")
    bias = layer.inputs[2].producer()
    step = folded.graph.initializers[bias.inputs[1].name].const_value.numpy()
    steps = folded.graph.initializers["s"].const_value.numpy()
    np.testing.assert_allclose(step, np.float32(0.02) * steps, rtol=1e-6)
    assert folded.graph.initializers[bias.inputs[0].name].const_value.numpy().dtype == np.int32


KEPT = {
    "the least code": (NARROW, {"w": np.full((6, 4, 3, 3), -128, np.int8)}),
    "one with an offset": (NARROW, {"o": np.full(6, 3, np.int8)}),
    "scale per output channel": (NARROW.replace("axis = 0> (w", "axis = 1> (w"),
                                 {"s": np.ones(4, np.float32), "o": np.zeros(4, np.int8)}),
    "computed": (IMAGE.replace("BIAS", "a = Conv (r, v, p)").replace("] x)", "] x, float[6] p)"), {}),
}  # fmt: skip


@pytest.mark.parametrize("words", KEPT)
def test_what_cannot_be_folded_stays_and_says_why(words):
    text, other = KEPT[words]
    model = loaded(text, weights_of((6, 4, 3, 3), (6,)) | other)
    folded = fold(model)
    assert any(node.op_type == "BatchNormalization" for node in folded.graph)
    assert any(words in note.text for note in folded.notes), folded.notes


def test_a_shared_weight_stays():
    text = IMAGE.replace("(float[n, 6, 3, 3] y)", "(float[n, 6, 3, 3] y, float[n, 6, 3, 3] k)")
    model = loaded(text.replace("BIAS", "a = Conv (r, v) k = Conv (x, v)"), weights_of((6, 4, 3, 3), (6,)))
    assert any("read by something else" in note.text for note in fold(model).notes)
