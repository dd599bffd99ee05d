"""Casts: which types there are, and that gradients pass between those that are real numbers."""

from __future__ import annotations

import onnx_ir as ir
import pytest
import torch

from alula.errors import ModelError
from alula.graph.ops.casting import TYPES, cast, cast_bits, cast_like, type_of


@pytest.mark.parametrize("name", ["FLOAT", "FLOAT16", "BFLOAT16", "DOUBLE"])
def test_a_gradient_passes_through_a_cast(name):
    x = torch.ones(3, dtype=torch.float64, requires_grad=True)
    for y in (cast(x, to=ir.DataType[name]), cast_like(x, torch.ones((), dtype=TYPES[name]))):
        assert y.dtype == TYPES[name]
        (gradient,) = torch.autograd.grad(y.sum(), x)
        assert gradient.dtype == torch.float64
        assert gradient.tolist() == [1, 1, 1]


@pytest.mark.parametrize("name", ["FLOAT8E4M3FN", "FLOAT4E2M1", "INT4", "UINT16", "STRING", "COMPLEX64"])
def test_a_type_that_torch_has_not_is_named(name):
    with pytest.raises(ModelError, match=name):
        type_of(ir.DataType[name])


def test_numbers_become_whole_towards_zero_and_true_unless_zero():
    x = torch.tensor([-1.7, 0.0, 1.7])
    assert cast(x, to=ir.DataType.INT64).tolist() == [-1, 0, 1]
    assert cast(x, to=ir.DataType.BOOL).tolist() == [True, False, True]


def test_bits_are_read_as_another_type_of_their_width():
    x = torch.tensor([1.0, -2.0])
    bits = cast_bits(x, to=ir.DataType.INT32)
    assert bits.tolist() == [0x3F800000, -0x40000000]
    assert torch.equal(cast_bits(bits, to=ir.DataType.FLOAT), x)
    with pytest.raises(ModelError, match="width"):
        cast_bits(x, to=ir.DataType.INT64)
