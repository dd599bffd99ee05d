"""Importance against textbook loops, and its limit cases."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from alula.numerics.importance import distance_to_others, first_order, magnitude, second_order

ROWS = arrays(np.float32, st.tuples(st.integers(1, 6), st.integers(1, 5)), elements=st.floats(-8, 8, width=16))


@given(ROWS, st.sampled_from([1, 2, 3]))
def test_magnitude(weights, p):
    expected = [sum(abs(float(w)) ** p for w in row) ** (1 / p) for row in weights]
    np.testing.assert_allclose(magnitude(weights, p), expected, rtol=1e-6, atol=1e-12)


@given(ROWS)
def test_distance_to_others(weights):
    expected = [sum(np.linalg.norm(one.astype(float) - other) for other in weights) for one in weights]
    np.testing.assert_allclose(distance_to_others(weights), expected, rtol=1e-5, atol=1e-5)


@given(ROWS)
def test_orders(weights):
    gradients = np.cos(weights)
    first, second = [], []
    for ours, theirs in zip(weights.tolist(), gradients.tolist(), strict=True):
        first.append(sum(w * g for w, g in zip(ours, theirs, strict=True)) ** 2)
        second.append(sum(w**2 * g**2 for w, g in zip(ours, theirs, strict=True)) / 2)
    np.testing.assert_allclose(first_order(weights, gradients), first, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(second_order(weights, gradients**2), second, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("function", [magnitude, distance_to_others])
def test_units_that_are_nothing_matter_least(function):
    weights = np.ones((4, 3))
    weights[2] = 0
    assert function(weights)[2] == (0 if function is magnitude else max(function(weights)))


def test_one_unit_has_no_others():
    assert distance_to_others(np.ones((1, 5))).tolist() == [0]
