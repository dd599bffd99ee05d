from __future__ import annotations

import logging

import numpy as np
import pytest

from alula.errors import DataError
from alula.measurement import measure_throughput
from alula.measurement.throughput import enlarge_trace
from alula.measurement.trace import open_parts
from alula.targets import OnnxRuntime, OpenVino
from tests.oracles.runtimes import doubler, linear, stateful, trace_of

TARGET = OnnxRuntime(threads=1)


def test_each_batch_size_that_fits(tmp_path):
    given = {name: {"model": TARGET.build(linear(512), tmp_path, name)} for name in ("original", "candidate")}
    results = measure_throughput(TARGET, given, trace_of(linear(512)), batches=(1, 8), seconds=0.05)
    for values in results.values():
        assert set(values) == {"throughput_batch1_per_s", "throughput_batch8_per_s"}
        assert values["throughput_batch1_per_s"].unit == "examples/s"
    # A row of a 512 x 512 product fetches all weights; eight rows fetch them once.
    faster = results["original"]["throughput_batch8_per_s"].value / results["original"]["throughput_batch1_per_s"].value
    assert faster > 1.2


def test_fixed_batch_is_left_out_and_said(tmp_path, caplog):
    model = doubler(batch=1)
    given = {"a": {"model": TARGET.build(model, tmp_path)}}
    with caplog.at_level(logging.INFO):
        results = measure_throughput(TARGET, given, trace_of(model), batches=(1, 4), seconds=0.02)
    assert set(results["a"]) == {"throughput_batch1_per_s"}
    assert "no throughput at batch 4: the batch axis is fixed: x" in caplog.text


def test_batch_axis_is_followed_by_its_name(tmp_path):
    model = stateful()
    opened = open_parts(TARGET, {"model": TARGET.build(model, tmp_path)}, trace_of(model))
    ((_, feeds),) = enlarge_trace(opened, trace_of(model), 4)
    assert {name: array.shape for name, array in feeds.items()} == {"x": (4, 3), "total": (2, 4, 3), "rate": ()}
    np.testing.assert_array_equal(feeds["x"], np.repeat(trace_of(model)[0][1]["x"], 4, axis=0))


def test_a_model_whose_axes_have_no_names(tmp_path, caplog):
    """OpenVINO forgets them: the state's batch axis cannot be told, so only one example at a time is measured."""
    target, model = OpenVino(threads=1), stateful()
    given = {"a": {"model": target.build(model, tmp_path)}}
    with caplog.at_level(logging.INFO):
        results = measure_throughput(target, given, trace_of(model), batches=(1, 4), seconds=0.02)
    assert "throughput_batch1_per_s" in results["a"]


def test_several_examples_already(tmp_path):
    opened = open_parts(TARGET, {"model": TARGET.build(linear(), tmp_path)}, trace_of(linear()))
    with pytest.raises(DataError, match="holds 2 examples, not one"):
        enlarge_trace(opened, trace_of(linear(), rows=2), 4)
