"""What nodes say of lengths themselves: axes, bounds of slices, targets of reshapes; and where that is written."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

Place = tuple[ir.Value, int]  # an initializer, and the entry of it


def whole_numbers(node: ir.Node, index: int, attribute: str) -> list[int] | None:
    """Whole numbers that are an input of newer opsets and an attribute of older ones; None where they are computed."""
    value = node.inputs[index] if index < len(node.inputs) else None
    if value is not None:
        return None if value.const_value is None else [int(one) for one in value.const_value.numpy().reshape(-1)]
    found = node.attributes.get(attribute)
    return None if found is None else [int(one) for one in found.as_ints()]


def written(target: ir.Value | None) -> list[Place | None] | None:
    """Where each entry of a list of lengths is written, None for one that is computed; None where even their number is.

    Exporters put targets together of what is known and what is computed: ``Concat(batch, [4], [-1])``.
    """
    if target is None:
        return None
    if target.const_value is not None:
        return [(target, index) for index in range(target.const_value.size)]
    node = target.producer()
    if node is not None and node.op_type == "Concat" and node.domain == "":
        parts = [written(part) for part in node.inputs]
        known = [part for part in parts if part is not None]
        return [entry for part in known for entry in part] if len(known) == len(parts) else None
    count = target.shape[0] if target.shape is not None and len(target.shape) == 1 else None
    return [None] * count if isinstance(count, int) else None


def find_pads(node: ir.Node, rank: int) -> dict[int, tuple[int, int]] | None:
    """What a Pad adds before and behind each axis that grows or shrinks; None where that is computed.

    Args:
        node: the Pad.
        rank: how many axes what it reads has.
    """
    amounts, chosen = whole_numbers(node, 1, "pads"), whole_numbers(node, 3, "axes")
    if amounts is None or (len(node.inputs) > 3 and node.inputs[3] is not None and chosen is None):
        return None
    axes = [axis % rank for axis in chosen] if chosen is not None else list(range(rank))
    pairs = zip(amounts[: len(axes)], amounts[len(axes) :], strict=True)
    return {axis: pair for axis, pair in zip(axes, pairs, strict=True) if pair != (0, 0)}


def pads_zeros(node: ir.Node) -> bool:
    """Whether what a Pad adds is zero."""
    if node.attributes.get_string("mode", "constant") != "constant":
        return False
    value = node.inputs[2] if len(node.inputs) > 2 else None
    if value is None:
        return node.attributes.get_float("value", 0.0) == 0.0
    return value.const_value is not None and not value.const_value.numpy().any()


def find_slices(node: ir.Node, lengths: Sequence[int | None]) -> dict[int, slice | None] | None:
    """What a Slice takes of each axis that it names, None where that is not a known run; None where it cannot be told.

    Args:
        node: the Slice.
        lengths: of the axes of what it reads, None for a free one.
    """
    starts, ends, axes = (
        whole_numbers(node, index, name) for index, name in ((1, "starts"), (2, "ends"), (3, "axes"))
    )  # fmt: skip
    steps = whole_numbers(node, 4, "steps")
    names_axes = (len(node.inputs) > 3 and node.inputs[3] is not None) or "axes" in node.attributes
    if names_axes and axes is None:
        return None
    axes = axes if axes is not None else list(range(len(lengths if starts is None else starts)))
    single = steps is None and not (len(node.inputs) > 4 and node.inputs[4] is not None)
    found: dict[int, slice | None] = {}
    for number, axis in enumerate(axes):
        place, length = axis % len(lengths), lengths[axis % len(lengths)]
        found[place] = None
        runs = single or (steps is not None and steps[number] == 1)
        if starts is not None and ends is not None and length is not None and runs:
            first, last, _ = slice(starts[number], ends[number]).indices(length)
            found[place] = slice(first, max(first, last))
    return found
