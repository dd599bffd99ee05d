"""Number formats in the graph: what the file holds, what runtimes compute of it, what it weighs, what stays and why."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch

from alula.errors import DataError, RecipeError
from alula.graph.load import model_from_proto
from alula.graph.trainable import restored, trainable
from alula.numerics.formats import E2M1, E4M3, E5M2, to_float, to_microscaling, to_normal_float, to_ternary
from alula.targets import OnnxRuntime, OpenVino
from alula.techniques import Context, Recode
from alula.techniques.recode import bytes_of
from alula.testing.conformance import check_valid, relative_error, with_weight
from alula.testing.models import model_from_text, random_feeds

FORMATS = ("float8_e4m3", "float8_e5m2", "float4_e2m1", "mxfp8", "mxfp4", "nf4", "ternary")
SETTINGS = [Recode(form) for form in FORMATS]
SETTINGS += [Recode("float8_e4m3", 40), Recode("nf4", 8), Recode("ternary", 40)]  # blocks that divide some layers
EVERY = pytest.mark.parametrize("technique", SETTINGS, ids=lambda one: f"{one.format}-{one.block}")


def normal(*shape):
    return np.random.default_rng(list(shape)).standard_normal(shape).astype(np.float32)


def network():
    """A convolution with groups, one transposed, products of both layouts and from the left, a table, an LSTM."""
    text = """net (float[n, 16, 8, 8] x, int64[n] t, float[5, n, 40] s)
        => (float[n, 40] y, float[n, 36] z, float[1, n, 12] h, float[n, 30, 8] m) {
        a = Conv <pads = [1, 1, 1, 1], group = 2> (x, kernel, shift)
        b = ConvTranspose (a, back)
        p = GlobalAveragePool (b)
        f = Flatten (p)
        c = MatMul (f, right)
        y = Gemm <transB = 1> (c, rows, shift2)
        z = Gather (table, t)
        l = Reshape (c, apart)
        m = MatMul (left, l)
        , h = LSTM <hidden_size = 12> (s, ahead, again)
    }"""
    shapes = {"kernel": (24, 8, 3, 3), "shift": (24,), "back": (24, 20, 2, 2), "right": (20, 320), "rows": (40, 320)}
    shapes |= {"shift2": (40,), "table": (50, 36), "left": (30, 40), "ahead": (1, 48, 40), "again": (1, 48, 12)}
    weights = {name: normal(*shape) for name, shape in shapes.items()}
    return model_from_text(text, weights | {"apart": np.array([-1, 40, 8])})


# the shape that blocks are seen in, along its middle axis; and the axis of scales per channel
WEIGHTS = {
    "kernel": ((24, 72, 1), 0), "back": ((1, 24, 80), 1), "right": ((1, 20, 320), 1), "rows": ((40, 320, 1), 0),
    "table": ((50, 36, 1), 0), "left": ((30, 40, 1), 0), "ahead": ((48, 40, 1), 1), "again": ((48, 12, 1), 1),
}  # fmt: skip


def treat(model, technique, include=None):
    layers = tuple(layer for layer in model.layers() if include is None or layer.weight in include)
    return technique.apply(model, Context(layers))


def notes(model):
    return " / ".join(map(str, model.notes))


def expected_values(weight, view, axis, technique):
    """What the format makes of a weight, by the maths alone."""
    block = 32 if technique.format.startswith("mx") else technique.block
    seen = weight if block is None else weight.reshape(view)
    where = {"axis": axis if block is None else 1, "block": block}
    made = {
        "float8_e4m3": lambda: to_float(seen, E4M3, **where),
        "float8_e5m2": lambda: to_float(seen, E5M2, **where),
        "float4_e2m1": lambda: to_float(seen, E2M1, **where),
        "mxfp8": lambda: to_microscaling(seen, E4M3, axis=1),
        "mxfp4": lambda: to_microscaling(seen, E2M1, axis=1),
        "nf4": lambda: to_normal_float(seen, **where),
        "ternary": lambda: to_ternary(seen, **where),
    }
    return made[technique.format]().values().reshape(weight.shape)


@EVERY
def test_the_graph_computes_with_the_values_of_the_format(technique):
    model = network()
    reference, result = model, treat(model, technique)
    check_valid(result)
    assert not result.layers(), notes(result)
    for name, (view, axis) in WEIGHTS.items():
        near = expected_values(model.weight(name), view, axis, technique)
        assert 0 < np.linalg.norm(near - model.weight(name)) < 0.6 * np.linalg.norm(near)
        reference = with_weight(reference, name, lambda _, near=near: near)
        alone = decoded(result, name)
        np.testing.assert_array_equal(alone, near)
    feeds = random_feeds(model)
    assert relative_error(reference.run(feeds), result.run(feeds)) < 1e-5


def decoded(model, name):
    """A weight as ONNX Runtime decodes it from the file."""
    graph = onnx.load_model_from_string(model.to_bytes())
    del graph.graph.output[:]
    graph.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run([name], random_feeds(model))[0]


@EVERY
def test_the_file_shrinks_as_predicted(technique, tmp_path):
    model = network()
    result = treat(model, technique)
    assert result.size_bytes == result.save(tmp_path / "net.onnx").stat().st_size
    held = {name: value.const_value.nbytes for name, value in result.graph.initializers.items()}
    for name in WEIGHTS:
        assert held[f"{name}.codes"] == bytes_of(model.weight(name).shape, technique.format)
    bits = {"float8_e4m3": 8, "float8_e5m2": 8, "float4_e2m1": 4, "mxfp8": 8, "mxfp4": 4, "nf4": 4, "ternary": 1.6}
    codes = sum(size for name, size in held.items() if name.endswith(".codes"))
    count = sum(model.weight(name).size for name in WEIGHTS)
    assert codes == pytest.approx(count * bits[technique.format] / 8, rel=1e-3)
    scales = sum(size for name, size in held.items() if name.endswith((".scale", ".exponents")))
    block = 32 if technique.format.startswith("mx") else technique.block
    parts = [view[0] * -(-view[1] // block) * view[2] if block else model.weight(name).shape[axis]
             for name, (view, axis) in WEIGHTS.items()]  # fmt: skip
    assert scales == sum(parts) * (1 if technique.format.startswith("mx") else 4)
    assert model.size_bytes - result.size_bytes > 4 * count - codes - scales - 11_000, "tables, names, operators"


def test_storage_types():
    model = network()
    kinds = {form: treat(model, Recode(form)).graph.initializers["rows.codes"].dtype for form in FORMATS}
    assert kinds == {
        "float8_e4m3": ir.DataType.FLOAT8E4M3FN, "float8_e5m2": ir.DataType.FLOAT8E5M2,
        "mxfp8": ir.DataType.FLOAT8E4M3FN, "float4_e2m1": ir.DataType.UINT4, "mxfp4": ir.DataType.UINT4,
        "nf4": ir.DataType.UINT4, "ternary": ir.DataType.UINT8,
    }  # fmt: skip
    powers = treat(model, Recode("mxfp4")).graph.initializers["rows.exponents"]
    assert powers.dtype == ir.DataType.UINT8


@EVERY
@pytest.mark.parametrize("target", [OnnxRuntime(threads=1), OpenVino(threads=1)], ids=lambda target: target.name)
def test_runtimes_compute_what_the_graph_says(technique, target, tmp_path):
    result = treat(network(), technique)
    feeds = random_feeds(result, batch=8)
    opened = target.open(target.build(result, tmp_path))
    assert relative_error(result.run(feeds), opened(feeds)) < 1e-4


@EVERY
def test_onnx_runtime_decodes_once_when_it_loads(technique, tmp_path):
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = str(tmp_path / "net.onnx"), 4
    result = treat(network(), technique)
    onnxruntime.InferenceSession(result.to_bytes(), options, providers=["CPUExecutionProvider"])
    left = [node.op_type for node in onnx.load(tmp_path / "net.onnx").graph.node]
    assert left.count("Gather") == 1, "the look-up of rows"
    assert not {"Cast", "Mul", "Slice", "DequantizeLinear"} & set(left)


@EVERY
def test_a_recoded_file_is_opened_as_it_is(technique):
    result = treat(network(), technique)
    again = model_from_proto(onnx.load_model_from_string(result.to_bytes()))
    assert again.weight_bytes == result.weight_bytes
    feeds = random_feeds(result)
    assert relative_error(result.run(feeds), again.run(feeds)) < 1e-6


@pytest.mark.parametrize("technique", [SETTINGS[0], SETTINGS[4], *SETTINGS[-2:]], ids=lambda one: one.format)
def test_scales_are_trained_and_codes_stay(technique):
    result = treat(network(), technique)
    module = trainable(result)
    feeds = {name: torch.from_numpy(array) for name, array in random_feeds(result).items()}
    outputs = module(*feeds.values())
    wanted = result.run({name: tensor.numpy() for name, tensor in feeds.items()})
    for name, output in zip(wanted, outputs, strict=True):
        np.testing.assert_allclose(output.detach(), wanted[name], rtol=1e-3, atol=1e-3)
    names = set(dict(module.named_parameters()))
    assert not any(name.endswith(".codes") for name in names)
    outputs[0].square().sum().backward()
    torch.optim.SGD(module.parameters(), lr=1e-6).step()
    trained = restored(module)
    assert trained.weight_bytes == result.weight_bytes
    np.testing.assert_array_equal(
        trained.weight("rows.codes").astype(np.float32), result.weight("rows.codes").astype(np.float32)
    )
    scale = "rows.powers" if technique.format.startswith("mx") else "rows.scale"
    assert scale in names
    assert not np.array_equal(trained.weight(scale), result.weight(scale))


def test_what_would_grow_stays_with_the_figures():
    for form in FORMATS:
        grew, shrank = 0, 0
        for size in (1, 8, 16, 24, 32, 40, 56, 80):
            text = f"net (float[n, 16] x) => (float[n, {size}] y) {{ y = MatMul (x, w) }}"
            model = model_from_text(text, {"w": normal(16, size)})
            result = treat(model, Recode(form))
            if result.notes:
                assert "stays in float: it would take" in notes(result)
                assert f"instead of {64 * size:,}" in notes(result)
                assert result.to_bytes() == model.to_bytes()
                grew += 1
            else:
                assert result.size_bytes < model.size_bytes
                shrank += 1
        assert grew, form
        assert shrank, form


def test_blocks_may_be_many_and_the_last_one_short():
    """More than 256 blocks in a row: their numbers need two bytes."""
    weight = normal(40, 1301)
    model = model_from_text(
        "net (float[n, 1301] x) => (float[n, 40] y) { y = Gemm <transB = 1> (x, w) }", {"w": weight}
    )
    for form in ("nf4", "ternary", "float8_e4m3"):
        result = treat(model, Recode(form, block=5))
        near = expected_values(weight, (40, 1301, 1), 0, Recode(form, block=5))
        np.testing.assert_array_equal(decoded(result, "w"), near)
        assert result.graph.initializers["columns.1301.5"].dtype == ir.DataType.UINT16
        again = model_from_proto(onnx.load_model_from_string(result.to_bytes()))
        assert again.weight_bytes == result.weight_bytes


def test_codebooks_are_shared_by_all_layers():
    result = treat(network(), Recode("nf4"))
    assert [name for name in result.graph.initializers if "codebook" in name] == ["nf4.codebook"]
    both = treat(treat(network(), Recode("nf4"), {"rows"}), Recode("ternary"), {"right", "kernel"})
    check_valid(both)
    assert {name for name in both.graph.initializers if "codebook" in name} == {"nf4.codebook", "ternary.codebook"}
    assert {layer.weight for layer in both.layers()} == set(WEIGHTS) - {"rows", "right", "kernel", "again"}


def test_a_weight_that_others_need_in_float_stays():
    text = "net (float[n, 64] x) => (float[n, 64] y) { a = MatMul (x, w) y = MatMul (a, w) }"
    model = model_from_text(text, {"w": normal(64, 64)})
    first, second = model.layers()
    alone = Recode("nf4").apply(model, Context((first,)))
    assert alone.to_bytes() == model.to_bytes()
    assert f"shared with {second.name}" in notes(alone)
    both = Recode("nf4").apply(model, Context((first, second)))
    assert sorted(both.graph.initializers) == ["nf4.codebook", "w.codes", "w.scale"]


def test_only_float32_is_recoded():
    text = "net (float16[n, 64] x) => (float16[n, 64] y) { y = MatMul (x, w) }"
    model = model_from_text(text, {"w": np.ones((64, 64), "f2")})
    assert "float16" in notes(treat(model, Recode()))


@pytest.mark.parametrize("form", FORMATS)
def test_weights_that_are_zero(form):
    model = with_weight(network(), "rows", np.zeros_like)
    assert not decoded(treat(model, Recode(form)), "rows").any()


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_broken_weights_are_refused_by_layer(poison):
    model = with_weight(network(), "right", lambda weight: np.where(weight == weight.flat[5], poison, weight))
    with pytest.raises(DataError, match=r"layer 'MatMul_\d+'.*1 "):
        treat(model, Recode("mxfp4"))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"format": "float6"}, "format must be 'float8_e4m3', .*'ternary', got 'float6'"),
        ({"format": "nf4", "block": 0}, "block must be at least 1, got 0"),
        ({"format": "mxfp4", "block": 16}, "blocks of mxfp4 are of 32 by its specification, got block=16"),
        ({"block": 8.0}, "block must be a whole number or None, got 8.0"),
    ],
)
def test_impossible_settings_are_refused(settings, words):
    with pytest.raises(RecipeError, match=words):
        Recode(**settings)
    assert Recode("mxfp8", 32).block == 32
