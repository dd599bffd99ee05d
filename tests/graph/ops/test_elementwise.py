"""Elementwise operators, comparisons and bits: against onnxruntime, and what gradients do at odd places."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck

from alula.errors import ModelError
from alula.graph.ops import elementwise, logic
from alula.graph.ops.operators import OPERATORS
from tests.graph.ops.runtime import assert_alike

GENERATOR = np.random.default_rng(0)
X = (GENERATOR.standard_normal((2, 3, 4)) * 3).astype(np.float32)


def floats(*shape: int) -> np.ndarray:
    return GENERATOR.standard_normal(shape).astype(np.float32)


def leaf(*shape: int, low: float = 0.2, high: float = 0.9) -> torch.Tensor:
    drawn = torch.rand(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return (low + (high - low) * drawn).requires_grad_()


ALIKE: list[tuple[str, list[Any], dict[str, Any]]] = [
    ("Pow", [X, np.float32(2)], {}),
    ("Pow", [np.abs(X), np.array([0.5], np.float32)], {}),
    ("Pow", [X, np.int64(3)], {}),
    ("Pow", [np.abs(X), floats(2, 3, 4)], {}),
    ("Pow", [np.arange(6, dtype=np.int32).reshape(2, 3), np.float32(1.5)], {}),
    ("PRelu", [X, floats(1)], {}),
    ("PRelu", [X, floats(3, 1)], {}),
    ("PRelu", [X, floats(4)], {}),
    ("PRelu", [X, floats(3, 4)], {}),
    ("PRelu", [floats(2, 3), floats(3)], {}),
    ("HardSigmoid", [X], {"alpha": 1 / 6, "beta": 0.5}),
    ("HardSigmoid", [X], {"alpha": 0.3}),
    ("Selu", [X], {}),
    ("Selu", [X], {"alpha": 1.5, "gamma": 2.0}),
    ("Elu", [X], {"alpha": 0.5}),
    ("Celu", [X], {"alpha": 0.5}),
    ("Softplus", [np.linspace(-90, 90, 12, dtype=np.float32).reshape(3, 4)], {}),
    ("ThresholdedRelu", [X], {"alpha": 0.5}),
    ("Shrink", [X], {"bias": 0.3, "lambd": 0.7}),
    ("Shrink", [np.arange(-4, 4, dtype=np.int32).reshape(2, 4)], {"lambd": 1.5}),
    ("Mod", [X, floats(3, 4)], {"fmod": 1}),
    ("Mod", [np.array([[-7, 7], [-7, 7]]), np.array([[3, -3], [-3, 3]])], {}),
    ("Div", [np.array([[-7, 7], [-7, 7]]), np.array([[2, -2], [-2, 2]])], {}),
    ("Clip", [X, None, np.float32(1)], {}),
    ("Clip", [X, np.float32(1), np.float32(-1)], {}),
    ("Clip", [np.arange(6).reshape(2, 3), np.int64(1), np.int64(4)], {}),
    ("Round", [np.array([[-1.5, -0.5, 0.5], [1.5, 2.5, 2.4]], np.float32)], {}),
    ("Max", [X, floats(3, 1), floats(2, 1, 4)], {}),
    ("Mean", [X, floats(3, 1), floats(2, 1, 4)], {}),
    ("Sum", [X], {}),
    ("Gelu", [X], {"approximate": "tanh"}),
]


@pytest.mark.parametrize(("op", "inputs", "attributes"), ALIKE)
def test_like_onnxruntime(op: str, inputs: list[Any], attributes: dict[str, Any]) -> None:
    assert_alike(op, inputs, attributes)


@pytest.mark.parametrize(
    ("op", "inputs", "attributes"),
    [
        *((name, [leaf(2, 3)], {}) for name in ("Acos", "Asin", "Asinh", "Atan", "Atanh", "Cos", "Cosh")),
        *((name, [leaf(2, 3)], {}) for name in ("Log", "Sinh", "Sqrt", "Tan", "Ceil", "Floor", "Sign", "Round")),
        ("Acosh", [leaf(2, 3, low=1.2, high=3.0)], {}),
        ("Celu", [leaf(2, 3, low=-2.0)], {"alpha": 0.5}),
        ("Selu", [leaf(2, 3, low=-2.0)], {"alpha": 1.5, "gamma": 2.0}),
        ("Selu", [leaf(2, 3, low=-2.0)], {}),
        ("HardSigmoid", [leaf(2, 3)], {"alpha": 1 / 6, "beta": 0.5}),
        ("Mod", [leaf(2, 3, low=2.1, high=2.9), leaf(3, low=0.9, high=1.0)], {"fmod": 1}),
        ("PRelu", [leaf(2, 3, 4, low=-2.0), leaf(3, 1)], {}),
        ("PRelu", [leaf(2, 3, 4, low=-2.0), leaf(4)], {}),
        ("PRelu", [leaf(2, 3, 4, low=-2.0), leaf(1)], {}),
        ("Pow", [leaf(2, 3), 2.0], {}),
        ("Pow", [leaf(2, 3), leaf(3)], {}),
        ("Shrink", [leaf(2, 3, low=-2.0, high=2.0)], {"bias": 0.3, "lambd": 0.7}),
        ("Softplus", [leaf(2, 3, low=-50.0, high=50.0)], {}),
        ("SwiGLU", [leaf(2, 3), leaf(2, 3)], {"alpha": 1.5}),
        ("SwiGLU", [leaf(2, 3), leaf(2, 3)], {}),
        ("Swish", [leaf(2, 3)], {"alpha": 2.0}),
        ("ThresholdedRelu", [leaf(2, 3)], {"alpha": 0.5}),
    ],
)  # fmt: skip
def test_gradients_are_those_of_finite_differences(op: str, inputs: list[Any], attributes: dict[str, Any]) -> None:
    assert gradcheck(functools.partial(OPERATORS[op], **attributes), inputs)


def test_swiglu_gates_its_second_input_by_the_first():
    gate, x = leaf(2, 3), leaf(2, 3, low=-1.0)
    torch.testing.assert_close(elementwise.swiglu(gate, x, alpha=2.0), gate * torch.sigmoid(2 * gate) * x)


def test_a_computed_bound_clips_beside_a_known_one():
    x = leaf(2, 3, low=-2.0, high=2.0)
    torch.testing.assert_close(elementwise.clip(x, torch.tensor(-0.5), 0.5), x.clamp(-0.5, 0.5))


@pytest.mark.parametrize(("training", "training_mode", "ratio"), [(True, False, 0.5), (True, True, 0.0)])
def test_dropout_passes_everything_on(training, training_mode, ratio):
    x = leaf(2, 3)
    y, mask = elementwise.drop_out(x, ratio, training_mode, outputs=2, training=training)
    assert torch.equal(y, x)
    assert mask.all()


@pytest.mark.parametrize("outputs", [1, 2])
def test_dropout_drops_its_share_and_scales_the_rest(outputs):
    x = torch.ones(100, 100)
    x[0] = 0
    y, *masks = elementwise.drop_out(x, 0.25, True, outputs=outputs, training=True)
    assert abs(float((y[1:] == 0).float().mean()) - 0.25) < 0.03
    torch.testing.assert_close(y[y != 0], torch.full_like(y[y != 0], 4 / 3))
    assert len(masks) == outputs - 1
    for mask in masks:
        torch.testing.assert_close(y, x * mask / 0.75)
        assert mask[0].any(), "what was kept is marked, even if it is zero"


def test_dropout_of_a_graph_that_trains_is_refused_in_eval():
    with pytest.raises(ModelError, match="random numbers"):
        elementwise.drop_out(leaf(2, 3), 0.5, True, training=False)


@pytest.mark.parametrize(
    ("negative", "positive", "wanted"), [(1, 1, [True, True]), (0, 1, [False, True]), (0, 0, [False, False])]
)
def test_infinities_of_the_signs_asked_for_are_found(negative, positive, wanted):
    x = torch.tensor([float("-inf"), float("inf"), 1.0, float("nan")])
    found = logic.is_infinite(x, detect_negative=negative, detect_positive=positive)
    assert found.tolist() == [*wanted, False, False]


def test_bits_shift_either_way():
    x, by = torch.tensor([16, 4], dtype=torch.uint8), torch.tensor([1, 2], dtype=torch.uint8)
    assert logic.shift_bits(x, by, direction="LEFT").tolist() == [32, 16]
    assert logic.shift_bits(x, by, direction="RIGHT").tolist() == [8, 1]


def test_where_gives_each_side_its_own_gradient():
    chosen, other = leaf(3), leaf(2, 3)
    logic.where(torch.tensor([[True], [False]]), chosen, other).sum().backward()
    assert chosen.grad is not None
    assert other.grad is not None
    assert chosen.grad.tolist() == [1, 1, 1]
    assert other.grad.tolist() == [[0, 0, 0], [1, 1, 1]]
