"""Running a task's scorer over examples, and checking what it gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from alula.errors import AlulaError, DataError, at
from alula.examples import read_example
from alula.task import Run, Task
from alula.task_files import raised_at

_Part = TypeVar("_Part")
_ROUNDING = 1e-6  # of the width of the bounds: what a score may lie outside for rounding's sake


@dataclass(frozen=True, slots=True, eq=False)
class Scores:
    """What a scorer gave.

    Attributes:
        values: one score per example [n], or parts [n, k] where the task has an aggregate.
        score: their mean, or the aggregate of the parts.
    """

    values: np.ndarray
    score: float

    @property
    def n(self) -> int:
        """Number of examples."""
        return len(self.values)


def score(
    task: Task,
    run: Run,
    examples: Sequence[Any],
    *,
    chunk: int = 32,
    on_progress: Callable[[int, int], None] | None = None,
) -> Scores:
    """Score what ``run`` runs on the examples, ``chunk`` of them at a time.

    Args:
        task: gives the scorer, its bounds and its aggregate.
        run: runs a part of the model that is scored.
        examples: what to score on.
        chunk: examples per call of the scorer.
        on_progress: called with the number of examples done, and of all.

    Raises:
        DataError: the scorer raises, or gives not one finite real score inside the bounds per example.
    """
    if len(examples) == 0:
        raise DataError("there are no examples to score on")
    chunks: list[np.ndarray] = []
    for start in range(0, len(examples), chunk):
        indices = range(start, min(start + chunk, len(examples)))
        place = f"examples {indices[0]}..{indices[-1]}"
        values = call_scorer(task.scorer, run, [read_example(examples, index) for index in indices], place)
        with at(f"scorer on {place}"):
            chunks.append(_check(task, values, indices))
            if chunks[0].shape[1:] != chunks[-1].shape[1:]:
                raise DataError(f"gave {chunks[-1].shape[1:]} numbers per example, and {chunks[0].shape[1:]} before")
        if on_progress is not None:
            on_progress(indices[-1] + 1, len(examples))
    values = np.concatenate(chunks)
    return Scores(values, _summarise(task, values))


def drop(original: Scores, candidate: Scores, task: Task) -> float:
    """How much worse the candidate scores than the original, in score units; positive means worse.

    Raises:
        DataError: the two were scored on different numbers of examples.
    """
    if original.n != candidate.n:
        raise DataError(f"a drop needs the same examples twice, got {original.n} and {candidate.n} of them")
    return (original.score - candidate.score) * (1 if task.higher_is_better else -1)


def call_scorer(scorer: Callable[[Any, Sequence[Any]], Any], run: Run, examples: Sequence[Any], place: str) -> Any:
    """What a scorer gives for some examples; ``place`` names them in messages.

    Raises:
        DataError: the scorer raises.
        AlulaError: what it runs does; the same kind, with the place.
    """
    try:
        return scorer(run, examples)
    except AlulaError as error:
        raise type(error)(f"scorer on {place}: {error}") from error
    except Exception as error:  # the scorer is any code of the user's
        line = _line_of_scorer(scorer, error)
        raise DataError(f"scorer failed on {place}: {type(error).__name__}: {error}{line}") from error


def part_named(parts: Mapping[str, _Part], name: str) -> _Part:
    """The part that a scorer runs.

    Raises:
        DataError: the task has no such part.
    """
    if name not in parts:
        raise DataError(f"the task has the parts {', '.join(sorted(parts))}; its scorer ran {name!r}")
    return parts[name]


def _line_of_scorer(scorer: Callable[..., Any], error: Exception) -> str:
    code = getattr(scorer, "__code__", None) or getattr(type(scorer).__call__, "__code__", None)
    line = "" if code is None else raised_at(error, Path(code.co_filename))
    return f" ({line})" if line else ""


def _check(task: Task, given: Any, indices: range) -> np.ndarray:
    """The scorer's result as float64 [n] or [n, k], or DataError that says what is wrong with it."""
    try:
        values = np.asarray(given)
    except (ValueError, TypeError, RuntimeError) as error:
        raise DataError(f"must give an array of scores, got {type(given).__name__}: {error}") from error
    if values.dtype.kind not in "iubf":
        raise DataError(f"must give real numbers, got {type(given).__name__} of {values.dtype}")
    corpus = task.aggregate is not None
    wanted = f"[{len(indices)}, parts]" if corpus else f"[{len(indices)}]"
    if corpus and values.ndim == 1:
        values = values[:, None]
    if values.ndim != (2 if corpus else 1) or len(values) != len(indices):
        hint = "; parts of a corpus metric need an aggregate in the Task" if values.ndim == 2 else ""
        raise DataError(f"must give one score per example, {wanted}; got {list(values.shape)}{hint}")
    values = values.astype(np.float64)
    _check_finite(values, indices)
    return values if corpus else _check_bounds(task, values, indices)


def _check_finite(values: np.ndarray, indices: range) -> None:
    broken = ~np.isfinite(values).reshape(len(values), -1).all(axis=1)
    if broken.any():
        index = indices[int(np.argmax(broken))]
        raise DataError(
            f"gave {values[broken][0]} for example {index}; scores must be finite: do the outputs overflow, or is the "
            "example unlabelled?"
        )


def _check_bounds(task: Task, values: np.ndarray, indices: range) -> np.ndarray:
    if task.bounds is None:
        return values
    low, high = task.bounds
    slack = _ROUNDING * (high - low)
    outside = (values < low - slack) | (values > high + slack)
    if outside.any():
        place = int(np.argmax(outside))
        raise DataError(
            f"gave {values[place]:g} for example {indices[place]}, outside the task's bounds [{low:g}, {high:g}]; "
            "set Task(bounds=...) to the least and greatest score, or to None"
        )
    clipped: np.ndarray = np.clip(values, low, high)
    return clipped


def _summarise(task: Task, values: np.ndarray) -> float:
    if task.aggregate is None:
        return float(values.mean())
    with at(f"metric {task.metric!r} of {len(values)} examples"):
        try:
            result = float(task.aggregate(values))
        except AlulaError:
            raise
        except Exception as error:  # the aggregate is any code of the user's
            raise DataError(f"aggregate failed: {type(error).__name__}: {error}") from error
        if not np.isfinite(result):
            raise DataError(f"aggregate gave {result}; it must be finite: is a class missing, or are labels constant?")
        return float(_check_bounds(task, np.array([result]), range(1))[0])
