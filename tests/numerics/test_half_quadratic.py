"""Half-quadratic quantization against the same thing spelled out, and what must hold whatever the weights."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alula.errors import DataError, RecipeError
from alula.numerics.grids import Grid, parameter_shape, quantize, scale_and_zero_point
from alula.numerics.half_quadratic import half_quadratic_range
from tests.oracles.half_quadratic import half_quadratic

GRIDS = [Grid(2), Grid(3, symmetric=False), Grid(4, signed=False, symmetric=False), Grid(4), Grid(8, narrow=True)]


def heavy(*shape: int, seed: int = 0) -> np.ndarray:
    """Weights of which a few are large."""
    random = np.random.default_rng(seed)
    return (random.standard_t(3, shape) * np.exp(random.standard_normal(shape[0]))[:, None]).astype(np.float32)


def p_error(weight, grid, ends=(None, None), norm=0.7, **where):
    back = quantize(weight, grid, minimum=ends[0], maximum=ends[1], **where).dequantize()
    return (np.abs(back.astype(np.float64) - weight) ** norm).sum(axis=-1)


@pytest.mark.parametrize(("norm", "penalty", "growth", "iterations"), [
    (0.7, 10.0, 1.01, 20), (0.5, 1.0, 1.5, 7), (0.9, 3.0, 1.1, 4), (0.7, 10.0, 1.01, 0),
])  # fmt: skip
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_it_is_the_textbook(grid, norm, penalty, growth, iterations):
    weight = heavy(12, 24) + np.float32(0.3)
    ends = half_quadratic_range(weight, grid, axis=0, norm=norm, penalty=penalty, growth=growth, iterations=iterations)
    scale, zero_point = scale_and_zero_point(*ends, grid)
    wanted = [half_quadratic(row, grid, norm, penalty, growth, iterations) for row in weight.tolist()]
    np.testing.assert_allclose(scale, [step for step, _ in wanted], rtol=1e-4)
    assert zero_point.astype(int).tolist() == [zero for _, zero in wanted]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(GRIDS), st.floats(0.2, 1), st.floats(0.1, 100), st.floats(1, 2))
def test_more_rounds_never_raise_the_error(seed, grid, norm, penalty, growth):
    weight = heavy(5, 16, seed=seed)
    told = {"axis": 0, "norm": norm, "penalty": penalty, "growth": growth}
    errors = [p_error(weight, grid, axis=0, norm=norm)]  # of the extremes
    for iterations in (0, 1, 3, 10):
        ends = half_quadratic_range(weight, grid, **told, iterations=iterations)
        errors.append(p_error(weight, grid, ends, axis=0, norm=norm))
    np.testing.assert_allclose(errors[1], errors[0], rtol=1e-4)
    assert (np.diff(errors, axis=0) <= 1e-4 * errors[0]).all()


@pytest.mark.parametrize("grid", GRIDS[:4], ids=str)
def test_it_errs_less_than_the_extremes_where_a_few_weights_are_large(grid):
    weight = heavy(40, 64)
    ends = half_quadratic_range(weight, grid, axis=0)
    assert p_error(weight, grid, ends, axis=0).sum() < 0.95 * p_error(weight, grid, axis=0).sum()


@pytest.mark.parametrize(("axis", "block"), [(None, None), (0, None), (-1, None), (0, 4), (1, 5), (1, 100)])
def test_whatever_shares_a_range(axis, block):
    """Each channel or block has the range that it has alone; what fills a short block up changes no symmetric step."""
    weight, grid = heavy(8, 12, seed=3), Grid(3)
    low, high = half_quadratic_range(weight, grid, axis=axis, block=block)
    assert low.shape == high.shape == parameter_shape(weight.shape, axis, block)
    for place in np.ndindex(low.shape):
        if block is not None:
            along = slice(place[axis] * block, (place[axis] + 1) * block)
            alone = weight[along, place[1]] if axis == 0 else weight[place[0], along]
        else:
            alone = weight if axis is None else np.take(weight, place[0], axis)
        wanted = half_quadratic_range(alone, grid, axis=None)
        np.testing.assert_allclose((low[place], high[place]), wanted, rtol=1e-5)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_weights_on_the_grid_stay(grid):
    codes = np.random.default_rng(0).integers(grid.lowest, grid.highest + 1, (6, 40))
    codes[:, :2] = grid.lowest, grid.highest
    zero = grid.middle if grid.symmetric else grid.lowest + 1
    weight = ((codes - zero) * 0.25).astype(np.float32)
    given = quantize(weight, grid, axis=0, minimum=(ends := half_quadratic_range(weight, grid, axis=0))[0],
                     maximum=ends[1])  # fmt: skip
    np.testing.assert_allclose(given.dequantize(), weight, rtol=1e-6)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("weight", [
    np.zeros((2, 3)), np.full((2, 3), -7.5), np.ones((1, 1)), np.full((2, 3), 3e38), np.full((2, 3), 1e-44),
    np.array([[3e38, -3e38, 1e-44, 0]]),
], ids=["zero", "constant", "one", "huge", "subnormal", "all at once"])  # fmt: skip
def test_limits_of_float32(weight, grid):
    ends = half_quadratic_range(weight, grid, axis=0)
    given = quantize(weight, grid, axis=0, minimum=ends[0], maximum=ends[1])
    assert np.isfinite(given.dequantize()).all()
    assert np.abs(given.dequantize() - weight).max() <= np.abs(weight).max() * 0.6 + 1e-37


def test_nothing_has_a_range_of_nothing():
    low, high = half_quadratic_range(np.ones((3, 0), np.float32), Grid(4), axis=0)
    assert low.tolist() == high.tolist() == [0, 0, 0]


@pytest.mark.parametrize(("change", "error", "words"), [
    ({"weight": [[np.nan, 1]]}, DataError, "1 NaN"),
    ({"weight": [[np.inf, 1]]}, DataError, "1 infinite"),
    ({"axis": 2}, RecipeError, "axis"),
    ({"block": 0}, RecipeError, "block"),
    ({"norm": 0.0}, RecipeError, "norm above 0"),
    ({"norm": 1.5}, RecipeError, "up to 1"),
    ({"penalty": 0.0}, RecipeError, "penalty above 0"),
    ({"penalty": float("nan")}, RecipeError, "penalty above 0"),
    ({"growth": 0.9}, RecipeError, "growth of at least 1"),
    ({"iterations": -1}, RecipeError, "0 iterations"),
])  # fmt: skip
def test_what_is_impossible_is_refused(change, error, words):
    told = {"weight": np.ones((2, 3), np.float32), "grid": Grid(4), "axis": 0, **change}
    with pytest.raises(error, match=words):
        half_quadratic_range(**told)
