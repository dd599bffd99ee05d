"""A block of the student trained by itself: fed what the teacher feeds its own, to give what the teacher's gives."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import torch

from alula.errors import ModelError, require
from alula.graph.cutting import cut_out
from alula.graph.model import Model
from alula.training.batches import Batch, Batches
from alula.training.modules import feeds_of, lifted


class TeacherFed:
    """Batches of one of the teacher's tensors, computed from batches of its inputs."""

    augments = True  # what the teacher computes is not kept

    def __init__(self, batches: Batches, teacher: Model, tensor: str) -> None:
        self._batches, self._tensor = batches, tensor
        self._front = cut_out(teacher, [spec.name for spec in teacher.inputs], [tensor])
        self._device: torch.device = require("accelerate", "compress").Accelerator().device
        self._module = lifted(self._front).eval().to(self._device)

    def __len__(self) -> int:
        return len(self._batches)

    def identity(self) -> str:
        """Fingerprint of the data and of what the teacher makes of them."""
        return f"{self._batches.identity()}{self._front.fingerprint}"

    def epoch(self, number: int, *, start: int = 0, share: tuple[int, int] = (0, 1)) -> Iterator[Batch]:
        """The batches of an epoch."""
        for batch in self._batches.epoch(number, start=start, share=share):
            with torch.no_grad():
                tensor = self._module(*feeds_of(self._front, batch.inputs, self._device))
            yield Batch({self._tensor: tensor.float()}, None)


def block_of(model: Model, between: tuple[str, str]) -> Model:
    """The block between two tensors, as a graph of its own."""
    first, last = between
    if last in {spec.name for spec in model.inputs}:
        raise ModelError(f"nothing leads from {first!r} to {last!r}, an input of the graph; name first where it begins")
    return cut_out(model, [first], [last])


def check_same(student: Model, teacher: Model, batches: TeacherFed) -> None:
    """Raise ModelError unless the block of the student takes what the teacher feeds it, and gives the same shape."""
    first = next(islice(batches.epoch(0), 1), None)
    if first is None:
        return
    feeds = {name: tensor.cpu().numpy() for name, tensor in first.inputs.items()}
    name = teacher.outputs[0].name
    shapes = [model.run(feeds)[name].shape for model in (student, teacher)]
    if shapes[0] != shapes[1]:
        raise ModelError(
            f"between {next(iter(feeds))!r} and {name!r} the student gives {list(shapes[0])}, the teacher "
            f"{list(shapes[1])}; take tensors that have the same shape in both"
        )
