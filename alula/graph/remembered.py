"""What batch normalisations keep of the data that a network was trained on."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from alula.errors import ModelError
from alula.graph.model import Model


def remembered(model: Model) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Running mean and variance, [C] each and float32, by the tensor that is normalised.

    Raises:
        ModelError: a variance is below 0.
    """
    found = {}
    for node in model.graph:
        moments = _moments(node)
        if moments is not None:
            if (moments[1] < 0).any():
                raise ModelError(
                    f"BatchNormalization {node.name!r} must keep variances of at least 0; the model is broken"
                )
            found[str(node.inputs[0].name)] = moments  # type: ignore[union-attr]
    return found


def why_nothing_can_be_made(model: Model) -> str | None:
    """Why no inputs can be made that give batch normalisations what they remember, or None."""
    for spec in model.inputs:
        if not np.issubdtype(spec.dtype, np.floating):
            return (
                f"input {spec.name!r} takes {spec.dtype}; only inputs of 16, 32 or 64 floating-point bits can be made, "
                "by following a gradient"
            )
    if not remembered(model):
        return "the graph has no batch normalisation that keeps statistics of the data, or they were folded before"
    return None


def _moments(node: ir.Node) -> tuple[np.ndarray, np.ndarray] | None:
    """Mean and variance that a node has as constants, and goes by."""
    if node.op_type != "BatchNormalization" or node.domain != "" or int(node.attributes.get_int("training_mode", 0)):
        return None
    kept = [value.const_value for value in node.inputs[3:5] if value is not None]
    if node.inputs[0] is None or len(kept) != 2 or kept[0] is None or kept[1] is None:
        return None
    return kept[0].numpy().astype(np.float32), kept[1].numpy().astype(np.float32)
