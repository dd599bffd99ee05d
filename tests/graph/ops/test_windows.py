"""Convolutions, pooling and regions: against onnxruntime, and their gradients against differences."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch

from alula.graph.ops import convolutions, pooling, regions
from tests.graph.ops.runtime import assert_alike

GENERATOR = np.random.default_rng(0)


def floats(*shape: int) -> np.ndarray:
    return GENERATOR.standard_normal(shape).astype(np.float32)


def doubles(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()


AUTO = ("SAME_UPPER", "SAME_LOWER", "VALID")
TRANSPOSED: list[dict[str, Any]] = [
    {"pads": [1, 0, 0, 2]},
    {"pads": [1, 1, 1, 1], "output_padding": [1, 0]},
    {"output_padding": [1, 1]},
    {"output_shape": [10, 9]},
    {"output_shape": [9, 8]},
    {"output_shape": [9, 8], "auto_pad": "SAME_UPPER"},
    {"output_shape": [10, 7], "auto_pad": "SAME_UPPER"},
    {"pads": [2, 2, 2, 2], "dilations": [2, 2]},
]
POOLED: list[dict[str, Any]] = [
    {},
    {"ceil_mode": 1},
    {"ceil_mode": 1, "pads": [1, 1, 1, 1]},
    {"pads": [1, 1, 0, 0]},
    {"pads": [0, 0, 1, 1], "ceil_mode": 1},
    {"dilations": [2, 2], "pads": [1, 1, 1, 1], "ceil_mode": 1},
    {"pads": [1, 1, 2, 2]},
]
BOXES = np.array([[0, 0, 6.2, 5.1], [1.3, 2.2, 7, 4], [-3, -2, 3, 12]], np.float32)


@pytest.mark.parametrize("kind", AUTO)
def test_automatic_padding(kind: str) -> None:
    x, kernel = floats(1, 2, 7, 8), {"kernel_shape": [3, 4], "strides": [2, 3], "auto_pad": kind}
    assert_alike("Conv", [x, floats(3, 2, 3, 4)], kernel)
    assert_alike("ConvTranspose", [x, floats(2, 3, 3, 4)], kernel)
    for op in ("AveragePool", "MaxPool", "LpPool"):
        assert_alike(op, [x], kernel)
    assert_alike("AveragePool", [x], {**kernel, "count_include_pad": 1})


@pytest.mark.parametrize(("attributes", "group"), [*product(TRANSPOSED, (1, 2))])
def test_transposed_convolutions(attributes: dict[str, Any], group: int) -> None:
    inputs = [floats(2, 4, 4, 4), floats(4, 3, 3, 3), floats(3 * group)]
    assert_alike("ConvTranspose", inputs, {"strides": [2, 2], "group": group, **attributes})


@pytest.mark.parametrize("attributes", POOLED)
def test_pooling(attributes: dict[str, Any]) -> None:
    x, kernel = floats(2, 2, 7, 8), {"kernel_shape": [3, 3], "strides": [2, 2], **attributes}
    for counted in (0, 1):
        assert_alike("AveragePool", [x], {**kernel, "count_include_pad": counted})
    for order in (0, 1):
        assert_alike("MaxPool", [x], {**kernel, "storage_order": order}, outputs=2)


@pytest.mark.parametrize("p", [1, 2, 3])
def test_norms(p: int) -> None:
    assert_alike(
        "LpPool", [floats(1, 2, 7, 8)], {"kernel_shape": [3, 3], "strides": [2, 2], "p": p, "pads": [1, 0, 0, 1]}
    )
    assert_alike("GlobalLpPool", [floats(1, 2, 7, 8)], {"p": p}, opset=18)


def test_slope_of_an_empty_window_is_finite() -> None:
    x = torch.zeros(1, 1, 4, 4, requires_grad=True)
    pooling.pool_norm(x, kernel_shape=[2, 2]).sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()


@pytest.mark.parametrize(
    ("mode", "ratio", "kind"), [*product(("avg", "max"), (0, 1), ("half_pixel", "output_half_pixel"))]
)
def test_aligned_regions(mode: str, ratio: int, kind: str) -> None:
    if mode == "max" and ratio == 0:
        pytest.skip("onnxruntime says of itself that it is wrong there")
    sizes = {"output_height": 3, "output_width": 2, "spatial_scale": 0.9, "sampling_ratio": ratio}
    inputs = [floats(2, 3, 8, 9), BOXES, np.array([1, 0, 1])]
    assert_alike("RoiAlign", inputs, {"mode": mode, "coordinate_transformation_mode": kind, **sizes}, opset=16)


def test_pooled_regions() -> None:
    rois = np.array([[0, 1, 1, 6, 5], [1, 0, 0, 7, 7], [1, 2, 2, 9, 10], [0, -2, 3, 4, 4.4]], np.float32)
    assert_alike("MaxRoiPool", [floats(2, 3, 8, 8), rois], {"pooled_shape": [3, 2]}, opset=18)


def test_deformed_convolution() -> None:
    inputs = [floats(2, 4, 6, 7), floats(6, 2, 3, 3), floats(2, 36, 3, 7), floats(6), floats(2, 18, 3, 7)]
    assert_alike(
        "DeformConv", inputs, {"group": 2, "offset_group": 2, "pads": [1, 0, 1, 2], "strides": [2, 1]}, opset=19
    )


def test_columns_to_image() -> None:
    inputs = [floats(1, 12, 25), np.array([4, 6]), np.array([2, 3])]
    assert_alike("Col2Im", inputs, {"pads": [1, 0, 1, 1]}, opset=18)


GRADIENTS: dict[str, tuple[Any, tuple[Any, ...], dict[str, Any]]] = {
    "Conv": (convolutions.convolve, (doubles(1, 2, 5, 5), doubles(3, 2, 3, 2), doubles(3)), {"pads": [0, 1, 1, 0]}),
    "ConvTranspose": (
        convolutions.convolve_transposed,
        (doubles(1, 2, 3, 3), doubles(2, 2, 3, 3), doubles(2)),
        {"pads": [0, 1, 1, 0], "strides": [2, 2], "output_padding": [1, 0]},
    ),
    "Col2Im": (convolutions.columns_to_image, (doubles(1, 8, 20), [4, 5], [2, 2]), {"pads": [1, 0, 0, 1]}),
    "AveragePool": (pooling.pool_mean, (doubles(1, 2, 5, 5),), {"kernel_shape": [2, 2], "dilations": [2, 2]}),
    "MaxPool": (pooling.pool_maximum, (doubles(1, 2, 5, 5),), {"kernel_shape": [2, 2], "pads": [1, 0, 0, 1]}),
    "LpPool": (pooling.pool_norm, (doubles(1, 2, 4, 4),), {"kernel_shape": [2, 2], "p": 3, "pads": [1, 0, 0, 1]}),
    "RoiAlign": (
        regions.align_regions,
        (
            doubles(2, 2, 5, 5),
            torch.tensor([[0.3, 0.2, 3.3, 3.1], [1.1, 1.2, 4.6, 4.3]]).double().requires_grad_(),
            torch.tensor([1, 0]),
        ),
        {"opset": 16, "output_height": 2, "output_width": 2, "sampling_ratio": 2},
    ),
    "RoiAlign max": (
        regions.align_regions,
        (
            doubles(2, 2, 5, 5),
            torch.tensor([[0.3, 0.2, 3.3, 3.1], [1.1, 1.2, 4.6, 4.3]]).double(),
            torch.tensor([1, 0]),
        ),
        {"opset": 16, "output_height": 2, "output_width": 2, "mode": "max"},
    ),
    "MaxRoiPool": (
        regions.pool_regions,
        (doubles(1, 2, 6, 6), torch.tensor([[0, 1, 1, 5, 4.0]])),
        {"pooled_shape": [2, 2]},
    ),
}


@pytest.mark.parametrize("name", GRADIENTS)
def test_gradients(name: str) -> None:
    function, inputs, attributes = GRADIENTS[name]
    assert torch.autograd.gradcheck(lambda *given: function(*given, **attributes), inputs)
