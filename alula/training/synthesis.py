"""Inputs without data: batches that give each batch normalisation what it remembers of the training data.

| symbol | code | shape | unit | meaning |
|---|---|---|---|---|
| x | inputs | [B, ...] | of the input | what is sought, from normal numbers on |
| m_l, s_l | seen | [C_l] | of the tensor | mean and deviation of what batch normalisation l reads, each channel |
| mu_l, sigma_l | remembered | [C_l] | of the tensor | its running mean, and the root of its running variance |
| R | statistics_distance | | squared | sum over l of |m_l - mu_l|^2 + |s_l - sigma_l|^2 |
| V | total_variation | | squared | of images: sum of squared differences of neighbours, per pixel |

Sources: Cai et al. 2020, "ZeroQ", equation 3: the least R. With classes, Yin et al. 2020, "Dreaming to distill"
(DeepInversion), section 3.2: the least cross entropy of the classes + R + V / 10, here with ZeroQ's R.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import Tensor

from alula.errors import DataError, ModelError
from alula.graph.ending import gives_probabilities
from alula.graph.lifting import LiftedGraph
from alula.graph.load import load_model
from alula.graph.model import Model
from alula.graph.remembered import remembered, why_nothing_can_be_made
from alula.graph.trainable import trainable
from alula.task_rows import fixed_batch
from alula.training.losses import CrossEntropy

LEARNING_RATE: Final = 0.1  # the highest, of Adam; it goes down to nothing by a cosine
VARIATION_WEIGHT: Final = 0.1
EPSILON: Final = 1e-12  # of a variance: what is 0 for every example has a deviation without gradient

Statistics = tuple[Tensor, Tensor]  # mean and deviation, [C] each
Progress = Callable[[int, int], None]


def synthesise(
    model: Model | str | Path,
    count: int,
    *,
    steps: int = 500,
    batch_size: int = 64,
    seed: int = 0,
    classes: Sequence[int] | np.ndarray | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    on_progress: Progress | None = None,
) -> dict[str, np.ndarray]:
    """Inputs whose batch statistics are those that the graph's batch normalisations keep of the data it was trained on.

    They stand in for calibration data: ``alula.quantize(model, alula.synthesise(model, 256))``. They start from normal
    numbers, so they are on the scale of data that were brought to mean 0 and deviation 1. The same seed gives the same
    inputs.

    Args:
        model: the graph or its file, with its batch normalisations not folded yet.
        count: rows to make.
        steps: of the optimiser, for each batch.
        batch_size: rows that are made together, at most; the more, the better statistics can be met. A graph of fixed
            batch takes its own.
        seed: of the numbers that they start from.
        classes: of each row, [count], for which the first output is to be large; then images are made smooth too.
        shapes: lengths of all axes but the first, by input, where the graph leaves them free.
        on_progress: is told the steps that are done, and all.

    Returns:
        An array [count, ...] for each input.

    Raises:
        ModelError: the graph has no batch normalisation that keeps statistics, takes whole numbers, leaves an axis
            free, or gives values that are not finite.
        DataError: count, steps, batch size or classes are impossible.
    """
    _check_counts(count=count, steps=steps, batch_size=batch_size)
    model = model if isinstance(model, Model) else load_model(model)
    goals = _goals(model)
    targets = None if classes is None else _targets(classes, count)
    search = _Search(_frozen(model, goals), model, goals, steps)
    fixed = fixed_batch(model)
    sizes = _batch_sizes(count, fixed or batch_size, fixed=fixed is not None)
    row_shapes = {spec.name: _row_shape(model, spec.name, shapes or {}) for spec in model.inputs}
    made: list[dict[str, Tensor]] = []
    for number, size in enumerate(sizes):
        generator = torch.Generator().manual_seed(seed * 1_000_003 + number)
        inputs = {name: torch.randn((size, *shape), generator=generator) for name, shape in row_shapes.items()}
        start = sum(sizes[:number])
        wanted = None if targets is None else targets[torch.arange(start, start + size) % count]
        made.append(search.improve(inputs, wanted, _shifted(on_progress, number * steps, len(sizes) * steps)))
    return {
        spec.name: torch.cat([one[spec.name] for one in made])[:count].numpy().astype(spec.dtype)
        for spec in model.inputs
    }


def statistics_distance(seen: Sequence[Statistics], remembered: Sequence[Statistics]) -> Tensor:
    """R: sum over l of |m_l - mu_l|^2 + |s_l - sigma_l|^2 (Cai et al. 2020, equation 3)."""
    distances = [
        ((mean - goal_mean) ** 2).sum() + ((deviation - goal_deviation) ** 2).sum()
        for (mean, deviation), (goal_mean, goal_deviation) in zip(seen, remembered, strict=True)
    ]
    return torch.stack(distances).sum()


def statistics_of(x: Tensor) -> Statistics:  # [B, C, places...] -> [C], [C]
    """Mean and deviation of each channel, over the batch and the places."""
    x = x.float() if x.dtype == torch.float16 else x
    axes = [axis for axis in range(x.ndim) if axis != 1]
    variance, mean = torch.var_mean(x, axes, correction=0)
    return mean, (variance + EPSILON).sqrt()


def total_variation(x: Tensor) -> Tensor:  # [B, C, H, W] -> []
    """V: mean square of the differences between neighbours; those along an axis of length 1 are none."""
    differences = (x.diff(dim=2), x.diff(dim=3))
    return torch.stack([one.square().sum() for one in differences]).sum() / x.numel()


@dataclass(frozen=True, slots=True)
class _Goal:
    """A batch normalisation: the tensor that it reads, and what it remembers of it."""

    tensor: str
    remembered: Statistics


@dataclass(frozen=True, slots=True)
class _Search:
    """The graph as a function of its inputs, and where they are to lead."""

    module: LiftedGraph
    model: Model
    goals: tuple[_Goal, ...]
    steps: int

    def improve(self, inputs: dict[str, Tensor], classes: Tensor | None, on_step: Progress | None) -> dict[str, Tensor]:
        """Inputs of one batch, after all steps."""
        sought = [tensor.requires_grad_() for tensor in inputs.values()]
        optimiser = torch.optim.Adam(sought, lr=LEARNING_RATE)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, self.steps)
        for step in range(self.steps):
            optimiser.zero_grad()
            loss = self._loss(sought, classes)
            if not torch.isfinite(loss):
                raise ModelError(
                    f"the graph must give finite values for normal numbers, the loss of step {step + 1} is "
                    f"{loss.item()}; look for NaN or infinity in its weights"
                )
            if not loss.requires_grad:
                raise ModelError(
                    "no gradient leads from the batch normalisations to the inputs; give real inputs instead"
                )
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
            if on_step is not None:
                on_step(step + 1, self.steps)
        return {name: tensor.detach() for name, tensor in inputs.items()}

    def _loss(self, inputs: Sequence[Tensor], classes: Tensor | None) -> Tensor:
        outputs = self.module(*(x.to(dtype) for x, dtype in zip(inputs, _types(self.model), strict=True)))
        read = outputs[len(self.model.outputs) :]
        loss = statistics_distance([statistics_of(x) for x in read], [goal.remembered for goal in self.goals])
        if classes is None:
            return loss
        entropy = CrossEntropy(probabilities=gives_probabilities(self.model))
        smoothness = [VARIATION_WEIGHT * total_variation(x) for x in inputs if x.ndim == 4]
        return torch.stack([loss, entropy({"output": outputs[0]}, {}, classes), *smoothness]).sum()


def _frozen(model: Model, goals: Sequence[_Goal]) -> LiftedGraph:
    module = trainable(model, also=[goal.tensor for goal in goals]).eval()
    return module.requires_grad_(requires_grad=False)


def _goals(model: Model) -> tuple[_Goal, ...]:
    """The batch normalisations of a graph; one for each tensor that they read."""
    reason = why_nothing_can_be_made(model)
    if reason is not None:
        raise ModelError(f"{reason}: give real inputs, or the model as it was before")
    return tuple(
        _Goal(tensor, (torch.from_numpy(mean), torch.from_numpy(variance).sqrt()))
        for tensor, (mean, variance) in remembered(model).items()
    )


def _row_shape(model: Model, name: str, shapes: Mapping[str, Sequence[int]]) -> tuple[int, ...]:
    """Lengths of the axes of an input, without the first."""
    spec = next(spec for spec in model.inputs if spec.name == name)
    axes = tuple(shapes.get(name, (spec.shape or ())[1:]))
    known = tuple(axis for axis in axes if isinstance(axis, int) and axis >= 1)
    if not spec.shape or len(known) < len(axes) or len(axes) != len(spec.shape) - 1:
        raise ModelError(
            f"input {spec} must have the batch in its first axis, and others of known length, got {list(axes)}; give "
            f"them, such as shapes={{{name!r}: [3, 224, 224]}}"
        )
    return known


def _batch_sizes(count: int, limit: int, *, fixed: bool) -> list[int]:
    """Rows of each batch, as equal as can be; as many as the limit where that is fixed.

    >>> _batch_sizes(65, 64, fixed=False), _batch_sizes(65, 64, fixed=True)
    ([33, 32], [64, 64])
    """
    batches = math.ceil(count / limit)
    return [limit] * batches if fixed else [len(rows) for rows in np.array_split(np.arange(count), batches)]


def _types(model: Model) -> list[torch.dtype]:
    return [torch.from_numpy(np.empty(0, spec.dtype)).dtype for spec in model.inputs]


def _targets(classes: Sequence[int] | np.ndarray, count: int) -> Tensor:
    array = np.asarray(classes)
    if array.shape != (count,) or array.dtype.kind not in "iu":
        raise DataError(f"classes must be {count} whole numbers, one for each row; got {array.dtype} of shape "
                        f"{list(array.shape)}")  # fmt: skip
    return torch.from_numpy(array.astype(np.int64))


def _check_counts(**counts: int) -> None:
    for name, value in counts.items():
        if value < 1:
            raise DataError(f"{name} must be at least 1, got {value}")


def _shifted(on_progress: Progress | None, done: int, total: int) -> Progress | None:
    """Progress of one batch as progress of all."""
    return None if on_progress is None else lambda step, _: on_progress(done + step, total)
