"""Ranges of activations by the output error of the layers that read them, against every range of a fine lattice."""

from __future__ import annotations

import numpy as np
import pytest

from alula.errors import DataError, RecipeError
from alula.numerics.grids import Grid, quantize
from alula.numerics.ranges import MeanSquaredError, OutputError

GRIDS = [Grid(4, signed=False, symmetric=False), Grid(3), Grid(8, signed=False, symmetric=False)]


def drawn(*, groups=1, rows=60, columns=5, outputs=3, seed=0):
    random = np.random.default_rng(seed)
    x = random.laplace(size=(groups, rows, columns)).astype(np.float32) * np.linspace(0.3, 3, columns, dtype=np.float32)
    return x, random.standard_normal((groups, outputs, columns)).astype(np.float32)


def textbook_error(readers, ends, grid):
    """Row by row, output by output."""
    total = 0.0
    for rows, matrix in readers:
        lost = given = 0.0
        for x, w in zip(rows, matrix, strict=True):
            rounded = quantize(x, grid, minimum=np.float32(ends[0]), maximum=np.float32(ends[1])).dequantize()
            for one, other in zip(x.astype(np.float64), rounded.astype(np.float64), strict=True):
                for row in w.astype(np.float64):
                    lost += float(row @ (one - other)) ** 2
                    given += float(row @ one) ** 2
        total += lost / given
    return total


def extremes_of(readers):
    return (float(min(rows.min() for rows, _ in readers)), float(max(rows.max() for rows, _ in readers)))


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_hardly_any_range_of_a_fine_lattice_is_better(grid):
    readers = [drawn()]
    low, high = extremes_of(readers)
    found = textbook_error(readers, OutputError(100).range_for(readers, (low, high), grid), grid)
    factors = np.linspace(0.05, 1, 12)
    best = min(textbook_error(readers, (low * f, high * g), grid) for f in factors for g in factors)
    assert found <= 1.05 * best


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_layers_share_one_range(grid):
    """The range for two layers is judged by the sum of their relative errors, whatever the size of their weights."""
    x, w = drawn(outputs=2)
    other = 1e4 * drawn(outputs=7, seed=1)[1]
    both = [(x, w), (x, other)]
    found = OutputError().range_for(both, extremes_of(both), grid)
    assert found == pytest.approx(
        OutputError().range_for([(x, w), (x, other / 1e4)], extremes_of(both), grid), rel=1e-4
    )
    alone = [OutputError().range_for([one], extremes_of(both), grid) for one in both]
    assert textbook_error(both, found, grid) <= 1.01 * min(textbook_error(both, one, grid) for one in alone)


def test_by_the_identity_it_is_the_squared_error_of_the_values():
    x, _ = drawn(columns=4)
    grid = GRIDS[0]
    ends = OutputError(100).range_for([(x, np.eye(4, dtype=np.float32)[None])], extremes_of([(x, None)]), grid)
    values, counts = np.unique(x, return_counts=True)
    wanted = MeanSquaredError().range(values, counts, grid)
    assert ends == pytest.approx(wanted, rel=0.05)
    assert OutputError(100).range(values, counts, grid) == wanted


def test_what_no_output_depends_on_does_not_widen_the_range():
    x, w = drawn(columns=3)
    x[..., 2] *= 100
    w[..., 2] = 0
    readers = [(x, w)]
    low, high = OutputError().range_for(readers, extremes_of(readers), GRIDS[2])
    assert max(-low, high) < 2 * np.abs(x[..., :2]).max() < np.abs(x).max() / 2


def test_groups_are_read_apart():
    x, w = drawn(groups=3)
    apart = [(x[index : index + 1], w[index : index + 1]) for index in range(3)]
    whole = textbook_error([(x, w)], OutputError().range_for([(x, w)], extremes_of([(x, w)]), GRIDS[0]), GRIDS[0])
    others = [OutputError().range_for([one], extremes_of([(x, w)]), GRIDS[0]) for one in apart]
    assert whole <= 1.01 * min(textbook_error([(x, w)], ends, GRIDS[0]) for ends in others)


def test_long_matrices_are_judged_by_short_ones_of_equal_lengths():
    x, w = drawn(columns=3, outputs=40)
    ends = OutputError(100).range_for([(x, w)], extremes_of([(x, w)]), GRIDS[0])
    factors = np.linspace(0.05, 1, 12)
    low, high = extremes_of([(x, w)])
    best = min(textbook_error([(x, w)], (low * f, high * g), GRIDS[0]) for f in factors for g in factors)
    assert textbook_error([(x, w)], ends, GRIDS[0]) <= 1.05 * best


@pytest.mark.parametrize("value", [0.0, 3.0])
def test_a_single_value_is_covered(value):
    x, w = np.full((1, 4, 2), value, np.float32), np.ones((1, 3, 2), np.float32)
    assert OutputError().range_for([(x, w)], (value, value), GRIDS[0]) == (0.0, value)


def test_what_does_not_fit_is_refused():
    x, w = drawn()
    with pytest.raises(DataError, match="do not fit"):
        OutputError().range_for([(x, w[..., :2])], (-1.0, 1.0), GRIDS[0])
    with pytest.raises(DataError, match="NaN"):
        OutputError().range_for([(x, w * np.nan)], (-1.0, 1.0), GRIDS[0])
    with pytest.raises(RecipeError, match="at least 8 candidates, got 7"):
        OutputError(7)
