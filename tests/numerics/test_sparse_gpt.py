"""SparseGPT against sequential optimal brain surgery with explicit inverses, and its limit cases."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alula.errors import DataError, RecipeError
from alula.numerics.sparse_gpt import inverse_factor, sparse_gpt
from alula.numerics.sparsity import least_of_rows, weigh_by_inputs
from tests.oracles.sparsity import brain_surgeon


def layer(rows, k, seed=0, examples=200, rank=None):
    """Weights, and second moments of inputs that depend on each other."""
    random = np.random.default_rng(seed)
    mixing = random.standard_normal((rank or k, k))
    inputs = random.standard_normal((examples, rank or k)) @ mixing
    return random.standard_normal((rows, k)), inputs.T @ inputs / examples


def loss(weights, changed, moments):
    """The mean squared error of the outputs."""
    error = changed - weights
    return float(np.trace(error @ moments @ error.T))


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 4), st.integers(1, 14), st.integers(0, 99), st.sampled_from([0.0, 0.3, 0.5, 0.9]),
    st.sampled_from([1, 3, 4, 128]),
)  # fmt: skip
def test_it_is_sequential_brain_surgery(rows, k, seed, amount, block):
    weights, moments = layer(rows, k, seed)
    found = sparse_gpt(weights, moments, amount, block=block)
    expected = brain_surgeon(weights, moments, amount, block=block)
    np.testing.assert_array_equal(found == 0, expected == 0)
    np.testing.assert_allclose(found, expected, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("pattern", [(2, 4), (1, 4), (3, 5)])
@pytest.mark.parametrize("run", [None, 6, 3, 1])
@pytest.mark.parametrize("block", [1, 4, 5, 128])
def test_patterns_as_well(pattern, run, block):
    weights, moments = layer(5, 18)
    found = sparse_gpt(weights, moments, pattern=pattern, run=run, block=block)
    expected = brain_surgeon(weights, moments, 0, block=block, pattern=pattern, run=run)
    np.testing.assert_array_equal(found == 0, expected == 0)
    np.testing.assert_allclose(found, expected, rtol=1e-7, atol=1e-7)


def test_updates_reach_the_blocks_behind():
    """Lazy updates in blocks give what one block gives, where the masks are the same: columns that are zero already."""
    weights, moments = layer(6, 20)
    weights[:, ::3] = 0
    one, many = (sparse_gpt(weights, moments, 0.35, block=block) for block in (20, 4))
    assert ((one == 0).mean(), (many == 0).mean()) == (0.35, 0.35)
    forced = weights * (one != 0)
    alone = [sparse_gpt(forced, moments, 0.0, block=block) for block in (1, 4, 7, 20)]
    for other in alone[1:]:
        np.testing.assert_allclose(other, alone[0], atol=1e-12)


@pytest.mark.parametrize("amount", [0.25, 0.5, 0.7])
def test_it_errs_less_than_its_mask_alone(amount):
    weights, moments = layer(16, 32, rank=8)
    changed = sparse_gpt(weights, moments, amount)
    assert (changed == 0).sum() == int(amount * weights.size)
    assert loss(weights, changed, moments) < 0.2 * loss(weights, weights * (changed != 0), moments)


def test_the_last_weights_solve_least_squares():
    """With the first columns gone from all rows, those that stay are the least-squares fit to the old outputs."""
    weights, moments = layer(3, 6)
    gone, stay = slice(0, 2), slice(2, 6)
    weights[:, gone] *= 1e-6  # the least by far, so that they go
    changed = sparse_gpt(weights, moments, 1 / 3, damping=0)
    best = weights[:, stay] + weights[:, gone] @ moments[gone, stay] @ np.linalg.inv(moments[stay, stay])
    assert (changed[:, gone] == 0).all()
    np.testing.assert_allclose(changed[:, stay], best, rtol=1e-9)


def test_nothing_removed_changes_nothing():
    weights, moments = layer(4, 9)
    np.testing.assert_array_equal(sparse_gpt(weights, moments), weights)
    np.testing.assert_array_equal(sparse_gpt(weights, moments, pattern=(3, 3)), weights)


def test_independent_inputs_make_it_wanda():
    weights, _ = layer(1, 12)
    sizes = np.linspace(0.1, 3, 12)
    changed = sparse_gpt(weights, np.diag(sizes**2), 0.5, damping=0)
    mask = least_of_rows(weigh_by_inputs(weights, sizes), 0.5)
    np.testing.assert_allclose(changed, np.where(mask, 0, weights), atol=1e-12)


def test_zeros_stay_and_count():
    weights, moments = layer(8, 16)
    zeros = np.random.default_rng(1).random(weights.shape) < 0.4
    weights[zeros] = 0
    for amount in (0.0, 0.2, 0.6):
        changed = sparse_gpt(weights, moments, amount, block=4)
        assert (changed[zeros] == 0).all()
        assert (changed == 0).sum() == max(zeros.sum(), int(amount * weights.size))


def test_inputs_never_seen_go_first_and_move_nothing():
    weights, moments = layer(4, 8)
    dead = [1, 5]
    moments[dead], moments[:, dead] = 0, 0
    changed = sparse_gpt(weights, moments, 0.25)
    assert (changed[:, dead] == 0).all()
    alive = [index for index in range(8) if index not in dead]
    np.testing.assert_allclose(changed[:, alive], weights[:, alive], atol=1e-12)


@pytest.mark.parametrize("moments", [np.zeros((6, 6)), np.ones((6, 6)), np.outer(np.arange(6), np.arange(6))])
def test_singular_moments(moments):
    weights, _ = layer(3, 6)
    changed = sparse_gpt(weights, moments, 0.5)
    assert np.isfinite(changed).all()
    assert (changed == 0).sum() == 9


def test_nothing_seen_at_all_is_by_magnitude():
    weights, _ = layer(3, 6)
    changed = sparse_gpt(weights, np.zeros((6, 6)), 0.5)
    assert np.abs(weights)[changed == 0].max() < np.abs(weights)[changed != 0].min()
    np.testing.assert_array_equal(changed[changed != 0], weights[changed != 0])


def test_factor_of_the_inverse():
    _, moments = layer(1, 7)
    factor = inverse_factor(moments, 0.05)
    inverse = np.linalg.inv(moments + 0.05 * np.trace(moments) / 7 * np.eye(7))
    np.testing.assert_allclose(factor.T @ factor, inverse, rtol=1e-8, atol=1e-10)
    np.testing.assert_array_equal(factor, np.triu(factor))


@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (0, 0)])
def test_empty_weights(shape):
    changed = sparse_gpt(np.zeros(shape), np.eye(shape[1]), 0.5)
    assert changed.shape == shape


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_bad_input_is_refused(poison):
    weights, moments = layer(2, 3)
    with pytest.raises(DataError, match="weights hold NaN"):
        sparse_gpt(np.where(weights == weights[0, 1], poison, weights), moments)
    with pytest.raises(DataError, match="second moments hold NaN"):
        sparse_gpt(weights, np.where(moments == moments[1, 1], poison, moments))
    with pytest.raises(DataError, match=r"need second moments \[k, k\]"):
        sparse_gpt(weights, moments[:2, :2])
    with pytest.raises(DataError, match="not positive definite"):
        sparse_gpt(weights, -np.eye(3) + np.diag([3, 3, 0]), damping=0)


def test_impossible_settings_are_refused():
    weights, moments = layer(2, 4)
    for wrong, message in (
        ({"amount": 1.0}, "below 1"),
        ({"block": 0}, "block must be"),
        ({"damping": -1}, "damping"),
        ({"pattern": (2, 4), "run": 3}, "divide the 4 columns"),
        ({"pattern": (5, 4)}, "5 of 4"),
    ):
        with pytest.raises(RecipeError, match=message):
            sparse_gpt(weights, moments, **wrong)
