"""Products of matrices: against onnxruntime, and their gradients against differences."""

from __future__ import annotations

import functools
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck

from alula.graph.ops.operators import OPERATORS
from tests.graph.ops.runtime import assert_alike

GENERATOR = np.random.default_rng(0)


def floats(*shape: int) -> np.ndarray:
    return GENERATOR.standard_normal(shape).astype(np.float32)


def leaf(*shape: int) -> torch.Tensor:
    drawn = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(len(shape)))
    return drawn.requires_grad_()


SHIFTS = [None, (), (1,), (4,), (1, 4), (3, 1), (3, 4)]


@pytest.mark.parametrize(("shift", "factors"), list(product(SHIFTS, [(1.0, 1.0), (0.5, 2.0)])))
def test_every_form_of_gemm_is_that_of_onnxruntime(shift, factors):
    for across, down in ((0, 1), (1, 0)):
        left, right = floats(2, 3) if across else floats(3, 2), floats(4, 2) if down else floats(2, 4)
        inputs = [left, right] if shift is None else [left, right, np.asarray(floats(*shift))]
        alpha, beta = factors
        assert_alike("Gemm", inputs, {"alpha": alpha, "beta": beta, "transA": across, "transB": down})


@pytest.mark.parametrize(
    ("op", "inputs", "attributes"),
    [
        ("MatMul", [floats(3), floats(3, 2)], {}),
        ("MatMul", [floats(2, 1, 3, 4), floats(5, 4, 2)], {}),
        ("MatMul", [floats(2, 3, 4), floats(4)], {}),
        ("MatMul", [np.arange(6, dtype=np.int32).reshape(2, 3), np.arange(6, dtype=np.int32).reshape(3, 2)], {}),
        ("MatMul", [floats(2, 0), floats(0, 3)], {}),
        ("Einsum", [floats(2, 3, 3)], {"equation": "...ii -> ...i"}),
        ("Einsum", [floats(2, 3, 4), floats(2, 4, 5)], {"equation": "bij, bjk -> bik"}),
        ("Einsum", [floats(2, 3), floats(3, 2)], {"equation": "ij,ji"}),
    ],
)
def test_like_onnxruntime(op: str, inputs: list[Any], attributes: dict[str, Any]) -> None:
    assert_alike(op, inputs, attributes)


@pytest.mark.parametrize(
    ("op", "inputs", "attributes"),
    [
        *(("Gemm", [leaf(3, 2), leaf(2, 4), leaf(*shift)], {}) for shift in SHIFTS if shift is not None),
        ("Gemm", [leaf(3, 2), leaf(4, 2)], {"alpha": 0.5, "transB": 1}),
        ("MatMul", [leaf(3), leaf(3, 2)], {}),
        ("MatMul", [leaf(2, 1, 3, 4), leaf(2, 4, 2)], {}),
        ("Einsum", [leaf(2, 3, 3)], {"equation": "...ii -> ...i"}),
        ("Det", [leaf(2, 3, 3)], {}),
    ],
)
def test_gradients_are_those_of_finite_differences(op: str, inputs: list[Any], attributes: dict[str, Any]) -> None:
    assert gradcheck(functools.partial(OPERATORS[op], **attributes), inputs)
