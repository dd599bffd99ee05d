"""Resampling: against onnxruntime, and its gradients against differences."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch

from alula.graph.ops import resizing
from tests.graph.ops.runtime import assert_alike

GENERATOR = np.random.default_rng(0)
KINDS = ("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric", "half_pixel_symmetric")
ROUNDED = ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")
SCALES = ([2, 3], [0.5, 0.7], [0.6, 1.5], [2.3, 0.2])
SIZES = ([10, 14], [3, 1], [4, 9])


def floats(*shape: int) -> np.ndarray:
    return GENERATOR.standard_normal(shape).astype(np.float32)


def scale(*factors: float) -> np.ndarray:
    return np.array([1, 1, *factors], np.float32)


def doubles(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()


@pytest.mark.parametrize(("mode", "kind"), [*product((*ROUNDED, "linear", "cubic"), KINDS)])
def test_resize(mode: str, kind: str) -> None:
    nearest = {"mode": "nearest", "nearest_mode": mode} if mode in ROUNDED else {"mode": mode}
    attributes = {**nearest, "coordinate_transformation_mode": kind}
    for factors in SCALES:
        if kind in ("align_corners", "half_pixel_symmetric") and factors != [2, 3]:
            continue  # of a fractional new length ONNX takes the fraction, onnxruntime the whole; ties round otherwise
        assert_alike("Resize", [floats(1, 2, 5, 7), None, scale(*factors)], attributes, opset=19)
    for lengths in SIZES:
        if kind == "half_pixel_symmetric" and mode == "floor":
            continue
        assert_alike("Resize", [floats(1, 2, 5, 7), None, None, np.array([1, 2, *lengths])], attributes, opset=19)


@pytest.mark.parametrize(("mode", "factors"), [*product(("nearest", "linear"), ([2, 3], [0.5, 0.7], [0.6, 1.5]))])
def test_resize_of_opset_10(mode: str, factors: list[float]) -> None:
    assert_alike("Resize", [floats(1, 2, 5, 7), scale(*factors)], {"mode": mode}, opset=10)


@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_upsample(mode: str) -> None:
    assert_alike("Upsample", [floats(1, 2, 5, 7), scale(1.6, 1.5)], {"mode": mode}, opset=9)
    assert_alike("Upsample", [floats(1, 2, 5, 7)], {"mode": mode, "scales": [1.0, 1.0, 2.0, 3.0]}, opset=7)


@pytest.mark.parametrize(
    ("mode", "factors", "outside"), [*product(("linear", "cubic"), ([0.6, 0.7], [0.25, 0.5], [2, 0.5]), (0, 1))]
)
def test_antialiasing(mode: str, factors: list[float], outside: int) -> None:
    attributes = {"mode": mode, "antialias": 1, "exclude_outside": outside}
    assert_alike("Resize", [floats(1, 2, 10, 12), None, scale(*factors)], attributes, opset=18)


def test_crops() -> None:
    roi = np.array([0, 0, 0.1, 0.3, 1, 1, 0.8, 1.4], np.float32)
    attributes = {"mode": "linear", "coordinate_transformation_mode": "tf_crop_and_resize", "extrapolation_value": 9.0}
    assert_alike("Resize", [floats(1, 2, 5, 7), roi, None, np.array([1, 2, 4, 6])], attributes, opset=13)


@pytest.mark.parametrize("policy", ["not_larger", "not_smaller"])
def test_aspect_ratio(policy: str) -> None:
    attributes = {"mode": "linear", "axes": [2, 3], "keep_aspect_ratio_policy": policy}
    assert_alike("Resize", [floats(1, 2, 5, 7), None, None, np.array([8, 9])], attributes, opset=18)


def test_other_ranks_and_types() -> None:
    assert_alike("Resize", [floats(1, 2, 9), None, scale(2)], {"mode": "linear"}, opset=13)
    assert_alike("Resize", [floats(1, 2, 3, 4, 5), None, scale(2, 2, 2)], {"mode": "linear"}, opset=13)
    assert_alike("Resize", [floats(1, 2, 10, 10), None, scale(0.7, 0.3)], {"mode": "linear"}, opset=13)
    assert_alike("Resize", [np.array([[[[2**24 + 1, 3]]]], np.int32), None, scale(2, 2)], {}, opset=13)


def test_infinities_stay_where_they_are() -> None:
    x = torch.tensor([[[[float("inf"), 1.0]]]])
    assert not resizing.resize(x, None, [1, 1, 1, 1.5], opset=13).isnan().any()


@pytest.mark.parametrize(
    ("mode", "padding", "corners"),
    [*product(("bilinear", "nearest", "bicubic"), ("zeros", "border", "reflection"), (0, 1))],
)
def test_grids(mode: str, padding: str, corners: int) -> None:
    attributes = {"mode": mode, "padding_mode": padding, "align_corners": corners}
    assert_alike("GridSample", [floats(1, 2, 5, 6), floats(1, 4, 3, 2)], attributes, opset=16)


GRADIENTS: dict[str, tuple[Any, tuple[Any, ...], dict[str, Any]]] = {
    **{
        f"Resize {mode} {kind}": (
            resizing.resize,
            (doubles(1, 1, 5, 5), None, [1, 1, 1.7, 0.6]),
            {"opset": 13, "mode": mode, "coordinate_transformation_mode": kind},
        )
        for mode, kind in product(("nearest", "linear", "cubic"), ("half_pixel", "align_corners"))
    },
    "Resize antialias": (
        resizing.resize,
        (doubles(1, 1, 5, 5), None, [1, 1, 0.7, 0.6]),
        {"opset": 18, "mode": "cubic", "antialias": 1},
    ),
    "GridSample": (
        resizing.sample_grid,
        (doubles(1, 2, 4, 4), (doubles(1, 3, 3, 2) * 0.3).detach().requires_grad_()),
        {},
    ),
    "AffineGrid": (resizing.affine_grid, (doubles(1, 2, 3), [1, 1, 3, 4]), {}),
    "DepthToSpace": (resizing.depth_to_space, (doubles(1, 4, 2, 2),), {"blocksize": 2}),
    "SpaceToDepth": (resizing.space_to_depth, (doubles(1, 1, 4, 4),), {"blocksize": 2}),
}


@pytest.mark.parametrize("name", GRADIENTS)
def test_gradients(name: str) -> None:
    function, inputs, attributes = GRADIENTS[name]
    assert torch.autograd.gradcheck(lambda *given: function(*given, **attributes), inputs)


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
def test_resampling_compiles(mode: str) -> None:
    x = torch.randn(1, 1, 5, 5)
    compiled = torch.compile(
        lambda x: resizing.resize(x, None, [1, 1, 1.7, 0.6], opset=13, mode=mode), backend="eager", fullgraph=True
    )
    torch.testing.assert_close(compiled(x), resizing.resize(x, None, [1, 1, 1.7, 0.6], opset=13, mode=mode))
