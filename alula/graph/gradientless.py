"""Which weights no gradient reaches, and the operator that is in its way."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import onnx_ir as ir

from alula.graph.model import Model

_FLAT: Final = frozenset({"Ceil", "Floor", "Hardmax", "Round", "Sign"})  # their slope is 0 wherever there is one
_CODES: Final = frozenset({"QuantizeLinear", "DynamicQuantizeLinear", "MatMulInteger", "ConvInteger", "QLinearMatMul",
                           "QLinearConv", "DequantizeLinear"})  # fmt: skip  # rounded straight through
_KEEPING_CODES: Final = frozenset(
    {"Clip", "Concat", "Expand", "Flatten", "Gather", "Identity", "MaxPool", "Pad", "Reshape", "Slice", "Split",
     "Squeeze", "Tile", "Transpose", "Unsqueeze"}
)  # fmt: skip
_INTEGERS: Final = frozenset({"BOOL", "INT32", "INT64", "INT8", "INT16", "UINT8", "UINT16", "UINT32", "UINT64"})


def cut_off(model: Model, outputs: Iterable[str]) -> dict[str, ir.Node]:
    """Initializers that some outputs depend on, but only by way of operators without gradient: with the operator.

    Args:
        model: the graph.
        outputs: names of the tensors that a loss reads.
    """
    wanted = set(outputs)
    starts = [value for node in model.graph for value in node.outputs if value.name in wanted]
    reached, ends = _walk(starts, stop=True)
    cut: dict[str, ir.Node] = {}
    for end in ends:
        behind, _ = _walk([value for value in end.inputs if value is not None], stop=False)
        for value in behind - reached:
            if value.const_value is not None and value.producer() is None:
                cut.setdefault(str(value.name), end)
    return cut


def _walk(starts: Iterable[ir.Value], *, stop: bool) -> tuple[set[ir.Value], list[ir.Node]]:
    """Everything that some values are computed from; where asked, no further than operators without gradient."""
    queue, met, ends = list(starts), set[ir.Value](), dict[ir.Node, None]()
    while queue:
        value = queue.pop()
        node = value.producer()
        if value in met:
            continue
        if stop and node is not None and _has_no_gradient(value, node):
            ends[node] = None
            continue
        met.add(value)
        queue.extend(one for one in (node.inputs if node is not None else ()) if one is not None)
    return met, list(ends)


def _has_no_gradient(value: ir.Value, node: ir.Node) -> bool:
    if node.op_type in _FLAT:
        return True
    return value.dtype is not None and value.dtype.name in _INTEGERS and not _is_code(value)


def _is_code(value: ir.Value | None) -> bool:
    """Whether whole numbers are codes of a tensor, perhaps clipped or moved: these are rounded straight through."""
    while value is not None and (node := value.producer()) is not None and node.op_type not in _CODES:
        if node.op_type not in _KEEPING_CODES:
            return False
        value = node.inputs[0]
    return value is not None and value.producer() is not None
