"""Operators that take or put by index: against onnxruntime, and their gradients against differences."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from alula.graph.ops import gathering
from tests.graph.ops.runtime import assert_alike

GENERATOR = np.random.default_rng(0)
REDUCTIONS = ("none", "add", "mul", "max", "min")


def floats(*shape: int) -> np.ndarray:
    return GENERATOR.standard_normal(shape).astype(np.float32)


def doubles(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()


CASES: list[tuple[str, list[Any], dict[str, Any]]] = [
    ("Gather", [floats(4, 3), np.array(-1)], {}),
    ("Gather", [floats(4, 3, 2), np.array([[0, -1]])], {"axis": -2}),
    ("Gather", [floats(4), np.array(2)], {}),
    ("GatherElements", [floats(3, 4), np.array([[0, -1], [1, 1]])], {"axis": -1}),
    ("GatherND", [floats(2, 3, 4), np.array([[-1], [0]])], {"batch_dims": 1}),
    ("OneHot", [np.array([0, -1, 7, 2]), np.array([4]), np.array([2, 5])], {"axis": 0}),
    ("Compress", [floats(3, 4), np.array([True, False, True])], {"axis": -1}),
    ("Compress", [floats(3, 4), np.array([True, False, True])], {}),
]


@pytest.mark.parametrize(("op", "inputs", "attributes"), CASES)
def test_like_onnxruntime(op: str, inputs: list[Any], attributes: dict[str, Any]) -> None:
    assert_alike(op, inputs, attributes)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_scatter(reduction: str) -> None:
    rows, pairs = np.array([[0], [-1]]), np.array([[0, 1], [2, -1]])
    assert_alike("ScatterND", [floats(3, 4), rows, floats(2, 4)], {"reduction": reduction})
    assert_alike("ScatterND", [floats(3, 4, 2), pairs, floats(2, 2)], {"reduction": reduction})
    attributes = {"axis": 1, "reduction": reduction}
    assert_alike("ScatterElements", [floats(3, 4), np.array([[0, 2], [-1, 1]]), floats(2, 2)], attributes)


@pytest.mark.parametrize("largest", [0, 1])
def test_of_equal_values_the_first_come_first(largest: int) -> None:
    ties = np.array([[1, 1, 2, 2, 0, 1]], np.float32)
    assert_alike("TopK", [ties, np.array([4])], {"largest": largest}, outputs=2)


@pytest.mark.parametrize("attributes", [{}, {"sorted": 0}, {"axis": 0}, {"axis": 0, "sorted": 0}, {"axis": -1}])
def test_unique(attributes: dict[str, int]) -> None:
    assert_alike("Unique", [np.array([[2, 3, 2], [1, 0, 1], [1, 0, 1]], np.float32)], attributes, outputs=4)


@pytest.mark.parametrize(("most", "center"), [(0, 0), (4, 0), (40, 0), (40, 1)])
def test_suppression(most: int, center: int) -> None:
    generator = np.random.default_rng(1)
    boxes, scores = generator.random((2, 20, 4), np.float32), generator.random((2, 3, 20), np.float32)
    boxes[..., 2:] += boxes[..., :2]
    limits = [np.array([most]), np.array([0.3], np.float32), np.array([0.2], np.float32)]
    attributes = {"center_point_box": center}
    found = gathering.suppress(*map(torch.from_numpy, [boxes, scores]), most, *map(torch.from_numpy, limits[1:]),
                               **attributes)  # fmt: skip
    assert wanted_boxes(boxes, scores, limits, attributes) == found.tolist()


def wanted_boxes(boxes: np.ndarray, scores: np.ndarray, limits: list[np.ndarray], attributes: dict[str, int]) -> Any:
    from onnx import TensorProto, helper
    from onnx.reference import ReferenceEvaluator

    names = ["boxes", "scores", "most", "overlap", "threshold"]
    node = helper.make_node("NonMaxSuppression", names, ["chosen"], **attributes)
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names]
    chosen = helper.make_tensor_value_info("chosen", TensorProto.INT64, None)
    model = helper.make_model(helper.make_graph([node], "graph", inputs, [chosen]))
    return ReferenceEvaluator(model).run(None, dict(zip(names, [boxes, scores, *limits], strict=True)))[0].tolist()


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_gradients_of_scattering(reduction: str) -> None:
    places, new = torch.tensor([[2], [0]]), (doubles(2, 3) + 0.1).detach().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x, new: gathering.scatter_nd(x, places, new, reduction=reduction), (doubles(4, 3), new)
    )


def test_gradients_of_taking() -> None:
    x = torch.tensor([3.0, 1.0, 1.0, 2.0], requires_grad=True)
    gathering.unique(x)[0].sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [1, 1, 0, 1]
    condition, start = torch.tensor([True, False, True]), torch.tensor([1, 0])
    assert torch.autograd.gradcheck(lambda x: gathering.compress(x, condition, axis=1), doubles(2, 4))
    assert torch.autograd.gradcheck(
        lambda past, new: gathering.tensor_scatter(past, new, start, mode="circular"),
        (doubles(2, 4, 3), doubles(2, 2, 3)),
    )
