"""Fourier transforms and windows: against onnxruntime, and their gradients against differences."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch

from alula.graph.ops import signals
from tests.graph.ops.runtime import assert_alike

GENERATOR = np.random.default_rng(0)
WINDOWS = {"HannWindow": 0.0, "HammingWindow": 4 / 46, "BlackmanWindow": 0.0}


def floats(*shape: int) -> np.ndarray:
    return GENERATOR.standard_normal(shape).astype(np.float32)


def doubles(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()


@pytest.mark.parametrize(("length", "attributes"), [*product((4, 8, 11), ({}, {"onesided": 1}, {"inverse": 1}))])
def test_fourier(length: int, attributes: dict[str, Any]) -> None:
    x = floats(2, 8, 2 if "inverse" in attributes else 1)
    assert_alike("DFT", [x, np.array(length)], {**attributes, "axis": 1}, opset=17)
    assert_alike("DFT", [x, np.array(length), np.array(-2)], attributes, opset=20)


@pytest.mark.parametrize(
    ("inputs", "attributes"),
    [
        ([floats(2, 32, 1), np.array(4), floats(8)], {}),
        ([floats(2, 32, 1), np.array(4), None, np.array(16)], {}),
        ([floats(2, 32, 1), np.array(4), floats(8), np.array(8)], {"onesided": 0}),
    ],
)
def test_short_fourier(inputs: list[Any], attributes: dict[str, Any]) -> None:
    assert_alike("STFT", inputs, attributes, opset=17)


def hamming(count: int) -> np.ndarray:
    """By ONNX's factors; numpy rounds them to 0.54 and 0.46."""
    return (25 - 21 * np.cos(np.arange(count) * 2 * np.pi / (count - 1))) / 46


@pytest.mark.parametrize(("op", "periodic"), [*product(WINDOWS, (0, 1))])
def test_windows(op: str, periodic: int) -> None:
    found = signals.OPERATORS[op](9, periodic=periodic, anchor=torch.zeros(0))
    exact = {"HannWindow": np.hanning, "BlackmanWindow": np.blackman, "HammingWindow": hamming}[op](9 + periodic)[:9]
    np.testing.assert_allclose(found.numpy(), exact, atol=1e-6)
    alone = signals.OPERATORS[op](1, periodic=periodic, anchor=torch.zeros(0))
    assert alone.item() == pytest.approx(WINDOWS[op], abs=1e-6)


@pytest.mark.parametrize(
    ("bands", "length", "rate", "edges"), [(8, 16, 8192, (0.0, 4096.0)), (40, 64, 16000, (20.0, 7600.0))]
)
def test_mel_weights(bands: int, length: int, rate: int, edges: tuple[float, float]) -> None:
    from onnx.reference.ops.op_mel_weight_matrix import MelWeightMatrix

    wanted = MelWeightMatrix._run(None, bands, length, rate, *edges)[0]
    found = signals.mel_weights(bands, length, rate, *edges, anchor=torch.zeros(0))
    np.testing.assert_allclose(found.numpy(), wanted, atol=1e-6)


@pytest.mark.parametrize(("attributes", "parts"), [({}, 1), ({}, 2), ({"inverse": 1}, 2), ({"onesided": 1}, 1)])
def test_gradients(attributes: dict[str, int], parts: int) -> None:
    assert torch.autograd.gradcheck(lambda x: signals.fourier(x, 6, opset=20, **attributes), doubles(2, 5, parts))
    assert torch.autograd.gradcheck(
        lambda x, window: signals.short_fourier(x, 2, window), (doubles(1, 9, 1), doubles(4))
    )
