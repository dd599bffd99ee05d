"""Operators that move elements: against onnxruntime, and their gradients against differences."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch

from alula.errors import ModelError
from alula.graph.ops import shaping
from tests.graph.ops.runtime import assert_alike

GENERATOR = np.random.default_rng(0)
FAR = 2**63 - 1


def floats(*shape: int) -> np.ndarray:
    return GENERATOR.standard_normal(shape).astype(np.float32)


def ints(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int64)


def doubles(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()


CASES: list[tuple[str, list[Any], dict[str, Any]]] = [
    ("Flatten", [floats(0, 3)], {"axis": 1}),
    ("Flatten", [floats(2, 3, 4)], {"axis": -1}),
    ("Flatten", [floats(2, 3)], {"axis": 2}),
    ("Reshape", [floats(2, 3, 4), ints(0, -1)], {}),
    ("Reshape", [floats(0, 3), ints(3, 0)], {"allowzero": 1}),
    ("Squeeze", [floats(1, 3, 1)], {}),
    ("Squeeze", [floats(1, 3, 1), ints(-1)], {}),
    ("Unsqueeze", [floats(3), ints(-1, 0)], {}),
    ("Expand", [floats(2, 3, 1), ints(4)], {}),
    ("Tile", [floats(2, 3), ints(2, 0)], {}),
    ("Trilu", [floats(2, 3, 4), np.array(-1)], {"upper": 0}),
    ("ReverseSequence", [floats(3, 4, 2), ints(4, 0, 2)], {"batch_axis": 0, "time_axis": 1}),
    ("Slice", [floats(5), ints(-10), ints(-100), ints(0), ints(-1)], {}),
    ("Slice", [floats(5, 4), ints(100, -1), ints(-FAR, -100), ints(0, 1), ints(-2, -3)], {}),
    ("Slice", [floats(5, 4), ints(4), ints(2), ints(1)], {}),
    ("Slice", [floats(5, 4), ints(1), ints(FAR)], {}),
]


@pytest.mark.parametrize(("op", "inputs", "attributes"), CASES)
def test_like_onnxruntime(op: str, inputs: list[Any], attributes: dict[str, Any]) -> None:
    assert_alike(op, inputs, attributes)


@pytest.mark.parametrize(
    ("op", "inputs", "attributes"),
    [
        ("Squeeze", [floats(1, 3, 1)], {"axes": [0]}),
        ("Unsqueeze", [floats(3)], {"axes": [0, -1]}),
        ("Split", [floats(5, 2)], {"split": [5]}),
    ],
)
def test_attributes_that_became_inputs(op: str, inputs: list[Any], attributes: dict[str, Any]) -> None:
    assert_alike(op, inputs, attributes, opset=11)


@pytest.mark.parametrize(
    ("mode", "pads"),
    [*product(("constant", "edge", "reflect", "wrap"), ([0, 0, 2, 1, 0, 0, 1, 0], [0, 1, -1, 1, 1, 0, 2, -2]))],
)
def test_pad(mode: str, pads: list[int]) -> None:
    assert_alike("Pad", [floats(2, 3, 5, 4), ints(*pads)], {"mode": mode}, opset=19)


def test_pad_of_chosen_axes_with_a_value() -> None:
    assert_alike("Pad", [floats(3, 4), ints(2, 1), np.array(2.5, np.float32), ints(-1)], {}, opset=19)


def test_pad_in_an_unknown_mode_is_refused() -> None:
    with pytest.raises(ModelError, match="mode 'round'"):
        shaping.pad(doubles(2, 3), [0, 1, 0, 1], mode="round")


@pytest.mark.parametrize("mode", ["edge", "reflect", "wrap"])
def test_gradients(mode: str) -> None:
    for pads in ([0, 0, 1, 0, 0, 2], [1, 0, -1, 0, 1, 1]):
        assert torch.autograd.gradcheck(lambda x, pads=pads: shaping.pad(x, pads, mode=mode), doubles(2, 2, 4))
    lengths = torch.tensor([3, 1])
    assert torch.autograd.gradcheck(lambda x: shaping.reverse_sequence(x, lengths), doubles(4, 2, 3))
    assert torch.autograd.gradcheck(lambda x: shaping.center_crop_pad(x, [6, 3]), doubles(4, 5))
