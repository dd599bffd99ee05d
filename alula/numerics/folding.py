"""A batch normalisation taken into the linear layer before it.

| symbol | code | shape | unit | meaning |
|---|---|---|---|---|
| W | weight | [..., O, ...] | | weight, output channels on `output_axis` |
| b | bias | [O] | of the output | bias, 0 where there is none |
| g, t | scale, offset | [O] | | the normalisation's gamma and beta |
| m, v | mean, variance | [O] | of the output, its square | running moments |
| eps | epsilon | | of the variance | |

    g (W x + b - m) / sqrt(v + eps) + t  =  (a W) x + (a (b - m) + t),      a = g / sqrt(v + eps)

Source: S. Ioffe and C. Szegedy 2015, "Batch Normalization", algorithm 2; B. Jacob et al. 2018, "Quantization and
Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference", equation 14.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from alula.errors import DataError


def fold_batch_norm(
    weight: ArrayLike,
    bias: ArrayLike | None,
    *,
    scale: ArrayLike,
    offset: ArrayLike,
    mean: ArrayLike,
    variance: ArrayLike,
    epsilon: float,
    output_axis: int = 0,
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Weight and bias of the one layer that does both (Ioffe and Szegedy 2015, algorithm 2), computed in float64.

    Args:
        weight: output channels on `output_axis`. A grouped ConvTranspose, [I, O / groups, kernel...] with axis 1, is
            recognised by its O channels of normalisation.
        bias: [O], or None.
        scale: gamma, [O].
        offset: beta, [O].
        mean: running mean, [O].
        variance: running variance, [O].
        epsilon: added to the variance.
        output_axis: 0 of Conv and Gemm, 1 of ConvTranspose and MatMul.

    Returns:
        the new weight and bias, both in the weight's type.

    Raises:
        DataError: the channels do not fit, a variance + epsilon is not positive, or the result is not finite.
    """
    original = np.asarray(weight)
    gamma, beta, average, spread = (np.asarray(p, np.float64) for p in (scale, offset, mean, variance))
    first = np.zeros_like(gamma) if bias is None else np.asarray(bias, np.float64)
    if gamma.ndim != 1 or {p.shape for p in (beta, average, spread, first)} != {gamma.shape}:
        raise DataError(f"bias and normalisation have one number per channel each, got shapes {gamma.shape}, "
                        f"{beta.shape}, {average.shape}, {spread.shape} and a bias of {first.shape}")  # fmt: skip
    if not (spread + epsilon > 0).all():
        raise DataError(f"variance + epsilon must be positive, got a least of {(spread + epsilon).min():g}")
    gain = gamma / np.sqrt(spread + epsilon)  # [O]
    with np.errstate(over="ignore"):
        folded = (original.astype(np.float64) * _along(gain, original.shape, output_axis)).astype(original.dtype)
        shift = ((first - average) * gain + beta).astype(original.dtype)
    if not (np.isfinite(folded).all() and np.isfinite(shift).all()):
        raise DataError(
            f"the folded layer must be finite in {original.dtype}; keep its batch normalization, or widen it"
        )
    return folded, shift


def _along(gain: NDArray[np.float64], shape: tuple[int, ...], output_axis: int) -> NDArray[np.float64]:
    """The gain [O] in a shape that broadcasts with the weight."""
    if shape[output_axis] == gain.size:
        return gain.reshape(tuple(-1 if i == output_axis % len(shape) else 1 for i in range(len(shape))))
    groups = gain.size // max(shape[output_axis], 1)
    if output_axis != 1 or groups * shape[1] != gain.size or shape[0] % groups:
        raise DataError(f"a weight of shape {shape} has not the {gain.size} channels of the normalisation on axis "
                        f"{output_axis}")  # fmt: skip
    by_input = np.repeat(gain.reshape(groups, shape[1]), shape[0] // groups, axis=0)  # [I, O / groups]
    return by_input.reshape(shape[0], shape[1], *(1 for _ in shape[2:]))
