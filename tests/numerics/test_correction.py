from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from scipy.integrate import quad

from alula.errors import DataError
from alula.numerics.correction import bias_correction, clipped_normal_mean, expected_error_bias
from alula.numerics.grids import Grid, quantize
from tests.oracles import quantization as oracle


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_expected_error_matches_the_expectation_over_a_sample(groups):
    generator = np.random.default_rng(groups)
    weight = generator.standard_normal((8, 4 // groups, 3)).astype(np.float32)
    inputs = generator.standard_normal((6, 4, 9)) + generator.uniform(-3, 3, 4)[:, None]
    inputs[...] = inputs.mean(axis=2, keepdims=True)  # the same at every position, where the equation is exact
    rough = quantize(weight, Grid(3), axis=0).dequantize()
    shift = oracle.convolution(inputs, rough, groups=groups) - oracle.convolution(inputs, weight, groups=groups)
    got = expected_error_bias(rough - weight, inputs.mean(axis=(0, 2)), groups=groups)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, shift.mean(axis=(0, 2)), rtol=1e-4, atol=1e-5)
    assert np.abs(got).max() > 0.1


def test_expected_error_of_a_gemm():
    generator = np.random.default_rng(0)
    error, inputs = generator.standard_normal((5, 7)), generator.uniform(0, 1, (50, 7))
    wanted = np.mean([[sum(e * x for e, x in zip(row, sample, strict=True)) for row in error] for sample in inputs], 0)
    np.testing.assert_allclose(expected_error_bias(error, inputs.mean(axis=0)), wanted, rtol=1e-5, atol=1e-6)


def test_both_corrections_agree_and_restore_the_mean():
    generator = np.random.default_rng(1)
    weight, bias = generator.standard_normal((6, 10)), generator.standard_normal(6)
    inputs = generator.uniform(0, 2, (400, 10))
    rough = quantize(weight, Grid(2), axis=0).dequantize()
    wanted, got = (inputs @ weight.T + bias).mean(axis=0), (inputs @ rough.T + bias).mean(axis=0)
    correction = bias_correction(wanted, got)
    np.testing.assert_allclose(correction, -expected_error_bias(rough - weight, inputs.mean(axis=0)), atol=1e-5)
    np.testing.assert_allclose((inputs @ rough.T + bias + correction).mean(axis=0), wanted, atol=1e-5)


def test_without_error_there_is_nothing_to_correct():
    np.testing.assert_array_equal(expected_error_bias(np.zeros((3, 2, 5)), np.ones(2)), np.zeros(3))
    np.testing.assert_array_equal(bias_correction([1.0, 2.0], [1.0, 2.0]), np.zeros(2))


@pytest.mark.parametrize(
    ("shape", "channels", "groups"), [((4, 3), 2, 1), ((4, 3), 3, 2), ((3, 2), 4, 2), ((4,), 4, 1)]
)
def test_channels_that_do_not_fit_are_refused(shape, channels, groups):
    with pytest.raises(DataError, match=f"groups={groups}"):
        expected_error_bias(np.zeros(shape), np.zeros(channels), groups=groups)


def test_means_of_other_channels_are_refused():
    with pytest.raises(DataError, match=r"\(2,\) and \(1,\)"):
        bias_correction([1, 2], [1])


def integrated(mean, deviation, low, high):
    """The mean of a clipped normal number by its definition, from where its density is no more than noise."""

    def clipped(z):
        density = math.exp(-(((z - mean) / deviation) ** 2) / 2) / (deviation * math.sqrt(2 * math.pi))
        return min(max(z, low), high) * density

    ends = [mean - 12 * deviation, *sorted(end for end in {low, high} if abs(end - mean) < 12 * deviation),
            mean + 12 * deviation]  # fmt: skip
    return sum(quad(clipped, *pair, epsabs=1e-12)[0] for pair in pairwise(ends))


@pytest.mark.parametrize(("low", "high"), [(0, math.inf), (0, 6), (-1, 1), (-math.inf, 0.5), (-math.inf, math.inf)])
def test_mean_of_clipped_normal_numbers_is_their_integral(low, high):
    means, deviations = np.meshgrid([-9.0, -1.0, 0.0, 0.3, 5.0, 40.0], [0.01, 0.5, 1.0, 7.0])
    got = clipped_normal_mean(means.ravel(), deviations.ravel(), low=low, high=high)
    wanted = [integrated(*pair, low, high) for pair in zip(means.ravel(), deviations.ravel(), strict=True)]
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-7)


def test_mean_of_clipped_normal_numbers_is_that_of_a_sample():
    sample = np.random.default_rng(0).normal(0.5, 2, 200_000)
    for low, high in ((0, math.inf), (0, 1)):
        got = clipped_normal_mean([0.5], [2], low=low, high=high)
        assert abs(np.clip(sample, low, high).mean() - got[0]) < 0.01


def test_limit_cases_of_clipped_normal_numbers():
    means = np.array([-2.0, 0, 1.5, 9])
    np.testing.assert_array_equal(clipped_normal_mean(means, np.zeros(4), high=6), [0, 0, 1.5, 6])
    np.testing.assert_allclose(clipped_normal_mean(means, np.ones(4), low=-math.inf), means, rtol=1e-6)
    np.testing.assert_allclose(clipped_normal_mean(means, np.ones(4), high=1e9), clipped_normal_mean(means, np.ones(4)))
    np.testing.assert_allclose(clipped_normal_mean([0], [3]), 3 / math.sqrt(2 * math.pi), rtol=1e-6)
    for tiny in (1e-30, 1e-300):
        np.testing.assert_allclose(clipped_normal_mean(means, np.full(4, tiny)), np.maximum(means, 0), atol=1e-29)
    np.testing.assert_array_equal(clipped_normal_mean(means, np.ones(4), low=2, high=2), np.full(4, 2))
    assert clipped_normal_mean([], []).shape == (0,)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (([1.0], [1.0, 2.0], {}), "of the same channels"),
        (([np.nan], [1.0], {}), "must be finite"),
        (([1.0], [np.inf], {}), "must be finite"),
        (([1.0], [-0.1], {}), "at least 0"),
        (([1.0], [1.0], {"low": 2.0, "high": 1.0}), "low at most high"),
        (([1.0], [1.0], {"low": math.nan}), "low at most high"),
    ],
)
def test_impossible_normal_numbers(given, words):
    mean, deviation, ends = given
    with pytest.raises(DataError, match=words):
        clipped_normal_mean(mean, deviation, **ends)
