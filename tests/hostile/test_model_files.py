"""Whatever a model file holds, alula either takes it or says why not: nothing else may come out."""

import logging
import os
import zipfile

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from alula.errors import AlulaError, ModelError
from alula.graph import load
from alula.graph.load import load_model, model_from_proto
from alula.testing import proto_from_text

NET = "net (float[n, 4] x) => (float[n, 2] y) { y = MatMul(x, w) }"
W = np.arange(8, dtype=np.float32).reshape(4, 2)


@pytest.fixture
def proto():
    return proto_from_text(NET, {"w": W})


def save(proto, tmp_path, name="model.onnx"):
    path = tmp_path / name
    path.write_bytes(proto.SerializeToString())
    return path


def external(tmp_path, **entries):
    """A model whose weight lies in weights.bin, with these entries instead of the right ones."""
    proto = proto_from_text(NET, {"w": W})
    tensor = proto.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": "weights.bin", "offset": "0", "length": "32", **entries}.items():
        if value is not None:
            tensor.external_data.add(key=key, value=value)
    (tmp_path / "weights.bin").write_bytes(W.tobytes())
    return save(proto, tmp_path)


def test_missing_file(tmp_path):
    with pytest.raises(ModelError, match=r"nothing\.onnx: there is no such file"):
        load_model(tmp_path / "nothing.onnx")


def test_folder(tmp_path, proto):
    save(proto, tmp_path, "inside.onnx")
    with pytest.raises(ModelError, match=r"this is a folder; give the \.onnx file in it \(inside\.onnx\)"):
        load_model(tmp_path)


def test_empty_file(tmp_path):
    (tmp_path / "model.onnx").touch()
    with pytest.raises(ModelError, match="the file is empty"):
        load_model(tmp_path / "model.onnx")


def test_too_large_for_protobuf(tmp_path, proto, monkeypatch):
    monkeypatch.setattr(load, "PROTOBUF_LIMIT_BYTES", 10)
    with pytest.raises(ModelError, match=r"an ONNX file may have 2 GiB.*external data"):
        load_model(save(proto, tmp_path))


@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.9, 0.99])
def test_truncated(tmp_path, proto, fraction):
    data = proto.SerializeToString()
    path = tmp_path / "model.onnx"
    path.write_bytes(data[: int(len(data) * fraction)])
    with pytest.raises(ModelError, match=r"cut short|truncated|damaged|holds no graph"):
        load_model(path)


@pytest.mark.parametrize("data", [os.urandom(0) + b"\x93random\xff\xfe" * 50, b"hello, this is a text\n" * 9, b"{}"])
def test_not_onnx(tmp_path, data):
    path = tmp_path / "model.onnx"
    path.write_bytes(data)
    with pytest.raises(ModelError, match="not an ONNX"):
        load_model(path)


def test_zip(tmp_path):
    path = tmp_path / "model.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data.pkl", b"x")
    with pytest.raises(ModelError, match="zip archive"):
        load_model(path)


def test_ort_format(tmp_path):
    path = tmp_path / "model.ort"
    path.write_bytes(b"\x18\0\0\0ORTM" + bytes(100))
    with pytest.raises(ModelError, match=r"\.ort format"):
        load_model(path)


def test_external_data_is_read(tmp_path):
    model = load_model(external(tmp_path))
    np.testing.assert_array_equal(model.weight("w"), W)
    x = np.ones((3, 4), np.float32)
    np.testing.assert_allclose(model.run({"x": x})["y"], x @ W)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"location": "../weights.bin"}, "points outside"),
        ({"location": "sub/../../weights.bin"}, "points outside"),
        ({"location": "/etc/passwd"}, "points outside"),
        ({"location": "..\\weights.bin"}, "points outside"),
        ({"location": ""}, "missing or damaged"),
        ({"location": None}, "missing or damaged"),
        ({"location": "weights.bin\0x"}, "missing or damaged"),
        ({"location": "other.bin"}, "is missing"),
        ({"location": "."}, "is missing"),
        ({"offset": "4"}, r"ends too early: bytes 4 to 36 are promised, the file holds 32"),
        ({"offset": "-1"}, "offset of external data must be a whole number"),
        ({"offset": "1e3"}, "offset of external data must be a whole number"),
        ({"offset": str(2**63)}, "offset of external data must be a whole number"),
        ({"offset": "9" * 5000}, "offset of external data must be a whole number"),
        ({"offset": str(2**62)}, "ends too early"),
        ({"length": "-32"}, "length of external data must be a whole number"),
        ({"length": "31"}, "needs 32 bytes, its entry for 'weights.bin' says 31"),
        ({"length": "9999999999"}, "needs 32 bytes"),
    ],
)
def test_external_data_refused(tmp_path, entries, message):
    with pytest.raises(ModelError, match=f"(?s)initializer 'w': .*{message}"):
        load_model(external(tmp_path, **entries))


def test_external_data_through_a_link_out_of_the_folder(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    path = external(folder)
    (folder / "weights.bin").rename(tmp_path / "secret.bin")
    (folder / "weights.bin").symlink_to(tmp_path / "secret.bin")
    with pytest.raises(ModelError, match="a link to outside"):
        load_model(path)


def test_external_data_with_a_second_hard_link(tmp_path):
    path = external(tmp_path)
    os.link(tmp_path / "weights.bin", tmp_path / "twin.bin")
    with pytest.raises(ModelError, match="second hard link"):
        load_model(path)


def test_external_data_without_a_folder(tmp_path):
    with pytest.raises(ModelError, match="load the model by its path"):
        model_from_proto(onnx.load(external(tmp_path), load_external_data=False))


def test_negative_dims(proto):
    proto.graph.initializer[0].dims[0] = -4
    with pytest.raises(ModelError, match=r"initializer 'w': lengths of axes must be 0 or more, got \[-4, 2\]"):
        model_from_proto(proto)


def test_huge_dims_allocate_nothing(proto):
    proto.graph.initializer[0].dims[:] = [2**62, 2**62]
    with pytest.raises(ModelError, match=r"needs .* bytes of data, the file holds 32"):
        model_from_proto(proto)


def test_huge_dims_without_data(proto):
    proto.graph.initializer[0].CopyFrom(TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[2**40, 2]))
    with pytest.raises(ModelError, match=r"needs .* values of data, the file holds 0"):
        model_from_proto(proto)


def test_huge_constant_of_shape_is_not_folded():
    text = (
        "net (float[1] x) => (float[1] y) <int64[2] s = {1000000, 1000000}> { c = ConstantOfShape(s)\n y = Mul(x, c) }"
    )
    model = model_from_proto(proto_from_text(text))
    assert [node.op_type for node in model.graph] == ["ConstantOfShape", "Mul"]


@pytest.mark.parametrize("length", [0, 31, 33])
def test_raw_data_of_wrong_length(proto, length):
    proto.graph.initializer[0].raw_data = bytes(length)
    with pytest.raises(ModelError, match=f"needs 32 bytes of data, the file holds {length}"):
        model_from_proto(proto)


def test_data_in_the_field_of_another_type(proto):
    tensor = proto.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.int64_data.extend(range(8))
    with pytest.raises(ModelError, match="needs 8 values of data, the file holds 0"):
        model_from_proto(proto)


def test_constant_node_with_too_little_data():
    proto = proto_from_text("net (float[n] x) => (float[n] y) { c = Constant<value = float[1] {1}>()\n y = Add(x, c) }")
    proto.graph.node[0].attribute[0].t.dims[0] = 7
    with pytest.raises(ModelError, match=r"attribute 'value': shape \[7\]"):
        model_from_proto(proto)


@pytest.mark.parametrize("kind", [0, 99])
def test_unknown_element_type(proto, kind):
    proto.graph.initializer[0].data_type = kind
    with pytest.raises(ModelError, match=f"unknown element type {kind}"):
        model_from_proto(proto)


def test_duplicate_initializers(proto):
    proto.graph.initializer.append(proto.graph.initializer[0])
    with pytest.raises(ModelError, match="the name 'w' stands for two initializers"):
        model_from_proto(proto)


@pytest.mark.parametrize("name", ["y", "w", "x"])
def test_duplicate_tensors(proto, name):
    proto.graph.node.append(helper.make_node("Neg", ["x"], [name]))
    with pytest.raises(ModelError, match=f"the name '{name}' stands for two tensors"):
        model_from_proto(proto)


def test_duplicate_inputs(proto):
    proto.graph.input.append(proto.graph.input[0])
    with pytest.raises(ModelError, match="two graph inputs"):
        model_from_proto(proto)


def test_cycle():
    text = "net (float[n] x) => (float[n] y) { a = Add(x, b)\n b = Neg(a)\n y = Neg(b) }"
    with pytest.raises(ModelError, match="cycle"):
        model_from_proto(proto_from_text(text))


def test_unsorted_graph_is_sorted():
    text = "net (float[n] x) => (float[n] y) { y = Neg(b)\n b = Abs(a)\n a = Exp(x) }"
    model = model_from_proto(proto_from_text(text))
    assert [node.op_type for node in model.graph] == ["Exp", "Abs", "Neg"]


def test_dangling_input(proto):
    proto.graph.node[0].input[1] = "v"
    with pytest.raises(ModelError, match=r"node 'y' \(MatMul\): it reads 'v', which nothing computes"):
        model_from_proto(proto)


def test_output_that_nothing_computes(proto):
    proto.graph.output[0].name = "z"
    with pytest.raises(ModelError, match="graph output 'z' is computed by no node"):
        model_from_proto(proto)


def test_unknown_operator(proto):
    proto.graph.node[0].op_type = "Bogus"
    with pytest.raises(ModelError, match="opset 21 has no operator 'Bogus'"):
        model_from_proto(proto)


def test_operator_newer_than_the_opset():
    proto = proto_from_text("net (float[n] x) => (float[n] y) { y = Gelu(x) }", opset=17)
    with pytest.raises(ModelError, match="opset 17 has no operator 'Gelu'; export with a newer opset"):
        model_from_proto(proto)


def test_custom_domain_is_taken_and_said_and_refused_at_use():
    proto = proto_from_text("net (float[n] x) => (float[n] y) { y = mine.Swirl(x) }")
    model = model_from_proto(proto)
    assert [str(note) for note in model.notes] == [
        "mine.Swirl: 1 nodes are not standard ONNX operators; they are left as they are"
    ]
    with pytest.raises(ModelError, match="ONNX Runtime refuses the graph"):
        model.run({"x": np.ones(2, np.float32)})


@pytest.mark.parametrize(("opset", "message"), [(10, "opset must be 11 or newer"), (99, "opset 99 is unknown")])
def test_opset_out_of_range(proto, opset, message):
    proto.opset_import[0].version = opset
    with pytest.raises(ModelError, match=message):
        model_from_proto(proto)


def test_no_opset(proto):
    del proto.opset_import[:]
    with pytest.raises(ModelError, match="names no operator set"):
        model_from_proto(proto)


def test_future_file_format(proto):
    proto.ir_version = 1000
    with pytest.raises(ModelError, match="file format 1000 is newer"):
        model_from_proto(proto)


def test_nan_and_infinity_in_weights():
    bad = W.copy()
    bad[0, 0], bad[1, 0], bad[2, 1] = np.nan, np.nan, np.inf
    with pytest.raises(ModelError, match=r"initializer 'w': weights must be finite, got 2 NaN and 1 infinite of 8"):
        model_from_proto(proto_from_text(NET, {"w": bad}))


def test_nan_in_half_weights_behind_a_transpose():
    bad = W.T.astype(np.float16)
    bad[1, 1] = np.nan
    text = "net (float16[n, 4] x) => (float16[n, 2] y) { t = Transpose<perm = [1, 0]>(w)\n y = MatMul(x, t) }"
    with pytest.raises(ModelError, match=r"initializer 'w': .* 1 NaN"):
        model_from_proto(proto_from_text(text, {"w": bad}))


def test_infinity_in_a_mask_is_meant():
    mask = np.where(np.tri(3), 0, -np.inf).astype(np.float32)
    text = "net (float[3, 3] x) => (float[3, 3] y) { a = Add(x, mask)\n y = Softmax(a) }"
    model = model_from_proto(proto_from_text(text, {"mask": mask}))
    assert model.run({"x": np.zeros((3, 3), np.float32)})["y"][0].tolist() == [1, 0, 0]


def test_weight_without_elements():
    text = "net (float[n, 4] x) => (float[n, 0] y) { y = MatMul(x, w) }"
    with pytest.raises(ModelError, match=r"layer 'MatMul_0': its weight 'w' has no elements: \[4, 0\]"):
        model_from_proto(proto_from_text(text, {"w": np.zeros((4, 0), np.float32)}))


@pytest.mark.parametrize("kind", ["sequence", "optional", "map"])
def test_inputs_that_are_no_tensors(proto, kind):
    tensor = helper.make_tensor_type_proto(TensorProto.FLOAT, [1])
    types = {
        "sequence": helper.make_sequence_type_proto(tensor),
        "optional": helper.make_optional_type_proto(tensor),
        "map": helper.make_map_type_proto(TensorProto.INT64, tensor),
    }
    proto.graph.input.append(helper.make_value_info("s", types[kind]))
    with pytest.raises(ModelError, match=f"graph input 's': only tensors are taken, this is {kind}"):
        model_from_proto(proto)


def test_negative_axis_of_an_input(proto):
    proto.graph.input[0].type.tensor_type.shape.dim[1].dim_value = -4
    with pytest.raises(ModelError, match="graph input 'x': axis 1 has the negative length -4"):
        model_from_proto(proto)


def test_sparse_initializer(proto):
    sparse = onnx.SparseTensorProto(dims=[4, 2])
    proto.graph.sparse_initializer.append(sparse)
    with pytest.raises(ModelError, match="sparse initializers are not taken"):
        model_from_proto(proto)


def test_bad_tensor_in_a_body():
    body = helper.make_graph(
        [helper.make_node("Identity", ["c"], ["b"])], "body", [], [helper.make_empty_tensor_value_info("b")]
    )
    body.initializer.append(TensorProto(name="c", data_type=TensorProto.FLOAT, dims=[3], raw_data=b"1234"))
    proto = proto_from_text("net (bool k, float[n] x) => (float[n] y) { y = Neg(x) }")
    proto.graph.node.append(helper.make_node("If", ["k"], ["z"], then_branch=body, else_branch=body))
    with pytest.raises(ModelError, match=r"_branch': initializer 'c': shape \[3\] needs 12 bytes"):
        model_from_proto(proto)


def test_functions_that_call_each_other(proto):
    for name, other in (("A", "B"), ("B", "A")):
        node = helper.make_node(other, ["a"], ["b"], domain="own")
        proto.functions.append(helper.make_function("own", name, ["a"], ["b"], [node], [helper.make_opsetid("own", 1)]))
    proto.graph.node.append(helper.make_node("A", ["x"], ["z"], domain="own"))
    proto.opset_import.append(helper.make_opsetid("own", 1))
    with pytest.raises(ModelError, match="the graph cannot be read"):
        model_from_proto(proto)


def fuzz_seeds():
    everything = proto_from_text(
        """net (float[n, 3, 6, 6] x, bool k) => (float[n, 4] y, float z) <float[2] two = {1, 2}> {
            c = Conv <pads = [1, 1, 1, 1]> (x, w, b)
            r = Relu (c)
            m = GlobalAveragePool (r)
            s = Constant <value_ints = [-1, 4]> ()
            f = Reshape (m, s)
            t = Transpose <perm = [1, 0]> (v)
            y = MatMul (f, t)
            z = If (k) <then_branch = g () => (float p) { p = ReduceSum <keepdims = 0> (two) },
                        else_branch = h () => (float q) { q = ReduceMax <keepdims = 0> (two) }>
        }""",
        {"w": np.ones((4, 3, 3, 3), np.float32), "b": np.zeros(4, np.float32), "v": np.ones((4, 4), np.float32)},
        opset=17,
    )
    quantized = proto_from_text(
        "net (float[n, 4] x) => (float[n, 2] y) { d = DequantizeLinear(q, s)\n y = MatMul(x, d) }",
        {"q": np.ones((4, 2), np.int8), "s": np.float32(0.1)},
        opset=13,
    )
    return [everything.SerializeToString(), quantized.SerializeToString()]


@pytest.mark.filterwarnings("ignore")
def test_flipped_bytes_raise_nothing_but_our_errors(tmp_path, caplog):
    caplog.set_level(logging.CRITICAL)
    random = np.random.default_rng(0)
    path, taken, refused = tmp_path / "model.onnx", 0, 0
    for data in fuzz_seeds():
        for _ in range(100):
            damaged = np.frombuffer(data, np.uint8).copy()
            for position in random.integers(0, len(damaged), random.integers(1, 4)):
                damaged[position] = random.integers(0, 256)
            path.write_bytes(damaged.tobytes())
            try:
                repr(load_model(path, allow_quantized=True))
                taken += 1
            except AlulaError:
                refused += 1
    assert taken > 20
    assert refused > 20


def test_numpy_helper_agrees_on_every_type():
    """The lengths that checks.py expects are those that onnx writes."""
    from alula.graph.checks import check_tensor

    for kind in (np.float32, np.float64, np.float16, np.int8, np.uint8, np.int16, np.int32, np.int64, np.bool_):
        check_tensor(numpy_helper.from_array(np.ones((3, 5), kind), "t"), None)
    for kind in (
        TensorProto.INT4,
        TensorProto.UINT4,
        TensorProto.BFLOAT16,
        TensorProto.FLOAT8E4M3FN,
        TensorProto.FLOAT,
    ):
        check_tensor(helper.make_tensor("t", kind, [5], [1, 2, 3, 1, 0]), None)
