"""The front doors: Models and modules, defaults that fit the labels, stages, no data, and bad input."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import alula
from alula import Stage, Training
from alula.errors import DataError, ModelError, RecipeError
from alula.testing.models import dense_network
from alula.training.blockwise import block_of
from alula.training.finetuning import finetune, loss_for, teaching_loss
from alula.training.losses import BinaryCrossEntropy, CrossEntropy, SoftLabels, SquaredError
from alula.training.relations import Hidden
from tests.training.networks import Small, rows, small

QUICK = Training(epochs=12, batch_size=16, learning_rate=0.03)


def accuracy(model: alula.Model, seed: int = 1) -> float:
    images, labels = rows(400, seed)
    (logits,) = model.run({"images": images}).values()
    return float((logits.argmax(1) == labels).mean())


def test_a_model_learns_and_is_given_back_as_a_model() -> None:
    model = small()
    trained = alula.finetune(model, *rows(400), training=QUICK)
    assert accuracy(trained) > 0.85 > accuracy(model) + 0.1
    assert [spec.name for spec in trained.outputs] == [spec.name for spec in model.outputs]


def test_a_file_learns(tmp_path: Path) -> None:
    path = small().save(tmp_path / "small.onnx")
    assert accuracy(alula.finetune(path, *rows(400), training=QUICK)) > 0.85


def test_a_module_comes_back_as_a_module_that_computes_what_was_trained() -> None:
    torch.manual_seed(0)
    module = Small()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    trained = alula.finetune(module, *rows(400), training=QUICK)
    images, labels = rows(400, 1)
    assert isinstance(trained, Small)
    assert (trained.eval()(torch.from_numpy(images)).argmax(1).numpy() == labels).mean() > 0.85
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())


def test_the_best_epoch_by_validation_is_kept(tmp_path: Path) -> None:
    trained = alula.finetune(small(), *rows(200), training=QUICK, validation=rows(100, 2), out=tmp_path)
    assert "score 0." in str(trained.notes[-1]) or "score 1" in str(trained.notes[-1])
    assert (tmp_path / "training.safetensors").is_file()


def test_a_task_judges(tmp_path: Path) -> None:
    model = small()
    task = alula.task_from_arrays(model, *rows(100, 2))
    assert accuracy(alula.finetune(model, *rows(400), training=QUICK, validation=task)) > 0.85


def test_batches_of_the_users_own() -> None:
    images, labels = rows(400)
    dataset = torch.utils.data.TensorDataset(torch.from_numpy(images), torch.from_numpy(labels))
    loader = torch.utils.data.DataLoader(dataset, batch_size=16, shuffle=True, drop_last=True)
    assert accuracy(alula.finetune(small(), loader, training=QUICK)) > 0.85


def test_a_student_learns_from_a_teacher_without_labels() -> None:
    teacher = alula.finetune(small(8, seed=1), *rows(400), training=QUICK)
    images, _ = rows(400, 3)
    student = alula.distill(small(4, seed=2), teacher, images, training=QUICK)
    assert accuracy(student) > 0.75


def test_several_teachers_and_stages() -> None:
    teachers = [alula.finetune(small(8, seed=seed), *rows(400), training=QUICK) for seed in (1, 2)]
    student = small(8, seed=3)
    tensor = next(node.outputs[0].name for node in student.graph if node.op_type == "Relu")
    stages = (Stage(Hidden(((tensor, tensor),)), Training(epochs=1, batch_size=16)), Stage(SoftLabels(), QUICK))
    trained = alula.distill(student, teachers, *rows(400), training=stages)
    assert accuracy(trained) > 0.85
    assert sum("steps" in str(note) for note in trained.notes) == 2


def test_a_hidden_loss_trains_its_projection_and_resumes(tmp_path: Path) -> None:
    teacher, student = small(8, seed=1), small(4, seed=2)
    tensor = next(node.outputs[0].name for node in student.graph if node.op_type == "Relu")
    loss = Hidden(((tensor, tensor),))
    images, _ = rows(96)
    settings = Training(epochs=2, batch_size=16)
    first = alula.distill(student, teacher, images, loss=loss, training=settings, out=tmp_path)
    again = alula.distill(student, teacher, images, loss=loss, training=settings, out=tmp_path)
    assert first.fingerprint == again.fingerprint


def test_without_data_the_teachers_batch_normalisations_stand_in() -> None:
    teacher = alula.finetune(small(8, seed=1), *rows(400), training=QUICK)
    student = alula.distill(small(8, seed=2), teacher, training=Training(epochs=2, batch_size=64, learning_rate=0.03))
    assert any("rows were made up" in str(note) for note in student.notes)
    images, _ = rows(200, 5)
    want, have = (next(iter(model.run({"images": images}).values())) for model in (teacher, student))
    assert np.corrcoef(want.ravel(), have.ravel())[0, 1] > 0.5


class Ending(nn.Module):
    def __init__(self, ending: nn.Module) -> None:
        super().__init__()
        self.head, self.ending = nn.Linear(4, 3), ending

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.ending(self.head(x))


@pytest.mark.parametrize(("ending", "labels", "loss"), [
    (nn.Identity(), np.zeros(4, np.int64), CrossEntropy()),
    (nn.Softmax(1), np.zeros(4, np.int64), CrossEntropy(probabilities=True)),
    (nn.Identity(), np.zeros((4, 3), np.float32), SquaredError()),
    (nn.Sigmoid(), np.zeros((4, 3), np.float32), BinaryCrossEntropy(probabilities=True)),
    (nn.Sigmoid(), np.ones((4, 3), np.int64), BinaryCrossEntropy(probabilities=True)),
    (nn.Identity(), np.ones((4, 3), np.int64), BinaryCrossEntropy()),
], ids=["logits", "softmax", "numbers", "sigmoid", "several", "several logits"])  # fmt: skip
def test_the_loss_fits_the_labels(ending: nn.Module, labels: np.ndarray, loss: object) -> None:
    model = alula.export_module(Ending(ending), torch.zeros(2, 4))
    assert loss_for(model, np.zeros((4, 4)), labels) == loss


def test_labels_that_are_no_numbers_or_all_left_out_are_refused() -> None:
    model, inputs = alula.export_module(Ending(nn.Identity()), torch.zeros(2, 4)), np.zeros((4, 4), np.float32)
    with pytest.raises(DataError, match="labels must be numbers, got 'spam'"):
        alula.finetune(model, inputs, ["spam", "ham", "ham", "spam"], training=QUICK)
    with pytest.raises(DataError, match="every label is -100"):
        alula.finetune(model, inputs, np.full(4, -100), training=QUICK)


@pytest.mark.parametrize("kind", [np.float32, np.int64])
def test_labels_of_a_single_one_are_warned_of(kind: type, caplog: pytest.LogCaptureFixture) -> None:
    model = alula.export_module(Ending(nn.Identity()), torch.zeros(2, 4))
    loss_for(model, np.zeros((4, 4)), np.ones((3, 3), kind))
    assert "give their numbers" not in caplog.text
    loss_for(model, np.zeros((4, 4)), np.eye(3, dtype=kind))
    assert "give their numbers" in caplog.text


def test_what_a_teacher_is_compared_by() -> None:
    logits, probabilities = (
        alula.export_module(Ending(ending), torch.zeros(2, 4)) for ending in (nn.Identity(), nn.Softmax(1))
    )
    assert teaching_loss(logits, None) == SquaredError(against="teacher")
    assert teaching_loss(logits, np.zeros(4, np.int64)) == SoftLabels()
    assert teaching_loss(probabilities, np.zeros(4, np.int64)) == SoftLabels(probabilities=True)
    assert teaching_loss(logits, np.ones((4, 3), int)) == BinaryCrossEntropy(against="teacher")
    assert teaching_loss(logits, None, [(torch.zeros(4, 4), torch.zeros(4, dtype=torch.int64))]) == SoftLabels()


@pytest.mark.parametrize(("call", "error", "message"), [
    (lambda: finetune(small(), rows()[0]), DataError, "there are no labels to train by"),
    (lambda: finetune(small(), *rows(0)), DataError, "no rows"),
    (lambda: finetune(small(), rows(16)[0], rows(8)[1]), DataError, "one label per row, got 8 labels for 16 rows"),
    (lambda: finetune(small(), np.full((4, 3, 8, 8), np.nan, np.float32), np.zeros(4, int)), DataError, "NaN"),
    (lambda: finetune(small(), np.zeros((4, 1, 8, 8), np.float32), np.zeros(4, int)), DataError, "the model wants"),
    (lambda: finetune(small(), *rows(16), training=()), RecipeError, "training must be a Training"),
    (lambda: finetune(small(), iter([rows(16)])), DataError, "a generator can be walked through once"),
    (lambda: finetune(small(), [rows(16)[0]]), DataError, "there are no labels"),
    (lambda: finetune(small(), [(*rows(16), 3)], loss=CrossEntropy()), DataError, "a batch is a mapping"),
    (lambda: finetune(small(), rows(16)[0], np.full(16, 7)), DataError, "labels must be from 0 to 1, got 7 to 7"),
    (lambda: finetune(small(), rows(16)[0], np.zeros((16, 5), np.float32)), DataError, "labels must have the shape"),
    (lambda: finetune(Small(), [rows(16)]), DataError, "exported with the first rows of the data"),
    (lambda: finetune("nowhere.onnx", *rows(4)), ModelError, "nowhere.onnx"),
    (lambda: alula.distill(small(), [], *rows(4)), RecipeError, "there is no teacher"),
], ids=lambda value: value if isinstance(value, str) else "")  # fmt: skip
def test_bad_input_is_said_before_training(call, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize(("name", "value"), [
    ("epochs", 0), ("batch_size", 0), ("learning_rate", -1.0), ("optimiser", "adam"), ("weight_decay", -1.0),
    ("schedule", "step"), ("warm_up", 1.0), ("accumulate", 0), ("precision", "half"), ("averaging", 1.0),
    ("clip", 0.0), ("patience", 0), ("seed", -1),
])  # fmt: skip
def test_settings_out_of_range_are_refused(name: str, value: object) -> None:
    with pytest.raises(RecipeError, match=f"{name} must be"):
        Training(**{name: value})


def test_a_module_that_cannot_be_exported_is_named_with_operation_and_line() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(torch.special.bessel_j0(x))

    with pytest.raises(ModelError, match="bessel_j0"):
        finetune(Odd(), np.zeros((4, 4), np.float32), np.zeros(4, int))


class Deep(nn.Module):
    """Two blocks of one width, the second of which may be thin inside."""

    def __init__(self, inner: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.wide, self.back = nn.Conv2d(6, inner, 3, padding=1), nn.Conv2d(inner, 6, 3, padding=1)
        self.head = nn.Linear(6, 2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.stem(images))
        x = torch.relu(self.back(torch.relu(self.wide(x))))
        return self.head(x.mean((2, 3)))


def test_a_block_is_trained_by_itself_on_what_the_teacher_feeds_it() -> None:
    torch.manual_seed(0)
    teacher, student = (alula.export_module(Deep(inner), torch.zeros(2, 3, 8, 8)) for inner in (12, 4))
    images, _ = rows(200)
    first, _, last = [node.outputs[0].name for node in student.graph if node.op_type == "Relu"]
    stage = Stage(SquaredError(against="teacher"), Training(epochs=6, batch_size=16, learning_rate=0.01), (first, last))
    trained = alula.distill(student, teacher, images, training=(stage,))
    from alula.graph.cutting import cut_out

    fed = cut_out(teacher, ["images"], [first]).run({"images": images})
    want, before, after = (
        cut_out(model, [first], [last]).run(fed)[last] for model in (teacher, student, trained)
    )  # fmt: skip
    assert ((after - want) ** 2).mean() < 0.5 * ((before - want) ** 2).mean()
    for name in ("stem.weight", "head.weight"):
        np.testing.assert_array_equal(trained.weight(name), student.weight(name))


def test_blocks_of_other_shapes_are_refused() -> None:
    torch.manual_seed(0)
    teacher, student = (alula.export_module(Deep(inner), torch.zeros(2, 3, 8, 8)) for inner in (12, 4))
    first, middle, _ = [node.outputs[0].name for node in student.graph if node.op_type == "Relu"]
    stage = Stage(SquaredError(against="teacher"), Training(epochs=1), (first, middle))
    with pytest.raises(ModelError, match=r"the student gives .* the teacher"):
        alula.distill(student, teacher, rows(32)[0], training=(stage,))
    with pytest.raises(ModelError, match="computes no tensor 'nowhere'"):
        alula.distill(student, teacher, rows(32)[0], training=(Stage(SquaredError(), Training(), ("nowhere", middle)),))


def test_a_loader_of_length_zero_text_and_a_missing_teacher_are_told():
    class Loader:
        def __len__(self):
            return 0

        def __iter__(self):
            yield torch.zeros(2, 16), torch.zeros(2, dtype=torch.int64)

    model, inputs = dense_network(), np.zeros((8, 16), np.float32)
    with pytest.raises(DataError, match="a length of 0 batches"):
        alula.finetune(model, Loader())
    with pytest.raises(RecipeError, match=r"there is none; alula\.distill takes one"):
        alula.finetune(model, inputs, np.zeros(8, np.int64), loss=SoftLabels())
    with pytest.raises(DataError, match="labels must be numbers, got '1'"):
        alula.finetune(model, inputs, np.full(8, "1"))
    with pytest.raises(ModelError, match="an input of the graph; name first where it begins"):
        block_of(model, (model.layers()[-1].input, "features"))
