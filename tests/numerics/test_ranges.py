from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alula.errors import DataError, RecipeError
from alula.numerics.grids import Grid, parameter_shape, quantize, scale_and_zero_point
from alula.numerics.histogram import FloatHistogram
from alula.numerics.ranges import (
    Entropy,
    MeanSquaredError,
    MinMax,
    Percentile,
    RangeMethod,
    channel_mean_squared_error_range,
    output_error_range,
)
from tests.oracles import quantization as oracle

METHODS: list[RangeMethod] = [MinMax(), Percentile(), MeanSquaredError(), Entropy()]
GRIDS = [
    Grid(8),
    Grid(8, narrow=True),
    Grid(8, signed=False),
    Grid(8, signed=False, symmetric=False),
    Grid(4),
    Grid(4, symmetric=False),
    Grid(2),
    Grid(16),
    Grid(16, signed=False, symmetric=False),
]


def normal(size=20_000, seed=0):
    return np.random.default_rng(seed).standard_normal(size).astype(np.float32)


def sample_of(array):
    return np.unique(np.asarray(array, np.float32), return_counts=True)


def histogram_sample(array):
    histogram = FloatHistogram()
    histogram.add(array)
    return histogram.occupied()


def squared_error(array, grid, ends):
    back = quantize(array, grid, minimum=ends[0], maximum=ends[1]).dequantize()
    return float(np.square(back.astype(np.float64) - array).sum())


SHAPES = {
    "normal": normal(),
    "relu": np.maximum(normal(), 0),
    "negative": -np.abs(normal()) - 1,
    "silu": normal() * 3 / (1 + np.exp(-normal() * 3)),
    "laplace": np.random.default_rng(1).laplace(size=20_000).astype(np.float32),
    "uniform": np.random.default_rng(2).uniform(-1, 3, 20_000).astype(np.float32),
    "two values": np.array([-1.0, 2.0] * 50, np.float32),
    "outlier": np.append(normal(), np.float32(60)),
    "tiny": normal() * np.float32(1e-40),
    "huge": normal() * np.float32(5e37),
}


@pytest.mark.parametrize("method", METHODS, ids=lambda m: type(m).__name__)
@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("name", SHAPES)
def test_ranges_are_ordered_and_lie_within_what_was_seen(method, grid, name):
    values, counts = histogram_sample(SHAPES[name])
    low, high = method.range(values, counts, grid)
    assert isinstance(low, float)
    assert isinstance(high, float)
    slack = 1e-6 * float(np.abs(values).max())
    assert min(float(values[0]), 0) - slack <= low <= high <= max(float(values[-1]), 0) + slack
    assert method.range(values, counts, grid) == (low, high)


@pytest.mark.parametrize("method", METHODS, ids=lambda m: type(m).__name__)
@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("value", [0.0, 3.5, -3.5, 1e-40, 3e38])
def test_one_value_is_kept(method, grid, value):
    low, high = method.range([value], [7], grid)
    back = quantize(np.float32(value), grid, minimum=low, maximum=high).dequantize()
    assert back == pytest.approx(np.float32(value), rel=2e-5, abs=1.2e-38)


@pytest.mark.parametrize("method", [MeanSquaredError(), Entropy(), Percentile(100)], ids=lambda m: type(m).__name__)
@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("name", ["normal", "relu", "silu", "uniform", "outlier"])
def test_sixteen_bits_need_no_clipping(method, signed, symmetric, name):
    values, counts = sample_of(SHAPES[name])
    low, high = method.range(values, counts, Grid(16, signed, symmetric))
    assert low == pytest.approx(float(values[0]), abs=0.01 * float(np.abs(values).max()))
    assert high == pytest.approx(float(values[-1]), rel=0.01)


@pytest.mark.parametrize("grid", [Grid(8), Grid(8, False, False), Grid(8, False)], ids=str)
def test_a_uniform_distribution_keeps_nearly_its_full_range(grid):
    values, counts = histogram_sample(np.random.default_rng(0).uniform(-2, 2, 50_000))
    for method in (MeanSquaredError(), Entropy()):
        low, high = method.range(values, counts, grid)
        assert low == pytest.approx(-2, rel=0.03)
        assert high == pytest.approx(2, rel=0.03)


@pytest.mark.parametrize("method", [Percentile(), MeanSquaredError(), Entropy()], ids=lambda m: type(m).__name__)
@pytest.mark.parametrize("grid", [Grid(8), Grid(8, False, False), Grid(4)], ids=str)
@pytest.mark.parametrize("outlier", [400.0, -400.0])
def test_one_giant_outlier_is_clipped(method, grid, outlier):
    low, high = method.range(*histogram_sample(np.append(normal(200_000), np.float32(outlier))), grid)
    assert max(-low, high) < 350  # 256 levels of 400 / 256 are worth keeping much of it: 400 / (1 + n / (12 * 255^2))
    assert min(-low, high) > 1.5


def test_entropy_finds_outliers_however_large():
    array = np.append(normal(200_000), np.float32(1e6))
    for grid in (Grid(8), Grid(8, False, False)):
        low, high = Entropy().range(*histogram_sample(array), grid)
        assert 3 < high < 1000
        assert low < -2


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(-50, 50), st.integers(1, 9)), min_size=1, max_size=12, unique_by=lambda p: p[0]),
    st.sampled_from([1.0, 10.0, 50.0, 90.0, 99.0, 100.0]),
    st.booleans(),
)
def test_percentile_matches_the_sample_written_out(pairs, percent, symmetric):
    values, counts = zip(*sorted(pairs), strict=True)
    got = Percentile(percent).range(values, counts, Grid(8, symmetric=symmetric))
    assert got == oracle.percentile(values, counts, percent, symmetric)


@pytest.mark.parametrize("grid", [Grid(2), Grid(3, False, False), Grid(4), Grid(4, True, False)], ids=str)
@pytest.mark.parametrize("name", ["normal", "relu", "negative", "silu", "two values", "outlier"])
def test_mean_squared_error_matches_brute_force(grid, name):
    array = SHAPES[name][-60:]
    values, counts = sample_of(array)
    best = oracle.least_squared_error(values, counts, grid, steps=25)
    found = oracle.squared_error(values, counts, *MeanSquaredError().range(values, counts, grid), grid)
    allowed = 1.02 if grid.symmetric else 1.10  # an asymmetric search goes down one end at a time
    assert found <= best * allowed + 1e-6 * float(np.square(array).sum())


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("name", SHAPES)
def test_mean_squared_error_is_no_worse_than_any_other_method(grid, name):
    values, counts = sample_of(SHAPES[name])
    unit = float(np.abs(values).max())
    array = (SHAPES[name].astype(np.float64) / unit).astype(np.float32)
    errors = [
        squared_error(array, grid, [end / unit for end in method.range(values, counts, grid)]) for method in METHODS
    ]
    assert errors[2] <= min(errors) * 1.02 + 1e-7 * len(array) / grid.levels**2


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("seed", range(3))
def test_entropy_matches_the_exhaustive_search(bits, seed):
    """Magnitudes in the middle of 64 linear bins, the last at its end: every window from 0, by the oracle."""
    bins, grid = 64, Grid(bits)
    histogram, _ = np.histogram(np.abs(np.random.default_rng(seed).laplace(size=4000)), bins)
    values = np.append(np.arange(bins - 1) + 0.5, bins)
    levels = grid.highest + 1
    by_stop = {s: oracle.divergence(histogram.tolist(), 0, 0, 0, s, levels) for s in range(levels, bins + 1)}
    low, high = Entropy(bins=bins, candidates=bins).range(values, histogram, grid)
    assert low == 0.5  # the least magnitude seen
    assert high == min(by_stop, key=lambda s: (round(by_stop[s], 12), -s))
    assert high < bins


WEIGHTS = (
    normal(6 * 10 * 4, seed=5).reshape(6, 10, 4) * np.array([1e-42, 1e-3, 1, 5, 1e3, 1e36], np.float32)[:, None, None]
)


@pytest.mark.parametrize("grid", [Grid(8), Grid(4), Grid(4, narrow=True), Grid(3, False, False), Grid(2)], ids=str)
@pytest.mark.parametrize(("axis", "block"), [(None, None), (0, None), (1, None), (-1, None), (0, 4), (1, 4), (2, 2)])
def test_channel_ranges_match_each_channel_alone(grid, axis, block):
    low, high = channel_mean_squared_error_range(WEIGHTS, grid, axis=axis, block=block)
    assert low.shape == high.shape == parameter_shape(WEIGHTS.shape, axis, block)
    assert low.dtype == high.dtype == np.float32
    members = {}
    for index in np.ndindex(WEIGHTS.shape):
        members.setdefault(oracle.parameter_index(index, None if axis is None else axis % 3, block), []).append(index)
    for key, indices in members.items():
        alone = np.array([WEIGHTS[i] for i in indices])
        wanted_low, wanted_high = channel_mean_squared_error_range(alone, grid, axis=None)
        assert (low[key], high[key]) == (wanted_low, wanted_high)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_channel_search_matches_a_dense_search_by_the_oracle(bits):
    grid = Grid(bits)
    array = normal(200, seed=bits)
    low, high = channel_mean_squared_error_range(array[None], grid, axis=0)
    found = oracle.squared_error(array, np.ones(200), float(low[0]), float(high[0]), grid)
    size = float(np.abs(array).max())
    dense = [
        oracle.squared_error(array, np.ones(200), max(float(array.min()), -t), min(float(array.max()), t), grid)
        for t in np.linspace(0.05, 1, 200) * size
    ]
    assert found <= min(dense) * (1.02 if bits < 8 else 1.05)


@pytest.mark.parametrize("grid", [Grid(8), Grid(4), Grid(2), Grid(4, False, False)], ids=str)
def test_channel_ranges_never_do_worse_than_min_max(grid):
    array = WEIGHTS[1:5]
    low, high = channel_mean_squared_error_range(array, grid, axis=0)
    searched = np.square(quantize(array, grid, axis=0, minimum=low, maximum=high).dequantize() - array).sum(axis=(1, 2))
    plain = np.square(quantize(array, grid, axis=0).dequantize() - array).sum(axis=(1, 2))
    assert (searched <= plain * 1.0001).all()


def test_channels_of_zeros_and_empty_weights():
    array = np.zeros((3, 5), np.float32)
    array[1] = np.arange(5)
    low, high = channel_mean_squared_error_range(array, Grid(8), axis=0)
    np.testing.assert_array_equal(low, 0)
    np.testing.assert_allclose(high, [0, 4, 0], rtol=0.02)
    for shape in ((0, 4), (4, 0)):
        low, high = channel_mean_squared_error_range(np.zeros(shape), Grid(4), axis=0)
        assert low.shape == (shape[0],)


def test_the_weight_is_not_changed():
    kept = WEIGHTS.copy()
    channel_mean_squared_error_range(WEIGHTS, Grid(4), axis=1, block=4)
    np.testing.assert_array_equal(WEIGHTS, kept)


@pytest.mark.parametrize("method", METHODS, ids=lambda m: type(m).__name__)
@pytest.mark.parametrize(
    ("values", "counts", "message"),
    [
        ([], [], "at least one value"),
        ([1.0], [0], "at least one value"),
        ([1.0, 2.0], [1], r"shapes \(2,\) and \(1,\)"),
        ([2.0, 1.0], [1, 1], "ascending"),
        ([1.0, np.nan], [1, 1], "finite"),
        ([1.0, np.inf], [1, 1], "finite"),
        ([1.0], [-1], "not negative"),
    ],
)
def test_broken_samples_are_refused(method, values, counts, message):
    with pytest.raises(DataError, match=message):
        method.range(values, counts, Grid(8))


def test_impossible_settings_are_refused():
    for percent in (0, -1, 100.1):
        with pytest.raises(RecipeError, match="percentile"):
            Percentile(percent)
    with pytest.raises(RecipeError, match="8 candidates, got 7"):
        MeanSquaredError(7)
    with pytest.raises(RecipeError, match="8 candidates, got 0"):
        Entropy(candidates=0)
    with pytest.raises(RecipeError, match="bins=1"):
        Entropy(bins=1)
    with pytest.raises(RecipeError, match="8 candidates"):
        channel_mean_squared_error_range(np.ones((2, 2)), Grid(8), axis=0, candidates=1)
    with pytest.raises(DataError, match="1 NaN"):
        channel_mean_squared_error_range(np.array([[np.nan, 1]]), Grid(8), axis=0)


def textbook_output_error(row, moments, grid, limit):
    """(w - Q(w))^T M (w - Q(w)), weight by weight."""
    low, high = max(min(row.min(), 0), -limit), min(max(row.max(), 0), limit)
    scale, zero = scale_and_zero_point(low, high, grid)
    codes = [min(max(round(float(np.float32(w) / scale)) + int(zero), grid.lowest), grid.highest) for w in row]
    change = [float(w) - (code - int(zero)) * float(scale) for w, code in zip(row, codes, strict=True)]
    return sum(change[i] * moments[i, j] * change[j] for i in range(len(row)) for j in range(len(row)))


@pytest.mark.parametrize("grid", [Grid(2), Grid(3, symmetric=False), Grid(4)], ids=str)
def test_output_error_range_is_the_best_of_all_that_are_tried(grid):
    """The error is a jagged function of the bound: no worse than the best of 200 bounds, tried by the book."""
    random = np.random.default_rng(3)
    rows = random.standard_t(3, (5, 9)).astype(np.float32)
    inputs = random.standard_normal((40, 9)) @ random.standard_normal((9, 9))
    moments = inputs.T @ inputs / 40
    low, high = output_error_range(rows, moments, grid, candidates=400)
    for row, lower, upper in zip(rows, low, high, strict=True):
        largest = float(np.abs(row).max())
        best = min(textbook_output_error(row, moments, grid, largest * share) for share in np.geomspace(1, 1e-3, 200))
        assert textbook_output_error(row, moments, grid, max(-float(lower), float(upper))) <= 1.0001 * best


def test_output_error_range_of_inputs_alike_is_that_of_the_weights():
    rows = np.random.default_rng(4).standard_normal((6, 12)).astype(np.float32)
    wanted = channel_mean_squared_error_range(rows, Grid(3), axis=0)
    np.testing.assert_allclose(output_error_range(rows, np.eye(12), Grid(3)), wanted, rtol=1e-4)


@pytest.mark.parametrize(("rows", "moments"), [
    (np.ones((2, 3)), np.eye(2)), (np.full((2, 3), np.nan), np.eye(3)), (np.ones((2, 3)), np.full((3, 3), np.inf)),
])  # fmt: skip
def test_output_error_range_refuses_what_does_not_fit(rows, moments):
    with pytest.raises(DataError):
        output_error_range(rows, moments, Grid(4))


def test_output_error_range_of_nothing():
    low, high = output_error_range(np.zeros((3, 0)), np.zeros((0, 0)), Grid(4))
    assert low.tolist() == high.tolist() == [0, 0, 0]
