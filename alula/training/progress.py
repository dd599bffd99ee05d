"""A bar on standard error while something runs that takes long, where somebody is looking."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from alula.errors import require
from alula.training.trainer import Progress

if TYPE_CHECKING:
    from rich.progress import Progress as Bars


@contextmanager
def showing(title: str) -> Iterator[Callable[[Progress], None]]:
    """A function that takes where training stands, and shows it, with the time left, on a terminal."""
    with _bars() as bars:
        task = bars.add_task(title, total=None)

        def show(progress: Progress) -> None:
            score = "" if progress.score is None else f", score {progress.score:.4g}"
            text = f"{title}: loss {progress.loss:.3g}{score}"
            bars.update(task, description=text, completed=progress.step, total=progress.steps)

        yield show


@contextmanager
def counting(title: str) -> Iterator[Callable[[int, int], None]]:
    """A function that takes the steps that are done, and all, and shows them, with the time left, on a terminal."""
    with _bars() as bars:
        task = bars.add_task(title, total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)


def _bars() -> Bars:
    require("rich", "compress")
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    console = Console(stderr=True, highlight=False)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Bars(*columns, console=console, transient=True, disable=not console.is_terminal)
