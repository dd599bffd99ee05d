"""The one trainer: a graph, data and a loss in; the trained graph out.

All that a step does follows from the seed and its number, so a run that was killed goes on to the same result.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from numbers import Real
from pathlib import Path
from typing import Any, Final

import torch

from alula.errors import AlulaError, DataError, ModelError, RecipeError, StorageError, require
from alula.examples import hash_all
from alula.graph.gradientless import cut_off
from alula.graph.model import Model, Note
from alula.storage import storing
from alula.task_rows import fixed_batch
from alula.training.batches import Batches, RowBatches
from alula.training.checkpoint import load_state, save_state
from alula.training.learner import Diverged, Learner
from alula.training.loss import Loss
from alula.training.modules import in_bfloat16
from alula.training.scoring import Score
from alula.training.teacher import Teacher, check_rows, check_teacher
from alula.training.training import Training

SAVE_SECONDS: Final = 30.0  # between two states that are written while an epoch runs
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Epoch:
    """What an epoch came to: the mean loss of its steps, and the score after it where there is one."""

    number: int
    loss: float
    score: float | None


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a run stands."""

    step: int
    steps: int
    loss: float
    score: float | None


@dataclass(frozen=True, slots=True)
class Trained:
    """A trained graph and how it came about.

    Attributes:
        model: the graph of the best score; without scores, that of the last step.
        history: one entry per epoch.
        reason: why training ended.
    """

    model: Model
    history: tuple[Epoch, ...]
    reason: str


class TrainingError(AlulaError):
    """Training cannot go on; ``trained`` is what it had reached while all was well."""

    def __init__(self, message: str, trained: Trained | None = None) -> None:
        super().__init__(message)
        self.trained = trained


@dataclass(frozen=True, slots=True)
class Around:
    """What a run has to do with the world around it.

    Attributes:
        score: how good a graph is; the best one is returned, and patience counts by it.
        folder: where the state is kept, so that the same call goes on after a kill.
        report: is told after every step.
        answers: folder where what teachers say of each batch is kept for other students.
        frozen: initializers that stay as they are, where they are weights at all.
    """

    score: Score | None = None
    folder: Path | None = None
    report: Callable[[Progress], None] | None = None
    answers: Path | None = None
    frozen: tuple[str, ...] = ()


def train(
    model: Model,
    batches: Batches,
    loss: Loss,
    training: Training | None = None,
    *,
    teachers: Sequence[Model] = (),
    around: Around | None = None,
) -> Trained:
    """Train a graph.

    Args:
        model: the graph.
        batches: the data (:func:`alula.training.batches.batches_of`).
        loss: what is made small.
        training: settings.
        teachers: graphs whose tensors the loss is given.
        around: scoring, saving and reporting.

    Raises:
        TrainingError: the loss is not finite any more; the message names the step and the layer, and ``trained`` holds
            the last good state.
        DataError: the data ended early, or do not fit the graph.
        StorageError: the folder holds another run, or cannot be written.
    """
    training = training or Training()
    if training.accumulate > 1 and fixed_batch(model) is not None:
        raise RecipeError(f"the graph takes {fixed_batch(model)} rows in every call; accumulate must be 1")
    if training.patience is not None and (around is None or around.score is None):
        raise RecipeError("patience counts epochs without a better score, and there is no score; give validation=...")
    for one in teachers:
        check_teacher(one, model)
    cut, notes = _cut_off(model, loss)
    around = replace(around or Around(), frozen=(*(around or Around()).frozen, *cut))
    with torch.random.fork_rng():  # the user's own draws go on as if nothing had been trained
        trained = _train(model, batches, loss, training, teachers=teachers, around=around)
    return replace(trained, model=trained.model.edited(trained.model.edit(), notes)) if notes else trained


def _cut_off(model: Model, loss: Loss) -> tuple[list[str], list[Note]]:
    """The initializers that no gradient reaches, and a note for each such layer.

    Raises:
        ModelError: it reaches none.
    """
    cut = cut_off(model, [*(spec.name for spec in model.outputs), *loss.needs().student])
    layers = [layer for layer in model.layers() if set(layer.weights) <= set(cut)]
    named = {layer.name: f"{cut[layer.weight].op_type} {cut[layer.weight].name!r}" for layer in layers}
    if layers and len(layers) == len(model.layers()):
        raise ModelError(
            f"no gradient reaches any layer: {next(iter(named.values()))}, between them and what the graph gives out, "
            "has none; train the graph that ends before it"
        )
    notes = [
        Note(str(node.name), "its weights stay as they are: they are codes beside inputs quantized at run time; train "
             "first, and quantize afterwards")
        for node in model.graph if node.op_type in ("MatMulInteger", "ConvInteger")
    ]  # fmt: skip
    return sorted(cut), notes + [
        Note(name, f"stays as it is: {node}, behind it, has no gradient") for name, node in named.items()
    ]


def _train(
    model: Model, batches: Batches, loss: Loss, training: Training, *, teachers: Sequence[Model], around: Around
) -> Trained:
    teacher = _teacher_of(teachers, batches, loss, training, around.answers) if teachers else None
    first = next(batches.epoch(0), None)
    if first is None:
        raise DataError("the data gave no batch; give at least one row")
    for one in teachers:
        check_rows(one, first)
    learner = Learner(model, loss, training, first, told=teacher(first) if teacher else None,
                      frozen=around.frozen)  # fmt: skip
    identity = hash_all([model.fingerprint, training, loss, [one.fingerprint for one in teachers], batches.identity(),
                         around.score, around.frozen])  # fmt: skip
    run = _Run(learner, batches, training, teacher, around)
    return run.go(identity)


def _teacher_of(
    models: Sequence[Model], batches: Batches, loss: Loss, training: Training, answers: Path | None
) -> Teacher:
    """The teacher, who keeps what can be kept."""
    wanted, precision = loss.needs().teacher, training.precision
    device = require("accelerate", "compress").Accelerator().device
    rows = batches.rows if isinstance(batches, RowBatches) and not batches.augments else 0
    folder = None
    if answers is not None:
        key = hash_all([[one.fingerprint for one in models], batches.identity(), sorted(wanted),
                        in_bfloat16(precision, device)])  # fmt: skip
        folder = answers / key[:16]
        with storing(f"make {folder}"):
            folder.mkdir(parents=True, exist_ok=True)
    return Teacher(models, wanted, rows=rows, precision=precision, folder=folder)


class _Run:
    """One run: who learns from what, and where it stands."""

    def __init__(
        self,
        learner: Learner,
        batches: Batches,
        training: Training,
        teacher: Teacher | None,
        around: Around,
    ) -> None:
        self.learner, self.batches, self.training, self.teacher = learner, batches, training, teacher
        self.around, self.identity = around, ""
        self.steps = max(1, math.ceil(training.epochs * len(batches)))
        self.step, self.is_whole = 0, True  # not whole: interrupted between the first and last change of a step
        self.losses: list[float] = []  # of the epoch that is under way
        self.history: list[Epoch] = []
        self.best: Mapping[str, Any] | None = None  # state of the best score
        self.saved = time.monotonic()

    def go(self, identity: str) -> Trained:
        """Train to the end, from where an earlier run of the same identity stopped."""
        self.identity = identity
        self._resume()
        good = _copied(self.learner.state())
        try:
            if self.losses and self._is_epoch_done():  # it was killed between the last step and the score
                self._end_epoch((self.step - 1) // len(self.batches))
            while self.step < self.steps and not self._is_patience_over():
                self._train_epoch()
                good = _copied(self.learner.state())
        except Diverged as error:
            self.learner.restore(good)
            text = (
                f"training stopped at step {self.step + 1} of {self.steps}: {error}; lower the learning rate, or clip"
            )
            raise TrainingError(text, self._trained("the loss was not finite")) from None
        except BaseException:
            if self.is_whole:
                self._save()
            raise
        self._save()
        return self._trained(self._reason())

    def _train_epoch(self) -> None:
        number, start = divmod(self.step, len(self.batches))
        for batch in self.batches.epoch(number, start=start, share=self.learner.share):
            _seed_draws(self.training.seed * 1_000_003 + self.step, self.learner.device)
            told = self.teacher(batch) if self.teacher else {}
            self.is_whole = False
            self.losses.append(self.learner.learn(batch, told, self.step, self.steps))
            self.step += 1
            self.is_whole = True
            self._report()
            if self._is_epoch_done():
                self._end_epoch(number)
                return
            if time.monotonic() - self.saved > SAVE_SECONDS:
                self._save()
        raise DataError(
            f"the data ended after {self.step - number * len(self.batches)} of {len(self.batches)} batches of epoch "
            f"{number + 1}; what it gives and the length it tells must agree"
        )

    def _is_epoch_done(self) -> bool:
        return self.step == self.steps or self.step % len(self.batches) == 0

    def _end_epoch(self, number: int) -> None:
        score = None if self.around.score is None else self._scored(self.around.score)
        best = max(self._scores(), default=-math.inf)
        self.history.append(Epoch(number + 1, sum(self.losses) / len(self.losses), score))
        self.losses = []
        if score is not None and score > best and self._may_be_best():
            self.best = _copied(self.learner.state())
        _log.info("epoch %d: loss %.4g, score %s", number + 1, self.history[-1].loss, score)
        self._save()

    def _scored(self, score: Score) -> float:
        value = self.learner.agree(score(self.learner.graph()) if self.learner.is_first else None)
        if not isinstance(value, Real) or math.isnan(value):
            raise DataError(f"score(model) must give a number, got {value!r}")
        return float(value)

    def _report(self) -> None:
        if self.around.report is not None and self.learner.is_first:
            score = self.history[-1].score if self.history else None
            self.around.report(Progress(self.step, self.steps, self.losses[-1], score))

    def _scores(self) -> list[float]:
        """Scores of the epochs that can be the best."""
        told = [epoch.score for epoch in self.history if epoch.score is not None]
        return told[self._rising_epochs() :]

    def _rising_epochs(self) -> int:
        """Epochs at whose end weights still had to become zero: they count neither as best nor for patience."""
        gradual, length = self.training.gradual, len(self.batches)
        if gradual is None:
            return 0
        ends = [min(number * length, self.steps) for number in range(1, len(self.history) + 1)]
        return sum(not gradual.is_reached(end, self.steps) for end in ends)

    def _may_be_best(self) -> bool:
        return self.training.gradual is None or self.training.gradual.is_reached(self.step, self.steps)

    def _since_best(self) -> int:
        """Epochs since the best score."""
        scores = self._scores()
        return len(scores) - 1 - scores.index(max(scores)) if scores else 0

    def _is_patience_over(self) -> bool:
        return self.training.patience is not None and self._since_best() >= self.training.patience

    def _reason(self) -> str:
        if self.step < self.steps:
            return f"no better score in {self._since_best()} epochs"
        return f"all {self.steps} steps are done"

    def _trained(self, reason: str) -> Trained:
        if self.best is not None:
            self.learner.restore(self.best)
        text = f"{self.step} steps; {reason}"
        if self.best is not None:
            kept = self.history[len(self.history) - 1 - self._since_best()]
            text += f"; the weights of epoch {kept.number} are kept, score {kept.score:.4g}"
        model = self.learner.graph()
        return Trained(model.edited(model.edit(), [Note("training", text)]), tuple(self.history), reason)

    def _save(self) -> None:
        self.saved = time.monotonic()
        if self.around.folder is None or not self.learner.is_first:
            return
        facts = {"identity": self.identity, "step": self.step, "losses": self.losses,
                 "history": [asdict(epoch) for epoch in self.history]}  # fmt: skip
        best = {} if self.best is None else {"best": self.best}
        save_state(self.around.folder, {"now": self.learner.state(), **best}, facts)

    def _resume(self) -> None:
        found = None if self.around.folder is None else load_state(self.around.folder)
        if found is None:
            return
        state, facts = found
        if facts.get("identity") != self.identity:
            raise StorageError(
                f"{self.around.folder} holds a run of another model, other data or other settings; choose another "
                "folder, or remove it"
            )
        self.learner.restore(state["now"])
        self.best = state.get("best")
        self.step, self.losses = int(facts["step"]), list(facts["losses"])
        self.history = [Epoch(**epoch) for epoch in facts["history"]]
        _log.info("training goes on at step %d of %d", self.step, self.steps)


def _seed_draws(seed: int, device: torch.device) -> None:
    """Seed what the graph draws from, if it has a dropout.

    Of the devices, only those of this run: each takes its time at every step.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


def _copied(state: Mapping[str, Any]) -> dict[str, Any]:
    """The state as it is now, whatever is trained later."""
    return {
        key: _copied(value) if isinstance(value, Mapping) else value.detach().clone() for key, value in state.items()
    }
