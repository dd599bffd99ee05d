"""Layers quantized one after another see what those before them give by then."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import alula
from alula.errors import AlulaError, DataError, ModelError, RecipeError
from alula.graph.cutting import cut_out
from alula.graph.export import export_module
from alula.graph.statistics import collect
from alula.recipe import Recipe, Step, apply_recipe
from alula.techniques import Context, Quantize, QuantizeWeights
from alula.testing.models import convolution_network, dense_network, model_from_text, random_feeds

GPTQ = QuantizeWeights(bits=3, rounding="gptq", smallest=1)


def rows(model, count=64, seed=0):
    (spec,) = model.inputs
    return np.random.default_rng(seed).standard_normal((count, *spec.shape[1:])).astype(np.float32)


class Branches(nn.Module):
    """Layers that read one tensor, a residual stream, a product of two activations, and a tensor read late."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.query, self.key, self.value = (nn.Linear(16, 16) for _ in range(4))
        self.out, self.last = nn.Linear(16, 16), nn.Linear(16, 5)

    def forward(self, x):
        early = torch.relu(self.first(x))
        weights = torch.softmax(self.query(early) @ self.key(early).transpose(-1, -2), -1)
        return self.last(early + self.out(weights @ self.value(early)) + x)


@pytest.fixture(scope="module")
def branches():
    torch.manual_seed(0)
    return export_module(Branches().eval(), torch.randn(2, 7, 16))


def textbook(model, technique, data):
    """One layer at a time by whole runs of the graph, anew for each tensor that layers read."""
    tensors = list(dict.fromkeys(layer.input for layer in model.layers()))
    order = {str(layer.name): layer.input for layer in model.layers()}
    for tensor in tensors:
        layers = tuple(layer for layer in model.layers() if order[layer.name] == tensor)
        seen = collect(model, [{model.inputs[0].name: data}], technique.requests(model, layers))
        model = technique.apply(model, Context(layers, seen))
    return model


@pytest.mark.parametrize(
    "technique",
    [
        GPTQ,
        replace(GPTQ, bias_correction="data"),
        replace(GPTQ, rounding="nearest", bias_correction="data"),
    ],
    ids=["gptq", "biases too", "biases alone"],
)
@pytest.mark.parametrize("make", [dense_network, convolution_network, "branches"])
def test_it_is_what_whole_runs_for_each_tensor_give(make, technique, branches):
    model = branches if make == "branches" else make()
    data = rows(model, 16) if make != "branches" else rows(model, 16)[:, :7]
    found = apply_recipe(model, Recipe((Step(technique, sequential=True),)), data)
    expected = textbook(model, technique, data)
    assert set(found.graph.initializers) == set(expected.graph.initializers)
    exact = technique.bias_correction is None  # in whole runs the runtime rounds what rounded layers read to 8 bits
    for name in expected.graph.initializers:
        one, other = (made.weight(name).astype(np.float32) for made in (found, expected))
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6 if exact else 3e-3, err_msg=name)
    feeds = random_feeds(found)
    for name, array in expected.run(feeds).items():
        np.testing.assert_allclose(found.run(feeds)[name], array, rtol=1e-4, atol=1e-5 if exact else 3e-3)


def test_graph_notes_and_names_stay(branches):
    technique = QuantizeWeights(bits=4, rounding="gptq", smallest=100)
    found = apply_recipe(branches, Recipe((Step(technique, sequential=True),)), rows(branches)[:, :7])
    assert [spec.name for spec in found.outputs] == [spec.name for spec in branches.outputs]
    assert {str(node.name) for node in branches.graph} <= {str(node.name) for node in found.graph}
    assert any("only 80 weights" in str(note) for note in found.notes)
    assert found.metadata == branches.metadata
    assert found.opset == branches.opset


def test_a_weight_that_two_layers_read_stays_one():
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.tied = nn.Linear(16, 16), nn.Parameter(torch.randn(16, 16))

        def forward(self, x):
            return self.inner(x @ self.tied).relu() @ self.tied

    torch.manual_seed(0)
    model = export_module(Tied().eval(), torch.randn(2, 16))
    found, apart = (
        apply_recipe(model, Recipe((Step(GPTQ, sequential=sequential),)), rows(model)) for sequential in (True, False)
    )
    assert set(found.graph.initializers) == set(apart.graph.initializers)


def test_the_front_door_and_its_errors(branches):
    data = rows(branches)[:, :7]
    made = alula.quantize(branches, data, technique=GPTQ, sequential=True)
    again = apply_recipe(branches, Recipe((Step(GPTQ, sequential=True),)), data)
    assert {n: made.weight(n).tobytes() for n in made.graph.initializers} == {
        n: again.weight(n).tobytes() for n in again.graph.initializers
    }
    with pytest.raises(RecipeError, match="sequential=True is for QuantizeWeights"):
        alula.quantize(branches, data, technique=Quantize(), sequential=True)
    with pytest.raises(RecipeError, match="apart from the normalisations"):
        alula.quantize(branches, data, technique=QuantizeWeights(bias_correction="normalisations"), sequential=True)
    with pytest.raises(DataError, match="needs calibration data"):
        alula.quantize(branches, technique=QuantizeWeights(), sequential=True)
    with pytest.raises(DataError, match="the calibration data themselves"):
        apply_recipe(branches, Recipe((Step(GPTQ, sequential=True),)))
    with pytest.raises(DataError, match="NaN"):
        alula.quantize(branches, data * np.nan, technique=GPTQ, sequential=True)
    with pytest.raises(AlulaError, match="0 rows"):
        alula.quantize(branches, data[:0], technique=GPTQ, sequential=True)


def test_bodies_are_refused():
    text = """
    agraph (float[batch, 4] x, bool which) => (float[batch, 4] y) {
        product = MatMul (x, weight)
        y = If (which) <then_branch = a () => (float[batch, 4] one) { one = Identity (product) },
                        else_branch = b () => (float[batch, 4] two) { two = Neg (product) }>
    }
    """
    model = model_from_text(text, {"weight": np.eye(4, dtype=np.float32)})
    feeds = {"x": np.ones((2, 4), np.float32), "which": np.array(True)}
    with pytest.raises(ModelError, match="has a body"):
        alula.quantize(model, [feeds], technique=GPTQ, sequential=True)


def test_a_walk_keeps_no_more_than_what_is_read_later(branches):
    from alula.graph.walking import Walk

    feeds = [{branches.inputs[0].name: rows(branches, 4)[:, :7]}]
    walk = Walk(branches, feeds)
    for tensor in dict.fromkeys(layer.input for layer in branches.layers()):
        whole = cut_out(branches, [spec.name for spec in branches.inputs], [tensor])
        (found,) = walk.reach(tensor)
        if tensor not in feeds[0]:
            np.testing.assert_allclose(found, whole.run(feeds[0])[tensor], rtol=1e-5, atol=1e-6)
    assert len(walk._held[0]) <= 4


def test_a_layer_that_is_called_as_its_output_is_rounded_as_under_any_other_name():
    model = dense_network()
    renamed, layers = model.edit(), {layer.name for layer in model.layers()}
    for node in renamed.graph:
        if node.name in layers and not node.outputs[0].is_graph_output():
            node.outputs[0].name = node.name
    twin, data = model.edited(renamed), rows(model)
    assert any(layer.name == layer.output for layer in twin.layers())
    made = [apply_recipe(one, Recipe((Step(GPTQ, sequential=True),)), data) for one in (model, twin)]
    feeds = {model.inputs[0].name: data}
    for first, second in zip(*(one.run(feeds).values() for one in made), strict=True):
        np.testing.assert_array_equal(first, second)
