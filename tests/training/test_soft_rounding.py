"""The rectified sigmoid, its regulariser and the weights between two codes, against the equations of their paper."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from alula.training.soft_rounding import (
    Dropping,
    SoftRounding,
    beta_at,
    inverse_rectified_sigmoid,
    rectified_sigmoid,
    regulariser,
)


@pytest.mark.parametrize("value", [-8.0, -2.4, -1.0, 0.0, 0.3, 2.3, 9.0])
def test_the_rectified_sigmoid_is_that_of_the_equation(value):
    wanted = min(max(1 / (1 + math.exp(-value)) * 1.2 - 0.1, 0), 1)
    assert float(rectified_sigmoid(torch.tensor(value))) == pytest.approx(wanted, abs=1e-6)


def test_its_inverse_leads_back_at_both_ends_too():
    share = torch.linspace(0, 1, 11)
    torch.testing.assert_close(rectified_sigmoid(inverse_rectified_sigmoid(share)), share)


@pytest.mark.parametrize("beta", [2.0, 3.5, 20.0])
def test_the_regulariser_is_that_of_the_equation(beta):
    share = np.random.default_rng(0).uniform(size=(3, 4))
    wanted = sum(1 - abs(2 * one - 1) ** beta for one in share.ravel()) / share.size
    assert float(regulariser(torch.from_numpy(share), beta)) == pytest.approx(wanted)
    assert float(regulariser(torch.tensor([0.0, 1.0]), beta)) == 0
    assert float(regulariser(torch.tensor([0.5]), beta)) == 1


def test_beta_falls_from_the_first_to_the_last_after_warming_up():
    found = [beta_at(step, 100, warm_up=0.2, ends=(20, 2)) for step in range(100)]
    assert found[:20] == [None] * 20
    told = [one for one in found if one is not None]
    assert (told[0], told[-1]) == (20, 2)
    assert np.allclose(np.diff(told, 2), 0)
    for steps in (1, 2, 3):
        assert all(beta is None or 2 <= beta <= 20 for beta in
                   (beta_at(step, steps, warm_up=0.0, ends=(20, 2)) for step in range(steps)))  # fmt: skip


@pytest.mark.parametrize(("axis", "block", "scales"), [(0, 0, (3,)), (1, 0, (4,)), (1, 2, (3, 2)), (0, 0, ())])
def test_it_starts_at_the_float_weight_and_ends_at_one_of_two_codes(axis, block, scales):
    rng = np.random.default_rng(0)
    scale = torch.from_numpy(rng.uniform(0.3, 0.6, scales).astype(np.float32))
    weight = torch.from_numpy(rng.uniform(-0.8, 0.8, (3, 4)).astype(np.float32))
    soft = SoftRounding(weight, scale, limits=(-8, 7), axis=axis, block_size=block)
    torch.testing.assert_close(soft().detach(), weight)
    wide = np.broadcast_to(scale.numpy(), (3, 4)) if not scales else None
    if wide is None:
        wide = (
            np.repeat(scale.numpy(), block, axis)
            if block
            else np.expand_dims(scale.numpy(), 1 - axis) * np.ones((3, 4))
        )
    with torch.no_grad():
        soft.variable.copy_(torch.from_numpy(rng.normal(size=(3, 4))))
    up = soft.variable.detach().numpy() >= 0
    wanted = (np.floor(weight.numpy() / wide) + up) * wide
    np.testing.assert_allclose(soft.rounded().numpy(), wanted, rtol=1e-6)


def test_codes_never_leave_the_grid():
    weight = torch.tensor([-9.0, -4.2, -4.0, 3.0, 3.4, 50.0])
    for value in (-5.0, 5.0):
        soft = SoftRounding(weight, torch.tensor(1.0), limits=(-4, 3), axis=0)
        with torch.no_grad():
            soft.variable.fill_(value)
        assert soft.rounded().min() >= -4
        assert soft.rounded().max() <= 3
        assert soft().min() >= -4
        assert soft().max() <= 3


def test_a_zero_point_moves_codes_and_not_weights():
    weight = torch.tensor([-0.7, 0.2, 0.9])
    soft = SoftRounding(weight, torch.tensor(0.25), torch.tensor(5, dtype=torch.uint8), limits=(0, 15), axis=0)
    torch.testing.assert_close(soft().detach(), weight)


def test_gradients_are_those_of_finite_differences():
    weight = torch.tensor([[-0.71, 0.22, 0.93, 0.05]], dtype=torch.float64)
    soft = SoftRounding(weight, torch.tensor([0.25], dtype=torch.float64), limits=(-8, 7), axis=0)

    def loss(variable):
        share = rectified_sigmoid(variable)
        return ((soft.below + share) * 0.25).square().sum() + regulariser(share, 3.0)

    start = soft.variable.detach().clone().requires_grad_()
    assert torch.autograd.gradcheck(loss, start)
    soft().square().sum().backward()
    (wanted,) = torch.autograd.grad(((soft.below + rectified_sigmoid(start)) * 0.25).square().sum(), start)
    torch.testing.assert_close(soft.variable.grad, wanted)


def test_as_many_elements_are_left_unquantized_as_asked_for():
    x, quantized = torch.zeros(20_000), torch.ones(20_000)
    for probability in (0.0, 0.25, 1.0):
        made = Dropping(probability, torch.Generator().manual_seed(0))(x, quantized)
        assert float((made == 0).float().mean()) == pytest.approx(probability, abs=0.02)
