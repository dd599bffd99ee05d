from __future__ import annotations

import math

import numpy as np
import pytest

from alula.measurement.parity import Tolerance, check_parity, compare
from alula.targets import OnnxRuntime, OpenVino
from tests.oracles.runtimes import doubler, linear, quantized_linear, stateful, trace_of

TARGETS = [pytest.param(OnnxRuntime(threads=1), id="onnxruntime"), pytest.param(OpenVino(threads=1), id="openvino")]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("make", [doubler, linear, quantized_linear, stateful])
def test_faithful_artifacts_pass(target, make, tmp_path):
    model = make()
    parity = check_parity({"model": model}, target, {"model": target.build(model, tmp_path)}, trace_of(model, calls=3))
    assert parity.ok, parity.note
    assert parity.cosine > 0.999
    assert parity.max_error < 0.05
    assert "agree" in parity.note


@pytest.mark.parametrize("target", TARGETS)
def test_another_model_fails_and_names_the_output(target, tmp_path):
    """Weights one percent larger: the cosine is 1 and only the error shows it."""
    artifact = target.build(linear(scale=1.02), tmp_path)
    parity = check_parity({"model": linear()}, target, {"model": artifact}, trace_of(linear()))
    assert not parity.ok
    assert parity.max_error == pytest.approx(0.02, rel=0.01)
    assert parity.cosine == pytest.approx(1.0)
    assert "model: output 'y' differs from the graph" in parity.note


def test_missing_output_fails(tmp_path):
    target = OnnxRuntime(threads=1)
    parity = check_parity(
        {"model": doubler()}, target, {"model": target.build(linear(4), tmp_path)}, trace_of(linear(4))
    )
    assert not parity.ok
    assert parity.max_error == math.inf


def test_tolerance_can_be_given(tmp_path):
    target = OnnxRuntime(threads=1)
    artifacts = {"model": target.build(linear(scale=1.02), tmp_path)}
    loose = check_parity({"model": linear()}, target, artifacts, trace_of(linear()), Tolerance(cosine=0.9, error=0.1))
    assert loose.ok


def parts(*values, dtype=np.float32):
    return [np.array(value, dtype) for value in values]


@pytest.mark.parametrize(
    ("wanted", "given", "error", "cosine"),
    [
        (parts([1, 0], [0, 2]), parts([1, 0], [0, 2]), 0, 1),
        (parts([3, 4]), parts([4, 3]), 1 / 4, 24 / 25),
        (parts([1], [10]), parts([2], [10]), 1 / 10, 102 / math.sqrt(101 * 104)),
        (parts([0, 0]), parts([0, 0]), 0, 1),
        (parts([0, 0]), parts([0, 1]), math.inf, 0),
        (parts([2]), parts([0]), 1, 0),
        (parts([]), parts([]), 0, 1),
        (parts([np.nan, np.inf, 1]), parts([np.nan, np.inf, 1]), 0, 1),
        (parts([np.nan, 1]), parts([0, 1]), math.inf, 0),
        (parts([0, 1]), parts([np.nan, 1]), math.inf, 0),
        (parts([np.inf, 1]), parts([-np.inf, 1]), math.inf, 0),
        (parts([1, 2]), parts([[1, 2]]), math.inf, 0),
        (parts([True, False], dtype=bool), parts([True, False], dtype=bool), 0, 1),
        (parts([1, 2]), [None], math.inf, 0),
    ],
)
def test_compare(wanted, given, error, cosine):
    assert compare(wanted, given) == (pytest.approx(error), pytest.approx(cosine))
