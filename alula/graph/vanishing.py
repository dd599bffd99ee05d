"""Which tensors are zero when the weights of a unit are: then a term of a sum may be taken out as well as be zero."""

from __future__ import annotations

from typing import Final

import onnx_ir as ir

from alula.graph.channels import Axes
from alula.graph.lengths import pads_zeros

_FACTORS: Final = frozenset({"And", "Einsum", "MatMul", "Mul"})  # zero where one operand is
_WEIGHTED: Final = frozenset({"Conv", "ConvTranspose", "Gemm"})  # zero where an operand is, and the bias
_TERMS: Final = frozenset({"Add", "Concat", "Max", "Mean", "Min", "Sub", "Sum"})  # zero where all are
_NEEDS: Final = {"BatchNormalization": (1, 2), "Where": (1, 2)}  # zero where these inputs are
_KEEPS_ZERO: Final = frozenset(
    [
        "Abs",
        "AveragePool",
        "Cast",
        "Ceil",
        "Celu",
        "DepthToSpace",
        "Div",
        "Dropout",
        "Elu",
        "Erf",
        "Expand",
        "Flatten",
        "Floor",
        "Gather",
        "Gelu",
        "GlobalAveragePool",
        "HardSwish",
        "Identity",
        "LeakyRelu",
        "Mish",
        "Neg",
        "PRelu",
        "ReduceL1",
        "ReduceL2",
        "ReduceMean",
        "ReduceSum",
        "ReduceSumSquare",
        "Relu",
        "Reshape",
        "Resize",
        "Round",
        "Selu",
        "Sign",
        "Sin",
        "Slice",
        "Softsign",
        "Split",
        "Sqrt",
        "Squeeze",
        "Swish",
        "Tanh",
        "Transpose",
        "Unsqueeze",
    ]
)  # fmt: skip  (zero where the first input is)


def vanishes(axes: Axes, value: ir.Value, units: frozenset[int]) -> bool:
    """Whether a tensor is zero at the places of these units once all weights there are.

    Args:
        axes: the classes of the graph, all merged.
        value: the tensor.
        units: classes of indices.
    """
    return _Looking(axes).vanishes(value, units)


class _Looking:
    """One look back from a tensor; what was found of a tensor on one way is not sought again on another."""

    def __init__(self, axes: Axes) -> None:
        self._axes = axes
        self._known: dict[tuple[ir.Value, frozenset[int]], bool] = {}

    def vanishes(self, value: ir.Value, units: frozenset[int]) -> bool:
        key = (value, units)
        if key not in self._known:
            self._known[key] = self._look(value, units)
        return self._known[key]

    def _look(self, value: ir.Value, units: frozenset[int]) -> bool:
        if not units or not units <= self._carried(value):
            return False
        node = value.producer()
        return value.const_value is not None if node is None else self._look_behind(node, units)

    def _look_behind(self, node: ir.Node, units: frozenset[int]) -> bool:
        given = [one for one in node.inputs if one is not None]
        kind = node.op_type
        if kind in _TERMS:
            return all(self._vanishes_in_part(one, units, node) for one in given)
        zero = (self.vanishes(one, units) for one in given)  # asked for one by one
        if kind in _FACTORS:
            return any(zero)
        if kind in _WEIGHTED:
            return (next(zero) | next(zero)) and all(zero)
        if kind in _NEEDS:
            return all(self.vanishes(given[index], units) for index in _NEEDS[kind])
        if kind == "Pad":
            return pads_zeros(node) and self._vanishes_in_part(given[0], units, node)
        return kind in _KEEPS_ZERO and next(zero)

    def _vanishes_in_part(self, value: ir.Value, units: frozenset[int], node: ir.Node) -> bool:
        """A part of a concatenation, or of what zeros surround, need only hold some of the units."""
        is_part = node.op_type in ("Concat", "Pad")
        own = units & self._carried(value) if is_part else units
        return (is_part and not own) or self.vanishes(value, own)

    def _carried(self, value: ir.Value) -> frozenset[int]:
        """The classes along the axes of a tensor."""
        every = [self._axes.classes.roots(ids).tolist() for ids in self._axes.of(value) if ids is not None]
        return frozenset(number for numbers in every for number in numbers)
