"""Who is learned from: one graph or several, without gradients; what they say of a row is computed once and kept."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Final

import numpy as np
import torch
from torch import Tensor

from alula.errors import ModelError, require
from alula.graph.model import Model
from alula.training.batches import Batch
from alula.training.modules import feeds_of, in_bfloat16, inside, lifted, named_outputs
from alula.training.training import Precision

KEPT_LIMIT_BYTES: Final = 2 * 2**30  # of outputs that are kept; beyond, they are computed anew each epoch


class Teacher:
    """Gives the tensors of a batch that a loss reads; of several graphs, the mean of what they give."""

    def __init__(
        self, models: Sequence[Model], tensors: Collection[str], *, rows: int = 0, precision: Precision = "float32"
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

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        """The outputs, and the tensors asked for, of the rows of a batch, by name."""
        if batch.rows is None or self._rows == 0:
            return self._compute(batch.inputs)
        if not self._seen[batch.rows].all():  # whole batches, as a graph of fixed batch wants them
            fresh = self._compute(batch.inputs)
            if not self._keep(batch.rows, fresh):
                self._rows = 0
            return fresh
        return {name: torch.from_numpy(array[batch.rows]).to(self._device) for name, array in self._kept.items()}

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
    def _compute(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._bfloat16):
            first, *others = [
                named_outputs(model, self._also, module(*feeds_of(model, inputs, self._device)))
                for model, module in zip(self._models, self._modules, strict=True)
            ]
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
