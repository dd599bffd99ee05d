"""Factors that protect weights against the source's equations, spelled out."""

from __future__ import annotations

import numpy as np
import pytest

from alula.errors import DataError, RecipeError
from alula.numerics.activation_aware import harm_of_rounding, protecting_factors, protecting_scale
from alula.numerics.grids import Grid, quantize


def nearest(weights):
    return quantize(weights.astype(np.float32), Grid(3), axis=1, block=4).dequantize()


def layer(seed=0):
    """Weights [6, 8], and inputs [50, 8] of which one is large and two go together."""
    random = np.random.default_rng(seed)
    inputs = random.standard_normal((50, 8))
    inputs[:, 3] *= 30
    inputs[:, 5] += inputs[:, 1]
    return random.standard_normal((6, 8)).astype(np.float32), inputs


def test_harm_is_the_mean_squared_error_of_the_outputs():
    weights, inputs = layer()
    factors = np.exp(np.random.default_rng(1).standard_normal(8))
    wanted = 0.0
    for row in inputs:
        for one in range(6):
            exact = sum(weights[one, j] * row[j] for j in range(8))
            given = sum(nearest(weights * factors)[one, j] * (row[j] / factors[j]) for j in range(8))
            wanted += (given - exact) ** 2 / 50
    assert harm_of_rounding(weights, inputs.T @ inputs / 50, factors, nearest) == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("exponent", [0.0, 0.35, 0.5, 0.95, 1.0])
def test_factors_are_powers_of_the_sizes_in_the_middle_of_which_is_one(exponent):
    sizes = np.array([0.01, 2.0, 300.0, 7.0])
    powers = [size**exponent for size in sizes]
    wanted = [power / (max(powers) * min(powers)) ** 0.5 for power in powers]
    np.testing.assert_allclose(protecting_scale(sizes, exponent), wanted, rtol=1e-5)


@pytest.mark.parametrize("sizes", [[0, 0, 0], [5, 5, 5], [], [0, 7, 0], [1e-300, 1e300]])
def test_sizes_at_the_limits(sizes):
    factors = protecting_scale(sizes, 0.5)
    assert factors.dtype == np.float32
    assert ((factors > 0) & (factors < np.inf)).all()
    if len(set(sizes) - {0}) < 2:
        np.testing.assert_array_equal(factors, np.ones(len(sizes)))


@pytest.mark.parametrize("points", [1, 5, 20])
def test_the_best_of_all_exponents_is_taken(points):
    weights, inputs = layer()
    moments = inputs.T @ inputs / 50
    sizes = np.sqrt(np.diag(moments))

    def harm(factors):
        return harm_of_rounding(weights, moments, factors, nearest)

    found = protecting_factors(sizes, harm, points)
    harms = [harm(protecting_scale(sizes, number / points)) for number in range(points)]
    assert found.harm == min(harms) <= found.before == harms[0]
    assert found.exponent == harms.index(min(harms)) / points
    np.testing.assert_array_equal(found.factors, protecting_scale(sizes, found.exponent))
    assert points == 1 or found.harm < 0.7 * found.before, "one input is large"


def test_where_nothing_helps_nothing_is_scaled():
    found = protecting_factors(np.array([1.0, 9.0]), lambda factors: 3.0)
    assert found.exponent == 0
    assert found.factors.tolist() == [1, 1]


@pytest.mark.parametrize("sizes", [[np.nan], [np.inf], [-1.0], [[1.0]]])
def test_broken_sizes_are_refused(sizes):
    with pytest.raises(DataError, match="finite and not negative"):
        protecting_scale(sizes, 0.5)


def test_no_exponent_is_refused():
    with pytest.raises(RecipeError, match="points=0"):
        protecting_factors(np.ones(2), lambda factors: 0.0, 0)
