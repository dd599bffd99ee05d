"""Pruning takes out what matters least, with all that lives and dies with it, and says what stays."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from alula.errors import RecipeError
from alula.graph.channels import coupling_named, find_couplings
from alula.graph.cost import measure_cost
from alula.graph.export import export_module
from alula.graph.running import Runner
from alula.recipe import Recipe, Step, apply_recipe
from alula.techniques.prune import Prune
from tests.graph.architectures import ARCHITECTURES

CRITERIA = ("l1", "l2", "batch-norm scale", "geometric median", "random")


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    module, example = ARCHITECTURES["resnet"]()
    return export_module(module.eval(), example)


def pruned(model, **settings):
    return apply_recipe(model, Recipe((Step(Prune(**settings)),)))


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("scope", ["uniform", "global"])
def test_half_of_all_channels_go(model, criterion, scope):
    smaller = pruned(model, amount=0.5, criterion=criterion, scope=scope)
    before, after = (sum(one.size for one in find_couplings(graph)) for graph in (model, smaller))
    assert 0.4 * before <= after <= 0.6 * before
    assert measure_cost(smaller).macs < 0.5 * measure_cost(model).macs
    x = np.random.default_rng(0).standard_normal((2, 3, 16, 16)).astype(np.float32)
    outputs = Runner(smaller)({model.inputs[0].name: x})
    assert [array.shape for array in outputs.values()] == [(2, 5)]


def test_the_least_go_first(model):
    coupling = find_couplings(model)[0]
    producer = next(member for member in coupling.members if member.produces)
    graph = model.edit()
    value = graph.graph.initializers[producer.initializer]
    array = value.const_value.numpy().copy()
    array[1] = 0
    for member in coupling.members:
        if member.produces:
            tensor = graph.graph.initializers[member.initializer]
            changed = tensor.const_value.numpy().copy()
            np.moveaxis(changed, member.axis, 0)[member.indices[1]] = 0
            tensor.const_value = type(tensor.const_value)(changed, name=tensor.name)
    marked = model.edited(graph)
    smaller = pruned(marked, amount=1.5 / coupling.size, scope="uniform", criterion="l2")
    wanted = np.delete(marked.weight(producer.initializer), producer.indices[1], producer.axis)
    np.testing.assert_array_equal(smaller.weight(producer.initializer), wanted)


def test_nothing_taken_out_is_the_same_graph(model):
    assert pruned(model, amount=0.0).fingerprint == model.fingerprint


def test_same_seed_same_bytes_and_other_seeds_others(model):
    first, again, other = (pruned(model, amount=0.5, criterion="random", seed=seed) for seed in (0, 0, 1))
    assert first.to_bytes() == again.to_bytes() != other.to_bytes()


def test_more_never_weighs_more(model):
    sizes = [pruned(model, amount=amount).weight_bytes for amount in (0, 0.1, 0.25, 0.5, 0.75, 0.9)]
    assert sizes == sorted(sizes, reverse=True)


def test_widths_are_rounded_up_and_some_units_stay(model):
    smaller = pruned(model, amount=0.6, scope="uniform", multiple=4)
    assert all(one.size % 4 == 0 for one in find_couplings(smaller))
    smaller = pruned(model, amount=0.95, scope="uniform", least=0.5)
    for one in find_couplings(smaller):
        assert one.size >= coupling_named(find_couplings(model), one.name).size / 2


def test_layers_that_keep_their_channels_are_named(model):
    assert any("head: keeps its channels" in str(note) for note in pruned(model, amount=0.5).notes)


def test_only_chosen_layers_lose(model):
    name = find_couplings(model)[-1].name
    smaller = apply_recipe(model, Recipe((Step(Prune(0.5, scope="uniform"), (name,)),)))
    sizes = {one.name: one.size for one in find_couplings(smaller)}
    for one in find_couplings(model):
        assert (sizes[one.name] < one.size) == (one.name == name)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"amount": 1.0}, "below 1"),
        ({"amount": -0.1}, "at least 0"),
        ({"amount": 0.5, "least": 2}, "between 0 and 1"),
        ({"amount": 0.5, "multiple": 0}, "at least 1"),
        ({"amount": 0.5, "criterion": "luck"}, "must be one of"),
    ],
)
def test_nonsense_is_refused(settings, message):
    with pytest.raises(RecipeError, match=message):
        Prune(**settings)


def test_a_graph_without_units_that_can_go_is_refused(model):
    with pytest.raises(RecipeError, match="none of the 1 layers computes"):
        apply_recipe(model, Recipe((Step(Prune(0.5), ("head",)),)))
