"""Masks, schedules and allocations against loops from the papers, and their limit cases."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from alula.errors import DataError, RecipeError
from alula.numerics.sparsity import (
    allocate_by_shape,
    allocate_globally,
    count_removed,
    least,
    least_of_groups,
    least_of_rows,
    sparsity_at,
    weigh_by_inputs,
)
from tests.oracles.sparsity import group_mask, wanda_mask

SCORES = arrays(np.float32, st.tuples(st.integers(0, 6), st.integers(0, 9)), elements=st.integers(0, 5).map(float))
AMOUNTS = st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.75, 0.99])


@given(SCORES, AMOUNTS)
def test_least(scores, amount):
    order = sorted(range(scores.size), key=lambda index: (scores.flat[index], index))
    expected = np.zeros(scores.size, bool)
    expected[order[: int(amount * scores.size + 1e-9)]] = True
    np.testing.assert_array_equal(least(scores, amount), expected.reshape(scores.shape))


@given(SCORES, AMOUNTS)
def test_least_of_rows(scores, amount):
    expected = [least(row, amount) for row in scores]
    np.testing.assert_array_equal(least_of_rows(scores, amount), np.reshape(expected, scores.shape))


@given(SCORES, st.sampled_from([(1, 2), (2, 4), (1, 4), (3, 5), (4, 4)]), st.sampled_from([0, 1]))
def test_least_of_groups(scores, pattern, axis):
    mask = least_of_groups(scores, *pattern, axis)
    rows, found = np.moveaxis(scores, axis, -1), np.moveaxis(mask, axis, -1)
    for row, one in zip(rows, found, strict=True):
        np.testing.assert_array_equal(one, group_mask(row, *pattern))


@given(arrays(np.float32, (3, 7), elements=st.floats(-8, 8, width=16)), AMOUNTS)
def test_weights_by_what_they_multiply(weights, amount):
    norms = np.array([0.0, 1, 2, 0.5, 3, 0.1, 1])
    scores = weigh_by_inputs(weights, norms)
    np.testing.assert_array_equal(least_of_rows(scores, amount), wanda_mask(weights, norms, amount))
    grouped = weigh_by_inputs(np.stack([weights, 2 * weights]), np.stack([norms, 2 * norms]))
    np.testing.assert_allclose(grouped, np.stack([scores, 4 * scores]))


@pytest.mark.parametrize(("size", "amount", "count"), [(100, 0.29, 29), (10, 0.3, 3), (1, 0.99, 0), (7, 0.5, 3)])
def test_counts_round_down(size, amount, count):
    assert count_removed(size, amount) == count


def test_schedule():
    """Zhu & Gupta 2018, equation 1, at t in {t_0, t_0 + dt, ..., t_0 + n dt}; constant between, before and behind."""
    t0, n, dt, first, last = 10, 5, 4, 0.1, 0.9
    for step in range(40):
        t = min(max(step, t0), t0 + n * dt)
        t = t0 + (t - t0) // dt * dt
        expected = last + (first - last) * (1 - (t - t0) / (n * dt)) ** 3
        found = sparsity_at(step, final=last, steps=n * dt, initial=first, start=t0, every=dt)
        assert found == pytest.approx(expected)
    assert sparsity_at(0, final=last, steps=1, initial=first, start=3) == first
    assert sparsity_at(23, final=last, steps=10, start=13, every=3) == last, "the end is reached, divisible or not"


@given(st.lists(arrays(np.float64, st.integers(0, 8), elements=st.integers(0, 4).map(float)), max_size=4), AMOUNTS)
def test_global_shares_sum_up(layers, amount):
    shares = allocate_globally(layers, amount)
    counts = [round(share * one.size) for share, one in zip(shares, layers, strict=True)]
    wanted = count_removed(sum(one.size for one in layers), amount)
    if any(count >= one.size - 1 for count, one in zip(counts, layers, strict=True)):  # one weight of each stays
        assert all(count < max(one.size, 1) for count, one in zip(counts, layers, strict=True))
        assert sum(counts) <= wanted
        return
    assert sum(counts) == wanted
    values = sorted(value for one in layers for value in one)
    edge = values[sum(counts) - 1] if sum(counts) else -1.0
    for count, one in zip(counts, layers, strict=True):
        assert (one < edge).sum() <= count <= (one <= edge).sum()


def test_global_shares_what_is_equal_evenly():
    assert allocate_globally([np.ones(8), np.ones(8), np.ones(16)], 0.5) == [0.5, 0.5, 0.5]


@given(st.lists(st.lists(st.integers(0, 12), min_size=1, max_size=4), max_size=5), AMOUNTS)
def test_shares_by_shape(shapes, amount):
    """Evci et al. 2020: what is kept is in proportion to sum / product of the shape, all in all as many as asked."""
    shares = allocate_by_shape(shapes, amount)
    sizes = [int(np.prod(shape)) for shape in shapes]
    kept = [(1 - share) * size for share, size in zip(shares, sizes, strict=True)]
    assert sum(kept) == pytest.approx((1 - amount) * sum(sizes))
    assert all(0 <= share <= 1 for share in shares)
    sparse = [index for index, share in enumerate(shares) if share > 1e-12 and sizes[index]]
    ratios = [kept[index] / sum(shapes[index]) for index in sparse]
    assert np.allclose(ratios, ratios[:1] * len(ratios))
    factor = ratios[0] if ratios else 0.0
    for index, (share, size) in enumerate(zip(shares, sizes, strict=True)):
        if share <= 1e-12 and size and sparse:
            assert factor * sum(shapes[index]) >= size * (1 - 1e-9), "only what would keep more than all keeps all"


@pytest.mark.parametrize("amount", [-0.1, 1.0, float("nan")])
def test_impossible_shares_are_refused(amount):
    for call in (
        lambda: least(np.ones(3), amount),
        lambda: least_of_rows(np.ones((2, 3)), amount),
        lambda: allocate_globally([np.ones(3)], amount),
        lambda: allocate_by_shape([(3,)], amount),
        lambda: sparsity_at(0, final=amount, steps=3),
        lambda: sparsity_at(0, final=0.5, steps=3, initial=amount),
    ):
        with pytest.raises(RecipeError, match="amount must be at least 0"):
            call()


def test_impossible_settings_are_refused():
    with pytest.raises(RecipeError, match="at least 1"):
        sparsity_at(0, final=0.5, steps=0)
    with pytest.raises(RecipeError, match="at least 1"):
        sparsity_at(0, final=0.5, steps=2, every=0)
    for kept in (0, 5):
        with pytest.raises(RecipeError, match=f"got {kept} of 4"):
            least_of_groups(np.ones(8), kept, 4)


def test_bad_scores_are_refused():
    bad = np.array([[1.0, np.nan]])
    for call in (
        lambda: least(bad, 0.5),
        lambda: least_of_rows(bad, 0.5),
        lambda: least_of_groups(bad, 1, 2),
        lambda: allocate_globally([bad], 0.5),
    ):
        with pytest.raises(DataError, match="1 of 2 scores are NaN"):
            call()
    with pytest.raises(DataError, match="norm for each input"):
        weigh_by_inputs(np.ones((2, 3)), np.ones(2))
