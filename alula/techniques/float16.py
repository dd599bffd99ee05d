"""Half precision: weights stored as float16, or the whole graph computed in it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from alula.errors import DataError, RecipeError
from alula.graph.editing import Editor, set_input
from alula.graph.layers import Layer
from alula.graph.model import Model, Note
from alula.graph.statistics import Request
from alula.settings import check_settings
from alula.techniques.technique import Context, other_readers

_LARGEST = float(np.finfo(np.float16).max)
_SMALLEST = float(np.finfo(np.float16).tiny)  # below it, digits are lost


@dataclass(frozen=True, slots=True)
class Float16:
    """Weights as float16.

    Attributes:
        compute: also compute in float16, for devices that are faster so; inputs and outputs keep their types.
            CPUs without float16 arithmetic convert back and forth and become slower.
    """

    compute: bool = False

    def __post_init__(self) -> None:
        check_settings(self)

    def requests(self, model: Model, layers: Sequence[Layer]) -> frozenset[Request]:  # noqa: ARG002
        """None: no data is needed."""
        return frozenset()

    def apply(self, model: Model, context: Context) -> Model:
        """Store the weights of the context's layers (``compute``: convert the whole graph) in half precision.

        A weight beyond +-65504, the end of float16, or all below 6e-5, where its digits end, stays as it is, and a
        note says so. (``compute``: values beyond become the end, and a note says so.)

        Raises:
            DataError: a weight is NaN or infinite (the layer is named).
            RecipeError: the graph cannot be converted to compute in float16.
        """
        if self.compute:
            return _converted(model, context.layers)
        editor = Editor(model.edit())
        notes = []
        for layer in context.layers:
            for name in (*layer.weights, *([layer.bias] if layer.bias else [])):
                if name in editor.graph.initializers:  # not shared with a layer that came before
                    reason = other_readers(model.graph, context.layers, name) or _obstacle(editor, layer, name)
                    if reason:
                        notes.append(Note(layer.name, f"{name} stays as it is: {reason}"))
                    else:
                        _store_half(editor, name)
        return model.edited(editor.model, notes)


def _store_half(editor: Editor, name: str) -> None:
    value, array = editor.value(name), editor.array(name)
    half = editor.constant(f"{name}.float16", array.astype(np.float16))
    real = editor.insert("Cast", [half], f"{name}.cast", attributes={"to": 1}).outputs[0]
    real.shape, real.dtype = value.shape, ir.DataType.FLOAT
    for node in {use.node for use in value.uses()}:
        set_input(node, value, real)
    editor.drop_constant(name)
    editor.rename(real, name)


def _obstacle(editor: Editor, layer: Layer, name: str) -> str | None:
    """Why a weight is not stored in half precision, or None; NaN and infinities are refused."""
    array = editor.array(name)
    if editor.value(name).dtype != ir.DataType.FLOAT:
        return f"it is not float32 but {array.dtype}"
    _require_finite(layer, name, array)
    largest = np.abs(array).max(initial=0.0)
    if largest > _LARGEST:
        return f"values up to {largest:g} lie beyond float16, which ends at {_LARGEST:g}"
    if 0 < largest < _SMALLEST:
        return f"all values lie below {_SMALLEST:g}, where float16 loses digits"
    return None


def _require_finite(layer: Layer, name: str, array: np.ndarray) -> None:
    if not np.isfinite(array).all():
        raise DataError(f"layer {layer.name!r}: weight {name!r} holds NaN or infinite values; repair them first")


def _converted(model: Model, layers: Sequence[Layer]) -> Model:
    from onnxruntime.transformers.float16 import convert_float_to_float16

    kept = {layer.name: "" for layer in model.layers() if layer not in layers}
    for layer in layers:
        for name in layer.weights:
            _require_finite(layer, name, model.weight(name))
            reason = other_readers(model.graph, layers, name)
            if np.abs(model.weight(name)).max(initial=0.0) > _LARGEST:
                reason = f"values lie beyond float16, which ends at {_LARGEST:g}"
            if reason:
                kept[layer.name] = f"computes in float32 because of its weight {name}: {reason}"
    notes = [Note(layer, reason) for layer, reason in kept.items() if reason]
    notes += _clipped(model, frozenset(kept))
    proto = ir.to_proto(model.edit())
    proto.graph.ClearField("value_info")  # it tells of initializers too, which the converter takes for conversion
    try:
        half = ir.from_proto(
            convert_float_to_float16(proto, keep_io_types=True, node_block_list=list(kept), max_finite_val=_LARGEST)
        )
        half.graph.sort()
    except Exception as error:  # the converter raises what it likes, AssertionError among it
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise RecipeError(f"the graph cannot be converted to compute in float16: {reason}") from error
    return model.edited(half, notes)


def _clipped(model: Model, kept: frozenset[str]) -> Iterator[Note]:
    """A note for every constant that the converter draws in to the ends of float16."""
    for name, value in model.graph.initializers.items():
        readers = {str(use.node.name) for use in value.uses()}
        if value.dtype != ir.DataType.FLOAT or value.const_value is None or readers <= kept:
            continue
        beyond = int((np.abs(value.const_value.numpy()) > _LARGEST).sum())
        if beyond:
            yield Note(name, f"{beyond} values beyond {_LARGEST:g}, the end of float16, become that")
