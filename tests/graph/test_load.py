from importlib.resources import files

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from alula.errors import ModelError
from alula.graph import opset as opset_file
from alula.graph.load import load_model, model_from_proto
from alula.testing import proto_from_text, random_feeds

SILERO = sorted(file.name for file in files("silero_vad.data").iterdir() if file.name.endswith(".onnx"))


def run_as_it_is(proto, feeds):
    """What ONNX Runtime makes of the file before alula touches it."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return dict(zip([port.name for port in session.get_outputs()], session.run(None, feeds), strict=True))


def check_unchanged(proto, feeds, **options):
    """Load, run, compare with the file; give the model."""
    expected = run_as_it_is(proto, feeds)
    before = proto.SerializeToString()
    copy = onnx.ModelProto.FromString(before)
    model = model_from_proto(copy, **options)
    outputs = model.run(feeds)
    assert list(outputs) == list(expected)
    for name, array in expected.items():
        np.testing.assert_allclose(outputs[name], array, rtol=1e-5, atol=1e-6)
    return model


def normal(*shape):
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


OLD = {
    "softmax over all later axes": "n (float[2, 3, 4] x) => (float[2, 3, 4] y) { y = Softmax <axis = 1> (x) }",
    "axes as attributes": """n (float[2, 3, 4] x) => (float[4, 1, 2] y) {
        m = ReduceMean <axes = [1], keepdims = 1> (x)
        s = Squeeze <axes = [1]> (m)
        u = Unsqueeze <axes = [1]> (s)
        y = Transpose <perm = [2, 1, 0]> (u) }""",
    "split sizes as attribute": """n (float[2, 3, 4] x) => (float[2, 1, 4] a, float[2, 2, 4] b) {
        a, b = Split <axis = 1, split = [1, 2]> (x) }""",
    "sum": "n (float[2, 3, 4] x) => (float[2, 4] y) { y = ReduceSum <axes = [1], keepdims = 0> (x) }",
    "dropout": "n (float[2, 3, 4] x) => (float[2, 3, 4] y) { d = Dropout (x)\n y = Relu (d) }",
    "batch normalisation": """n (float[2, 3, 4] x) => (float[2, 3, 4] y) {
        y = BatchNormalization <epsilon = 0.01> (x, scale, shift, mean, variance) }""",
    "pad and clip": """n (float[2, 3, 4] x) => (float[2, 3, 6] y) <int64[6] p = {0, 0, 1, 0, 0, 1}, float zero = {0}> {
        a = Pad (x, p)
        y = Clip (a, zero) }""",
    "convolution": "n (float[2, 3, 4] x) => (float[2, 5, 4] y) { y = Conv <pads = [1, 1]> (x, w) }",
}


@pytest.mark.parametrize("old", [11, 12])
@pytest.mark.parametrize("case", OLD)
def test_old_opsets_are_raised(case, old):
    weights = {
        "scale": normal(3), "shift": normal(3), "mean": normal(3), "variance": normal(3) ** 2, "w": normal(5, 3, 3),
    }  # fmt: skip
    proto = proto_from_text(OLD[case], {name: array for name, array in weights.items() if name in OLD[case]}, opset=old)
    model = check_unchanged(proto, {"x": normal(2, 3, 4)})
    assert (model.opset, model.notes) == (21, ())


@pytest.mark.parametrize("old", range(13, 29))
def test_every_later_opset(old):
    proto = proto_from_text(
        "n (float[b, 4] x) => (float[b, 2] y) { a = MatMul (x, w)\n y = Sigmoid (a) }", {"w": normal(4, 2)}, opset=old
    )
    if old > 26:  # newer than this ONNX Runtime runs
        assert model_from_proto(proto).opset == old
    else:
        assert check_unchanged(proto, {"x": normal(3, 4)}).opset == max(old, 21)


def test_weights_on_disk_stay_there_while_the_opset_is_raised(tmp_path):
    w = normal(64, 64)
    proto = proto_from_text("n (float[b, 64] x) => (float[b, 64] y) { y = MatMul (x, w) }", {"w": w}, opset=13)
    onnx.save(proto, tmp_path / "model.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    model = load_model(tmp_path / "model.onnx")
    assert model.opset == 21
    assert type(model.graph.initializers["w"].const_value).__name__ == "ExternalTensor"
    np.testing.assert_array_equal(model.weight("w"), w)
    np.testing.assert_allclose(model.run({"x": normal(2, 64)})["y"], normal(2, 64) @ w, rtol=1e-4, atol=1e-5)


def test_more_than_2_gib_of_weights(tmp_path):
    rows = 2**29 // 256  # times 256 columns of float32 and 5 bytes more than 2 GiB
    proto = proto_from_text("n (int64[b] i) => (float[b, 256] y) { y = Gather (w, i) }", opset=17)
    tensor = proto.graph.initializer.add(name="w", data_type=TensorProto.FLOAT, dims=[rows + 8, 256])
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="w.bin")
    (tmp_path / "w.bin").touch()
    with (tmp_path / "w.bin").open("r+b") as file:
        file.truncate((rows + 8) * 1024)  # a sparse file: it takes no space
    (tmp_path / "model.onnx").write_bytes(proto.SerializeToString())
    model = load_model(tmp_path / "model.onnx")
    assert (model.opset, model.weight_bytes) == (21, 2**31 + 8192)
    assert model.layers()[0].shape == (rows + 8, 256)


def test_opset_is_kept_with_a_note_where_the_converter_fails(monkeypatch):
    def fail(*_):
        raise RuntimeError("no adapter\nfor this")

    monkeypatch.setattr("onnx.version_converter.convert_version", fail)
    proto = proto_from_text("n (float[b, 4] x) => (float[b, 2] y) { y = MatMul (x, w) }", {"w": normal(4, 2)}, opset=13)
    model = check_unchanged(proto, {"x": normal(2, 4)})
    assert model.opset == 13
    assert list(map(str, model.notes)) == ["opset: kept at 13: onnx's converter to 21 fails (no adapter)"]


def test_a_contributed_operator_among_old_ones():
    text = "n (float[b, 4] x) => (float[b, 4] y) { a = com.microsoft.QuickGelu (x)\n y = Softmax <axis = 1> (a) }"
    model = check_unchanged(proto_from_text(text, opset=12), {"x": normal(3, 4)})
    assert any("com.microsoft.QuickGelu: 1 nodes are not standard" in str(note) for note in model.notes)


def test_layer_normalization_that_the_runtime_wrote_into_an_old_opset():
    text = "n (float[b, 4] x) => (float[b, 4] y) { y = LayerNormalization (x, s, t) }"
    proto = proto_from_text(text, {"s": normal(4), "t": normal(4)}, opset=13)
    check_unchanged(proto, {"x": normal(3, 4)})


def test_initializers_listed_as_inputs():
    proto = proto_from_text("n (float[b, 4] x) => (float[b, 2] y) { y = MatMul (x, w) }", {"w": normal(4, 2)})
    proto.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [4, 2]))
    model = check_unchanged(proto, {"x": normal(3, 4)})
    assert [spec.name for spec in model.inputs] == ["x"]
    assert len(model.layers()) == 1


def test_weights_in_constant_nodes():
    text = """n (float[b, 2] x) => (float[b, 2] y) {
        w = Constant <value = float[2, 2] {1, 2, 3, 4}> ()
        s = Constant <value_float = 2.0> ()
        t = Constant <value_floats = [1.0, 2.0]> ()
        a = MatMul (x, w)
        b = Mul (a, s)
        y = Add (b, t) }"""
    model = check_unchanged(proto_from_text(text), {"x": normal(3, 2)})
    assert [layer.weight for layer in model.layers()] == ["w"]
    assert {node.op_type for node in model.graph} == {"MatMul", "Mul", "Add"}


def test_half_precision_weights():
    w = normal(4, 2).astype(np.float16)
    proto = proto_from_text("n (float16[b, 4] x) => (float16[b, 2] y) { y = MatMul (x, w) }", {"w": w}, opset=15)
    model = check_unchanged(proto, {"x": normal(3, 4).astype(np.float16)})
    assert model.layers()[0].weight == "w"
    assert model.weight("w").dtype == np.float16


def test_shared_initializers_several_inputs_and_outputs():
    text = """n (float[b, 4] x, float[b, 4] z) => (float[b, 4] p, float[b, 4] q) {
        p = MatMul (x, w)
        q = MatMul (z, w) }"""
    model = check_unchanged(proto_from_text(text, {"w": normal(4, 4)}), {"x": normal(2, 4), "z": normal(2, 4)})
    assert [layer.weight for layer in model.layers()] == ["w", "w"]
    assert model.inputs[0].shape == ("b", 4)


def test_functions_are_inlined():
    body = [helper.make_node("MatMul", ["a", "b"], ["c"]), helper.make_node("Relu", ["c"], ["d"])]
    proto = proto_from_text(
        "n (float[b, 4] x) => (float[b, 4] y) { h = own.Dense (x, w)\n y = own.Dense (h, w) }", {"w": normal(4, 4)}
    )
    proto.functions.append(helper.make_function("own", "Dense", ["a", "b"], ["d"], body, [helper.make_opsetid("", 21)]))
    model = check_unchanged(proto, {"x": normal(2, 4)})
    assert [node.op_type for node in model.graph] == ["MatMul", "Relu"] * 2
    assert len(model.layers()) == 2
    assert model.notes == ()


LOOP = """n (float[4] x, int64 count) => (float[4] y) <bool go = {1}> {
    y = Loop <body = g (int64 i, bool c, float[4] a) => (bool d, float[4] r) {
        d = Identity (c)
        r = Add (a, w) }> (count, go, x)
}"""
IF = """n (float[4] x, bool k) => (float[4] y) {
    y = If <then_branch = g () => (float[4] p) { p = Add (x, w) },
                else_branch = h () => (float[4] q) { c = Constant <value = float[4] {1, 2, 3, 4}> ()
                                                     q = Mul (x, c) }> (k)
}"""
SCAN = """n (float[3, 4] x, float[4] s) => (float[4] e, float[3, 4] y) {
    e, y = Scan <num_scan_inputs = 1, body = g (float[4] a, float[4] b) => (float[4] o, float[4] p) {
        t = Add (a, b)
        o = Mul (t, w)
        p = Identity (o) }> (s, x)
}"""


@pytest.mark.parametrize(
    ("text", "feeds", "note"),
    [
        (
            LOOP,
            {"x": normal(4), "count": np.int64(3)},
            "Loop_0: the bodies of this Loop (2 nodes) are left as they are",
        ),
        (IF, {"x": normal(4), "k": np.bool_(False)}, "If_0: the bodies of this If (3 nodes) are left as they are"),
        (IF, {"x": normal(4), "k": np.bool_(True)}, "If_0: the bodies of this If (3 nodes) are left as they are"),
        (SCAN, {"x": normal(3, 4), "s": normal(4)}, "Scan_0: the bodies of this Scan (3 nodes) are left as they are"),
    ],
)
@pytest.mark.parametrize("opset", [13, 21])
def test_bodies_are_left_as_they_are(text, feeds, note, opset):
    feeds = {name: np.asarray(array) for name, array in feeds.items()}
    model = check_unchanged(proto_from_text(text, {"w": normal(4)}, opset=opset), feeds)
    assert list(map(str, model.notes)) == [note]
    bodies = [node.op_type for graph in model.graph.subgraphs() for node in graph]
    assert "Identity" in bodies or "Constant" in bodies


def test_initializers_of_a_body(tmp_path):
    body = helper.make_graph(
        [helper.make_node("Add", ["x", "c"], ["b"])],
        "body",
        [],
        [helper.make_tensor_value_info("b", TensorProto.FLOAT, [4])],
        [onnx.numpy_helper.from_array(normal(4), "c")],
    )
    proto = proto_from_text("n (float[4] x, bool k) => (float[4] y) { z = Neg (x)\n y = Relu (z) }", opset=17)
    proto.graph.node[1].CopyFrom(helper.make_node("If", ["k"], ["y"], then_branch=body, else_branch=body))
    proto.graph.node[0].CopyFrom(helper.make_node("Identity", ["k"], ["z"]))
    feeds = {"x": normal(4), "k": np.asarray(True)}
    check_unchanged(proto, feeds)
    for graph in (proto.graph.node[1].attribute[0].g, proto.graph.node[1].attribute[1].g):
        tensor = graph.initializer[0]
        (tmp_path / "c.bin").write_bytes(tensor.raw_data)
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="c.bin")
    (tmp_path / "model.onnx").write_bytes(proto.SerializeToString())
    np.testing.assert_allclose(load_model(tmp_path / "model.onnx").run(feeds)["y"], 2 * normal(4))


def test_nodes_get_names_of_their_own_always_the_same():
    proto = proto_from_text("n (float[b] x) => (float[b] y) { a = Neg (x)\n b = Neg (a)\n c = Abs (b)\n y = Exp (c) }")
    for node, name in zip(proto.graph.node, ["", "Neg_0", "twice", "twice"], strict=True):
        node.name = name
    names = [node.name for node in model_from_proto(proto).graph]
    assert names == ["Neg_1", "Neg_0", "twice_0", "twice_1"]


def test_training_mode_is_said():
    text = "n (float[b, 4] x) => (float[b, 4] y) <float r = {0.5}, bool t = {1}> { y = Dropout (x, r, t) }"
    model = model_from_proto(proto_from_text(text))
    assert "Dropout runs in training mode; export the model again after .eval()" in str(model.notes[0])


def test_false_claims_of_shapes_do_no_harm():
    text = """n (float[b, 4] x) => (int64[k] s) { a = Neg (x)\n s = Shape (a) }"""
    proto = proto_from_text(text)
    proto.graph.value_info.append(helper.make_tensor_value_info("a", TensorProto.FLOAT, [7, 7]))
    assert model_from_proto(proto).run({"x": normal(2, 4)})["s"].tolist() == [2, 4]


def test_metadata_is_kept():
    proto = proto_from_text("n (float[b, 4] x) => (float[b, 4] y) { y = Neg (x) }", opset=13)
    proto.metadata_props.add(key="labels", value="a,b")
    model = model_from_proto(proto)
    assert dict(model.metadata) == {"labels": "a,b"}


def silero_feeds(model):
    feeds = random_feeds(model, batch=1)
    for spec in model.inputs:
        if spec.name == "sr":
            feeds["sr"] = np.array(16000)
        elif spec.name == "input":
            feeds["input"] = normal(1, 576)
    return feeds


@pytest.mark.parametrize("name", SILERO)
def test_real_files(name):
    path = files("silero_vad.data") / name
    feeds = silero_feeds(load_model(path))
    model = check_unchanged(onnx.load(path), feeds)
    assert model.opset == 21
    assert model.size_bytes <= 1.002 * path.stat().st_size
    has_if = any(node.op_type == "If" for node in model.graph)
    assert has_if == any("the bodies of this If" in note.text for note in model.notes)


@pytest.mark.parametrize("name", ["silero_vad_16k_sequence.onnx", "silero_vad_openvino_16k.onnx"])
def test_recurrent_layers_of_real_files_are_seen(name):
    (layer,) = (layer for layer in load_model(files("silero_vad.data") / name).layers() if layer.operator == "LSTM")
    assert layer.shape == (1, 512, 128)
    assert layer.bias is not None


def test_small_constants_pass_through_the_converter_and_weights_around_it(monkeypatch):
    seen = {}

    def convert(proto, version):
        seen["bytes"] = proto.ByteSize()
        return original(proto, version)

    import onnx.version_converter

    original = onnx.version_converter.convert_version
    monkeypatch.setattr(onnx.version_converter, "convert_version", convert)
    w = normal(500, 500)
    proto = proto_from_text("n (float[b, 500] x) => (float[b, 500] y) { y = MatMul (x, w) }", {"w": w}, opset=13)
    model = model_from_proto(proto)
    assert seen["bytes"] < opset_file.SMALL_BYTES
    np.testing.assert_array_equal(model.weight("w"), w)


def test_the_path_is_part_of_the_message(tmp_path):
    with pytest.raises(ModelError, match=str(tmp_path)):
        load_model(str(tmp_path / "none.onnx"))
