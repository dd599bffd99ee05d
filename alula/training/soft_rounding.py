"""Rounding that is learned: how far each weight goes up from the code below it, between not at all and a whole step.

| symbol | code | shape | unit | meaning |
|---|---|---|---|---|
| w | weight | [...] | of the tensor | a layer's weights in float |
| s, z | scale, zero_point | of the grid | of the tensor, codes | the grid, which stays |
| V | variable | as w | - | what is trained |
| h | share | as w | steps | rectified sigmoid of V: 0 is down, 1 is up |
| beta | beta | () | - | how sharply the regulariser tells 0 and 1 from what lies between |

    h(V)  = clip(sigmoid(V) (zeta - gamma) + gamma, 0, 1),      zeta = 1.1, gamma = -0.1        (equation 23)
    w~    = s (clip(floor(w / s) + h(V) + z, lowest, highest) - z)                              (equation 22)
    f(V)  = mean of 1 - |2 h(V) - 1|^beta                                                       (equation 24)

Source: Nagel et al. 2020, "Up or down? Adaptive rounding for post-training quantization"; they take the sum in (24),
here it is the mean, so that it weighs the same whatever the size of a layer. What is left in float at random: Wei et
al. 2022, "QDrop: randomly dropping quantization for extremely low-bit post-training quantization", section 3.3.
"""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor, nn

from alula.graph.ops.quantization import dequantize, spread
from alula.numerics.allocation import rounded_up

ZETA: Final = 1.1
GAMMA: Final = -0.1


def rectified_sigmoid(variable: Tensor) -> Tensor:
    """h(V), in [0, 1]; it reaches both ends, where the gradient ends too (equation 23)."""
    return torch.clamp(torch.sigmoid(variable) * (ZETA - GAMMA) + GAMMA, 0, 1)


def inverse_rectified_sigmoid(share: Tensor) -> Tensor:
    """The V of which a share in [0, 1] is the rectified sigmoid.

    >>> rectified_sigmoid(inverse_rectified_sigmoid(torch.tensor([0.0, 0.25, 1.0]))).round(decimals=5)
    tensor([0.0000, 0.2500, 1.0000])
    """
    return -torch.log((ZETA - GAMMA) / (share - GAMMA) - 1)


def regulariser(share: Tensor, beta: float) -> Tensor:  # [...] -> []
    """f: 0 where every share is 0 or 1, 1 where all are a half (equation 24, as a mean)."""
    return (1 - (2 * share - 1).abs().pow(beta)).mean()


def beta_at(step: int, steps: int, *, warm_up: float, ends: tuple[float, float]) -> float | None:
    """The beta of a step, counted from 0; None while warming up, when the regulariser does not count.

    It goes in a straight line from the first of the ends to the last.

    >>> [beta_at(step, 101, warm_up=0.2, ends=(20, 2)) for step in (0, 20, 21, 100)]
    [None, None, 20.0, 2.0]
    """
    first = rounded_up(warm_up * steps)
    if step < first:
        return None
    done = (step - first) / max(steps - 1 - first, 1)
    return ends[0] + (ends[1] - ends[0]) * done


class SoftRounding(nn.Module):
    """A weight as codes between the one below it and the one above it, in place of fake quantization.

    Args:
        weight: float [...].
        scale: steps of the grid.
        zero_point: of the grid, or None.
        limits: least and greatest code.
        axis: that the scales belong to.
        block_size: elements along the axis that share one; 0: all of them.
    """

    below: Tensor
    scale: Tensor
    zero_point: Tensor | None

    def __init__(
        self,
        weight: Tensor,
        scale: Tensor,
        zero_point: Tensor | None = None,
        *,
        limits: tuple[int, int],
        axis: int = 1,
        block_size: int = 0,
        **_: Any,
    ) -> None:
        super().__init__()
        self._limits, self._layout = limits, (axis, block_size)
        quotient = weight / spread(scale.detach(), weight, *self._layout)
        below = torch.floor(quotient)
        offset = 0 if zero_point is None else spread(zero_point.to(weight.dtype), weight, *self._layout)
        self.register_buffer("below", below + offset)
        self.register_buffer("scale", scale.detach())
        self.register_buffer("zero_point", zero_point)
        self.variable = nn.Parameter(inverse_rectified_sigmoid(quotient - below))

    def share(self) -> Tensor:
        """h(V)."""
        return rectified_sigmoid(self.variable)

    def forward(self) -> Tensor:
        """The weight as it is now."""
        return self._at(self.share())

    @torch.no_grad()
    def rounded(self) -> Tensor:
        """The weight with each code up or down for good, whichever is nearer to what was learned."""
        return self._at((self.share() >= 0.5).to(self.below.dtype))

    def _at(self, share: Tensor) -> Tensor:
        axis, block_size = self._layout
        codes = torch.clamp(self.below + share, *self._limits)
        return dequantize(codes, self.scale, self.zero_point, axis=axis, block_size=block_size)


class Dropping(nn.Module):
    """Leaves elements of an activation unquantized at random."""

    def __init__(self, probability: float, generator: torch.Generator) -> None:
        super().__init__()
        self._probability, self._generator = probability, generator

    def forward(self, x: Tensor, quantized: Tensor) -> Tensor:
        """Elements of x with the probability, of the quantized tensor else."""
        chances = torch.rand(x.shape, generator=self._generator, device=x.device)
        return torch.where(chances < self._probability, x, quantized)
