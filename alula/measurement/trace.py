"""What one example costs: the calls that the scorer makes for it, recorded once and replayed on every contender."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from alula.errors import DataError, TargetError
from alula.examples import read_example
from alula.graph.model import Model
from alula.measurement.score import call_scorer, part_named
from alula.targets import Artifact, Opened, Target

CANDIDATES = 9  # calibration examples, of which the one of median size is recorded

Trace = tuple[tuple[str, dict[str, np.ndarray]], ...]
log = logging.getLogger(__name__)


class Traceable(Protocol):
    """The part of a task that recording needs."""

    @property
    def parts(self) -> Mapping[str, Model]:
        """The networks by name."""
        ...

    @property
    def calibration(self) -> Sequence[Any]:
        """Examples."""
        ...

    @property
    def scorer(self) -> Callable[[Any, Sequence[Any]], Any]:
        """What runs the parts on examples."""
        ...


def record_trace(task: Traceable, limit: int = 32) -> Trace:
    """The (part, feeds) calls that the task's scorer makes for one calibration example, at most ``limit``.

    The example is the one of median size among the first 9, where size is the number of values fed in recorded calls;
    of equal ones the first, of two in the middle the smaller.

    Raises:
        DataError: there is no calibration example, or the scorer fails, runs no part or one that is not there.
    """
    if len(task.calibration) == 0:
        raise DataError("a trace needs one calibration example, and the task has none")
    recorded = [_record(task, index, limit) for index in range(min(CANDIDATES, len(task.calibration)))]
    sizes = [_count_values(calls) for calls, _ in recorded]
    trace, made = recorded[sizes.index(sorted(sizes)[(len(sizes) - 1) // 2])]
    if made > limit:
        log.warning("one example makes %d calls; the first %d are timed", made, limit)
    return trace


def _record(task: Traceable, index: int, limit: int) -> tuple[Trace, int]:
    """The calls that are made for one example, at most ``limit``, and how many there were."""
    calls: list[tuple[str, dict[str, np.ndarray]]] = []
    made = 0

    def run(feeds: Mapping[str, np.ndarray], part: str = "model") -> dict[str, np.ndarray]:
        nonlocal made
        model = part_named(task.parts, part)
        made += 1
        if made <= limit:  # copies: a scorer may change its state arrays in place
            calls.append((part, {name: np.array(array) for name, array in feeds.items()}))
        return model.run(feeds)

    call_scorer(task.scorer, run, [read_example(task.calibration, index)], f"calibration example {index}")
    if not calls:
        raise DataError(
            f"the scorer must run the model at least once for an example, and never did for calibration example {index}"
        )
    return tuple(calls), made


def _count_values(trace: Trace) -> int:
    return sum(array.size for _, feeds in trace for array in feeds.values())


def open_parts(target: Target, artifacts: Mapping[str, Artifact], trace: Trace) -> dict[str, Opened]:
    """The parts that a trace calls, opened.

    Raises:
        TargetError: an artifact is missing or cannot be opened.
    """
    needed = sorted({part for part, _ in trace})
    missing = [part for part in needed if part not in artifacts]
    if missing:
        raise TargetError(
            f"the trace runs {', '.join(missing)}; there are artifacts for {', '.join(sorted(artifacts))}"
        )
    return {part: target.open(artifacts[part]) for part in needed}


def replay(opened: Mapping[str, Opened], trace: Trace) -> None:
    """Make the calls of a trace once."""
    for part, feeds in trace:
        opened[part](feeds)
