"""Events as ONNX Runtime's profiler writes them, and the times read from them."""

from __future__ import annotations

import pytest

from alula.targets import NodeTime
from alula.targets.onnxruntime_profile import read_profile


def event(name, operator, microseconds, kind="float", **changes):
    facts = {"op_name": operator, "input_type_shape": [{kind: [1, 4]}, {"int64": [2]}]}
    return {"cat": "Node", "name": f"{name}_kernel_time", "dur": microseconds, "args": facts} | changes


def test_the_median_of_the_runs_after_the_first():
    events = [event("conv", "Conv", microseconds) for microseconds in (900, 30, 10, 20)]
    assert read_profile(events, 4) == (NodeTime("conv", "Conv", 0.02, "float32"),)


def test_an_operator_that_runs_twice_in_each_run_counts_twice():
    events = [event("step", "Add", microseconds) for microseconds in (50, 50, 10, 20, 30, 40)]
    assert read_profile(events, 3)[0].milliseconds == pytest.approx((30 + 70) / 2 / 1e3)


def test_uneven_counts_are_averaged():
    events = [event("step", "Add", 10) for _ in range(5)]
    assert read_profile(events, 2)[0].milliseconds == pytest.approx(0.025)


def test_loops_are_left_out_and_their_bodies_stay():
    events = [event("loop", "Loop", 500), event("inside", "MatMul", 90), {"cat": "Session", "name": "model_run"}]
    assert [one.name for one in read_profile(events, 1)] == ["inside"]


@pytest.mark.parametrize(
    ("operator", "kind", "precision"),
    [
        ("QLinearConv", "uint8", "int8"),
        ("MatMulIntegerToFloat", "uint8", "int8"),
        ("DynamicQuantizeMatMul", "float", "int8"),
        ("QGemm", "uint8", "int8"),
        ("DynamicQuantizeLinear", "float", "float32"),
        ("QuantizeLinear", "float", "float32"),
        ("Conv", "float16", "float16"),
        ("MatMulNBits", "float", "told"),
    ],
)
def test_precision(operator, kind, precision):
    assert read_profile([event("node", operator, 5, kind)], 1, blocked_precision="told")[0].precision == precision


def test_events_without_facts_are_passed_over():
    assert read_profile([{}, {"cat": "Node", "name": "x_fence_before"}], 3) == ()
    assert read_profile([event("x", "Constant", 3, args={"op_name": "Constant"})], 1)[0].precision is None
