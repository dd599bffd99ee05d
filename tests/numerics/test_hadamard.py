"""Hadamard matrices and rotations beside their definitions."""

from __future__ import annotations

import numpy as np
import pytest

from alula.errors import DataError
from alula.numerics.hadamard import find_hadamard, orthogonal, rotate_along

NONE_BY_THESE = {92, 116, 156, 172, 184, 188}  # known or not, no order 2^k (q + 1), 2^k (2 q + 2) with q = p or p^2


@pytest.mark.parametrize("size", [1, 2, *range(4, 200, 4), 384, 576, 768, 1536, 1600])
def test_rows_of_ones_are_orthogonal(size):
    matrix = find_hadamard(size)
    if size in NONE_BY_THESE:
        assert matrix is None
        return
    assert set(np.unique(matrix)) <= {-1.0, 1.0}
    np.testing.assert_array_equal(matrix @ matrix.T, size * np.eye(size))


@pytest.mark.parametrize("size", [3, 5, 6, 7, 10, 18, 50])
def test_other_orders_have_none(size):
    assert find_hadamard(size) is None


@pytest.mark.parametrize("size", [0, -4])
def test_no_rows_are_refused(size):
    with pytest.raises(DataError, match=f"at least one row, got a size of {size}"):
        find_hadamard(size)
    with pytest.raises(DataError, match="at least one row"):
        orthogonal(size)


@pytest.mark.parametrize("keep_mean", [False, True])
@pytest.mark.parametrize("size", [1, 2, 3, 7, 12, 16, 52, 92])
def test_rotations_keep_lengths_and_means(size, keep_mean):
    rotation = orthogonal(size, 5, keep_mean=keep_mean)
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(size), atol=1e-12)
    if keep_mean:
        np.testing.assert_allclose(rotation.sum(axis=0), 1.0)
        np.testing.assert_allclose(rotation.sum(axis=1), 1.0)


def test_seeds_tell_rotations_apart():
    for size in (16, 7):
        assert np.array_equal(orthogonal(size, (0, 1)), orthogonal(size, (0, 1)))
        assert not np.array_equal(orthogonal(size, (0, 1)), orthogonal(size, (0, 2)))


def test_one_channel_is_spread_evenly():
    for size in (64, 60):
        single = np.eye(size)[3]
        np.testing.assert_allclose(np.abs(rotate_along(single, orthogonal(size))), 1 / np.sqrt(size))
        kept = rotate_along(single, orthogonal(size, keep_mean=True))
        assert np.abs(kept).max() < 3 / np.sqrt(size), "the reflection moves entries by little"


def test_drawn_matrices_are_uniform():
    """Of a uniform rotation, E[Q] = 0 and E[Q_ij^2] = 1 / n; QR alone would favour one sign of the diagonal."""
    drawn = np.array([orthogonal(3, seed) for seed in range(4000)])
    np.testing.assert_allclose(drawn.mean(axis=0), 0, atol=0.04)
    np.testing.assert_allclose((drawn**2).mean(axis=0), 1 / 3, atol=0.02)


@pytest.mark.parametrize(("shape", "axis"), [((8, 3), 0), ((2, 4, 5), 1), ((5, 12), -1), ((0, 4), 1), ((4,), 0)])
def test_runs_along_an_axis_are_rows(shape, axis):
    rotation = orthogonal(4, 1)
    array = np.random.default_rng(0).standard_normal(shape)
    expected = np.empty_like(array)
    for place in np.ndindex(shape):
        run = place[axis] // 4 * 4
        terms = 0.0
        for entry in range(4):
            source = list(place)
            source[axis] = run + entry
            terms += array[tuple(source)] * rotation[entry, place[axis] - run]
        expected[place] = terms
    np.testing.assert_allclose(rotate_along(array, rotation, axis), expected)


def test_what_cannot_be_rotated_is_refused():
    with pytest.raises(DataError, match="4 at a time, got 6"):
        rotate_along(np.ones((2, 6)), orthogonal(4))
    for value in (np.nan, np.inf):
        with pytest.raises(DataError, match="must be finite"):
            rotate_along(np.full(4, value), orthogonal(4))
