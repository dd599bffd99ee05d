"""Signal and noise: how far numbers are from what they should be, on a logarithmic scale.

| symbol | code | shape | unit | meaning |
|---|---|---|---|---|
| y, y' | | [n] | of the tensor | what should come out, and what does |
| S | signal | | squared | sum y^2 |
| N | noise | | squared | sum (y' - y)^2 |
| t_c | totals | [C] | of the tensor | sum over channel c of y' - y |

    SQNR   = 10 log10(S / N)  dB                  6.02 dB are one bit
    shift  = sum_c t_c^2 / (n / C) / N            the share of the noise that is the same wherever in a channel, 0 to 1

Sources: B. Widrow and I. Kollar 2008, "Quantization Noise" (SQNR); M. Nagel et al. 2019, "Data-Free Quantization
Through Weight Equalization and Bias Correction", section 4.2 (the biased part of the error, by channel).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike


def decibels(signal: float, noise: float) -> float:
    """The ratio of signal to noise; inf without noise, -inf where noise drowns everything or is not finite.

    >>> decibels(100.0, 1.0), decibels(1.0, 0.0), decibels(0.0, 1.0)
    (20.0, inf, -inf)
    """
    if noise == 0.0:
        return math.inf
    if not math.isfinite(noise) or signal <= 0.0:
        return -math.inf
    return 10.0 * math.log10(signal / noise)


def relative_error(signal: float, noise: float) -> float:
    """sqrt(N / S): 0.1 at 20 dB, 0.01 at 40.

    >>> relative_error(100.0, 1.0), relative_error(1.0, 0.0), relative_error(0.0, 1.0)
    (0.1, 0.0, inf)
    """
    if noise == 0.0:
        return 0.0
    return math.sqrt(noise / signal) if math.isfinite(noise) and signal > 0.0 else math.inf


def shift_share(totals: ArrayLike, noise: float, count: int) -> float:  # totals [C]
    """The share of the noise that is one constant per channel, 0 to 1: what a bias could take off.

    >>> shift_share([3.0, 0.0], noise=9.0, count=2), shift_share([0.0, 0.0], noise=9.0, count=2)
    (1.0, 0.0)
    """
    sums = np.asarray(totals, np.float64)
    if count == 0 or noise <= 0.0 or not math.isfinite(noise):
        return 0.0
    return float(min(1.0, np.sum(sums**2) * sums.size / count / noise))
