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
        (task(lambda run, examples: run({"z": ROW})), "inputs must be"),
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
