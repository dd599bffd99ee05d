from __future__ import annotations

import logging
from types import SimpleNamespace

import numpy as np
import pytest

from alula.errors import DataError, TargetError
from alula.measurement.trace import open_parts, record_trace, replay
from alula.targets import OnnxRuntime
from tests.oracles.runtimes import doubler, linear, trace_of

ROW = np.ones((1, 4), np.float32)


def task(scorer, calibration=(ROW, 2 * ROW), **parts):
    return SimpleNamespace(parts=parts or {"model": doubler()}, calibration=list(calibration), scorer=scorer)


def test_records_the_calls_of_one_example():
    def scorer(run, examples):
        assert len(examples) == 1
        state = examples[0].copy()
        for _ in range(3):
            state[:] = run({"x": state})["y"]  # in place: the record must not follow
        run({"x": state[:, :4]}, part="other")

    trace = record_trace(task(scorer, model=doubler(), other=doubler()))
    assert [part for part, _ in trace] == ["model", "model", "model", "other"]
    assert [feeds["x"][0, 0] for _, feeds in trace] == [1, 2, 4, 8]


def rows(*sizes):
    return [np.full((size, 4), position, np.float32) for position, size in enumerate(sizes)]


@pytest.mark.parametrize(
    ("sizes", "recorded"),
    [
        ((9, 1, 5), 2),
        ((9, 1, 5, 7), 2),  # of two in the middle the smaller
        ((4, 3, 3, 3, 2), 1),  # of equal ones the first
        ((1, 2, 3, 4, 5, 6, 7, 8, 9, 100, 100, 100, 100, 100, 100), 4),  # only the first 9 count
        ((8,), 0),
    ],
)
def test_the_example_of_median_size_is_recorded(sizes, recorded):
    trace = record_trace(task(lambda run, examples: run({"x": examples[0]}), calibration=rows(*sizes)))
    assert trace[0][1]["x"][0, 0] == recorded
    assert trace[0][1]["x"].shape == (sizes[recorded], 4)


def test_the_size_is_that_of_all_recorded_calls():
    def scorer(run, examples):
        for row in examples[0]:  # few rows in one call, or many calls of one row
            run({"x": row[None]})

    trace = record_trace(task(scorer, calibration=rows(9, 2, 4)))
    assert len(trace) == 4


def test_asks_the_user_s_sequence_for_single_examples_only():
    class Rows:  # takes no_slices: as many a dataset class does
        def __len__(self):
            return 2

        def __getitem__(self, index):
            return ROW * (int(index) + 1)

    given = SimpleNamespace(
        parts={"model": doubler()}, calibration=Rows(), scorer=lambda run, rows: run({"x": rows[0]})
    )
    assert len(record_trace(given)) == 1


def test_limit_is_kept_and_said(caplog):
    def scorer(run, examples):
        for _ in range(5):
            run({"x": examples[0]})

    with caplog.at_level(logging.WARNING):
        assert len(record_trace(task(scorer), limit=2)) == 2
    assert "5 calls; the first 2 are timed" in caplog.text


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (task(lambda run, examples: None), "at least once"),
        (task(lambda run, examples: run({"x": ROW}, part="decoder")), "has the parts model; its scorer ran 'decoder'"),
        (task(lambda run, examples: run({"x": ROW}), calibration=()), "has none"),
        (task(lambda run, examples: run({"z": ROW})), "scorer on calibration example 0: .*inputs must be"),
        (
            task(lambda run, examples: {}["label"]),
            r"scorer failed on calibration example 0: KeyError: 'label' \(.*test_trace\.py",
        ),
    ],
)
def test_bad_tasks(given, words):
    with pytest.raises(DataError, match=words):
        record_trace(given)


def test_opens_only_the_parts_that_are_called(tmp_path):
    target = OnnxRuntime(threads=1)
    artifacts = {"model": target.build(linear(), tmp_path, "a"), "unused": target.build(linear(), tmp_path, "b")}
    artifacts["unused"].path.unlink()
    opened = open_parts(target, artifacts, trace_of(linear()))
    assert set(opened) == {"model"}
    replay(opened, trace_of(linear(), calls=3))


def test_missing_part():
    with pytest.raises(TargetError, match="the trace runs model; there are artifacts for encoder"):
        open_parts(OnnxRuntime(threads=1), {"encoder": None}, trace_of(linear()))
