import numpy as np
import pytest

from alula.errors import ModelError
from alula.graph.load import model_from_proto
from alula.graph.quantized import quantized_operators
from alula.testing import convolution_network, proto_from_text

QDQ = """n (float[b, 4] x) => (float[b, 2] y) {
    q = QuantizeLinear (x, s, z)
    d = DequantizeLinear (q, s, z)
    v = DequantizeLinear (w, s, z)
    y = MatMul (d, v)
}"""
CASES = {
    "2 DequantizeLinear, 1 QuantizeLinear": QDQ,
    "1 DynamicQuantizeLinear, 1 MatMulInteger": """n (float[b, 4] x) => (int32[b, 2] y) {
        q, t, p = DynamicQuantizeLinear (x)
        y = MatMulInteger (q, w, p) }""",
    "1 ConvInteger": "n (int8[b, 4, 3] x) => (int32[b, 2, 3] y) { y = ConvInteger (x, k) }",
    "1 com.microsoft.MatMulNBits": "n (float[b, 4] x) => (float[b, 2] y) { y = com.microsoft.MatMulNBits (x, w) }",
    "1 com.microsoft.QAttention": "n (int8[b, 4] x) => (float[b, 2] y) { y = com.microsoft.QAttention (x, w) }",
    "1 com.microsoft.QLinearAdd": """n (int8[b, 4] x) => (int8[b, 4] y) {
        y = com.microsoft.QLinearAdd (x, s, z, x, s, z, s, z) }""",
    "1 QLinearMatMul": "n (int8[b, 4] x) => (int8[b, 2] y) { y = QLinearMatMul (x, s, z, w, s, z, s, z) }",
}
WEIGHTS = {"w": np.ones((4, 2), np.int8), "k": np.ones((2, 4, 1), np.int8), "s": np.float32(0.1), "z": np.int8(0)}


@pytest.mark.parametrize("words", CASES)
def test_quantized_graphs_are_named_and_refused_unless_asked(words):
    with pytest.raises(ModelError, match=rf"quantized already \({words}\).*allow_quantized=True"):
        model_from_proto(proto_from_text(CASES[words], WEIGHTS))
    model = model_from_proto(proto_from_text(CASES[words], WEIGHTS), allow_quantized=True)
    assert f"graph: quantized already: {words}" in map(str, model.notes)


def test_a_quantized_graph_keeps_its_nodes_and_runs():
    model = model_from_proto(proto_from_text(QDQ, WEIGHTS), allow_quantized=True)
    assert [node.op_type for node in model.graph] == [
        "QuantizeLinear", "DequantizeLinear", "DequantizeLinear", "MatMul",
    ]  # fmt: skip
    np.testing.assert_allclose(model.run({"x": np.ones((1, 4), np.float32)})["y"], 0.4, rtol=1e-6)


def test_quantized_inside_a_body():
    text = """n (bool k, float[4] x) => (float[4] y) {
        y = If (k) <then_branch = g () => (float[4] p) {
                        i = QuantizeLinear (x, s, z)
                        p = DequantizeLinear (i, s, z) },
                    else_branch = h () => (float[4] r) { r = Neg (x) }> }"""
    with pytest.raises(ModelError, match="1 DequantizeLinear, 1 QuantizeLinear"):
        model_from_proto(proto_from_text(text, WEIGHTS))


def test_float_graphs_are_not_quantized():
    assert quantized_operators(convolution_network().graph.all_nodes()) == {}
    text = "n (float[b] x) => (float[b] y) { y = com.microsoft.QuickGelu (x) }"
    assert not model_from_proto(proto_from_text(text)).notes[0].text.startswith("quantized")
