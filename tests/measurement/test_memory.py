from __future__ import annotations

import json
import subprocess
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from alula.errors import TargetError
from alula.measurement import memory
from alula.measurement.memory import measure_memory
from alula.targets import OnnxRuntime, OpenVino
from tests.oracles.runtimes import linear, trace_of


@pytest.mark.parametrize("target", [OnnxRuntime(threads=1), OpenVino(threads=1)], ids=["onnxruntime", "openvino"])
def test_a_larger_model_takes_more(target, tmp_path):
    small, large = linear(16), linear(2048)
    contenders = {
        name: {"model": target.build(model, tmp_path, name)} for name, model in (("small", small), ("large", large))
    }
    readings = {
        name: measure_memory(target, {name: contenders[name]}, trace_of(model), repeats=1)[name]
        for name, model in (("small", small), ("large", large))
    }
    weights = 2048 * 2048 * 4
    increase = readings["large"]["memory_increase_bytes"].value - readings["small"]["memory_increase_bytes"].value
    assert weights <= increase < 5 * weights
    assert readings["small"]["memory_bytes"].value > readings["small"]["memory_increase_bytes"].value


def test_the_parent_does_not_count(tmp_path):
    """The child's peak is its own, however much memory the process that started it holds."""
    target = OnnxRuntime(threads=1)
    contenders = {"a": {"model": target.build(linear(), tmp_path)}}
    ballast = np.ones(400_000_000, np.uint8)
    peak = measure_memory(target, contenders, trace_of(linear()), repeats=1)["a"]["memory_bytes"].value
    assert peak < ballast.nbytes


def test_contenders_take_turns(monkeypatch, tmp_path):
    target = OnnxRuntime(threads=1)
    artifact = {"model": target.build(linear(), tmp_path)}
    order = []

    def run_child(name, request):
        order.append(name)
        return 100 + len(order), 10

    monkeypatch.setattr(memory, "_run_child", run_child)
    result = measure_memory(target, {"a": artifact, "b": artifact}, trace_of(linear()))
    assert order == ["a", "b", "b", "a"]
    peak = result["a"]["memory_bytes"]
    assert (peak.low, peak.value, peak.high, peak.unit, peak.n) == (101, 102.5, 104, "bytes", 2)
    assert result["b"]["memory_increase_bytes"].value == 10


def test_feeds_of_every_kind_arrive_unchanged(tmp_path):
    feeds = {
        "bf": np.array([1.5, -2], ml_dtypes.bfloat16),
        "scalar": np.array(7, np.int64),
        "empty": np.zeros((0, 3), np.float16),
        "strided": np.arange(6, dtype=np.float32).reshape(2, 3).T,
    }
    trace = (("model", feeds), ("other", {"b": np.array([True, False])}))
    path = memory._write_feeds(trace, tmp_path / "feeds.npz")
    back = memory._read_trace(json.loads(json.dumps({"feeds": str(path), "calls": memory._list_calls(trace)})))
    assert [part for part, _ in back] == ["model", "other"]
    for name, array in feeds.items():
        assert back[0][1][name].dtype == array.dtype
        np.testing.assert_array_equal(back[0][1][name], array)


def test_settings_reach_the_child(tmp_path):
    target = OpenVino(threads=1, precision="bf16", dynamic_quantization_group=32)
    artifacts = {"model": target.build(linear(), tmp_path)}
    request = json.loads(memory._make_request(target, artifacts, (), Path("feeds.npz")))
    assert memory._target_of(request) == target
    ort = OnnxRuntime(threads=2)
    assert memory._target_of(json.loads(memory._make_request(ort, {}, (), Path("f")))) == ort


def test_a_child_that_fails_is_said_and_leaves_the_others(tmp_path, caplog):
    target = OnnxRuntime(threads=1)
    good, bad = target.build(linear(), tmp_path, "good"), target.build(linear(), tmp_path, "bad")
    bad.path.write_bytes(b"damaged")
    result = measure_memory(target, {"a": {"model": bad}, "b": {"model": good}}, trace_of(linear()), repeats=2)
    assert result["a"] == {}
    assert result["b"]["memory_bytes"].n == 2
    assert caplog.text.count("'a': measuring memory failed: ONNX Runtime cannot open bad.onnx") == 1


def test_text_is_not_handed_to_a_child(tmp_path, caplog):
    trace = (("model", {"words": np.array(["one", "two"], object)}),)
    assert measure_memory(OnnxRuntime(threads=1), {"a": {}, "b": {}}, trace) == {"a": {}, "b": {}}
    assert "the input 'words' is text" in caplog.text


def test_a_full_disk_leaves_memory_out(monkeypatch, caplog):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(memory, "_write_feeds", full)
    assert measure_memory(OnnxRuntime(threads=1), {"a": {}}, trace_of(linear())) == {"a": {}}
    assert "No space left" in caplog.text


def test_killed_child(monkeypatch):
    killed = subprocess.CompletedProcess([], -9, "", "")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: killed)
    with pytest.raises(TargetError, match="killed by signal 9; was memory exhausted"):
        memory._run_child("a", "{}")


def test_endless_child(monkeypatch):
    def run(*_, **__):
        raise subprocess.TimeoutExpired("python", 600)

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(TargetError, match="took over 600 s"):
        memory._run_child("a", "{}")


def test_a_system_that_cannot_tell(monkeypatch, tmp_path, caplog):
    monkeypatch.setattr(memory, "_STATUS", tmp_path / "absent")
    assert measure_memory(OnnxRuntime(threads=1), {"a": {}}, ()) == {"a": {}}
    assert "not measured" in caplog.text
