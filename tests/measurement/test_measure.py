from __future__ import annotations

import json
import sys
from dataclasses import replace

import pytest

from alula.errors import DataError, TargetError
from alula.measurement import Measurement, measure
from alula.targets import OnnxRuntime, OpenVino
from tests.oracles.runtimes import linear, trace_of


def contenders(target, folder, **models):
    return {name: {"model": target.build(model, folder, name)} for name, model in models.items()}


@pytest.mark.parametrize("target", [OnnxRuntime(threads=1), OpenVino(threads=1)], ids=["onnxruntime", "openvino"])
def test_everything_is_measured(target, tmp_path):
    given = contenders(target, tmp_path, original=linear(512), candidate=linear(512))
    results = measure(target, given, trace_of(linear(512)), seconds=0.05)
    assert list(results) == ["original", "candidate"]
    for name, values in results.items():
        assert set(values) - {"energy_mj"} == {
            "latency_p50_ms", "latency_p95_ms", "latency_p99_ms", "latency_ratio", "load_ms", "size_bytes",
            "memory_bytes", "memory_increase_bytes",
        }  # fmt: skip
        assert values["latency_p50_ms"].value <= values["latency_p95_ms"].value <= values["latency_p99_ms"].value
        assert values["size_bytes"].value == given[name]["model"].size_bytes
        assert all(value.value > 0 and value.method and not value.estimated for value in values.values())
        assert {key: Measurement.from_json(json.loads(json.dumps(v.to_json()))) for key, v in values.items()} == values
    assert results["original"]["latency_ratio"].value == 1
    assert results["candidate"]["latency_ratio"].low > 0


def test_a_runtime_twenty_times_slower_shows_as_such(tmp_path):
    target = OnnxRuntime(threads=1)

    class Slow(OnnxRuntime):
        """Runs what is called slow twenty times."""

        def open(self, artifact):
            opened = super().open(artifact)
            times = 20 if artifact.path.stem == "slow" else 1
            return lambda feeds: [opened(feeds) for _ in range(times)][-1]

    results = measure(
        Slow(threads=1), contenders(target, tmp_path, slow=linear(256), fast=linear(256)), trace_of(linear(256)),
        seconds=0.3, memory=False,
    )  # fmt: skip
    ratio = results["fast"]["latency_ratio"]
    assert 5 < ratio.low < ratio.value < 40
    assert "memory_bytes" not in results["fast"]


def test_energy_where_a_meter_is(tmp_path, monkeypatch):
    ticks = iter(range(10**9))
    monkeypatch.setattr(sys.modules["alula.measurement.measure"], "find_meter", lambda: lambda: next(ticks))
    target = OnnxRuntime(threads=1)
    results = measure(target, contenders(target, tmp_path, a=linear()), trace_of(linear()), seconds=0.02, memory=False)
    assert results["a"]["energy_mj"].value > 0


def test_parts_are_summed(tmp_path):
    target = OnnxRuntime(threads=1)
    parts = {name: target.build(linear(), tmp_path, name) for name in ("encoder", "decoder")}
    calls = trace_of(linear(), calls=2)
    trace = (("encoder", calls[0][1]), ("decoder", calls[1][1]))
    result = measure(target, {"original": parts}, trace, seconds=0.02, memory=False)["original"]
    assert result["size_bytes"].value == sum(part.size_bytes for part in parts.values())


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan")])
def test_nothing_to_measure(tmp_path, seconds):
    target = OnnxRuntime(threads=1)
    given = contenders(target, tmp_path, a=linear())
    for arguments in ((given, ()), ({}, trace_of(linear()))):
        with pytest.raises(DataError, match="measuring needs"):
            measure(target, *arguments)
    with pytest.raises(DataError, match="seconds above 0"):
        measure(target, given, trace_of(linear()), seconds=seconds)


def test_bad_contenders(tmp_path):
    target = OnnxRuntime(threads=1)
    given = contenders(target, tmp_path, a=linear())
    with pytest.raises(TargetError, match="artifacts for other"):
        measure(target, {"a": {"other": given["a"]["model"]}}, trace_of(linear()))
    lost = replace(given["a"]["model"], path=tmp_path / "lost.onnx", files=(tmp_path / "lost.onnx",))
    with pytest.raises(TargetError, match=r"lacks lost\.onnx"):
        measure(target, given | {"b": {"model": lost}}, trace_of(linear()))
    with pytest.raises(DataError, match="inputs must be"):
        measure(target, given, (("model", {"z": trace_of(linear())[0][1]["x"]}),))
