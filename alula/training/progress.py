"""A bar on standard error while training runs, where somebody is looking."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from alula.errors import require
from alula.training.trainer import Progress


@contextmanager
def showing(title: str) -> Iterator[Callable[[Progress], None]]:
    """A function that takes where a run stands, and shows it, with the time left, on a terminal."""
    require("rich", "compress")
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    console = Console(stderr=True, highlight=False)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Bars(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        task = bars.add_task(title, total=None)

        def show(progress: Progress) -> None:
            score = "" if progress.score is None else f", score {progress.score:.4g}"
            text = f"{title}: loss {progress.loss:.3g}{score}"
            bars.update(task, description=text, completed=progress.step, total=progress.steps)

        yield show
