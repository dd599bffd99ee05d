"""Half precision: weights stored as float16, or the whole graph computed in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from alula.errors import DataError
from alula.graph.editing import Editor, set_input
from alula.graph.layers import Layer
from alula.graph.model import Model, Note
from alula.graph.statistics import Request
from alula.techniques.technique import Context

_LARGEST = float(np.finfo(np.float16).max)


@dataclass(frozen=True, slots=True)
class Float16:
    """Weights as float16.

    Attributes:
        compute: also compute in float16, for devices that are faster so; inputs and outputs keep their types.
            CPUs without float16 arithmetic convert back and forth and become slower.
    """

    compute: bool = False

    def requests(self, model: Model, layers: Sequence[Layer]) -> frozenset[Request]:  # noqa: ARG002
        """None: no data is needed."""
        return frozenset()

    def apply(self, model: Model, context: Context) -> Model:
        """Store the weights of the context's layers (``compute``: convert the whole graph) in half precision.

        A weight beyond +-65504, the end of float16, stays as it is, and a note says so.
        """
        if self.compute:
            return _converted(model, context.layers)
        editor = Editor(model.edit())
        notes = []
        for layer in context.layers:
            for name in (*layer.weights, *([layer.bias] if layer.bias else [])):
                notes += _store_half(editor, layer, name)
        return model.edited(editor.model, notes)


def _store_half(editor: Editor, layer: Layer, name: str) -> list[Note]:
    if name not in editor.graph.initializers:
        return []  # shared with a layer that came before
    value = editor.value(name)
    if value.dtype != ir.DataType.FLOAT:
        return []
    array = editor.array(name)
    if not np.isfinite(array).all():
        raise DataError(f"layer {layer.name!r}: weight {name!r} holds NaN or infinite values; repair them first")
    if np.abs(array).max(initial=0.0) > _LARGEST:
        return [Note(layer.name, f"{name} stays in float32: values beyond {_LARGEST:g} do not fit float16")]
    half = editor.constant(f"{name}.float16", array.astype(np.float16))
    first = next(node for node in editor.graph if value in node.inputs)
    real = editor.insert("Cast", [half], f"{name}.cast", before=first, attributes={"to": 1}).outputs[0]
    real.shape, real.dtype = value.shape, ir.DataType.FLOAT
    for node in {use.node for use in value.uses()}:
        set_input(node, value, real)
    editor.drop_constant(name)
    editor.rename(real, name)
    return []


def _converted(model: Model, layers: Sequence[Layer]) -> Model:
    from onnxruntime.transformers.float16 import convert_float_to_float16

    chosen = {layer.name for layer in layers}
    kept = [layer.name for layer in model.layers() if layer.name not in chosen]
    proto = ir.to_proto(model.edit())
    half = ir.from_proto(convert_float_to_float16(proto, keep_io_types=True, node_block_list=kept))
    return model.edited(half)
