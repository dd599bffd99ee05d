"""Normalisations: against onnxruntime, their gradients against differences, and at places without variance."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck

from alula.graph.ops import normalisation
from alula.graph.ops.operators import OPERATORS
from tests.graph.ops.runtime import assert_alike

GENERATOR = np.random.default_rng(0)


def floats(*shape: int) -> np.ndarray:
    return GENERATOR.standard_normal(shape).astype(np.float32)


def leaf(*shape: int, seed: int = 0) -> torch.Tensor:
    drawn = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return drawn.requires_grad_()


ALIKE: list[tuple[str, list[Any], dict[str, Any], int]] = [
    ("Softmax", [floats(2, 3, 4)], {}, 11),
    ("Softmax", [floats(2, 3, 4)], {"axis": 0}, 11),
    ("Softmax", [floats(2, 3, 4)], {"axis": -1}, 11),
    ("Softmax", [floats(2, 0, 4)], {}, 11),
    ("Softmax", [floats(2, 3, 4)], {}, 13),
    ("Softmax", [floats(2, 3, 4)], {"axis": 1}, 13),
    ("LogSoftmax", [floats(2, 3, 4)], {"axis": 2}, 11),
    ("LogSoftmax", [floats(2, 3, 4)], {}, 13),
    ("Hardmax", [floats(2, 3, 4)], {}, 11),
    ("Hardmax", [np.array([[1, 3, 3], [2, 2, 1]], np.float32)], {}, 13),
    ("LRN", [floats(1, 6, 2, 2)], {"size": 3, "alpha": 0.5}, 13),
    ("LRN", [floats(1, 3, 2, 2)], {"size": 5, "alpha": 0.5, "beta": 0.5, "bias": 2.0}, 13),
    ("LpNormalization", [floats(2, 3)], {"p": 1, "axis": 0}, 13),
    ("MeanVarianceNormalization", [floats(2, 3, 2, 2)], {"axes": [1, 3]}, 13),
    ("InstanceNormalization", [floats(1, 3, 1, 1), floats(3), floats(3)], {}, 13),
    ("InstanceNormalization", [floats(2, 3, 5), floats(3), floats(3)], {"epsilon": 0.1}, 13),
    ("GroupNormalization", [floats(2, 4, 3), floats(2), floats(2)], {"num_groups": 2}, 18),
    ("GroupNormalization", [floats(2, 4, 3), floats(4), floats(4)], {"num_groups": 2}, 21),
    ("LayerNormalization", [floats(2, 3, 4), floats(3, 4), floats(3, 4)], {"axis": 1}, 17),
    ("LayerNormalization", [floats(2, 3, 4), floats(4)], {"axis": -1, "epsilon": 0.1}, 17),
    ("LayerNormalization", [floats(2, 3, 4), floats(4), floats(4)], {"axis": -2}, 17),
    ("RMSNormalization", [floats(2, 3, 4), floats(3, 4)], {"axis": 1, "epsilon": 0.1}, 23),
    ("RMSNormalization", [floats(2, 3, 4), floats(1)], {}, 23),
    ("BatchNormalization", [floats(2, 3), *(np.abs(floats(3)) for _ in range(4))], {"epsilon": 0.1}, 11),
]


@pytest.mark.parametrize(("op", "inputs", "attributes", "opset"), ALIKE)
def test_like_onnxruntime(op: str, inputs: list[Any], attributes: dict[str, Any], opset: int) -> None:
    assert_alike(op, inputs, attributes, opset=opset)


@pytest.mark.parametrize(
    ("op", "inputs", "attributes"),
    [
        ("GroupNormalization", [leaf(2, 4, 3), leaf(2), leaf(2)], {"num_groups": 2}),
        ("LayerNormalization", [leaf(2, 3, 4), leaf(4), leaf(4)], {"axis": 1}),
        ("LpNormalization", [leaf(2, 3)], {"p": 1}),
        ("MeanVarianceNormalization", [leaf(2, 3, 2)], {"axes": [-1, 0]}),
        ("RMSNormalization", [leaf(2, 3, 4), leaf(3, 4)], {"axis": 1}),
        ("RMSNormalization", [leaf(2, 3, 4), leaf(1)], {}),
        ("LRN", [leaf(1, 5, 2)], {"size": 2, "alpha": 0.5}),
        ("LogSoftmax", [leaf(2, 3, 2)], {"opset": 11}),
        (
            "BatchNormalization",
            [leaf(4, 2, 3), leaf(2), leaf(2), torch.zeros(2).double(), torch.ones(2).double()],
            {"training_mode": 1, "outputs": 3, "training": False},
        ),
    ],
)
def test_gradients_are_those_of_finite_differences(op: str, inputs: list[Any], attributes: dict[str, Any]) -> None:
    assert gradcheck(functools.partial(OPERATORS[op], **attributes), inputs, atol=1e-4)


@pytest.mark.parametrize(
    "function", [normalisation.mean_variance_norm, normalisation.lp_norm], ids=lambda function: function.__name__
)
def test_where_nothing_varies_the_gradient_is_finite(function):
    x = torch.zeros(2, 3, 2, 2, requires_grad=True)
    y = function(x)
    y.sum().backward()
    assert y.eq(0).all()
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_batch_norm_follows_onnx_s_momentum_in_place_while_the_module_trains():
    x, mean, variance = torch.randn(8, 2, 3), torch.zeros(2), torch.ones(2)
    normalisation.batch_norm(x, torch.ones(2), torch.zeros(2), mean, variance, training=True, momentum=0.75)
    torch.testing.assert_close(mean, 0.25 * x.mean((0, 2)))
    torch.testing.assert_close(variance, 0.75 + 0.25 * x.var((0, 2)))


def test_batch_norm_of_a_graph_that_trains_gives_the_statistics_that_follow():
    x, mean, variance = torch.randn(8, 2, 3), torch.zeros(2), torch.ones(2)
    y, next_mean, next_variance = normalisation.batch_norm(
        x, torch.ones(2), torch.zeros(2), mean, variance, training=False, outputs=3, training_mode=1, momentum=0.75
    )
    assert mean.eq(0).all()
    torch.testing.assert_close(y.mean((0, 2)), torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(next_mean, 0.25 * x.mean((0, 2)))
    torch.testing.assert_close(next_variance, 0.75 + 0.25 * x.var((0, 2), correction=0))


def test_layer_norm_tells_mean_and_inverse_deviation_where_they_are_asked():
    x, scale = leaf(2, 3, 4), leaf(4, seed=1)
    y, mean, inverse = normalisation.layer_norm(x, scale, axis=1, outputs=3)
    assert mean.shape == inverse.shape == (2, 1, 1)
    torch.testing.assert_close(((x - mean) * inverse * scale).float(), y.float(), atol=1e-5, rtol=1e-4)
    assert len(normalisation.layer_norm(x, scale, axis=1)) == 1
