"""Losses as operators."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import functional as F

NOTHING_IGNORED: Final = -(2**31)


def likelihood_loss(
    x: Tensor, target: Tensor, weight: Tensor | None = None, *,
    reduction: str = "mean", ignore_index: int = NOTHING_IGNORED,
) -> Tensor:  # fmt: skip
    """NegativeLogLikelihoodLoss: x [N, C, ...], log probabilities; target [N, ...]."""
    return F.nll_loss(x, target.long(), weight, ignore_index=ignore_index, reduction=reduction)


def cross_entropy_loss(
    x: Tensor, target: Tensor, weight: Tensor | None = None, *,
    reduction: str = "mean", ignore_index: int = NOTHING_IGNORED,
) -> tuple[Tensor, ...]:  # fmt: skip
    """SoftmaxCrossEntropyLoss, and the log probabilities."""
    logarithms = torch.log_softmax(x, 1)
    loss = likelihood_loss(logarithms, target, weight, reduction=reduction, ignore_index=ignore_index)
    return loss, logarithms


OPERATORS: Final[dict[str, Callable[..., Any]]] = {
    "NegativeLogLikelihoodLoss": likelihood_loss,
    "SoftmaxCrossEntropyLoss": cross_entropy_loss,
}
