"""Each criterion against its textbook definition on a network that can be worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from alula.errors import ModelError, RecipeError
from alula.graph.channels import find_couplings
from alula.graph.statistics import GradientRequest, Statistics, collect
from alula.numerics.brain_surgeon import damped
from alula.numerics.importance import magnitude
from alula.recipe import Recipe, Step, apply_recipe
from alula.techniques import Prune
from alula.techniques.criteria import CRITERIA, criterion_named, importances
from alula.testing.models import convolution_network, dense_network, model_from_text, random_feeds

TEXT = """net (float[n, 4] x) => (float[n, 3] y) {
    a = Gemm <transB = 1> (x, w, b) c = Relu (a) y = Gemm <transB = 1> (c, v)
}"""


@pytest.fixture(scope="module")
def model():
    random = np.random.default_rng(0)
    weights = {"w": random.standard_normal((6, 4)), "b": random.standard_normal(6), "v": random.standard_normal((3, 6))}
    return model_from_text(TEXT, {name: array.astype(np.float32) for name, array in weights.items()})


@pytest.fixture(scope="module")
def batches(model):
    return [random_feeds(model, batch=20, seed=seed) for seed in range(3)]


def found(model, batches, name, **settings):
    criterion, couplings = criterion_named(name, **settings), find_couplings(model)
    statistics = collect(model, batches, criterion.requests(model, couplings))
    return importances(model, couplings, criterion, statistics)


def hidden(model, batches):
    x = np.concatenate([feeds["x"] for feeds in batches]).astype(np.float64)
    return np.maximum(x @ model.weight("w").T.astype(np.float64) + model.weight("b"), 0)


def test_zeros_is_one_minus_the_average_percentage_of_zeros(model, batches):
    (result,) = found(model, batches, "zeros")
    np.testing.assert_allclose(result, 1 - (hidden(model, batches) == 0).mean(0), rtol=1e-6)


def test_activation_is_the_mean_size_behind_the_relu(model, batches):
    (result,) = found(model, batches, "activation")
    np.testing.assert_allclose(result, hidden(model, batches).mean(0), rtol=1e-5)


@pytest.mark.parametrize(("name", "p"), [("l1", 1), ("l2", 2)])
def test_magnitudes(model, batches, name, p):
    (result,) = found(model, batches, name)
    np.testing.assert_allclose(result, np.linalg.norm(model.weight("w"), ord=p, axis=1), rtol=1e-6)


def test_geometric_median(model, batches):
    (result,) = found(model, batches, "geometric median")
    w = model.weight("w")
    np.testing.assert_allclose(result, [sum(np.linalg.norm(one - other) for other in w) for one in w], rtol=1e-5)


def test_batch_norm_scale_and_what_it_cannot_tell(model, batches):
    network = convolution_network()
    results = found(network, [random_feeds(network)], "batch-norm scale")
    np.testing.assert_allclose(results[0], np.abs(network.weight("stem_scale")), rtol=1e-6)
    (result,) = found(model, batches, "batch-norm scale")
    np.testing.assert_allclose(result, magnitude(model.weight("w")), rtol=1e-6)


def test_gradients_are_those_of_the_statistics(model, batches):
    (first,), (second,) = (found(model, batches, name) for name in ("taylor", "fisher"))
    (coupling,) = find_couplings(model)
    seen = collect(model, batches, [GradientRequest()]).sensitivities(coupling.name)
    np.testing.assert_array_equal(first, seen.first_order)
    np.testing.assert_array_equal(second, seen.second_order)
    assert not np.allclose(first, second)


def test_the_first_that_the_brain_surgeon_takes_is_the_one_that_least_squares_misses_least(model, batches):
    (result,) = found(model, batches, "brain surgeon", damping=0.0)
    h, v = hidden(model, batches), model.weight("v").astype(np.float64)
    errors = []
    for unit in range(6):
        rest = np.delete(h, unit, 1)
        fitted = np.linalg.lstsq(rest, h @ v.T, rcond=None)[0]
        errors.append(((rest @ fitted - h @ v.T) ** 2).sum(1).mean())
    assert np.argmin(result) == np.argmin(errors)
    np.testing.assert_allclose(result.min(), min(errors), rtol=1e-4)


def test_the_brain_surgeon_adds_up_over_all_readers():
    text = TEXT.replace("(float[n, 3] y)", "(float[n, 3] y, float[n, 3] z)").replace(
        "(c, v)", "(c, v) z = Gemm <transB = 1> (c, u)"
    )
    random = np.random.default_rng(0)
    shapes = {"w": (6, 4), "b": (6,), "v": (3, 6), "u": (3, 6)}
    weights = {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    model = model_from_text(text, weights)
    batches = [random_feeds(model, batch=30)]
    h = hidden(model, batches)
    inverse = np.linalg.inv(damped(h.T @ h / len(h)))
    once = (np.concatenate([weights["v"], weights["u"]]).astype(np.float64) ** 2).sum(0) / np.diag(inverse)
    (result,) = found(model, batches, "brain surgeon")
    assert np.argmin(result) == np.argmin(once)
    np.testing.assert_allclose(result.min(), once.min(), rtol=1e-4)


def test_random_is_the_seed(model, batches):
    first, again, other = (found(model, batches, "random", seed=seed)[0] for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("name", CRITERIA)
@pytest.mark.parametrize("build", [convolution_network, dense_network])
def test_every_criterion_tells_every_unit_and_no_sign_matters(build, name):
    model = build()
    couplings = find_couplings(model)
    for coupling, importance in zip(couplings, found(model, [random_feeds(model, batch=4)], name), strict=True):
        assert importance.shape == (coupling.size,)
        assert np.isfinite(importance).all()
        assert (importance >= 0).all()
        assert importance.max() > 0


@pytest.mark.parametrize("name", ["taylor", "fisher", "zeros", "activation", "brain surgeon"])
def test_statistics_that_were_not_collected_or_are_of_other_widths_are_refused(model, batches, name):
    criterion, couplings = criterion_named(name), find_couplings(model)
    with pytest.raises(ModelError, match="collected"):
        importances(model, couplings, criterion, Statistics())
    statistics = collect(model, batches, criterion.requests(model, couplings))
    smaller = apply_recipe(model, Recipe((Step(Prune(0.5, scope="uniform")),)))
    with pytest.raises(ModelError, match="of 6 values, the graph has 3 now"):
        importances(smaller, find_couplings(smaller), criterion, statistics)


def test_an_unknown_criterion_is_refused():
    with pytest.raises(RecipeError, match="must be one of l1"):
        criterion_named("luck")
