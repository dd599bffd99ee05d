from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from alula import load_model, quantize
from alula.graph.statistics import Statistics
from alula.recipe import Recipe, Step, apply_recipe
from alula.techniques import Float16, Float32, Quantize
from alula.techniques.float32 import computes_in_float16
from alula.testing import convolution_network, dense_network, model_from_text, random_feeds, recurrent_network
from alula.testing.conformance import TechniqueConformance

HALVES = "n (float16[b, 8] x) => (float16[b, 4] y, float16[b, 8] z) { z = Relu (x) y = MatMul (z, w) }"


class TestFloat32(TechniqueConformance):
    @pytest.fixture
    def technique(self):
        return Float32()


def treat(model):
    return apply_recipe(model, Recipe((Step(Float32()),)), Statistics())


def half(model):
    return apply_recipe(model, Recipe((Step(Float16(compute=True)),)), Statistics())


def types(model):
    return {value.dtype for value in model.graph.initializers.values() if value.dtype.is_floating_point()}


@pytest.mark.parametrize("network", [convolution_network, dense_network, recurrent_network])
def test_a_network_in_float16_computes_the_same_in_float32(network):
    model = half(network())
    result = treat(model)
    assert computes_in_float16(model)
    assert not computes_in_float16(result)
    assert types(result) == {ir.DataType.FLOAT}
    feeds = random_feeds(model)
    for name, want in model.run(feeds).items():
        np.testing.assert_allclose(result.run(feeds)[name], want, rtol=0.02, atol=0.02)


def test_inputs_and_outputs_keep_their_types(tmp_path):
    weight = np.random.default_rng(0).standard_normal((8, 4)).astype(np.float16)
    model = model_from_text(HALVES, {"w": weight})
    result = load_model(treat(model).save(tmp_path / "m.onnx"))
    assert [(spec.name, spec.dtype) for spec in result.inputs] == [("x", np.float16)]
    assert [(spec.name, spec.dtype) for spec in result.outputs] == [("y", np.float16), ("z", np.float16)]
    feeds = random_feeds(model)
    for name, want in model.run(feeds).items():
        np.testing.assert_allclose(result.run(feeds)[name], want, rtol=0.01, atol=0.01)


def test_what_is_in_float32_stays_as_it_is():
    model = dense_network()
    assert treat(model) is model


def test_a_network_in_float16_is_quantized_through_the_front_door():
    model = half(convolution_network())
    data = [random_feeds(model, seed=seed) for seed in range(4)]
    result = quantize(model, data, technique=Quantize())
    assert "QuantizeLinear" in [node.op_type for node in result.graph]
    feeds = random_feeds(model, seed=9)
    for name, want in model.run(feeds).items():
        scale = np.abs(want).max()
        assert np.abs(result.run(feeds)[name] - want).max() < 0.1 * scale
