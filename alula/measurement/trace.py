"""What one example costs: the calls that the scorer makes for it, recorded once and replayed on every contender."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from alula.errors import DataError, TargetError
from alula.examples import read_example
from alula.graph.model import Model
from alula.targets import Artifact, Opened, Target

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
    """The (part, feeds) calls that the task's scorer makes for its first calibration example, at most ``limit``.

    Raises:
        DataError: there is no calibration example, or the scorer runs no part or one that is not there.
    """
    if len(task.calibration) == 0:
        raise DataError("a trace needs one calibration example, and the task has none")
    calls: list[tuple[str, dict[str, np.ndarray]]] = []
    made = 0

    def run(feeds: Mapping[str, np.ndarray], part: str = "model") -> dict[str, np.ndarray]:
        nonlocal made
        if part not in task.parts:
            raise DataError(f"the task has the parts {', '.join(sorted(task.parts))}; its scorer ran {part!r}")
        made += 1
        if made <= limit:  # copies: a scorer may change its state arrays in place
            calls.append((part, {name: np.array(array) for name, array in feeds.items()}))
        return task.parts[part].run(feeds)

    task.scorer(run, [read_example(task.calibration, 0)])
    if not calls:
        raise DataError("the scorer must run the model at least once for an example, and it never did")
    if made > limit:
        log.warning("one example makes %d calls; the first %d are timed", made, limit)
    return tuple(calls)


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
