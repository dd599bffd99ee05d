"""How operators that only move elements couple axes: reshapes, transposes, slices, splits, concatenations."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from alula.graph.channels import Axes, Ids
from alula.graph.lengths import find_pads, find_slices, pads_zeros, whole_numbers, written


def keep_all(axes: Axes, node: ir.Node) -> None:
    """Everything that the operator reads and computes stays as it is."""
    for value in (*node.inputs, *node.outputs):
        if value is not None:
            axes.freeze(value)


def tie_all(axes: Axes, value: ir.Value | None, made: ir.Value, *, but: Sequence[int] = ()) -> None:
    """Each axis of one tensor is that of another, but for some; where they have other numbers of axes, all stay."""
    if value is None:
        return
    theirs, ours = axes.of(value), axes.of(made)
    if len(theirs) != len(ours):
        axes.freeze(value)
        axes.freeze(made)
        return
    for axis, (ids, target) in enumerate(zip(theirs, ours, strict=True)):
        if axis not in but:
            axes.tie(ids, target)


def tie_broadcast(axes: Axes, value: ir.Value, made: ir.Value) -> None:
    """The axes of what is broadcast are those of the result, counted from the last."""
    for ids, target in zip(reversed(axes.of(value)), reversed(axes.of(made)), strict=False):
        if ids is not None and target is not None and len(ids) == 1 != len(target):
            axes.keep(ids)  # one number for all: it stays, whatever goes
        else:
            axes.tie(ids, target)


def keep_space(axes: Axes, *values: ir.Value) -> None:
    """Axes behind batch and channels stay."""
    for value in values:
        for ids in axes.of(value)[2:]:
            axes.keep(ids)


def keep_computed(axes: Axes, target: ir.Value | None, made: ir.Value) -> None:
    """Axes whose lengths a target computes stay: they cannot be written anew."""
    places, ours = written(target), axes.of(made)
    if places is None:
        axes.freeze(made)
        return
    for ids, place in zip(reversed(ours), reversed(places), strict=False):
        if place is None:
            axes.keep(ids)


def transpose(axes: Axes, node: ir.Node) -> None:
    """Transpose."""
    x, (made,) = node.inputs[0], node.outputs
    assert x is not None
    rank = len(axes.of(x))
    order = node.attributes.get_ints("perm", tuple(range(rank))[::-1])
    for target, axis in enumerate(order):
        axes.tie(axes.of(x)[int(axis)], axes.of(made)[target])


def concat(axes: Axes, node: ir.Node) -> None:
    """Concat: along its axis, one input after the other."""
    (made,) = node.outputs
    values = [value for value in node.inputs if value is not None]
    along = int(node.attributes.get_int("axis", 0)) % max(len(axes.of(made)), 1)
    parts = [axes.of(value)[along] for value in values]
    if any(part is None for part in parts):
        keep_all(axes, node)
        return
    axes.tie(np.concatenate([part for part in parts if part is not None]), axes.of(made)[along])
    for value in values:
        tie_all(axes, value, made, but=[along])


def split(axes: Axes, node: ir.Node) -> None:
    """Split: each output is a run of the axis."""
    x = node.inputs[0]
    assert x is not None
    along = int(node.attributes.get_int("axis", 0)) % max(len(axes.of(x)), 1)
    whole, start = axes.of(x)[along], 0
    for made in node.outputs:
        part = axes.of(made)[along]
        if whole is None or part is None:
            keep_all(axes, node)
            return
        axes.tie(whole[start : start + len(part)], part)
        tie_all(axes, x, made, but=[along])
        start += len(part)


def cut(axes: Axes, node: ir.Node) -> None:
    """Slice: along each axis cut, the run that it takes; where that is not a known run, the axis stays."""
    x, (made,) = node.inputs[0], node.outputs
    assert x is not None
    given, target = axes.of(x), axes.of(made)
    slices = find_slices(node, [None if ids is None else len(ids) for ids in given])
    if slices is None:
        keep_all(axes, node)
        return
    for axis, run in slices.items():
        ids = given[axis]
        if run is not None and ids is not None:
            axes.tie(ids[run], target[axis])
        else:
            axes.keep(ids)
            axes.keep(target[axis])
    tie_all(axes, x, made, but=list(slices))


def squeeze(axes: Axes, node: ir.Node) -> None:
    """Squeeze and Unsqueeze: axes of length 1 come and go, the others pass in their order."""
    x, (made,) = node.inputs[0], node.outputs
    assert x is not None
    longer, shorter = (made, x) if node.op_type == "Unsqueeze" else (x, made)
    chosen = whole_numbers(node, 1, "axes")
    rank = len(axes.of(longer))
    gone = {axis % rank for axis in chosen} if chosen is not None else set()
    rest = [axis for axis in range(rank) if axis not in gone]
    if len(rest) != len(axes.of(shorter)):
        keep_all(axes, node)
        return
    for index, axis in enumerate(rest):
        axes.tie(axes.of(longer)[axis], axes.of(shorter)[index])
    for axis in gone:
        axes.keep(axes.of(longer)[axis])


def reshape(axes: Axes, node: ir.Node) -> None:
    """Reshape and Flatten: runs of axes that hold the same elements.

    Where several axes are one elsewhere, the grain tells which of them carries the units: of heads and of the features
    within them, each head is a run of the one axis, and each feature has a place in every run.
    """
    x, (made,) = node.inputs[0], node.outputs
    assert x is not None
    runs = _runs(axes.of(x), axes.of(made))
    for run in runs:
        _tie_runs(axes, x, made, run)
    if node.op_type == "Reshape":
        keep_computed(axes, node.inputs[1], made)


def _runs(theirs: Sequence[Ids | None], ours: Sequence[Ids | None]) -> list[tuple[list[int], list[int]]]:
    """Runs of axes of equal product, from both ends; at most one run may hold axes of free length."""
    front = _matched(theirs, ours)
    used = (sum(len(run[0]) for run in front), sum(len(run[1]) for run in front))
    rest = (theirs[used[0] :], ours[used[1] :])
    back = _matched(rest[0][::-1], rest[1][::-1])
    runs = list(front)
    for left, right in back:
        runs.append(([len(theirs) - 1 - axis for axis in left][::-1], [len(ours) - 1 - axis for axis in right][::-1]))
    covered = (sum(len(run[0]) for run in runs), sum(len(run[1]) for run in runs))
    if covered == (len(theirs), len(ours)):
        return runs
    middle = (
        [axis for axis in range(len(theirs)) if all(axis not in run[0] for run in runs)],
        [axis for axis in range(len(ours)) if all(axis not in run[1] for run in runs)],
    )
    return [*runs, middle]


def _matched(theirs: Sequence[Ids | None], ours: Sequence[Ids | None]) -> list[tuple[list[int], list[int]]]:
    """Runs from the front, as far as lengths are known on both sides and fit."""
    runs: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(theirs) and j < len(ours):
        left, right = [i], [j]
        while True:
            if any(theirs[axis] is None for axis in left) or any(ours[axis] is None for axis in right):
                return runs
            products = (_product(theirs, left), _product(ours, right))
            if products[0] == products[1]:
                break
            if products[0] < products[1]:
                left.append(left[-1] + 1)
            else:
                right.append(right[-1] + 1)
            if left[-1] >= len(theirs) or right[-1] >= len(ours):
                return runs
        runs.append((left, right))
        i, j = left[-1] + 1, right[-1] + 1
    return runs


def _product(all_ids: Sequence[Ids | None], chosen: Sequence[int]) -> int:
    return math.prod(len(ids) for axis in chosen if (ids := all_ids[axis]) is not None)


def _tie_runs(axes: Axes, x: ir.Value, made: ir.Value, run: tuple[list[int], list[int]]) -> None:
    theirs, ours = ([axes.of(value)[axis] for axis in side] for value, side in zip((x, made), run, strict=True))
    if len(theirs) == len(ours) == 1:
        axes.tie(theirs[0], ours[0])
        return
    if any(ids is None for ids in (*theirs, *ours)):
        _tie_behind_free(axes, theirs, ours)
        return
    if not theirs or not ours or len(theirs) > 1 < len(ours):
        for ids in (*theirs, *ours):
            axes.keep(ids)
        return
    splits = len(ours) > 1
    _tie_carrier(axes, made if splits else x, run[splits], (theirs if splits else ours)[0])


def _tie_carrier(axes: Axes, value: ir.Value, several: Sequence[int], one: Ids | None) -> None:
    """Several axes are one elsewhere: one of them carries the units, the others stay."""
    carrier = axes.carrier(value, several)
    lengths = []
    for axis in several:
        ids = axes.of(value)[axis]
        assert ids is not None
        lengths.append(len(ids))
        if axis != carrier:
            axes.beside.append(ids)
    place = np.indices(lengths)[several.index(carrier)].reshape(-1)  # [product of lengths]
    carried = axes.of(value)[carrier]
    assert carried is not None
    axes.tie(carried[place], one)


def _tie_behind_free(axes: Axes, theirs: Sequence[Ids | None], ours: Sequence[Ids | None]) -> None:
    """Runs with a free axis in front: where one last axis is a multiple of the other, its indices repeat the other's.

    So heads go into a free batch axis, and their features stay behind.
    """
    left, right = (side[-1] if side else None for side in (theirs, ours))
    if left is not None and right is not None and max(len(left), len(right)) % min(len(left), len(right)) == 0:
        longer, shorter = sorted((left, right), key=len, reverse=True)
        axes.tie(longer, np.tile(shorter, len(longer) // len(shorter)))
        theirs, ours = theirs[:-1], ours[:-1]
    for ids in (*theirs, *ours):
        axes.keep(ids)


def expand(axes: Axes, node: ir.Node) -> None:
    """Expand: what is broadcast to a target."""
    x, (made,) = node.inputs[0], node.outputs
    assert x is not None
    tie_broadcast(axes, x, made)
    keep_computed(axes, node.inputs[1], made)


def fill(axes: Axes, node: ir.Node) -> None:
    """ConstantOfShape: its axes go with what they meet, where their lengths are written down."""
    keep_computed(axes, node.inputs[0], node.outputs[0])


def gather(axes: Axes, node: ir.Node) -> None:
    """Gather: the axis it takes from stays; of a table the features pass."""
    data, indices = node.inputs[:2]
    (made,) = node.outputs
    assert data is not None
    assert indices is not None
    given, target = axes.of(data), axes.of(made)
    along = int(node.attributes.get_int("axis", 0)) % max(len(given), 1)
    axes.keep(given[along])
    depth = len(axes.of(indices))
    if len(target) != len(given) - 1 + depth:
        keep_all(axes, node)
        return
    rest = [axis for axis in range(len(given)) if axis != along]
    for axis in rest:
        axes.tie(given[axis], target[axis if axis < along else axis - 1 + depth])
    for axis in range(along, along + depth):
        axes.keep(target[axis])


def gather_at_places(axes: Axes, node: ir.Node) -> None:
    """GatherND: the axes that places are told along stay, those behind them pass."""
    data, indices = node.inputs[:2]
    (made,) = node.outputs
    assert data is not None
    assert indices is not None
    given, target, told = axes.of(data), axes.of(made), axes.of(indices)[-1]
    passing = 0 if told is None else len(given) - len(told)
    if told is None or passing < 0 or int(node.attributes.get_int("batch_dims", 0)):
        keep_all(axes, node)
        return
    for ids in (*given[: len(told)], *target[: len(target) - passing]):
        axes.keep(ids)
    for ids, passed in zip(given[len(told) :], target[len(target) - passing :], strict=True):
        axes.tie(ids, passed)


def pad(axes: Axes, node: ir.Node) -> None:
    """Pad: an axis that grows by zeros holds what it held, between units of its own; other axes that change stay."""
    x, (made,) = node.inputs[0], node.outputs
    assert x is not None
    given, target = axes.of(x), axes.of(made)
    amounts = find_pads(node, len(given))
    if amounts is None:
        keep_all(axes, node)
        return
    for axis, (before, behind) in amounts.items():
        ids, grown = given[axis], target[axis]
        if ids is not None and grown is not None and min(before, behind) >= 0 and pads_zeros(node):
            axes.tie(ids, grown[before : before + len(ids)])
        else:
            axes.keep(ids)
            axes.keep(grown)
    tie_all(axes, x, made, but=list(amounts))


def resize(axes: Axes, node: ir.Node) -> None:
    """Resize: batch and channels pass, space is read as a whole."""
    x, (made,) = node.inputs[0], node.outputs
    assert x is not None
    for axis, (ids, target) in enumerate(zip(axes.of(x), axes.of(made), strict=True)):
        if axis < 2:
            axes.tie(ids, target)
        else:
            axes.keep(ids)
            axes.keep(target)


def depth_to_space(axes: Axes, node: ir.Node) -> None:
    """DepthToSpace: a channel of the result is a block of channels, side by side or spread over the axis."""
    x, (made,) = node.inputs[0], node.outputs
    assert x is not None
    given, out = axes.of(x)[1], axes.of(made)[1]
    axes.tie(axes.of(x)[0], axes.of(made)[0])
    if given is not None and out is not None:
        block = len(given) // len(out)
        together = node.attributes.get_string("mode", "DCR") == "CRD"
        axes.tie(given, np.repeat(out, block) if together else np.tile(out, block))
    keep_space(axes, x, made)
