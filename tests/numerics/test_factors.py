"""Factorizations against textbooks, where they are exact, and at their limits."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from alula.errors import DataError
from alula.numerics.factors import (
    DAMPING,
    canonical,
    canonical_whole,
    lost_shares,
    singular_factors,
    tucker,
    tucker_lost,
    whitening,
)
from tests.oracles.factors import nearest_of_rank, orthogonal_iteration, sum_of_products, truncated

SHAPES = [(1, 7, 5), (1, 4, 9), (3, 4, 6), (2, 1, 5), (1, 1, 1)]


def normal(shape):
    """Normal numbers, the same for a shape each time."""
    return np.random.default_rng(list(shape)).standard_normal(shape)


def energy(array):
    return float((array.astype(np.float64) ** 2).sum())


def inputs_of(groups, size, rows=40):
    """Rows whose directions count very differently, [g, rows, size]."""
    mixing = normal((groups, size, size)) * np.geomspace(1, 0.05, size)
    return normal((groups, rows, size)) @ mixing.swapaxes(1, 2)


@pytest.mark.parametrize("shape", SHAPES)
def test_each_rank_is_the_nearest_matrix_and_loses_what_is_said(shape):
    matrix = normal(shape)
    found = singular_factors(matrix)
    for rank in range(1, min(shape[1:]) + 1):
        left, right = found.at(rank)
        expected = [nearest_of_rank(one, rank, np.eye(shape[2])) for one in matrix]
        np.testing.assert_allclose(left @ right, expected, atol=1e-9)
        assert found.lost()[rank] == pytest.approx(energy(matrix - left @ right) / energy(matrix), abs=1e-12)
    np.testing.assert_allclose(left @ right, matrix, atol=1e-12)
    assert found.lost()[0] == 1


@pytest.mark.parametrize("shape", SHAPES)
def test_whitened_factors_are_those_whose_outputs_are_nearest(shape):
    """The textbook's inputs carry the damping as rows of their own, so that both minimise the same."""
    matrix, inputs = normal(shape), inputs_of(shape[0], shape[2])
    moments = inputs.swapaxes(1, 2) @ inputs / inputs.shape[1]
    found = singular_factors(matrix, moments)
    means = np.einsum("gii->g", moments) / shape[2]
    heights = np.sqrt(DAMPING * means * inputs.shape[1])
    damped = [np.concatenate([rows, height * np.eye(shape[2])]) for rows, height in zip(inputs, heights, strict=True)]
    for rank in range(1, min(shape[1:]) + 1):
        left, right = found.at(rank)
        expected = np.array([nearest_of_rank(*pair) for pair in zip(matrix, [rank] * shape[0], damped, strict=True)])
        np.testing.assert_allclose(left @ right, expected, atol=1e-7)
        errors = [energy((one - near) @ rows.T) for one, near, rows in zip(matrix, left @ right, damped, strict=True)]
        total = sum(energy(one @ rows.T) for one, rows in zip(matrix, damped, strict=True))
        assert found.lost()[rank] == pytest.approx(sum(errors) / total, abs=1e-10)
    np.testing.assert_allclose(left @ right, matrix, atol=1e-9)


def test_whitening_pays_where_inputs_are_correlated():
    matrix, inputs = normal((1, 12, 16)), inputs_of(1, 16)
    moments = inputs.swapaxes(1, 2) @ inputs / inputs.shape[1]
    errors = []
    for found in (singular_factors(matrix), singular_factors(matrix, moments)):
        left, right = found.at(4)
        errors.append(energy((matrix - left @ right)[0] @ inputs[0].T))
    assert errors[1] < 0.8 * errors[0]


def test_moments_that_say_nothing_change_nothing():
    matrix = normal((2, 5, 4))
    plain = np.matmul(*singular_factors(matrix).at(2))
    for moments in (np.zeros((2, 4, 4)), np.broadcast_to(3.0 * np.eye(4), (2, 4, 4))):
        np.testing.assert_allclose(np.matmul(*singular_factors(matrix, moments).at(2)), plain, atol=1e-9)


def test_moments_of_one_row_are_enough():
    row = normal((1, 6, 1))
    matrix = normal((1, 5, 6))
    left, right = singular_factors(matrix, row @ row.swapaxes(1, 2)).at(1)
    np.testing.assert_allclose(left @ right @ row, matrix @ row, rtol=1e-3)


def test_the_factors_share_the_scale():
    left, right = singular_factors(1e15 * normal((1, 6, 6))).at(3)
    np.testing.assert_allclose(np.linalg.norm(left, axis=1), np.linalg.norm(right, axis=2))


@pytest.mark.parametrize("shape", [(0, 3), (3, 0)])
def test_no_rows_or_no_columns(shape):
    found = singular_factors(np.zeros((1, *shape)))
    assert found.at(1)[0].shape == (1, shape[0], 0)
    assert found.lost().tolist() == [0]


def test_nothing_is_lost_of_nothing():
    assert singular_factors(np.zeros((1, 3, 2))).lost().tolist() == [0, 0, 0]
    assert lost_shares(np.array([])).tolist() == [0]
    assert not tucker_lost(np.zeros((1, 2, 3, 3))).any()
    assert not tucker(np.zeros((1, 2, 3, 3)), (1, 1)).whole().any()
    assert not canonical_whole(canonical(np.zeros((2, 3, 3)), 2)).any()


@pytest.mark.parametrize("shape", [(5, 4, 3, 3), (3, 6, 2), (6, 2, 1, 3), (1, 3, 3)])
def test_tucker_is_the_textbooks(shape):
    kernel = normal(shape)
    for ranks in itertools.product((1, 2), (1, 2)):
        found = tucker(kernel[None], ranks)
        expected = orthogonal_iteration(kernel, ranks)
        assert energy(kernel - found.whole()[0]) == pytest.approx(energy(kernel - expected), rel=1e-4)
        for columns in (found.outer[0], found.inner[0].T):
            np.testing.assert_allclose(columns.T @ columns, np.eye(columns.shape[1]), atol=1e-9)


@pytest.mark.parametrize("shape", [(5, 4, 3, 3), (3, 6, 2), (9, 2, 2)])
def test_the_table_of_losses_is_that_of_truncations_and_bounds_tucker(shape):
    kernel = normal(shape)
    lost = tucker_lost(kernel[None])
    assert lost.shape == (shape[0] + 1, shape[1] + 1)
    for ranks in itertools.product(range(1, shape[0] + 1), range(1, shape[1] + 1)):
        wanted = energy(kernel - truncated(kernel, ranks)) / energy(kernel)
        assert lost[ranks] == pytest.approx(wanted, abs=1e-9)
        assert energy(kernel - tucker(kernel[None], ranks).whole()[0]) <= wanted * energy(kernel) + 1e-9


def test_tucker_finds_what_is_of_its_ranks_and_all_at_full():
    kernel = np.einsum("op,pqd,qi->oid", *(normal(s) for s in ((6, 2), (2, 3, 9), (3, 5))))
    np.testing.assert_allclose(tucker(kernel[None], (2, 3)).whole()[0], kernel, atol=1e-9)
    groups = normal((2, 3, 4, 3))
    np.testing.assert_allclose(tucker(groups, (3, 4)).whole(), groups, atol=1e-9)
    np.testing.assert_allclose(tucker(groups, (1, 2)).whole()[1], tucker(groups[1:], (1, 2)).whole()[0], atol=1e-4)


def test_cp_of_a_matrix_is_its_singular_value_decomposition():
    matrix = normal((6, 5))
    for rank in (1, 3, 5):
        whole = canonical_whole(canonical(matrix, rank))
        np.testing.assert_allclose(whole, nearest_of_rank(matrix, rank, np.eye(5)), atol=1e-5)


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_cp_finds_what_is_of_its_rank(rank):
    true = [normal((length, rank)) for length in (6, 5, 3, 3)]
    kernel = sum_of_products(true)
    np.testing.assert_allclose(canonical_whole(true), kernel, atol=1e-12)
    found = canonical(kernel, rank)
    assert energy(kernel - sum_of_products(list(found))) < 1e-3 * energy(kernel)
    norms = [np.linalg.norm(factor, axis=0) for factor in found]
    np.testing.assert_allclose(norms, norms[:1] * 4, rtol=1e-6)


def test_cp_settles_where_no_factor_alone_can_be_better():
    kernel = normal((5, 4, 3))
    found = list(canonical(kernel, 2))
    rest = kernel - canonical_whole(found)
    for axis in range(3):
        letters = "oid"
        others = [other for other in range(3) if other != axis]
        terms = ",".join(["oid", *(f"{letters[other]}r" for other in others)])
        gradient = np.einsum(f"{terms}->{letters[axis]}r", rest, *(found[other] for other in others))
        assert np.abs(gradient).max() < 2e-2 * np.linalg.norm(kernel)


def test_cp_is_the_same_for_the_same_seed():
    kernel = normal((4, 3, 3))
    first, again, other = (canonical(kernel, 6, seed=seed) for seed in (0, 0, 1))
    assert all(np.array_equal(*pair) for pair in zip(first, again, strict=True))
    assert not all(np.array_equal(*pair) for pair in zip(first, other, strict=True))


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_what_is_not_finite_is_refused(poison):
    broken = np.ones((1, 3, 3, 3))
    broken[0, 1, 1, 1] = poison
    calls = [lambda: tucker(broken, (1, 1)), lambda: tucker_lost(broken), lambda: canonical(broken[0], 1)]
    calls += [lambda: singular_factors(broken[0]), lambda: singular_factors(np.ones((3, 2, 3)), broken[0])]
    for function in calls:
        with pytest.raises(DataError, match="1 values that are not"):
            function()


def test_moments_that_are_none_are_refused():
    with pytest.raises(DataError, match=r"shape \[1, 3, 3\], got \[1, 2, 2\]"):
        singular_factors(np.ones((1, 2, 3)), np.ones((1, 2, 2)))
    with pytest.raises(DataError, match="negative"):
        whitening(np.diag([1.0, -0.5])[None], 1, 2)
