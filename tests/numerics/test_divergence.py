from __future__ import annotations

import itertools

import numpy as np
import pytest

from alula.numerics.divergence import divergence, least_divergent_range
from tests.oracles import quantization as oracle


@pytest.mark.parametrize("levels", [2, 3, 8, 16])
@pytest.mark.parametrize("window", [(0, 64), (0, 16), (8, 40), (20, 37), (44, 64)])
def test_divergence_matches_the_oracle(levels, window):
    generator = np.random.default_rng(levels)
    histogram = generator.integers(0, 20, 64) * generator.integers(0, 2, 64)
    for below, above in itertools.product((0.0, 3.0), (0.0, 11.0)):
        got = divergence(histogram, below, above, window, levels)
        wanted = oracle.divergence(histogram.tolist(), below, above, *window, levels)
        assert got == pytest.approx(wanted, rel=1e-9, abs=1e-12)


def test_divergence_of_a_window_that_saw_nothing_is_infinite():
    assert divergence(np.array([0, 0, 0, 5]), 0.0, 0.0, (0, 2), 2) == np.inf


def test_as_many_levels_as_bins_need_no_clipping():
    assert least_divergent_range(np.array([-1.0, 0.5, 9.0]), np.ones(3), 64, 64, 16) == (-1.0, 9.0)
    assert least_divergent_range(np.zeros(0), np.zeros(0), 8, 64, 16) == (0.0, 0.0)


def test_two_sided_windows_match_the_exhaustive_search():
    """Values in the middle of 32 linear bins from -12 to 20: every pair of ends around 0, by the oracle."""
    generator, levels = np.random.default_rng(3), 8
    values = np.arange(-11, 20) - 0.5
    counts = np.round(4000 * np.exp(-np.abs(values) / 3)) + generator.integers(0, 3, 31)
    values, counts = np.r_[-12.0, values[1:], 20.0], np.r_[counts[:1], counts[1:], 1.0]
    histogram = [*counts[:-1].tolist(), counts[-1]]
    tried = {
        (a, b): oracle.divergence(histogram, 0, 0, a, b, levels)
        for a in range(13)
        for b in range(12, 33)
        if b - a >= levels
    }
    low, high = least_divergent_range(values, counts, levels, 32, 32)
    assert tried[round(low) + 12, round(high) + 12] <= min(tried.values()) * 1.2  # ends are searched one at a time
    assert low > -12
    assert high < 20
