"""Ratios of signal to noise against their definition, and their limits."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alula.numerics.noise import decibels, relative_error, shift_share

POSITIVE = st.floats(1e-12, 1e12)


@given(POSITIVE, POSITIVE)
def test_decibels_and_error_say_the_same(signal, noise) -> None:
    assert 10 ** (-decibels(signal, noise) / 20) == pytest.approx(relative_error(signal, noise), rel=1e-9)


def test_a_bit_is_six_decibels() -> None:
    assert decibels(1.0, 1.0) - decibels(1.0, 4.0) == pytest.approx(6.02, abs=0.01)


@pytest.mark.parametrize("noise", [math.inf, math.nan])
def test_noise_that_is_not_finite_drowns_everything(noise) -> None:
    assert decibels(1.0, noise) == -math.inf
    assert relative_error(1.0, noise) == math.inf
    assert shift_share([1.0], noise, 1) == 0.0


@given(st.integers(1, 6), st.integers(1, 20), st.integers(0, 2**32 - 1))
def test_the_shift_is_what_the_best_bias_takes_off(channels, rows, seed) -> None:
    random = np.random.default_rng(seed)
    error = random.normal(random.normal(size=channels), 1, (rows, channels))
    noise = float(np.sum(error**2))
    left = float(np.sum((error - error.mean(axis=0)) ** 2))
    assert shift_share(error.sum(axis=0), noise, error.size) == pytest.approx(1 - left / noise, abs=1e-9)


def test_nothing_has_no_shift() -> None:
    assert shift_share([], 1.0, 0) == 0.0
    assert shift_share([1.0], 0.0, 1) == 0.0
