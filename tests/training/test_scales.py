"""Scales of quantized tensors are learned, stay positive, and leave a graph that runtimes compute as it was trained."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import alula
from alula.errors import RecipeError
from alula.graph.load import model_from_proto
from alula.graph.trainable import trainable
from alula.testing import proto_from_text
from alula.training.scales import ScaleSteps


def test_a_step_is_adam_on_the_logarithm():
    start = torch.tensor([0.5, 2.0, 1e-6])
    scale, logarithm = nn.Parameter(start.clone()), nn.Parameter(start.log())
    steps, oracle = ScaleSteps([scale], 0.01), torch.optim.Adam([logarithm], lr=0.01, eps=0)
    for number in range(20):
        for parameter, values in ((scale, scale), (logarithm, logarithm.exp())):
            parameter.grad = torch.autograd.grad(
                ((values - torch.tensor([1.0, 1.5, 3.0])) ** 2).sum() * (number + 1), parameter
            )[0]
        steps.step()
        oracle.step()
        torch.testing.assert_close(scale.detach(), logarithm.detach().exp(), rtol=1e-4, atol=0)


def test_scales_stay_positive_and_those_without_gradient_stay():
    scale, other = nn.Parameter(torch.tensor([1e-3])), nn.Parameter(torch.tensor([1.0]))
    steps = ScaleSteps([scale, other], 0.5)
    for _ in range(100):
        scale.grad = torch.tensor([1e6])
        steps.step()
    assert 0 < scale.item() < 1e-3
    assert other.item() == 1.0
    ScaleSteps([], 0.1).step()


def test_the_gradient_of_a_scale_is_that_of_learned_step_sizes():
    """Esser et al. 2020, equation 3, element by element."""
    text = """n (float[1, 6] x) => (float[1, 6] y) {
        q = QuantizeLinear (x, s, z)
        y = DequantizeLinear (q, s, z) }"""
    proto = proto_from_text(text, {"s": np.float32(0.5), "z": np.int8(0)})
    model = model_from_proto(proto, allow_quantized=True)
    module = trainable(model)
    assert module.scales == {"s"}
    x = torch.tensor([[0.1, 0.7, -0.8, 100.0, -100.0, 63.4]])
    for index in range(6):
        module.zero_grad()
        module(x)[0, index].backward()
        ratio = float(x[0, index]) / 0.5
        expected = -128 if ratio <= -128 else 127 if ratio >= 127 else round(ratio) - ratio
        assert float(module.get_parameter("s").grad) == pytest.approx(expected, abs=1e-4)


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1, groups=2),
              nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(128, 4)]  # fmt: skip
    with torch.no_grad():
        layers[1].weight.uniform_(-1, 1)
        layers[4].bias.uniform_(-0.5, 0.5)
    return nn.Sequential(*layers).eval()


def rows(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Images whose class is the quarter that is bright."""
    draw = np.random.default_rng(0)
    labels = draw.integers(0, 4, count)
    images = draw.normal(size=(count, 1, 8, 8)).astype(np.float32)
    for image, label in zip(images, labels, strict=True):
        image[0, 4 * (label // 2) :, 4 * (label % 2) :][:4, :4] += 0.7
    return images, labels


def quantized(technique: alula.Quantize, *, folded: bool) -> tuple[alula.Model, str]:
    images, _ = rows(64)
    model = alula.export_module(network(), (torch.from_numpy(images[:2]),))
    name = model.inputs[0].name
    before = (alula.Step(alula.FoldBatchNorm()),) if folded else ()
    return alula.apply_recipe(model, alula.Recipe((*before, alula.Step(technique))), [{name: images}]), name


def outputs(model: alula.Model, name: str, images: np.ndarray) -> np.ndarray:
    return next(iter(model.run({name: images}).values()))


@pytest.mark.parametrize("folded", [True, False])
@pytest.mark.parametrize(("weight_bits", "activation_bits"), [(8, 8), (4, 4), (2, 8)])
def test_what_is_trained_is_what_is_built(folded, weight_bits, activation_bits):
    technique = alula.Quantize(weight_bits=weight_bits, activation_bits=activation_bits)
    model, name = quantized(technique, folded=folded)
    images, labels = rows(256)
    training = alula.Training(epochs=16, batch_size=16, learning_rate=1e-2, scale_rate=5e-3)
    trained = alula.finetune(model, images, labels, training=training)
    built = trained if folded else alula.apply_recipe(trained, alula.Recipe((alula.Step(alula.FoldBatchNorm()),)))
    assert not any(node.op_type == "BatchNormalization" for node in built.graph)
    found = outputs(built, name, images)
    assert (found.argmax(1) == labels).mean() > (outputs(model, name, images).argmax(1) == labels).mean() + 0.2
    with torch.no_grad():
        simulated = trainable(trained).eval()(torch.from_numpy(images)).numpy()
    far = np.abs(found - simulated) > 0.02 * np.abs(simulated).max()  # a sum between two codes may fall on either
    assert far.mean() < 0.02


def test_weights_stay_on_their_grid_and_a_bias_on_that_of_the_sums():
    model, _ = quantized(alula.Quantize(weight_bits=5), folded=True)
    images, labels = rows(256)
    trained = alula.finetune(model, images, labels, training=alula.Training(epochs=6, learning_rate=1e-2))
    arrays = {name: value.const_value.numpy() for name, value in trained.graph.initializers.items()}
    codes = {name: array.astype(int) for name, array in arrays.items() if name.endswith("weight.codes")}
    assert len(codes) == 3
    assert all(array.min() >= -15 and array.max() <= 15 for array in codes.values())
    before = model.graph.initializers["0.weight.scale"].const_value.numpy()
    assert (arrays["0.weight.scale"] != before).all(), "scales are learned"
    read = arrays[f"{model.inputs[0].name}.scale"]
    np.testing.assert_array_equal(arrays["0.bias.scale"], (read.astype(float) * arrays["0.weight.scale"]).astype("f4"))


def test_scales_stay_where_that_is_asked_for():
    model, _ = quantized(alula.Quantize(), folded=True)
    images, labels = rows(64)
    fixed = alula.finetune(model, images, labels, training=alula.Training(epochs=1, scale_rate=0))
    frozen = alula.finetune(model, images, labels, training=alula.Training(epochs=1, freeze=("*.scale",)))
    for name, value in model.graph.initializers.items():
        if name.endswith(".scale"):
            for other in (fixed, frozen):
                assert (
                    other.graph.initializers[name].const_value.numpy().tobytes() == value.const_value.numpy().tobytes()
                )
    with pytest.raises(RecipeError, match="scale_rate must be at least 0 and below 1, got 1"):
        alula.Training(scale_rate=1)


def test_scales_alone_can_be_trained():
    model, name = quantized(alula.Quantize(weight_bits=4, activation_bits=4), folded=True)
    images, _ = rows(128)
    weights = tuple({layer for layer in model.graph.initializers if layer.endswith((".codes",))})
    frozen = (*(weight.removesuffix(".codes") for weight in weights), "*.bias")
    exact = outputs(alula.export_module(network(), (torch.from_numpy(images[:2]),)), "input", images)
    teacher = alula.export_module(network(), (torch.from_numpy(images[:2]),))
    training = alula.Training(epochs=10, scale_rate=1e-2, freeze=frozen)
    trained = alula.distill(model, teacher, images, training=training)
    error = [np.square(outputs(one, name, images) - exact).mean() for one in (model, trained)]
    assert error[1] < error[0]


def test_a_killed_run_goes_on_with_its_scales(tmp_path):
    model, _ = quantized(alula.Quantize(weight_bits=4), folded=False)
    images, labels = rows(128)
    training = alula.Training(epochs=4, batch_size=32)
    whole = alula.finetune(model, images, labels, training=training)

    calls = []

    def stops(inputs, generator):
        calls.append(1)
        if len(calls) == 7:
            raise KeyboardInterrupt
        return inputs

    stopped = replace(training, augment=stops)
    with pytest.raises(KeyboardInterrupt):
        alula.finetune(model, images, labels, training=stopped, out=tmp_path)
    again = alula.finetune(model, images, labels, training=stopped, out=tmp_path)
    assert again.fingerprint == whole.fingerprint
