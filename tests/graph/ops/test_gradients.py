"""Gradients through operators are those of finite differences; small numbers, float64."""

from __future__ import annotations

import functools

import pytest
import torch
from torch.autograd import gradcheck

from alula.graph.ops.operators import OPERATORS

X = (2, 3, 6, 6)
CASES = {
    "Abs": [(2, 3)],
    "Add": [(2, 3), (3,)],
    "Clip": [(2, 3), -0.5, 0.5],
    "Div": [(2, 3), (2, 3)],
    "Elu": [(2, 3)],
    "Erf": [(2, 3)],
    "Exp": [(2, 3)],
    "Gelu": [(2, 3)],
    "HardSigmoid": [(2, 3)],
    "HardSwish": [(2, 3)],
    "LeakyRelu": [(2, 3)],
    "Max": [(2, 3), (2, 3)],
    "Mean": [(2, 3), (2, 3)],
    "Min": [(2, 3), (2, 3)],
    "Mish": [(2, 3)],
    "Mul": [(2, 3), (2, 1)],
    "Neg": [(2, 3)],
    "PRelu": [(2, 3), (3,)],
    "Reciprocal": [(2, 3)],
    "Relu": [(2, 3)],
    "Selu": [(2, 3)],
    "Sigmoid": [(2, 3)],
    "Sin": [(2, 3)],
    "Softplus": [(2, 3)],
    "Softsign": [(2, 3)],
    "Sub": [(2, 3), (2, 3)],
    "Sum": [(2, 3), (2, 3), (3,)],
    "SwiGLU": [(2, 3), (2, 3)],
    "Swish": [(2, 3)],
    "Tanh": [(2, 3)],
    "Where": ["mask", (2, 3), (2, 3)],
    "MatMul": [(2, 3, 4), (4, 2)],
    "Det": [(3, 3)],
    "ReduceL1": [(2, 3)],
    "ReduceL2": [(2, 3), [1]],
    "ReduceLogSumExp": [(2, 3), [1]],
    "ReduceMax": [(2, 3), [1]],
    "ReduceMean": [(2, 3), [0]],
    "ReduceMin": [(2, 3)],
    "ReduceProd": [(2, 3), [1]],
    "ReduceSum": [(2, 3), [-1]],
    "ReduceSumSquare": [(2, 3)],
    "CumSum": [(2, 3), 1],
    "CumProd": [(2, 3), 1],
    "Identity": [(2, 3)],
    "Reshape": [(2, 3), [3, -1]],
    "Transpose": [(2, 3)],
    "Flatten": [(2, 3, 2)],
    "Squeeze": [(2, 1, 3), [1]],
    "Unsqueeze": [(2, 3), [0, 3]],
    "Slice": [(4, 5), [3, 0], [0, 4], [0, 1], [-1, 2]],
    "Pad": [(2, 3), [0, 1, 1, 0]],
    "Tile": [(2, 3), [2, 1]],
    "Expand": [(2, 1), [2, 3]],
    "Trilu": [(3, 3)],
    "CenterCropPad": [(4, 5), [6, 3]],
    "GlobalAveragePool": [X],
    "GlobalLpPool": [X],
    "GlobalMaxPool": [X],
    "LayerNormalization": [(2, 4), (4,), (4,)],
    "RMSNormalization": [(2, 4), (4,)],
    "InstanceNormalization": [(2, 3, 4), (3,), (3,)],
    "LpNormalization": [(2, 3)],
    "MeanVarianceNormalization": [X],
    "Conv": [X, (4, 3, 3, 3), (4,)],
    "ConvTranspose": [(2, 3, 4, 4), (3, 2, 3, 3), (2,)],
}  # fmt: skip  (by operator: shapes of tensors that get a gradient, and other inputs)
WITH_ATTRIBUTES = [
    ("Gemm", [(3, 2), (4, 3), (4,)], {"alpha": 0.5, "beta": 2.0, "transA": 1, "transB": 1}),
    ("Concat", [(2, 3), (2, 2)], {"axis": 1}),
    ("Split", [(5, 2)], {"outputs": 2, "axis": 0}),
    ("Pad", [(3, 4), [1, 0, 1, 2]], {"mode": "reflect"}),
    ("Conv", [X, (4, 3, 2, 2)], {"group": 1, "strides": [2, 1], "pads": [0, 1, 1, 0], "dilations": [1, 2]}),
    ("Conv", [X, (6, 1, 3, 3)], {"group": 3, "auto_pad": "SAME_LOWER"}),
    ("ConvTranspose", [(1, 2, 3, 3), (2, 1, 3, 3)], {"strides": [2, 2], "output_padding": [1, 1]}),
    ("MaxPool", [X], {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [0, 0, 1, 1], "ceil_mode": 1}),
    ("AveragePool", [X], {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [0, 0, 1, 1]}),
    ("AveragePool", [X], {"kernel_shape": [2, 2], "dilations": [2, 2], "count_include_pad": 1, "pads": [1, 1, 1, 1]}),
    ("LpPool", [X], {"kernel_shape": [2, 2], "strides": [2, 2]}),
    ("BatchNormalization", [X, (3,), (3,), "zeros", "ones"], {"training": False}),
    ("BatchNormalization", [X, (3,), (3,), "zeros", "ones"], {"training": True}),
    ("GroupNormalization", [(2, 4, 3), (4,), (4,)], {"num_groups": 2}),
    ("LRN", [X], {"size": 3}),
    ("Softmax", [(2, 3)], {"opset": 13}),
    ("Softmax", [(2, 3, 2)], {"opset": 11}),
    ("LogSoftmax", [(2, 3)], {"opset": 13, "axis": 0}),
    ("Einsum", [(2, 3), (3, 4)], {"equation": "ij, jk -> ki"}),
    ("Gather", [(4, 3), "places"], {}),
    ("Gather", [(3, 4), "places"], {"axis": 1}),
    ("GatherElements", [(4, 3), "grid"], {"axis": 0}),
    ("GatherND", [(4, 3), "pairs"], {}),
    ("ScatterElements", [(4, 3), "grid", (2, 3)], {"axis": 0, "reduction": "add"}),
    ("ScatterND", [(4, 3), "pairs", (2,)], {}),
    ("TopK", [(4, 5), 2], {}),
    ("DepthToSpace", [(1, 4, 2, 2)], {"blocksize": 2}),
    ("SpaceToDepth", [(1, 1, 4, 4)], {"blocksize": 2}),
    ("Resize", [(1, 2, 3, 4), None, None, [1, 2, 5, 7]], {"mode": "linear", "opset": 19}),
    ("Resize", [(1, 2, 6, 5), None, None, [1, 2, 4, 3]], {"mode": "cubic", "opset": 19, "antialias": 1}),
    ("GridSample", [(1, 2, 4, 4), (1, 3, 3, 2)], {}),
    ("Attention", [(1, 4, 3, 2), (1, 2, 3, 2), (1, 2, 3, 2)], {"is_causal": 1}),
    ("Attention", [(1, 2, 3, 2), (1, 2, 3, 2), (1, 2, 3, 2)], {"softcap": 2.0, "outputs": 4}),
    ("RotaryEmbedding", [(1, 2, 3, 4), (1, 3, 2), (1, 3, 2)], {}),
    ("LSTM", [(3, 2, 4), (1, 12, 4), (1, 12, 3), (1, 24), None, (1, 2, 3), (1, 2, 3)], {"hidden_size": 3}),
    ("LSTM", [(3, 2, 4), (2, 12, 4), (2, 12, 3)], {"hidden_size": 3, "direction": "bidirectional", "clip": 5.0}),
    ("GRU", [(3, 2, 4), (1, 9, 4), (1, 9, 3), (1, 18)], {"hidden_size": 3, "linear_before_reset": 1}),
    ("GRU", [(3, 2, 4), (1, 9, 4), (1, 9, 3), (1, 18)], {"hidden_size": 3, "direction": "reverse"}),
    ("RNN", [(3, 2, 4), (1, 3, 4), (1, 3, 3)], {"hidden_size": 3}),
    ("STFT", [(1, 12, 1), 4, (6,)], {}),
    ("NegativeLogLikelihoodLoss", [(4, 3), "labels"], {}),
    ("SoftmaxCrossEntropyLoss", [(4, 3), "labels", "ones"], {}),
]  # fmt: skip
GIVEN = {
    "mask": torch.tensor([[True, False, True]]), "places": torch.tensor([[0, -1], [1, 1]]), "zeros": torch.zeros(3),
    "ones": torch.ones(3), "labels": torch.tensor([0, 2, 1, 1]), "grid": torch.tensor([[0, 1, 3], [-1, 2, 0]]),
    "pairs": torch.tensor([[0, 1], [3, 2]]),
}  # fmt: skip


def draw(thing, generator):
    if isinstance(thing, tuple):
        return (torch.rand(thing, generator=generator, dtype=torch.float64) + 0.25).requires_grad_()
    given = GIVEN[thing] if isinstance(thing, str) else thing
    return given.double() if isinstance(given, torch.Tensor) and given.is_floating_point() else given


@pytest.mark.parametrize(
    ("name", "inputs", "attributes"),
    [*((name, inputs, {}) for name, inputs in CASES.items()), *WITH_ATTRIBUTES],
    ids=lambda thing: thing if isinstance(thing, str) else "",
)
def test_gradients_are_those_of_finite_differences(name, inputs, attributes):
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    arguments = [draw(thing, generator) for thing in inputs]
    function = functools.partial(OPERATORS[name], **attributes)

    def floats_alone(*tensors):
        found = function(*tensors)
        found = found if isinstance(found, tuple) else (found,)
        return tuple(one for one in found if one.is_floating_point() and one.requires_grad)

    assert gradcheck(floats_alone, arguments, eps=1e-6, atol=1e-4)
