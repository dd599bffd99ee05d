"""Units taken out of a graph: a smaller graph with the same inputs and outputs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from alula.errors import ModelError, at
from alula.graph.channels import Axes, Coupling, Grain, find_couplings, trace_grains
from alula.graph.editing import Editor
from alula.graph.export import as_model
from alula.graph.lengths import find_pads, find_slices, whole_numbers, written
from alula.graph.model import Model, Note
from alula.graph.naming import called
from alula.graph.staying import why_units_stay
from alula.settings import expect


def remove_units(model: Model, units: Mapping[str, Sequence[int]]) -> Model:
    """The graph without some of its units.

    Args:
        model: the graph.
        units: numbers of the units to take out, by the name of their coupling (:func:`find_couplings`).

    Raises:
        ModelError: a coupling is unknown, has no such unit, or would lose all that it has; or units were named that
            must stay, because they reach an output or are read as a whole.
    """
    model = as_model(model)
    expect("units", units, Mapping[str, Any])
    grains = trace_grains(model)
    couplings = find_couplings(model)
    gone: dict[Grain, set[int]] = defaultdict(set)
    for name, numbers in units.items():
        _refuse_to_remove_what_stays(model, couplings, name)
        coupling = called(couplings, name, "units")
        axes = next(axes for axes in grains if axes.grain == coupling.grain)
        gone[coupling.grain].update(_classes(model, axes, coupling, numbers))
    return _Removal(model, grains, gone).done(units)


def _refuse_to_remove_what_stays(model: Model, couplings: Sequence[Coupling], name: str) -> None:
    layer = next((layer for layer in model.layers() if layer.name == name), None)
    if layer is not None and not any(coupling.name == name for coupling in couplings):
        produced = {member.initializer: coupling for coupling in couplings for member in coupling.members
                    if member.produces}  # fmt: skip
        if layer.weight in produced:
            raise ModelError(f"the units of layer {name!r} go with those of {produced[layer.weight].name!r}; name that")
        raise ModelError(f"the units of layer {name!r} cannot go: {why_units_stay(model, layer)}")


def _classes(model: Model, axes: Axes, coupling: Coupling, numbers: Sequence[int]) -> list[int]:
    """The classes of some units of a coupling."""
    whole = np.asarray(numbers)
    if whole.ndim != 1 or (whole.size and whole.dtype.kind not in "iu"):
        raise ModelError(f"units of {coupling.name!r} are a list of whole numbers, got {numbers!r}")
    chosen = sorted({int(number) for number in whole})
    if chosen and not 0 <= chosen[0] <= chosen[-1] < coupling.size:
        raise ModelError(
            f"{coupling.name!r} has {coupling.size} units, numbered from 0; got {chosen[0]} to {chosen[-1]}"
        )
    if len(chosen) == coupling.size:
        raise ModelError(f"{coupling.name!r} would lose all of its {coupling.size} units; keep at least one")
    member = coupling.members[0]
    ids = axes.by_value[model.graph.initializers[member.initializer]][member.axis]
    assert ids is not None
    classes: list[int] = axes.classes.roots(ids[member.indices[chosen, 0]]).tolist()
    return classes


class _Removal:
    """One removal: which indices stay along each axis, and what of the graph has to follow.

    An index stays that stays at every grain: a feature of a head goes with the head, or with its like in all heads.
    """

    def __init__(self, model: Model, grains: Sequence[Axes], gone: Mapping[Grain, set[int]]) -> None:
        self._model = model
        self._grains = [(axes.classes, np.array(sorted(gone[axes.grain]))) for axes in grains if gone.get(axes.grain)]
        self._ids = [
            {str(value.name): ids for value, ids in axes.by_value.items() if value.name}
            for axes in grains if gone.get(axes.grain)
        ]  # fmt: skip
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
        RemoveUnusedNodesPass()(self._editor.model)
        notes = [
            Note(name, f"{len(set(numbers))} units taken out") for name, numbers in units.items() if len(numbers)
        ]  # fmt: skip
        return self._model.edited(self._editor.model, notes)

    def _rank(self, name: str) -> int:
        """How many axes a tensor has; 0 where that is unknown."""
        return len(self._ids[0].get(name, [])) if self._ids else 0

    def _stays(self, name: str, axis: int) -> np.ndarray | None:
        """Which indices of an axis stay; None where all do."""
        stays = None
        for (classes, gone), known in zip(self._grains, self._ids, strict=True):
            ids = known[name][axis] if axis < len(known.get(name, [])) else None
            if ids is not None:
                kept = ~np.isin(classes.roots(ids), gone)
                stays = kept if stays is None else stays & kept
        return None if stays is None or stays.all() else stays

    def _length(self, name: str, axis: int) -> int | None:
        """What is left of an axis; None where it loses nothing."""
        kept = self._stays(name, axis)
        return None if kept is None else int(kept.sum())

    def _lost(self, name: str) -> dict[int, int]:
        """What is left of each axis that loses something."""
        return {axis: left for axis in range(self._rank(name)) if (left := self._length(name, axis)) is not None}

    def _shrink(self, name: str) -> None:
        array = None
        for axis in range(self._rank(name)):
            kept = self._stays(name, axis)
            if kept is not None:
                array = self._editor.array(name) if array is None else array
                array = np.compress(kept, array, axis)
        if array is not None:
            self._editor.replace_constant(name, np.ascontiguousarray(array))

    def _reshape_value(self, value: ir.Value) -> None:
        lost = self._lost(str(value.name))
        if lost and value.shape is not None:
            value.shape = ir.Shape([lost.get(axis, length) for axis, length in enumerate(value.shape)])

    def _follow(self, node: ir.Node) -> None:
        """Change what a node says of lengths itself."""
        match node.op_type:
            case "Conv" | "ConvTranspose":
                self._follow_groups(node)
            case "LSTM" | "GRU" | "RNN":
                left = self._length(str(node.inputs[2].name), 2) if node.inputs[2] is not None else None
                if left is not None:
                    node.attributes["hidden_size"] = ir.AttrInt64("hidden_size", left)
            case "Reshape" | "Expand":
                self._write_lengths(node, 1, self._lost(str(node.outputs[0].name)))
            case "ConstantOfShape":
                self._write_lengths(node, 0, self._lost(str(node.outputs[0].name)))
            case "Split":
                self._follow_split(node)
            case "Slice":
                self._follow_slice(node)
            case "Pad":
                self._follow_pad(node)
            case "Resize" if len(node.inputs) > 3 and node.inputs[3] is not None:
                self._write_lengths(node, 3, self._lost(str(node.outputs[0].name)))

    def _follow_groups(self, node: ir.Node) -> None:
        """A depthwise convolution has as many groups as channels; others keep their groups, and lose in each."""
        x, weight = node.inputs[:2]
        groups = int(node.attributes.get_int("group", 1))
        if x is None or weight is None or weight.shape is None or groups == 1:
            return
        left = self._length(str(x.name), 1)
        depthwise = weight.shape[1] == 1 if node.op_type == "Conv" else weight.shape[0] == groups
        if depthwise and left is not None:
            node.attributes["group"] = ir.AttrInt64("group", left)

    def _follow_split(self, node: ir.Node) -> None:
        along = int(node.attributes.get_int("axis", 0)) % max(self._rank(str(node.outputs[0].name)), 1)
        left = [self._length(str(value.name), along) for value in node.outputs]
        if all(length is None for length in left):
            return
        lengths = [
            value.shape[along] if length is None and value.shape is not None else length
            for value, length in zip(node.outputs, left, strict=True)
        ]
        constant = self._editor.constant(f"{node.name}.split", np.array(lengths, np.int64))
        node.attributes.pop("num_outputs", None)
        node.resize_inputs(2)
        node.replace_input_with(1, constant)

    def _follow_slice(self, node: ir.Node) -> None:
        """Move the bounds of a slice to where its run lies now."""
        x = node.inputs[0]
        if x is None or x.shape is None or not self._lost(str(x.name)):
            return
        slices = find_slices(node, [length if isinstance(length, int) else None for length in x.shape])
        starts, ends = (whole_numbers(node, index, name) for index, name in ((1, "starts"), (2, "ends")))
        if slices is None or starts is None or ends is None:
            return
        for number, (axis, run) in enumerate(slices.items()):
            kept = self._stays(str(x.name), axis)
            if kept is not None and run is not None:
                starts[number] = int(kept[: run.start].sum())
                ends[number] = starts[number] + int(kept[run].sum())
        for index, bounds in ((1, starts), (2, ends)):
            before = node.inputs[index]
            narrow = before is not None and before.dtype == ir.DataType.INT32
            kind = np.int32 if narrow else np.int64  # the same for all inputs of a node
            constant = self._editor.constant(f"{node.name}.bounds", np.array(bounds, kind))
            node.replace_input_with(index, constant)

    def _follow_pad(self, node: ir.Node) -> None:
        """Let an axis grow by as many zeros as are left before and behind what it held."""
        grown = str(node.outputs[0].name)
        amounts = find_pads(node, self._rank(grown))
        kept = {axis: self._stays(grown, axis) for axis in amounts or {}}
        if not amounts or all(stays is None for stays in kept.values()):
            return
        pads = np.zeros((2, self._rank(grown)), np.int64)
        for axis, (before, behind) in amounts.items():
            stays = kept[axis]
            pads[:, axis] = (
                (before, behind) if stays is None else (stays[:before].sum(), stays[len(stays) - behind :].sum())
            )
        node.attributes.pop("pads", None)
        node.resize_inputs(3)  # without the axes: all are named
        node.replace_input_with(1, self._editor.constant(f"{node.name}.pads", pads.reshape(-1)))

    def _write_lengths(self, node: ir.Node, index: int, lost: Mapping[int, int]) -> None:
        """Write the lengths that are left into a target; those told by 0 or -1 follow by themselves."""
        target, rank = node.inputs[index], self._rank(str(node.outputs[0].name))
        places = written(target)
        if not lost or target is None:
            return
        if places is None:
            raise ModelError("its target is computed, and cannot be written anew; leave these units in")
        parts: dict[ir.Value, np.ndarray] = {}
        for axis, left in lost.items():
            place = places[axis - rank] if rank - axis <= len(places) else None
            if place is not None and place[0].const_value is not None:
                part = parts.setdefault(place[0], place[0].const_value.numpy().astype(np.int64).copy())
                if part.reshape(-1)[place[1]] > 1:
                    part.reshape(-1)[place[1]] = left
        node.replace_input_with(index, self._rewritten(target, parts, node))

    def _rewritten(self, target: ir.Value, parts: Mapping[ir.Value, np.ndarray], before: ir.Node) -> ir.Value:
        """A target with other numbers in it: a constant, or the concatenation anew, since others may read the old."""
        if target.const_value is not None:
            return self._editor.constant(f"{before.name}.lengths", parts[target]) if target in parts else target
        node = target.producer()
        if node is None or node.op_type != "Concat":
            return target
        inputs = [None if value is None else self._rewritten(value, parts, before) for value in node.inputs]
        if inputs == list(node.inputs):
            return target
        made = self._editor.insert(
            "Concat", inputs, f"{before.name}.target", before=before, attributes={"axis": 0}
        ).outputs[0]
        made.shape, made.type = target.shape, target.type
        return made
