"""Networks on grids of few bits are trained as those of 8 are: whatever lies between a code and what reads it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import alula
from alula import Quantize, Training
from alula.graph.gradientless import cut_off
from alula.testing.models import convolution_network, dense_network, random_feeds
from alula.training.batches import labels_tensor
from alula.training.losses import CrossEntropy

QUICK = Training(epochs=2, batch_size=8, learning_rate=0.01)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("network", [dense_network, convolution_network])
def test_nothing_is_cut_off_that_has_a_gradient(network, bits: int) -> None:
    model = network()
    (name,) = (spec.name for spec in model.inputs)
    rows = random_feeds(model, batch=32)[name]
    small = alula.quantize(model, rows, technique=Quantize(weight_bits=bits, activation_bits=bits))
    module = alula.trainable(small)
    module(torch.from_numpy(rows)).square().sum().backward()
    reached = {module.initializer_names.get(path, path) for path, one in module.named_parameters()
               if one.grad is not None and bool((one.grad != 0).any())}  # fmt: skip
    assert not reached & set(cut_off(small, [spec.name for spec in small.outputs]))
    labels = np.arange(32) % 2
    trained = alula.finetune(small, rows, labels, training=QUICK)
    scales = [name for name in small.graph.initializers if name.endswith("scale")]
    assert any(not np.array_equal(small.weight(name), trained.weight(name)) for name in scales)
    assert not [note for note in trained.notes if "no gradient" in note.text]


def test_a_mask_of_rows_goes_with_labels_of_tokens() -> None:
    logits, labels = torch.randn(4, 3, 5), torch.randint(0, 5, (4, 3))
    mask = torch.tensor([1, 0, 1, 1])
    expected = torch.nn.functional.cross_entropy(logits[mask == 1].flatten(0, 1), labels[mask == 1].flatten())
    torch.testing.assert_close(CrossEntropy(mask="m")({"y": logits, "m": mask}, {}, labels), expected)


def test_labels_of_small_types_name_all_their_classes() -> None:
    logits = torch.randn(2, 200)
    small, wide = (torch.tensor([156, 3], dtype=kind) for kind in (torch.uint8, torch.int64))
    assert labels_tensor(small).dtype == torch.int64
    torch.testing.assert_close(
        CrossEntropy()({"y": logits}, {}, labels_tensor(small)), CrossEntropy()({"y": logits}, {}, wide)
    )


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_normalisations_fold_into_what_was_trained_and_nothing_is_rounded_anew(bits: int) -> None:
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 16, 3, padding=1, bias=False), torch.nn.BatchNorm2d(16), torch.nn.ReLU(),
        torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(16, 10),
    )  # fmt: skip
    for tensor in (network[1].bias, network[1].running_mean):
        torch.nn.init.normal_(tensor)
    images = np.random.default_rng(0).standard_normal((32, 3, 8, 8)).astype(np.float32)
    model = alula.export_module(network.eval(), torch.from_numpy(images[:2]))
    technique = Quantize(weight_bits=bits, activation_bits=bits, bias_correction=False)
    small = alula.apply_recipe(model, alula.Recipe((alula.Step(technique),)), images)
    trained = alula.finetune(small, images, np.arange(32) % 10, training=QUICK)
    folded = alula.apply_recipe(trained, alula.Recipe((alula.Step(alula.FoldBatchNorm()),)))
    assert "BatchNormalization" not in {node.op_type for node in folded.graph}
    assert not any("did nothing" in str(note) for note in folded.notes)
    before, after = (next(iter(one.run({one.inputs[0].name: images}).values())) for one in (trained, folded))
    assert np.abs(after - before).max() <= (2e-2 if bits == 8 else 1e-5) * np.abs(before).max()
