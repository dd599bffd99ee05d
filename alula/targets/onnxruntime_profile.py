"""Reading the events that ONNX Runtime's profiler writes: a JSON list, in microseconds."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from alula.targets.target import NodeTime

_SUFFIX: Final = "_kernel_time"
_HOLDERS: Final = frozenset({"If", "Loop", "Scan"})  # their time is that of the operators inside
_INTEGER: Final = re.compile(r"QLinear|Q[A-Z]|\w*Integer|DynamicQuantize(MatMul|LSTM)")
_TYPES: Final = {"float": "float32", "double": "float64"}

Events = Sequence[Mapping[str, Any]]


def read_profile(events: Events, runs: int, *, blocked_precision: str | None = None) -> tuple[NodeTime, ...]:
    """The time of each operator: the median over runs; the first run, which warms up, is left out.

    Args:
        events: what the profiler wrote.
        runs: how often the session ran, the first included.
        blocked_precision: what MatMulNBits computes in, which no event tells.
    """
    durations: dict[tuple[str, str], list[float]] = {}
    precisions: dict[tuple[str, str], str | None] = {}
    for event in events:
        name, facts = str(event.get("name", "")), event.get("args", {})
        operator = str(facts.get("op_name", ""))
        if event.get("cat") != "Node" or not name.endswith(_SUFFIX) or operator in _HOLDERS:
            continue
        key = (name.removesuffix(_SUFFIX), operator)
        durations.setdefault(key, []).append(float(event.get("dur", 0)))
        precisions[key] = blocked_precision if operator == "MatMulNBits" else _precision(operator, facts)
    return tuple(
        NodeTime(name, operator, _typical(taken, runs) / 1e3, precisions[name, operator])
        for (name, operator), taken in durations.items()
    )


def _typical(durations: Sequence[float], runs: int) -> float:
    """Of one run; an operator in a loop is executed several times in each."""
    if len(durations) % runs or runs < 2:
        return sum(durations) / runs
    per_run = np.reshape(durations, (runs, -1)).sum(axis=1)  # [runs]
    return float(np.median(per_run[1:]))


def _precision(operator: str, facts: Mapping[str, Any]) -> str | None:
    """Integer kernels are known by their name; others compute in the type of their first input."""
    if _INTEGER.match(operator):
        return "int8"
    inputs = facts.get("input_type_shape") or [{}]
    kind = next(iter(inputs[0]), None)
    return None if kind is None else _TYPES.get(kind, str(kind))
