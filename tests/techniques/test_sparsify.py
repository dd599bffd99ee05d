"""Zeros where they belong: counts, patterns, criteria, scopes, and what is left as it is."""

from __future__ import annotations

import numpy as np
import pytest

from alula.errors import AlulaError, ModelError, RecipeError
from alula.graph.matrices import weight_matrix
from alula.graph.statistics import MomentRequest, Statistics, collect
from alula.techniques import Context
from alula.techniques.sparsify import Sparsify
from alula.testing.conformance import USUAL, TechniqueConformance, attempt, known_run, with_weight
from alula.testing.models import convolution_network, dense_network, model_from_text, recurrent_network
from tests.oracles.sparsity import group_mask, wanda_mask


class TestMagnitude(TechniqueConformance):
    tolerance = 10.0  # what a network loses that nothing heals, random as these are

    @pytest.fixture
    def technique(self):
        return Sparsify(0.5)


class TestWanda(TechniqueConformance):
    tolerance = 10.0

    @pytest.fixture
    def technique(self):
        return Sparsify(0.6, "wanda", scope="erk")


class TestSparseGpt(TechniqueConformance):
    tolerance = 10.0

    @pytest.fixture
    def technique(self):
        return Sparsify(criterion="sparsegpt", pattern="2:4")


CRITERIA = pytest.mark.parametrize("criterion", ["magnitude", "wanda", "sparsegpt", "random"])


def sparse(network, **settings):
    """A usual network with zeros, calibrated on what it is known to run on."""
    result = attempt(Sparsify(**settings), USUAL[network](), known_run(network)[0])
    assert not isinstance(result, AlulaError), result
    return result


def zeros(model):
    """The share of zeros of each weight of a layer."""
    found = {}
    for layer in model.layers():
        found |= {name: float((model.weight(name) == 0).mean()) for name in layer.weights}
    return found


@CRITERIA
@pytest.mark.parametrize("network", USUAL)
@pytest.mark.parametrize("amount", [0.25, 0.5, 0.75])
def test_as_many_as_asked_for(network, criterion, amount):
    model = USUAL[network]()
    for name, share in zeros(sparse(network, amount=amount, criterion=criterion)).items():
        size = model.weight(name).size
        apart = {"wanda": max(model.weight(name).shape), "sparsegpt": 8 if name == "depthwise_weight" else 1}
        slack = apart.get(criterion, 1)  # each row, and each group, rounds down
        assert amount * size - slack <= share * size <= amount * size + 1e-6, name


@CRITERIA
@pytest.mark.parametrize("network", USUAL)
def test_no_zeros_is_the_same_graph(network, criterion):
    assert sparse(network, amount=0.0, criterion=criterion).fingerprint == USUAL[network]().fingerprint


@pytest.mark.parametrize("criterion", ["magnitude", "wanda", "random"])
def test_what_stays_is_as_it_was(criterion):
    before, after = convolution_network(), sparse("convolution network", amount=0.5, criterion=criterion)
    for layer in before.layers():
        old, new = before.weight(layer.weight), after.weight(layer.weight)
        assert ((new == old) | (new == 0)).all()


def test_magnitude_takes_the_smallest():
    before, after = dense_network(), sparse("dense network", amount=0.3)
    for layer in before.layers():
        old, new = np.abs(before.weight(layer.weight)), after.weight(layer.weight)
        assert old[new == 0].max() < old[new != 0].min()


@pytest.mark.parametrize("network", ["convolution network", "dense network", "attention network"])
def test_wanda_as_in_the_paper(network):
    model, (feeds, _) = USUAL[network](), known_run(network)
    after = sparse(network, amount=0.4, criterion="wanda")
    layers = model.layers()
    seen = collect(model, [feeds], [MomentRequest(layer.name) for layer in layers])
    for layer in layers:
        for group, norms in zip(
            range(layer.groups),
            np.sqrt(np.diagonal(seen.moments(layer.name).matrix, axis1=1, axis2=2)),
            strict=True,
        ):
            old = weight_matrix(model.weight(layer.weight), layer)[group]
            new = weight_matrix(after.weight(layer.weight), layer)[group]
            np.testing.assert_array_equal(new == 0, wanda_mask(old, norms, 0.4))


@pytest.mark.parametrize("criterion", ["magnitude", "wanda", "sparsegpt", "random"])
@pytest.mark.parametrize("network", USUAL)
@pytest.mark.parametrize("pattern", ["2:4", "1:4", "3:5"])
def test_patterns_lie_along_the_inputs(network, criterion, pattern):
    after = sparse(network, criterion=criterion, pattern=pattern)
    kept, group = map(int, pattern.split(":"))
    for layer in after.layers():
        for name in layer.weights:
            weight = after.weight(name)
            axis = layer.input_axes[0] if layer.input_axes else 1
            rows = np.moveaxis(weight, axis, -1).reshape(-1, weight.shape[axis])
            for row in rows:
                for start in range(0, len(row), group):
                    count = np.count_nonzero(row[start : start + group])
                    assert count == min(kept, len(row[start : start + group])), (name, count)


def test_a_pattern_by_magnitude_as_in_the_paper():
    model, after = dense_network(), sparse("dense network", pattern="2:4")
    for name, axis in (("hidden_weight", 0), ("output_weight", 1)):
        old, new = np.moveaxis(model.weight(name), axis, -1), np.moveaxis(after.weight(name), axis, -1)
        np.testing.assert_array_equal(new == 0, [group_mask(np.abs(row), 2, 4) for row in old])


def test_the_rest_of_a_pattern_is_said():
    notes = " / ".join(map(str, sparse("convolution network", pattern="2:4").notes))
    assert "stem_weight: 3 inputs are no multiple of 4; of the last 3, 2 stay" in notes
    assert "depthwise_weight: 1 inputs are no multiple of 4; of the last 1, 1 stay" in notes


def test_compensation_beats_none():
    """On the outputs that calibration saw: SparseGPT errs less than magnitude, and than its own mask alone."""
    model, (feeds, _) = dense_network(), known_run("dense network")
    random = np.random.default_rng(3)
    mixed = random.standard_normal((400, 4)) @ random.standard_normal((4, 16)) + 0.1 * random.standard_normal((400, 16))
    feeds = {"features": mixed.astype(np.float32)}
    layer = model.layers()[0]
    errors = {}
    for criterion in ("magnitude", "sparsegpt"):
        technique = Sparsify(0.5, criterion)
        statistics = collect(model, [feeds], technique.requests(model, (layer,)))
        after = technique.apply(model, Context((layer,), statistics)).weight(layer.weight)
        errors[criterion] = np.linalg.norm(mixed @ (after - model.weight(layer.weight)))
        bare = np.where(after == 0, 0, model.weight(layer.weight))
        errors[f"{criterion}, mask alone"] = np.linalg.norm(mixed @ (bare - model.weight(layer.weight)))
    assert errors["sparsegpt"] < 0.5 * errors["magnitude"], errors
    assert errors["sparsegpt"] < 0.5 * errors["sparsegpt, mask alone"], errors


@CRITERIA
@pytest.mark.parametrize("pattern", [None, "1:4"])
def test_zeros_count_and_stay(criterion, pattern):
    """Half are zero: asked for a quarter, no more go; asked for more, they are among those."""
    model = dense_network()
    half = np.random.default_rng(7).random((16, 32)) < 0.5
    model = with_weight(model, "hidden_weight", lambda weight: np.where(half, 0, weight))
    feeds, _ = known_run("dense network")
    amount = None if pattern else 0.25
    again = attempt(Sparsify(amount, criterion, pattern), model, feeds)
    assert (again.weight("hidden_weight")[half] == 0).all()
    if pattern is None:
        if criterion != "wanda":  # compares within rows
            np.testing.assert_array_equal(again.weight("hidden_weight") == 0, half)
        more = attempt(Sparsify(0.75, criterion), model, feeds)
        assert (more.weight("hidden_weight")[half] == 0).all()
        assert (more.weight("hidden_weight") == 0).sum() == 0.75 * half.size


def test_scopes_differ_in_where_not_in_how_many():
    model = with_weight(dense_network(), "output_weight", lambda weight: 10 * weight)
    for scope in ("uniform", "global", "erk"):
        after = Sparsify(0.5, scope=scope).apply(model, Context(model.layers()))
        share = zeros(after)
        total = share["hidden_weight"] * 512 + share["output_weight"] * 128
        assert abs(total - 320) <= 2, scope
        if scope == "global":
            assert share["hidden_weight"] > 0.6 > 0.1 > share["output_weight"]
            kept = [np.abs(model.weight(name))[after.weight(name) != 0].min() for name in share]
            gone = [np.abs(model.weight(name))[after.weight(name) == 0].max(initial=0) for name in share]
            assert max(gone) < min(kept)
        if scope == "erk":
            assert share["hidden_weight"] > share["output_weight"]


def test_states_and_tables_by_magnitude():
    notes = " / ".join(map(str, sparse("recurrent network", amount=0.5, criterion="wanda").notes))
    assert "state_weight: by magnitude, not wanda" in notes
    assert "input_weight: by magnitude, not wanda" in notes
    notes = " / ".join(map(str, sparse("embedding network", amount=0.5, criterion="sparsegpt").notes))
    assert "table: by magnitude, not sparsegpt" in notes
    assert "output_weight: by magnitude" not in notes
    assert set(zeros(sparse("recurrent network", amount=0.5)).values()) == {0.5}


def test_it_says_that_zeros_save_no_time():
    assert "save no time" in str(sparse("dense network", amount=0.5).notes[-1])


def test_a_weight_that_others_read_stays():
    text = "net (float[n, 8] x) => (float[n, 8] y) { a = MatMul (x, w) y = MatMul (a, w) }"
    model = model_from_text(text, {"w": np.random.default_rng(0).standard_normal((8, 8)).astype(np.float32)})
    first, _ = model.layers()
    alone = Sparsify(0.5).apply(model, Context((first,)))
    assert alone.to_bytes() == model.to_bytes()
    assert "shared with" in str(alone.notes[0])
    both = Sparsify(0.5).apply(model, Context(model.layers()))
    assert (both.weight("w") == 0).mean() == 0.5


def test_all_weights_of_a_recurrent_layer_become_sparse():
    after = sparse("recurrent network", amount=0.5)
    for name in ("input_weight", "output_weight", "state_weight"):
        assert (after.weight(name) == 0).mean() == pytest.approx(0.5, abs=0.05)


def test_same_seed_same_bytes_and_other_seeds_others():
    first, again, other = (sparse("dense network", amount=0.5, criterion="random", seed=seed) for seed in (0, 0, 1))
    assert first.to_bytes() == again.to_bytes() != other.to_bytes()


def test_moments_that_were_not_collected_are_missed_by_name():
    model = dense_network()
    with pytest.raises(ModelError, match="layer 'MatMul_0'"):
        Sparsify(0.5, "wanda").apply(model, Context(model.layers(), Statistics()))


@pytest.mark.parametrize("build", [convolution_network, recurrent_network], ids=lambda build: build.__name__)
def test_weights_that_are_not_finite_are_refused_by_layer(build):
    model = build()
    layer = model.layers()[0]
    broken = with_weight(model, layer.weights[-1], lambda weight: np.where(weight == weight.flat[3], np.nan, weight))
    with pytest.raises(ModelError, match=layer.name):
        Sparsify(0.5).apply(broken, Context(broken.layers()))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "either an amount or a pattern"),
        ({"amount": 0.5, "pattern": "2:4"}, "either an amount or a pattern"),
        ({"amount": 1.0}, "below 1"),
        ({"amount": -0.1}, "at least 0"),
        ({"amount": float("nan")}, "at least 0"),
        ({"amount": 0.5, "criterion": "luck"}, "criterion must be 'magnitude'"),
        ({"amount": 0.5, "scope": "all"}, "scope must be 'uniform', 'global' or 'erk'"),
        ({"pattern": "4:4"}, "n:m"),
        ({"pattern": "0:4"}, "n:m"),
        ({"pattern": "half"}, "n:m"),
        ({"pattern": "2:4", "scope": "erk"}, "uniform"),
        ({"amount": 0.5, "damping": -1.0}, "damping"),
    ],
)
def test_nonsense_is_refused(settings, message):
    with pytest.raises(RecipeError, match=message):
        Sparsify(**settings)
