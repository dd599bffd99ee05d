"""Clustering: what the graph holds, what it computes, what it weighs in the file, and what is said of the rest."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch

from alula.errors import DataError, ModelError, RecipeError
from alula.graph.load import model_from_proto
from alula.graph.statistics import MomentRequest, collect
from alula.graph.trainable import restored, trainable
from alula.numerics.clusters import clustering_error, find_codebook
from alula.targets import OnnxRuntime, OpenVino
from alula.techniques.cluster import Cluster, clustered_bytes
from alula.techniques.technique import Context
from alula.testing.conformance import check_valid, relative_error, with_weight
from alula.testing.models import model_from_text, random_feeds


def normal(*shape):
    return np.random.default_rng(list(shape)).standard_normal(shape).astype(np.float32)


def network():
    """A convolution, products of both layouts, a table, an LSTM."""
    text = """net (float[n, 8, 8, 8] x, int64[n] t, float[5, n, 12] s)
        => (float[n, 40] y, float[n, 30] z, float[1, n, 12] h) {
        a = Conv <pads = [1, 1, 1, 1]> (x, kernel, shift)
        p = GlobalAveragePool (a)
        f = Flatten (p)
        c = MatMul (f, right)
        y = Gemm <transB = 1> (c, rows, shift2)
        z = Gather (table, t)
        , h = LSTM <hidden_size = 12> (s, ahead, back)
    }"""
    shapes = {"kernel": (24, 8, 3, 3), "shift": (24,), "right": (24, 32), "rows": (40, 32), "shift2": (40,)}
    shapes |= {"table": (50, 30), "ahead": (1, 48, 12), "back": (1, 48, 12)}
    return model_from_text(text, {name: normal(*shape) for name, shape in shapes.items()})


WEIGHTS = ("kernel", "right", "rows", "table", "ahead", "back")


def treat(model, *, feeds=None, include=None, **settings):
    technique = Cluster(**settings)
    layers = tuple(layer for layer in model.layers() if include is None or layer.weight in include)
    statistics = collect(model, feeds or [random_feeds(model)], technique.requests(model, layers))
    return technique.apply(model, Context(layers, statistics))


def notes(model):
    return " / ".join(map(str, model.notes))


def unpacked(model, name, shape):
    """The values that codes and codebook stand for, from the bytes of the file up."""
    codes = model.weight(f"{name}.codes")
    if codes.dtype == np.uint8 and codes.shape != shape:
        codes = np.concatenate([codes % 16, codes // 16], axis=-1)
    return model.weight(f"{name}.codebook")[codes.astype(int)]


@pytest.mark.parametrize("values", [2, 3, 16, 17, 256])
def test_the_graph_computes_with_the_nearest_values(values):
    model = network()
    reference, result = model, treat(model, values=values)
    check_valid(result)
    for name in WEIGHTS:
        weight = model.weight(name)
        codebook = result.weight(f"{name}.codebook")
        assert 0.95 * values < len(codebook) <= values
        near = codebook[np.abs(weight[..., None] - codebook).argmin(-1)]
        np.testing.assert_array_equal(unpacked(result, name, weight.shape), near)
        error = ((weight - near).astype(np.float64) ** 2).sum()
        assert error == pytest.approx(clustering_error(weight.ravel(), find_codebook(weight, values)), rel=1e-4)
        reference = with_weight(reference, name, lambda _, near=near: near)
    feeds = random_feeds(model)
    expected, found = reference.run(feeds), result.run(feeds)
    for name, wanted in expected.items():
        np.testing.assert_allclose(found[name], wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("values", [2, 16, 17, 256])
def test_the_file_shrinks_as_predicted(values, tmp_path):
    model = network()
    result = treat(model, values=values)
    books = {name: result.weight(f"{name}.codebook").size for name in WEIGHTS}
    saved = sum(model.weight(name).nbytes - clustered_bytes(model.weight(name).shape, books[name]) for name in WEIGHTS)
    unpacking = 3 if values <= 16 else 0  # two masks and a shift, of one byte
    assert model.weight_bytes - result.weight_bytes == saved - unpacking
    assert result.size_bytes == result.save(tmp_path / "net.onnx").stat().st_size
    for name in WEIGHTS:
        narrow = ir.DataType.UINT8 if name == "table" or values > 16 else ir.DataType.UINT4
        assert result.graph.initializers[f"{name}.codes"].dtype == narrow
    assert result.weight("table.codes").shape == (50, 15 if values <= 16 else 30)


def test_more_values_err_less():
    model = network()
    feeds = random_feeds(model)
    errors = [
        relative_error(model.run(feeds), treat(model, values=values).run(feeds)) for values in (2, 4, 16, 64, 256)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.02


def test_few_different_weights_lose_nothing():
    model = with_weight(network(), "kernel", lambda weight: np.sign(weight) * 0.7)
    result = treat(model, values=16, include={"kernel"})
    assert result.weight("kernel.codebook").tolist() == np.float32([-0.7, 0.7]).tolist()
    feeds = random_feeds(model)
    assert relative_error(model.run(feeds), result.run(feeds)) == 0


@pytest.mark.parametrize("values", [2, 16, 100])
def test_zeros_stay_zero(values):
    model = network()
    for name in WEIGHTS:
        model = with_weight(model, name, lambda weight: np.where(np.abs(weight) < 0.8, 0, weight + 1))
    kept, moved = treat(model, values=values, keep_zeros=True), treat(model, values=values)
    for name in WEIGHTS:
        weight = model.weight(name)
        near = unpacked(kept, name, weight.shape)
        assert ((near == 0) >= (weight == 0)).all()
        assert len(kept.weight(f"{name}.codebook")) <= values
    assert any(
        (unpacked(moved, name, model.weight(name).shape)[model.weight(name) == 0] != 0).any() for name in WEIGHTS
    )
    empty = treat(with_weight(model, "right", np.zeros_like), keep_zeros=True, include={"right"})
    assert empty.weight("right.codebook").tolist() == [0]


def test_weighted_by_what_the_inputs_are_errs_less():
    """Half of the inputs are a hundred times as large as the others, and their weights lie elsewhere."""
    weight = normal(64, 32)
    weight[::2] += 8
    model = model_from_text("net (float[n, 64] x) => (float[n, 32] y) { y = MatMul (x, w) }", {"w": weight})
    feeds = random_feeds(model, batch=64)
    feeds["x"][:, ::2] *= 100
    errors = [
        relative_error(model.run(feeds), treat(model, values=8, weighted=weighted, feeds=[feeds]).run(feeds))
        for weighted in (False, True)
    ]
    assert errors[1] < 0.7 * errors[0]


@pytest.mark.parametrize("text", ["Gemm <transB = 1> (x, w)", "Gemm (x, v)", "MatMul (x, v)"])
def test_importance_lies_along_the_inputs_of_any_layout(text):
    """The codebook is that of k-means weighted by the mean square of each input."""
    weight = normal(6, 40)
    weights = {"w": weight} if "(x, w)" in text else {"v": np.ascontiguousarray(weight.T)}
    model = model_from_text(f"net (float[n, 40] x) => (float[n, 6] y) {{ y = {text} }}", weights)
    feeds = random_feeds(model, batch=64)
    feeds["x"] *= np.geomspace(0.1, 10, 40).astype(np.float32)
    result = treat(model, values=2, weighted=True, feeds=[feeds])
    importance = np.broadcast_to((feeds["x"].astype(np.float64) ** 2).mean(0), (6, 40))
    codebook = next(result.weight(name) for name in result.graph.initializers if name.endswith(".codebook"))
    np.testing.assert_allclose(codebook, find_codebook(weight, 2, importance=importance), rtol=1e-4)


def test_moments_are_asked_for_where_they_weigh():
    model = network()
    assert Cluster().requests(model, model.layers()) == frozenset()
    asked = Cluster(weighted=True).requests(model, model.layers())
    products = [layer.name for layer in model.layers() if layer.weight in ("kernel", "right", "rows")]
    assert asked == {MomentRequest(name) for name in products}
    with pytest.raises(ModelError, match=f"layer '{products[0]}'.*moments"):
        Cluster(weighted=True).apply(model, Context(model.layers()))


@pytest.mark.parametrize("values", [2, 16, 256])
@pytest.mark.parametrize("target", [OnnxRuntime(threads=1), OpenVino(threads=1)], ids=lambda target: target.name)
def test_runtimes_compute_what_the_graph_says(values, target, tmp_path):
    result = treat(network(), values=values)
    feeds = random_feeds(result, batch=40)
    opened = target.open(target.build(result, tmp_path))
    assert relative_error(result.run(feeds), opened(feeds)) < 1e-5


@pytest.mark.parametrize("values", [16, 256])
def test_onnx_runtime_looks_weights_up_once_when_it_loads(values, tmp_path):
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = str(tmp_path / "net.onnx"), 4
    result = treat(network(), values=values)
    onnxruntime.InferenceSession(result.to_bytes(), options, providers=["CPUExecutionProvider"])
    left = [node for node in onnx.load(tmp_path / "net.onnx").graph.node if node.op_type == "Gather"]
    assert {name for node in left for name in node.input if name.startswith("table.")} == {
        "table.codes",
        "table.codebook",
    }
    assert len(left) == 2, "rows of codes, and their values: the table is never made whole"


@pytest.mark.parametrize("values", [16, 256])
def test_a_clustered_file_is_opened_as_it_is(values):
    result = treat(network(), values=values)
    again = model_from_proto(onnx.load_model_from_string(result.to_bytes()))
    assert again.weight_bytes == result.weight_bytes
    feeds = random_feeds(result)
    assert relative_error(result.run(feeds), again.run(feeds)) < 1e-6


@pytest.mark.parametrize("values", [4, 256])
def test_codebooks_are_trained_and_codes_stay(values):
    """Trained quantization (Han et al. 2016, section 3.3): a value's gradient is the sum of those of its weights."""
    model = network()
    result = treat(model, values=values, include={"kernel", "right", "rows", "table"})
    module, near = trainable(result), unpacked(result, "right", (24, 32))
    lone = trainable(treat(model, values=values, include={"right"}))
    plain = trainable(with_weight(model, "right", lambda _: near))
    feeds = [torch.from_numpy(array) for array in random_feeds(model).values()]
    for one in (module, lone, plain):
        one(*feeds)[0].square().sum().backward()
    gradient = dict(plain.named_parameters())["right"].grad.numpy()
    wanted = np.bincount(result.weight("right.codes").astype(np.int64).ravel(), gradient.ravel())
    np.testing.assert_allclose(dict(lone.named_parameters())["right.codebook"].grad, wanted, rtol=1e-3, atol=1e-3)
    assert {f"{name}.codebook" for name in ("kernel", "right", "rows", "table")} <= set(dict(module.named_parameters()))
    torch.optim.SGD(module.parameters(), lr=1e-3).step()
    trained = restored(module)
    assert not np.array_equal(trained.weight("right.codebook"), result.weight("right.codebook"))
    np.testing.assert_array_equal(trained.weight("right.codes"), result.weight("right.codes"))
    assert trained.weight_bytes == result.weight_bytes


def test_what_would_grow_stays_with_the_figures():
    model = model_from_text("net (float[n, 16] x) => (float[n, 8] y) { y = MatMul (x, w) }", {"w": normal(16, 8)})
    for values, size in ((256, 1552), (16, 528)):
        result = treat(model, values=values)
        assert result.to_bytes() == model.to_bytes()
        assert f"stays in float: it would take {size:,} bytes instead of 512" in notes(result)
    for size in range(8, 60, 4):
        weight = normal(16, size)
        model = model_from_text(f"net (float[n, 16] x) => (float[n, {size}] y) {{ y = MatMul (x, w) }}", {"w": weight})
        result = treat(model, values=16)
        assert (result.size_bytes < model.size_bytes) == (not result.notes), "never larger, nor refused when smaller"


@pytest.mark.parametrize(("shape", "axis"), [((50, 7), 0), ((20, 50), 1), ((30, 4, 5), 0), ((30, 5, 4), 0)], ids=str)
@pytest.mark.parametrize("values", [4, 64])
def test_tables_of_every_shape(values, shape, axis):
    table = normal(*shape)
    wanted = ", ".join(map(str, [*shape[:axis], "n", 2, *shape[axis + 1 :]]))
    text = f"net (int64[n, 2] t) => (float[{wanted}] y) {{ y = Gather <axis = {axis}> (w, t) }}"
    result = treat(model_from_text(text, {"w": table}), values=values)
    codebook = result.weight("w.codebook")
    near = codebook[np.abs(table[..., None] - codebook).argmin(-1)]
    rows = np.array([[0, 19], [7, 3], [0, -1]])
    np.testing.assert_array_equal(result.run({"t": rows})["y"], np.take(near, rows, axis=axis))
    packed = values <= 16 and axis == 0 and shape[-1] % 2 == 0
    assert result.weight("w.codes").size == table.size // (2 if packed else 1)


def test_a_weight_that_others_need_in_float_stays():
    text = "net (float[n, 32] x) => (float[n, 32] y) { a = MatMul (x, w) y = MatMul (a, w) }"
    model = model_from_text(text, {"w": normal(32, 32)})
    first, second = model.layers()
    alone = Cluster().apply(model, Context((first,)))
    assert alone.to_bytes() == model.to_bytes()
    assert f"shared with {second.name}" in notes(alone)
    both = Cluster().apply(model, Context((first, second)))
    assert sorted(both.graph.initializers) == ["w.codebook", "w.codes"]
    tied = "net (int64[n] t, float[n, 32] x) => (float[n, 32] a, float[n, 40] y) { a = Gather (w, t) y = Gemm <transB = 1> (x, w) }"  # fmt: skip  # noqa: E501
    assert "its table is read otherwise too" in notes(treat(model_from_text(tied, {"w": normal(40, 32)})))
    twice = "net (int64[n] t, int64[2] s) => (float[n, 32] a, float[2, 32] y) { a = Gather (w, t) y = Gather (w, s) }"
    model = model_from_text(twice, {"w": normal(40, 32)})
    feeds = {"t": np.array([3, 4]), "s": np.array([3, 39])}
    found = treat(model, values=16).run(feeds)
    np.testing.assert_array_equal(found["a"][0], found["y"][0])


def test_only_float32_is_clustered():
    model = model_from_text("net (float16[n, 64] x) => (float16[n, 64] y) { y = MatMul (x, w) }", {"w": np.ones((64, 64), "f2")})  # fmt: skip  # noqa: E501
    assert "float16" in notes(treat(model))


def test_same_bytes_and_the_input_unchanged():
    model = network()
    before = model.to_bytes()
    assert treat(model).to_bytes() == treat(network()).to_bytes()
    assert model.to_bytes() == before


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_broken_weights_are_refused_by_layer(poison):
    model = with_weight(network(), "right", lambda weight: np.where(weight == weight.flat[5], poison, weight))
    with pytest.raises(DataError, match=r"layer 'MatMul_\d+'.*1 "):
        Cluster().apply(model, Context(model.layers()))


@pytest.mark.parametrize("values", [1, 257, 0])
def test_impossible_settings_are_refused(values):
    with pytest.raises(RecipeError, match="values must be 2 to 256"):
        Cluster(values)
