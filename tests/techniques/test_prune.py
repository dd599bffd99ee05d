"""Pruning takes out what matters least, with all that lives and dies with it, and says what stays."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from alula.errors import RecipeError
from alula.graph.channels import find_couplings
from alula.graph.cost import measure_cost
from alula.graph.export import export_module
from alula.graph.naming import called
from alula.graph.running import Runner
from alula.graph.statistics import collect
from alula.recipe import Recipe, Step, apply_recipe, requests_of
from alula.techniques.criteria import CRITERIA
from alula.techniques.prune import Prune
from alula.testing.models import dense_network, random_feeds
from tests.graph.architectures import ARCHITECTURES


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    module, example = ARCHITECTURES["resnet"]()
    return export_module(module.eval(), example)


def pruned(model, **settings):
    recipe = Recipe((Step(Prune(**settings)),))
    return apply_recipe(model, recipe, collect(model, [random_feeds(model, batch=8)], requests_of(recipe, model)))


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
        assert one.size >= called(find_couplings(model), one.name, "units").size / 2


def test_layers_that_keep_their_channels_are_named(model):
    assert any("head: keeps its channels" in str(note) for note in pruned(model, amount=0.5).notes)


def test_only_chosen_layers_lose(model):
    name = next(one.name for one in find_couplings(model) if sum(member.produces for member in one.members) == 1)
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
        ({"amount": 0.5, "criterion": "luck"}, "criterion must be 'l1'"),
        ({"amount": 0.5, "scope": "here"}, "scope must be 'uniform' or 'global'"),
        ({"amount": 0.5, "damping": -1}, "damping must be at least 0"),
    ],
)
def test_nonsense_is_refused(settings, message):
    with pytest.raises(RecipeError, match=message):
        Prune(**settings)


def test_a_graph_without_units_that_can_go_is_refused(model):
    with pytest.raises(RecipeError, match="none of the 1 layers computes"):
        apply_recipe(model, Recipe((Step(Prune(0.5), ("head",)),)))


def test_where_a_criterion_cannot_tell_a_note_says_so():
    notes = pruned(dense_network(), amount=0.5, criterion="batch-norm scale").notes
    assert any("compared by l2: batch-norm scale tells nothing" in str(note) for note in notes)


def test_criteria_of_weights_need_no_data(model):
    layers = model.layers()
    for criterion in ("l1", "l2", "batch-norm scale", "geometric median", "random"):
        assert Prune(0.5, criterion=criterion).requests(model, layers) == frozenset()
    assert Prune(0.5, compensate=True).requests(model, layers)


@pytest.mark.parametrize("criterion", ["l2", "random", "zeros"])
def test_layers_that_make_up_for_what_went_err_less(criterion):
    network = dense_network()
    feeds = random_feeds(network, batch=8)
    expected = Runner(network)(feeds)["scores"]
    plain, better = (
        Runner(pruned(network, amount=0.25, criterion=criterion, compensate=way, damping=0.0))(feeds)["scores"]
        for way in (False, True)
    )
    assert np.linalg.norm(better - expected) < 0.5 * np.linalg.norm(plain - expected)


def test_the_brain_surgeon_makes_up_for_what_it_takes_without_being_asked():
    network = dense_network()
    first, second = (pruned(network, amount=0.5, criterion="brain surgeon", compensate=way) for way in (False, True))
    assert first.to_bytes() == second.to_bytes()


def test_the_brain_surgeon_errs_less_than_any_other_choice_of_units():
    network = dense_network()
    feeds = random_feeds(network, batch=64)
    recipes = {one: Recipe((Step(Prune(0.5, one, compensate=True, damping=1e-6)),)) for one in CRITERIA}
    expected = Runner(network)(feeds)["scores"]
    errors = {}
    for criterion, recipe in recipes.items():
        smaller = apply_recipe(network, recipe, collect(network, [feeds], requests_of(recipe, network)))
        errors[criterion] = float(np.linalg.norm(Runner(smaller)(feeds)["scores"] - expected))
    assert min(errors, key=errors.__getitem__) == "brain surgeon", errors


@pytest.mark.parametrize(
    "technique",
    [Prune(0.5), Prune(0.25, "brain surgeon", "uniform", damping=0.1), Prune(0.5, "taylor", compensate=True)],
)
def test_settings_survive_json(technique):
    recipe = Recipe((Step(technique),))
    assert Recipe.from_json(recipe.to_json()) == recipe
