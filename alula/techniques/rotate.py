"""Residual streams and values of attention turned by orthogonal matrices, which weights take up."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from alula.errors import at
from alula.graph.editing import Editor
from alula.graph.layers import Layer
from alula.graph.model import Model, Note
from alula.graph.statistics import Request
from alula.graph.streams import (
    Gain,
    Place,
    Stream,
    Use,
    find_residual_streams,
    find_value_streams,
    is_constant,
    last_of,
)
from alula.numerics.hadamard import find_hadamard, orthogonal, rotate_along
from alula.settings import check_rules, check_settings
from alula.techniques.biases import alpha_of
from alula.techniques.technique import Context


@dataclass(frozen=True, slots=True)
class Rotate:
    """Turn what transformers carry from block to block, so that no channel stands out; the outputs stay the same.

    Each residual stream x becomes x Q, with Q a Hadamard matrix with drawn signs (drawn as a whole where the width has
    no such matrix). Layers and tables that give to the stream give W Q, those that read it multiply by Q^T diag(g) W,
    with g the gain of the normalisation between. Nothing is computed that was not before (Ashkboos et al. 2024,
    "QuaRot", section 4). A LayerNormalization stays what it is, as Q is made to keep the mean of each row.

    Attributes:
        heads: also turn the values that attention weighs, each head by the same Q.
        seed: of the signs.
    """

    heads: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        check_settings(self)
        check_rules(self, [("seed", "0 or more", self.seed >= 0)])

    def requests(self, model: Model, layers: Sequence[Layer]) -> frozenset[Request]:  # noqa: ARG002
        """None: a rotation is drawn, not fitted."""
        return frozenset()

    def apply(self, model: Model, context: Context) -> Model:
        """Turn every stream whose layers are all among the context's.

        Raises:
            DataError: a weight, table or gain is NaN or infinite (it is named).
        """
        editor = Editor(model.edit())
        residual = find_residual_streams(editor.graph)
        streams = [*residual, *(find_value_streams(editor.graph, residual) if self.heads else ())]
        spared = {layer.name for layer in model.layers()} - {layer.name for layer in context.layers}
        notes, turned = [], []
        for stream in streams:
            reasons = [*stream.obstacles, *_obstacles(stream, spared)]
            if not reasons:
                turned.append(stream)
            elif stream in residual or _is_weighed(stream):
                notes.append(Note(stream.source, f"not rotated: {_told(reasons)}"))
        if not streams:
            notes.append(Note("model", "not rotated: nothing is normalised over its last axis, and nothing weighed"))
        folding = _Folding(editor)
        for stream in turned:
            folding.fold_gains(stream)
        for number, stream in enumerate(turned):
            rotation = orthogonal(stream.size, (self.seed, number), keep_mean=stream.keeps_mean)
            notes.append(Note(stream.source, folding.turn(stream, rotation)))
        notes += folding.write()
        return model.edited(editor.model, notes)


def _told(reasons: Sequence[str]) -> str:
    more = f"; and {len(reasons) - 1} more such places" if len(reasons) > 1 else ""
    return f"{reasons[0]}{more}"


def _obstacles(stream: Stream, spared: set[str]) -> Iterator[str]:
    """Why its constants cannot be changed."""
    for place in stream.places.values():
        node, index = place.use
        value, layer = node.inputs[index], place.layer
        if layer is not None and layer.name in spared:
            yield f"layer {layer.name!r} is not to be treated"
        if value is not None and value.dtype not in (None, ir.DataType.FLOAT, ir.DataType.DOUBLE):
            yield f"{value.name!r} is {value.dtype.name.lower()}, only float32 is taken; apply Float32 before"
    for gain in _gains(stream):
        if gain.shift is not None and not _biases(stream, gain) and _has_dead_gain(gain):
            yield f"{gain.use[0].name!r} shifts channels that it scales by 0, and what reads them has no bias"


def _is_weighed(stream: Stream) -> bool:
    """Whether the tensor is what attention weighs, not one side of what it weighs by."""
    product = next(use.node for value in stream.lanes for use in value.uses() if value.name == stream.source)
    value = product.inputs[0]
    while value is not None and (maker := value.producer()) is not None:
        if maker.op_type == "Softmax":
            return True
        value = maker.inputs[-1] if maker.op_type in ("Where", "Cast", "Dropout", "Identity") else None
    return False


def _gains(stream: Stream) -> list[Gain]:
    return list(dict.fromkeys(lane.gain for lane in stream.lanes.values() if lane.gain is not None))


def _readers(stream: Stream, gain: Gain) -> list[Place]:
    return [place for place in stream.places.values() if place.gain is gain]


def _has_dead_gain(gain: Gain) -> bool:
    assert gain.shift is not None
    scale, shift = _array(gain.use).reshape(-1), _array(gain.shift).reshape(-1)
    return bool(((scale == 0) & (shift != 0)).any())


def _biases(stream: Stream, gain: Gain) -> list[tuple[Place, Use]]:
    """The layers that read what a normalisation gives, and their biases; none where one of them has no bias."""
    found = [(place, _bias(place.layer)) for place in _readers(stream, gain)]
    return [(place, bias) for place, bias in found if bias is not None] if all(bias for _, bias in found) else []


def _bias(layer: ir.Node | None) -> Use | None:
    """Who reads the constant bias of a layer, as which input: the layer itself, or the Add behind it."""
    assert layer is not None
    node, made = layer, layer.outputs[0]
    if layer.op_type == "MatMul":
        (use, *others) = made.uses() or (None,)
        if use is None or others or use.node.op_type != "Add" or use.node.graph is not layer.graph:
            return None
        node = use.node
    for index in (0, 1) if node is not layer else (2,):
        value = node.inputs[index] if index < len(node.inputs) else None
        if value is not None and is_constant(value) and last_of(value) == last_of(made) == value.const_value.size:  # type: ignore[union-attr]
            return node, index
    return None


def _array(use: Use) -> np.ndarray:
    node, index = use
    value = node.inputs[index]
    assert value is not None
    assert value.const_value is not None
    return np.asarray(value.const_value.numpy(), np.float64)


class _Folding:
    """Rotations taken up by constants, each as one of its readers sees it, until all are written.

    An initializer that several read stays one if all of them see the same in the end.
    """

    def __init__(self, editor: Editor) -> None:
        self._editor = editor
        self._arrays: dict[Use, np.ndarray] = {}  # float64

    def turn(self, stream: Stream, rotation: np.ndarray) -> str:
        """Fold one rotation, when all gains are folded; what was done, in words."""
        for place in stream.places.values():
            array = self._seen(place.use)
            span = tuple(slice(place.start, place.stop) if axis == place.axis else slice(None)
                         for axis in range(array.ndim))  # fmt: skip
            with at(self._name(place)):
                array[span] = rotate_along(array[span], rotation, place.axis)
        layers = {place.layer for place in stream.places.values() if place.layer is not None}
        kind = "drawn at random" if find_hadamard(stream.size) is None else "of Hadamard's kind"
        return f"{stream.size} channels rotated by a matrix {kind}, taken up by {len(layers)} layers"

    def _name(self, place: Place) -> str:
        node, index = place.use
        return f"constant {node.inputs[index].name!r}" if place.layer is None else f"layer {place.layer.name!r}"  # type: ignore[union-attr]

    def _seen(self, use: Use) -> np.ndarray:
        """The constant as this reader sees it by now."""
        if use not in self._arrays:
            self._arrays[use] = np.array(_array(use))
        return self._arrays[use]

    def fold_gains(self, stream: Stream) -> None:
        """Gains go to the layers behind; shifts to their biases, or, where one has none, they become (b / g) Q."""
        for gain in _gains(stream):
            self._fold_gain(stream, gain)

    def _fold_gain(self, stream: Stream, gain: Gain) -> None:
        scale = _array(gain.use).reshape(-1)  # [n]
        if gain.shift is not None:
            self._fold_shift(stream, gain, gain.shift, scale)
        for place in _readers(stream, gain):
            weight = self._seen(place.use)
            weight *= scale.reshape([-1 if axis == place.axis else 1 for axis in range(weight.ndim)])
        node, index = gain.use
        if node.op_type == "Mul":
            _pass_by(node, 1 - index)
        else:
            node.replace_input_with(index, self._ones(node, index))

    def _fold_shift(self, stream: Stream, gain: Gain, use: Use, scale: np.ndarray) -> None:
        node, index = use
        shift = self._seen(use).reshape(-1)  # [n]
        biases = _biases(stream, gain)
        for place, bias in biases:
            layer = place.layer
            assert layer is not None
            weight = _array(place.use)
            moved = np.tensordot(shift, weight, (0, place.axis))
            held = self._seen(bias)
            held += moved * (alpha_of(layer) if layer.op_type == "Gemm" else 1.0)
        if not biases:
            array = self._seen(use)
            array[...] = np.divide(array, scale, out=np.zeros_like(array), where=array != 0)
            stream.places[node, index, array.ndim - 1] = Place(use, array.ndim - 1, 0, len(scale))
            return
        del self._arrays[use]
        if node.op_type == "Add":
            _pass_by(node, 1 - index)
        else:
            node.resize_inputs(index)

    def _ones(self, node: ir.Node, index: int) -> ir.Value:
        value = node.inputs[index]
        assert value is not None
        assert value.const_value is not None
        ones = np.ones_like(value.const_value.numpy())
        return self._editor.constant(f"ones_{ones.size}", ones)

    def write(self) -> list[Note]:
        """Put all that changed into the graph; a note for each constant that is there twice now."""
        by_value: dict[ir.Value, list[Use]] = defaultdict(list)
        for node, index in self._arrays:
            by_value[node.inputs[index]].append((node, index))  # type: ignore[index]
        RemoveUnusedNodesPass()(self._editor.model)
        return [note for value, uses in by_value.items() for note in self._replace(value, uses)]

    def _replace(self, value: ir.Value, uses: Sequence[Use]) -> Iterator[Note]:
        """One initializer as all its readers see it: itself where they agree, others beside it where not."""
        name = str(value.name)
        dtype = value.const_value.dtype.numpy()  # type: ignore[union-attr]
        arrays = [self._arrays[use].astype(dtype) for use in uses]
        others = len(value.uses()) > len(uses) or value.is_graph_output()
        if not others and all(np.array_equal(array, arrays[0]) for array in arrays):
            self._editor.replace_constant(name, arrays[0])
            return
        made = []
        for (node, index), array in zip(uses, arrays, strict=True):
            made.append(self._editor.constant(f"{name}.rotated", array))
            node.replace_input_with(index, made[-1])
        gone = not others and self._editor.drop_constant(name)
        more = len(set(made)) - gone
        if more:
            yield Note(name, f"its readers see it turned in different ways now: {more * arrays[0].nbytes:,} bytes more")


def _pass_by(node: ir.Node, index: int) -> None:
    """Let what reads a node's output read one of its inputs instead."""
    value = node.inputs[index]
    assert value is not None
    node.outputs[0].replace_all_uses_with(value)
