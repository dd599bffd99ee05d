"""The front door from Python: search, certify, and write the model and the page that explains it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from alula.budget import Budget
from alula.report import write_report
from alula.search.explore import compress as search
from alula.targets import OnnxRuntime

if TYPE_CHECKING:
    from alula.search.events import Event
    from alula.search.result import Frontier
    from alula.targets import Target
    from alula.task import Task


def compress(
    task: Task,
    budget: Budget | None = None,
    target: Target | None = None,
    *,
    out: str | Path,
    seed: int = 0,
    on_event: Callable[[Event], None] | None = None,
) -> Frontier:
    """Find the best candidate that holds the budget, certify it, and write it with its report to a folder.

    It always returns; ``frontier.distance`` says what is missing where no candidate held the budget. Stopped at any
    point, the same call goes on from the trials that were finished.

    Args:
        task: the networks, their data and how they are scored.
        budget: what may be lost and what to minimise; by default at most one point, as fast as possible.
        target: where the model will run; by default ONNX Runtime on this machine.
        out: gets the model, ``recipe.json``, ``result.json``, ``report.html`` and the store of trials.
        seed: of the split of the evaluation examples and of every drawn order.
        on_event: is told what happens.

    Raises:
        AlulaError: as :func:`alula.search.explore.compress`.
    """
    folder = Path(out)
    frontier = search(task, budget or Budget(), target or OnnxRuntime(), folder, seed=seed, on_event=on_event)
    write_report(frontier, folder)
    return frontier
