"""Losses as operators: reductions, weights and ignored labels, by formula; gradients against differences."""

from __future__ import annotations

import functools

import pytest
import torch
from torch.autograd import gradcheck

from alula.graph.ops.losses import cross_entropy_loss, likelihood_loss

TARGET = torch.tensor([[0, 2], [-1, 1]], dtype=torch.int32)  # [N, space]
WEIGHT = torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)


def scores() -> torch.Tensor:  # [N, C, space]
    drawn = torch.randn(2, 3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return drawn.requires_grad_()


def by_formula(logarithms: torch.Tensor, weight: torch.Tensor, reduction: str) -> torch.Tensor:
    """Each place for itself."""
    losses, weights = torch.zeros(2, 2, dtype=torch.float64), torch.zeros(2, 2, dtype=torch.float64)
    for batch, place in ((0, 0), (0, 1), (1, 1)):  # the fourth is ignored
        label = int(TARGET[batch, place])
        weights[batch, place] = weight[label]
        losses[batch, place] = -weight[label] * logarithms[batch, label, place]
    return {"none": losses, "sum": losses.sum(), "mean": losses.sum() / weights.sum()}[reduction]


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("weighted", [False, True])
def test_losses_are_those_of_the_formula(reduction, weighted):
    x, weight = scores(), WEIGHT if weighted else None
    logarithms = torch.log_softmax(x, 1)
    wanted = by_formula(logarithms, WEIGHT if weighted else torch.ones_like(WEIGHT), reduction)
    loss, told = cross_entropy_loss(x, TARGET, weight, reduction=reduction, ignore_index=-1)
    torch.testing.assert_close(told, logarithms)
    torch.testing.assert_close(loss, wanted)
    found = likelihood_loss(logarithms, TARGET, weight, reduction=reduction, ignore_index=-1)
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_gradients_are_those_of_finite_differences(reduction):
    attributes = {"reduction": reduction, "ignore_index": -1}
    assert gradcheck(functools.partial(cross_entropy_loss, target=TARGET, weight=WEIGHT, **attributes), (scores(),))
    assert gradcheck(functools.partial(likelihood_loss, target=TARGET, weight=WEIGHT, **attributes), (scores(),))


def test_the_default_ignores_no_label():
    with pytest.raises(IndexError, match="out of bounds"):
        likelihood_loss(scores(), torch.full((2, 2), -1))
