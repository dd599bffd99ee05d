"""Reductions: axes in every form against onnxruntime, empty sets, and gradients against differences."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck

from alula.graph.ops import reductions
from alula.graph.ops.operators import OPERATORS
from tests.graph.ops.runtime import assert_alike

X = (np.random.default_rng(0).random((2, 3, 4)) + 0.5).astype(np.float32)
REDUCTIONS = [name for name in reductions.OPERATORS if name.startswith("Reduce")]
FIRST_AXES_INPUT = 18  # opset; of ReduceSum 13


def ints(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int64)


def leaf(*shape: int) -> torch.Tensor:
    drawn = torch.rand(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return (drawn + 0.25).requires_grad_()


@pytest.mark.parametrize("name", REDUCTIONS)
@pytest.mark.parametrize("keepdims", [0, 1])
@pytest.mark.parametrize("axes", [None, [1], [-1, 0]])
def test_axes_as_an_attribute_and_as_an_input_are_alike(name, keepdims, axes):
    attributes = {"keepdims": keepdims}
    assert_alike(name, [X], attributes if axes is None else {**attributes, "axes": axes}, opset=11)
    assert_alike(name, [X] if axes is None else [X, ints(*axes)], attributes, opset=FIRST_AXES_INPUT)


@pytest.mark.parametrize("name", ["ReduceSum", "ReduceMax", "ReduceMean"])
@pytest.mark.parametrize("noop", [0, 1])
def test_no_axes_are_all_or_none(name, noop):
    assert_alike(name, [X, ints()], {"noop_with_empty_axes": noop}, opset=FIRST_AXES_INPUT)


@pytest.mark.parametrize(
    ("name", "wanted"), [("ReduceL1", 2), ("ReduceL2", 2), ("ReduceSumSquare", 4), ("ReduceLogSumExp", -2)]
)
def test_without_axes_the_rest_of_a_composite_reduction_is_still_done(name, wanted):
    found = OPERATORS[name](torch.tensor([-2.0]), [], noop_with_empty_axes=1)
    assert found.tolist() == [wanted]


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("ReduceSum", 0), ("ReduceProd", 1), ("ReduceL1", 0), ("ReduceL2", 0), ("ReduceSumSquare", 0),
        ("ReduceMax", -np.inf), ("ReduceMin", np.inf), ("ReduceLogSum", -np.inf), ("ReduceLogSumExp", -np.inf),
    ],
)  # fmt: skip
def test_reducing_nothing_gives_the_neutral_number(name, wanted):
    found = OPERATORS[name](torch.zeros(2, 0, 3), [1], keepdims=0)
    assert found.shape == (2, 3)
    assert found.eq(wanted).all()


@pytest.mark.parametrize("name", ["ReduceL1", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum"])
def test_whole_numbers_stay_whole(name):
    assert_alike(name, [np.arange(1, 7, dtype=np.int32).reshape(2, 3), ints(1)], {}, opset=FIRST_AXES_INPUT)


def test_extremes_of_truth_values_are_or_and_and():
    x = torch.tensor([[True, False], [True, True]])
    assert reductions.reduce_max(x, [1], keepdims=0).tolist() == [True, True]
    assert reductions.reduce_min(x, [1], keepdims=0).tolist() == [False, True]


@pytest.mark.parametrize("name", ["ArgMax", "ArgMin"])
@pytest.mark.parametrize(("last", "wanted"), [(0, [0, 1]), (1, [2, 3])])
def test_ties_go_to_the_first_or_last_place(name, last, wanted):
    x = torch.tensor([[2.0, 1, 2, 1]]) if name == "ArgMax" else torch.tensor([[1.0, 2, 1, 2]])
    x = torch.cat([x, x.roll(1, 1)])
    assert OPERATORS[name](x, axis=-1, keepdims=0, select_last_index=last).tolist() == wanted
    assert OPERATORS[name](x, axis=1, select_last_index=last).shape == (2, 1)


@pytest.mark.parametrize("axis", [0, -1])
@pytest.mark.parametrize("exclusive", [0, 1])
@pytest.mark.parametrize("reverse", [0, 1])
def test_cumulative_sums_are_those_of_onnxruntime(axis, exclusive, reverse):
    assert_alike("CumSum", [X, np.int64(axis)], {"exclusive": exclusive, "reverse": reverse})


def test_nothing_accumulates_to_nothing():
    assert reductions.cumulative_sum(torch.zeros(2, 0), 1, exclusive=1).shape == (2, 0)


@pytest.mark.parametrize(
    ("name", "inputs", "attributes"),
    [
        *((name, [leaf(2, 3, 2), [0, -1]], {"keepdims": 0}) for name in REDUCTIONS),
        ("ReduceL2", [leaf(2, 3), []], {"noop_with_empty_axes": 1}),
        ("CumSum", [leaf(2, 3), 1], {"exclusive": 1, "reverse": 1}),
        ("CumProd", [leaf(2, 3), 0], {"exclusive": 1}),
        ("CumProd", [leaf(2, 3), 1], {"reverse": 1}),
    ],
)
def test_gradients_are_those_of_finite_differences(name: str, inputs: list[Any], attributes: dict[str, Any]) -> None:
    assert gradcheck(functools.partial(OPERATORS[name], **attributes), inputs)


def test_the_length_of_nothing_has_a_gradient():
    x = torch.zeros(2, 3, requires_grad=True)
    reductions.reduce_l2(x, [1]).sum().backward()
    assert x.grad is not None
    assert x.grad.eq(0).all()
