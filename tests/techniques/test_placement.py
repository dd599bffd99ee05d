"""Which tensors are quantized, for networks whose right placement is known by hand."""

from __future__ import annotations

import numpy as np
import pytest

from alula.graph.statistics import collect
from alula.techniques import Context, Quantize
from alula.techniques.placement import place
from alula.testing.models import attention_network, model_from_text, random_feeds

RESIDUAL = """net (float[n, 3, 8, 8] x) => (float[n, 5] y) {
    a = Conv <pads = [1, 1, 1, 1]> (x, w1, b1) r = Relu (a) c = Conv <pads = [1, 1, 1, 1]> (r, w2, b2)
    s = Add (c, r) t = Relu (s) p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (t)
    d = Conv (p, w3, b1) g = GlobalAveragePool (d) f = Flatten (g) y = Gemm <transB = 1> (f, w4) }"""
RESIDUAL_WEIGHTS = {
    "w1": (4, 3, 3, 3), "b1": (4,), "w2": (4, 4, 3, 3), "b2": (4,), "w3": (4, 4, 1, 1), "w4": (5, 4),
}  # fmt: skip


def network(text, weights):
    random = np.random.default_rng(0)
    return model_from_text(text, {n: random.standard_normal(s).astype(np.float32) for n, s in weights.items()})


def layers_on(model, outputs=("*",)):
    return tuple(layer for layer in model.layers() if outputs == ("*",) or layer.output in outputs)


def quantize(model, **settings):
    feeds = random_feeds(model)
    technique = Quantize(**settings)
    layers = model.layers()
    return technique.apply(model, Context(layers, collect(model, [feeds], technique.requests(model, layers))))


def coded(model):
    """Names of the tensors that a QuantizeLinear reads."""
    return {str(node.inputs[0].name) for node in model.graph if node.op_type == "QuantizeLinear"}


def readers(model, tensor):
    """Operators that read the dequantized codes of a tensor."""
    (real,) = (value for node in model.graph for value in node.outputs if value.name == f"{tensor}.dequantized")
    return sorted(use.node.op_type for use in real.uses())


def test_a_residual_network_is_in_codes_from_end_to_end():
    model = network(RESIDUAL, RESIDUAL_WEIGHTS)
    placement = place(model, model.layers(), products=False, outputs=True)
    assert set(placement.readers) == {"x", "r", "c", "t", "p", "d", "g", "f"}, "Relu is absorbed, the logits stay"
    assert placement.everywhere == {"r", "c", "t", "p", "d", "g", "f"}
    assert placement.shares == {"p": "t", "f": "g"}, "what is only moved keeps its scale"
    result = quantize(model)
    assert readers(result, "r") == ["Add", "Conv"]
    assert {str(node.inputs[1].name) for node in result.graph if node.op_type == "QuantizeLinear"} == {
        f"{tensor}.scale" for tensor in ("x", "r", "c", "t", "d", "g")
    }, "one scale for what is only moved"


def test_without_outputs_only_what_nodes_read():
    placement = place(network(RESIDUAL, RESIDUAL_WEIGHTS), network(RESIDUAL, RESIDUAL_WEIGHTS).layers(),
                      products=False, outputs=False)  # fmt: skip
    assert set(placement.readers) == {"x", "r", "c", "t", "d", "g"}, "no second pair behind what only moves"
    assert not placement.everywhere
    assert placement.shares == {"p": "t", "f": "g"}


def test_a_layer_at_the_end_quantizes_no_output_that_nobody_reads():
    model = network("net (float[n, 4] x) => (float[n, 4] y) { a = MatMul (x, w) r = Relu (a) y = MatMul (r, v) }",
                    {"w": (4, 4), "v": (4, 4)})  # fmt: skip
    assert set(place(model, model.layers(), products=False, outputs=True).readers) == {"x", "r"}


def test_nothing_is_quantized_behind_the_last_layer_in_codes():
    model = network("""net (float[n, 3, 6, 6] x) => (float[n, 4] y) { a = Conv (x, w) r = Relu (a)
        p = MaxPool <kernel_shape = [2, 2]> (r) s = Add (p, p) g = GlobalAveragePool (s) f = Flatten (g)
        y = Softmax (f) }""", {"w": (4, 3, 3, 3)})  # fmt: skip
    placement = place(model, model.layers(), products=False, outputs=True)
    assert set(placement.readers) == {"x", "r"}
    assert len(placement.nodes) == 1


def test_an_activation_with_two_readers_splits():
    """SiLU: Sigmoid and Mul read what the convolution gives; they compute in float on its codes."""
    model = network("""net (float[n, 3, 6, 6] x) => (float[n, 2, 2, 2] y) { a = Conv (x, w) s = Sigmoid (a)
        m = Mul (a, s) y = Conv (m, v) }""", {"w": (4, 3, 3, 3), "v": (2, 4, 3, 3)})  # fmt: skip
    placement = place(model, model.layers(), products=False, outputs=True)
    assert set(placement.readers) == {"x", "a", "m", "y"}
    assert placement.readers["a"] == ()
    assert readers(quantize(model), "a") == ["Mul", "Sigmoid"]


def test_joined_branches():
    model = network("""net (float[n, 3, 6, 6] x) => (float[n, 2, 4, 4] y) { a = Conv (x, w) b = Conv (x, v)
        c = Concat <axis = 1> (a, b) r = Relu (c) y = Conv (r, u) }""",
                    {"w": (2, 3, 3, 3), "v": (3, 3, 3, 3), "u": (2, 5, 1, 1)})  # fmt: skip
    placement = place(model, model.layers(), products=False, outputs=True)
    assert set(placement.readers) == {"x", "a", "b", "r", "y"}
    assert len(placement.nodes) == 4


@pytest.mark.parametrize("operator", ["Add (a, k)", "Concat <axis = 1> (a, k)"])
def test_a_constant_operand_ends_the_run(operator):
    model = network(f"""net (float[1, 2, 4, 4] x) => (float[1, 2, 4, 4] y) {{ a = Conv (x, w)
        c = {operator} y = Conv (c, v) }}""",
                    {"w": (2, 2, 1, 1), "k": (1, 2, 4, 4), "v": (2, 4 if "Con" in operator else 2, 1, 1)})  # fmt: skip
    placement = place(model, model.layers(), products=False, outputs=True)
    assert {node for node in placement.nodes if node.startswith(("Add", "Concat"))} == set()
    assert set(placement.readers) == {"x", "a", "c", "y"}


def test_only_the_chosen_layers():
    model = network(RESIDUAL, RESIDUAL_WEIGHTS)
    placement = place(model, layers_on(model, ("c",)), products=False, outputs=True)
    assert set(placement.readers) == {"r", "c"}
    assert len(placement.readers["r"]) == 1, "the addition reads the float tensor"


def test_products_of_two_activations():
    model = attention_network()
    without = place(model, model.layers(), products=False, outputs=True)
    assert set(without.readers) == {"n", "o"}, "one pair for query, key and value; none for what softmax reads"
    with_products = place(model, model.layers(), products=True, outputs=True)
    assert set(with_products.readers) == {"n", "q", "k", "t", "v", "p", "o"}
    assert with_products.shares == {"t": "k"}
    assert with_products.operands == {"q", "k", "p", "v"}, "by the tensors that have the scales"
    assert "s" not in with_products.readers, "the scores go to softmax in float"


def test_a_graph_output_from_a_layer_in_codes_keeps_its_name():
    model = network("net (float[n, 3, 6, 6] x) => (float[n, 4, 4, 4] y) { a = Conv (x, w) y = Relu (a) }",
                    {"w": (4, 3, 3, 3)})  # fmt: skip
    result = quantize(model)
    assert result.outputs == model.outputs
    (output,) = result.graph.outputs
    assert output.producer().op_type == "DequantizeLinear"
    assert coded(result) == {"x", "y.float"}


def test_an_output_in_the_middle_is_not_absorbed():
    model = network("""net (float[n, 3, 6, 6] x) => (float[n, 4, 4, 4] a, float[n, 2, 4, 4] y) { a = Conv (x, w)
        r = Relu (a) y = Conv (r, v) }""", {"w": (4, 3, 3, 3), "v": (2, 4, 1, 1)})  # fmt: skip
    assert set(place(model, model.layers(), products=False, outputs=True).readers) == {"x", "a", "r", "y"}


def test_bodies_of_control_flow_are_not_looked_into():
    model = network("""net (float[n, 3, 6, 6] x, bool flag) => (float[n, 4, 4, 4] y) { a = Conv (x, w)
        y = If (flag) <then_branch = yes () => (float[n, 4, 4, 4] p) { p = Relu (a) },
        else_branch = no () => (float[n, 4, 4, 4] q) { q = Relu (a) }> }""", {"w": (4, 3, 3, 3)})  # fmt: skip
    assert set(place(model, model.layers(), products=False, outputs=True).readers) == {"x", "a"}
