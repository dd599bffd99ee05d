"""Weights in number formats that are no even grid: small floats, microscaling, NF4, ternary; the file shrinks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Final, Literal, TypeAlias

import ml_dtypes
import numpy as np
import onnx_ir as ir

from alula.errors import RecipeError, at
from alula.graph.editing import Editor, like
from alula.graph.layers import Layer
from alula.graph.model import Model, Note
from alula.graph.statistics import Request
from alula.numerics.clusters import nearest
from alula.numerics.formats import (
    E2M1,
    E4M3,
    E5M2,
    MICROSCALING_BLOCK,
    NORMAL_FLOAT,
    Scaled,
    to_float,
    to_microscaling,
    to_normal_float,
    to_ternary,
)
from alula.numerics.grids import parameter_shape
from alula.settings import check_settings
from alula.techniques.technique import Context, other_readers, other_type, out_of_range

Format: TypeAlias = Literal["float8_e4m3", "float8_e5m2", "float4_e2m1", "mxfp8", "mxfp4", "nf4", "ternary"]

_FLOATS: Final = {"float8_e4m3": E4M3, "float8_e5m2": E5M2, "float4_e2m1": E2M1, "mxfp8": E4M3, "mxfp4": E2M1}
_FLOAT8: Final = {
    "float8_e4m3": ml_dtypes.float8_e4m3fn, "float8_e5m2": ml_dtypes.float8_e5m2, "mxfp8": ml_dtypes.float8_e4m3fn,
}  # fmt: skip
_CODEBOOKS: Final = {"float4_e2m1": E2M1.values, "mxfp4": E2M1.values, "nf4": NORMAL_FLOAT}
_TERNARY_DIGITS: Final = 5  # in a byte: 3^5 = 243
_TERNARY_BYTES: Final = 3**_TERNARY_DIGITS * _TERNARY_DIGITS
_FLOAT_BYTES: Final = 4
_NODES: Final = dict.fromkeys(_FLOAT8, 2) | {"ternary": 7}  # that decode a weight, elsewhere 3, without blocks
_NODE_BYTES: Final = 130  # what one takes in the file, with names


@dataclass(frozen=True, slots=True)
class Recode:
    """Weights as numbers of a small format times scales; arithmetic stays in float.

    The graph holds codes and scales, and operators that make floats of them, which runtimes do once, when they load the
    file. (Float8 is cast, not dequantized: ONNX Runtime would run a DequantizeLinear each time.)

    Attributes:
        format: ``float8_e4m3`` and ``float8_e5m2``, a byte each; ``float4_e2m1`` and ``nf4``, two to a byte; ``mxfp8``
            (of E4M3) and ``mxfp4`` of the OCP, with a power of two as the scale of each block; ``ternary``, -1, 0 and 1
            and their scale by least squared error, five to a byte.
        block: weights that share a scale, along the summed axes; the last block may be short. None: one scale per
            output channel, and for ``mxfp8`` and ``mxfp4`` the 32 of their specification.
    """

    format: Format = "float8_e4m3"
    block: int | None = None

    def __post_init__(self) -> None:
        check_settings(self)
        if self.block is not None and self.block < 1:
            raise RecipeError(f"block must be at least 1, got {self.block}")
        if self._microscaling and self.block not in {None, MICROSCALING_BLOCK}:
            raise RecipeError(f"the blocks of {self.format} are of 32 by its specification, got block={self.block}")

    @property
    def bits(self) -> float:
        """Of a weight, without scales."""
        return 1.6 if self.format == "ternary" else 8.0 if self.format in _FLOAT8 else 4.0

    @property
    def _microscaling(self) -> bool:
        return self.format.startswith("mx")

    def requests(self, model: Model, layers: Sequence[Layer]) -> frozenset[Request]:  # noqa: ARG002
        """None: no data is needed."""
        return frozenset()

    def apply(self, model: Model, context: Context) -> Model:
        """Store the weights of the context's layers in the format; those that would become larger stay, with a note.

        Raises:
            DataError: a weight is NaN or infinite (the layer is named).
        """
        editor = Editor(model.edit())
        notes: list[Note] = []
        done: set[str] = set()
        for layer in context.layers:
            with at(f"layer {layer.name!r}"):
                reason = self._obstacle(model, layer, context.layers)
                if reason:
                    notes.append(Note(layer.name, f"stays in float: {reason}"))
                    continue
                for name in [name for name in layer.weights if name not in done]:
                    self._store(editor, layer, name, len(done))
                    done.add(name)
        editor.model.ir_version = max(editor.model.ir_version, 10)
        return model.edited(editor.model, notes)

    def _obstacle(self, model: Model, layer: Layer, layers: Sequence[Layer]) -> str | None:
        """Why a layer is not stored otherwise, or None."""
        shared = (other_readers(model.graph, layers, name) for name in layer.weights)
        reason = other_type(model.graph, layer) or next(
            (f"its weight cannot change: {one}" for one in shared if one), None
        )
        beyond = (out_of_range(model.weight(name)) for name in layer.weights)
        reason = reason or next((one for one in beyond if one), None)
        if reason is None:
            weights = {name: model.weight(name).shape for name in layer.weights}
            now = _FLOAT_BYTES * sum(map(prod, weights.values()))
            then = sum(self._bytes(layer, name, shape) for name, shape in weights.items())
            reason = f"it would take {then:,} bytes instead of {now:,}" if then >= now else None
        return reason

    def _bytes(self, layer: Layer, name: str, shape: tuple[int, ...]) -> int:
        """What a weight takes in the file, at most: codes, scales, tables, names and operators."""
        axis, block, view = self._grouping(layer, shape)
        scales = prod(parameter_shape(view, axis, block)) * (1 if self._microscaling else _FLOAT_BYTES)
        short = block is not None and view[1] % block > 0
        nodes = _NODES.get(self.format, 3) + (block is not None) + 2 * short + 2 * self._microscaling
        tables = (_TERNARY_BYTES if self.format == "ternary" else 0) + (2 * view[1] if short else 0)
        return bytes_of(shape, self.format) + scales + tables + nodes * _NODE_BYTES + 8 * len(name) + 200

    def _grouping(self, layer: Layer, shape: tuple[int, ...]) -> tuple[int, int | None, tuple[int, ...]]:
        """Axis and block of the scales of a weight, and the shape to see it in: [before, k, after] where blocked."""
        block = MICROSCALING_BLOCK if self._microscaling else self.block
        return (layer.output_axis, None, shape) if block is None else (1, block, blocked_view(layer, shape))

    def _store(self, editor: Editor, layer: Layer, name: str, number: int) -> None:
        weight = editor.array(name)
        axis, block, view = self._grouping(layer, weight.shape)
        scaled = self._scaled(weight.reshape(view), axis, block)
        writer = _Writer(editor, name, f"decoded.{number}", editor.graph[0])
        elements = writer.elements(_split(scaled.elements, block), self.format)
        product = writer.add("Mul", [elements, writer.scale(scaled, powers=self._microscaling)], "scaled")
        writer.replace_weight(product, reshaped=block is not None)

    def _scaled(self, weight: np.ndarray, axis: int, block: int | None) -> Scaled:
        if self._microscaling:
            return to_microscaling(weight, _FLOATS[self.format], axis=axis)
        if self.format == "nf4":
            return to_normal_float(weight, axis=axis, block=block)
        if self.format == "ternary":
            return to_ternary(weight, axis=axis, block=block)
        return to_float(weight, _FLOATS[self.format], axis=axis, block=block)


def bytes_of(shape: tuple[int, ...], form: Format) -> int:
    """Bytes that the codes of a weight take, without scales."""
    size = prod(shape)
    if form == "ternary":
        return -(-size // _TERNARY_DIGITS)
    return size if form in _FLOAT8 else (size + 1) // 2


def blocked_view(layer: Layer, shape: tuple[int, ...]) -> tuple[int, int, int]:
    """A weight's shape as [before, k, after], blocks running along k: its summed axes, as far as they lie in one piece.

    Of a table, whose rows are looked up, it is what lies behind the rows, or before them where nothing does.
    """
    axes = layer.input_axes or tuple(range(layer.output_axis + 1, len(shape))) or (layer.output_axis - 1,)
    first, last = axes[0], axes[0] + 1
    while last in axes:
        last += 1
    return prod(shape[:first]), prod(shape[first:last]), prod(shape[last:])


def _split(array: np.ndarray, block: int | None) -> np.ndarray:
    """[before, k, after] as [before, blocks, block, after] where k is full of blocks; else as it is."""
    if block is None or array.shape[1] % block:
        return array
    before, length, after = array.shape
    return array.reshape(before, length // block, block, after)


@dataclass(frozen=True, slots=True)
class _Writer:
    """Writes the operators that decode one weight, before a node; short names keep the file small."""

    editor: Editor
    weight: str
    prefix: str
    before: ir.Node

    def constant(self, what: str, array: np.ndarray) -> ir.Value:
        return self.editor.constant(f"{self.weight}.{what}", array)

    def add(
        self, operator: str, inputs: list[ir.Value], what: str, attributes: Mapping[str, Any] | None = None
    ) -> ir.Value:
        name = f"{self.prefix}.{what}"
        return self.editor.insert(operator, inputs, name, before=self.before, attributes=attributes).outputs[0]

    def cast(self, value: ir.Value, what: str, kind: ir.DataType) -> ir.Value:
        return self.add("Cast", [value], what, {"to": int(kind)})

    def looked_up(self, table: ir.Value, codes: ir.Value, what: str, axis: int = 0) -> ir.Value:
        """Gather(table, Cast(codes)): Gather takes no small type as its indices."""
        indices = self.cast(codes, f"{what}.indices", ir.DataType.INT32)
        return self.add("Gather", [table, indices], what, {"axis": axis} if axis else None)

    def elements(self, elements: np.ndarray, form: Format) -> ir.Value:
        """Numbers of the format, as float32 that the graph computes."""
        if form in _FLOAT8:
            return self.cast(self.constant("codes", elements.astype(_FLOAT8[form])), "real", ir.DataType.FLOAT)
        if form == "ternary":
            return self.ternary(elements)
        codebook = _CODEBOOKS[form]
        table = self.editor.constant(f"{form}.codebook", codebook)  # one for all weights
        codes = nearest(elements, codebook).astype(ml_dtypes.uint4)
        return self.looked_up(table, self.constant("codes", codes), "elements")

    def ternary(self, elements: np.ndarray) -> ir.Value:
        """-1, 0 and 1, five to a byte: a byte is looked up in a table of all 243 rows of five."""
        digits = np.moveaxis(np.indices((3,) * _TERNARY_DIGITS, np.int8), 0, -1).reshape(-1, _TERNARY_DIGITS) - 1
        table = self.editor.constant("ternary.codebook", digits.astype(np.int8))  # [243, 5]
        missing = -elements.size % _TERNARY_DIGITS
        rows = np.pad(elements.ravel().astype(np.int64), (0, missing)).reshape(-1, _TERNARY_DIGITS) + 1
        codes = rows @ 3 ** np.arange(_TERNARY_DIGITS)[::-1]
        found = self.looked_up(table, self.constant("codes", codes.astype(np.uint8)), "digits")
        if missing:
            found = self.reshaped(found, (-1,), "flat")
            ends = [self.editor.constant(f"end.{end}", np.array([end])) for end in (0, elements.size)]
            found = self.add("Slice", [found, *ends], "whole")
        return self.cast(self.reshaped(found, elements.shape, "elements"), "real", ir.DataType.FLOAT)

    def reshaped(self, value: ir.Value, shape: tuple[int, ...], what: str) -> ir.Value:
        target = self.editor.constant(f"shape.{'x'.join(map(str, shape))}", np.array(shape, np.int64))
        return self.add("Reshape", [value, target], what)

    def scale(self, scaled: Scaled, *, powers: bool) -> ir.Value:
        """The scales in a shape that broadcasts with the elements."""
        shape, block = scaled.elements.shape, scaled.block
        if block is None:
            array = scaled.scale.reshape([-1 if axis == scaled.axis else 1 for axis in range(len(shape))])
            return self.constant("scale", array)
        short = shape[1] % block
        array = scaled.scale if short else scaled.scale[:, :, None]  # [before, blocks, 1, after]
        value = self.powers(array) if powers else self.constant("scale", array)
        if short:
            value = self.looked_up(value, self.columns(shape[1], block), "scales", axis=1)
        return value

    def columns(self, length: int, block: int) -> ir.Value:
        """The block that each of so many numbers lies in."""
        columns = np.arange(length) // block
        kind = np.min_scalar_type(columns[-1])
        return self.editor.constant(f"columns.{length}.{block}", columns.astype(kind))  # one for all weights

    def powers(self, scale: np.ndarray) -> ir.Value:
        """Powers of two, a byte each: what E8M0 holds, counted from the least one."""
        exponents = np.frexp(scale)[1] - 1
        least = exponents.min(initial=127)
        table = np.ldexp(np.float32(1), np.arange(least, exponents.max(initial=least) + 1))
        codes = self.constant("exponents", (exponents - least).astype(np.uint8))
        return self.looked_up(self.constant("powers", table), codes, "scale")

    def replace_weight(self, value: ir.Value, *, reshaped: bool) -> None:
        """Let all that read the weight read a value, which takes its name."""
        weight = self.editor.value(self.weight)
        assert weight.shape is not None
        if reshaped:
            value = self.reshaped(value, tuple(weight.shape.numpy()), "whole")
        like(value, weight)
        weight.replace_all_uses_with(value)
        self.editor.drop_constant(self.weight)
        self.editor.rename(value, self.weight)
