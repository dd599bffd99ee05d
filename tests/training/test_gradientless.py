"""Operators without gradient: what lies behind them stays, with a note; where that is all, it is refused by name."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import alula
from alula import Model, Training
from alula.errors import ModelError
from alula.graph.gradientless import cut_off
from tests.training.networks import Small, rows, small

QUICK = Training(epochs=1, batch_size=16, learning_rate=0.05)


class Gate(nn.Module):
    """Its first layer decides by a comparison."""

    def __init__(self, ending: str = "gate") -> None:
        super().__init__()
        self.first, self.last, self.ending = nn.Linear(3, 4), nn.Linear(4, 2), ending

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.first(images.mean((2, 3)))
        if self.ending == "gate":
            return self.last((x > 0).float())
        if self.ending == "both":
            return self.last((x > 0).float() * x)
        if self.ending == "round":
            return self.last(x.round())
        return self.last(x).argmax(1)


def exported(ending: str) -> Model:
    torch.manual_seed(0)
    return alula.export_module(Gate(ending), torch.zeros(2, 3, 8, 8))


@pytest.mark.parametrize(("ending", "operator"), [("gate", "Greater"), ("round", "Round")])
def test_a_layer_that_no_gradient_reaches_stays_with_a_note(ending: str, operator: str) -> None:
    model = exported(ending)
    trained = alula.finetune(model, *rows(32), training=QUICK)
    np.testing.assert_array_equal(trained.weight("first.weight"), model.weight("first.weight"))
    assert np.abs(trained.weight("last.weight") - model.weight("last.weight")).max() > 0
    (note,) = [note for note in trained.notes if note.place == "first"]
    assert f"{operator} " in note.text
    assert "has no gradient" in note.text


def test_a_layer_that_is_reached_another_way_is_trained() -> None:
    model = exported("both")
    trained = alula.finetune(model, *rows(32), training=QUICK)
    assert np.abs(trained.weight("first.weight") - model.weight("first.weight")).max() > 0
    assert not [note for note in trained.notes if note.place == "first"]


def test_a_graph_that_ends_in_a_choice_is_refused_by_name() -> None:
    with pytest.raises(ModelError, match=r"no gradient reaches any layer: ArgMax '.*', between them"):
        alula.finetune(exported("argmax"), *rows(32), training=QUICK)


def test_what_is_cut_off_is_what_autograd_leaves_without_gradient() -> None:
    for ending in ("gate", "both", "round"):
        model = exported(ending)
        module = alula.trainable(model)
        module(torch.randn(4, 3, 8, 8)).square().sum().backward()
        names = {name for name, _ in module.named_parameters()}
        told = names & set(cut_off(model, [spec.name for spec in model.outputs]))
        without = {
            name for name, one in module.named_parameters() if one.grad is None or not bool((one.grad != 0).any())
        }
        assert told == without, ending


def test_codes_quantized_at_run_time_stay_and_are_named() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(192, 16), nn.ReLU(), nn.Linear(16, 2))
    model = alula.export_module(network, torch.zeros(2, 3, 8, 8), input_names=["images"])
    quantized = alula.quantize(model, technique=alula.QuantizeDynamic())
    trained = alula.finetune(quantized, *rows(64), training=QUICK)
    for name in quantized.graph.initializers:
        if name.endswith((".codes", ".scale")):
            np.testing.assert_array_equal(trained.weight(name), quantized.weight(name))
    assert np.abs(trained.weight("3.bias") - quantized.weight("3.bias")).max() > 0
    assert sum("codes beside inputs quantized at run time" in str(note) for note in trained.notes) == 2


def test_what_a_module_has_frozen_stays() -> None:
    torch.manual_seed(0)
    module = Small()
    module.conv.requires_grad_(False)
    trained = alula.finetune(module, *rows(64), training=QUICK)
    assert torch.equal(trained.conv.weight, module.conv.weight)
    assert not torch.equal(trained.head.weight, module.head.weight)


def test_weights_in_half_precision_come_back_to_be_trained() -> None:
    model = small()
    half = alula.apply_recipe(model, alula.Recipe((alula.Step(alula.Float16()),)))
    full = alula.apply_recipe(half, alula.Recipe((alula.Step(alula.Float32()),)))
    assert [layer.name for layer in full.layers()] == [layer.name for layer in model.layers()]
    for layer in full.layers():
        np.testing.assert_array_equal(
            full.weight(layer.weight), model.weight(layer.weight).astype(np.float16).astype(np.float32)
        )
    alula.finetune(full, *rows(32), training=QUICK)


def test_factorized_layers_can_be_pruned_at_once() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.Flatten(), nn.Linear(256, 2))
    model = alula.export_module(network, torch.zeros(2, 3, 8, 8))
    recipe = alula.Recipe((alula.Step(alula.Factorize(0.5, by="share")), alula.Step(alula.Prune(0.5))))
    assert alula.apply_recipe(model, recipe).weight_bytes < 0.5 * model.weight_bytes
