"""Recurrent networks: against onnxruntime, and their gradients against differences."""

from __future__ import annotations

import functools
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch

from alula.errors import ModelError
from alula.graph.ops.recurrent import OPERATORS
from tests.graph.ops.runtime import assert_alike

GENERATOR = np.random.default_rng(0)
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
DEFAULTS = {"LSTM": ["Sigmoid", "Tanh", "Tanh"], "GRU": ["Sigmoid", "Tanh"], "RNN": ["Tanh"]}
DIRECTIONS = ("forward", "reverse", "bidirectional")
STEPS, BATCH, WIDTH, HIDDEN = 5, 3, 4, 6


def floats(*shape: int) -> np.ndarray:
    return GENERATOR.standard_normal(shape).astype(np.float32)


def arguments(op: str, direction: str, *, lengths: bool, peepholes: bool = False) -> list[Any]:
    both, gates = 2 if direction == "bidirectional" else 1, GATES[op] * HIDDEN
    states = [floats(both, BATCH, HIDDEN) for _ in range(2 if op == "LSTM" else 1)]
    ends = np.array([5, 2, 3], np.int32) if lengths else None
    weights = [floats(both, gates, WIDTH), floats(both, gates, HIDDEN), floats(both, 2 * gates)]
    extra = [floats(both, 3 * HIDDEN)] if peepholes else []
    return [floats(STEPS, BATCH, WIDTH), *weights, ends, *states, *extra]


def check(op: str, inputs: list[Any], direction: str, **attributes: Any) -> None:
    attributes = {"hidden_size": HIDDEN, "direction": direction, **attributes}
    for outputs in (1, 3 if op == "LSTM" else 2):
        proto_outputs = outputs
        assert_floats_alike(op, inputs, attributes, proto_outputs)


def assert_floats_alike(op: str, inputs: list[Any], attributes: dict[str, Any], outputs: int) -> None:
    """As assert_alike, whose outputs after the first are whole numbers."""
    if outputs == 1:
        assert_alike(op, inputs, attributes, opset=14)
        return
    from onnx import TensorProto, helper
    from onnxruntime import InferenceSession

    names = ["" if value is None else f"input_{index}" for index, value in enumerate(inputs)]
    given = {name: value for name, value in zip(names, inputs, strict=True) if value is not None}
    kinds = {name: helper.np_dtype_to_tensor_dtype(value.dtype) for name, value in given.items()}
    results = [f"output_{index}" for index in range(outputs)]
    graph = helper.make_graph(
        [helper.make_node(op, names, results, **attributes)],
        "graph",
        [helper.make_tensor_value_info(name, kinds[name], value.shape) for name, value in given.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in results],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=10)
    wanted = InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, given)
    found = OPERATORS[op](*(None if one is None else torch.from_numpy(one) for one in inputs), **attributes)
    for have, want in zip(found, wanted, strict=True):
        np.testing.assert_allclose(have.numpy(), want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("op", "direction", "lengths"), [*product(GATES, DIRECTIONS, (False, True))])
def test_like_onnxruntime(op: str, direction: str, lengths: bool) -> None:
    check(op, arguments(op, direction, lengths=lengths), direction)


@pytest.mark.parametrize(("direction", "lengths"), [*product(DIRECTIONS, (False, True))])
def test_gru_with_the_reset_after_the_product(direction: str, lengths: bool) -> None:
    check("GRU", arguments("GRU", direction, lengths=lengths), direction, linear_before_reset=1)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_lstm_with_peepholes_and_other_gates(direction: str) -> None:
    both = 2 if direction == "bidirectional" else 1
    check("LSTM", arguments("LSTM", direction, lengths=True, peepholes=True), direction)
    check("LSTM", arguments("LSTM", direction, lengths=False), direction, input_forget=1)
    others = {"activations": ["HardSigmoid", "Affine", "Elu"] * both, "activation_alpha": [0.3, 0.4, 0.9] * both}
    check("LSTM", arguments("LSTM", direction, lengths=False), direction, activation_beta=[0.5, 0.1] * both, **others)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_activations_and_clipping(direction: str) -> None:
    both = 2 if direction == "bidirectional" else 1
    check("RNN", arguments("RNN", direction, lengths=False), direction, activations=["Relu"] * both)
    check("RNN", arguments("RNN", direction, lengths=False), direction, clip=0.7)
    check("GRU", arguments("GRU", direction, lengths=False), direction, clip=0.7)


def test_an_unknown_activation_is_refused() -> None:
    with pytest.raises(ModelError, match="'cube'"):
        OPERATORS["RNN"](torch.zeros(1, 1, 1), torch.zeros(1, 1, 1), torch.zeros(1, 1, 1), activations=["Cube"])


@pytest.mark.parametrize(("op", "lengths"), [*product(GATES, (False, True))])
def test_gradients(op: str, lengths: bool) -> None:
    generator, gates = torch.Generator().manual_seed(0), 2 * GATES[op]
    shapes = [(3, 2, 2), (2, gates, 2), (2, gates, 2), (2, 2 * gates)]
    inputs = [torch.randn(s, dtype=torch.float64, generator=generator).requires_grad_() for s in shapes]
    ends = torch.tensor([3, 1], dtype=torch.int32) if lengths else None
    function = functools.partial(OPERATORS[op], hidden_size=2, direction="bidirectional")
    assert torch.autograd.gradcheck(lambda *tensors: function(*tensors, ends), inputs)
