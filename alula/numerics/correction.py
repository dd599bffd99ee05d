"""The shift that quantization adds to a layer's mean output, to be taken off its bias.

| symbol | code | shape | unit | meaning |
|---|---|---|---|---|
| y, y~ | output | [..., O, ...] | of the output | output of the original and of the quantized layer |
| W, W~ | | [O, I / groups, kernel...] | | weight of both |
| e = W~ - W | weight_error | [O, I / groups, kernel...] | of the weight | error of the quantized weight |
| E[x] | input_mean | [I] | of the input | mean of each input channel |
| mu, sigma | mean, deviation | [I] | of the input | of a normal number, before it is clipped to [a, b] |
| a, b | low, high | () | of the input | what an activation function clips to: 0 and infinity of ReLU |

    E[y~] - E[y] = e E[x]          so the corrected bias is  b - e E[x],  or  b + (E[y] - E[y~])
    E[clip(z, a, b)] = a Phi(a') + b (1 - Phi(b')) + mu (Phi(b') - Phi(a')) + sigma (phi(a') - phi(b'))
        of z normal, a' = (a - mu) / sigma, b' = (b - mu) / sigma, phi and Phi the normal density and distribution

Source: M. Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction", equation 1 (the
biased error), section 4.2 (its correction), 4.2.1 and appendix C (the mean of a clipped normal number).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from alula.errors import DataError


def bias_correction(output_mean_float: ArrayLike, output_mean_quantized: ArrayLike) -> NDArray[np.float32]:
    """What to add to the bias so that the mean output is the original's: E[y] - E[y~] (Nagel et al. 2019, section 4.2).

    Args:
        output_mean_float: mean output per channel of the original layer, [C].
        output_mean_quantized: the same of the quantized layer on the same inputs, [C].

    Returns:
        float32 [C].

    Raises:
        DataError: the shapes differ.
    """
    wanted = np.asarray(output_mean_float, np.float64)
    got = np.asarray(output_mean_quantized, np.float64)
    if wanted.shape != got.shape:
        raise DataError(f"both means must be of the same channels, got shapes {wanted.shape} and {got.shape}")
    return np.asarray(wanted - got, np.float32)


def clipped_normal_mean(
    mean: ArrayLike, deviation: ArrayLike, *, low: float = 0.0, high: float = math.inf
) -> NDArray[np.float32]:
    """E[clip(z, low, high)] of normal numbers z: what ReLU or a clip gives on average (Nagel et al. 2019, appendix C).

    Args:
        mean: of z, per channel, [C].
        deviation: of z, [C], at least 0; where it is 0, the result is the clipped mean.
        low: least value that passes, or -infinity; 0 of ReLU.
        high: greatest value that passes, or infinity.

    Returns:
        float32 [C].

    Raises:
        DataError: the shapes differ, a number is not finite, a deviation is below 0, or low is above high.
    """
    from scipy.special import ndtr

    centre, sigma = np.asarray(mean, np.float64), np.asarray(deviation, np.float64)
    if centre.shape != sigma.shape or not (np.isfinite(centre).all() and np.isfinite(sigma).all()):
        raise DataError(f"mean and deviation must be finite and of the same channels, got shapes {centre.shape} and "
                        f"{sigma.shape}")  # fmt: skip
    if (sigma < 0).any() or not low <= high:
        raise DataError(f"deviations must be at least 0 and low at most high, got a least deviation of "
                        f"{sigma.min(initial=0.0):g}, {low} and {high}")  # fmt: skip
    spread = np.where(sigma > 0, sigma, 1.0)
    below, above = (low - centre) / spread, (high - centre) / spread  # a', b'
    inside = centre * (ndtr(above) - ndtr(below)) + spread * (_density(below) - _density(above))
    ends = [end * share for end, share in ((low, ndtr(below)), (high, ndtr(-above))) if math.isfinite(end)]
    return np.asarray(np.where(sigma > 0, inside + sum(ends), np.clip(centre, low, high)), np.float32)


def _density(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of the standard normal distribution; 0 in float64 beyond 40."""
    return np.asarray(np.exp(-np.square(np.clip(x, -40, 40)) / 2) / math.sqrt(2 * math.pi))


def expected_error_bias(weight_error: ArrayLike, input_mean: ArrayLike, *, groups: int = 1) -> NDArray[np.float32]:
    """E[y~] - E[y] = e E[x], to be taken off the bias of a Conv or Gemm (Nagel et al. 2019, section 4.2).

    Exact where the input's mean is the same at every position. Zero padding makes it less at the border, by the
    share of the kernel that lies outside.

    Args:
        weight_error: quantized weight - original weight, [O, I / groups, kernel...]; [O, I] of a Gemm.
        input_mean: mean of each input channel, [I].
        groups: groups of the convolution.

    Returns:
        float32 [O].

    Raises:
        DataError: channels and groups do not fit.
    """
    error = np.asarray(weight_error, np.float64)
    mean = np.asarray(input_mean, np.float64)
    if error.ndim < 2 or mean.shape != (error.shape[1] * groups,) or error.shape[0] % groups:
        raise DataError(
            f"a weight error [O, I / groups, kernel...] goes with input means [I] and groups that divide O, "
            f"got {error.shape}, {mean.shape} and groups={groups}"
        )
    per_input = error.sum(axis=tuple(range(2, error.ndim)))  # [O, I / groups]
    grouped = per_input.reshape(groups, -1, error.shape[1])  # [groups, O / groups, I / groups]
    return np.asarray(np.einsum("goi,gi->go", grouped, mean.reshape(groups, -1)).ravel(), np.float32)
