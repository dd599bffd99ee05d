"""How sure a score, and the difference of two, is on the examples it was taken on: intervals for plots and tables.

These intervals are about the examples that the search has seen, one candidate at a time: they say how far noise may
reach, and are no certificate (see :mod:`alula.measurement.certificate`).

=====================  =================================================================================
scores                 interval
=====================  =================================================================================
all 0 or 1             Clopper-Pearson for the score, the exact paired bound on either side for the drop
other                  percentile bootstrap over examples (Efron and Tibshirani 1993, chapter 13)
=====================  =================================================================================
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import numpy as np

from alula.measurement.measurement import Measurement
from alula.numerics.bounds import clopper_pearson_interval, exact_paired_upper_bound

if TYPE_CHECKING:
    from alula.task import Task

CONFIDENCE: Final = 0.95
RESAMPLES: Final = 400


def measure_score(values: np.ndarray, score: float, task: Task, *, seed: int = 0) -> Measurement:
    """A score with its interval.

    Args:
        values: scores per example [n], or parts [n, k] where the task has an aggregate.
        score: what they come to.
        task: gives the bounds and the aggregate.
        seed: of resampling.
    """
    n = len(values)
    if _right_or_wrong(task, values):
        low, high = clopper_pearson_interval(round(float(values.sum())), n, 1 - CONFIDENCE)
        return _measured(score, low, high, n, "Clopper-Pearson interval")
    summarise = task.aggregate or _mean
    return _bootstrapped(score, lambda rows: summarise(values[rows]), n, seed)


def measure_drop(before: np.ndarray, after: np.ndarray, drop: float, task: Task, *, seed: int = 0) -> Measurement:
    """How much a candidate lost, with its interval, from scores of both models on the same examples.

    Args:
        before: the original's scores [n], or parts [n, k].
        after: the candidate's, in the same order.
        drop: what they come to; positive when the candidate is worse.
        task: gives the bounds, the aggregate and the direction.
        seed: of resampling.
    """
    n, sign = len(before), 1 if task.higher_is_better else -1
    if _right_or_wrong(task, before, after):
        lost, gained = int((sign * (before - after) > 0).sum()), int((sign * (before - after) < 0).sum())
        half = (1 - CONFIDENCE) / 2
        low = -exact_paired_upper_bound(gained, lost, n, half)
        return _measured(drop, low, exact_paired_upper_bound(lost, gained, n, half), n, "exact paired interval")
    summarise = task.aggregate or _mean
    return _bootstrapped(drop, lambda rows: sign * (summarise(before[rows]) - summarise(after[rows])), n, seed)


def _right_or_wrong(task: Task, *scores: np.ndarray) -> bool:
    if task.aggregate is not None or task.bounds not in (None, (0, 1)):
        return False
    return all(bool(np.isin(values, (0, 1)).all()) for values in scores)


def _mean(values: np.ndarray) -> float:
    return float(values.mean())


def _bootstrapped(value: float, statistic: Callable[[np.ndarray], float], n: int, seed: int) -> Measurement:
    """The value with the middle of what resampled examples give; alone where some of these give nothing."""
    random = np.random.default_rng(seed)
    try:
        drawn = np.array([statistic(random.integers(n, size=n)) for _ in range(RESAMPLES)], np.float64)
    except Exception:  # noqa: BLE001 - the aggregate is any code of the user's, and may need an example of each class
        drawn = np.array([np.nan])
    if not np.isfinite(drawn).all():
        return Measurement(value, "", n=n, method="no interval: the metric is undefined for some samples")
    low, high = np.quantile(drawn, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return _measured(value, float(low), float(high), n, f"percentile bootstrap, {RESAMPLES} samples of the examples")


def _measured(value: float, low: float, high: float, n: int, method: str) -> Measurement:
    return Measurement(value, "", min(low, value), max(high, value), CONFIDENCE, n, method)
