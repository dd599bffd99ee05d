"""How a graph is trained: one frozen set of settings, and the learning rate that follows from it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from alula.settings import check_rules, check_settings
from alula.training.gradual import Gradual

if TYPE_CHECKING:
    import torch

    Augment: TypeAlias = Callable[[dict[str, torch.Tensor], torch.Generator], dict[str, torch.Tensor]]
else:
    Augment = Callable
Precision: TypeAlias = Literal["auto", "float32", "bfloat16"]
"""Changes the inputs of a batch at random, drawing from the generator alone."""


@dataclass(frozen=True, slots=True)
class Training:
    """Settings of one training run.

    Attributes:
        epochs: passes over the data; a fraction is allowed.
        batch_size: rows of one step, over all processes.
        learning_rate: the highest one.
        optimiser: ``sgd`` (Nesterov momentum 0.9) or ``adamw``.
        weight_decay: of weights of two axes and more; biases, scales and norms have none.
        schedule: what the learning rate does after warming up: ``cosine`` and ``linear`` go down to nothing.
        warm_up: share of all steps over which the learning rate rises from nothing.
        accumulate: parts that a batch is computed in, where memory is short; the gradient is that of the whole batch,
            but for what batch normalisations see.
        precision: of products and convolutions: ``bfloat16``, ``float32``, or ``auto``: bfloat16 where the device
            computes with it. Weights are float32 always.
        averaging: share that the running average of the weights keeps at each step, such as 0.999; 0: no average.
            The average is what is scored and returned.
        clip: the largest norm of all gradients together; None: no limit.
        freeze: patterns of initializers that stay as they are.
        keep_zeros: weights that are zero stay zero, so that what was pruned stays pruned; but not in weights that are
            zero altogether.
        scale_rate: the highest relative change of the scale of a quantized tensor in one step, on the same schedule as
            the learning rate (:mod:`alula.training.scales`); 0: they stay as they are. The weights of a quantized graph
            are trained on their grid in any case.
        gradual: how weights become zero while the others are trained; None: none do.
        batch_statistics: batch normalisations train as such; False: they compute with their running statistics.
        patience: epochs without a better score after which training stops; None: all are trained.
        augment: changes the inputs of each batch at random: ``augment(inputs by name, generator) -> inputs``.
        seed: of the order of rows and of augmentation.
    """

    epochs: float = 3
    batch_size: int = 64
    learning_rate: float = 1e-3
    optimiser: Literal["adamw", "sgd"] = "adamw"
    weight_decay: float = 1e-4
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warm_up: float = 0.05
    accumulate: int = 1
    precision: Precision = "auto"
    averaging: float = 0.0
    clip: float | None = None
    freeze: tuple[str, ...] = ()
    keep_zeros: bool = True
    scale_rate: float = 1e-3
    gradual: Gradual | None = None
    batch_statistics: bool = True
    patience: int | None = None
    augment: Augment | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        check_settings(self)
        check_rules(self, self._rules())

    def _rules(self) -> tuple[tuple[str, str, bool], ...]:
        return (
            ("epochs", "a number above 0", 0 < self.epochs < math.inf),
            ("batch_size", "at least 1", self.batch_size >= 1),
            ("learning_rate", "above 0 and finite", 0 < self.learning_rate < math.inf),
            ("weight_decay", "at least 0", 0 <= self.weight_decay < math.inf),
            ("warm_up", "at least 0 and below 1", 0 <= self.warm_up < 1),
            ("accumulate", "from 1 to batch_size", 1 <= self.accumulate <= self.batch_size),
            ("averaging", "at least 0 and below 1", 0 <= self.averaging < 1),
            ("scale_rate", "at least 0 and below 1", 0 <= self.scale_rate < 1),
            ("clip", "above 0, or None", self.clip is None or self.clip > 0),
            ("patience", "at least 1, or None", self.patience is None or self.patience >= 1),
            ("seed", "from 0 to 2^32 - 1", 0 <= self.seed < 2**32),
        )


def learning_rate_at(step: int, steps: int, training: Training) -> float:
    """The learning rate of a step, of ``steps`` in all, counted from 0 (cosine: Loshchilov & Hutter 2017, equation 5).

    >>> [round(learning_rate_at(step, 100, Training(learning_rate=1, warm_up=0.02)), 3) for step in (0, 1, 2, 51, 99)]
    [0.5, 1.0, 1.0, 0.5, 0.0]
    """
    warm = math.ceil(training.warm_up * steps)
    if step < warm:
        return training.learning_rate * (step + 1) / warm
    done = (step - warm) / max(steps - warm, 1)
    share = {"cosine": 0.5 * (1 + math.cos(math.pi * done)), "linear": 1 - done, "constant": 1.0}[training.schedule]
    return training.learning_rate * share
