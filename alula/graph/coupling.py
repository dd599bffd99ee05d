"""How each operator couples the axes of what it reads and what it computes; one without a rule keeps them all."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
import onnx_ir as ir

from alula.graph.channels import Axes, Ids

Rule = Callable[[Axes, ir.Node], None]


def keep_all(axes: Axes, node: ir.Node) -> None:
    """Everything that the operator reads and computes stays as it is."""
    for value in (*node.inputs, *node.outputs):
        if value is not None:
            axes.freeze(value)


def ignore(axes: Axes, node: ir.Node) -> None:
    """The operator reads shapes alone."""


def pass_on(axes: Axes, node: ir.Node) -> None:
    """Each axis of the first output is that of the first input."""
    _tie_all(axes, node.inputs[0], node.outputs[0])


def elementwise(axes: Axes, node: ir.Node) -> None:
    """Inputs that broadcast to the output: its axes are theirs, counted from the last."""
    (made,) = node.outputs
    for value in node.inputs:
        if value is not None:
            _tie_broadcast(axes, value, made)


def _tie_broadcast(axes: Axes, value: ir.Value, made: ir.Value) -> None:
    for ids, target in zip(reversed(axes.of(value)), reversed(axes.of(made)), strict=False):
        if ids is not None and target is not None and len(ids) == 1 != len(target):
            axes.keep(ids)  # one number for all: it stays, whatever goes
        else:
            axes.tie(ids, target)


def _tie_all(axes: Axes, value: ir.Value | None, made: ir.Value, *, but: Sequence[int] = ()) -> None:
    if value is None:
        return
    theirs, ours = axes.of(value), axes.of(made)
    if len(theirs) != len(ours):
        axes.freeze(value)
        axes.freeze(made)
        return
    for axis, (ids, target) in enumerate(zip(theirs, ours, strict=True)):
        if axis not in but:
            axes.tie(ids, target)


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
        shared = gives.reshape(groups, -1)
        for group in shared[1:]:
            axes.tie(shared[0], group)
    _keep_space(axes, x, made)


def convolve_transposed(axes: Axes, node: ir.Node) -> None:
    """ConvTranspose: input channels are the weight's first axis, output channels its second."""
    x, w, *bias = node.inputs
    (made,) = node.outputs
    assert x is not None
    assert w is not None
    if int(node.attributes.get_int("group", 1)) != 1:
        keep_all(axes, node)
        return
    axes.tie(axes.of(x)[1], axes.of(w)[0])
    axes.tie(axes.of(w)[1], axes.of(made)[1])
    if bias and bias[0] is not None:
        axes.tie(axes.of(bias[0])[0], axes.of(made)[1])
    _keep_space(axes, x, made)


def pool(axes: Axes, node: ir.Node) -> None:
    """Batch and channels pass; space is read in windows."""
    x, (made, *others) = node.inputs[0], node.outputs
    assert x is not None
    for axis in range(2):
        axes.tie(axes.of(x)[axis], axes.of(made)[axis])
    _keep_space(axes, x, made)
    for value in others:
        axes.freeze(value)


def _keep_space(axes: Axes, *values: ir.Value) -> None:
    for value in values:
        for ids in axes.of(value)[2:]:
            axes.keep(ids)


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
    if left.const_value is None and right.const_value is None:  # a product of activations reads them as a whole
        axes.keep(a[-1])


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
    if bias and bias[0] is not None:
        _tie_broadcast(axes, bias[0], made)


def normalise_channels(axes: Axes, node: ir.Node) -> None:
    """BatchNormalization and InstanceNormalization: each channel by itself."""
    x, *parameters = node.inputs
    made, *others = node.outputs
    assert x is not None
    _tie_all(axes, x, made)
    for value in parameters:
        if value is not None:
            axes.tie(axes.of(value)[0], axes.of(made)[1])
    if node.op_type == "InstanceNormalization":
        _keep_space(axes, x, made)
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
    _tie_all(axes, x, made)
    for index in whole:
        axes.keep(axes.of(x)[index])
    for value in (*parameters, *others):
        if value is not None:
            axes.freeze(value)


def reduce(axes: Axes, node: ir.Node) -> None:
    """What is reduced is read as a whole; the other axes pass."""
    x = node.inputs[0]
    (made,) = node.outputs
    assert x is not None
    rank = len(axes.of(x))
    chosen = _ints(node, 1, "axes")
    if chosen is None and len(node.inputs) > 1 and node.inputs[1] is not None:
        keep_all(axes, node)
        return
    gone = {axis % rank for axis in chosen} if chosen else set(range(rank))
    for axis in gone:
        axes.keep(axes.of(x)[axis])
    rest = [axis for axis in range(rank) if axis not in gone]
    targets = rest if int(node.attributes.get_int("keepdims", 1)) else range(len(rest))
    for axis, target in zip(rest, targets, strict=True):
        axes.tie(axes.of(x)[axis], axes.of(made)[target])


def transpose(axes: Axes, node: ir.Node) -> None:
    """Transpose."""
    x, (made,) = node.inputs[0], node.outputs
    assert x is not None
    rank = len(axes.of(x))
    order = node.attributes.get_ints("perm", tuple(range(rank))[::-1])
    for target, axis in enumerate(order):
        axes.tie(axes.of(x)[int(axis)], axes.of(made)[target])


def concat(axes: Axes, node: ir.Node) -> None:
    """Concat: along its axis, one input after the other."""
    (made,) = node.outputs
    values = [value for value in node.inputs if value is not None]
    along = int(node.attributes.get_int("axis", 0)) % max(len(axes.of(made)), 1)
    parts = [axes.of(value)[along] for value in values]
    if any(part is None for part in parts):
        keep_all(axes, node)
        return
    axes.tie(np.concatenate([part for part in parts if part is not None]), axes.of(made)[along])
    for value in values:
        _tie_all(axes, value, made, but=[along])


def split(axes: Axes, node: ir.Node) -> None:
    """Split: each output is a run of the axis."""
    x = node.inputs[0]
    assert x is not None
    along = int(node.attributes.get_int("axis", 0)) % max(len(axes.of(x)), 1)
    whole, start = axes.of(x)[along], 0
    for made in node.outputs:
        part = axes.of(made)[along]
        if whole is None or part is None:
            keep_all(axes, node)
            return
        axes.tie(whole[start : start + len(part)], part)
        _tie_all(axes, x, made, but=[along])
        start += len(part)


def cut(axes: Axes, node: ir.Node) -> None:
    """Slice: along the axes cut, the places it takes; those must be known, and then all of them stay where they are."""
    x, (made,) = node.inputs[0], node.outputs
    assert x is not None
    rank = len(axes.of(x))
    chosen = _ints(node, 3, "axes")
    cuts = [axis % rank for axis in chosen] if chosen is not None else list(range(rank))
    for axis in cuts:  # the bounds are numbers of places: nothing before or between them may go
        axes.keep(axes.of(x)[axis])
        axes.keep(axes.of(made)[axis])
    _tie_all(axes, x, made, but=cuts)


def squeeze(axes: Axes, node: ir.Node) -> None:
    """Squeeze and Unsqueeze: axes of length 1 come and go, the others pass in their order."""
    x, (made,) = node.inputs[0], node.outputs
    assert x is not None
    longer, shorter = (made, x) if node.op_type == "Unsqueeze" else (x, made)
    chosen = _ints(node, 1, "axes")
    rank = len(axes.of(longer))
    gone = {axis % rank for axis in chosen} if chosen is not None else set()
    rest = [axis for axis in range(rank) if axis not in gone]
    if len(rest) != len(axes.of(shorter)):
        keep_all(axes, node)
        return
    for index, axis in enumerate(rest):
        axes.tie(axes.of(longer)[axis], axes.of(shorter)[index])
    for axis in gone:
        axes.keep(axes.of(longer)[axis])


def reshape(axes: Axes, node: ir.Node) -> None:
    """Reshape and Flatten: runs of axes that hold the same elements.

    Where several axes become one, a unit of the first that can go is a run of the one; where one becomes several, units
    are those of the first of them: heads, of which each has a run of features.
    """
    x, (made,) = node.inputs[0], node.outputs
    assert x is not None
    runs = _runs(axes.of(x), axes.of(made))
    if runs is None:
        keep_all(axes, node)
        return
    for theirs, ours in runs:
        _tie_runs(axes, [axes.of(x)[axis] for axis in theirs], [axes.of(made)[axis] for axis in ours])


def _runs(theirs: Sequence[Ids | None], ours: Sequence[Ids | None]) -> list[tuple[list[int], list[int]]] | None:
    """Runs of axes of equal product, from both ends; at most one run may hold axes of free length."""
    front = _matched(theirs, ours)
    used = (sum(len(run[0]) for run in front), sum(len(run[1]) for run in front))
    rest = (theirs[used[0] :], ours[used[1] :])
    back = _matched(rest[0][::-1], rest[1][::-1])
    runs = list(front)
    for left, right in back:
        runs.append(([len(theirs) - 1 - axis for axis in left][::-1], [len(ours) - 1 - axis for axis in right][::-1]))
    covered = (sum(len(run[0]) for run in runs), sum(len(run[1]) for run in runs))
    if covered == (len(theirs), len(ours)):
        return runs
    middle = (
        [axis for axis in range(len(theirs)) if all(axis not in run[0] for run in runs)],
        [axis for axis in range(len(ours)) if all(axis not in run[1] for run in runs)],
    )
    return [*runs, middle]


def _matched(theirs: Sequence[Ids | None], ours: Sequence[Ids | None]) -> list[tuple[list[int], list[int]]]:
    """Runs from the front, as far as lengths are known on both sides and fit."""
    runs: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(theirs) and j < len(ours):
        left, right = [i], [j]
        while True:
            if any(theirs[axis] is None for axis in left) or any(ours[axis] is None for axis in right):
                return runs
            products = (_product(theirs, left), _product(ours, right))
            if products[0] == products[1]:
                break
            if products[0] < products[1]:
                left.append(left[-1] + 1)
            else:
                right.append(right[-1] + 1)
            if left[-1] >= len(theirs) or right[-1] >= len(ours):
                return runs
        runs.append((left, right))
        i, j = left[-1] + 1, right[-1] + 1
    return runs


def _product(all_ids: Sequence[Ids | None], chosen: Sequence[int]) -> int:
    return math.prod(len(ids) for axis in chosen if (ids := all_ids[axis]) is not None)


def _tie_runs(axes: Axes, theirs: Sequence[Ids | None], ours: Sequence[Ids | None]) -> None:
    if len(theirs) == len(ours) == 1:
        axes.tie(theirs[0], ours[0])
        return
    if any(ids is None for ids in (*theirs, *ours)) or (len(theirs) > 1 < len(ours)):
        for ids in (*theirs, *ours):
            axes.keep(ids)
        return
    several = theirs if len(theirs) > 1 else ours
    (one,) = ours if len(theirs) > 1 else theirs
    assert one is not None
    lengths = [len(ids) for ids in several if ids is not None]
    carrier = next((axis for axis, length in enumerate(lengths) if length > 1), 0)
    for axis, ids in enumerate(several):
        if axis != carrier:
            axes.keep(ids)
    place = np.indices(lengths)[carrier].reshape(-1)
    carried = several[carrier]
    assert carried is not None
    axes.tie(carried[place], one)


def gather(axes: Axes, node: ir.Node) -> None:
    """Gather: the axis it takes from stays; of a table the features pass."""
    data, indices = node.inputs[:2]
    (made,) = node.outputs
    assert data is not None
    assert indices is not None
    given, target = axes.of(data), axes.of(made)
    along = int(node.attributes.get_int("axis", 0)) % max(len(given), 1)
    axes.keep(given[along])
    depth = len(axes.of(indices))
    if len(target) != len(given) - 1 + depth:
        keep_all(axes, node)
        return
    rest = [axis for axis in range(len(given)) if axis != along]
    for axis in rest:
        axes.tie(given[axis], target[axis if axis < along else axis - 1 + depth])
    for axis in range(along, along + depth):
        axes.keep(target[axis])


def pad(axes: Axes, node: ir.Node) -> None:
    """Pad: axes that grow stay, the others pass."""
    x, (made,) = node.inputs[0], node.outputs
    assert x is not None
    amounts = _ints(node, 1, "pads")
    chosen = _ints(node, 3, "axes_input")
    rank = len(axes.of(x))
    if amounts is None or (len(node.inputs) > 3 and node.inputs[3] is not None and chosen is None):
        keep_all(axes, node)
        return
    listed = [axis % rank for axis in chosen] if chosen is not None else list(range(rank))
    grown = [
        axis for index, axis in enumerate(listed) if amounts[index] or amounts[len(listed) + index]
    ]  # fmt: skip
    for axis in grown:
        axes.keep(axes.of(x)[axis])
        axes.keep(axes.of(made)[axis])
    _tie_all(axes, x, made, but=grown)


def resize(axes: Axes, node: ir.Node) -> None:
    """Resize: batch and channels pass, space is read as a whole."""
    x, (made,) = node.inputs[0], node.outputs
    assert x is not None
    for axis, (ids, target) in enumerate(zip(axes.of(x), axes.of(made), strict=True)):
        if axis < 2:
            axes.tie(ids, target)
        else:
            axes.keep(ids)
            axes.keep(target)


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


def _ints(node: ir.Node, index: int, attribute: str) -> list[int] | None:
    """Whole numbers that are an input of newer opsets and an attribute of older ones; None where they are computed."""
    value = node.inputs[index] if index < len(node.inputs) else None
    if value is not None:
        return None if value.const_value is None else [int(one) for one in value.const_value.numpy().reshape(-1)]
    found = node.attributes.get(attribute)
    return None if found is None else [int(one) for one in found.as_ints()]


_FROM_AXIS_ON: Final = frozenset({"LayerNormalization", "RMSNormalization"})
_ELEMENTWISE: Final = (
    "Abs", "Add", "Cast", "Ceil", "Celu", "Clip", "Cos", "Div", "Elu", "Equal", "Erf", "Exp", "Floor", "Gelu",
    "Greater", "GreaterOrEqual", "HardSigmoid", "HardSwish", "LeakyRelu", "Less", "LessOrEqual", "Log", "Max", "Mean",
    "Min", "Mish", "Mul", "Neg", "Not", "PRelu", "Pow", "Reciprocal", "Relu", "Round", "Selu", "Sigmoid", "Sign", "Sin",
    "Softplus", "Softsign", "Sqrt", "Sub", "Sum", "Swish", "Tanh", "ThresholdedRelu", "Where", "And", "Or",
)  # fmt: skip
_REDUCTIONS: Final = (
    "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd",
    "ReduceSum", "ReduceSumSquare",
)  # fmt: skip
RULES: Final[dict[str, Rule]] = {
    **dict.fromkeys(_ELEMENTWISE, elementwise),
    **dict.fromkeys(_REDUCTIONS, reduce),
    **dict.fromkeys(("AveragePool", "GlobalAveragePool", "GlobalMaxPool", "LpPool", "MaxPool"), pool),
    **dict.fromkeys(("BatchNormalization", "InstanceNormalization"), normalise_channels),
    **dict.fromkeys(("LayerNormalization", "LogSoftmax", "RMSNormalization", "Softmax"), read_along),
    **dict.fromkeys(("Constant", "ConstantOfShape", "Range", "Shape", "Size"), ignore),
    **dict.fromkeys(("Dropout", "Identity"), pass_on),
    **dict.fromkeys(("GRU", "LSTM", "RNN"), recur),
    **dict.fromkeys(("Flatten", "Reshape"), reshape),
    **dict.fromkeys(("Resize", "Upsample"), resize),
    **dict.fromkeys(("Squeeze", "Unsqueeze"), squeeze),
    "Concat": concat,
    "Conv": convolve,
    "ConvTranspose": convolve_transposed,
    "Gather": gather,
    "Gemm": multiply_general,
    "MatMul": multiply,
    "Pad": pad,
    "Slice": cut,
    "Split": split,
    "Transpose": transpose,
}
