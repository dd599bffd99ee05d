"""How the scales of quantized tensors are trained: by relative steps, which need no rate of their own for each tensor.

| symbol | code | shape | unit | meaning |
|---|---|---|---|---|
| s | scale | [...] | of the tensor | width of a step of a grid, positive |
| g | change | [...] | loss | gradient of the loss by log s, that is s times that by s |
| m, v | first, second | [...] | loss, its square | running means of g and g^2, corrected for their start |
| r | rate | () | 1 / step | the relative change of one step |

    s <- s exp(-r m / sqrt(v))

It is Adam (Kingma and Ba 2015, algorithm 1) on log s. The gradient by s is that of Esser et al. 2020, "Learned step
size quantization", equation 3. They scale it by how many values share the step; dividing by sqrt(v) replaces that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final

import torch
from torch import Tensor, nn

FIRST: Final = 0.9
SECOND: Final = 0.999
_TINY: Final = 1e-30


class ScaleSteps(torch.optim.Optimizer):
    """Adam on the logarithms of positive parameters, of which there may be none; ``rate`` is its learning rate."""

    def __init__(self, scales: Iterable[nn.Parameter], rate: float) -> None:
        super().__init__([{"params": list(scales)}], {})
        self.rate = rate

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]  # noqa: ARG002
        """Change each scale by its gradient; those without one stay."""
        for group in self.param_groups:
            for scale in group["params"]:
                if scale.grad is not None:
                    scale.mul_(torch.exp(-self.rate * self._direction(scale)))

    def _direction(self, scale: nn.Parameter) -> Tensor:
        state = self.state[scale]
        if not state:
            state.update(count=torch.zeros(()), first=torch.zeros_like(scale), second=torch.zeros_like(scale))
        assert scale.grad is not None
        change = scale.grad * scale
        state["count"] += 1
        state["first"].lerp_(change, 1 - FIRST)
        state["second"].lerp_(change.square(), 1 - SECOND)
        number = float(state["count"])
        first, second = state["first"] / (1 - FIRST**number), state["second"] / (1 - SECOND**number)
        direction: Tensor = first / (second.sqrt() + _TINY)
        return direction
