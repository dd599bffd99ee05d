"""Small floats against ml_dtypes, microscaling against the specification's steps, NF4 and ternary by brute force."""

from __future__ import annotations

import itertools
import math
from statistics import NormalDist

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alula.errors import DataError, RecipeError
from alula.numerics.formats import (
    E2M1,
    E4M3,
    E5M2,
    MICROSCALING_BLOCK,
    NORMAL_FLOAT,
    TERNARY_THRESHOLD,
    round_to,
    to_float,
    to_microscaling,
    to_normal_float,
    to_shifted_grid,
    to_ternary,
)
from alula.numerics.grids import Grid, parameter_shape
from alula.numerics.grids import quantize as quantize_to_grid
from tests.oracles.quantization import parameter_index

TYPES = {E4M3: ml_dtypes.float8_e4m3fn, E5M2: ml_dtypes.float8_e5m2, E2M1: ml_dtypes.float4_e2m1fn}
FORMATS = pytest.mark.parametrize("form", TYPES, ids=["E4M3", "E5M2", "E2M1"])
LARGEST = float(np.finfo(np.float32).max)
TINY = float(np.finfo(np.float32).tiny)
WAYS = {
    "float": lambda array, axis, block: to_float(array, E4M3, axis=axis, block=block),
    "float4": lambda array, axis, block: to_float(array, E2M1, axis=axis, block=block),
    "normal": lambda array, axis, block: to_normal_float(array, axis=axis, block=block),
    "ternary": lambda array, axis, block: to_ternary(array, axis=axis, block=block),
    "threshold": lambda array, axis, block: to_ternary(array, axis=axis, block=block, threshold=TERNARY_THRESHOLD),
    "shifted": lambda array, axis, block: to_shifted_grid(array, Grid(4), axis=axis, block=block),
}
finite = st.floats(width=32, allow_nan=False, allow_infinity=False)


@st.composite
def cases(draw):
    """An array with an axis and a block that fit it, or none."""
    shape = tuple(draw(st.lists(st.integers(1, 5), min_size=0, max_size=3)))
    count = math.prod(shape)
    moderate = st.floats(width=32, min_value=-(2.0**60), max_value=2.0**60)
    array = np.array(draw(st.lists(moderate, min_size=count, max_size=count)), np.float32).reshape(shape)
    axis = draw(st.none() | st.integers(-len(shape), len(shape) - 1)) if shape else None
    return array, axis, None if axis is None else draw(st.none() | st.integers(1, 6))


def members(array, axis, block):
    """The indices that share a scale, by the place of the scale."""
    found = {}
    for index in np.ndindex(array.shape):
        found.setdefault(parameter_index(index, None if axis is None else axis % array.ndim, block), []).append(index)
    return found


def values_of(result):
    return result.dequantize() if hasattr(result, "dequantize") else result.values()


def all_values(kind):
    """Every finite number of a type of ml_dtypes, from its bits."""
    bits = 4 if kind is ml_dtypes.float4_e2m1fn else 8
    values = np.arange(1 << bits, dtype=np.uint8).view(kind).astype(np.float32)
    return np.unique(values[np.isfinite(values)])


@FORMATS
def test_a_format_knows_its_numbers(form):
    np.testing.assert_array_equal(form.values, all_values(TYPES[form]))
    assert form.values[-1] == form.largest
    assert 2.0**form.largest_exponent <= form.largest < 2.0 ** (form.largest_exponent + 1)


@FORMATS
def test_numbers_of_the_format_stay_and_ties_go_to_the_even_digit(form):
    values = form.values
    np.testing.assert_array_equal(round_to(values, form), values)
    ties = (values[1:] + values[:-1]) / 2  # all of them, exactly
    wanted = ties.astype(TYPES[form]).astype(np.float32)
    np.testing.assert_array_equal(round_to(ties, form), wanted)
    assert {float(np.sign(one - tie)) for one, tie in zip(wanted, ties, strict=True)} == {-1.0, 1.0}, "both ways"
    for side in (-np.inf, np.inf):
        beside = np.nextafter(ties, np.float32(side))
        np.testing.assert_array_equal(round_to(beside, form), beside.astype(TYPES[form]).astype(np.float32))


@FORMATS
@settings(max_examples=50, deadline=None)
@given(values=st.lists(finite, max_size=20))
def test_rounding_matches_the_library_and_saturates(form, values):
    array = np.array(values, np.float32)
    within = np.clip(array, -form.largest, form.largest)
    np.testing.assert_array_equal(round_to(array, form), within.astype(TYPES[form]).astype(np.float32))


@FORMATS
def test_beyond_the_largest_it_saturates(form):
    beyond = [np.nextafter(np.float32(form.largest), np.float32(np.inf)), 2 * form.largest, LARGEST]
    assert round_to(beyond, form).tolist() == [form.largest] * 3
    assert round_to(-np.array(beyond), form).tolist() == [-form.largest] * 3


@settings(max_examples=60, deadline=None)
@given(cases())
def test_floats_are_scaled_by_the_largest_of_their_group(case):
    array, axis, block = case
    for form, kind in TYPES.items():
        result = to_float(array, form, axis=axis, block=block)
        assert result.scale.shape == parameter_shape(array.shape, axis, block)
        for place, group in members(array, axis, block).items():
            largest = max(abs(float(array[index])) for index in group)
            scale = np.float32(max(largest / form.largest, TINY)) if largest else np.float32(1)
            assert result.scale[place] == scale
            for index in group:
                quotient = np.clip(array[index] / scale, -form.largest, form.largest)
                assert result.elements[index] == np.float32(quotient.astype(kind))
                assert result.values()[index] == result.elements[index] * scale


@pytest.mark.parametrize("form", [E2M1, E4M3, E5M2], ids=["MXFP4", "MXFP8 E4M3", "MXFP8 E5M2"])
@pytest.mark.parametrize(
    ("shape", "axis"), [((70,), 0), ((3, 64), 1), ((64, 3), -2), ((2, 33, 2), 1), ((4, 1), 1)], ids=str
)
def test_microscaling_follows_the_steps_of_the_specification(form, shape, axis):
    """OCP MX 1.0, section 6.3: X = largest power of two <= max |V|, over that of the largest element; P = V / X."""
    random = np.random.default_rng(len(shape))
    array = (random.standard_normal(shape) * 2.0 ** random.integers(-20, 20, shape)).astype(np.float32)
    result = to_microscaling(array, form, axis=axis)
    exponent = {E2M1: 2, E4M3: 8, E5M2: 15}[form]  # table 1 of the specification
    assert result.block == MICROSCALING_BLOCK == 32
    for place, group in members(array, axis, 32).items():
        power = 1.0
        largest = max(abs(float(array[index])) for index in group)
        while power <= largest / 2:
            power *= 2
        while power > largest:
            power /= 2
        scale = power / 2**exponent
        assert result.scale[place] == scale
        for index in group:
            quotient = np.float32(np.clip(array[index] / scale, -form.largest, form.largest))
            assert result.elements[index] == np.float32(quotient.astype(TYPES[form]))


def test_the_largest_of_a_microscaled_block_saturates():
    assert to_microscaling([7.9, 1.0], E2M1, axis=0).values().tolist() == [6.0, 1.0]
    assert to_microscaling([8.0, 1.0], E2M1, axis=0).values().tolist() == [8.0, 1.0]


def test_normal_float_is_made_of_quantiles():
    """Dettmers et al. 2023, section 3: seven and eight quantiles between 1/2 and 0.9677, over the largest, and 0."""
    quantile = NormalDist().inv_cdf
    above, below = (
        [quantile(0.5 + (0.9677083 - 0.5) * place / count) for place in range(1, count + 1)] for count in (8, 7)
    )
    wanted = sorted([-one / above[-1] for one in below] + [0] + [one / above[-1] for one in above])
    np.testing.assert_allclose(NORMAL_FLOAT, wanted, atol=1e-6)
    assert (NORMAL_FLOAT[0], NORMAL_FLOAT[7], NORMAL_FLOAT[15]) == (-1, 0, 1)


@settings(max_examples=60, deadline=None)
@given(cases())
def test_no_number_of_normal_float_is_nearer(case):
    array, axis, block = case
    result = to_normal_float(array, axis=axis, block=block)
    assert np.isin(result.elements, NORMAL_FLOAT).all()
    for place, group in members(array, axis, block).items():
        largest = max(abs(float(array[index])) for index in group)
        assert result.scale[place] == (np.float32(max(largest, TINY)) if largest else 1)
        for index in group:
            quotient = float(np.float32(array[index] / result.scale[place]))
            nearest = min(abs(quotient - float(one)) for one in NORMAL_FLOAT)
            assert abs(quotient - float(result.elements[index])) <= nearest


def least_ternary_error(group):
    """Over every choice of -1, 0 and 1 for each value, and the best scale of each."""
    best = sum(value**2 for value in group)
    for signs in itertools.product((-1, 0, 1), repeat=len(group)):
        count = sum(map(abs, signs))
        scale = sum(sign * value for sign, value in zip(signs, group, strict=True)) / max(count, 1)
        error = sum((value - scale * sign) ** 2 for sign, value in zip(signs, group, strict=True))
        best = min(best, error)
    return best


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(-40, 40).map(lambda whole: whole / 8), min_size=1, max_size=7), st.integers(1, 7))
def test_no_ternary_choice_is_better(values, block):
    array = np.array(values, np.float32)
    result = to_ternary(array, axis=0, block=block)
    assert np.isin(result.elements, (-1, 0, 1)).all()
    for group in members(array, 0, block).values():
        error = sum(float(array[index] - result.values()[index]) ** 2 for index in group)
        assert error == pytest.approx(least_ternary_error([float(array[index]) for index in group]), abs=1e-4)


@settings(max_examples=60, deadline=None)
@given(cases(), st.sampled_from([0.0, 0.7, 1.3]))
def test_the_threshold_is_that_of_the_paper(case, threshold):
    """Li et al. 2016: what is larger than 0.7 of the mean magnitude; its mean magnitude is the scale."""
    array, axis, block = case
    result = to_ternary(array, axis=axis, block=block, threshold=threshold)
    for place, group in members(array, axis, block).items():
        magnitudes = [abs(float(array[index])) for index in group]
        limit = threshold * (sum(magnitudes) / len(group))
        near = any(abs(one - limit) <= 1e-9 * limit for one in magnitudes)  # rounding decides
        kept = [one for one in magnitudes if one > limit]
        if near and limit:
            continue
        scale = max(sum(kept) / len(kept), TINY) if kept else 1.0
        assert result.scale[place] == pytest.approx(scale, rel=1e-6)
        assert [abs(float(result.elements[index])) for index in group] == [float(one > limit) for one in magnitudes]
        assert all(result.elements[index] * array[index] >= 0 for index in group)


def test_the_published_threshold_is_near_the_best_for_normal_weights():
    weight = np.random.default_rng(0).standard_normal((8, 4096)).astype(np.float32)
    best, published, poor = (
        ((weight - to_ternary(weight, axis=0, threshold=one).values()) ** 2).sum() for one in (None, 0.7, 1.4)
    )
    assert best <= published <= 1.01 * best < 1.2 * best < poor


@settings(max_examples=60, deadline=None)
@given(cases(), st.sampled_from([Grid(2, narrow=True), Grid(4), Grid(8, narrow=True), Grid(8, signed=False)]))
def test_steps_that_are_powers_of_two_are_the_next_above_the_finest(case, grid):
    array, axis, block = case
    fine = quantize_to_grid(array, grid, axis=axis, block=block)
    result = to_shifted_grid(array, grid, axis=axis, block=block)
    assert (np.frexp(result.scale)[0] == 0.5).all()
    assert (result.scale >= fine.scale).all()
    assert (result.scale / 2 < fine.scale).all()
    steps = np.abs(array - result.dequantize())
    for place, group in members(array, axis, block).items():
        assert all(steps[index] <= result.scale[place] / 2 for index in group), "nothing saturates"


def test_a_step_that_is_a_power_of_two_stays():
    array = np.array([3.5, -1.5, 0.5], np.float32)
    assert to_shifted_grid(array, Grid(4)).scale == 0.5
    np.testing.assert_array_equal(to_shifted_grid(array, Grid(4)).dequantize(), array)
    with pytest.raises(RecipeError, match="symmetric"):
        to_shifted_grid(array, Grid(4, symmetric=False))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("largest", [LARGEST, LARGEST / 3, 1e-37, 1e-42])
def test_the_ends_of_float32(way, largest):
    """Scales are normal numbers, nothing becomes infinite, signs stay."""
    array = np.float32(largest) * np.array([[1, -1, 0.5, 0.3], [0, 0, 0, 0], [0.3, -0.25, 0, 1]], np.float32)
    for axis, block in ((None, None), (0, None), (1, 3)):
        result = WAYS[way](array, axis, block)
        values = values_of(result)
        assert (result.scale >= TINY).all()
        assert np.isfinite(values).all()
        assert (values * np.sign(array) >= 0).all()
        assert (values[1] == 0).all()
        assert result.scale[1].tolist() == (1.0 if axis == 0 else [1.0, 1.0]) if axis is not None else True
        if largest > 1e-30:
            assert np.abs(values - array).max() <= 0.5 * largest


@pytest.mark.parametrize("form", [E2M1, E4M3, E5M2])
@pytest.mark.parametrize("largest", [LARGEST, 1e-37, 1e-42, 0.0])
def test_the_ends_of_microscaling(form, largest):
    result = to_microscaling(np.float32(largest) * np.array([1, -0.5, 0], np.float32), form, axis=0)
    assert np.isfinite(result.values()).all()
    assert (np.frexp(result.scale)[0] == 0.5).all()
    assert (result.scale >= TINY).all()
    assert 0 <= float(result.values()[0]) <= 1.25 * largest
    assert largest or result.scale.tolist() == [1.0]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("shape", "axis", "block"),
    [((), None, None), ((0,), None, None), ((0, 3), 0, 2), ((3, 0), 0, None), ((1,), 0, 9), ((0, 3), 1, None)],
    ids=str,
)
def test_arrays_with_no_or_one_value(way, shape, axis, block):
    result = WAYS[way](np.full(shape, 0.75, np.float32), axis, block)
    assert values_of(result).shape == shape
    assert result.scale.shape == parameter_shape(shape, axis, block)
    if way != "shifted":
        np.testing.assert_array_equal(values_of(result), np.full(shape, 0.75, np.float32))


@pytest.mark.parametrize("way", WAYS)
def test_what_is_not_finite_or_does_not_fit_is_refused(way):
    for poison in (np.nan, np.inf, -np.inf):
        with pytest.raises(DataError, match=r"1 NaN and 0 infinite|0 NaN and 1 infinite"):
            WAYS[way](np.array([1.0, poison], np.float32), None, None)
    with pytest.raises(RecipeError, match="axis"):
        WAYS[way](np.ones((2, 2), np.float32), 2, None)
    with pytest.raises(RecipeError, match="block"):
        WAYS[way](np.ones((2, 2), np.float32), 1, 0)


def test_more_that_is_refused():
    with pytest.raises(DataError, match="NaN"):
        round_to([np.nan], E4M3)
    with pytest.raises(DataError, match="infinite"):
        to_microscaling([np.inf], E2M1, axis=0)
    with pytest.raises(RecipeError, match="axis"):
        to_microscaling([1.0], E2M1, axis=1)
    with pytest.raises(RecipeError, match=r"at least 0, got -0\.1"):
        to_ternary([1.0], threshold=-0.1)
