from __future__ import annotations

import numpy as np
import pytest

from alula.errors import DataError
from alula.numerics.folding import fold_batch_norm
from tests.oracles import quantization as oracle


def normalisation(channels, seed=0):
    generator = np.random.default_rng(seed)
    scale = generator.standard_normal(channels)  # negative gammas too
    scale[0] = 0.0
    variance = generator.uniform(0.1, 3, channels)
    variance[-1] = 0.0
    values = {"scale": scale, "offset": generator.standard_normal(channels)}
    return values | {"mean": generator.standard_normal(channels), "variance": variance, "epsilon": 1e-3}


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("with_bias", [True, False])
def test_convolution_then_normalisation_is_one_convolution(groups, with_bias):
    generator = np.random.default_rng(groups)
    weight = generator.standard_normal((6, 4 // groups, 3))
    bias = generator.standard_normal(6) if with_bias else None
    inputs = generator.standard_normal((2, 4, 7))
    settings = normalisation(6)
    wanted = oracle.batch_norm(oracle.convolution(inputs, weight, bias, groups), **settings)
    got = oracle.convolution(inputs, *fold_batch_norm(weight, bias, **settings), groups)
    np.testing.assert_allclose(got, wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_transposed_convolution_has_its_outputs_on_axis_1(groups):
    generator = np.random.default_rng(groups)
    weight = generator.standard_normal((8, 8 // groups, 3))
    inputs = generator.standard_normal((2, 8, 5))
    settings = normalisation(8)
    wanted = oracle.batch_norm(oracle.transposed_convolution(inputs, weight, groups), **settings)
    folded, bias = fold_batch_norm(weight, None, **settings, output_axis=1)
    got = oracle.transposed_convolution(inputs, folded, groups) + bias[:, None]
    np.testing.assert_allclose(got, wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("axis", [1, -1])
def test_matrix_product(axis):
    generator = np.random.default_rng(0)
    weight, inputs, settings = generator.standard_normal((5, 6)), generator.standard_normal((3, 5)), normalisation(6)
    wanted = oracle.batch_norm((inputs @ weight)[..., None], **settings)[..., 0]
    folded, bias = fold_batch_norm(weight, None, **settings, output_axis=axis)
    np.testing.assert_allclose(inputs @ folded + bias, wanted, rtol=1e-10)


def test_the_identity_changes_nothing_and_types_stay():
    weight, bias = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32), np.ones(4, np.float32)
    kept = weight.copy()
    folded, shift = fold_batch_norm(
        weight, bias, scale=np.ones(4), offset=np.zeros(4), mean=np.zeros(4), variance=np.ones(4), epsilon=0.0
    )
    np.testing.assert_array_equal(folded, kept)
    np.testing.assert_array_equal(weight, kept)
    np.testing.assert_array_equal(shift, bias)
    assert folded.dtype == shift.dtype == np.float32


@pytest.mark.parametrize(("variance", "epsilon"), [(0.0, 0.0), (-1.0, 1e-5), (np.nan, 1e-5)])
def test_a_variance_that_is_not_positive_is_refused(variance, epsilon):
    settings = normalisation(4) | {"variance": np.full(4, variance), "epsilon": epsilon}
    with pytest.raises(DataError, match="variance \\+ epsilon"):
        fold_batch_norm(np.ones((4, 3)), None, **settings)


def test_other_channels_are_refused():
    with pytest.raises(DataError, match="has not the 4 channels"):
        fold_batch_norm(np.ones((5, 4)), None, **normalisation(4))
    with pytest.raises(DataError, match="has not the 5 channels"):
        fold_batch_norm(np.ones((4, 2)), None, **normalisation(5), output_axis=1)
    with pytest.raises(DataError, match=r"a bias of \(3,\)"):
        fold_batch_norm(np.ones((4, 2)), np.ones(3), **normalisation(4))


def test_a_fold_that_leaves_the_type_is_refused():
    settings = normalisation(4) | {"scale": np.full(4, 1e4)}
    with pytest.raises(DataError, match="finite in float16"):
        fold_batch_norm(np.full((4, 3), 100, np.float16), None, **settings)
