"""The front door from Python: search, certify, and write the model and the page that explains it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from alula.budget import Budget
from alula.errors import BudgetError, DataError, StorageError, TargetError
from alula.report import write_report
from alula.search.explore import compress as search
from alula.targets import OnnxRuntime
from alula.task import Task

if TYPE_CHECKING:
    from alula.search.events import Event
    from alula.search.result import Frontier
    from alula.targets import Target


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
    folder = _checked(task, budget, target, out, seed)
    frontier = search(task, budget or Budget(), target or OnnxRuntime(), folder, seed=seed, on_event=on_event)
    write_report(frontier, folder)
    return frontier


def _checked(task: object, budget: object, target: object, out: object, seed: object) -> Path:
    """The folder to write to; what is no task, budget, target, path or seed is refused by name."""
    if not isinstance(task, Task):
        raise DataError(f"compress takes a Task, got {type(task).__name__}; task_from_arrays and open_task make one")
    if budget is not None and not isinstance(budget, Budget):
        raise BudgetError(f"compress takes a Budget, got {budget!r}; write Budget(max_drop={budget!r})")
    if isinstance(target, str) or (target is not None and not hasattr(target, "traits")):
        raise TargetError(f"compress takes a target, got {target!r}; make one with OnnxRuntime() or OpenVino()")
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise DataError(f"seed must be a whole number of at least 0, got {seed!r}")
    if not isinstance(out, str | Path):
        raise StorageError(f"out must be the path of a folder, got {out!r}")
    return Path(out)
