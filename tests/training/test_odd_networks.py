"""Networks that are unlike the usual one: several heads, odd names, constants of the exporter, broken gradients."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import alula
from alula import Model, Stage, Training
from alula.errors import RecipeError
from alula.graph.editing import Editor
from alula.training.batches import batches_of
from alula.training.finetuning import finetune, loss_fitting, teaching_loss
from alula.training.gradual import Gradual
from alula.training.loss import Mix
from alula.training.losses import CrossEntropy, SoftLabels, SquaredError
from alula.training.trainer import TrainingError
from tests.training.networks import Small, rows, small

QUICK = Training(epochs=2, batch_size=16, learning_rate=0.01)


class TwoHeads(nn.Module):
    """Classes and a number, out of one trunk."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3, padding=1)
        self.classes, self.number = nn.Linear(width, 2), nn.Linear(width, 1)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.relu(self.conv(images)).mean((2, 3))
        return self.classes(x), self.number(x)


def two_heads(width: int = 8, seed: int = 0) -> Model:
    torch.manual_seed(seed)
    return alula.export_module(TwoHeads(width), torch.zeros(2, 3, 8, 8))


def distances(one: Model, other: Model) -> list[float]:
    feeds = {"images": rows(64, 9)[0]}
    pairs = zip(one.run(feeds).values(), other.run(feeds).values(), strict=True)
    return [float(((found - wanted) ** 2).mean()) for found, wanted in pairs]


def test_a_student_learns_every_head_of_its_teacher() -> None:
    teacher, student = two_heads(seed=1), two_heads(4, seed=2)
    settings = Training(epochs=30, batch_size=16, learning_rate=0.02)
    trained = alula.distill(student, teacher, rows(200)[0], training=settings)
    for before, after in zip(distances(student, teacher), distances(trained, teacher), strict=True):
        assert after < 0.5 * before


def test_labels_are_of_the_first_head_and_the_others_are_still_taught() -> None:
    loss = teaching_loss(two_heads(), np.zeros(4, np.int64))
    assert isinstance(loss, Mix)
    (_, first), (_, second) = loss.parts
    assert first == SoftLabels()
    assert isinstance(second, SquaredError)


def test_pruning_keeps_what_any_head_needs() -> None:
    """Half of the trunk's channels feed the second head alone: by the first head nothing is lost with them."""
    model = two_heads(16)
    editor = Editor(model.edit())
    classes, number = model.weight("classes.weight").copy(), model.weight("number.weight").copy()
    classes[:, 8:], number[:, :8] = 0, 0
    editor.replace_constant("classes.weight", classes)
    editor.replace_constant("number.weight", 3 * number)
    apart = model.edited(editor.model)
    for criterion in ("taylor", "l2"):
        settings = alula.Pruning(criterion=criterion, scope="sensitivity", multiple=1)
        smaller = alula.prune(apart, rows(64)[0], goal=alula.Goal(macs=1.5), pruning=settings)
        left = smaller.weight("number.weight")
        assert np.count_nonzero(left) > 2, criterion


class Enlarged(nn.Module):
    """Its exporter writes a constant of floating-point numbers that is no weight: the scales of a resize."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.up, self.head = nn.Conv2d(3, 4, 3), nn.Upsample(scale_factor=2.0), nn.Linear(4, 2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.up(self.conv(images))).mean((2, 3)))


def test_constants_of_the_exporter_stay_as_they_are() -> None:
    torch.manual_seed(0)
    module = Enlarged()
    trained = alula.finetune(module, *rows(64), training=QUICK)
    assert isinstance(trained, Enlarged)
    assert not torch.equal(trained.conv.weight, module.conv.weight)


class Wrapped(nn.Module):
    """Its parameters are named as a wrapper would name them."""

    def __init__(self) -> None:
        super().__init__()
        self.module = Small()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.module(images)


def test_parameters_named_like_those_of_a_wrapper_come_back() -> None:
    model = alula.export_module(Wrapped(), torch.zeros(2, 3, 8, 8))
    module = alula.trainable(model)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(1)
    back = alula.restored(nn.DataParallel(module))
    np.testing.assert_array_equal(back.weight("module.head.weight"), model.weight("module.head.weight") + 1)


@pytest.mark.parametrize("name", ["lambda", "self", "torch", "in"])
def test_inputs_may_be_called_what_python_reserves(name: str) -> None:
    model = small()
    graph = model.edit()
    graph.graph.inputs[0].name = name
    renamed = Model(graph)
    images, labels = rows(32)
    wanted = next(iter(renamed.run({name: images}).values()))
    np.testing.assert_allclose(alula.trainable(renamed).eval()(torch.from_numpy(images)).detach(), wanted, atol=1e-5)
    assert alula.finetune(renamed, {name: images}, labels, training=QUICK).inputs[0].name == name


def ended(ending: nn.Module, seed: int = 0) -> Model:
    torch.manual_seed(seed)
    return alula.export_module(nn.Sequential(Small(), ending), torch.zeros(2, 3, 8, 8))


def test_a_softmax_on_one_side_changes_nothing_of_what_is_compared() -> None:
    images, labels = rows(64)
    logits, taught = (torch.from_numpy(next(iter(model.run({"input": images}).values())))
                      for model in (ended(nn.Identity()), ended(nn.Identity(), seed=1)))  # fmt: skip
    plain, probable = ended(nn.Identity()), ended(nn.Softmax(1))
    values = []
    for student, teacher in itertools.product((plain, probable), repeat=2):
        loss = teaching_loss(student, labels, teachers=[teacher])
        ours = logits if student is plain else logits.softmax(1)
        theirs = taught if teacher is plain else taught.softmax(1)
        values.append(float(loss({"output": ours}, {"output": theirs}, None)))
    np.testing.assert_allclose(values, values[0], rtol=1e-4)


def test_without_labels_a_softmax_on_one_side_is_refused() -> None:
    with pytest.raises(RecipeError, match="ends in a softmax or sigmoid and the other does not"):
        alula.distill(ended(nn.Identity()), ended(nn.Softmax(1)), rows(32)[0], training=QUICK)
    assert loss_fitting(ended(nn.Softmax(1)), rows(32)[1]) == CrossEntropy(probabilities=True)


class RootOfNothing(nn.Module):
    """The loss stays finite and the gradient does not: the slope of a root at zero is infinite, times zero is NaN."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = images.mean((2, 3))
        y = self.head(x)
        return y + (y * 0).sqrt()


def test_a_gradient_that_is_not_finite_stops_before_it_is_taken(tmp_path: Path) -> None:
    model = alula.export_module(RootOfNothing(), torch.zeros(2, 3, 8, 8))
    with pytest.raises(TrainingError, match=r"gradient is not finite.*head\.") as caught:
        alula.finetune(model, *rows(64), training=QUICK, out=tmp_path)
    kept = caught.value.trained.model
    np.testing.assert_array_equal(kept.weight("head.weight"), model.weight("head.weight"))


def test_the_users_own_draws_go_on() -> None:
    model, (images, labels) = small(), rows(64)
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    finetune(model, images, labels, training=QUICK)
    dataset = torch.utils.data.TensorDataset(torch.from_numpy(images), torch.from_numpy(labels))
    loader = torch.utils.data.DataLoader(dataset, batch_size=16, shuffle=True)
    finetune(model, loader, training=QUICK)
    alula.prune(model, loader, goal=alula.Goal(macs=1.2), pruning=alula.Pruning(multiple=1))
    torch.testing.assert_close(torch.rand(3), wanted)


def test_each_stage_has_its_own_loss() -> None:
    with pytest.raises(RecipeError, match="each Stage has a loss of its own"):
        finetune(small(), *rows(32), loss=CrossEntropy(), training=(Stage(CrossEntropy(), QUICK),))
    stages = (Stage(SquaredError(against="teacher"), QUICK),)
    assert alula.distill(small(), small(seed=1), rows(32)[0], training=stages)  # without a default loss to be found


def test_weights_left_out_of_gradual_zeros_are_trained_after_a_resume(tmp_path: Path) -> None:
    """A weight that is zero and left out of the choice may move, in one go or after a kill."""
    editor = Editor(small().edit())
    editor.replace_constant("head.weight", np.zeros((2, 6), np.float32))
    model = Model(editor.model)
    settings = Training(epochs=3, batch_size=16, gradual=Gradual(0.8, exclude=("head.weight",)), keep_zeros=False)
    whole = alula.finetune(model, *rows(96), training=settings)

    def interrupt(_: Model) -> float:
        judged.append(0.5)
        if len(judged) == 2:
            raise KeyboardInterrupt
        return 0.5

    judged: list[float] = []
    with pytest.raises(KeyboardInterrupt):
        alula.finetune(model, *rows(96), training=settings, validation=interrupt, out=tmp_path)
    resumed = alula.finetune(model, *rows(96), training=settings, validation=interrupt, out=tmp_path)
    assert (resumed.weight("conv.weight") == 0).mean() > 0.7
    assert (resumed.weight("head.weight") != 0).all()
    assert (whole.weight("head.weight") != 0).all()


def test_what_a_teacher_said_of_a_part_of_a_batch_is_not_what_it_said_of_the_whole() -> None:
    batches = batches_of(small(), *rows(32), batch_size=16)
    whole, half = next(batches.epoch(0)), next(batches.epoch(0, share=(0, 2)))
    assert whole.draw != half.draw
    assert len(half) == 8
