from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from alula.errors import DataError, TargetError
from alula.measurement.score import Scores, drop, score
from alula.task import Task
from tests.oracles.networks import linear

MODEL = linear()


def make(scorer, n=10, **changes):
    return Task({"model": MODEL}, [0], list(range(n)), scorer, **changes)


def run(feeds, part="model"):
    return MODEL.run(feeds)


def score_of(task, **options):
    return score(task, run, task.evaluation, **options)


def test_mean_of_all_chunks_in_order():
    progress = []
    result = score_of(
        make(lambda run, chunk: [i / 10 for i in chunk]), chunk=4, on_progress=lambda *step: progress.append(step)
    )
    assert result.values.tolist() == [i / 10 for i in range(10)]
    assert result.score == pytest.approx(0.45)
    assert (result.n, progress) == (10, [(4, 10), (8, 10), (10, 10)])


def test_chunks_change_nothing():
    task = make(lambda run, chunk: np.array([i % 3 == 0 for i in chunk]))
    assert all((score_of(task, chunk=k).values == score_of(task).values).all() for k in (1, 3, 100))


def test_aggregate_of_parts():
    task = make(lambda run, chunk: np.array([[i, 1] for i in chunk]), aggregate=lambda p: p[:, 0].sum() / 100)
    result = score_of(task, chunk=3)
    assert result.values.shape == (10, 2)
    assert result.score == 0.45
    one = make(lambda run, chunk: np.ones(len(chunk)), aggregate=lambda p: float(p.mean()))
    assert score_of(one).values.shape == (10, 1)


def test_drop_is_positive_when_worse():
    better, worse = Scores(np.ones(2), 0.9), Scores(np.ones(2), 0.7)
    task = make(lambda run, chunk: np.zeros(len(chunk)))
    assert drop(better, worse, task) == pytest.approx(0.2)
    lower = make(lambda run, chunk: np.zeros(len(chunk)), higher_is_better=False)
    assert drop(better, worse, lower) == pytest.approx(-0.2)
    with pytest.raises(DataError, match="same examples twice"):
        drop(better, Scores(np.ones(3), 0.7), task)


def test_rounding_outside_the_bounds_is_cut_off():
    assert score_of(make(lambda run, chunk: np.full(len(chunk), 1 + 1e-7))).score == 1.0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (lambda chunk: 0.5, r"one score per example, \[4\]; got \[\]"),
        (lambda chunk: np.zeros(3), r"one score per example, \[4\]; got \[3\]"),
        (lambda chunk: np.zeros((4, 2)), "need an aggregate"),
        (lambda chunk: None, "real numbers, got NoneType"),
        (lambda chunk: ["good"] * 4, "real numbers"),
        (lambda chunk: np.zeros(4, complex), "real numbers"),
        (lambda chunk: [[1], [1, 2]], "array of scores, got list"),
        (lambda chunk: [2.0, 0, 0, 0], r"gave 2 for example 0, outside the task's bounds \[0, 1\]"),
        (lambda chunk: [0, 0, np.nan, 0], "nan for example 2"),
        (lambda chunk: [0, np.inf, 0, 0], "inf for example 1"),
    ],
)
def test_a_wrong_result_is_said_with_its_place(given, message):
    with pytest.raises(DataError, match=rf"scorer on examples 0\.\.3: .*{message}"):
        score_of(make(lambda run, chunk: given(chunk)), chunk=4)


def test_the_example_is_named_in_later_chunks():
    task = make(lambda run, chunk: [np.nan if i == 7 else 1.0 for i in chunk])
    with pytest.raises(DataError, match=r"examples 6\.\.8: gave nan for example 7"):
        score_of(task, chunk=3)


def test_parts_must_stay_as_many():
    task = make(lambda run, chunk: np.ones((len(chunk), 1 + (chunk[0] > 0))), aggregate=lambda p: 0.0)
    with pytest.raises(DataError, match=r"gave \(2,\) numbers per example, and \(1,\) before"):
        score_of(task, chunk=5)


def test_a_scorer_that_raises_is_chained_with_its_line():
    def scorer(run, chunk):
        raise ValueError("no such word")

    line = scorer.__code__.co_firstlineno + 1
    with pytest.raises(
        DataError, match=rf"failed on examples 0\.\.9: ValueError: no such word \(.*:{line}\)"
    ) as caught:
        score_of(make(scorer))
    assert isinstance(caught.value.__cause__, ValueError)
    assert Path(__file__).name in str(caught.value)


def test_our_own_errors_keep_their_kind():
    def scorer(run, chunk):
        raise TargetError("runtime refused")

    with pytest.raises(TargetError, match=r"scorer on examples 0\.\.9: runtime refused"):
        score_of(make(scorer))


def test_keyboard_interrupt_passes_through():
    def scorer(run, chunk):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        score_of(make(scorer))


@pytest.mark.parametrize(
    ("aggregate", "message"),
    [
        (lambda parts: float("nan"), "aggregate gave nan"),
        (lambda parts: 3.0, "outside the task's bounds"),
        (lambda parts: parts["x"], "aggregate failed: IndexError"),
        (lambda parts: parts, "aggregate failed: TypeError"),
    ],
)
def test_a_wrong_aggregate_is_said(aggregate, message):
    task = make(lambda run, chunk: np.ones((len(chunk), 2)), aggregate=aggregate, metric="f9")
    with pytest.raises(DataError, match=f"metric 'f9' of 10 examples: .*{message}"):
        score_of(task)


def test_nothing_to_score():
    with pytest.raises(DataError, match="no examples"):
        score(make(lambda run, chunk: []), run, [])
