"""What every target must do, run on each runtime."""

from __future__ import annotations

import hashlib
import importlib
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from onnx import helper

from alula.errors import AlulaError, DataError, StorageError, TargetError
from alula.targets import Artifact, OnnxRuntime, OpenVino, target_named
from tests.oracles.runtimes import FLOAT, doubler, feeds_for, linear, model_of, quantized_linear, stateful

TARGETS = [pytest.param(OnnxRuntime(threads=1), id="onnxruntime"), pytest.param(OpenVino(threads=1), id="openvino")]


@pytest.mark.parametrize("target", TARGETS)
class TestEveryTarget:
    def test_runs_the_model_by_its_own_names(self, target, tmp_path):
        opened = target.open(target.build(doubler(), tmp_path))
        x = np.arange(8, dtype=np.float32).reshape(2, 4)
        outputs = opened({"x": x})
        assert set(outputs) == {"y", "sum:0"}
        np.testing.assert_array_equal(outputs["y"], 2 * x)
        np.testing.assert_array_equal(outputs["sum:0"], 3 * x)

    def test_a_later_run_leaves_earlier_outputs_alone(self, target, tmp_path):
        opened = target.open(target.build(doubler(), tmp_path))
        first = opened({"x": np.ones((1, 4), np.float32)})["y"]
        opened({"x": np.zeros((1, 4), np.float32)})
        np.testing.assert_array_equal(first, 2 * np.ones((1, 4)))

    def test_size_is_that_of_the_files(self, target, tmp_path):
        artifact = target.build(linear(), tmp_path / "new" / "folder", "net")
        assert artifact.target == target.name
        assert artifact.path.name.startswith("net.")
        assert sorted(artifact.files) == sorted((tmp_path / "new" / "folder").iterdir()), "nothing else is left behind"
        assert artifact.size_bytes == sum(file.stat().st_size for file in artifact.files)

    def test_int8_weights_take_a_byte_each(self, target, tmp_path):
        full = target.build(linear(256), tmp_path, "full").size_bytes
        assert target.build(quantized_linear(256), tmp_path, "small").size_bytes < 0.32 * full

    def test_same_model_same_bytes(self, target, tmp_path):
        digests = [
            [
                hashlib.sha256(file.read_bytes()).hexdigest()
                for file in target.build(quantized_linear(), tmp_path / n).files
            ]
            for n in ("a", "b")
        ]
        assert digests[0] == digests[1]

    def test_state_and_scalars(self, target, tmp_path):
        model = stateful()
        opened = target.open(target.build(model, tmp_path))
        feeds = feeds_for(model, rows=2)
        np.testing.assert_allclose(opened(feeds)["next"], feeds["total"] + feeds["x"] * feeds["rate"], rtol=1e-6)

    def test_profile_names_the_layer_its_precision_and_its_time(self, target, tmp_path):
        model = quantized_linear(256)
        feeds = feeds_for(model, rows=64)
        times = target.profile(target.build(model, tmp_path), feeds, runs=5)
        assert all(one.milliseconds >= 0 for one in times)
        assert 0 < sum(one.milliseconds for one in times) < 1000
        product = max(times, key=lambda one: "MatMul" in one.operator or "FullyConnected" in one.operator)
        assert product.precision == "int8"
        full = target.profile(target.build(linear(256), tmp_path, "full"), feeds, runs=5)
        assert {one.precision for one in full if "MatMul" in one.operator or "Fully" in one.operator} == {"float32"}

    def test_profile_leaves_nothing_behind_and_refuses_wrong_feeds(self, target, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        artifact = target.build(linear(), tmp_path)
        before = sorted(tmp_path.iterdir())
        target.profile(artifact, feeds_for(linear()), runs=2)
        assert sorted(tmp_path.iterdir()) == before
        with pytest.raises(DataError, match="inputs must be"):
            target.profile(artifact, {}, runs=2)
        for file in artifact.files:
            file.unlink()
        with pytest.raises(TargetError, match="lacks"):
            target.profile(artifact, feeds_for(linear()), runs=2)

    def test_outputs_that_are_one_tensor_or_an_input(self, target, tmp_path):
        nodes = [
            helper.make_node("Relu", ["x"], ["y"]),
            helper.make_node("Identity", ["y"], ["again, y"]),
            helper.make_node("Identity", ["x"], ["same"]),
        ]
        shape = ["N", 3]
        model = model_of(nodes, [("x", FLOAT, shape)], [(name, FLOAT, shape) for name in ("y", "again, y", "same")])
        x = np.array([[-1, 0, 2]], np.float32)
        outputs = target.open(target.build(model, tmp_path))({"x": x})
        np.testing.assert_array_equal(outputs["again, y"], outputs["y"])
        np.testing.assert_array_equal(outputs["same"], x)

    @pytest.mark.parametrize(
        ("feeds", "words"),
        [
            ({}, "missing"),
            ({"z": np.zeros((1, 4), np.float32)}, "unknown"),
            ({"x": np.zeros((1, 5), np.float32)}, r"\[1, 5\]"),
            ({"x": np.zeros((1, 4), np.float64)}, "float64"),
            ({"x": np.zeros(4, np.float32)}, r"\[4\]"),
        ],
    )
    def test_wrong_feeds(self, target, tmp_path, feeds, words):
        opened = target.open(target.build(doubler(), tmp_path))
        with pytest.raises(DataError, match=words):
            opened(feeds)

    def test_missing_file(self, target, tmp_path):
        artifact = target.build(doubler(), tmp_path)
        artifact.files[-1].unlink()
        with pytest.raises(TargetError, match=f"lacks {artifact.files[-1].name}.*build it again"):
            target.open(artifact)

    @pytest.mark.parametrize("content", [b"", b"not a model", b"<net>"])
    def test_damaged_file(self, target, tmp_path, content):
        artifact = target.build(linear(), tmp_path)
        artifact.path.write_bytes(content)
        with pytest.raises(TargetError, match=f"cannot open {artifact.path.name}: .") as caught:
            target.open(artifact)
        assert "\n" not in str(caught.value)
        assert "Exception from" not in str(caught.value)

    def test_truncated_weights(self, target, tmp_path):
        artifact = target.build(linear(), tmp_path)
        largest = max(artifact.files, key=lambda file: file.stat().st_size)
        largest.write_bytes(largest.read_bytes()[:1000])
        with pytest.raises(TargetError, match="cannot open"):
            target.open(artifact)

    def test_artifact_of_another_target(self, target, tmp_path):
        artifact = replace(target.build(doubler(), tmp_path), target="toaster")
        with pytest.raises(TargetError, match="built for 'toaster'"):
            target.open(artifact)

    def test_disk_full(self, target, tmp_path, monkeypatch):
        def fail(*_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(Path, "replace", fail)
        with pytest.raises(StorageError, match=r"No space left on device.*free space"):
            target.build(doubler(), tmp_path)
        assert list(tmp_path.iterdir()) == [], "no half-written file stays"

    def test_folder_that_is_a_file(self, target, tmp_path):
        (tmp_path / "taken").write_text("")
        with pytest.raises(StorageError, match="cannot make the folder"):
            target.build(doubler(), tmp_path / "taken")

    @pytest.mark.parametrize("threads", [-1, 1.5, True, "2"])
    def test_wrong_threads(self, target, threads):
        with pytest.raises(TargetError, match="threads must be a whole number"):
            replace(target, threads=threads)

    def test_describes_what_changes_speed_and_numbers(self, target):
        told = target.describe()
        assert told["threads"] == "1"
        assert int(replace(target, threads=0).describe()["threads"]) >= 1
        assert any(character.isdigit() for character in told["runtime"])

    def test_traits_know_the_traps(self, target):
        traits = target.traits()
        assert "Conv" in traits.static_int8
        assert "Conv" not in traits.dynamic_int8
        assert traits.notes

    def test_is_found_by_name(self, target):
        assert target_named(target.name, threads=1) == target


def test_unknown_target():
    with pytest.raises(TargetError, match="must be one of onnxruntime, openvino, got 'tpu'"):
        target_named("tpu")


def test_missing_runtime_says_how_to_install_it(monkeypatch):
    real = importlib.import_module

    def absent(name, *rest):
        if name == "openvino":
            raise ModuleNotFoundError("No module named 'openvino'", name="openvino")
        return real(name, *rest)

    monkeypatch.setattr(importlib, "import_module", absent)
    with pytest.raises(AlulaError, match=r"pip install 'alula\[openvino\]'"):
        OpenVino()


def test_artifact_is_plain_data(tmp_path):
    artifact = OnnxRuntime().build(doubler(), tmp_path)
    assert artifact == Artifact("onnxruntime", tmp_path / "model.onnx", (tmp_path / "model.onnx",), artifact.size_bytes)


def test_importing_targets_and_measurement_loads_no_runtime_and_no_torch():
    code = (
        "import sys, alula.targets, alula.measurement;"
        "print({'torch', 'openvino', 'scipy', 'onnxruntime'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "set()"
