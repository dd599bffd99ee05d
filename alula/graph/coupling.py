"""How each operator couples the axes of what it reads and what it computes; one without a rule keeps them all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
import onnx_ir as ir

from alula.graph.channels import Axes, Ids
from alula.graph.lengths import whole_numbers
from alula.graph.moves import (
    concat,
    cut,
    depth_to_space,
    expand,
    fill,
    gather,
    gather_at_places,
    keep_all,
    keep_space,
    pad,
    reshape,
    resize,
    split,
    squeeze,
    tie_all,
    tie_broadcast,
    transpose,
)  # fmt: skip

Rule = Callable[[Axes, ir.Node], None]


def ignore(axes: Axes, node: ir.Node) -> None:
    """The operator reads shapes alone."""


def pass_on(axes: Axes, node: ir.Node) -> None:
    """Each axis of the first output is that of the first input."""
    tie_all(axes, node.inputs[0], node.outputs[0])


def elementwise(axes: Axes, node: ir.Node) -> None:
    """Inputs that broadcast to the output: its axes are theirs, counted from the last."""
    (made,) = node.outputs
    for value in node.inputs:
        if value is not None:
            tie_broadcast(axes, value, made)


def convolve(axes: Axes, node: ir.Node) -> None:
    """Conv: input channels are the weight's second axis, output channels its first."""
    x, w, *bias = node.inputs
    (made,) = node.outputs
    assert x is not None
    assert w is not None
    groups = int(node.attributes.get_int("group", 1))
    given, taken, gives = axes.of(x)[1], axes.of(w)[1], axes.of(w)[0]
    out = axes.of(made)[1]
    axes.tie(gives, out)
    if bias and bias[0] is not None:
        axes.tie(axes.of(bias[0])[0], out)
    if groups == 1:
        axes.tie(given, taken)
    elif given is None or gives is None or taken is None:
        axes.keep(given)
        axes.keep(gives)
    elif len(taken) == 1:  # depthwise: each input channel has its own outputs
        axes.tie(np.repeat(given, len(gives) // groups), gives)
        axes.keep(taken)
    else:  # every group loses the same
        axes.tie(given, np.tile(taken, groups))
        _tie_groups(axes, gives, groups)
    keep_space(axes, x, made)


def _tie_groups(axes: Axes, ids: Ids, groups: int) -> None:
    """Every group loses the same."""
    first, *others = ids.reshape(groups, -1)
    for group in others:
        axes.tie(first, group)


def convolve_transposed(axes: Axes, node: ir.Node) -> None:
    """ConvTranspose: input channels are the weight's first axis, output channels of each group its second."""
    x, w, *bias = node.inputs
    (made,) = node.outputs
    assert x is not None
    assert w is not None
    groups = int(node.attributes.get_int("group", 1))
    taken, gives = axes.of(w)[:2]
    out = axes.of(made)[1]
    axes.tie(axes.of(x)[1], taken)
    if bias and bias[0] is not None:
        axes.tie(axes.of(bias[0])[0], out)
    if groups == 1 or taken is None or gives is None:
        axes.tie(gives, out)
    elif len(taken) == groups:  # depthwise: each input channel has its own outputs
        axes.tie(np.repeat(taken, len(gives)), out)
        axes.keep(gives)
    else:
        axes.tie(np.tile(gives, groups), out)
        _tie_groups(axes, taken, groups)
    keep_space(axes, x, made)


def pool(axes: Axes, node: ir.Node) -> None:
    """Batch and channels pass; space is read in windows."""
    x, (made, *others) = node.inputs[0], node.outputs
    assert x is not None
    for axis in range(2):
        axes.tie(axes.of(x)[axis], axes.of(made)[axis])
    keep_space(axes, x, made)
    for value in others:
        axes.freeze(value)


def multiply(axes: Axes, node: ir.Node) -> None:
    """MatMul: what is summed over goes on both sides; the rest passes."""
    left, right = node.inputs
    (made,) = node.outputs
    assert left is not None
    assert right is not None
    a, b, y = axes.of(left), axes.of(right), axes.of(made)
    if len(a) < 2 or len(b) < 2:
        keep_all(axes, node)
        return
    axes.tie(a[-1], b[-2])
    axes.tie(a[-2], y[-2])
    axes.tie(b[-1], y[-1])
    for operand in (a, b):
        for ids, target in zip(operand[-3::-1], y[-3::-1], strict=False):
            if ids is not None and target is not None and len(ids) == 1 != len(target):
                axes.keep(ids)
            else:
                axes.tie(ids, target)
    if left.const_value is None and right.const_value is None:
        axes.contract(a[-1], left, right)


def multiply_general(axes: Axes, node: ir.Node) -> None:
    """Gemm."""
    a, b, *bias = node.inputs
    (made,) = node.outputs
    assert a is not None
    assert b is not None
    left, right = list(axes.of(a)), list(axes.of(b))
    if int(node.attributes.get_int("transA", 0)):
        left.reverse()
    if int(node.attributes.get_int("transB", 0)):
        right.reverse()
    axes.tie(left[1], right[0])
    axes.tie(left[0], axes.of(made)[0])
    axes.tie(right[1], axes.of(made)[1])
    if a.const_value is None and b.const_value is None:
        axes.contract(left[1], a, b)
    if bias and bias[0] is not None:
        tie_broadcast(axes, bias[0], made)


def sum_products(axes: Axes, node: ir.Node) -> None:
    """Einsum: axes of one letter are one; what the result lacks is summed over."""
    given = [value for value in node.inputs if value is not None]
    (made,) = node.outputs
    equation = node.attributes.get_string("equation", "").replace(" ", "")
    left, arrow, right = equation.partition("->")
    terms = left.split(",")
    if not arrow or "." in equation or any(len(set(term)) < len(term) for term in (*terms, right)):
        keep_all(axes, node)
        return
    met: dict[str, Ids | None] = dict(zip(right, axes.of(made), strict=True))
    for term, value in zip(terms, given, strict=True):
        for letter, ids in zip(term, axes.of(value), strict=True):
            axes.tie(met.setdefault(letter, ids), ids)
    for letter in set(left) - {",", *right}:
        axes.contract(met[letter], *(value for term, value in zip(terms, given, strict=True) if letter in term))


def normalise_channels(axes: Axes, node: ir.Node) -> None:
    """BatchNormalization and InstanceNormalization: each channel by itself."""
    x, *parameters = node.inputs
    made, *others = node.outputs
    assert x is not None
    tie_all(axes, x, made)
    for value in parameters:
        if value is not None:
            axes.tie(axes.of(value)[0], axes.of(made)[1])
    if node.op_type == "InstanceNormalization":
        keep_space(axes, x, made)
    for value in others:
        axes.freeze(value)


def read_along(axes: Axes, node: ir.Node) -> None:
    """What is normalised or sought along an axis reads it as a whole: that axis stays, the others pass."""
    x, *parameters = node.inputs
    made, *others = node.outputs
    assert x is not None
    rank = len(axes.of(x))
    axis = int(node.attributes.get_int("axis", -1)) % max(rank, 1)
    whole = range(axis, rank) if node.op_type in _FROM_AXIS_ON else (axis,)
    tie_all(axes, x, made)
    for index in whole:
        axes.keep(axes.of(x)[index])
    for value in (*parameters, *others):
        if value is not None:
            axes.freeze(value)


def reduce(axes: Axes, node: ir.Node) -> None:
    """What is reduced is read as a whole, unless it is a sum; the other axes pass."""
    x = node.inputs[0]
    (made,) = node.outputs
    assert x is not None
    rank = len(axes.of(x))
    chosen = whole_numbers(node, 1, "axes")
    if chosen is None and len(node.inputs) > 1 and node.inputs[1] is not None:
        keep_all(axes, node)
        return
    nothing = not chosen and bool(node.attributes.get_int("noop_with_empty_axes", 0))
    gone = {axis % rank for axis in chosen} if chosen else set() if nothing else set(range(rank))
    for axis in gone:
        if node.op_type in _SUMS:
            axes.contract(axes.of(x)[axis], x)
        else:
            axes.keep(axes.of(x)[axis])
    rest = [axis for axis in range(rank) if axis not in gone]
    targets = rest if int(node.attributes.get_int("keepdims", 1)) else range(len(rest))
    for axis, target in zip(rest, targets, strict=True):
        axes.tie(axes.of(x)[axis], axes.of(made)[target])


def recur(axes: Axes, node: ir.Node) -> None:
    """LSTM, GRU, RNN: a hidden unit is a row of every gate, a column of the recurrence, an entry of every state."""
    given = [*node.inputs, *[None] * (8 - len(node.inputs))]
    x, w, r, bias, lengths = given[:5]
    states = given[5:]
    assert x is not None
    assert w is not None
    assert r is not None
    if int(node.attributes.get_int("layout", 0)) or lengths is not None:
        keep_all(axes, node)
        return
    for value in (x, *[state for state in states[:2] if state is not None], *[one for one in node.outputs if one.name]):
        for ids in axes.of(value)[:-1]:  # steps follow each other, and examples have states of their own
            axes.keep(ids)
    axes.tie(axes.of(x)[2], axes.of(w)[2])
    hidden = axes.of(r)[2]
    gates, sets = axes.of(w)[1], axes.of(r)[1]
    if hidden is None or gates is None or sets is None:
        keep_all(axes, node)
        return
    every = np.tile(hidden, len(gates) // len(hidden))
    axes.tie(every, gates)
    axes.tie(every, sets)
    if bias is not None:
        axes.tie(np.tile(every, 2), axes.of(bias)[1])
    for state in states[:2]:
        if state is not None:
            axes.tie(axes.of(state)[2], hidden)
    if states[2] is not None:
        axes.tie(np.tile(hidden, 3), axes.of(states[2])[1])
    for value in node.outputs:
        if value.name:
            axes.tie(axes.of(value)[-1], hidden)


_FROM_AXIS_ON: Final = frozenset({"LayerNormalization", "RMSNormalization"})
_ELEMENTWISE: Final = (
    "Abs", "Acos", "Acosh", "Add", "And", "Asin", "Asinh", "Atan", "Atanh", "BitwiseAnd", "BitwiseNot", "BitwiseOr",
    "BitwiseXor", "Cast", "Ceil", "Celu", "Clip", "Cos", "Cosh", "Div", "Elu", "Equal", "Erf", "Exp", "Floor", "Gelu",
    "Greater", "GreaterOrEqual", "HardSigmoid", "HardSwish", "IsInf", "IsNaN", "LeakyRelu", "Less", "LessOrEqual",
    "Log", "Max", "Mean", "Min", "Mish", "Mod", "Mul", "Neg", "Not", "Or", "PRelu", "Pow", "Reciprocal", "Relu",
    "Round", "Selu", "Shrink", "Sigmoid", "Sign", "Sin", "Sinh", "Softplus", "Softsign", "Sqrt", "Sub", "Sum", "Swish",
    "Tan", "Tanh", "ThresholdedRelu", "Where", "Xor",
)  # fmt: skip
_REDUCTIONS: Final = (
    "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd",
    "ReduceSum", "ReduceSumSquare",
)  # fmt: skip
_SUMS: Final = frozenset({"ReduceL1", "ReduceL2", "ReduceSum", "ReduceSumSquare"})  # a term of zero may as well be gone
RULES: Final[dict[str, Rule]] = {
    **dict.fromkeys(_ELEMENTWISE, elementwise),
    **dict.fromkeys(_REDUCTIONS, reduce),
    **dict.fromkeys(("AveragePool", "GlobalAveragePool", "GlobalMaxPool", "LpPool", "MaxPool"), pool),
    **dict.fromkeys(("BatchNormalization", "InstanceNormalization"), normalise_channels),
    **dict.fromkeys(("LayerNormalization", "LogSoftmax", "RMSNormalization", "Softmax"), read_along),
    **dict.fromkeys(("Constant", "Shape", "Size"), ignore),
    **dict.fromkeys(("Dropout", "Identity"), pass_on),
    **dict.fromkeys(("GRU", "LSTM", "RNN"), recur),
    **dict.fromkeys(("Flatten", "Reshape"), reshape),
    **dict.fromkeys(("Resize", "Upsample"), resize),
    **dict.fromkeys(("Squeeze", "Unsqueeze"), squeeze),
    "Concat": concat,
    "ConstantOfShape": fill,
    "Conv": convolve,
    "ConvTranspose": convolve_transposed,
    "DepthToSpace": depth_to_space,
    "Einsum": sum_products,
    "Expand": expand,
    "Gather": gather,
    "GatherND": gather_at_places,
    "Gemm": multiply_general,
    "MatMul": multiply,
    "Pad": pad,
    "Slice": cut,
    "Split": split,
    "Transpose": transpose,
}
