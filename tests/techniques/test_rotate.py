"""Rotated graphs give the same outputs; streams are turned by the matrix that is said, and outliers are gone."""

from __future__ import annotations

import logging
import warnings

import numpy as np
import onnx_ir as ir
import pytest

from alula.errors import DataError, RecipeError
from alula.numerics.hadamard import orthogonal
from alula.techniques import Context, QuantizeDynamic, Rotate
from alula.testing.conformance import relative_error, with_weight
from alula.testing.models import attention_network, model_from_text
from tests.oracles.zeroing import exported, outputs_of

NORMS = {
    "layer": "{0} = LayerNormalization <axis = -1> ({1}, {0}_gain, {0}_shift)",
    "root mean square": "{0} = RMSNormalization <axis = -1> ({1}, {0}_gain)",
    "simplified": "{0} = SimplifiedLayerNormalization <axis = -1> ({1}, {0}_gain)",
    "mean of squares": """{0}p = Pow ({1}, two) {0}m = ReduceMean ({0}p, last) {0}e = Add ({0}m, tiny)
        {0}s = Sqrt ({0}e) {0}r = Reciprocal ({0}s) {0}n = Mul ({1}, {0}r) {0} = Mul ({0}_gain, {0}n)""",
    "sum of squares": """{0}p = Mul ({1}, {1}) {0}m = ReduceSum ({0}p, last) {0}e = Add (tiny, {0}m) {0}s = Sqrt ({0}e)
        {0}n = Div ({1}, {0}s) {0} = Mul ({0}n, {0}_gain)""",
    "length": "{0}m = ReduceL2 ({1}, last) {0}n = Div ({1}, {0}m) {0} = Mul ({0}n, {0}_gain)",
    "mean, then squares": """{0}a = ReduceMean ({1}, last) {0}c = Sub ({1}, {0}a) {0}p = Pow ({0}c, two)
        {0}m = ReduceMean ({0}p, last) {0}e = Add ({0}m, tiny) {0}s = Sqrt ({0}e) {0}n = Div ({0}c, {0}s)
        {0}g = Mul ({0}n, {0}_gain) {0} = Add ({0}g, {0}_shift)""",
}  # fmt: skip
CENTRED = {"layer", "mean, then squares"}
WIDTH, HIDDEN, WORDS = 12, 20, 9


def language_model(norm, *, head="logits = MatMul (f, head)", bias=False):
    """Tokens to logits: a table with positions, one pre-norm attention of 3 heads, one gated layer, a head."""
    form = NORMS[norm]
    up = "u0 = MatMul (m, up) u = Add (u0, up_bias)" if bias else "u = MatMul (m, up)"
    text = f"""net (int64[b, 5] tokens) => (float[b, 5, {WORDS}] logits)
    <int64[1] last = {{-1}}, float two = {{2.0}}, float tiny = {{1e-5}}, int64[4] parted = {{0, 0, 3, 4}},
     int64[3] joined = {{0, 0, 12}}, int64[2] rows = {{-1, 12}}, int64[3] wide = {{-1, 5, {WORDS}}}> {{
        w = Gather (table, tokens) x = Add (w, positions)
        {form.format("n", "x")}
        q = MatMul (n, query) k = MatMul (n, key) v = MatMul (n, value)
        qh = Reshape (q, parted) kh = Reshape (k, parted) vh = Reshape (v, parted)
        qt = Transpose <perm = [0, 2, 1, 3]> (qh) kt = Transpose <perm = [0, 2, 3, 1]> (kh)
        vt = Transpose <perm = [0, 2, 1, 3]> (vh)
        s = MatMul (qt, kt) p = Softmax <axis = -1> (s) o = MatMul (p, vt)
        ot = Transpose <perm = [0, 2, 1, 3]> (o) oj = Reshape (ot, joined)
        a = MatMul (oj, out) y = Add (a, x)
        {form.format("m", "y")}
        {up} g = Relu (u) d = MatMul (g, down) z = Add (y, d)
        {form.format("f", "z")}
        {head}
    }}"""
    random = np.random.default_rng(0)
    shapes = {"table": (WORDS, WIDTH), "positions": (5, WIDTH), "up": (WIDTH, HIDDEN), "up_bias": (HIDDEN,),
              "down": (HIDDEN, WIDTH), "head": (WIDTH, WORDS)}  # fmt: skip
    shapes |= dict.fromkeys(("query", "key", "value", "out"), (WIDTH, WIDTH))
    weights = {name: random.standard_normal(shape) / 2 for name, shape in shapes.items() if name in text}
    for name in "nmf":
        weights[f"{name}_gain"] = np.exp(random.standard_normal(WIDTH) / 2)
        if f"{name}_shift" in text:
            weights[f"{name}_shift"] = random.standard_normal(WIDTH)
    return model_from_text(text, {name: array.astype(np.float32) for name, array in weights.items()}, opset=23)


def post_norm_model():
    """A block of BERT's kind: what is normalised, gain and all, goes on to the next sum."""
    text = """net (int64[b, 5] tokens) => (float[b, 5, 3] y) {
        e = Gather (table, tokens) n = LayerNormalization (e, n_gain, n_shift)
        u = MatMul (n, up) g = Relu (u) d = MatMul (g, down) z = Add (n, d)
        f = LayerNormalization (z, f_gain, f_shift) y = MatMul (f, head)
    }"""
    shapes = {"table": (9, 8), "up": (8, 16), "down": (16, 8), "head": (8, 3), "n_gain": (8,), "n_shift": (8,),
              "f_gain": (8,), "f_shift": (8,)}  # fmt: skip
    random = np.random.default_rng(0)
    return model_from_text(text, {name: random.standard_normal(shape).astype(np.float32)
                                  for name, shape in shapes.items()})  # fmt: skip


def rotated(model, *, exclude=(), **settings):
    return Rotate(**settings).apply(model, Context(tuple(la for la in model.layers() if la.name not in exclude)))


def tokens(seed=1):
    return {"tokens": np.random.default_rng(seed).integers(0, WORDS, (4, 5))}


def shown(model, names):
    """What tensors inside a graph are, for the tokens."""
    graph = model.edit()
    for value in [value for node in graph.graph for value in node.outputs if value.name in names]:
        value.type = value.type or ir.TensorType(ir.DataType.FLOAT)
        graph.graph.outputs.append(value)
    return model.edited(graph).run(tokens())


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("norm", NORMS)
def test_outputs_stay_and_the_stream_is_turned(norm, bias):
    model = language_model(norm, bias=bias)
    result = rotated(model, seed=3)
    found = "nc" if norm == "mean, then squares" else "x"
    assert [str(note).split(" by")[0] for note in result.notes] == [
        f"{found}: 12 channels rotated", "vt: 4 channels rotated",
    ]  # fmt: skip
    assert relative_error(model.run(tokens()), result.run(tokens())) < 3e-6
    turn = orthogonal(WIDTH, (3, 0), keep_mean=norm in CENTRED)
    before, after = (shown(one, ["x", "y", "z", "vt"]) for one in (model, result))
    for name in ("x", "y", "z"):
        np.testing.assert_allclose(after[name], before[name] @ turn, atol=2e-5)
    np.testing.assert_allclose(after["vt"], before["vt"] @ orthogonal(4, (3, 1)), atol=1e-4)
    assert len(result.graph) <= len(model.graph), "nothing is added at run time"
    assert not any(node.op_type == "Mul" and {"n", "m", "f"} & {value.name for value in node.outputs}
                   for node in result.graph), "gains are in the weights"  # fmt: skip


def test_without_heads():
    assert [note.place for note in rotated(language_model("root mean square"), heads=False).notes] == ["x"]


def test_what_attention_weighs_behind_a_relu_is_left_alone_and_said():
    text = """net (float[b, 3, 8] x) => (float[b, 3, 8] y) { t = Transpose <perm = [0, 2, 1]> (x) q = MatMul (x, t)
        s = Softmax (q) v = MatMul (x, w) r = Relu (v) y = MatMul (s, r) }"""
    model = model_from_text(text, {"w": np.eye(8, dtype=np.float32)})
    result = rotated(model)
    assert result.to_bytes() == model.to_bytes()
    (note,) = result.notes
    assert note.place == "r"
    assert note.text.startswith("not rotated: Relu 'Relu_0' makes 'r'")


TIED = {
    "transposed while running": "t = Transpose <perm = [1, 0]> (table) logits = MatMul (f, t)",
    "by Gemm": "flat = Reshape (f, rows) l = Gemm <transB = 1> (flat, table) logits = Reshape (l, wide)",
}


@pytest.mark.parametrize("norm", ["layer", "root mean square", "mean of squares"])
@pytest.mark.parametrize("head", TIED)
def test_a_table_that_is_the_head_too_is_parted(head, norm):
    model = language_model(norm, head=TIED[head])
    result = rotated(model)
    assert relative_error(model.run(tokens()), result.run(tokens())) < 3e-6
    (note,) = [note for note in result.notes if note.place == "table"]
    assert f"{WORDS * WIDTH * 4} bytes more" in note.text
    assert sum("table" in name for name in result.graph.initializers) == 2


@pytest.mark.parametrize("head", TIED)
def test_a_table_stays_one_where_the_last_gain_is_even(head):
    model = with_weight(
        language_model("root mean square", head=TIED[head]), "f_gain", lambda gain: np.full_like(gain, 2)
    )
    result = rotated(model)
    assert relative_error(model.run(tokens()), result.run(tokens())) < 3e-6
    assert [note.place for note in result.notes] == ["x", "vt"]
    assert sum("table" in name for name in result.graph.initializers) == 1
    assert result.weight_bytes <= model.weight_bytes


def test_a_post_norm_block_is_left_alone_by_name():
    model = post_norm_model()
    result = rotated(model)
    assert result.to_bytes() == model.to_bytes()
    assert rotated(result).to_bytes() == model.to_bytes()
    (note,) = result.notes
    assert note.place == "e"
    assert note.text.startswith("not rotated: 'n' is scaled by channel, and Add 'Add_0' adds it to something")


LEFT = {
    "what a sigmoid reads": ("h = Sigmoid (x) y = MatMul (h, w)", "Sigmoid 'Sigmoid_0' reads 'x'"),
    "a gate": ("h = Mul (x, n) y = MatMul (h, w)", "multiplies channels one by one"),
    "an output": ("y = Identity (x)", "'y' is an output of the graph"),
    "cut apart": (
        "a, b = Split <num_outputs = 2, axis = -1> (x) h = Add (a, b) y = MatMul (h, half)",
        "cuts channels apart",
    ),
    "products of rows": (
        "t = Transpose <perm = [0, 2, 1]> (n) y = MatMul (n, t)",
        "Transpose 'Transpose_0' moves channels",
    ),
    "the largest channel": ("h = ReduceMax <keepdims = 1> (x, last) y = MatMul (h, one)", "ReduceMax"),
    "two gains": ("h = Mul (n, gain) y = MatMul (h, w)", "scales again what is scaled"),
    "a bias of the product's": ("h = MatMul (n, w) r = Add (n, h) y = MatMul (r, w)", "adds it to something"),
}


@pytest.mark.parametrize(("rest", "words"), LEFT.values(), ids=LEFT)
def test_what_sees_channels_leaves_the_stream_alone(rest, words):
    text = f"""net (int64[b, 5] tokens) => (float[b, 5, k] y, float[b, 5, 8] o) <int64[1] last = {{-1}}> {{
        x = Gather (table, tokens) n = LayerNormalization (x, gain) o = MatMul (n, w) {rest} }}"""
    shapes = {"table": (9, 8), "w": (8, 8), "half": (4, 8), "one": (1, 8), "gain": (8,)}
    weights = {name: np.random.default_rng(2).standard_normal(shape).astype(np.float32)
               for name, shape in shapes.items() if name in text}  # fmt: skip
    model = model_from_text(text, weights)
    result = rotated(model)
    assert result.to_bytes() == model.to_bytes()
    assert any(words in note.text for note in result.notes), [note.text for note in result.notes]


def test_layers_that_are_not_asked_for_keep_their_weights():
    model = language_model("layer")
    name = next(layer.name for layer in model.layers() if layer.weight == "down")
    result = rotated(model, exclude=[name])
    assert [note.text for note in result.notes if note.place == "x"] == [
        f"not rotated: layer {name!r} is not to be treated"
    ]
    np.testing.assert_array_equal(result.weight("down"), model.weight("down"))
    assert relative_error(model.run(tokens()), result.run(tokens())) < 3e-6


def test_a_dead_gain_with_a_shift():
    """Channels of gain 0 still have their shift: where layers have biases these take it, else the stream stays."""
    for bias, done in ((True, True), (False, False)):
        model = language_model("layer", bias=bias)
        dead = with_weight(model, "m_gain", lambda gain: np.where(np.arange(WIDTH) < 3, 0, gain))
        result = rotated(dead)
        assert relative_error(dead.run(tokens()), result.run(tokens())) < 3e-6
        assert any("scales by 0, and what reads them has no bias" in note.text for note in result.notes) is not done


def test_one_weight_for_two_readers():
    """A weight that is read behind two gains is two weights; one behind none of them stays."""
    text = """net (int64[b, 5] tokens) => (float[b, 5, 8] y, float[b, 5, 8] z) { x = Gather (table, tokens)
        n = LayerNormalization (x, first) m = LayerNormalization (x, second) y = MatMul (n, w) z = MatMul (m, w) }"""
    random = np.random.default_rng(0)
    weights = {name: random.standard_normal(shape).astype(np.float32)
               for name, shape in {"table": (9, 8), "w": (8, 8), "first": (8,), "second": (8,)}.items()}  # fmt: skip
    for same in (True, False):
        model = model_from_text(text, {**weights, "second": weights["first"] if same else weights["second"]})
        result = rotated(model)
        assert relative_error(model.run(tokens()), result.run(tokens())) < 3e-6
        assert [note.place for note in result.notes] == (["x"] if same else ["x", "w"])


def test_one_stream_gives_to_another_that_was_met_before():
    """A shift goes to the bias of the layer between, which the other stream turns too."""
    text = """net (int64[b, 5] tokens) => (float[b, 5, 3] y) {
        b = Gather (wide, tokens) nb = LayerNormalization (b, gain_b, shift_b) d = MatMul (nb, inner) c = Add (b, d)
        a = Gather (table, tokens) na = LayerNormalization (a, gain_a, shift_a) e = MatMul (na, between)
        f = Add (e, bias) g = Add (c, f) h = LayerNormalization (g, gain_h, shift_b) y = MatMul (h, head) }"""
    shapes = {"wide": (9, 12), "table": (9, 8), "inner": (12, 12), "between": (8, 12), "bias": (12,), "head": (12, 3),
              "gain_a": (8,), "shift_a": (8,), "gain_b": (12,), "shift_b": (12,), "gain_h": (12,)}  # fmt: skip
    random = np.random.default_rng(3)
    weights = {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    model = model_from_text(text, weights)
    result = rotated(model)
    assert relative_error(model.run(tokens()), result.run(tokens())) < 5e-6
    assert [note.text.split(" by")[0] for note in result.notes[:2]] == ["12 channels rotated", "8 channels rotated"]


def peak(array):
    """How far the largest channel stands out: its largest magnitude over the median channel's."""
    largest = np.abs(array).reshape(-1, array.shape[-1]).max(axis=0)
    return largest.max() / np.median(largest)


def kurtosis(array):
    centred = array - array.mean()
    return (centred**4).mean() / (centred**2).mean() ** 2


@pytest.mark.parametrize("norm", ["layer", "mean of squares"])
def test_outliers_are_gone(norm):
    model = language_model(norm)
    for name in ("table", "positions", "out", "down"):
        model = with_weight(model, name, lambda weight: weight * np.where(np.arange(WIDTH) == 4, 60, 1))
    result = rotated(model)
    assert relative_error(model.run(tokens()), result.run(tokens())) < 1e-5
    seen = [shown(one, ["x", "y", "z"]) for one in (model, result)]
    for before, after in ((seen[0][name], seen[1][name]) for name in "xyz"):
        assert peak(before) > 10
        assert peak(after) < 3
        assert kurtosis(after) < kurtosis(before) / 2
    assert kurtosis(result.weight("out")) < kurtosis(model.weight("out")) / 2
    steps = QuantizeDynamic()  # one step for all channels of an activation
    errors = [
        relative_error(one.run(tokens()), steps.apply(one, Context(one.layers())).run(tokens()))
        for one in (model, result)
    ]
    assert errors[1] < errors[0], errors


def test_broken_weights_and_wrong_settings():
    with pytest.raises(DataError, match=r"layer '.*': what is rotated must be finite"):
        rotated(
            with_weight(language_model("layer"), "up", lambda weight: np.where(weight == weight[0, 0], np.nan, weight))
        )
    with pytest.raises(RecipeError, match="seed must be 0 or more, got -1"):
        Rotate(seed=-1)
    with pytest.raises(RecipeError, match="heads must be True or False"):
        Rotate(heads=1)


def test_weights_in_half_precision_are_left_alone():
    text = """net (int64[b, 5] tokens) => (float16[b, 5, 8] y) {
        x = Gather (t, tokens) n = LayerNormalization (x, g) y = MatMul (n, w) }"""
    model = model_from_text(
        text, {"t": np.ones((9, 8), np.float16), "g": np.ones(8, np.float16), "w": np.eye(8, dtype=np.float16)}
    )
    assert "only float32 is taken; apply Float32 before" in rotated(model).notes[0].text


def test_one_head_over_the_whole_width():
    model = attention_network()
    notes = rotated(model).notes
    assert [note.place for note in notes] == ["x", "v"]
    assert "'x' is an input of the graph" in notes[0].text
    assert "8 channels rotated" in notes[1].text


def drawn(build):
    """A network with gains, shifts and biases that are not those of a new one."""

    def made():
        import torch

        module, example = build()
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
        return module, example

    return made


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "parted"), [("llama", False), ("gpt2", True)])
def test_networks_of_transformers(name, parted):
    pytest.importorskip("transformers")
    logging.getLogger("transformers").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from tests.graph.architectures_transformers import TRANSFORMERS
    model, example = exported(drawn(TRANSFORMERS[name]))
    result = rotated(model)
    assert relative_error(outputs_of(model, example), outputs_of(result, example)) < 5e-6
    assert len(result.graph) <= len(model.graph)
    told = [note.text for note in result.notes]
    assert sum("16 channels rotated" in text for text in told) == 1
    assert sum("8 channels rotated" in text for text in told) == 2
    assert any("bytes more" in text for text in told) == parted
    assert len(told) == 3 + parted, told
