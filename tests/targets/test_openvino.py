from __future__ import annotations

import numpy as np
import pytest

from alula.errors import TargetError
from alula.targets.openvino import OpenVino, traits_on
from alula.targets.processor import Processor
from tests.oracles.runtimes import feeds_for, linear


def test_computes_in_float32_unless_told(tmp_path):
    """Left alone, OpenVINO would compute in bfloat16 on processors that have it: errors of 2^-8."""
    model, target = linear(256), OpenVino(threads=1)
    artifact = target.build(model, tmp_path)
    feeds = feeds_for(model, rows=8)
    exact = feeds["x"].astype(np.float64) @ model.weight("w").astype(np.float64)

    def error(chosen):
        return np.abs(chosen.open(artifact)(feeds)["y"] - exact).max() / np.abs(exact).max()

    assert error(target) < 1e-5
    assert "INFERENCE_PRECISION_HINT=f32" in target.describe()["settings"]


def test_weights_are_written_in_float32(tmp_path):
    assert OpenVino().build(linear(128), tmp_path).size_bytes > 128 * 128 * 4


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"precision": "f64"}, "precision must be"), ({"dynamic_quantization_group": -1}, "must be 0 or above")],
)
def test_wrong_settings(settings, words):
    with pytest.raises(TargetError, match=words):
        OpenVino(**settings)


def test_traits_follow_the_processor():
    assert traits_on(Processor("any", "x86_64", 2, frozenset({"avx2"}))).weight_bits_safe == 7
    assert traits_on(Processor("any", "x86_64", 2, frozenset({"avx2", "avx512_vnni"}))).weight_bits_safe == 8
    assert traits_on(Processor("any", "aarch64", 2, frozenset())).weight_bits_safe == 8


def test_a_graph_it_cannot_convert(tmp_path):
    from onnx import TensorProto, helper

    from tests.oracles.runtimes import model_of

    nodes = [helper.make_node("Unheard", ["x"], ["y"], domain="far.away", name="odd")]
    model = model_of(nodes, [("x", TensorProto.FLOAT, [1])], [("y", TensorProto.FLOAT, [1])])
    with pytest.raises(TargetError, match="OpenVINO cannot convert net: "):
        OpenVino().build(model, tmp_path, "net")
    assert list(tmp_path.iterdir()) == []
