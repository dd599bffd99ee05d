"""Scales of channels moved from what gives them to what reads them: from activations, or weights before, to weights.

| symbol | code | shape | unit | meaning |
|---|---|---|---|---|
| max abs X_j | activation_absmax | [K] | of the activation | largest magnitude of input channel j |
| max abs W_j | weight_absmax | [K] | of the weight | largest magnitude of the weights that channel j meets |
| alpha | strength | | | 0 leaves the activations alone, 1 moves everything |
| s_j | factors | [K] | | activations are divided, weights multiplied by it |

    s_j = max(abs X_j)^alpha / max(abs W_j)^(1 - alpha)           Y = (X / s) (s W) = X W

With the largest weights that compute channel j in place of X_j and alpha = 1/2, both ranges become their geometric
mean: cross-layer equalization.

Sources: G. Xiao et al. 2023, "SmoothQuant", equation 4 (arXiv 2211.10438); M. Nagel et al. 2019, "Data-free
quantization through weight equalization and bias correction", equation 11.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from alula.errors import DataError, RecipeError

_LARGEST_FACTOR: Final = 1e5  # a channel beyond this is dead or broken; its weights must not overflow float16


def smoothing_factors(
    activation_absmax: ArrayLike, weight_absmax: ArrayLike, strength: float = 0.5
) -> NDArray[np.float32]:
    """Factors that activations are divided and weights multiplied by (SmoothQuant, equation 4).

    A channel whose activations or weights are all zero gets 1; the others are held within 1e-5 and 1e5.

    Args:
        activation_absmax: largest magnitude per input channel, [K].
        weight_absmax: largest magnitude of the weights per input channel, [K].
        strength: alpha, 0 to 1.

    Returns:
        float32 [K], positive and finite.

    Raises:
        DataError: the shapes differ, or a magnitude is negative or not finite.
        RecipeError: the strength lies outside 0 to 1.
    """
    activation, weight = np.asarray(activation_absmax, np.float64), np.asarray(weight_absmax, np.float64)
    if not 0.0 <= strength <= 1.0:
        raise RecipeError(f"smoothing strength lies between 0 and 1, got {strength}")
    if activation.shape != weight.shape:
        raise DataError(f"both magnitudes are per input channel, got shapes {activation.shape} and {weight.shape}")
    if not all(np.isfinite(m).all() and (m >= 0).all() for m in (activation, weight)):
        raise DataError("magnitudes must be finite and not negative; look for NaN or infinity in weights and data")
    alive = (activation > 0) & (weight > 0)
    logarithms = np.zeros(activation.shape)
    logarithms[alive] = strength * np.log(activation[alive]) - (1.0 - strength) * np.log(weight[alive])
    limit = np.log(_LARGEST_FACTOR)
    return np.asarray(np.exp(np.clip(logarithms, -limit, limit)), np.float32)
