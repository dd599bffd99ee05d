"""Attention: gradients against differences, and that queries which may look nowhere leave them finite."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from alula.graph.ops.attention import attend, rotate

MASK = torch.tensor([[True, True, False], [False, False, False], [True, True, True]])
OPTIONS: list[dict[str, Any]] = [{}, {"softcap": 2.0}, {"outputs": 4}, {"outputs": 4, "qk_matmul_output_mode": 3}]


def doubles(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).requires_grad_()


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("added", [False, True])
def test_a_query_that_may_look_nowhere(options: dict[str, Any], added: bool) -> None:
    mask = torch.zeros(3, 3, dtype=torch.float64).masked_fill(~MASK, float("-inf")) if added else MASK
    inputs = [doubles(1, 2, 3, 4, seed=seed) for seed in range(3)]
    y = attend(*inputs, mask, **options)[0]
    assert (y[:, :, 1] == 0).all()
    assert all(one.isfinite().all() for one in torch.autograd.grad(y.sum(), inputs))
    assert torch.autograd.gradcheck(lambda *tensors: attend(*tensors, mask, **options)[0], inputs)


@pytest.mark.parametrize("options", [*OPTIONS, {"is_causal": 1}, {"scale": 0.3}])
def test_gradients(options: dict[str, Any]) -> None:
    inputs = [doubles(1, 4, 2, 3), doubles(1, 2, 2, 3, seed=1), doubles(1, 2, 2, 3, seed=2)]
    past = [doubles(1, 2, 3, 3, seed=3), doubles(1, 2, 3, 3, seed=4)]
    assert torch.autograd.gradcheck(lambda q, k, v, *past: attend(q, k, v, None, *past, **options), [*inputs, *past])


def test_heads_side_by_side_are_heads_apart() -> None:
    q, k, v = (doubles(2, 3, 8, seed=seed) for seed in range(3))
    flat = attend(q, k, v, q_num_heads=4, kv_num_heads=4)[0]
    apart = attend(*(x.unflatten(2, (4, 2)).transpose(1, 2) for x in (q, k, v)))[0]
    torch.testing.assert_close(flat, apart.transpose(1, 2).flatten(2))


@pytest.mark.parametrize("options", [{}, {"interleaved": 1}, {"rotary_embedding_dim": 4}])
def test_gradients_of_rotation(options: dict[str, int]) -> None:
    half = (options.get("rotary_embedding_dim", 6)) // 2
    inputs = [doubles(1, 2, 3, 6), doubles(5, half), doubles(5, half, seed=1)]
    positions = torch.tensor([[0, 4, 2]])
    assert torch.autograd.gradcheck(lambda *tensors: rotate(*tensors, positions, **options), inputs)
