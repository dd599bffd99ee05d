"""Pruning as one call: what matters least goes until the goal is met, and the original teaches what is left."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from alula.errors import RecipeError, at
from alula.examples import hash_all
from alula.graph.load import load_model
from alula.graph.model import Model, Note
from alula.pruning.choice import Pruning
from alula.pruning.goal import Goal, Stopwatch, counted
from alula.pruning.ladders import Feeds
from alula.pruning.step import Step, calibration_batches, one_example
from alula.settings import expect
from alula.storage import storing
from alula.training.batches import batches_of
from alula.training.finetuning import Stage, distill, entered, teaching_loss
from alula.training.scoring import Validation
from alula.training.training import Training

NOTICEABLE = 1.1  # times fewer multiplications, from which on time is expected to follow


def prune(
    model: Any,
    data: Any,
    labels: Any = None,
    *,
    goal: Goal,
    pruning: Pruning | None = None,
    training: Training | Sequence[Stage] | None = None,
    validation: Validation | None = None,
    out: str | Path | None = None,
) -> Model:
    """A smaller graph that meets a goal, taught by the original.

    Args:
        model: a Model, the path of an ONNX file, or a module (exported with the first rows of the data).
        data: training inputs, as for :func:`alula.finetune`.
        labels: one per row; without, the original's outputs are all that is learned.
        goal: what is to be saved.
        pruning: how units are chosen.
        training: settings of each round of training; None: nothing is trained.
        validation: as for :func:`alula.finetune`.
        out: folder where the state is kept, so that the same call goes on after a kill.

    Raises:
        RecipeError: the goal cannot be met within the limits (the message says how far it goes), or nothing can go.
        TrainingError, DataError, ModelError: as for :func:`alula.finetune`.
    """
    expect("goal", goal, Goal)
    expect("pruning", pruning, Pruning | None)
    expect("out", out, str | Path | None)
    if training is None and validation is not None:
        raise RecipeError("validation judges what is trained; give training=..., too, or leave it out")
    pruning = pruning or Pruning()
    original = entered(model, data)
    batches = calibration_batches(original, data, labels, seed=pruning.seed)
    loss = teaching_loss(original, labels, data)
    current, identity = original, [original, pruning, goal, batches_of(original, data, labels).identity()]
    for number in range(1, pruning.rounds + 1):
        place = None if out is None else Path(out) / f"round-{number}"
        share = number / pruning.rounds
        step = Step(original, current, batches, goal, pruning)
        current = step.pruned(share) if place is None else _recalled(place, step, share, [*identity, current])
        if training is not None:
            current = distill(current, original, data, labels, loss=loss, training=training, validation=validation,
                              out=place)  # fmt: skip
    return current.edited(current.edit(), _what_it_came_to(original, current, goal, one_example(original, batches)))


def _recalled(place: Path, step: Step, share: float, identity: Sequence[Any]) -> Model:
    """The pruned graph of a round, read back where an interrupted run had made it: timing is never the same twice."""
    path = place / f"pruned-{hash_all([*identity, share])[:12]}.onnx"
    if path.is_file():
        with at("damaged; remove it, and the same call makes it anew"):
            return load_model(path)
    with storing(f"make {place}"):
        place.mkdir(parents=True, exist_ok=True)
    smaller = step.pruned(share)
    smaller.save(path)
    return load_model(path)  # the same graph whether it was interrupted or not


def _what_it_came_to(original: Model, smaller: Model, goal: Goal, example: Feeds) -> list[Note]:
    """Counted and measured savings; where time did not follow, why."""
    counts = {
        kind: counted(original, kind, example) / counted(smaller, kind, example) for kind in ("macs", "parameters")
    }
    faster = Stopwatch(original, goal.target, example).compare(smaller)
    text = (
        f"{counts['macs']:.2f} times fewer multiplications, {counts['parameters']:.2f} times fewer parameters, "
        f"{faster.value:.2f} times faster on {goal.target.name} ({faster.low:.2f} to {faster.high:.2f})"
    )
    notes = [Note("pruning", text)]
    if counts["macs"] > NOTICEABLE and (faster.high or faster.value) < 1 + (counts["macs"] - 1) / 2:
        text = (
            "the time did not fall with the multiplications: kernels compute channels in blocks, and what is "
            "no product stays"
        )
        if goal.latency is None:
            text += "; a goal of latency takes out what saves time"
        notes.append(Note("pruning", text))
    return notes
