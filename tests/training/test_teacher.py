"""Teachers: what they tell is what they compute, kept by row, and the mean where there are several."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import alula
from alula import export_module
from alula.training import teacher as module
from alula.training.batches import Batch, batches_of
from alula.training.teacher import Teacher
from tests.training.networks import Small, rows, small


def test_it_tells_what_the_graph_computes_outputs_first() -> None:
    model = small()
    inside = next(node.outputs[0].name for node in model.graph if node.op_type == "Relu")
    images, _ = rows(8)
    told = Teacher([model], [inside])(Batch({"images": torch.from_numpy(images)}, None))
    assert list(told) == [model.outputs[0].name, inside]
    want = model.run({"images": images})[model.outputs[0].name]
    np.testing.assert_allclose(told[model.outputs[0].name].numpy(), want, atol=1e-5)
    assert not told[inside].requires_grad


def test_of_several_the_mean_is_told() -> None:
    models = [small(seed=seed) for seed in range(3)]
    images, _ = rows(8)
    told = Teacher(models, [])(Batch({"images": torch.from_numpy(images)}, None))
    want = np.mean([next(iter(model.run({"images": images}).values())) for model in models], axis=0)
    np.testing.assert_allclose(next(iter(told.values())).numpy(), want, atol=1e-5)


def test_each_row_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, counted = small(), []
    teacher = Teacher([model], [], rows=96)
    compute = Teacher._compute
    monkeypatch.setattr(Teacher, "_compute", lambda self, inputs: counted.append(len(inputs["images"])) or compute(
        self, inputs))  # fmt: skip
    batches = batches_of(model, *rows(96), batch_size=16)
    told = [{name: tensor.clone() for name, tensor in teacher(batch).items()} for batch in batches.epoch(0)]
    assert sum(counted) == 96
    again = [teacher(batch) for batch in batches.epoch(0)]
    _ = [teacher(batch) for batch in batches.epoch(1)]
    assert sum(counted) == 96
    for before, after in zip(told, again, strict=True):
        assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_what_takes_too_much_memory_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "KEPT_LIMIT_BYTES", 100)
    model = small()
    teacher = Teacher([model], [], rows=96)
    (batch, *_) = batches_of(model, *rows(96), batch_size=16).epoch(0)
    first, second = teacher(batch), teacher(batch)
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
    assert not teacher._kept


def test_a_teacher_of_fixed_batch_is_fed_whole_batches() -> None:
    torch.manual_seed(0)
    model = export_module(Small(), torch.zeros(16, 3, 8, 8), dynamic_batch=False)
    teacher = Teacher([model], [], rows=40)
    batches = batches_of(small(), *rows(40), batch_size=16)
    for number in range(3):
        for batch in batches.epoch(number):
            (told,) = teacher(batch).values()
            (want,) = model.run({"images": batch.inputs["images"].numpy()}).values()
            np.testing.assert_allclose(told.numpy(), want, atol=1e-5)


def test_teachers_whose_outputs_are_called_otherwise_are_averaged_by_place() -> None:
    torch.manual_seed(0)
    models = [export_module(Small(), torch.zeros(2, 3, 8, 8), output_names=[name]) for name in ("a", "b")]
    images, _ = rows(4)
    told = Teacher(models, [])(Batch({"images": torch.from_numpy(images)}, None))
    want = np.mean([next(iter(model.run({"images": images}).values())) for model in models], axis=0)
    np.testing.assert_allclose(told["a"].numpy(), want, atol=1e-5)


def flipped(inputs: dict[str, torch.Tensor], generator: torch.Generator) -> dict[str, torch.Tensor]:
    turned = torch.rand(len(inputs["images"]), 1, 1, 1, generator=generator) < 0.5
    return {"images": torch.where(turned, inputs["images"].flip(-1), inputs["images"])}


def test_answers_in_a_folder_serve_other_students(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[int] = []
    compute = Teacher._compute
    monkeypatch.setattr(Teacher, "_compute", lambda self, inputs: counted.append(1) or compute(self, inputs))
    taught = alula.Remembered(small(8, seed=1), tmp_path)
    settings = alula.Training(epochs=2, batch_size=16, augment=flipped)

    def student(seed: int, training: alula.Training = settings, teacher: object = taught) -> str:
        counted.clear()
        return alula.distill(small(4, seed=seed), teacher, rows(96)[0], training=training).fingerprint

    first, asked = student(2), len(counted)
    assert asked == 12  # batches of two epochs
    assert student(2) == first == student(2, teacher=taught.teacher)
    student(3)
    assert not counted
    student(2, replace(settings, seed=1))
    assert len(counted) == 12
    student(2, teacher=alula.Remembered(small(8, seed=4), tmp_path))
    assert len(counted) == 12


def test_a_damaged_answer_is_made_anew(tmp_path: Path) -> None:
    taught = alula.Remembered(small(8, seed=1), tmp_path)
    settings = alula.Training(epochs=1, batch_size=16, augment=flipped)
    first = alula.distill(small(4), taught, rows(96)[0], training=settings)
    files = sorted(tmp_path.rglob("*.safetensors"))
    files[0].write_bytes(files[0].read_bytes()[:-9])
    files[1].write_bytes(b"")
    again = alula.distill(small(4), taught, rows(96)[0], training=settings)
    assert again.fingerprint == first.fingerprint
    assert len(files) == len(sorted(tmp_path.rglob("*"))) - 1 == 6
