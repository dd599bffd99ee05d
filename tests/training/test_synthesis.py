"""Synthetic inputs: they give batch normalisations what these remember, measured by the reference runtime."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch.autograd import gradcheck

from alula.errors import DataError, ModelError
from alula.graph.trainable import trainable
from alula.quantization import quantize
from alula.techniques import QuantizeWeights
from alula.testing.conformance import relative_error
from alula.testing.models import convolution_network, dense_network, embedding_network, model_from_text
from alula.training.reconstruction import Reconstruction, reconstruct
from alula.training.synthesis import statistics_distance, statistics_of, synthesise, total_variation
from tests.oracles import distillation as oracle

BETTER_THAN_RANDOM = 1000  # times, by the distance that the oracle computes
SHADES = [0.5, -1, 1]


NETWORK = """network (float[batch, 3, 8, 8] x) => (float[batch, 5] scores) {
    a = Conv <pads = [1, 1, 1, 1]> (x, first)
    b = BatchNormalization (a, scale_0, shift_0, mean_0, variance_0)
    c = Relu (b)
    d = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (c, second)
    e = BatchNormalization (d, scale_1, shift_1, mean_1, variance_1)
    f = Relu (e)
    g = GlobalAveragePool (f)
    h = Flatten (g)
    scores = MatMul (h, head)
}"""


def observe(model, feeds):
    """What each batch normalisation of a graph reads, and its running mean and variance."""
    proto = onnx.load_from_string(model.to_bytes())
    norms = [node for node in proto.graph.node if node.op_type == "BatchNormalization"]
    proto.graph.output.extend(onnx.ValueInfoProto(name=node.input[0]) for node in norms)
    session = onnxruntime.InferenceSession(proto.SerializeToString())
    tensors = session.run([node.input[0] for node in norms], dict(feeds))
    return tensors, [[model.weight(name) for name in node.input[3:5]] for node in norms]


def smooth_images(random):
    blocks = random.standard_normal((256, 3, 2, 2)) * np.reshape([1, 2, 0.5], (3, 1, 1)) + np.reshape(SHADES, (3, 1, 1))
    return np.kron(blocks, np.ones((4, 4))).astype(np.float32)


@pytest.fixture(scope="module")
def model():
    """A network whose batch normalisations have seen smooth, coloured images."""
    random = np.random.default_rng(0)
    images = smooth_images(random)
    weights = {
        "first": 0.2 * random.standard_normal((8, 3, 3, 3)),
        "second": 0.1 * random.standard_normal((12, 8, 3, 3)),
        "head": 5 * np.linalg.qr(random.standard_normal((12, 5)))[0],  # each class can be reached
    }
    for norm, width in enumerate((8, 12)):
        weights.update({f"{name}_{norm}": np.ones(width) for name in ("scale", "shift", "mean", "variance")})
    for norm in range(2):  # the second reads what the first gives
        seen = observe(model_of(weights), {"x": images})[0][norm]
        weights[f"mean_{norm}"], weights[f"variance_{norm}"] = seen.mean((0, 2, 3)), seen.var((0, 2, 3))
    return model_of(weights)


def model_of(weights):
    return model_from_text(NETWORK, {name: array.astype(np.float32) for name, array in weights.items()})


@pytest.fixture(scope="module")
def made(model):
    return synthesise(model, 64, steps=200)


def test_statistics_are_those_that_the_graph_remembers(model, made):
    tensors, remembered = observe(model, made)
    assert len(tensors) == 2
    for x, (mean, variance) in zip(tensors, remembered, strict=True):
        np.testing.assert_allclose(x.mean((0, 2, 3)), mean, atol=0.02)
        np.testing.assert_allclose(x.var((0, 2, 3)), variance, rtol=0.05)
    noise = np.random.default_rng(0).standard_normal((64, 3, 8, 8)).astype(np.float32)
    random = oracle.statistics_distance(*observe(model, {"x": noise}))
    assert oracle.statistics_distance(tensors, remembered) < random / BETTER_THAN_RANDOM


def test_inputs_take_on_what_the_data_had(made):
    """Never seen, only remembered: the shades of the colours."""
    np.testing.assert_allclose(made["x"].mean((0, 2, 3)), SHADES, atol=0.2)


def test_a_file(model, made, tmp_path):
    path = model.save(tmp_path / "model.onnx")
    np.testing.assert_array_equal(synthesise(str(path), 64, steps=200)["x"], made["x"])


def test_int8_without_data(model, made):
    """Ranges that are found on what was made up hold for what the network was trained on."""
    real = {"x": smooth_images(np.random.default_rng(1))}
    wanted = model.run(real)
    for data, holds in ((made, True), ({"x": np.zeros((64, 3, 8, 8), np.float32)}, False)):
        assert (relative_error(wanted, quantize(model, data).run(real)) < 0.1) == holds


def test_what_reads_data_takes_them(model, made):
    by_columns = QuantizeWeights(bits=3, smallest=1, rounding="gptq")
    learned = quantize(model, made, technique=by_columns)
    assert not any("to the nearest" in str(note) for note in learned.notes)
    assert {layer.name for layer in learned.layers()} == set()
    nearest = quantize(model, technique=dataclasses.replace(by_columns, rounding="nearest"))
    wanted = model.run(made)
    assert relative_error(wanted, learned.run(made)) < relative_error(wanted, nearest.run(made))
    rounded = reconstruct(nearest, model, made, settings=Reconstruction(granularity="layer", steps=20))
    assert "rounding learned" in str(rounded.notes[-1])


def test_distance_and_its_gradient(model):
    norms = [node for node in model.graph if node.op_type == "BatchNormalization"]
    module = trainable(model, also=[node.inputs[0].name for node in norms]).eval().double().requires_grad_(False)
    goals = [(torch.zeros(8).double(), torch.ones(8).double()), (torch.ones(12).double(), 2 * torch.ones(12).double())]

    def distance(x):
        return statistics_distance([statistics_of(one) for one in module(x)[1:]], goals)

    x = torch.randn(2, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    remembered = [(mean, deviation**2) for mean, deviation in goals]
    tensors = [one.detach().numpy() for one in module(x)[1:]]
    assert distance(x).item() == pytest.approx(oracle.statistics_distance(tensors, remembered))
    assert gradcheck(distance, (x,))


def test_what_is_always_equal_has_a_gradient():
    x = torch.ones(4, 3, requires_grad=True)
    statistics_distance([statistics_of(x)], [(torch.zeros(3), torch.ones(3))]).backward()
    assert torch.isfinite(x.grad).all()


def test_total_variation():
    x = torch.tensor([[[[1.0, 3.0], [0.0, 7.0]]]])
    assert total_variation(x).item() == (1 + 16 + 4 + 49) / 4
    assert total_variation(torch.ones(2, 3, 1, 1)).item() == 0


def test_classes_and_smoothness(model, made):
    classes = np.arange(20) % 5
    images = synthesise(model, 20, steps=150, classes=classes)
    assert (model.run(images)["scores"].argmax(1) == classes).all()
    assert total_variation(torch.from_numpy(images["x"])) < 0.7 * total_variation(torch.from_numpy(made["x"]))
    assert oracle.statistics_distance(*observe(model, images)) < 0.1


def test_classes_of_probabilities(model):
    """A softmax at the end is seen: the result is that of the logits."""
    classes = np.arange(5)
    ended = model_from_text(
        NETWORK.replace("MatMul (h, head)", "Softmax (l)").replace("scores = S", "l = MatMul (h, head) scores = S"),
        {name: model.weight(name) for name in model.graph.initializers},
    )
    plain, found = (synthesise(one, 5, steps=20, classes=classes)["x"] for one in (model, ended))
    np.testing.assert_allclose(found, plain, atol=1e-3)


def test_the_seed_alone_decides(model):
    made, again, other = (synthesise(model, 5, steps=3, batch_size=2, seed=seed)["x"] for seed in (0, 0, 1))
    assert made.tobytes() == again.tobytes()
    assert not np.array_equal(made, other)
    assert len(np.unique(made.reshape(5, -1), axis=0)) == 5


def test_progress_counts_all_steps(model):
    seen = []
    made = synthesise(model, 5, steps=2, batch_size=2, on_progress=lambda step, steps: seen.append((step, steps)))
    assert made["x"].shape == (5, 3, 8, 8)
    assert seen == [(step, 6) for step in range(1, 7)]


def test_the_model_stays_as_it_is():
    model = convolution_network()
    before = model.fingerprint
    synthesise(model, 2, steps=2)
    assert model.fingerprint == before


def test_several_inputs_of_several_types():
    text = """two (float[batch, 4] left, double[batch, 3] right, float16[batch, 2] half) => (float[batch, 9] y) {
        r = MatMul (right, turn) a = Cast <to = 1> (r)
        b = Cast <to = 1> (half)
        c = Concat <axis = 1> (left, a, b)
        y = BatchNormalization (c, scale, shift, mean, variance)
    }"""
    mean, variance = np.linspace(-2, 2, 9, dtype=np.float32), np.linspace(0.5, 3, 9, dtype=np.float32)
    weights = {"scale": np.ones(9), "shift": np.zeros(9), "mean": mean, "variance": variance}
    weights = {name: array.astype(np.float32) for name, array in weights.items()}
    two = model_from_text(text, {**weights, "turn": np.eye(3)})
    made = synthesise(two, 32, steps=300)
    assert {name: (array.dtype.name, array.shape) for name, array in made.items()} == {
        "left": ("float32", (32, 4)),
        "right": ("float64", (32, 3)),
        "half": ("float16", (32, 2)),
    }
    seen = np.concatenate(list(made.values()), 1).astype(float)
    np.testing.assert_allclose(seen.mean(0), mean, atol=0.02)
    np.testing.assert_allclose(seen.var(0), variance, rtol=0.05)


def norm_after(text_in: str, text_out: str, nodes: str = "y = BatchNormalization (x, s, s, s, s)"):
    return model_from_text(f"net ({text_in}) => ({text_out}) {{ {nodes} }}", {"s": np.ones(3, np.float32)})


def test_a_fixed_batch_is_kept():
    fixed = norm_after("float[4, 3, 2] x", "float[4, 3, 2] y")
    made = synthesise(fixed, 6, steps=2, batch_size=64)["x"]
    assert made.shape == (6, 3, 2)
    assert synthesise(fixed, 2, steps=2)["x"].shape == (2, 3, 2)
    rows = norm_after("float[4, 3] x", "float[4, 3] y")
    made = synthesise(rows, 6, steps=300, classes=[0, 1, 2, 2, 1, 0])["x"]
    assert made.argmax(1).tolist() == [0, 1, 2, 2, 1, 0]


def test_free_axes_are_given():
    free = norm_after("float[batch, 3, height, width] x", "float[batch, 3, height, width] y")
    assert synthesise(free, 2, steps=2, shapes={"x": [3, 5, 7]})["x"].shape == (2, 3, 5, 7)
    for shapes in (None, {"x": [3, 5]}, {"x": [3, 0, 5]}):
        with pytest.raises(ModelError, match="must have the batch in its first axis, and others of known length"):
            synthesise(free, 2, steps=2, shapes=shapes)


def test_graphs_that_nothing_can_be_made_for():
    with pytest.raises(ModelError, match="input 'tokens' takes int64; only inputs of 16, 32 or 64"):
        synthesise(embedding_network(), 2)
    with pytest.raises(ModelError, match="no batch normalisation that keeps statistics"):
        synthesise(dense_network(), 2)
    nodes = "a = ArgMax <axis = 1> (x) b = Cast <to = 1> (a) c = Add (b, s) y = BatchNormalization (c, s, s, s, s)"
    cut = norm_after("float[n, 3] x", "float[n, 3] y", nodes)
    with pytest.raises(ModelError, match="no gradient leads from the batch normalisations"):
        synthesise(cut, 2, steps=2)


def test_a_variance_below_0():
    weights = {"s": np.ones(3, np.float32), "v": np.array([1, -1, 1], np.float32)}
    odd = model_from_text("net (float[n, 3] x) => (float[n, 3] y) { y = BatchNormalization (x, s, s, s, v) }", weights)
    with pytest.raises(ModelError, match="must keep variances of at least 0"):
        synthesise(odd, 2, steps=2)


def test_values_that_are_not_finite():
    nodes = "a = Log (x) y = BatchNormalization (a, s, s, s, s)"
    with pytest.raises(ModelError, match="must give finite values for normal numbers, the loss of step 1 is nan"):
        synthesise(norm_after("float[n, 3] x", "float[n, 3] y", nodes), 8, steps=2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"count": 0}, "count must be at least 1, got 0"),
        ({"count": 2, "steps": 0}, "steps must be at least 1"),
        ({"count": 2, "batch_size": 0}, "batch_size must be at least 1"),
        ({"count": 2, "classes": [0]}, "classes must be 2 whole numbers"),
        ({"count": 2, "classes": [0.5, 1]}, "classes must be 2 whole numbers"),
        ({"count": 2, "classes": [0, 10]}, "labels must be from 0 to 9, got 0 to 10"),
    ],
)
def test_impossible_settings(settings, message):
    with pytest.raises(DataError, match=message):
        synthesise(convolution_network(), **settings)
