"""Zeros that save bytes: the same values from fewer bytes, filled in when the file is loaded and not at every run."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from alula.errors import AlulaError, RecipeError
from alula.graph.running import Runner
from alula.graph.trainable import restored, trainable
from alula.targets import OnnxRuntime, OpenVino
from alula.techniques import Context, Float16, Quantize, QuantizeDynamic, QuantizeWeights, sparse_storage
from alula.techniques.sparse_storage import StoreSparse, encode_bits, encode_gaps
from alula.techniques.sparsify import Sparsify
from alula.testing.conformance import TechniqueConformance, attempt, check_valid, with_weight
from alula.testing.models import dense_network, model_from_text, random_feeds


class TestEverythingStored(TechniqueConformance):
    tolerance = 0.0  # no value changes

    @pytest.fixture
    def technique(self):
        return StoreSparse(least_gain=0)


def store(model, **settings):
    return StoreSparse(**settings).apply(model, Context(model.layers()))


def sparse_weight(*shape, share, kind=np.float32, seed=0):
    """Normal numbers (codes: whole ones) of which a share is zero."""
    random = np.random.default_rng(seed)
    weight = random.integers(1, 120, shape) if kind == np.int8 else random.standard_normal(shape)
    return np.where(random.random(shape) < share, 0, weight).astype(kind)


def one_product(weight):
    kind = {np.float32: "float", np.float64: "double", np.float16: "float16"}[weight.dtype.type]
    rows, columns = weight.shape
    return model_from_text(
        f"net ({kind}[n, {rows}] x) => ({kind}[n, {columns}] y) {{ y = MatMul (x, w) }}", {"w": weight}
    )


def convolutions():
    """A network large enough that its zeros save bytes."""
    random = np.random.default_rng(0)
    shapes = {
        "w1": (64, 32, 3, 3),
        "b1": (64,),
        "w2": (96, 64, 3, 3),
        "b2": (96,),
        "w3": (96, 160),
        "w4": (10, 160),
        "b4": (10,),
    }
    weights = {name: (random.standard_normal(shape) / 9).astype(np.float32) for name, shape in shapes.items()}
    return model_from_text(
        """net (float[n, 32, 8, 8] image) => (float[n, 10] scores) {
            a = Conv <pads = [1, 1, 1, 1]> (image, w1, b1) c = Relu (a)
            d = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (c, w2, b2) e = Relu (d)
            p = GlobalAveragePool (e) f = Flatten (p) m = MatMul (f, w3) r = Relu (m)
            scores = Gemm <transB = 1> (r, w4, b4) }""",
        weights,
    )


def decoded(model, name, shape):
    """A weight as the graph computes it."""
    graph = model.edit()
    value = next(value for node in graph.graph for value in node.outputs if value.name == name)
    graph.graph.outputs.append(value)
    found = Runner(model.edited(graph), threads=1)(random_feeds(model))[name]
    assert found.shape == shape
    return found


def executed(data, folder):
    """The operators that ONNX Runtime is left with, in order."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return [node.op_type for node in onnx.load(folder / "optimised.onnx").graph.node]


FLATS = arrays(np.float32, st.integers(1, 900), elements=st.integers(0, 3).map(float), fill=st.just(0.0))


@given(FLATS)
def test_gaps_say_where_values_stand(flat):
    gaps, values = encode_gaps(flat)
    places = np.cumsum(gaps.astype(int)) - 1
    again = np.zeros_like(flat)
    again[places] = values
    np.testing.assert_array_equal(again, flat)
    assert (gaps >= 1).all()
    assert len(set(places.tolist())) == len(places)


@given(FLATS)
def test_bits_say_where_values_stand(flat):
    bits, values = encode_bits(flat)
    mask = np.unpackbits(bits, bitorder="little").astype(bool)
    assert not mask[len(flat) :].any()
    again = np.zeros_like(flat)
    again[mask[: len(flat)]] = values if mask.any() else []
    np.testing.assert_array_equal(again, flat)


@pytest.mark.parametrize("place", [0, 1, 253, 254, 255, 256, 510, 511, 700])
def test_long_gaps_take_several_entries(place):
    """Han et al. 2016, figure 3: at most 255 places to an entry, zeros stored between."""
    flat = np.zeros(800, np.float32)
    flat[[place, 799]] = 5, 7
    gaps, values = encode_gaps(flat)
    assert (values != 0).sum() == 2
    assert len(gaps) == -(-(place + 1) // 255) + -(-(799 - place) // 255)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 0.8, 0.9, 0.97, 0.999, 1.0])
@pytest.mark.parametrize(("shape", "kind"), [((256, 128), np.float32), ((150, 101), np.float64)])
def test_values_stay_and_bytes_are_as_predicted(share, kind, shape, tmp_path):
    weight = sparse_weight(*shape, share=share, kind=kind)
    model = one_product(weight)
    result = store(model)
    check_valid(result)
    assert result.size_bytes == result.save(tmp_path / "net.onnx").stat().st_size
    if share == 0:
        assert result.fingerprint == model.fingerprint
        return
    np.testing.assert_array_equal(decoded(result, "w", shape), weight)
    feeds = random_feeds(model)
    np.testing.assert_array_equal(result.run(feeds)["y"], model.run(feeds)["y"])
    assert f"bytes as {'gaps' if share > 0.85 else 'bits'}" in str(result.notes[0])
    assert 200 < unaccounted(model, result) < 650, "the triangle, once"
    assert result.size_bytes < model.size_bytes


def unaccounted(model, result):
    """The bytes of the file that no note tells of."""
    told = [re.search(r"takes ([\d,]+) bytes as \w+, ([\d,]+) dense", note.text) for note in result.notes]
    saved = sum(int(one[2].replace(",", "")) - int(one[1].replace(",", "")) for one in told if one)
    return result.size_bytes - model.size_bytes + saved


@pytest.mark.parametrize("share", [0.5, 0.95])
def test_each_weight_is_told_to_the_byte(share):
    """Two weights cost what both notes say; what they share costs as much as for one (a length takes a byte or two)."""
    weights = {"w": sparse_weight(100, 90, share=share), "v": sparse_weight(90, 100, share=share, seed=1)}
    text = "net (float[n, 100] x) => (float[n, 100] y) { a = MatMul (x, w) y = MatMul (a, v) }"
    one, two = one_product(weights["w"]), model_from_text(text, weights)
    assert abs(unaccounted(two, store(two)) - unaccounted(one, store(one))) <= 2


def test_bytes_per_weight():
    """Per weight, of which a share d is not zero: gaps d (4 + 1) bytes, bits 4 d + 1/8."""
    for share, wanted in ((0.95, 0.05 * 5), (0.5, 4 * 0.5 + 1 / 8), (0.75, 4 * 0.25 + 1 / 8)):
        weight = sparse_weight(512, 512, share=share)
        assert store(one_product(weight)).size_bytes / weight.size == pytest.approx(wanted, rel=0.06), share


@pytest.mark.parametrize("share", [0.5, 0.97, 0.9999])
def test_runtimes_fill_zeros_in_at_load(share, tmp_path):
    model = one_product(sparse_weight(256, 200, share=share))
    result = store(model)
    assert executed(result.to_bytes(), tmp_path) == ["MatMul"]
    target = OpenVino(threads=1)
    for number, graph in enumerate((model, result)):
        opened = target.open(target.build(graph, tmp_path / str(number)))
        kinds = Counter(
            node.get_rt_info()["layerType"].astype(str)
            for node in opened._compiled.get_runtime_model().get_ordered_ops()
        )
        assert not {"Gather", "ScatterElementsUpdate", "Eltwise", "Convert"} & set(kinds), kinds
        assert kinds["FullyConnected"] == 1, "the triangle's products are gone"


@pytest.mark.parametrize(
    "technique", [None, Float16(), Quantize(outputs=False), QuantizeDynamic()], ids=lambda one: type(one).__name__
)
def test_targets_compute_the_same_with_the_same_operators(technique, tmp_path):
    model = convolutions()
    feeds = random_feeds(model, batch=3)
    model = attempt(Sparsify(0.75), model, feeds)
    if technique is not None:
        model = attempt(technique, model, feeds)
    result = store(model)
    assert result.size_bytes < 0.6 * model.size_bytes
    check_valid(result)
    for target in (OnnxRuntime(threads=1), OpenVino(threads=1)):
        artifacts = [
            target.build(graph, tmp_path / f"{target.name} {index}") for index, graph in enumerate((model, result))
        ]
        dense, sparse = (target.open(artifact)(feeds)["scores"] for artifact in artifacts)
        np.testing.assert_array_equal(sparse, dense)
        assert artifacts[1].size_bytes < artifacts[0].size_bytes
        if target.name == "onnxruntime":
            first, second = (executed(artifact.path.read_bytes(), tmp_path) for artifact in artifacts)
            assert first == second, "what the runtime executes"


def test_codes_fuse_into_integer_kernels(tmp_path):
    model = convolutions()
    feeds = random_feeds(model, batch=3)
    model = attempt(Quantize(), attempt(Sparsify(0.8), model, feeds), feeds)
    result = store(model)
    kinds = Counter(executed(result.to_bytes(), tmp_path))
    assert kinds["QLinearConv"] == 2
    assert kinds["QGemm"] + kinds["QLinearMatMul"] == 2
    assert not {"Conv", "MatMul", "Gemm", "DequantizeLinear", "Gather"} & set(kinds)
    assert "Conv_1: w2.codes takes" in " / ".join(map(str, result.notes))


def test_what_would_not_be_smaller_stays_with_both_figures():
    model = dense_network()
    result = store(attempt(Sparsify(0.5), model, random_feeds(model)))
    assert result.fingerprint == attempt(Sparsify(0.5), model, random_feeds(model)).fingerprint
    text = " / ".join(map(str, result.notes))
    assert re.search(r"hidden_weight stays dense: 2,\d\d\d bytes, 2,\d\d\d as gaps \(50.0% zeros\)", text), text
    assert "the file would not be smaller" in str(result.notes[-1])


def test_one_weight_large_enough_beside_one_that_is_not():
    weights = {"w": sparse_weight(100, 100, share=0.9), "v": sparse_weight(100, 2, share=0.9)}
    model = model_from_text("net (float[n, 100] x) => (float[n, 2] y) { a = MatMul (x, w) y = MatMul (a, v) }", weights)
    result = store(model)
    assert "v" in result.graph.initializers
    assert "w" not in result.graph.initializers
    assert [note.text.split()[1] for note in result.notes[:2]] == ["takes", "stays"]


def test_a_gain_that_is_asked_for():
    model = one_product(sparse_weight(128, 128, share=0.5))  # 1.8 times fewer bytes
    assert store(model, least_gain=1.5).size_bytes < model.size_bytes
    assert store(model, least_gain=2).fingerprint == model.fingerprint
    for wrong in (-1, float("nan")):
        with pytest.raises(RecipeError, match="least_gain"):
            StoreSparse(least_gain=wrong)


def test_the_smaller_form_is_taken_not_the_first(monkeypatch):
    for share in (0.5, 0.97):
        model = one_product(sparse_weight(200, 200, share=share))
        best = store(model).size_bytes
        for form in ("gaps", "bits"):
            monkeypatch.setattr(sparse_storage, "_FORMS", {form: getattr(sparse_storage, f"_write_{form}")})
            assert store(model).size_bytes >= best
            monkeypatch.undo()


def test_it_says_that_zeros_save_no_time():
    result = store(one_product(sparse_weight(100, 100, share=0.9)))
    assert "neither time nor memory" in str(result.notes[-1])


def test_stored_once_is_stored():
    once = store(convolutions_with_zeros())
    twice = store(once)
    assert twice.to_bytes() == once.to_bytes()


def convolutions_with_zeros():
    model = convolutions()
    return Sparsify(0.9).apply(model, Context(model.layers()))


def test_packed_codes_stay():
    model = convolutions_with_zeros()
    packed = attempt(QuantizeWeights(bits=4, smallest=1), model, random_feeds(model))
    result = store(packed)
    assert result.fingerprint == packed.fingerprint
    assert "w1.codes stays dense: no runtime puts values of type int4 in their places" in str(result.notes[-5])


def test_what_is_read_elsewhere_stays():
    weight = sparse_weight(64, 64, share=0.9)
    text = "net (float[n, 64] x) => (float[n, 64] y, float[64, 64] w) { y = MatMul (x, w) }"
    result = store(model_from_text(text, {"w": weight}))
    assert "w stays dense: it is an output of the graph too" in str(result.notes[0])
    shared = model_from_text(
        "net (float[n, 64] x) => (float[n, 64] y) { a = MatMul (x, w) y = MatMul (a, w) }", {"w": weight}
    )
    first, second = shared.layers()
    assert f"shared with {second.name}" in str(StoreSparse().apply(shared, Context((first,))).notes[0])
    both = store(shared)
    assert Counter(node.op_type for node in both.graph)["ScatterElements"] == 1, "filled in once"
    feeds = random_feeds(shared)
    np.testing.assert_array_equal(both.run(feeds)["y"], shared.run(feeds)["y"])


def test_recurrent_weights_and_tables():
    random = np.random.default_rng(0)
    weights = {
        "table": sparse_weight(400, 32, share=0.9), "w": sparse_weight(1, 256, 32, share=0.9),
        "r": sparse_weight(1, 256, 64, share=0.9), "b": random.standard_normal((1, 512)).astype(np.float32),
    }  # fmt: skip
    text = (
        "net (int64[5, n] tokens) => (float[5, 1, n, 64] y) { x = Gather (table, tokens) "
        "y = LSTM <hidden_size = 64> (x, w, r, b) }"
    )
    model = model_from_text(text, weights)
    result = store(model)
    assert not {"table", "w", "r"} & set(result.graph.initializers)
    feeds = {"tokens": random.integers(0, 400, (5, 3))}
    np.testing.assert_array_equal(result.run(feeds)["y"], model.run(feeds)["y"])


@pytest.mark.parametrize("share", [0.6, 0.97, 0.999])
def test_training_moves_stored_values_and_no_zeros(share):
    """The lift: the stored values are the parameter; zeros stay, those stored between long gaps too."""
    torch.manual_seed(0)
    weight = sparse_weight(128, 96, share=share)
    result = store(one_product(weight))
    module = trainable(result)
    assert list(dict(module.named_parameters())) == ["w.values"]
    x, wanted = torch.randn(64, 128), torch.randn(64, 96)
    optimiser = torch.optim.Adam(module.parameters(), lr=0.05)
    losses = []
    for _ in range(20):
        optimiser.zero_grad()
        loss = torch.nn.functional.mse_loss(module(x), wanted)
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    trained = restored(module)
    after = decoded(trained, "w", weight.shape)
    assert losses[-1] < losses[0]
    assert (after[weight == 0] == 0).all()
    assert (after[weight != 0] != weight[weight != 0]).all()
    assert abs(trained.size_bytes - result.size_bytes) < 4
    with torch.no_grad():
        given = module(x).numpy()
    np.testing.assert_allclose(trained.run({"x": x.numpy()})["y"], given, rtol=1e-4, atol=1e-4)


def test_the_lift_computes_what_the_graph_computes():
    result = store(convolutions_with_zeros())
    module, feeds = trainable(result).eval(), random_feeds(result)
    with torch.no_grad():
        outputs = module(torch.from_numpy(feeds["image"])).numpy()
    np.testing.assert_allclose(outputs, result.run(feeds)["scores"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_broken_weights_stay_in_sight(poison):
    model = one_product(sparse_weight(64, 64, share=0.9))
    result = store(with_weight(model, "w", lambda weight: np.where(weight == weight.max(), poison, weight)))
    assert "it holds NaN or infinity" in str(result.notes[0])
    assert not np.isfinite(result.weight("w")).all()


def test_more_elements_than_int32_counts_stay(monkeypatch):
    monkeypatch.setattr(sparse_storage, "_LARGEST", 4095)
    result = store(one_product(sparse_weight(64, 64, share=0.9)))
    assert "4,096 elements" in str(result.notes[0])


def test_no_layers_and_no_codes_is_the_same_graph():
    model = dense_network()
    result = StoreSparse().apply(model, Context(()))
    assert not isinstance(result, AlulaError)
    assert result.fingerprint == model.fingerprint
