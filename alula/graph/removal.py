"""Units taken out of a graph: a smaller graph with the same inputs and outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from alula.errors import ModelError, at
from alula.graph.channels import FROZEN, Axes, Ids, coupling_named, couplings_of, trace_axes
from alula.graph.editing import Editor
from alula.graph.model import Model, Note


def remove_units(model: Model, units: Mapping[str, Sequence[int]]) -> Model:
    """The graph without some of its units.

    Args:
        model: the graph.
        units: numbers of the units to take out, by the name of their coupling (:func:`find_couplings`).

    Raises:
        ModelError: a coupling is unknown, has no such unit, or would lose all that it has.
    """
    axes = trace_axes(model)
    couplings = couplings_of(model, axes)
    gone: set[int] = set()
    for name, numbers in units.items():
        coupling = coupling_named(couplings, name)
        chosen = sorted({int(number) for number in numbers})
        if chosen and not 0 <= chosen[0] <= chosen[-1] < coupling.size:
            raise ModelError(f"{name!r} has {coupling.size} units, numbered from 0; got {chosen[0]} to {chosen[-1]}")
        if len(chosen) == coupling.size:
            raise ModelError(f"{name!r} would lose all of its {coupling.size} units; keep at least one")
        member = coupling.members[0]
        ids = axes.by_value[model.graph.initializers[member.initializer]][member.axis]
        assert ids is not None
        gone.update(axes.classes.roots(ids[member.indices[chosen, 0]]).tolist())
    if FROZEN in gone:
        raise ModelError("units that must stay were chosen")
    return _Removal(model, axes, gone).done(units)


class _Removal:
    """One removal: which indices stay along each axis, and what of the graph has to follow."""

    def __init__(self, model: Model, axes: Axes, gone: set[int]) -> None:
        self._model, self._axes = model, axes
        self._gone = np.array(sorted(gone), dtype=np.int64)
        self._by_name = {str(value.name): ids for value, ids in axes.by_value.items() if value.name}
        self._editor = Editor(model.edit())

    def done(self, units: Mapping[str, Sequence[int]]) -> Model:
        for node in list(self._editor.graph):
            with at(str(node.name)):
                self._follow(node)
        for name in list(self._editor.graph.initializers):
            self._shrink(name)
        for node in self._editor.graph:
            for value in node.outputs:
                self._reshape_value(value)
        notes = [
            Note(name, f"{len(set(numbers))} units taken out") for name, numbers in units.items() if len(numbers)
        ]  # fmt: skip
        return self._model.edited(self._editor.model, notes)

    def _stays(self, ids: Ids | None) -> np.ndarray | None:
        """Which indices of an axis stay; None where all do."""
        if ids is None:
            return None
        kept = ~np.isin(self._axes.classes.roots(ids), self._gone)
        return None if kept.all() else kept

    def _length(self, name: str, axis: int) -> int | None:
        """What is left of an axis; None where it loses nothing."""
        ids = self._by_name.get(name)
        kept = self._stays(ids[axis]) if ids and axis < len(ids) else None
        return None if kept is None else int(kept.sum())

    def _shrink(self, name: str) -> None:
        array = None
        for axis, ids in enumerate(self._by_name.get(name, [])):
            kept = self._stays(ids)
            if kept is not None:
                array = self._editor.array(name) if array is None else array
                array = np.compress(kept, array, axis)
        if array is not None:
            self._editor.replace_constant(name, np.ascontiguousarray(array))

    def _reshape_value(self, value: ir.Value) -> None:
        if value.shape is None:
            return
        lengths = list(value.shape)
        changed = {
            axis: left for axis in range(len(lengths)) if (left := self._length(str(value.name), axis)) is not None
        }
        if changed:
            value.shape = ir.Shape([changed.get(axis, length) for axis, length in enumerate(lengths)])

    def _follow(self, node: ir.Node) -> None:
        """Change what a node says of lengths itself."""
        if node.op_type in ("Conv", "ConvTranspose") and int(node.attributes.get_int("group", 1)) > 1:
            self._follow_groups(node)
        elif node.op_type in ("LSTM", "GRU", "RNN"):
            left = self._length(str(node.inputs[2].name), 2) if node.inputs[2] is not None else None
            if left is not None:
                node.attributes["hidden_size"] = ir.AttrInt64("hidden_size", left)
        elif node.op_type in ("Reshape", "Expand"):
            self._follow_target(node)
        elif node.op_type == "Split":
            self._follow_split(node)
        elif node.op_type == "Resize":
            self._follow_sizes(node)

    def _follow_groups(self, node: ir.Node) -> None:
        """A depthwise convolution has as many groups as channels; others keep their groups, and lose in each."""
        weight = node.inputs[1]
        assert weight is not None
        ids = self._by_name.get(str(weight.name))
        if ids is not None and ids[1] is not None and len(ids[1]) == 1:
            left = self._length(str(node.inputs[0].name), 1) if node.inputs[0] is not None else None
            if left is not None:
                node.attributes["group"] = ir.AttrInt64("group", left)

    def _follow_target(self, node: ir.Node) -> None:
        """Lengths that a target spells out become those that are left."""
        target = node.inputs[1]
        made = str(node.outputs[0].name)
        lost = {
            axis: left
            for axis in range(len(self._by_name.get(made, [])))
            if (left := self._length(made, axis)) is not None
        }
        if target is None or not lost:
            return
        self._respell(node, 1, lost)

    def _follow_sizes(self, node: ir.Node) -> None:
        lost = {axis: left for axis in range(2) if (left := self._length(str(node.outputs[0].name), axis)) is not None}
        if lost and len(node.inputs) > 3 and node.inputs[3] is not None:
            self._respell(node, 3, lost)

    def _follow_split(self, node: ir.Node) -> None:
        along = int(node.attributes.get_int("axis", 0))
        rank = len(self._by_name.get(str(node.outputs[0].name), []))
        left = [self._length(str(value.name), along % max(rank, 1)) for value in node.outputs]
        if all(length is None for length in left):
            return
        lengths = []
        for value, length in zip(node.outputs, left, strict=True):
            ids = self._by_name[str(value.name)][along % rank]
            assert ids is not None
            lengths.append(len(ids) if length is None else length)
        constant = self._editor.constant(f"{node.name}.split", np.array(lengths, np.int64))
        node.attributes.pop("num_outputs", None)
        if len(node.inputs) > 1:
            node.replace_input_with(1, constant)
        else:
            node.resize_inputs(2)
            node.replace_input_with(1, constant)

    def _respell(self, node: ir.Node, index: int, lost: Mapping[int, int]) -> None:
        """Write other lengths into a constant that a node reads; lengths told by 0 or -1 follow by themselves."""
        target = node.inputs[index]
        assert target is not None
        if target.const_value is None:
            raise ModelError("its target is computed, and cannot be written anew; leave these units in")
        lengths = target.const_value.numpy().astype(np.int64).copy()
        for axis, left in lost.items():
            if axis < len(lengths) and lengths[axis] > 0:
                lengths[axis] = left
        constant = self._editor.constant(f"{node.name}.lengths", lengths)
        node.replace_input_with(index, constant)
