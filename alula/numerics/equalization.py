"""Scales moved between two layers in a row, so that no channel of either is much smaller than the others.

| symbol | code | shape | unit | meaning |
|---|---|---|---|---|
| r1_i | given | [channels] | of the weights | largest magnitude of the weights that compute channel i |
| r2_i | taken | [channels] | of the weights | largest magnitude of the weights that read it |
| s_i | factors | [channels] | | the first layer's are divided by it, the second's multiplied |

    s_i = sqrt(r1_i / r2_i), after which both ranges are sqrt(r1_i r2_i);    f(W1 x / s) s = f(W1 x) for homogeneous f

Source: Nagel et al. 2019, "Data-free quantization through weight equalization and bias correction", equation 11.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from alula.errors import DataError

LARGEST_FACTOR: Final = 1e4  # beyond it a channel is dead or broken, and its weights leave what float16 holds


def equalizing_factors(given: NDArray[np.floating], taken: NDArray[np.floating]) -> NDArray[np.float64]:
    """S of each channel; 1 where a range is zero.

    >>> equalizing_factors(np.array([4.0, 1.0, 0.0]), np.array([1.0, 4.0, 2.0])).tolist()
    [2.0, 0.5, 1.0]

    Args:
        given: r1, [channels].
        taken: r2, [channels].

    Raises:
        DataError: the shapes differ, or a range is negative or not finite.
    """
    first, second = given.astype(np.float64), taken.astype(np.float64)
    if first.shape != second.shape:
        raise DataError(f"both ranges are of the same channels, got {first.shape} and {second.shape}")
    if not all(np.isfinite(ranges).all() and (ranges >= 0).all() for ranges in (first, second)):
        raise DataError("ranges must be finite and not negative; look for NaN or infinity in the weights")
    alive = (first > 0) & (second > 0)
    factors = np.ones(first.shape)
    factors[alive] = np.exp(0.5 * (np.log(first[alive]) - np.log(second[alive])))
    return np.clip(factors, 1 / LARGEST_FACTOR, LARGEST_FACTOR)
