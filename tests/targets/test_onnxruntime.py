from __future__ import annotations

import numpy as np
import pytest

import alula.graph.model
from alula.errors import TargetError
from alula.targets.onnxruntime import OnnxRuntime, traits_on
from alula.targets.processor import Processor
from tests.oracles.runtimes import feeds_for, linear


def processor(*features, architecture="x86_64"):
    return Processor("any", architecture, 4, frozenset(features))


def test_unknown_provider_names_those_there():
    with pytest.raises(TargetError, match=r"has the providers .*CPUExecutionProvider.*got TPUExecutionProvider"):
        OnnxRuntime(providers=("TPUExecutionProvider",))
    with pytest.raises(TargetError, match="got none"):
        OnnxRuntime(providers=())


def test_external_data_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(alula.graph.model, "PROTOBUF_LIMIT_BYTES", 1000)
    model = linear(64)
    target = OnnxRuntime(threads=1)
    artifact = target.build(model, tmp_path)
    assert {file.name for file in artifact.files} == {"model.onnx", "model.onnx.data"}
    assert artifact.size_bytes > 64 * 64 * 4
    feeds = feeds_for(model)
    np.testing.assert_allclose(target.open(artifact)(feeds)["y"], feeds["x"] @ model.weight("w"), rtol=1e-4, atol=1e-4)


def test_old_external_data_beside_a_small_model_does_not_count(tmp_path):
    (tmp_path / "model.onnx.data").write_bytes(b"left over")
    artifact = OnnxRuntime().build(linear(64), tmp_path)
    assert artifact.files == (tmp_path / "model.onnx",)


@pytest.mark.parametrize(
    ("given", "signed", "bits"),
    [
        (processor("avx2", "avx512_vnni"), False, 8),
        (processor("avx2", "avx_vnni"), False, 8),
        (processor("avx2"), False, 7),
        (processor("asimd", "asimddp", architecture="aarch64"), True, 8),
        (processor("asimd", architecture="aarch64"), True, 8),
    ],
)
def test_traits_follow_the_processor(given, signed, bits):
    traits = traits_on(given)
    assert traits.activation_signed is signed
    assert traits.weight_bits_safe == bits
    assert any("no VNNI" in note for note in traits.notes) == (bits == 7)


def test_float16_is_stored_but_not_computed_with():
    assert not traits_on(processor("avx512_fp16")).float16_fast
    assert not traits_on(processor("asimdhp", architecture="aarch64")).float16_fast
