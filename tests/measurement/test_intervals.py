from __future__ import annotations

import numpy as np
import pytest

from alula.errors import DataError
from alula.measurement.intervals import median_interval, quantiles_with_intervals
from tests.oracles.timing import sign_test_interval


@pytest.mark.parametrize("n", [2, 6, 9, 12])
@pytest.mark.parametrize("confidence", [0.5, 0.9, 0.95])
def test_matches_counting_coin_flips(n, confidence):
    values = np.random.default_rng(n).standard_normal(n)
    low, high, coverage = median_interval(values, confidence)
    assert (low, high, coverage) == pytest.approx(sign_test_interval(values, confidence))


def test_covers_as_often_as_it_says():
    generator = np.random.default_rng(0)
    inside, stated = 0, 0.0
    for _ in range(2000):
        low, high, stated = median_interval(np.exp(generator.standard_normal(20)), 0.9)
        inside += low <= 1.0 <= high
    assert 0.9 <= stated < 0.97
    assert inside / 2000 == pytest.approx(stated, abs=0.02)


def test_one_value_covers_nothing():
    assert median_interval([3.0]) == (3.0, 3.0, 0.0)


def test_no_values():
    with pytest.raises(DataError, match="at least one value"):
        median_interval([])


def test_quantiles_are_those_of_all_values():
    turns = [np.arange(0.0, 50.0), np.arange(50.0, 101.0)]
    table = quantiles_with_intervals(turns, (0.5, 0.99))
    np.testing.assert_allclose(table[:, 0], [50, 99])
    assert (table[:, 1] <= table[:, 0]).all()
    assert (table[:, 0] <= table[:, 2]).all()


def test_turns_that_differ_widen_the_interval():
    """Values that resemble each other within a turn must not count as independent."""
    generator = np.random.default_rng(0)
    alike = [generator.normal(10, 1, 50) for _ in range(20)]
    apart = [values + shift for values, shift in zip(alike, generator.normal(0, 3, 20), strict=True)]

    def width(turns):
        _, low, high = quantiles_with_intervals(turns, (0.5,))[0]
        return high - low

    assert width(apart) > 5 * width(alike)


def test_same_seed_same_interval():
    turns = [np.random.default_rng(i).random(9) for i in range(9)]
    np.testing.assert_array_equal(
        quantiles_with_intervals(turns, (0.9,), seed=3), quantiles_with_intervals(turns, (0.9,), seed=3)
    )
    assert not np.array_equal(
        quantiles_with_intervals(turns, (0.5,), seed=3), quantiles_with_intervals(turns, (0.5,), seed=4)
    )
