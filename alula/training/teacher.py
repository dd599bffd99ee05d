"""Who is learned from: one graph or several, without gradients; what they say is computed once and kept.

In memory it is kept by row, where rows stay the same every epoch. In a folder it is kept by batch, for other students
that are taught on the same batches.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
import torch
from torch import Tensor

from alula.errors import DataError, ModelError, RecipeError, StorageError, require
from alula.graph.model import Model
from alula.settings import check_settings
from alula.training.batches import Batch
from alula.training.checkpoint import load_tensors, save_tensors
from alula.training.modules import feeds_of, in_bfloat16, inside, lifted, named_outputs
from alula.training.training import Precision

Answers: TypeAlias = dict[str, Tensor]

_log = logging.getLogger(__name__)

KEPT_LIMIT_BYTES: Final = 2 * 2**30  # of outputs that are kept; beyond, they are computed anew each epoch


@dataclass(frozen=True, slots=True)
class Remembered:
    """Teachers whose answers are kept in a folder, so that each is asked once for all students taught on one data.

    What is kept is found again by the teachers, the data, the batch size, the seed and the augmentation. Batches of a
    loader of the user's own are not known to come back, and blocks between tensors are fed by the teacher: of those
    nothing is kept.

    Attributes:
        teacher: what can be a teacher, or several.
        folder: where answers are kept; it grows by all outputs of all rows of each epoch.
    """

    teacher: Any
    folder: str | Path

    def __post_init__(self) -> None:
        check_settings(self)


class Teacher:
    """Gives the tensors of a batch that a loss reads; of several graphs, the mean of what they give."""

    def __init__(
        self,
        models: Sequence[Model],
        tensors: Collection[str],
        *,
        rows: int = 0,
        precision: Precision = "float32",
        folder: Path | None = None,
    ) -> None:
        self._models = tuple(models)
        self._device: torch.device = require("accelerate", "compress").Accelerator().device
        self._bfloat16 = in_bfloat16(precision, self._device)
        counts = sorted({len(model.outputs) for model in models})
        if len(counts) > 1:
            raise ModelError(f"several teachers are averaged output by output; they give {counts} outputs")
        self._also = inside(models[0], sorted(tensors))
        self._modules = [lifted(model, self._also).eval().to(self._device) for model in models]
        self._rows, self._kept, self._seen = rows, dict[str, np.ndarray](), np.zeros(rows, bool)
        self._folder = folder

    def __call__(self, batch: Batch) -> Answers:
        """The outputs, and the tensors asked for, of the rows of a batch, by name."""
        if self._folder is not None and batch.draw is not None:
            return self._recalled(batch, self._folder / f"{'-'.join(map(str, batch.draw))}.safetensors")
        if batch.rows is None or self._rows == 0:
            return self._compute(batch.inputs)
        if not self._seen[batch.rows].all():  # whole batches, as a graph of fixed batch wants them
            fresh = self._compute(batch.inputs)
            if not self._keep(batch.rows, fresh):
                self._rows = 0
            return fresh
        return {name: torch.from_numpy(array[batch.rows]).to(self._device) for name, array in self._kept.items()}

    def _recalled(self, batch: Batch, path: Path) -> Answers:
        """What stands in a file; where it is not there yet, or damaged, it is computed and written."""
        if path.is_file():
            try:
                kept = load_tensors(path)
            except StorageError as error:
                _log.warning("%s is made anew: %s", path, error)
            else:
                if all(len(tensor) == len(batch) for tensor in kept.values() if tensor.ndim):
                    return {name: tensor.to(self._device) for name, tensor in kept.items()}
                _log.warning("%s is made anew: it is of other rows", path)
        answers = {name: tensor.float().contiguous() for name, tensor in self._compute(batch.inputs).items()}
        save_tensors(path, answers)
        return answers

    def _keep(self, rows: np.ndarray, fresh: Mapping[str, Tensor]) -> bool:
        """Keep what was computed of some rows; False where it would take too much memory, or has no rows."""
        if not self._kept:
            size = sum(self._rows * tensor[0].numel() * 4 for tensor in fresh.values() if tensor.ndim)
            if size > KEPT_LIMIT_BYTES or any(tensor.ndim == 0 for tensor in fresh.values()):
                return False
            self._kept = {name: np.zeros((self._rows, *tensor.shape[1:]), np.float32) for name, tensor in fresh.items()}
        for name, tensor in fresh.items():
            if len(tensor) != len(rows) or tensor.shape[1:] != self._kept[name].shape[1:]:
                return False
            self._kept[name][rows] = tensor.float().cpu().numpy()
        self._seen[rows] = True
        return True

    @torch.no_grad()
    def _compute(self, inputs: Mapping[str, Tensor]) -> Answers:
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._bfloat16):
            first, *others = [
                named_outputs(model, self._also, module(*feeds_of(model, inputs, self._device)))
                for model, module in zip(self._models, self._modules, strict=True)
            ]
        shapes = {tuple(tuple(tensor.shape) for tensor in one.values()) for one in (first, *others)}
        if len(shapes) > 1:
            raise RecipeError(
                "several teachers are averaged, so all must answer in the same shapes; they give "
                + " and ".join(str([list(shape) for shape in one]) for one in sorted(shapes))
            )
        mean = [sum(tensors[1:], tensors[0]) / len(tensors) for tensors in zip(
            first.values(), *(one.values() for one in others), strict=True)]  # fmt: skip
        return dict(zip(first, mean, strict=True))


def check_teacher(teacher: Model, student: Model) -> None:
    """Raise ModelError unless a teacher can be run on the student's data."""
    wanted, given = {spec.name for spec in teacher.inputs}, {spec.name for spec in student.inputs}
    if not wanted <= given:
        raise ModelError(
            f"the teacher reads the inputs {sorted(wanted)}, the student {sorted(given)}; both are fed the same data, "
            "so call them the same (input_names of export_module)"
        )
    ours = {spec.name: spec for spec in student.inputs}
    for spec in teacher.inputs:
        other = ours[spec.name]
        if spec.dtype != other.dtype or not _may_agree(spec.shape, other.shape):
            raise ModelError(f"teacher and student are fed the same data, but the teacher reads {spec}, and the "
                             f"student {other}")  # fmt: skip


def check_rows(teacher: Model, batch: Batch) -> None:
    """Raise DataError where a teacher of fixed batch cannot take the rows of a step."""
    for spec in teacher.inputs:
        rows = spec.shape[0] if spec.shape else None
        if isinstance(rows, int) and rows != len(batch.inputs[spec.name]):
            raise DataError(
                f"the teacher takes {rows} rows in every call, and a step has {len(batch.inputs[spec.name])}; set "
                f"batch_size to {rows}, or give a teacher of free batch"
            )


def _may_agree(one: Sequence[int | str | None] | None, other: Sequence[int | str | None] | None) -> bool:
    """Whether some shape fits both, the first axis aside."""
    if one is None or other is None:
        return True
    return len(one) == len(other) and all(
        not (isinstance(a, int) and isinstance(b, int)) or a == b for a, b in zip(one[1:], other[1:], strict=True)
    )
