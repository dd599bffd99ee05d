"""Columns taken out with compensation: against least squares, and against trying every change."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alula.errors import DataError, RecipeError
from alula.numerics.brain_surgeon import (
    Quadratic,
    compensated,
    damped,
    harms_in_order,
    removal_harms,
    remove_columns,
)

SEEDS = st.integers(0, 2**32 - 1)


def problem(seed, rows=3, units=4, width=2, samples=40):
    """A matrix, inputs [samples, k] that depend on each other, their second moments, and columns of units, shuffled."""
    random = np.random.default_rng(seed)
    k = units * width
    x = random.standard_normal((samples, k)) @ random.standard_normal((k, k))
    matrix = random.standard_normal((rows, k))
    return matrix, x, damped(x.T @ x / samples, 0.0), random.permutation(k).reshape(units, width)


def fitted(matrix, x, columns):
    """The textbook: least squares of what the layer gave, on the inputs that are left."""
    kept = np.setdiff1d(np.arange(matrix.shape[1]), columns)
    result = np.zeros_like(matrix)
    result[:, kept] = np.linalg.lstsq(x[:, kept], x @ matrix.T, rcond=None)[0].T
    return result


def error(matrix, other, x):
    return float(((x @ (matrix - other).T) ** 2).sum(1).mean())


@settings(max_examples=30, deadline=None)
@given(SEEDS)
def test_one_unit_against_least_squares(seed):
    matrix, x, hessian, columns = problem(seed)
    inverse = np.linalg.inv(hessian)
    for unit, harm in zip(columns, removal_harms(matrix, inverse, columns), strict=True):
        best = fitted(matrix, x, unit)
        np.testing.assert_allclose(harm, error(matrix, best, x), rtol=1e-4)
        changed, left = remove_columns(matrix, inverse, unit)
        np.testing.assert_allclose(changed, best, rtol=1e-3, atol=1e-4)
        kept = np.setdiff1d(np.arange(matrix.shape[1]), unit)
        np.testing.assert_allclose(
            left[np.ix_(kept, kept)], np.linalg.inv(hessian[np.ix_(kept, kept)]), rtol=1e-4, atol=1e-6
        )
        assert not left[unit].any()
        assert not changed[:, unit].any()


@settings(max_examples=20, deadline=None)
@given(SEEDS, st.integers(0, 4))
def test_one_after_another_is_least_squares_in_one_step(seed, count):
    matrix, x, hessian, columns = problem(seed)
    changed, inverse = matrix, np.linalg.inv(hessian)
    for unit in columns[:count]:
        changed, inverse = remove_columns(changed, inverse, unit)
    at_once = compensated(matrix, hessian, columns[:count].reshape(-1))
    np.testing.assert_allclose(changed, at_once, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(at_once, fitted(matrix, x, columns[:count]), rtol=1e-3, atol=1e-4)


@settings(max_examples=20, deadline=None)
@given(SEEDS)
def test_no_other_change_errs_less(seed):
    matrix, x, hessian, columns = problem(seed)
    best = compensated(matrix, hessian, columns[0])
    random = np.random.default_rng(seed)
    for _ in range(20):
        other = best + 0.1 * random.standard_normal(best.shape)
        other[:, columns[0]] = 0
        assert error(matrix, best, x) <= error(matrix, other, x)


@settings(max_examples=20, deadline=None)
@given(SEEDS)
def test_the_order_against_a_search_that_refits_each_time(seed):
    first, second = problem(seed), problem(seed + 1)
    layers = [Quadratic(matrix, hessian, columns) for matrix, _, hessian, columns in (first, second)]
    left, order, harms, before = list(range(4)), [], [], 0.0
    while left:
        totals = [
            sum(error(m, fitted(m, x, columns[[*order, unit]]), x) for m, x, _, columns in (first, second))
            for unit in left
        ]
        best = int(np.argmin(totals))
        harms.append(max([totals[best] - before, *harms]))
        before = totals[best]
        order.append(left.pop(best))
    result = harms_in_order(layers)
    assert np.argsort(result, kind="stable").tolist() == order
    np.testing.assert_allclose(result[order], harms, rtol=1e-3)


def test_a_unit_that_another_can_replace_goes_though_its_weights_are_the_largest():
    x = np.random.default_rng(0).standard_normal((200, 3))
    x[:, 2] = x[:, 0]
    columns = np.arange(3)[:, None]
    matrix = np.array([[2.0, 1.0, 3.0]])
    order = np.argsort(harms_in_order([Quadratic(matrix, damped(x.T @ x / 200), columns)]))
    assert order.tolist()[1:] == [1, 2] or order.tolist()[1:] == [1, 0], "what is left of the two goes last"
    changed = compensated(matrix, damped(x.T @ x / 200, 0.0), np.array([2]))
    np.testing.assert_allclose(changed, [[5.0, 1.0, 0.0]], rtol=1e-5)


def test_a_unit_that_is_nothing_once_another_went_counts_for_no_less_than_that_one():
    hessian = np.array([[1.0, 0.9, 0.0], [0.9, 1.0, 0.0], [0.0, 0.0, 1.0]])
    matrix = np.array([[1.0, -1.1, 0.3]])  # the first gone, the second is -0.2: 0.04 of error, after 0.19
    order = harms_in_order([Quadratic(matrix, hessian, np.arange(3)[:, None])])
    np.testing.assert_allclose(order, [0.19, 0.19, 0.09], rtol=1e-12)
    assert np.argsort(order).tolist() == [2, 0, 1]


def test_equal_harms_go_in_one_order():
    result = harms_in_order([Quadratic(np.ones((1, 4)), np.eye(4), np.arange(4)[:, None])])
    assert np.argsort(result).tolist() == [0, 1, 2, 3]
    np.testing.assert_allclose(result, 1, rtol=1e-12)


@pytest.mark.parametrize("columns", [[], [0, 1, 2]])
def test_limits(columns):
    matrix = np.arange(6.0).reshape(2, 3)
    expected = matrix if not columns else np.zeros((2, 3))
    np.testing.assert_array_equal(compensated(matrix, np.eye(3), np.array(columns, int)), expected)


def test_singular_moments_are_inverted():
    for moments in (np.zeros((3, 3)), np.ones((3, 3)), np.zeros((0, 0))):
        hessian = damped(moments, 0.0)
        assert np.isfinite(np.linalg.inv(hessian)).all()
    np.testing.assert_allclose(damped(np.diag([1.0, 3.0]), 0.5), np.diag([2.0, 4.0]))


def test_more_damping_changes_less():
    matrix, x, _, columns = problem(0)
    moments = x.T @ x / len(x)
    plain = matrix.copy()
    plain[:, columns[0]] = 0
    changes = [
        np.linalg.norm(compensated(matrix, damped(moments, damping), columns[0]) - plain)
        for damping in (0, 0.1, 10, 1e6)
    ]
    assert changes == sorted(changes, reverse=True)
    assert changes[-1] < 1e-4


def test_bad_input_is_refused():
    with pytest.raises(RecipeError, match="at least 0"):
        damped(np.eye(2), -0.1)
    with pytest.raises(RecipeError, match="at least 0"):
        damped(np.eye(2), np.nan)
    with pytest.raises(DataError, match="NaN"):
        damped(np.array([[np.nan]]))
