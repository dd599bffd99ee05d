"""Reductions inside the graph: what one run shows of one tensor, found while it is computed.

They leave nothing behind but a few numbers: the runtime reuses the memory of each activation as it always does, so that
calibration needs hardly more than inference, and it reduces with all of its threads.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import onnx_ir as ir

from alula.graph.editing import Editor
from alula.graph.summaries import SAMPLE_LIMIT, Reduction, Summary, stride_of

REDUCTIONS: Final = ("ReduceMin", "ReduceMax", "ReduceSum")  # in the order of a Reduction
END: Final = np.iinfo(np.int64).max
STEPS: Final = (
    1,
    2,
    3,
    5,
    7,
    11,
    13,
    17,
    23,
    29,
    37,
    47,
    59,
    73,
    97,
    127,
    163,
    211,
    269,
    337,
    421,
    541,
    677,
    853,
    1069,
    1361,
    1709,
    2137,
    2677,
    3347,
    4201,
    5261,
    6577,
    8231,
    10289,
)  # 1 and primes, each about a quarter longer


@dataclass(frozen=True, slots=True)
class Probe:
    """The names of what the nodes added for one tensor give out."""

    shape: str
    reductions: Mapping[int | None, tuple[str, ...]]
    sample: str | None = None

    @property
    def outputs(self) -> tuple[str, ...]:
        """All names."""
        reduced = (name for names in self.reductions.values() for name in names)
        return (self.shape, *reduced, *([self.sample] if self.sample else []))

    def read(self, outputs: Mapping[str, np.ndarray]) -> Summary:
        """The summary, from what a run gave out."""
        shape = tuple(int(length) for length in outputs[self.shape])
        if 0 in shape:
            return Summary(shape, {})
        reductions = {
            axis: _join([outputs[name] for name in names], whole=axis is None)
            for axis, names in self.reductions.items()
        }
        return Summary(shape, reductions, outputs[self.sample] if self.sample else None)


def _join(rows: Sequence[np.ndarray], *, whole: bool) -> Reduction:  # [N, C] or [C] each -> [C]
    """One reduction of those of all rows; totals in float64."""
    minimum, maximum, total = rows
    if not whole and (minimum.ndim == 1 or len(minimum) == 1):
        channels = minimum.shape[-1]
        return Reduction(
            minimum.reshape(channels), maximum.reshape(channels), total.reshape(channels).astype(np.float64)
        )
    axes = None if whole else 0
    return Reduction(minimum.min(axis=axes), maximum.max(axis=axes), total.sum(axis=axes, dtype=np.float64))


def can_probe(value: ir.Value, axes: Iterable[int]) -> bool:
    """Whether it is known how many axes the tensor has, and they are as many as its channels' axes need."""
    if value.producer() is None or value.shape is None:
        return False
    rank = len(value.shape)
    return all(-rank <= axis < rank for axis in axes)


def add_probe(editor: Editor, value: ir.Value, axes: Iterable[int], *, sample: bool) -> Probe:
    """Add the nodes that summarise a tensor, right behind the node that computes it, and their outputs."""
    assert value.shape is not None
    rank = len(value.shape)
    shape = _insert(editor, "Shape", [value])
    source = value
    if value.dtype != ir.DataType.FLOAT:
        source = _insert(editor, "Cast", [value], {"to": int(ir.DataType.FLOAT)})
        source.shape = value.shape
    reductions = {
        axis: tuple(_reduce(editor, operator, source, _reduced_axes(rank, axis)) for operator in REDUCTIONS)
        for axis in (tuple(axes) or (None,))
    }
    taken = _take_sample(editor, source, shape) if sample else None
    return Probe(_expose(editor, shape, ir.DataType.INT64), reductions, taken)


def add_activity(editor: Editor, value: ir.Value) -> tuple[str, str]:
    """Add a tensor's absolute values, and where it is 0 as 0 and 1; the names of both."""
    producer, kind = value.producer(), value.dtype or ir.DataType.FLOAT
    zero = editor.constant(f"zero_{kind.name.lower()}", np.array(0, kind.numpy()))
    made = []
    for operator, inputs in (("Abs", [value]), ("Equal", [value, zero])):
        node = editor.insert(operator, inputs, f"{value.name}/{operator}", after=producer)
        if operator == "Equal":
            node.outputs[0].dtype = ir.DataType.BOOL
            node = editor.insert("Cast", node.outputs, f"{value.name}/zeros", after=node,
                                 attributes={"to": int(ir.DataType.FLOAT)})  # fmt: skip
        found = node.outputs[0]
        found.shape, found.dtype = value.shape, kind if operator == "Abs" else ir.DataType.FLOAT
        made.append(str(found.name))
    return made[0], made[1]


def _reduced_axes(rank: int, kept: int | None) -> list[int]:
    """All axes but the channels' and, where others remain, the first one: rows are added up in float64, by numpy."""
    others = [axis for axis in range(rank) if kept is None or axis != kept % rank]
    return others[1:] if len(others) > 1 and others[0] == 0 else others


def _reduce(editor: Editor, operator: str, value: ir.Value, axes: Sequence[int]) -> str:
    """Reduce along the axes: an attribute in older opsets, an input since."""
    opset = editor.model.opset_imports.get("", END)
    attributes: dict[str, int | list[int]] = {"keepdims": 0}
    inputs = [value]
    if not axes and value.shape is not None and len(value.shape) == 1:  # each value is a channel
        return _expose(editor, _insert(editor, "Identity", inputs))
    if opset < (13 if operator == "ReduceSum" else 18):
        attributes |= {"axes": list(axes)} if axes else {}
    elif axes:
        inputs.append(editor.constant(f"axes_{'_'.join(map(str, axes))}", np.array(axes, np.int64)))
    return _expose(editor, _insert(editor, operator, inputs, attributes))


def _take_sample(editor: Editor, value: ir.Value, shape: ir.Value) -> str:
    """Evenly spaced values, in memory order, as :func:`alula.graph.summaries.summarise` takes them of each row."""
    step = _step(editor, value, shape)
    flat = _insert(editor, "Reshape", [value, _number(editor, "flat", -1)], after=step.producer())
    bounds = (_number(editor, name, number) for name, number in (("start", 0), ("end", END), ("axis", 0)))
    return _expose(editor, _insert(editor, "Slice", [flat, *bounds, step]))


def _step(editor: Editor, value: ir.Value, shape: ir.Value) -> ir.Value:
    """The step of a sample, [1]: known beforehand, or of the primes that miss no channel the least that will do."""
    lengths = list(value.shape or ())[1:]
    known = math.prod(length for length in lengths if isinstance(length, int))
    if all(isinstance(length, int) for length in lengths):
        step = stride_of(known, SAMPLE_LIMIT)
        return _number(editor, f"step_{step}", step)
    steps = [step for step in STEPS if math.gcd(step, known) == 1]
    size = _insert(editor, "ReduceProd", [shape], {"keepdims": 1})
    first = _insert(editor, "Gather", [shape, _number(editor, "axis", 0)], after=size.producer())
    rows = _insert(editor, "Max", [first, _number(editor, "one", 1)])
    row_length = _insert(editor, "Div", [size, rows], after=rows.producer())
    least = _insert(editor, "Div", [row_length, _number(editor, "limit", SAMPLE_LIMIT)])
    choices = editor.constant("steps", np.array(steps, np.int64))
    enough = _insert(editor, "Less", [least, choices])
    fitting = _insert(editor, "Where", [enough, choices, _number(editor, "longest_step", steps[-1])])
    return _insert(editor, "ReduceMin", [fitting], {"keepdims": 1})


def _number(editor: Editor, name: str, number: int) -> ir.Value:
    return editor.constant(name, np.array([number], np.int64))


def _insert(
    editor: Editor,
    operator: str,
    inputs: Sequence[ir.Value],
    attributes: Mapping[str, int | list[int]] | None = None,
    *,
    after: ir.Node | None = None,
) -> ir.Value:
    """What a new node gives out, which stands behind the one that computes its first input or another one."""
    name = f"{inputs[0].name}/{operator}"
    return editor.insert(operator, inputs, name, after=after or inputs[0].producer(), attributes=attributes).outputs[0]


def _expose(editor: Editor, value: ir.Value, data_type: ir.DataType = ir.DataType.FLOAT) -> str:
    """Make a tensor an output of the graph; its name."""
    value.type = ir.TensorType(data_type)
    editor.graph.outputs.append(value)
    return str(value.name)
