"""Zeros that save bytes: the weights that are not zero, and where they stand, in ordinary operators.

| symbol | code | shape | meaning |
|---|---|---|---|
| w | weight | any, n elements | the weight, row-major |
| v | values | [m] | its elements that are not zero, in order; in ``gaps``, zeros between them where gaps are long |
| g | gaps | [m] uint8, 1 to 255 | places from one of v to the next; longer ones take several, with zeros between |
| b | bits | [n] bits | 1 where w is not zero |
| R | ROW | | entries (of g or b) that share a start, so that sums along rows stay exact in float32 |
| s | starts | [rows, 1] int32 | sum of all entries before the row |

Places are sums of entries: along each row a product with a triangle of ones, plus the row's start. ``gaps`` scatter v
to places sum(g) - 1 among zeros; ``bits`` gather w_i = (0, v)[b_i sum(b_0 ... b_i)]. ``gaps`` take a byte per element
of v, ``bits`` an eighth of a byte per element of w: less where more than an eighth is not zero. CumSum, NonZero and
Compress would say it more shortly, but ONNX Runtime or OpenVINO compute those at every run; this form they compute
once, at load.

Source of the gaps: Han et al. 2016, "Deep compression", section 2 and figure 3.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import onnx_ir as ir

from alula.errors import RecipeError
from alula.graph.editing import Editor, set_input
from alula.graph.layers import Layer
from alula.graph.model import Model, Note
from alula.graph.statistics import Request
from alula.settings import check_settings
from alula.techniques.technique import Context, other_readers

ROW: Final = 256
_LARGEST: Final = 2**31 - 1 - ROW  # places are int32
_STORED: Final = frozenset({ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.INT8})
_PACKED: Final = frozenset({ir.DataType.INT4, ir.DataType.UINT4, ir.DataType.INT2, ir.DataType.UINT2})
_READERS: Final = frozenset({"DequantizeLinear", "Cast", "Gather"})  # of codes and halves, which are no layers' weights
_NO_TIME: Final = Note("zeros", "they save bytes of the file, neither time nor memory: runtimes fill them in at load")


@dataclass(frozen=True, slots=True)
class StoreSparse:
    """Store weights without their zeros. No value changes; do this last, after any quantization.

    Treats the weights of the chosen layers, and all int8 codes and float16 values that weights are computed from:
    layers that were quantized are none that a pattern could choose. What would not be smaller stays, and a note tells
    both sizes.

    Attributes:
        least_gain: how many times fewer bytes a weight must take, else it stays: 1 stores all that become smaller.
    """

    least_gain: float = 1.0

    def __post_init__(self) -> None:
        check_settings(self)
        if not self.least_gain >= 0:
            raise RecipeError(f"least_gain must be at least 0, got {self.least_gain!r}; 1.5 asks for a third less")

    def requests(self, model: Model, layers: Sequence[Layer]) -> frozenset[Request]:  # noqa: ARG002
        """None: weights alone decide."""
        return frozenset()

    def apply(self, model: Model, context: Context) -> Model:
        """The graph with sparse weights as values and places; the graph as it was where the file would not shrink."""
        editor = Editor(model.edit())
        shared, notes = _share(editor), []
        for place, name in (*_weights(context.layers), *_codes(model)):
            reason = _obstacle(model, context, name)
            text = (
                _store_if_smaller(editor, name, shared, self.least_gain) if reason is None else f"stays dense: {reason}"
            )
            notes.append(Note(place, f"{name} {text}"))
        for constant in (shared.flat, shared.first, shared.powers, shared.two, shared.rows):
            editor.drop_constant(str(constant.name))
        result = model.edited(editor.model, [*notes, _NO_TIME])
        if shared.triangle.uses() and min(self.least_gain, 1) * result.size_bytes < model.size_bytes:
            return result
        kept = [note for note in notes if "stays dense" in note.text]
        return model.edited(model.edit(), [*kept, Note("zeros", "stored sparse, the file would not be smaller")])


@dataclass(frozen=True, slots=True)
class _Shared:
    """What all weights that are stored sparse read: a triangle of ones, and small constants."""

    triangle: ir.Value  # [R, R], ones on and above the diagonal
    flat: ir.Value  # the shape [-1]
    first: ir.Value  # [0]
    powers: ir.Value  # [8], of two
    two: ir.Value
    rows: ir.Value  # the shape [-1, R]


@dataclass(frozen=True, slots=True)
class _Writer:
    """Puts the nodes that give one weight before a node, named after the weight."""

    editor: Editor
    before: ir.Node
    name: str
    shared: _Shared

    def constant(self, part: str, array: np.ndarray) -> ir.Value:
        return self.editor.constant(f"{self.name}.{part}", array)

    def node(self, operator: str, *inputs: ir.Value, **attributes: Any) -> ir.Value:
        name = f"{self.name}.{operator.lower()}"
        return self.editor.insert(operator, inputs, name, before=self.before, attributes=attributes).outputs[0]

    def shaped(self, flat: ir.Value, weight: np.ndarray) -> ir.Value:
        """The weight itself: its elements [n] in its shape."""
        made = self.node("Reshape", flat, self.constant("shape", np.array(weight.shape)))
        made.shape, made.dtype = ir.Shape(weight.shape), ir.DataType.from_numpy(weight.dtype)
        return made

    def sum_rows(self, entries: ir.Value, known: np.ndarray, offset: int) -> ir.Value:  # [rows, R] -> [rows, R] int32
        """Sums of the entries up to each; ``known`` are their values, from which the starts of the rows come."""
        starts = (np.cumsum(known.sum(1)) - known.sum(1) + offset).astype(np.int32)[:, None]  # [rows, 1]
        sums = self.node("MatMul", self.node("Cast", entries, to=ir.DataType.FLOAT.value), self.shared.triangle)
        whole = self.node("Cast", sums, to=ir.DataType.INT32.value)
        return self.node("Add", whole, self.constant("starts", starts))

    def flattened(self, rows: ir.Value, length: int) -> ir.Value:  # [rows, R] -> [length]
        """The entries in one row, without those that fill the last one up."""
        flat = self.node("Reshape", rows, self.shared.flat)
        if length % ROW == 0:
            return flat
        return self.node("Slice", flat, self.shared.first, self.constant("length", np.array([length])))


def encode_gaps(flat: np.ndarray) -> tuple[np.ndarray, np.ndarray]:  # [n] -> [m] uint8, [m]
    """Gaps from each stored value to the next, the first from place -1; and the values, at least one.

    >>> encode_gaps(np.array([0, 0, 7, 0, 9]))
    (array([3, 2], dtype=uint8), array([7, 9]))
    """
    places = np.flatnonzero(flat)
    places = places if len(places) else np.zeros(1, np.int64)
    gaps = np.diff(places, prepend=-1)  # at least 1
    fillers = (gaps - 1) // 255
    ends = np.cumsum(fillers + 1) - 1  # where each value stands among all that are stored
    stored = np.full(ends[-1] + 1, 255, np.uint8)
    stored[ends] = gaps - 255 * fillers
    values = np.zeros(len(stored), flat.dtype)
    values[ends] = flat[places]
    return stored, values


def encode_bits(flat: np.ndarray) -> tuple[np.ndarray, np.ndarray]:  # [n] -> [rows, R / 8] uint8, [m]
    """A bit for each element, of each byte the lowest first; and the values, at least one.

    >>> bits, values = encode_bits(np.array([0, 0, 7, 0, 9]))
    >>> bits.shape, int(bits[0, 0]), values
    ((1, 32), 20, array([7, 9]))
    """
    bits = np.packbits(_in_rows(flat != 0), axis=1, bitorder="little")
    values = flat[flat != 0]
    return bits, values if len(values) else flat[:1]


def _in_rows(entries: np.ndarray) -> np.ndarray:  # [length] -> [rows, R]
    """Entries in rows of equal length, the last one filled up with zeros."""
    return np.pad(entries, (0, -len(entries) % ROW)).reshape(-1, ROW)


def _write_gaps(writer: _Writer, weight: np.ndarray) -> ir.Value:
    """Values scattered to where their gaps sum up to."""
    gaps, values = encode_gaps(weight.reshape(-1))
    rows, stored = _in_rows(gaps), writer.constant("values", values)
    places = writer.flattened(writer.sum_rows(writer.constant("gaps", rows), rows.astype(np.int64), -1), len(gaps))
    if (values == 0).any() and values.dtype.itemsize >= 4:  # training leaves zeros between long gaps what they are
        zero = writer.constant("zero", np.zeros((), values.dtype))
        stored = writer.node("Where", writer.node("Equal", stored, zero), zero, stored)
    value = ir.tensor(np.zeros(1, values.dtype))
    zeros = writer.node("ConstantOfShape", writer.constant("size", np.array([weight.size])), value=value)
    return writer.shaped(writer.node("ScatterElements", zeros, places, stored, axis=0), weight)


def _write_bits(writer: _Writer, weight: np.ndarray) -> ir.Value:
    """Values gathered where bits are set, by how many are set up to there; elsewhere 0."""
    packed, values = encode_bits(weight.reshape(-1))
    shared, known = writer.shared, _in_rows(weight.reshape(-1) != 0)
    whole = writer.node("Cast", writer.constant("bits", packed[:, :, None]), to=ir.DataType.INT32.value)
    bits = writer.node("Mod", writer.node("Div", whole, shared.powers), shared.two)  # [rows, R / 8, 8]
    bits = writer.node("Reshape", bits, shared.rows)
    counts = writer.node("Mul", writer.sum_rows(bits, known.astype(np.int64), 0), bits)
    nothing = writer.constant("nothing", np.zeros(1, values.dtype))  # of one element: training leaves it as it is
    table = writer.node("Concat", nothing, writer.constant("values", values), axis=0)
    return writer.shaped(writer.node("Gather", table, writer.flattened(counts, weight.size)), weight)


def _write_dense(writer: _Writer, weight: np.ndarray) -> ir.Value:
    return writer.editor.constant(writer.name, weight)


_FORMS: Final[dict[str, Callable[[_Writer, np.ndarray], ir.Value]]] = {"gaps": _write_gaps, "bits": _write_bits}


def _share(editor: Editor) -> _Shared:
    """Put what all weights read at the start of the graph."""
    one = ir.tensor(np.ones(1, np.float32))
    square = editor.constant("sparse.square", np.array([ROW, ROW]))
    ones = editor.insert("ConstantOfShape", [square], "sparse.ones", attributes={"value": one})
    triangle = editor.insert("Trilu", ones.outputs, "sparse.triangle", after=ones, attributes={"upper": 1})
    return _Shared(
        triangle.outputs[0],
        flat=editor.constant("sparse.flat", np.array([-1])),
        first=editor.constant("sparse.first", np.array([0])),
        powers=editor.constant("sparse.powers", 2 ** np.arange(8, dtype=np.int32)),
        two=editor.constant("sparse.two", np.array(2, np.int32)),
        rows=editor.constant("sparse.rows", np.array([-1, ROW])),
    )


def _store_if_smaller(editor: Editor, name: str, shared: _Shared, least_gain: float) -> str:
    """Store a weight in its smallest form; say which that is, and the bytes in the file."""
    value, weight = editor.value(name), editor.array(name)
    sizes = {form: _count_bytes(write, name, weight) for form, write in _FORMS.items()}
    form = min(sizes, key=lambda form: sizes[form])
    dense = _count_bytes(_write_dense, name, weight)
    zeros = f"{1 - np.count_nonzero(weight) / weight.size:.1%} zeros"
    if least_gain * sizes[form] >= dense:
        return f"stays dense: {dense:,} bytes, {sizes[form]:,} as {form} ({zeros})"
    readers = {use.node for use in value.uses()}
    first = next(node for node in editor.graph if node in readers)
    made = _FORMS[form](_Writer(editor, first, name, shared), weight)
    for node in readers:
        set_input(node, value, made)
    editor.drop_constant(name)
    editor.rename(made, name)
    return f"takes {sizes[form]:,} bytes as {form}, {dense:,} dense ({zeros})"


def _count_bytes(write: Callable[[_Writer, np.ndarray], ir.Value], name: str, weight: np.ndarray) -> int:
    """The bytes that a weight takes in a file, what all weights share left out."""
    editor = Editor(ir.Model(ir.Graph([], [], nodes=[], opset_imports={"": 21}), ir_version=10))
    end = editor.insert("Identity", [], "end")
    shared = _share(editor)
    before = _file_bytes(editor)
    made = write(_Writer(editor, end, name, shared), weight)
    if made.name != name:
        editor.rename(made, name)
    return _file_bytes(editor) - before


def _file_bytes(editor: Editor) -> int:
    return len(ir.to_proto(editor.model).SerializeToString(deterministic=True))


def _weights(layers: Sequence[Layer]) -> Iterator[tuple[str, str]]:
    """Layers and their weights, each weight once."""
    owners: dict[str, str] = {}
    for layer in layers:
        for name in layer.weights:
            owners.setdefault(name, layer.name)
    return ((place, name) for name, place in owners.items())


def _codes(model: Model) -> Iterator[tuple[str, str]]:
    """Codes and halves that weights are computed from, each once, with the node that is computed with."""
    known = {name for layer in model.layers() for name in layer.weights}
    for node in model.graph:
        value = node.inputs[0] if node.op_type in _READERS else None
        if value is None or not value.is_initializer() or value.name in known or value.const_value is None:
            continue
        if len(value.const_value.shape) >= 2 and value.dtype in {ir.DataType.INT8, ir.DataType.FLOAT16, *_PACKED}:
            known.add(str(value.name))
            users = [str(use.node.name) for use in node.outputs[0].uses()]
            yield (users[0] if users else str(node.name)), str(value.name)


def _obstacle(model: Model, context: Context, name: str) -> str | None:
    """Why a weight cannot be stored sparse, or None."""
    value, array = model.graph.initializers[name], model.weight(name)
    if value.dtype not in _STORED:
        return f"no runtime puts values of type {array.dtype.name} in their places"
    if not 0 < array.size <= _LARGEST:
        return f"it has {array.size:,} elements; at least one is stored sparse, and no more than int32 counts"
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        return "it holds NaN or infinity"
    if any(name in layer.weights for layer in model.layers()):
        return other_readers(model.graph, context.layers, name)
    if value.is_graph_output() or any(use.node.graph is not model.graph for use in value.uses()):
        return "an output or a body reads it as well"
    return None
