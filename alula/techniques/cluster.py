"""Clustering: the weights of a layer share a few values, and the file holds which one each has."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import ml_dtypes
import numpy as np
import onnx_ir as ir

from alula.errors import RecipeError, at
from alula.graph.editing import Editor, like
from alula.graph.layers import Layer
from alula.graph.matrices import from_matrix, matrix_shape, no_matrix
from alula.graph.model import Model, Note
from alula.graph.statistics import AnyRequest, MomentRequest, Statistics
from alula.numerics.clusters import find_codebook, nearest
from alula.numerics.grids import finite_float32
from alula.settings import check_settings
from alula.techniques.compensation import is_solvable, moments_of, why_no_moments
from alula.techniques.technique import Context, other_readers, other_type

_INT32: Final = {"to": int(ir.DataType.INT32)}
_FLOAT_BYTES: Final = 4
_GRAPH_BYTES: Final = 400  # about what the names and nodes take in the file


@dataclass(frozen=True, slots=True)
class Cluster:
    """The weights of each layer as the nearest of a few values, found by k-means (Han et al. 2016).

    The graph holds codes and a codebook, and looks the weights up: ``Gather(codebook, Cast(codes))``. Runtimes do so
    once, when they load the file; of a table, only for the rows that are asked for.

    Attributes:
        values: in each codebook, 2 to 256; up to 16 are codes of 4 bits, more of 8.
        weighted: an error of a weight counts as much as the mean square of what it multiplies; needs calibration data.
            Layers that are no matrix product (tables, recurrent ones) are clustered without.
        keep_zeros: weights that are 0 stay exactly 0, as one of the values.
    """

    values: int = 16
    weighted: bool = False
    keep_zeros: bool = False

    def __post_init__(self) -> None:
        check_settings(self)
        if not 2 <= self.values <= 256:
            raise RecipeError(f"values must be 2 to 256, got {self.values!r}; 16 make codes of 4 bits")

    def requests(self, model: Model, layers: Sequence[Layer]) -> frozenset[AnyRequest]:
        """Second moments of what the layers read, if errors are weighted by them."""
        if not self.weighted:
            return frozenset()
        return frozenset(
            MomentRequest(layer.name)
            for layer in layers
            if is_solvable(layer) and _obstacle(model, layer, layers, self.values) is None
        )

    def apply(self, model: Model, context: Context) -> Model:
        """Cluster the weights of the context's layers; those that would become larger stay, with a note.

        Raises:
            DataError: a weight is NaN or infinite (the layer is named).
            ModelError: errors are to be weighted, and the moments of a layer were not collected.
        """
        editor = Editor(model.edit())
        notes: list[Note] = []
        done: set[str] = set()
        for layer in context.layers:
            with at(f"layer {layer.name!r}"):
                reason = _obstacle(model, layer, context.layers, self.values)
                if reason:
                    notes.append(Note(layer.name, f"stays in float: {reason}"))
                    continue
                reason = why_no_moments(layer) if self.weighted and no_matrix(layer) is None else None
                if reason:
                    notes.append(Note(layer.name, f"the errors of its weights count alike: {reason}"))
                for name in [name for name in layer.weights if name not in done]:
                    self._cluster(editor, layer, name, context.statistics)
                    done.add(name)
        return model.edited(editor.model, notes)

    def _cluster(self, editor: Editor, layer: Layer, name: str, statistics: Statistics) -> None:
        weight = finite_float32(editor.array(name))
        importance = _importance(layer, statistics) if self.weighted and is_solvable(layer) else None
        codebook = self._codebook(weight, importance)
        codes = nearest(weight, codebook)
        if layer.operator == "Gather":
            _put_table(editor, layer, codes, codebook)
        else:
            _put_weight(editor, name, codes, codebook)

    def _codebook(self, weight: np.ndarray, importance: np.ndarray | None) -> np.ndarray:
        """Ascending values, float32 [at most ``values``]; 0 is among them where zeros are kept."""
        flat = weight.ravel()
        free = flat != 0 if self.keep_zeros else np.ones(flat.shape, np.bool_)
        if free.all() or not free.any():
            found = find_codebook(flat, self.values, importance=importance)
        else:
            heavy = None if importance is None else importance.ravel()[free]
            found = np.append(find_codebook(flat[free], self.values - 1, importance=heavy), 0.0)
        return np.unique(found.astype(np.float32))


def clustered_bytes(shape: Iterable[int], values: int, *, narrow: bool = True) -> int:
    """Bytes of the codes and codebook of a weight.

    Args:
        shape: of the weight.
        values: in the codebook.
        narrow: up to 16 values have codes of 4 bits.
    """
    size = int(np.prod(tuple(shape)))
    return ((size + 1) // 2 if values <= 16 and narrow else size) + _FLOAT_BYTES * values


def _obstacle(model: Model, layer: Layer, layers: Sequence[Layer], values: int) -> str | None:
    """Why a layer is not clustered, or None."""
    shared = (other_readers(model.graph, layers, name) for name in layer.weights)
    reason = other_type(model.graph, layer) or next((f"of its weight, {one}" for one in shared if one), None)
    if reason is None and layer.operator == "Gather" and _reads_otherwise(model, layer):
        reason = "its table is read otherwise too, not row by row"
    if reason is None:
        sizes = [model.weight(name).shape for name in layer.weights]
        now = _FLOAT_BYTES * sum(int(np.prod(shape)) for shape in sizes)
        then = sum(clustered_bytes(shape, values, narrow=_is_narrow(layer, values)) + _GRAPH_BYTES for shape in sizes)
        reason = f"it would take {then:,} bytes instead of {now:,}" if then >= now else None
    return reason


def _reads_otherwise(model: Model, layer: Layer) -> bool:
    """Whether others than look-ups along the same axis read a table."""
    readers = [use.node for use in model.graph.initializers[layer.weight].uses()]
    axes = {int(node.attributes.get_int("axis", 0)) % len(layer.shape) for node in readers}
    return len(axes) > 1 or any(node.op_type != "Gather" for node in readers)


def _is_narrow(layer: Layer, values: int) -> bool:
    """Whether codes take 4 bits; Gather takes no such type, so those of a table are packed along its last axis."""
    packable = layer.operator != "Gather" or (layer.output_axis == 0 and layer.shape[-1] % 2 == 0)
    return values <= 16 and packable


def _importance(layer: Layer, statistics: Statistics) -> np.ndarray:  # -> the weight's shape
    """The mean square of what each weight multiplies."""
    squares = np.einsum("gkk->gk", moments_of(statistics, layer))  # [g, k]
    return from_matrix(np.broadcast_to(squares[:, None, :], matrix_shape(layer)), layer)


def _put_weight(editor: Editor, name: str, codes: np.ndarray, codebook: np.ndarray) -> None:
    """Let all that read a weight read what is looked up, under the weight's name."""
    weight = editor.value(name)
    storage = np.dtype(ml_dtypes.uint4) if len(codebook) <= 16 else np.dtype(np.uint8)
    table = editor.constant(f"{name}.codebook", codebook)
    stored = editor.constant(f"{name}.codes", codes.astype(storage))
    whole = editor.insert("Cast", [stored], f"{name}.indices", attributes=_INT32)  # at the start of the graph
    result = editor.insert("Gather", [table, *whole.outputs], f"{name}.clustered", after=whole).outputs[0]
    like(result, weight)
    weight.replace_all_uses_with(result)
    editor.drop_constant(name)
    editor.rename(result, name)


def _put_table(editor: Editor, layer: Layer, codes: np.ndarray, codebook: np.ndarray) -> None:
    """Let each look-up of rows look up their codes, then the values: the table is never made whole."""
    readers = [use.node for use in editor.value(layer.weight).uses()]
    table = editor.constant(f"{layer.weight}.codebook", codebook)
    narrow = _is_narrow(layer, len(codebook))
    low, high = np.split(codes, 2, axis=-1) if narrow else (codes, None)
    packed = low if high is None else low | high << 4
    stored = editor.constant(f"{layer.weight}.codes", packed.astype(np.uint8))
    for node in readers:
        output = str(node.outputs[0].name)
        rows = editor.insert(
            "Gather", [stored, node.inputs[1]], f"{output}.codes", before=node, attributes={"axis": layer.output_axis}
        ).outputs[0]
        if narrow:
            rows = _unpacked(editor, layer.weight, rows, node)
        whole = editor.insert("Cast", [rows], f"{output}.indices", before=node, attributes=_INT32)
        node.replace_input_with(0, table)
        node.replace_input_with(1, whole.outputs[0])
        node.attributes.pop("axis", None)
    editor.drop_constant(layer.weight)


def _unpacked(editor: Editor, name: str, pairs: ir.Value, before: ir.Node) -> ir.Value:
    """Codes of 4 bits that lie two to a byte, the low ones being the first half of the last axis."""
    output = str(pairs.name)
    low, high = (
        editor.insert(
            "BitwiseAnd", [pairs, editor.constant(f"{name}.{half}", np.array(mask, np.uint8))], f"{output}.{half}",
            before=before,
        ).outputs[0]
        for half, mask in (("low", 0x0F), ("high", 0xF0))  # both are masked: OpenVINO's BitShift rounds, to nearest
    )  # fmt: skip
    four = editor.constant(f"{name}.shift", np.array(4, np.uint8))
    right = {"direction": "RIGHT"}
    moved = editor.insert("BitShift", [high, four], f"{output}.moved", before=before, attributes=right).outputs[0]
    return editor.insert("Concat", [low, moved], f"{output}.both", before=before, attributes={"axis": -1}).outputs[0]
