"""Scales that protect the weights which matter most for what a layer gives, before weights are rounded (AWQ).

| symbol | code | shape | unit | meaning |
|---|---|---|---|---|
| W | weights | [out, k] | of the weights | one layer's matrix: y = W x |
| H | moments | [k, k] | inputs squared | mean of x x^T over the calibration data |
| a_j | size | [k] | of the inputs | root of the mean square of input j, sqrt(H_jj) |
| s_j | factors | [k] | | weights of column j are multiplied, inputs j divided by it |
| alpha | exponent | () | | 0 leaves everything as it is |
| Q | rounded | | | onto the grid and back |

    y = (W diag(s)) (diag(s)^-1 x),       s_j = a_j^alpha / sqrt(max a^alpha min a^alpha)
    D = Q(W diag(s)) diag(s)^-1 - W,      harm = E |D x|^2 = tr(D H D^T)        alpha = argmin harm

A weight's error is about as large as before, but what it does to y is divided by s_j: columns of large inputs err less,
the others more.

Source: J. Lin et al. 2023, "AWQ: Activation-aware Weight Quantization", section 3.2, equations 4 and 5, and the grid of
20 exponents. What differs: they run the layer on calibration data for each exponent and take the mean of abs x_j for
a_j; here second moments give the same error without running anything, and a_j with it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from alula.errors import DataError, RecipeError
from alula.numerics.smoothing import smoothing_factors

Floats: TypeAlias = NDArray[np.floating]


@dataclass(frozen=True, slots=True, eq=False)
class Protection:
    """The exponent of least harm, its factors float32 [k], and the harm with them and without."""

    exponent: float
    factors: NDArray[np.float32]
    harm: float
    before: float


def protecting_factors(size: ArrayLike, harm: Callable[[NDArray[np.float32]], float], points: int = 20) -> Protection:
    """The factors of least harm among those of some exponents from 0 on, in steps of 1 / points, below 1.

    Args:
        size: root mean square of each input, [k].
        harm: of rounding all layers that read these inputs, scaled by factors [k].
        points: exponents tried; with 1 nothing is scaled.

    Raises:
        DataError: a size is negative or not finite.
        RecipeError: there is no point.
    """
    if points < 1:
        raise RecipeError(f"at least 1 exponent must be tried, got points={points}")
    tried = [(number / points, protecting_scale(size, number / points)) for number in range(points)]
    harms = [float(harm(factors)) for _, factors in tried]
    best = int(np.argmin(harms))
    return Protection(*tried[best], harms[best], harms[0])


def protecting_scale(size: ArrayLike, exponent: float) -> NDArray[np.float32]:  # [k] -> [k]
    """Factors by the source's equation 5; 1 for inputs that are always 0.

    Raises:
        DataError: a size is negative or not finite.
    """
    given = np.asarray(size, np.float64)
    if given.ndim != 1 or not np.isfinite(given).all() or (given < 0).any():
        raise DataError(
            f"sizes of inputs are finite and not negative, [k], got shape {list(given.shape)}; clean the data"
        )
    seen = given[given > 0]
    middle = np.sqrt(seen.max()) * np.sqrt(seen.min()) if seen.size else 1.0
    return smoothing_factors(given / middle, np.ones_like(given), exponent)


def harm_of_rounding(
    weights: Floats, moments: Floats, factors: Floats, rounded: Callable[[Floats], Floats]
) -> float:  # [out, k], [k, k], [k]
    """tr(D H D^T): how much the squared outputs of a layer change when its scaled weights are rounded."""
    change = rounded(weights * factors).astype(np.float64) / factors - weights
    return float(np.einsum("ok, ok ->", change @ moments, change))
