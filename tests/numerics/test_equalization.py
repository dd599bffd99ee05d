"""Factors that make the ranges of two layers equal."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alula.errors import DataError
from alula.numerics.equalization import LARGEST_FACTOR, equalizing_factors

RANGES = st.lists(st.tuples(st.floats(1e-3, 1e3), st.floats(1e-3, 1e3)), min_size=1, max_size=8)


@given(RANGES)
def test_both_ranges_become_the_geometric_mean(pairs: list[tuple[float, float]]) -> None:
    first, second = np.array(pairs).T
    factors = equalizing_factors(first, second)
    np.testing.assert_allclose(first / factors, np.sqrt(first * second), rtol=1e-9)
    np.testing.assert_allclose(second * factors, np.sqrt(first * second), rtol=1e-9)


def test_dead_channels_stay_and_factors_have_an_end() -> None:
    given_, taken = np.array([0.0, 1.0, 1e30, 1e-30]), np.array([1.0, 0.0, 1.0, 1.0])
    assert equalizing_factors(given_, taken).tolist() == [1, 1, LARGEST_FACTOR, 1 / LARGEST_FACTOR]
    assert equalizing_factors(np.zeros(0), np.zeros(0)).shape == (0,)


@pytest.mark.parametrize("broken", [np.array([np.nan]), np.array([-1.0]), np.array([np.inf]), np.ones(2)])
def test_what_is_no_range_is_refused(broken: np.ndarray) -> None:
    with pytest.raises(DataError):
        equalizing_factors(broken, np.ones(1))
