"""Cross-layer equalization: scales of channels moved between layers in a row, before their weights are rounded."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import onnx_ir as ir

from alula.errors import at
from alula.graph.editing import Editor
from alula.graph.layers import Layer
from alula.graph.matrices import from_matrix, matrix_shape, no_matrix, weight_matrix
from alula.graph.model import Model, Note
from alula.graph.statistics import Request
from alula.numerics.grids import finite_float32
from alula.numerics.smoothing import smoothing_factors
from alula.techniques.technique import Context, other_type

ROUNDS: Final = 50  # each evens out every pair once; chains of layers take several
EVENLY: Final = 0.5  # sqrt(r1 / r2): both ranges become sqrt(r1 r2)
SETTLED: Final = 1e-3  # of a factor's logarithm: the ranges agree
_ELEMENTWISE: Final = frozenset({"Dropout", "Identity", "LeakyRelu", "PRelu", "Relu"})  # f(a x) = a f(x) for a > 0
_POOLS: Final = frozenset({"AveragePool", "GlobalAveragePool", "GlobalMaxPool", "MaxPool"})  # over what is behind
_RESHAPES: Final = frozenset({"Flatten", "Reshape", "Squeeze"})


@dataclass(frozen=True, slots=True)
class Equalize:
    """Even out the ranges of channels between layers in a row; the outputs stay the same.

    Conv, Gemm and MatMul are paired with the one that reads them, where only operators lie between that keep a
    positive scale (Relu, LeakyRelu, PRelu, pooling). Ranges of the weights that compute a channel and of those that
    read it become equal. That makes one step for a whole weight usable, and gives channels of an activation more even
    ranges too; fold batch normalisations before, as what lies between is not looked through.
    """

    def requests(self, model: Model, layers: Sequence[Layer]) -> frozenset[Request]:  # noqa: ARG002
        """None: weights alone decide."""
        return frozenset()

    def apply(self, model: Model, context: Context) -> Model:
        """Equalize pairs of the context's layers, over and over, until their ranges agree.

        Raises:
            DataError: a weight is NaN or infinite (the layer is named).
        """
        editor = Editor(model.edit())
        pairs = list(_pairs(editor, context.layers))
        spread = [_spread(_factors(editor, pair)) for pair in pairs]
        for _ in range(ROUNDS if pairs else 0):
            moved = 0.0
            for pair in pairs:
                factors = _factors(editor, pair)
                pair.scale(editor, factors)
                moved = max(moved, float(np.abs(np.log(factors)).max(initial=0.0)))
            if moved < SETTLED:
                break
        notes = [Note(pair.first.name, f"equalized with {pair.second.name}: channels differed by up to {before:.3g}x")
                 for pair, before in zip(pairs, spread, strict=True)]  # fmt: skip
        return model.edited(editor.model, notes)


@dataclass(frozen=True, slots=True)
class _Pair:
    """Two layers of which the second alone reads the first, and the constants that are added between."""

    first: Layer
    second: Layer
    added: tuple[str, ...]

    def scale(self, editor: Editor, factors: np.ndarray) -> None:
        """Divide what the first gives, multiply what the second reads: [channels]."""
        weight = editor.array(self.first.weight)
        rows = weight_matrix(weight, self.first)  # [groups, out / groups, k]
        divided = rows / factors.reshape(*rows.shape[:2], 1)
        editor.replace_constant(self.first.weight, from_matrix(divided, self.first).astype(weight.dtype))
        for name in self.added:
            bias = editor.array(name)
            editor.replace_constant(name, (bias / factors.reshape(bias.shape)).astype(bias.dtype))
        read = editor.array(self.second.weight)
        columns = weight_matrix(read, self.second)
        multiplied = columns * _by_column(factors, columns.shape)
        editor.replace_constant(self.second.weight, from_matrix(multiplied, self.second).astype(read.dtype))


def _factors(editor: Editor, pair: _Pair) -> np.ndarray:  # -> [channels]
    with at(f"layer {pair.first.name!r}"):
        rows = np.abs(weight_matrix(finite_float32(editor.array(pair.first.weight)), pair.first))
    with at(f"layer {pair.second.name!r}"):
        columns = np.abs(weight_matrix(finite_float32(editor.array(pair.second.weight)), pair.second))
    given = rows.max(axis=2, initial=0.0).reshape(-1)
    groups, _, width = columns.shape
    by_channel = columns.max(axis=1, initial=0.0).reshape(groups * width // _kernel(len(given), columns.shape), -1)
    return smoothing_factors(given, by_channel.max(axis=1, initial=0.0), EVENLY)


def _kernel(channels: int, shape: tuple[int, ...]) -> int:
    """Columns of each channel in a matrix [groups, out / groups, k]."""
    return shape[0] * shape[2] // channels


def _by_column(factors: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:  # [channels] -> [groups, 1, k]
    return np.repeat(factors, _kernel(len(factors), shape)).reshape(shape[0], 1, shape[2])


def _spread(factors: np.ndarray) -> float:
    """How many times the largest ratio of ranges is that of the smallest."""
    return float((factors.max() / factors.min()) ** 2) if factors.size else 1.0


def _pairs(editor: Editor, layers: Sequence[Layer]) -> Iterator[_Pair]:
    readers = {layer.input: layer for layer in layers if _fits(editor, layer)}
    for layer in layers:
        walk = _Walk(editor, layer) if _fits(editor, layer) and _has_own_bias(editor, layer) else None
        second = None if walk is None else readers.get(walk.reached() or "")
        if walk is not None and second is not None and walk.fits(second):
            yield _Pair(layer, second, (*([layer.bias] if layer.bias else []), *walk.added))


def _fits(editor: Editor, layer: Layer) -> bool:
    """Whether a layer multiplies by a matrix of its own, with its channels where those of an activation are."""
    matrix = no_matrix(layer) is None and other_type(editor.graph, layer) is None and not editor.shared(layer.weight)
    return matrix and (layer.operator != "MatMul" or layer.output_axis == 1) and min(layer.shape) > 0


def _has_own_bias(editor: Editor, layer: Layer) -> bool:
    """Whether the layer has no bias, or a constant one of one number a channel that nobody else reads."""
    node = editor.node(layer.name)
    if layer.bias is None:
        return len(node.inputs) < 3 or node.inputs[2] is None
    return not editor.shared(layer.bias) and editor.array(layer.bias).size == layer.shape[layer.output_axis]


class _Walk:
    """The way from what a layer gives to what reads it otherwise than by an operator that keeps a positive scale.

    Attributes:
        channels: how many there are.
        behind: axes behind that of the channels.
        added: names of the constants that are added on the way.
    """

    def __init__(self, editor: Editor, layer: Layer) -> None:
        self._editor = editor
        self._value = editor.node(layer.name).outputs[0]
        self.channels = layer.shape[layer.output_axis]
        self.behind = len(layer.shape) - 2  # 0 behind Gemm and MatMul
        self.added: list[str] = []

    def reached(self) -> str | None:
        """The name of the last tensor on the way; None where several read one of them, or something unknown does."""
        while len(self._value.uses()) == 1 and not self._value.is_graph_output():
            (node,) = (use.node for use in self._value.uses())
            if node.graph is not self._editor.graph or node.domain != "":
                return None
            if not self._passes(node):
                return str(self._value.name)
            self._value = node.outputs[0]
        return None

    def fits(self, second: Layer) -> bool:
        """Whether a layer that reads the last tensor has its channels where they are now, and as many."""
        groups, _, width = matrix_shape(second)
        read = groups * width // math.prod(second.shape[axis] for axis in second.input_axes[1:])
        return self.behind == len(second.shape) - 2 and read == self.channels

    def _passes(self, node: ir.Node) -> bool:
        """Whether a node keeps a positive scale of its channels; what it does to their place is noted."""
        if node.op_type == "Add":
            return self._passes_add(node)
        if node.op_type in _RESHAPES and _drops_only_ones(self._value, node.outputs[0], self.channels):
            self.behind = 0
            return True
        first = node.inputs[0] is self._value
        return first and (node.op_type in _ELEMENTWISE or (node.op_type in _POOLS and self.behind > 0))

    def _passes_add(self, node: ir.Node) -> bool:
        """Whether it adds a constant of one number a channel, which nobody else reads."""
        constants = [value for value in node.inputs if value is not None and value.is_initializer()]
        if len(constants) != 1 or constants[0].const_value is None or self._editor.shared(str(constants[0].name)):
            return False
        shape = tuple(int(length) for length in constants[0].const_value.shape.numpy())
        wide = [axis for axis, length in enumerate(shape) if length != 1]
        if math.prod(shape) != self.channels or wide not in ([], [len(shape) - 1 - self.behind]):
            return False
        self.added.append(str(constants[0].name))
        return True


def _drops_only_ones(before: ir.Value, after: ir.Value, channels: int) -> bool:
    """Whether [n, channels, 1, ...] becomes [n, channels]."""
    if before.shape is None or after.shape is None or len(before.shape) < 3 or len(after.shape) != 2:
        return False
    return before.shape[1] == after.shape[1] == channels and all(length == 1 for length in list(before.shape)[2:])
