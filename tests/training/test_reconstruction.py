"""Rounding learned by reconstruction: near the best of all choices, never worse than before, and what is written."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

import alula
from alula.errors import DataError, RecipeError, StorageError
from alula.graph.cutting import cut_out
from alula.graph.editing import Editor
from alula.graph.model import Model
from alula.graph.ops.quantization import code_limits
from alula.testing import convolution_network, dense_network, embedding_network, model_from_text, recurrent_network
from alula.training import reconstruction
from alula.training.parts import parts_of

SHORT = alula.Reconstruction(steps=30, learning_rate=0.1)


def layer(weight: np.ndarray, batch: str = "b") -> Model:
    text = f"""layer (float[{batch}, {weight.shape[1]}] x) => (float[{batch}, {weight.shape[0]}] y) {{
        y = Gemm <transB = 1> (x, w) }}"""
    return model_from_text(text, {"w": weight})


def images(count: int = 32, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, 3, 8, 8)).astype(np.float32)


def folded() -> Model:
    return alula.apply_recipe(convolution_network(), alula.Recipe((alula.Step(alula.FoldBatchNorm()),)))


def weights_only(model: Model, data: np.ndarray, bits: int = 3, **more) -> Model:
    return alula.quantize(model, data, technique=alula.QuantizeWeights(bits=bits, smallest=1, **more))


def codes(model: Model) -> dict[str, np.ndarray]:
    values = model.graph.initializers.items()
    return {name: value.const_value.numpy().astype(int) for name, value in values if name.endswith(".codes")}


def error(model: Model, original: Model, data: np.ndarray) -> float:
    name, out = original.inputs[0].name, original.outputs[0].name
    return float(np.square(model.run({name: data})[out] - original.run({name: data})[out]).mean())


def told(model: Model, before: Model) -> list[str]:
    return [str(note) for note in model.notes[len(before.notes) :]]


def best_of_all(weight: np.ndarray, quantized: Model, data: np.ndarray) -> float:
    """The least error of any choice of up and down, by trying them all."""
    scale, made = quantized.weight("w.scale"), quantized.weight("w.codes")
    limits = code_limits(torch.from_numpy(made.astype(np.int8)), "INT4")
    below = np.floor(weight / scale[:, None])
    choices = np.array(list(itertools.product((0, 1), repeat=weight.size)))
    tried = np.clip(below + choices.reshape(-1, *weight.shape), *limits) * scale[:, None] - weight
    return float(np.square(np.einsum("nok,bk->nbo", tried, data)).mean((1, 2)).min())


@pytest.mark.parametrize("seed", range(3))
def test_it_comes_close_to_the_best_of_all_choices(seed):
    rng = np.random.default_rng(seed)
    weight = rng.normal(size=(1, 9)).astype(np.float32)
    data = (rng.normal(size=(64, 9)) @ (np.eye(9) + 0.5 * rng.normal(size=(9, 9)) / 3)).astype(np.float32)
    model = layer(weight)
    quantized = weights_only(model, data)
    learned = alula.reconstruct(
        quantized, model, data, settings=alula.Reconstruction(steps=300, learning_rate=0.03, calls=4)
    )
    best, found, nearest = (
        best_of_all(weight, quantized, data),
        error(learned, model, data),
        error(quantized, model, data),
    )
    assert best * (1 - 1e-4) <= found <= nearest
    assert found <= 1.1 * best


def test_inputs_that_go_together_are_where_the_nearest_is_not_the_best():
    """Two equal inputs, and weights 0.4 and 0.35 of a step above a code: the first has to go up.

    (Were they equal too, so would be their gradients: what is learned cannot tell them apart.)
    """
    weight = np.array([[0.4, 0.35, 3.0]], np.float32)
    data = (np.random.default_rng(0).normal(size=(64, 1)) * np.array([1, 1, 0.01])).astype(np.float32)
    model = layer(weight)
    quantized = weights_only(model, data, search=False)
    settings = alula.Reconstruction(steps=300, learning_rate=0.03)
    learned = alula.reconstruct(quantized, model, data, settings=settings)
    assert codes(quantized)["w.codes"][0].tolist() == [0, 0, 3]
    assert codes(learned)["w.codes"][0].tolist() == [1, 0, 3]
    gain = error(learned, model, data) / error(quantized, model, data)
    assert gain == pytest.approx((0.25 / 0.75) ** 2, rel=0.01)


@pytest.mark.parametrize("granularity", ["layer", "block"])
@pytest.mark.parametrize("activations", [None, 4])
def test_plain_grouped_and_dense_layers_get_better(granularity, activations):
    model, data = folded(), images()
    technique = alula.Quantize(weight_bits=3, activation_bits=activations) if activations else None
    quantized = alula.quantize(model, data, technique=technique) if technique else weights_only(model, data)
    settings = replace(SHORT, steps=200 if activations else 30, granularity=granularity)
    learned = alula.reconstruct(quantized, model, data, settings=settings)
    assert error(learned, model, data) < error(quantized, model, data)
    assert len(told(learned, quantized)) == 4
    for name, made in codes(learned).items():
        before = codes(quantized)[name]
        if not name.endswith("bias.codes"):
            assert made.min() >= before.min() - 1
            assert np.abs(made).max() <= 4 - bool(activations)
    same = [name for name in quantized.graph.initializers if not name.endswith("weight.codes")]
    assert all(np.array_equal(quantized.weight(name), learned.weight(name)) for name in same)


def test_a_product_with_blocks_of_scales():
    model, data = dense_network(), np.random.default_rng(0).normal(size=(64, 16)).astype(np.float32)
    quantized = weights_only(model, data, block=8, symmetric=False)
    learned = alula.reconstruct(quantized, model, data, settings=SHORT)
    assert error(learned, model, data) < error(quantized, model, data)


def test_weights_of_a_recurrent_layer():
    model = recurrent_network()
    rng = np.random.default_rng(0)
    shapes = {"frames": (6, 4, 8), "h": (1, 4, 12), "c": (1, 4, 12)}
    feeds = [{name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()} for _ in range(4)]
    quantized = alula.quantize(model, feeds, technique=alula.QuantizeWeights(bits=3, smallest=1))
    learned = alula.reconstruct(quantized, model, feeds, settings=SHORT)
    assert any(": error" in line for line in told(learned, quantized))


def test_a_recurrent_layer_of_which_only_the_last_state_is_read():
    draw = np.random.default_rng(0)
    shapes = {"w": (1, 32, 12), "r": (1, 32, 8), "v": (8, 7)}
    weights = {name: draw.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    model = model_from_text(
        """net (float[5, n, 12] x) => (float[n, 7] y) {
            unread, last = LSTM <hidden_size = 8> (x, w, r)
            state = Squeeze (last, axis)
            y = MatMul (state, v) }""",
        {**weights, "axis": np.array([0])},
    )
    feeds = [{"x": draw.normal(size=(5, 4, 12)).astype(np.float32)} for _ in range(4)]
    quantized = alula.quantize(model, feeds, technique=alula.QuantizeWeights(bits=3, smallest=1))
    learned = alula.reconstruct(quantized, model, feeds, settings=SHORT)
    assert sum(": rounding learned: error" in line for line in told(learned, quantized)) == 2


def test_what_was_trained_is_what_is_written_and_what_notes_tell():
    model, data = folded(), images()
    quantized = alula.quantize(model, data, technique=alula.Quantize(weight_bits=3, activation_bits=4))
    learned = alula.reconstruct(quantized, model, data, settings=replace(SHORT, granularity="layer"))
    parts, _ = parts_of(learned, model, "layer")
    for part, line in zip(parts, told(learned, quantized), strict=True):
        given = cut_out(learned, [learned.inputs[0].name], [part.output]).run({"image": data})[part.output]
        wanted = cut_out(model, [model.inputs[0].name], [part.output]).run({"image": data})[part.output]
        share = np.square(given - wanted).mean() / np.square(wanted).mean()
        assert line.startswith(part.name)
        assert float(line.split("error ")[1].split()[0]) == pytest.approx(share, rel=0.01)


def test_a_part_that_would_get_worse_keeps_what_it_had(monkeypatch):
    model, data = folded(), images()
    quantized = weights_only(model, data)

    def spoil(piece, part, weights, *_, **__):
        name = next(name for name in piece.graph.initializers if name.endswith("weight.codes"))
        editor = Editor(piece.edit())
        editor.replace_constant(name, np.zeros_like(piece.weight(name)))
        return piece.edited(editor.model)

    monkeypatch.setattr(reconstruction, "learn_rounding", spoil)
    learned = alula.reconstruct(quantized, model, data, settings=SHORT)
    assert all("its rounding stays: error" in line for line in told(learned, quantized))
    assert all(np.array_equal(codes(quantized)[name], made) for name, made in codes(learned).items())


def test_scales_of_activations_are_learned_where_that_is_asked_for():
    model, data = folded(), images()
    quantized = alula.quantize(model, data, technique=alula.Quantize(weight_bits=4, activation_bits=4))
    settings = replace(SHORT, scale_rate=0.01, granularity="layer")
    learned = alula.reconstruct(quantized, model, data, settings=settings)
    names = [name for name in quantized.graph.initializers if name.endswith(".scale")]
    moved = [name for name in names if not np.array_equal(quantized.weight(name), learned.weight(name))]
    assert "image.scale" in moved
    assert not any("weight" in name for name in moved)
    assert any(line.startswith("Conv_0: rounding learned") for line in told(learned, quantized))


def test_a_killed_run_ends_in_the_same_result(tmp_path, monkeypatch):
    model, data = folded(), images()
    quantized = alula.quantize(model, data, technique=alula.Quantize(weight_bits=3, activation_bits=4))
    settings = replace(SHORT, scale_rate=0.01)
    prints = quantized.fingerprint, model.fingerprint
    whole = alula.reconstruct(quantized, model, data, settings=settings)
    assert (quantized.fingerprint, model.fingerprint) == prints
    learn, calls = reconstruction.learn_rounding, []

    def dies(*arguments, **named):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return learn(*arguments, **named)

    monkeypatch.setattr(reconstruction, "learn_rounding", dies)
    with pytest.raises(KeyboardInterrupt):
        alula.reconstruct(quantized, model, data, settings=settings, out=tmp_path)
    again = alula.reconstruct(quantized, model, data, settings=settings, out=tmp_path)
    assert len(calls) == 3 + 2
    assert again.fingerprint == whole.fingerprint
    assert again.notes == whole.notes
    with pytest.raises(StorageError, match="a run of another model"):
        alula.reconstruct(quantized, model, data, settings=SHORT, out=tmp_path)


@pytest.mark.parametrize("value", [0.7, 0.0])
def test_one_value(value):
    model = layer(np.array([[value]], np.float32))
    data = np.random.default_rng(0).normal(size=(8, 1)).astype(np.float32)
    quantized = weights_only(model, data)
    learned = alula.reconstruct(quantized, model, data, settings=SHORT)
    assert error(learned, model, data) <= error(quantized, model, data)


def test_a_layer_whose_input_is_a_constant_stays(monkeypatch):
    """A graph that enters has such layers computed away; one that an edit leaves is told of."""
    model, data = folded(), images()
    quantized = weights_only(model, data)
    monkeypatch.setattr("alula.training.parts._inputs", lambda nodes: [])
    with pytest.raises(RecipeError, match="its input is a constant"):
        alula.reconstruct(quantized, model, data, settings=SHORT)


def test_inputs_that_never_change_teach_without_harm():
    model = layer(np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32))
    data = np.ones((32, 5), np.float32)
    quantized = weights_only(model, data)
    learned = alula.reconstruct(quantized, model, data, settings=SHORT)
    assert error(learned, model, data) <= error(quantized, model, data)


def test_a_graph_of_fixed_batch_and_a_loader_with_labels():
    weight = np.random.default_rng(0).normal(size=(3, 6)).astype(np.float32)
    model = layer(weight, batch="4")
    data = np.random.default_rng(1).normal(size=(16, 6)).astype(np.float32)
    quantized = weights_only(model, data)
    once = alula.reconstruct(quantized, model, data, settings=SHORT)
    pairs = [(data[start : start + 4], np.zeros(4)) for start in range(0, 16, 4)]
    assert alula.reconstruct(quantized, model, pairs, settings=SHORT).fingerprint == once.fingerprint


def test_what_parts_read_may_be_kept_in_half():
    model, data = folded(), images()
    quantized = weights_only(model, data)
    learned = alula.reconstruct(quantized, model, data, settings=replace(SHORT, half=True))
    assert error(learned, model, data) < error(quantized, model, data)


def test_bad_data_are_refused():
    model, data = folded(), images()
    quantized = weights_only(model, data)
    broken = data.copy()
    broken[3, 0, 0, 0] = np.nan
    with pytest.raises(DataError, match="NaN"):
        alula.reconstruct(quantized, model, broken)
    for nothing in (data[:0], []):
        with pytest.raises(DataError):
            alula.reconstruct(quantized, model, nothing)


def test_graphs_that_do_not_belong_together_are_refused():
    model, data = folded(), images()
    quantized = weights_only(model, data)
    with pytest.raises(RecipeError, match="no codes that a DequantizeLinear reads"):
        alula.reconstruct(model, model, data)
    other = alula.apply_recipe(convolution_network(seed=3), alula.Recipe((alula.Step(alula.FoldBatchNorm()),)))
    with pytest.raises(RecipeError, match="made of other weights"):
        alula.reconstruct(quantized, other, data)
    with pytest.raises(RecipeError, match="same inputs"):
        alula.reconstruct(quantized, dense_network(), data)


def test_tables_stay_and_a_note_says_so():
    model = embedding_network()
    tokens = np.random.default_rng(0).integers(0, 20, (32, 5))
    quantized = alula.quantize(model, tokens, technique=alula.QuantizeWeights(bits=3, smallest=1))
    learned = alula.reconstruct(quantized, model, tokens, settings=SHORT)
    assert any("its rounding stays: its weights are no codes" in line for line in told(learned, quantized))


@pytest.mark.parametrize(
    ("name", "value"),
    [("steps", 0), ("calls", 0), ("learning_rate", 0.0), ("regularisation", -1.0), ("warm_up", 1.0), ("drop", 1.5),
     ("betas", (20.0, 0.5)), ("scale_rate", 1.0), ("seed", -1), ("granularity", "network"), ("half", 1)],
)  # fmt: skip
def test_settings_are_checked(name, value):
    with pytest.raises(RecipeError, match=name):
        alula.Reconstruction(**{name: value})
