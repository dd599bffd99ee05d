"""Clusters on a line against every partition there is, and at their limits."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alula.errors import DataError, RecipeError
from alula.numerics import clusters
from alula.numerics.clusters import clustering_error, find_codebook, nearest

NUMBERS = st.lists(st.integers(-30, 30).map(lambda n: n / 4), min_size=1, max_size=9)


def best_error(values, importance, count):
    """The least error of all ways to cut the sorted values into at most ``count`` pieces."""
    order = np.argsort(values)
    values, importance = np.asarray(values, float)[order], np.asarray(importance, float)[order]
    best = np.inf
    for pieces in range(1, min(count, len(values)) + 1):
        for cuts in itertools.combinations(range(1, len(values)), pieces - 1):
            error = 0.0
            for one, heavy in zip(np.split(values, cuts), np.split(importance, cuts), strict=True):
                mean = (one * heavy).sum() / heavy.sum()
                error += (heavy * (one - mean) ** 2).sum()
            best = min(best, error)
    return best


def textbook_programming(values, count):
    """Ckmeans.1d.dp as it is written: least[m][i], the error of the first i values in m clusters, by three loops."""
    values = np.sort(np.asarray(values, float))
    least = np.full((count + 1, len(values) + 1), np.inf)
    least[0, 0] = 0
    for clusters_, end in itertools.product(range(1, count + 1), range(1, len(values) + 1)):
        for start in range(end):
            piece = values[start:end]
            error = least[clusters_ - 1, start] + ((piece - piece.mean()) ** 2).sum()
            least[clusters_, end] = min(least[clusters_, end], error)
    return least[:, -1].min()


@settings(deadline=None)
@given(NUMBERS, st.integers(1, 5), st.data())
def test_no_partition_is_better(values, count, data):
    importance = np.array(data.draw(st.lists(st.integers(1, 9), min_size=len(values), max_size=len(values))), float)
    codebook = find_codebook(np.array(values), count, importance=importance)
    assert len(codebook) <= count
    assert (np.diff(codebook) > 0).all()
    error = clustering_error(np.array(values), codebook, importance)
    assert error == pytest.approx(best_error(values, importance, count), abs=1e-9)


@pytest.mark.parametrize("count", [2, 3, 7, 16])
def test_many_values_against_the_textbook(count):
    values = np.random.default_rng(count).standard_t(3, 70)
    error = clustering_error(values, find_codebook(values, count))
    assert error == pytest.approx(textbook_programming(values, count), rel=1e-9)


@pytest.mark.parametrize("count", [2, 4, 8])
@pytest.mark.parametrize("kind", ["normal", "heavy tails", "one outlier", "two heaps"])
def test_grouped_values_come_near_the_best(count, kind, monkeypatch):
    """With 32 groups for 600 values, so that the exact solution is still at hand."""
    random = np.random.default_rng(0)
    values = random.standard_t(2, 600) if kind == "heavy tails" else random.standard_normal(600)
    values[0] = 1e4 if kind == "one outlier" else values[0]
    values[:300] += 50 if kind == "two heaps" else 0
    best = clustering_error(values, find_codebook(values, count))
    monkeypatch.setattr(clusters, "GROUPS", 600)
    assert clustering_error(values, find_codebook(values, count)) <= best * (1 + 1e-9)
    monkeypatch.setattr(clusters, "GROUPS", 32)
    assert clustering_error(values, find_codebook(values, count)) <= 1.05 * best


def test_many_grouped_values_have_settled():
    """Each value of the codebook is the mean of what is nearest to it: no step of Lloyd's is left."""
    values = np.random.default_rng(0).standard_normal(20_000)
    importance = np.random.default_rng(1).random(20_000)
    codebook = find_codebook(values, 32, importance=importance)
    codes = nearest(values, codebook)
    means = np.bincount(codes, values * importance) / np.bincount(codes, importance)
    np.testing.assert_allclose(codebook, means, rtol=1e-6, atol=1e-8)


def test_more_values_never_err_more():
    values = np.random.default_rng(0).standard_normal(5000)
    errors = [clustering_error(values, find_codebook(values, count)) for count in (1, 2, 4, 8, 16, 64, 256)]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] == pytest.approx(values.var() * 5000)


def test_few_different_values_are_the_codebook():
    values = np.array([0.5, -1, 0.5, 3, -1])
    np.testing.assert_array_equal(find_codebook(values, 3), [-1, 0.5, 3])
    np.testing.assert_array_equal(find_codebook(values, 200), [-1, 0.5, 3])
    assert find_codebook(np.full(1000, 0.37), 16).tolist() == [0.37]


def test_the_important_ones_are_hit():
    values = np.arange(10.0)
    heavy = np.where(values == 7, 1e9, 1.0)
    assert np.abs(find_codebook(values, 2, importance=heavy) - 7).min() < 1e-3
    assert np.abs(find_codebook(values, 2) - 7).min() < 1e-9  # means of 0..4 and 5..9
    np.testing.assert_allclose(find_codebook(values, 2, importance=np.zeros(10)), [2, 7])


def test_unimportant_ones_still_count_a_little():
    values = np.array([0.0, 1.0, 2.0, 100.0, 101.0])
    codebook = find_codebook(values, 4, importance=np.array([1, 1, 1, 0, 0]))
    np.testing.assert_allclose(codebook, [0, 1, 2, 100.5])


@pytest.mark.parametrize("scale", [1e-38, 1e-30, 1e30, 3e37])
def test_any_scale(scale):
    values = np.random.default_rng(0).standard_normal(300)
    plain = find_codebook(values, 5)
    np.testing.assert_allclose(find_codebook(values * scale, 5), plain * scale, rtol=1e-6)
    np.testing.assert_allclose(find_codebook(1e3 + values, 5), 1e3 + plain, rtol=1e-9)


@settings(deadline=None)
@given(NUMBERS, st.lists(st.integers(-9, 9), min_size=1, max_size=6, unique=True))
def test_nearest(values, codebook):
    codebook = np.sort(np.array(codebook, np.float32))
    codes = nearest(np.array(values, np.float32), codebook)
    for value, code in zip(values, codes, strict=True):
        assert abs(value - codebook[code]) == np.abs(value - codebook).min()


def test_nearest_at_the_ends_of_float32():
    codebook = np.array([3.0e38, 3.3e38], np.float32)
    assert nearest(np.array([3.01e38, 3.29e38], np.float32), codebook).tolist() == [0, 1]


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_what_is_not_finite_is_refused(poison):
    with pytest.raises(DataError, match="values must be finite, got 1"):
        find_codebook(np.array([1.0, poison]), 2)
    with pytest.raises(DataError, match="importance must be finite"):
        find_codebook(np.ones(2), 2, importance=np.array([1.0, poison]))


def test_other_nonsense_is_refused():
    with pytest.raises(RecipeError, match="at least 1 value"):
        find_codebook(np.ones(2), 0)
    with pytest.raises(DataError, match="got 3 for 2"):
        find_codebook(np.ones(2), 2, importance=np.ones(3))
    with pytest.raises(DataError, match="at least 0"):
        find_codebook(np.ones(2), 2, importance=np.array([1.0, -1.0]))
    with pytest.raises(DataError, match="no values"):
        find_codebook(np.ones(0), 2)
