"""What training is judged by: the score of a graph on data that it is not trained on, run as it will be shipped."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np

from alula.errors import DataError
from alula.graph.model import Model
from alula.task import Task, task_from_arrays

Score: TypeAlias = Callable[[Model], float]
"""How good a graph is; more is better."""

Validation: TypeAlias = Score | Task | tuple[Any, Any]
"""A function of the graph, a task (scored on its evaluation examples), or a pair of inputs and labels."""


def score_by(model: Model, validation: Validation) -> Score:
    """The score that a graph of this kind is judged by.

    Raises:
        DataError: a pair does not fit the graph, or a task has several parts.
    """
    if isinstance(validation, tuple | list):
        if len(validation) != 2:
            raise DataError(
                f"validation is score(model), a Task, or a pair of inputs and labels; got {len(validation)}"
            )
        inputs, labels = validation
        validation = task_from_arrays(model, inputs, labels, calibration=inputs, batch_size=128)
    if not isinstance(validation, Task):
        if not callable(validation):
            raise DataError(
                f"validation is score(model), a Task, or a pair of inputs and labels; got {type(validation).__name__}"
            )
        return validation
    if len(validation.parts) > 1:
        raise DataError(f"the task has the parts {sorted(validation.parts)}; give score(model) as a function instead")
    return _TaskScore(validation)


class _TaskScore:
    """The score of a task, signed so that more is better."""

    def __init__(self, task: Task) -> None:
        self._task = task

    def __call__(self, model: Model) -> float:
        """The score of a graph."""

        def run(feeds: Mapping[str, np.ndarray], part: str = "model") -> dict[str, np.ndarray]:  # noqa: ARG001
            return model.run(feeds)

        task = self._task
        parts = np.asarray(task.scorer(run, task.evaluation))
        value = float(parts.mean()) if task.aggregate is None else float(task.aggregate(parts))
        return value if task.higher_is_better else -value
