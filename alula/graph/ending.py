"""What an output of a graph comes out of: whether it is probabilities or scores."""

from __future__ import annotations

import onnx_ir as ir

from alula.graph.model import Model

_MOVING = frozenset({"Identity", "Cast", "Reshape", "Squeeze", "Unsqueeze", "Flatten"})


def ending_of(model: Model, output: str | None = None) -> str:
    """The operator that gives an output, the first if none is named, looking through those that only move values.

    It is empty where an input is handed through.
    """
    values = model.graph.outputs
    value: ir.Value | None = values[0] if output is None else next(one for one in values if one.name == output)
    node = None if value is None else value.producer()
    while node is not None and node.op_type in _MOVING:
        value = node.inputs[0]
        node = None if value is None else value.producer()
    return "" if node is None else node.op_type


def gives_probabilities(model: Model, output: str | None = None) -> bool:
    """Whether an output has gone through a softmax or a sigmoid."""
    return ending_of(model, output) in ("Softmax", "Sigmoid")
