import errno
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from alula.errors import DataError, ModelError, StorageError
from alula.graph import model as model_file
from alula.graph import running
from alula.graph.load import load_model
from alula.graph.model import Model, Note, TensorSpec
from alula.testing import convolution_network, dense_network, model_from_text, random_feeds, recurrent_network


def doubled(model):
    """A technique: the first weight times two."""
    graph = model.edit()
    value = graph.graph.initializers["hidden_weight"]
    value.const_value = ir.tensor(2 * value.const_value.numpy(), name=value.name)
    return model.edited(graph, [Note("hidden_weight", "doubled")])


def test_an_edit_leaves_the_original_alone_and_shares_the_other_weights():
    model = dense_network()
    before, feeds = model.fingerprint, random_feeds(model)
    expected = model.run(feeds)["scores"]
    other = doubled(model)
    assert model.fingerprint == before
    assert other.fingerprint != before
    np.testing.assert_array_equal(model.run(feeds)["scores"], expected)
    assert not np.array_equal(other.run(feeds)["scores"], expected)
    shared = (each.graph.initializers["output_weight"].const_value for each in (model, other))
    assert next(shared) is next(shared)
    assert list(map(str, doubled(other).notes)) == ["hidden_weight: doubled"] * 2
    assert model.notes == ()


def test_what_it_says_of_itself():
    model = recurrent_network()
    assert [str(spec) for spec in model.inputs] == [
        "frames: float32[6, batch, 8]",
        "h: float32[1, batch, 12]",
        "c: float32[1, batch, 12]",
    ]
    assert [spec.name for spec in model.outputs] == ["scores", "next_h", "next_c"]
    assert model.opset == 21
    assert repr(model).startswith("Model('recurrent_network', 2 layers, ")
    assert Note("a", "b").to_json() == {"place": "a", "text": "b"}
    assert str(TensorSpec("x", np.dtype("int8"), None)) == "x: int8 of unknown rank"
    assert str(TensorSpec("x", np.dtype("int8"), (None, 2))) == "x: int8[?, 2]"


def test_weight():
    assert dense_network().weight("hidden_bias").shape == (32,)
    with pytest.raises(ModelError, match="no initializer named 'nothing'"):
        dense_network().weight("nothing")


def test_bytes_are_the_file(tmp_path):
    model = convolution_network()
    path = model.save(tmp_path / "model.onnx")
    assert path.stat().st_size == model.size_bytes == len(model.to_bytes())
    assert list(tmp_path.iterdir()) == [path]
    assert model.to_bytes() == convolution_network().to_bytes()


def test_saved_and_loaded_it_is_the_same(tmp_path):
    model = convolution_network()
    again = load_model(model.save(tmp_path / "model.onnx"))
    assert again.fingerprint == model.fingerprint
    feeds = random_feeds(model)
    np.testing.assert_array_equal(again.run(feeds)["scores"], model.run(feeds)["scores"])


def test_fingerprint_is_of_the_graph_and_of_every_weight():
    assert convolution_network(0).fingerprint == convolution_network(0).fingerprint
    assert convolution_network(0).fingerprint != convolution_network(1).fingerprint
    relu = model_from_text("n (float[2] x) => (float[2] y) { y = Relu (x) }")
    assert relu.fingerprint != model_from_text("n (float[2] x) => (float[2] y) { y = Neg (x) }").fingerprint


def test_beyond_2_gib_weights_go_beside_the_file(tmp_path, monkeypatch):
    model = dense_network()
    feeds = random_feeds(model)
    expected = model.run(feeds)["scores"]
    for module in (model_file, running):
        monkeypatch.setattr(module, "PROTOBUF_LIMIT_BYTES", 2000)
    large = Model(model.edit())
    with pytest.raises(ModelError, match=r"does not fit one ONNX message \(2 GiB\); use save"):
        large.to_bytes()
    path = large.save(tmp_path / "model.onnx")
    assert {file.name for file in tmp_path.iterdir()} == {"model.onnx", "model.onnx.data"}
    assert path.stat().st_size < 2000
    assert large.size_bytes >= large.weight_bytes
    again = load_model(path)
    assert again.fingerprint == model.fingerprint
    np.testing.assert_array_equal(again.run(feeds)["scores"], expected)
    with pytest.raises(StorageError, match=r"its weights are read from model\.onnx\.data, .* choose another name"):
        again.save(path)
    np.testing.assert_array_equal(again.weight("hidden_bias"), model.weight("hidden_bias"))


def test_a_loaded_model_with_external_data_becomes_one_file(tmp_path):
    model = dense_network()
    (tmp_path / "a").mkdir()
    ir.save(model.edit(), tmp_path / "a" / "model.onnx", format="protobuf", external_data="weights.bin")
    loaded = load_model(tmp_path / "a" / "model.onnx")
    path = loaded.save(tmp_path / "b.onnx")
    onnx.checker.check_model(onnx.load(path, load_external_data=False))
    assert load_model(path).fingerprint == model.fingerprint


def test_full_disk(tmp_path, monkeypatch):
    def full(self, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(StorageError, match=r"cannot write .*model\.onnx: No space left on device; free space"):
        dense_network().save(tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


def test_missing_folder(tmp_path):
    with pytest.raises(StorageError, match=r"cannot write .*No such file or directory"):
        dense_network().save(tmp_path / "nowhere" / "model.onnx")


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = dense_network().save(tmp_path / "model.onnx")
    before = path.read_bytes()

    def fail(self, target):
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(StorageError):
        convolution_network().save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("feeds", "message"),
    [
        ({}, r"inputs must be \['features'\], got \[\]; missing \['features'\]"),
        ({"features": np.zeros((1, 16), np.float32), "more": np.zeros(1)}, r"unknown \['more'\]"),
        ({"features": np.zeros((1, 16))}, r"must be features: float32\[batch, 16\], got float64\[1, 16\]"),
        ({"features": np.zeros((1, 15), np.float32)}, r"got float32\[1, 15\]"),
        ({"features": np.zeros(16, np.float32)}, r"got float32\[16\]"),
    ],
)
def test_wrong_inputs_are_told_what_is_wanted(feeds, message):
    with pytest.raises(DataError, match=message):
        dense_network().run(feeds)
