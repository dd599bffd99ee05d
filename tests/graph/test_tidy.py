import numpy as np
import onnx
import onnx_ir as ir
import pytest

from alula.graph import fold
from alula.graph.load import model_from_proto
from alula.graph.model import Model
from alula.graph.tidy import tidy
from alula.testing import (
    attention_network,
    convolution_network,
    dense_network,
    embedding_network,
    model_from_text,
    proto_from_text,
    random_feeds,
    recurrent_network,
)


def normal(*shape):
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def raw(text, weights=None, opset=21):
    """The graph as it is in the file, without the tidying that loading does."""
    proto = onnx.ModelProto.FromString(proto_from_text(text, weights, opset=opset).SerializeToString())
    for index, node in enumerate(proto.graph.node):
        node.name = f"node{index}"
    return Model(ir.from_proto(proto))


def tidied(text, weights=None, opset=21, **feeds):
    """The tidied graph, after a check that it computes the same and that the one it was made of did not change."""
    model = raw(text, weights, opset)
    before = model.fingerprint
    other = tidy(model)
    assert model.fingerprint == before
    feeds = feeds or random_feeds(model)
    wanted, given = model.run(feeds), other.run(feeds)
    assert list(wanted) == list(given)
    for name in wanted:
        np.testing.assert_allclose(given[name], wanted[name], rtol=1e-5, atol=1e-6)
    assert tidy(other).fingerprint == other.fingerprint
    return other


def operators(model):
    return [node.op_type for node in model.graph]


@pytest.mark.parametrize(
    "network", [attention_network, convolution_network, dense_network, embedding_network, recurrent_network]
)
def test_a_tidy_graph_stays_as_it_is(network):
    model = network()
    assert tidy(model).fingerprint == model.fingerprint


def test_a_transposed_weight_keeps_its_name_and_says_so():
    model = tidied(
        "n (float[b, 4] x) => (float[b, 2] y) { t = Transpose <perm = [1, 0]> (w)\n y = MatMul (x, t) }",
        {"w": normal(2, 4)},
    )
    (layer,) = model.layers()
    assert (layer.weight, layer.shape) == ("w", (4, 2))
    assert model.graph.initializers["w"].metadata_props["alula.transposed"] == "1,0"
    np.testing.assert_array_equal(model.weight("w"), normal(2, 4).T)


def test_transposes_in_a_row_are_told_as_one():
    model = tidied(
        """n (float[3, 2, 4] x) => (float[3, 2, 4] y) {
            s = Transpose <perm = [1, 2, 0]> (w)
            t = Transpose <perm = [0, 2, 1]> (s)
            y = Add (x, t) }""",
        {"w": normal(2, 3, 4)},
    )
    value = model.graph.initializers["w"]
    perm = [int(axis) for axis in value.metadata_props["alula.transposed"].split(",")]
    np.testing.assert_array_equal(value.const_value.numpy(), normal(2, 3, 4).transpose(perm))


def test_a_weight_that_arrives_through_unsqueeze():
    model = tidied(
        """n (float[5, b, 3] x) => (float[5, 1, b, 4] y) <int64[1] zero = {0}> {
            w1 = Unsqueeze (w, zero)
            r1 = Unsqueeze (r, zero)
            y = LSTM <hidden_size = 4> (x, w1, r1) }""",
        {"w": normal(16, 3), "r": normal(16, 4)},
    )
    (layer,) = model.layers()
    assert (layer.weights, layer.shape) == (("w", "r"), (1, 16, 3))
    assert not model.graph.initializers["w"].metadata_props


@pytest.mark.parametrize("hidden", [6, 60, 128, 140])
def test_gates_put_in_another_order(hidden):
    cuts = {f"c{index}": np.array([index * hidden]) for index in range(5)}
    text = f"""n (float[5, b, {hidden}] x) => (float[5, 1, b, {hidden}] y) <int64[1] zero = {{0}}> {{
        i = Slice (w, c0, c1, zero)
        f = Slice (w, c1, c2, zero)
        g = Slice (w, c2, c3, zero)
        o = Slice (w, c3, c4, zero)
        c = Concat <axis = 0> (i, o, f, g)
        w1 = Unsqueeze (c, zero)
        r1 = Unsqueeze (r, zero)
        y = LSTM <hidden_size = {hidden}> (x, w1, r1)
    }}"""
    w = normal(4 * hidden, hidden) / hidden
    model = tidied(text, {"w": w, "r": w, **cuts})
    assert model.layers()[0].weights == ("w", "r")
    assert model.graph.initializers["w"].metadata_props["alula.blocks"] == "0,3,1,2"
    blocks = w.reshape(4, hidden, hidden)[[0, 3, 1, 2]]
    np.testing.assert_array_equal(model.weight("w"), blocks.reshape(1, 4 * hidden, hidden))


def test_a_sum_of_vectors_that_makes_a_matrix_is_not_folded():
    model = tidied(
        "n (float[1] x) => (float[500, 500] y) { s = Add (u, v)\n y = Mul (s, x) }",
        {"u": normal(500, 1), "v": normal(1, 500)},
    )
    assert operators(model) == ["Add", "Mul"]


def test_weights_joined_are_named_after_both():
    model = tidied(
        "n (float[b, 4] x) => (float[b, 4] y) { w = Concat <axis = 1> (u, v)\n y = MatMul (x, w) }",
        {"u": normal(4, 1), "v": normal(4, 3)},
    )
    assert model.layers()[0].weight == "u+v"


def test_a_weight_cut_in_two():
    model = tidied(
        """n (float[b, 4] x) => (float[b, 2] p, float[b, 2] q)
        <int64[1] o = {1}, int64[1] z = {0}, int64[1] k = {2}, int64[1] m = {4}> {
            u = Slice (w, z, k, o)
            v = Slice (w, k, m, o)
            p = MatMul (x, u)
            q = MatMul (x, v) }""",
        {"w": normal(4, 4)},
    )
    assert [layer.weight for layer in model.layers()] == ["w.folded.0", "w.folded.1"]


def test_changed_values_do_not_keep_the_name():
    model = tidied(
        "n (float[b, 4] x) => (float[b, 2] y) <float half = {0.5}> { h = Mul (w, half)\n y = MatMul (x, h) }",
        {"w": normal(4, 2)},
    )
    assert model.layers()[0].weight == "w.folded"


def test_a_weight_that_others_read_too_is_not_doubled():
    w = normal(200, 200)  # larger than what is folded always
    assert w.nbytes > fold.SMALL_BYTES
    text = """n (int64[b] i) => (float[b, 200] y) {
        e = Gather (w, i)
        t = Transpose <perm = [1, 0]> (w)
        y = MatMul (e, t) }"""
    model = tidied(text, {"w": w})
    assert model.weight_bytes == w.nbytes
    assert operators(model) == ["Gather", "Transpose", "MatMul"]


def test_a_weight_transposed_twice_is_transposed_once():
    text = """n (float[b, 200] x) => (float[b, 200] y) {
        s = Transpose <perm = [1, 0]> (w)
        t = Transpose <perm = [1, 0]> (w)
        a = MatMul (x, s)
        y = MatMul (a, t) }"""
    model = tidied(text, {"w": normal(200, 200) / 20})
    assert [layer.weight for layer in model.layers()] == ["w", "w"]
    assert model.weight_bytes == 160_000


def test_overlapping_cuts_do_not_make_the_file_grow():
    cuts = "\n".join(f"s{i} = Slice (w, b{i}, e, a)\n m{i} = MatMul (x, s{i})" for i in range(6))
    text = f"""n (float[b, 200] x) => (float[b, k] y) <int64[1] a = {{1}}, int64[1] e = {{200}}> {{
        {cuts}
        y = Concat <axis = 1> ({", ".join(f"m{i}" for i in range(6))}) }}"""
    weights = {"w": normal(200, 200), **{f"b{i}": np.array([i]) for i in range(6)}}
    model = tidied(text, weights)
    assert model.weight_bytes <= 2 * 160_000 + fold.SMALL_BYTES


def test_nothing_grows_by_fill_or_cast():
    text = """n (float[1] x) => (float[1000, 1000] y, float[200, 200] z) <int64[2] s = {1000, 1000}> {
        e = Expand (c, s)
        y = Mul (e, x)
        f = Cast <to = 1> (h)
        z = Add (f, x) }"""
    model = tidied(text, {"c": np.ones((1, 1), np.float32), "h": np.ones((200, 200), np.float16)})
    assert operators(model) == ["Expand", "Mul", "Cast", "Add"]


def test_shape_arithmetic_folds_to_a_reshape_with_one_free_axis():
    text = """n (float[b, 3, 8] x) => (float[b, 3, 2, 4] y)
        <int64 zero = {0}, int64 one = {1}, int64[1] first = {0}, int64[2] heads = {2, 4}> {
        s = Shape (x)
        b = Gather (s, zero)
        t = Gather (s, one)
        b1 = Unsqueeze (b, first)
        t1 = Unsqueeze (t, first)
        r = Concat <axis = 0> (b1, t1, heads)
        y = Reshape (x, r) }"""
    model = tidied(text)
    assert operators(model) == ["Reshape"]
    (target,) = model.graph.initializers.values()
    assert target.const_value.numpy().tolist() == [-1, 3, 2, 4]


def test_two_free_axes_stay_computed():
    text = """n (float[b, t, 8] x) => (float[b, t, 2, 4] y) <int64[2] heads = {2, 4}> {
        s = Shape <start = 0, end = 2> (x)
        r = Concat <axis = 0> (s, heads)
        y = Reshape (x, r) }"""
    assert operators(tidied(text)) == ["Shape", "Concat", "Reshape"]


def test_arithmetic_on_a_partly_known_shape():
    text = """n (float[b, 6] x) => (float[k, 2] y) <int64[2] by = {3, 1}, int64[2] over = {1, 3}> {
        s = Shape (x)
        m = Mul (s, by)
        d = Div (m, over)
        y = Reshape (x, d) }"""
    model = tidied(text)
    assert operators(model) == ["Reshape"]


def test_identity_dropout_and_what_changes_nothing():
    text = """n (float[b, 4] x) => (float[b, 4] y) {
        a = Identity (x)
        d, mask = Dropout (a)
        c = Cast <to = 1> (d)
        t = Transpose <perm = [0, 1]> (c)
        k = Concat <axis = 0> (t)
        r = Relu (k)
        y = Identity (r) }"""
    model = tidied(text)
    assert operators(model) == ["Relu"]
    assert [spec.name for spec in model.outputs] == ["y"]


def test_what_only_seems_to_change_nothing_stays():
    text = """n (float[b, 4] x) => (float[b, 4] p, bool[b, 4] mask, float[b, 4] same, double[b, 4] q, float[4, b] t,
        float[b, 4] r, float[b, 4] r2) {
        p, mask = Dropout (x)
        same = Identity (x)
        q = Cast <to = 11> (x)
        t = Transpose (x)
        r = Relu (x)
        r2 = Identity (r) }"""
    model = tidied(text)
    assert operators(model) == ["Dropout", "Identity", "Cast", "Transpose", "Relu", "Identity"]


def test_a_constant_output_stays_an_output():
    text = "n (float[b] x) => (float[b] y, float[2] c) <float[2] k = {1, 2}> { y = Neg (x)\n c = Add (k, k) }"
    assert "Add" in operators(tidied(text))


def test_dead_nodes_and_weights_go():
    text = "n (float[b] x) => (float[b] y) <float[3] unused = {1, 2, 3}> { dead = MatMul (x, x)\n y = Neg (x) }"
    model = tidied(text)
    assert operators(model) == ["Neg"]
    assert len(model.graph.initializers) == 0


def test_castlike_of_a_constant_is_folded():
    text = "n (float[b] x) => (float[b] y) <int64 k = {3}> { c = CastLike (k, x)\n y = Mul (x, c) }"
    assert operators(tidied(text)) == ["Mul"]


def test_what_fails_at_run_time_is_left_for_the_runtime_to_tell():
    text = "n (float[b] x) => (float[3] y) <int64[3] s = {2, 2, 2}> { r = Reshape (c, s)\n y = Add (x, r) }"
    model = model_from_proto(proto_from_text(text, {"c": normal(3)}))
    assert operators(model) == ["Reshape", "Add"]


def test_a_folded_value_that_a_body_reads():
    text = """n (float[4] x, bool k) => (float[4] y) <float[4] a = {1, 2, 3, 4}, float[4] c = {1, 1, 1, 1}> {
        s = Add (a, c)
        y = If <then_branch = g () => (float[4] p) { p = Add (x, s) },
                else_branch = h () => (float[4] q) { q = Mul (x, s) }> (k)
    }"""
    for k in (True, False):
        model = tidied(text, x=normal(4), k=np.asarray(k))
        assert operators(model) == ["If"]


def _mean(axes, keepdims, shape):
    text = f"n (float[n, 3, 4, 5] x) => (float[{shape}] y) {{ y = ReduceMean <keepdims = {keepdims}> (x, axes) }}"
    return Model(ir.from_proto(proto_from_text(text, {"axes": np.array(axes)})))


@pytest.mark.parametrize(("keepdims", "shape"), [(0, "n, 3"), (1, "n, 3, 1, 1")])
@pytest.mark.parametrize("axes", [(2, 3), (-1, -2)])
def test_a_mean_over_all_spatial_axes_becomes_a_global_pool(axes, keepdims, shape):
    before = _mean(axes, keepdims, shape)
    after = tidy(before)
    assert next(iter(after.graph)).op_type == "GlobalAveragePool"
    feeds = random_feeds(before)
    np.testing.assert_allclose(after.run(feeds)["y"], before.run(feeds)["y"], rtol=1e-5, atol=1e-7)


def test_a_mean_over_some_axes_stays():
    assert [node.op_type for node in tidy(_mean((3,), 1, "n, 3, 4, 1")).graph] == ["ReduceMean"]
    assert [node.op_type for node in tidy(_mean((1, 2, 3), 1, "n, 1, 1, 1")).graph] == ["ReduceMean"]


def _padded(pads, attributes="", *, mode="constant", value=0.0, kernel=(4, 3, 3, 3)):
    text = f"""n (float[n, 3, 6, 7] x) => (float[n, 4, ?, ?] y) {{
        p = Pad <mode = "{mode}"> (x, pads, value) y = Conv {f"<{attributes}>" if attributes else ""} (p, w) }}"""
    random = np.random.default_rng(0)
    weights = {
        "pads": np.array(pads),
        "value": np.array(value, np.float32),
        "w": random.standard_normal(kernel).astype(np.float32),
    }
    return Model(ir.from_proto(proto_from_text(text, weights)))


@pytest.mark.parametrize("attributes", ["", "pads = [1, 0, 0, 2]", 'auto_pad = "VALID"', "strides = [2, 2]"])
def test_zeros_around_an_image_are_left_to_the_convolution(attributes):
    before = _padded([0, 0, 1, 0, 0, 0, 2, 1], attributes)
    after = tidy(before)
    assert [node.op_type for node in after.graph] == ["Conv"]
    feeds = random_feeds(before)
    np.testing.assert_allclose(after.run(feeds)["y"], before.run(feeds)["y"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "before",
    [
        _padded([0, 0, 1, 1, 0, 0, 1, 1], value=1.0),
        _padded([0, 0, 1, 1, 0, 0, 1, 1], mode="reflect"),
        _padded([0, 1, 0, 0, 0, 0, 0, 0], kernel=(4, 4, 3, 3)),
        _padded([0, 0, -1, 0, 0, 0, 0, 0]),
        _padded([0, 0, 1, 1, 0, 0, 1, 1], 'auto_pad = "SAME_UPPER"'),
    ],
)
def test_other_pads_stay(before):
    after = tidy(before)
    assert [node.op_type for node in after.graph] == ["Pad", "Conv"]
    feeds = random_feeds(before)
    np.testing.assert_allclose(after.run(feeds)["y"], before.run(feeds)["y"], rtol=1e-5, atol=1e-6)


def test_tied_weights_stay_tied_however_small():
    """A table that is also the output's matrix: as a copy, turned, it would be trained and pruned by itself."""
    model = model_from_text(
        "n (int64[b] x) => (float[b, 6] y) { e = Gather (w, x) t = Transpose (w) y = MatMul (e, t) }",
        {"w": np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32)},
    )
    assert [node.op_type for node in tidy(model).graph] == ["Gather", "Transpose", "MatMul"]
