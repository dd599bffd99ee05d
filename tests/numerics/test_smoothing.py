from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alula.errors import DataError, RecipeError
from alula.numerics.grids import Grid, quantize
from alula.numerics.smoothing import smoothing_factors

magnitudes = st.floats(0, 3e38)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(magnitudes, magnitudes), max_size=6), st.floats(0, 1))
def test_factors_follow_the_equation(pairs, strength):
    activation, weight = np.array(pairs).reshape(-1, 2).T
    got = smoothing_factors(activation, weight, strength)
    assert got.dtype == np.float32
    for factor, (a, w) in zip(got, pairs, strict=True):
        wanted = 1.0 if a == 0 or w == 0 else a**strength / w ** (1 - strength)
        assert factor == pytest.approx(min(max(wanted, 1e-5), 1e5), rel=1e-6)


def test_strength_one_makes_activations_even_and_zero_the_weights():
    activation, weight = np.array([1.0, 20, 0.5]), np.array([0.1, 3, 7])
    np.testing.assert_allclose(activation / smoothing_factors(activation, weight, 1.0), 1, rtol=1e-6)
    np.testing.assert_allclose(weight * smoothing_factors(activation, weight, 0.0), 1, rtol=1e-6)


def test_half_the_strength_makes_both_their_geometric_mean():
    first, second = np.array([1.0, 20, 0.5]), np.array([0.1, 3, 7])
    factors = smoothing_factors(first, second, 0.5)
    np.testing.assert_allclose(first / factors, np.sqrt(first * second), rtol=1e-6)
    np.testing.assert_allclose(second * factors, np.sqrt(first * second), rtol=1e-6)


def test_the_product_stays_and_quantization_of_outlier_channels_gets_better():
    generator = np.random.default_rng(0)
    inputs, weight = generator.standard_normal((64, 16)), generator.standard_normal((16, 8))
    inputs[:, 3] *= 100
    factors = smoothing_factors(np.abs(inputs).max(axis=0), np.abs(weight).max(axis=1))
    smooth, scaled = inputs / factors, weight * factors[:, None]
    np.testing.assert_allclose(smooth @ scaled, inputs @ weight, rtol=1e-5, atol=1e-5)

    def error(a, b):
        rough = quantize(a, Grid(8)).dequantize() @ quantize(b, Grid(8), axis=1).dequantize()
        return np.abs(rough - inputs @ weight).mean()

    assert error(smooth, scaled) < error(inputs, weight) / 2


def test_impossible_input_is_refused():
    for strength in (-0.1, 1.1, np.nan):
        with pytest.raises(RecipeError, match="strength"):
            smoothing_factors([1], [1], strength)
    with pytest.raises(DataError, match="shapes"):
        smoothing_factors([1], [1, 2])
    for bad in (-1, np.nan, np.inf):
        with pytest.raises(DataError, match="finite and not negative"):
            smoothing_factors([bad], [1])
