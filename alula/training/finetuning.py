"""Fine-tuning and distillation, each as one call: a graph or module in, the trained one out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import nn

from alula.errors import DataError, RecipeError, StorageError
from alula.examples import hash_all
from alula.graph.cutting import graft
from alula.graph.ending import ending_of, gives_probabilities
from alula.graph.export import as_model
from alula.graph.model import Model, Note
from alula.graph.returning import update_module
from alula.settings import check_settings, expect
from alula.storage import storing
from alula.task_rows import as_array
from alula.training.batches import Batches, LoaderBatches, batches_of, labels_tensor
from alula.training.blockwise import TeacherFed, block_of, check_same
from alula.training.checkpoint import load_tensors, save_tensors
from alula.training.loss import Loss, Mix
from alula.training.losses import IGNORED, BinaryCrossEntropy, CrossEntropy, SoftLabels, SquaredError
from alula.training.progress import counting, showing
from alula.training.scoring import Score, Validation, score_by
from alula.training.synthesis import synthesise
from alula.training.teacher import Remembered
from alula.training.trainer import Around, train
from alula.training.training import Training

Trainable: TypeAlias = Model | str | Path | nn.Module

ROWS_WITHOUT_DATA = 1024  # that are made up where there are no data,
ROWS_TOGETHER = 256  # and of those at once
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage of training in several: its own loss and settings.

    Attributes:
        loss: what is made small.
        training: settings.
        between: names of two tensors that student and teacher both have: what lies between them is trained by itself,
            fed what the teacher computes; the loss compares what comes out. None: the whole graph is trained.
    """

    loss: Loss
    training: Training
    between: tuple[str, str] | None = None

    def __post_init__(self) -> None:
        check_settings(self)


def finetune(
    model: Trainable,
    data: Any,
    labels: Any = None,
    *,
    loss: Loss | None = None,
    training: Training | Sequence[Stage] | None = None,
    validation: Validation | None = None,
    out: str | Path | None = None,
) -> Any:
    """Train a model further. A Model or a file comes back as a Model, a module as a copy with its weights updated.

    What was pruned stays pruned: weights that are zero stay zero (:class:`Training` says otherwise).

    Args:
        model: a Model, the path of an ONNX file, or a module.
        data: rows of one array, or of an array per input name; or an iterable of batches, such as a ``DataLoader``.
        labels: one per row, where the data are arrays.
        loss: what is made small; by default cross-entropy for whole labels, squared error for others.
        training: settings; or stages, done one after another, each with its own loss.
        validation: what the model is judged by after each epoch: ``score(model)``, a Task, or a pair of inputs and
            labels. The best epoch is returned.
        out: folder where the state is kept, so that the same call goes on after a kill.

    Raises:
        TrainingError: the loss is not finite any more; ``trained`` is the last good state.
        DataError: the data do not fit the model, hold NaN or infinity, or end early.
        ModelError: the module cannot be exported, or an operator has no gradient (named).
    """
    _check(loss=loss, out=out)
    original = entered(model, data)
    stages = _stages(training, loss, lambda: loss_for(original, data, labels))
    around = _Place(validation, out, frozen=_foreign(model, original))
    trained = _train_stages(original, (data, labels), stages, (), around)
    return _left(model, original, trained, data)


def distill(
    student: Trainable,
    teacher: Trainable | Sequence[Trainable] | Remembered,
    data: Any = None,
    labels: Any = None,
    *,
    loss: Loss | None = None,
    training: Training | Sequence[Stage] | None = None,
    validation: Validation | None = None,
    out: str | Path | None = None,
) -> Any:
    """Train a student to answer as a teacher does. A Model comes back, or a copy of the student's module.

    Args:
        student: a Model (such as a pruned one), the path of an ONNX file, or a module.
        teacher: the same kinds; of several teachers the mean of what they answer is learned. ``Remembered(teacher,
            folder)`` keeps what they answer, for other students that are taught on the same data.
        data: as for :func:`finetune`, labels not being needed. Without any, inputs are made up that look to the
            teacher's batch normalisations as its training data did.
        labels: one per row, for losses that read them.
        loss: what is made small; by default soft labels where whole labels say that outputs are classes, else the
            squared error against the teacher's outputs.
        training: settings; or stages, such as hidden features first and outputs then.
        validation: as for :func:`finetune`.
        out: as for :func:`finetune`.

    Raises:
        RecipeError: student and teacher cannot be compared in the way of the loss.
        TrainingError, DataError, ModelError: as for :func:`finetune`.
    """
    _check(loss=loss, out=out)
    if data is None and labels is not None:
        raise DataError("labels were given without data; inputs that are made up have none, so leave labels out")
    answers = Path(teacher.folder) if isinstance(teacher, Remembered) else None
    teacher = teacher.teacher if isinstance(teacher, Remembered) else teacher
    several: Sequence[Any] = teacher if isinstance(teacher, list | tuple) else [teacher]
    if not several:
        raise RecipeError("there is no teacher; give one at least")
    teachers = [entered(one, data) for one in several]
    original = entered(student, data)
    notes = []
    if data is None:
        data = _made_up(teachers[0], _seed(training), out)
        notes.append(Note("training", f"no data were given: {ROWS_WITHOUT_DATA} rows were made up"))
    stages = _stages(training, loss, lambda: teaching_loss(original, labels, data, teachers=teachers))
    around = _Place(validation, out, answers, _foreign(student, original))
    trained = _train_stages(original, (data, labels), stages, teachers, around)
    trained = trained.edited(trained.edit(), notes)
    return _left(student, original, trained, data)


@dataclass(frozen=True, slots=True)
class _Place:
    """What training is judged by, where its state and the teachers' answers are kept, and what it must not change."""

    validation: Validation | None
    out: str | Path | None
    answers: Path | None = None
    frozen: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _ScoreOfWhole:
    """How good the whole graph is with a block as it is trained."""

    score: Score
    whole: Model

    def __call__(self, block: Model) -> float:
        return self.score(graft(self.whole, block))


def _train_stages(
    model: Model, rows: tuple[Any, Any], stages: Sequence[Stage], teachers: Sequence[Model], place: _Place
) -> Model:
    """One stage after another, each going on from what the one before it reached."""
    score = None if place.validation is None else score_by(model, place.validation)
    for number, stage in enumerate(stages, 1):
        settings = stage.training
        batches = batches_of(model, *rows, batch_size=settings.batch_size, seed=settings.seed, augment=settings.augment)
        title = "training" if len(stages) == 1 else f"training, stage {number} of {len(stages)}"
        folder = None if place.out is None else Path(place.out) / (f"stage-{number}" if len(stages) > 1 else "")
        with showing(title) as report:
            if stage.between is not None:
                judge = None if score is None else _ScoreOfWhole(score, model)
                around = Around(judge, folder, report, frozen=place.frozen)
                model = _train_block(model, batches, stage, teachers, around)
                continue
            around = Around(score, folder, report, place.answers, place.frozen)
            model = train(model, batches, stage.loss, settings, teachers=teachers, around=around).model
    return model


def _train_block(model: Model, batches: Batches, stage: Stage, teachers: Sequence[Model], around: Around) -> Model:
    """The graph with one of its blocks trained to do what the teacher's does."""
    if len(teachers) != 1 or stage.between is None:
        raise RecipeError(f"a block is trained by one teacher, got {len(teachers)}")
    ours, theirs = block_of(model, stage.between), block_of(teachers[0], stage.between)
    fed = TeacherFed(batches, teachers[0], stage.between[0])
    check_same(ours, theirs, fed)
    trained = train(ours, fed, stage.loss, stage.training, teachers=[theirs], around=around).model
    grafted = graft(model, trained)
    return grafted.edited(grafted.edit(), [Note(f"{' to '.join(stage.between)}", trained.notes[-1].text)])


def _stages(
    training: Training | Sequence[Stage] | None, loss: Loss | None, default: Callable[[], Loss]
) -> tuple[Stage, ...]:
    """The stages of training; where it is one, with this loss or the default."""
    if training is None or isinstance(training, Training):
        return (Stage(loss or default(), training or Training()),)
    stages = tuple(training) if isinstance(training, Sequence) else ()
    if not stages or not all(isinstance(stage, Stage) for stage in stages):
        raise RecipeError("training must be a Training, or a sequence of Stage(loss, training)")
    if loss is not None:
        raise RecipeError("each Stage has a loss of its own; leave loss=... out")
    return stages


def _check(*, loss: Loss | None, out: str | Path | None) -> None:
    expect("loss", loss, Loss | None)
    expect("out", out, str | Path | None)


def _made_up(teacher: Model, seed: int, out: str | Path | None) -> dict[str, np.ndarray]:
    """Inputs made from the teacher's batch statistics; kept in the folder of the run, so that they are made once."""
    name = f"made-up-{hash_all([teacher, ROWS_WITHOUT_DATA, seed])[:12]}.safetensors"
    path = None if out is None else Path(out) / name
    if path is not None and path.is_file():
        try:
            return {name: tensor.numpy() for name, tensor in load_tensors(path).items()}
        except StorageError as error:
            _log.warning("%s is made anew: %s", path, error)
    with counting("making up inputs") as report:
        made = synthesise(teacher, ROWS_WITHOUT_DATA, batch_size=ROWS_TOGETHER, seed=seed, on_progress=report)
    if path is not None:
        with storing(f"make {path.parent}"):
            path.parent.mkdir(parents=True, exist_ok=True)
        save_tensors(path, {name: torch.from_numpy(array) for name, array in made.items()})
    return made


def _foreign(thing: Trainable, exported: Model) -> tuple[str, ...]:
    """Names of the initializers that stay: those that a module has not, or has frozen itself.

    It has not what the exporter made, such as first states; frozen is what ``requires_grad_(False)`` was said of.
    """
    if not isinstance(thing, nn.Module):
        return ()
    fixed = {name for name, parameter in thing.named_parameters(remove_duplicate=False) if not parameter.requires_grad}
    known = set(thing.state_dict())
    floating = {name for name, value in exported.graph.initializers.items()
                if value.const_value is not None and value.const_value.dtype.is_floating_point()
                and value.const_value.size > 1}  # fmt: skip
    parts = {name: set(name.split("+")) for name in sorted(floating)}
    return tuple(name for name, own in parts.items() if not known >= own or own <= fixed)


def _seed(training: Training | Sequence[Stage] | None) -> int:
    (first, *_) = _stages(training, None, SquaredError)
    return first.training.seed


def entered(thing: Trainable, data: Any) -> Model:
    """Whatever stands for a model, as a Model; a module is exported with the first rows of the data."""
    if not isinstance(thing, nn.Module):
        return as_model(thing)
    if isinstance(data, Mapping):
        return as_model(thing, {name: torch.as_tensor(np.asarray(array)[:2]) for name, array in data.items()})
    if hasattr(data, "__array__"):
        return as_model(thing, torch.as_tensor(np.asarray(data)[:2]))
    if isinstance(data, list) and data and isinstance(data[0], int | float | list):
        raise DataError("data are arrays, or an iterable of batches; got a list of numbers: np.asarray makes it one")
    raise DataError("a module is exported with the first rows of the data, which must be arrays for that; or give "
                    "export_module(module, example)")  # fmt: skip


def _left(thing: Trainable, original: Model, trained: Model, data: Any) -> Any:
    """The trained graph as what was given: a copy of a module, else a Model."""
    if not isinstance(thing, nn.Module):
        return trained
    return update_module(thing, original, trained, lambda module: entered(module, data))


def loss_for(model: Model, data: Any, labels: Any) -> Loss:
    """What labels call for, given beside the data or in its batches.

    Raises:
        DataError: there are none.
    """
    found = _labels_among(data, labels)
    if found is None:
        raise DataError("there are no labels to train by; give labels=..., or distill from a teacher")
    if found.dtype.kind == "i" and found.size and (found == IGNORED).all():
        raise DataError(f"every label is {IGNORED}, which marks rows to leave out: nothing is left to learn")
    return loss_fitting(model, found)


def loss_fitting(model: Model, labels: np.ndarray) -> Loss:
    """What labels look like they are for.

    Cross-entropy for whole labels, one per row; for as many as there are outputs, or where the graph ends in a sigmoid,
    cross-entropy of each by itself; else squared error.
    """
    ending = ending_of(model)
    if labels.ndim > 1 and len(labels) > 1 and _is_one_hot(labels):
        _log.warning("each row of labels has a single 1; if classes exclude each other, give their numbers instead")
    if _are_apart(model, labels) or (labels.dtype.kind == "f" and ending == "Sigmoid"):
        return BinaryCrossEntropy(probabilities=ending == "Sigmoid")
    if labels.dtype.kind in "iub":
        return CrossEntropy(probabilities=gives_probabilities(model))
    return SquaredError()


def teaching_loss(model: Model, labels: Any, data: Any = None, *, teachers: Sequence[Model] = ()) -> Loss:
    """Soft labels where whole labels say that outputs are classes, else the squared error against the teacher.

    Further outputs of floating-point numbers are learned by squared error beside the first.

    Raises:
        RecipeError: one side gives probabilities and the other scores, and nothing says that they are of classes.
    """
    first = _teaching_of_first(model, _labels_among(data, labels), teachers or [model])
    ours, theirs = _floating(model), _floating((teachers or [model])[0])
    if len(ours) > len(theirs):
        _log.warning("the teacher has nothing to say of %s, which nothing trains", ", ".join(ours[len(theirs) :]))
    pairs = zip(ours, theirs, strict=False)
    others = [SquaredError(output=pair, against="teacher") for pair in pairs][1:]
    return Mix(((1.0, first), *((1.0, other) for other in others))) if others else first


def _teaching_of_first(model: Model, labels: np.ndarray | None, teachers: Sequence[Model]) -> Loss:
    """What compares the first outputs; either side may have gone through a softmax or a sigmoid."""
    ours, theirs = gives_probabilities(model), {gives_probabilities(one) for one in teachers}
    if len(theirs) > 1:
        raise RecipeError("some teachers give probabilities and others scores; their mean says nothing")
    if labels is None or labels.dtype.kind not in "iub":
        if {ours} != theirs:
            raise RecipeError(
                f"the {'student' if ours else 'teacher'} ends in a softmax or sigmoid and the other does not; "
                "leave it out of both or of none, or give loss=SoftLabels(probabilities=(student's, teacher's))"
            )
        return SquaredError(against="teacher")
    if _are_apart(model, labels):
        both = ending_of(model) == "Sigmoid", ending_of(teachers[0]) == "Sigmoid"
        return BinaryCrossEntropy(against="teacher", probabilities=both[0] if len(set(both)) == 1 else both)
    return SoftLabels(probabilities=ours if {ours} == theirs else (ours, not ours))


def _floating(model: Model) -> list[str]:
    """The outputs of floating-point numbers, the first output first."""
    first, *others = model.outputs
    return [first.name, *(spec.name for spec in others if np.issubdtype(spec.dtype, np.floating))]


def _are_apart(model: Model, labels: np.ndarray) -> bool:
    """Whether each output has a label of its own, 0 or 1: classes that do not exclude each other."""
    shape = model.outputs[0].shape
    fits = shape is not None and len(shape) == labels.ndim > 1 and labels.shape[-1] == shape[-1] != 1
    return fits and labels.dtype.kind in "iub" and bool(((labels == 0) | (labels == 1)).all())


def _is_one_hot(labels: np.ndarray) -> bool:
    return bool(((labels == 0) | (labels == 1)).all() and (labels.sum(-1) == 1).all())


def _labels_among(data: Any, labels: Any) -> np.ndarray | None:
    """Labels as an array; of an iterable of batches, those of its first batch."""
    if labels is not None:
        return as_array(labels, "labels")
    if data is None or isinstance(data, Mapping) or hasattr(data, "__array__"):
        return None
    LoaderBatches(data, ())  # refuses what can be walked through only once
    with torch.random.fork_rng():
        first = next(iter(data), None)
    if first is None:
        raise DataError("the data gave no batch; give at least one row")
    pair = isinstance(first, tuple | list) and len(first) == 2
    found = first.get("labels") if isinstance(first, Mapping) else first[1] if pair else None
    return None if found is None else labels_tensor(found).numpy()
