"""Parts of channels sum to what there was, on the grid too; which are split is what the paper's loop splits."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alula.errors import DataError, RecipeError
from alula.numerics.outlier_splitting import outlier_splits, split_sources, split_weights

MAGNITUDES = st.lists(st.floats(0, 1e6, width=32), min_size=1, max_size=9)


def split_largest(magnitudes, count):
    """Zhao et al. 2019: halve the channel that holds the largest value, and append its other half, one by one."""
    parts, places = [float(one) for one in magnitudes], []
    for _ in range(count):
        if max(parts) == 0:
            break
        place = parts.index(max(parts))
        parts[place] /= 2
        parts.append(parts[place])
        places.append(place)
    return places


def least_squares_split(magnitudes):
    """The first channel of those whose halves leave the least sum of squared ranges, by trying all."""
    sums = []
    for place in range(magnitudes.shape[1]):
        halved = magnitudes.copy()
        halved[:, place] /= 2
        sums.append((halved.max(axis=1) ** 2).sum())
    return int(np.argmin(sums)), min(sums)


@settings(max_examples=40, deadline=None)
@given(MAGNITUDES, st.integers(0, 12))
def test_with_one_grid_it_is_the_papers_loop(magnitudes, count):
    ours = outlier_splits([magnitudes], count).tolist()
    theirs = split_largest(magnitudes, count)
    halved = [sorted(np.abs(split_weights(np.array([magnitudes]), places))[0]) for places in (ours, theirs)]
    np.testing.assert_allclose(*halved)  # among equals any may be first
    assert len(ours) == len(theirs)


def test_with_several_grids_each_split_is_the_best_single_one():
    random = np.random.default_rng(0)
    for _ in range(50):
        magnitudes = random.exponential(size=(5, 7))
        place, least = least_squares_split(magnitudes)
        assert outlier_splits(magnitudes, 1).tolist() == [place]
        assert least < (magnitudes.max(axis=1) ** 2).sum()


def test_an_outlier_is_split_until_it_is_none():
    assert outlier_splits([[1.0, 8, 1]], 4).tolist()[:3] == [1, 1, 3]
    sources, shares = split_sources([1, 1, 3], 3)
    assert sources.tolist() == [0, 1, 2, 1, 1, 1]
    assert shares.tolist() == [1, 0.25, 1, 0.25, 0.25, 0.25]


@settings(max_examples=40, deadline=None)
@given(MAGNITUDES, st.integers(0, 12))
def test_shares_of_a_channel_sum_to_one_and_are_those_of_the_weights(magnitudes, count):
    places = outlier_splits([magnitudes], count)
    sources, shares = split_sources(places, len(magnitudes))
    np.testing.assert_array_equal(np.bincount(sources, shares), 1)
    weight = np.random.default_rng(count).standard_normal((2, len(magnitudes), 3))
    np.testing.assert_allclose(split_weights(weight, places), weight[:, sources] * shares[:, None])


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(1e-3, 1e3), st.lists(st.integers(0, 4), max_size=6))
def test_parts_sum_to_the_whole_before_and_after_rounding(seed, step, places):
    weight = step * np.random.default_rng(seed).normal(0, 20, (3, 5, 2))
    sources, _ = split_sources(places, 5)
    parts = split_weights(weight, places, step)
    for there, expected in ((parts, weight), (np.floor(parts / step + 0.5), np.floor(weight / step + 0.5))):
        summed = np.zeros_like(weight)
        for number, source in enumerate(sources):
            summed[:, source] += there[:, number]
        np.testing.assert_allclose(summed, expected, rtol=1e-9, atol=1e-9 * step)


def test_plain_halves_err_together_where_halves_a_step_apart_do_not():
    weight = np.random.default_rng(0).uniform(-7, 7, (1, 1, 1000))
    errors = [np.square(np.rint(split_weights(weight, [0], step)).sum(axis=1) - weight[:, 0]).mean() for step in (0, 1)]
    assert errors[1] == pytest.approx(1 / 12, rel=0.1)
    assert errors[0] == pytest.approx(4 / 12, rel=0.1)


def test_each_row_has_its_step():
    parts = split_weights(np.zeros((2, 1)), [0], [4.0, 8.0])
    assert parts.tolist() == [[-1, 1], [-2, 2]]


def test_nothing_stands_out_of_nothing():
    assert outlier_splits(np.zeros((2, 3)), 2).size == 0
    assert outlier_splits(np.zeros((2, 0)), 2).size == 0
    assert outlier_splits([[3.0]], 0).size == 0
    assert outlier_splits(np.ones((1, 3)), 3).tolist() == [0, 1, 2]
    assert split_weights(np.ones((2, 3), np.float32), []).dtype == np.float32


@pytest.mark.parametrize("magnitudes", [[[np.nan]], [[np.inf]], [[-1.0]], [1.0]], ids=str)
def test_magnitudes_that_are_none_are_refused(magnitudes):
    with pytest.raises(DataError, match="magnitudes are finite"):
        outlier_splits(magnitudes, 1)


def test_impossible_counts_and_steps_are_refused():
    with pytest.raises(RecipeError, match="0 times or more, got -1"):
        outlier_splits([[1.0]], -1)
    for step in (-1.0, np.nan, np.inf):
        with pytest.raises(DataError, match="step is finite"):
            split_weights([[1.0]], [0], step)
