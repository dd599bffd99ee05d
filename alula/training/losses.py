"""Losses of a network's outputs: against labels, and against what a teacher answers.

| symbol | code | shape | unit | meaning |
|---|---|---|---|---|
| z^S, z^T | ours, theirs | [rows, K] | logits | scores of K classes; a row is an example, a token or a pixel |
| y | labels | [rows] | class | the true class |
| T | temperature | | | what logits are divided by: the larger, the softer the labels |
| p^S, p^T | | [rows, K] | | softmax of z / T |
| Z(z) | soften | [rows, K] | | (z - mean(z)) / deviation(z), over the K classes of a row |
| b | | [rows, 2] | | (p_y, 1 - p_y) |
| q | | [rows, K - 1] | | softmax of z / T over the classes other than y |

Sources: label smoothing, Szegedy et al. 2016, "Rethinking the Inception architecture", section 7; soft labels, Hinton
et al. 2015, "Distilling the knowledge in a neural network", section 2: T^2 KL(p^T || p^S); standardised logits, Sun et
al. 2024, "Logit standardization in knowledge distillation", section 3: p of Z(z) / T; decoupled, Zhao et al. 2022,
"Decoupled knowledge distillation", equation 7: alpha KL(b^T || b^S) + beta KL(q^T || q^S), times T^2 as in the authors'
program.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

from alula.errors import DataError, RecipeError
from alula.settings import check_settings
from alula.training.loss import (
    Given,
    Loss,
    Mix,
    Needs,
    check_weights,
    count_kept,
    fits,
    in_order,
    mean_of,
    refuse_other_shape,
)

__all__ = [
    "BinaryCrossEntropy", "CrossEntropy", "Decoupled", "Loss", "Mix", "Needs", "SoftLabels", "SquaredError",
]  # fmt: skip

Output: TypeAlias = str | tuple[str, str] | None
"""A tensor by name; a pair where the teacher's has another name; None: the first output of each."""

Probabilities: TypeAlias = bool | tuple[bool, bool]

VARIANCE_FLOOR: Final = 1e-6  # of logits: a head that starts at zero gives equal ones, which have no z-score
IGNORED: Final = -100  # the label of rows that are left out
LEAST_TO_STANDARDISE: Final = 3  # the z-scores of two classes are -1 and 1, whatever their logits


@dataclass(frozen=True, slots=True, kw_only=True)
class OfClasses(Loss):
    """A loss of outputs that score classes; a single class is the logit of a sigmoid, and becomes two.

    Attributes:
        output: the tensor; a pair where the teacher's has another name; None: the first output.
        axis: of the classes; None: the last of at most 3 axes ([B, K], [B, tokens, K]), else the second ([B, K, H, W]).
        probabilities: the outputs have gone through a softmax or a sigmoid; a pair where the teacher's differ in that.
        mask: name of a tensor among the student's that is 0 for rows to leave out.
        ignore: the label of rows to leave out, where labels are one per row.
    """

    output: Output = None
    axis: int | None = None
    probabilities: Probabilities = False
    mask: str | None = None
    ignore: int = IGNORED

    def needs(self) -> Needs:
        """The outputs that have a name, and the mask."""
        return _needs(self.output, self.mask)

    def logits(self, x: Tensor, *, of_teacher: bool = False) -> Tensor:
        """An output as logits with the classes last, [rows..., K], K at least 2.

        Raises:
            RecipeError: it has no such axis.
        """
        x = x.unsqueeze(-1) if x.ndim <= 1 else x
        axis = self.axis if self.axis is not None else -1 if x.ndim <= 3 else 1
        if not -x.ndim <= axis < x.ndim:
            raise RecipeError(f"axis {axis} is none of the axes of the output {list(x.shape)}")
        return _at_least_two(x.movedim(axis, -1), probabilities=_sides(self.probabilities)[of_teacher])

    def pair(self, given: Given) -> tuple[Tensor, Tensor]:
        """The logits of student and teacher, [rows..., K] each.

        Raises:
            RecipeError: they differ in shape.
        """
        our_name, their_name = _names(self.output)
        ours = self.logits(given.ours(our_name))
        theirs = self.logits(given.theirs(their_name), of_teacher=True)
        refuse_other_shape(ours, theirs)
        return ours, theirs

    def kept(self, given: Given, rows: Sequence[int]) -> Tensor | None:
        """Which rows count, bool [rows...]; None: all."""
        kept = given.mask(self.mask, rows)
        if given.labels is None or not fits(given.labels, rows):
            return kept
        known = given.fitted_labels(rows) != self.ignore
        return known if kept is None else known & kept.reshape(*kept.shape, *(1,) * (known.ndim - kept.ndim))

    def count(self, given: Given) -> float:
        """Rows that neither their label nor the mask leaves out."""
        labels = given.labels
        known = None if labels is None or labels.is_floating_point() else labels != self.ignore
        kept = count_kept(given, self.mask, known)
        return Loss.count(self, given) if kept is None else kept

    def target(self, given: Given, logits: Tensor, kept: Tensor | None) -> Tensor:
        """The true class of each row, int64 [rows...]; 0 where none is kept.

        Raises:
            DataError: labels are missing, of another shape, or name no class.
        """
        labels = given.fitted_labels(logits.shape[:-1])
        if labels.is_floating_point():
            raise DataError(f"labels must be whole numbers that name classes, got {labels.dtype}")
        labels = labels.long() if kept is None else torch.where(kept, labels, 0).long()
        # Other devices than the CPU would have to be waited for.
        if labels.device.type == "cpu" and not 0 <= int(labels.min()) <= int(labels.max()) < logits.shape[-1]:
            raise DataError(
                f"labels must be from 0 to {logits.shape[-1] - 1}, got {int(labels.min())} to {int(labels.max())}; "
                f"rows to leave out have the label {self.ignore}"
            )
        return labels


@dataclass(frozen=True, slots=True)
class CrossEntropy(OfClasses):
    """-sum over k of ((1 - smoothing) [k = y] + smoothing / K) log p^S_k, mean over the rows.

    Attributes:
        smoothing: share of each label that is spread over all classes.
    """

    smoothing: float = 0.0

    def __post_init__(self) -> None:
        check_settings(self)
        if not 0 <= self.smoothing < 1:
            raise RecipeError(f"smoothing must be at least 0 and below 1, got {self.smoothing!r}")

    def compare(self, given: Given) -> Tensor:
        """The loss of the student alone; labels are whole numbers, one per row."""
        logits = self.logits(given.ours(_names(self.output)[0]))
        kept = self.kept(given, logits.shape[:-1])
        target = self.target(given, logits, kept)  # [rows...]
        values = functional.cross_entropy(
            logits.flatten(0, -2), target.flatten(), reduction="none", label_smoothing=self.smoothing
        )
        return mean_of(values.view(target.shape), kept)


@dataclass(frozen=True, slots=True)
class SoftLabels(OfClasses):
    """T^2 KL(p^T || p^S), mean over the rows (Hinton et al. 2015).

    Attributes:
        temperature: T.
        standardise: take the z-scores of the logits, so that the student need not match their size (Sun et al. 2024).
        direction: ``forward``: KL(p^T || p^S), covers all that the teacher finds possible; ``reverse``: KL(p^S || p^T),
            avoids what the teacher finds impossible.
    """

    temperature: float = 4.0
    standardise: bool = False
    direction: Literal["forward", "reverse"] = "forward"

    def __post_init__(self) -> None:
        check_settings(self)
        _check_temperature(self.temperature)

    def compare(self, given: Given) -> Tensor:
        """The loss; of labels, only which rows to leave out is read."""
        ours, theirs = (
            soften(logits, self.temperature, standardise=self.standardise).log_softmax(-1)
            for logits in self.pair(given)
        )
        values = divergence(theirs, ours) if self.direction == "forward" else divergence(ours, theirs)
        return self.temperature**2 * mean_of(values, self.kept(given, values.shape))


@dataclass(frozen=True, slots=True)
class Decoupled(OfClasses):
    """T^2 (alpha KL(b^T || b^S) + beta KL(q^T || q^S)), mean over the rows (Zhao et al. 2022, equation 7).

    How sure the teacher is of the true class, and how it sees the others, each with its own weight: in soft labels the
    second counts the less, the surer the teacher is. Without labels the teacher's answer is the true class.

    Attributes:
        alpha: weight of the true class against all others.
        beta: weight of the others among themselves.
        temperature: T.
        standardise: take the z-scores of the logits.
    """

    alpha: float = 1.0
    beta: float = 8.0
    temperature: float = 4.0
    standardise: bool = False

    def __post_init__(self) -> None:
        check_settings(self)
        _check_temperature(self.temperature)
        check_weights(alpha=self.alpha, beta=self.beta)

    def compare(self, given: Given) -> Tensor:
        """The loss; labels are whole numbers, one per row."""
        logits = self.pair(given)  # [rows..., K] each
        kept = self.kept(given, logits[0].shape[:-1])
        target = logits[1].argmax(-1) if given.labels is None else self.target(given, logits[0], kept)
        (our_b, our_q), (their_b, their_q) = (
            _parts(soften(one, self.temperature, standardise=self.standardise), target) for one in logits
        )
        values = self.alpha * divergence(their_b, our_b) + self.beta * divergence(their_q, our_q)
        return self.temperature**2 * mean_of(values, kept)


@dataclass(frozen=True, slots=True, kw_only=True)
class OfNumbers(Loss):
    """A loss of an output compared number by number.

    Attributes:
        output: the tensor; a pair where the teacher's has another name; None: the first output.
        against: the labels, of the output's shape but for axes of length 1; or the teacher's output.
        mask: name of a tensor among the student's, over the first axes of the output, that is 0 where nothing counts.
    """

    output: Output = None
    against: Literal["labels", "teacher"] = "labels"
    mask: str | None = None

    def __post_init__(self) -> None:
        check_settings(self)

    def needs(self) -> Needs:
        """The outputs that have a name, and the mask."""
        return _needs(self.output, self.mask)

    def count(self, given: Given) -> float:
        """Rows that the mask keeps."""
        kept = count_kept(given, self.mask)
        return Loss.count(self, given) if kept is None else kept

    def pair(self, given: Given) -> tuple[Tensor, Tensor]:
        """The output and what it is compared with, of one shape and type.

        Raises:
            RecipeError: the teacher's output has another shape.
        """
        our_name, their_name = _names(self.output)
        ours = given.ours(our_name)
        if self.against == "labels":
            return ours, given.fitted_labels(ours.shape).to(ours.dtype)
        theirs = given.theirs(their_name)
        refuse_other_shape(ours, theirs)
        return ours, theirs


@dataclass(frozen=True, slots=True, kw_only=True)
class SquaredError(OfNumbers):
    """Mean of (x - y)^2; against a teacher's logits, Kim et al. 2021, "Comparing Kullback-Leibler divergence and
    mean squared error loss in knowledge distillation".
    """  # noqa: D205

    def compare(self, given: Given) -> Tensor:
        """The loss."""
        ours, theirs = self.pair(given)
        return mean_of((ours - theirs) ** 2, given.mask(self.mask, ours.shape))


@dataclass(frozen=True, slots=True, kw_only=True)
class BinaryCrossEntropy(OfNumbers):
    """Mean of -y log s - (1 - y) log(1 - s), with s the sigmoid of the output: classes that do not exclude each other.

    Attributes:
        probabilities: the outputs have gone through a sigmoid; a pair where the teacher's differ in that.
    """

    probabilities: Probabilities = False

    def compare(self, given: Given) -> Tensor:
        """The loss; labels are from 0 to 1."""
        ours, theirs = self.pair(given)
        our_side, their_side = _sides(self.probabilities)
        if self.against == "teacher" and not their_side:
            theirs = theirs.sigmoid()
        if our_side:
            log_not, log_s = _at_least_two(ours.unsqueeze(-1), probabilities=True).unbind(-1)
            ours = log_s - log_not
        values = functional.binary_cross_entropy_with_logits(ours, theirs, reduction="none")
        return mean_of(values, given.mask(self.mask, ours.shape))


def soften(logits: Tensor, temperature: float, *, standardise: bool) -> Tensor:  # [..., K] -> [..., K]
    """Logits divided by the temperature, or their z-scores divided by it.

    Raises:
        RecipeError: fewer than three classes are to be standardised.
    """
    if not standardise:
        return logits / temperature
    if logits.shape[-1] < LEAST_TO_STANDARDISE:
        raise RecipeError("the z-scores of two classes are -1 and 1 whatever the logits; use standardise=False")
    variance, mean = torch.var_mean(logits, -1, correction=0, keepdim=True)
    return (logits - mean) * torch.rsqrt(variance + VARIANCE_FLOOR) / temperature


def divergence(log_p: Tensor, log_q: Tensor) -> Tensor:  # [..., K], [..., K] -> [...]
    """KL(p || q) = sum over k of p_k (log p_k - log q_k); where p_k is 0 it adds nothing, whatever q_k.

    >>> half = torch.tensor([0.5, 0.5]).log()
    >>> divergence(half, half).item(), divergence(torch.tensor([0.0, -math.inf]), half).exp().item()
    (0.0, 2.0)
    """
    p = log_p.exp()
    return (p * torch.where(p > 0, log_p - log_q, 0)).sum(-1)


def _parts(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:  # [..., K], [...] -> [..., 2], [..., K]
    """Logarithms of b and of q; q holds -infinity at the true class."""
    index = target.unsqueeze(-1)
    others = logits.scatter(-1, index, -math.inf)
    log_b = torch.cat([logits.gather(-1, index), others.logsumexp(-1, keepdim=True)], -1).log_softmax(-1)
    return log_b, others.log_softmax(-1)


def _at_least_two(x: Tensor, *, probabilities: bool) -> Tensor:  # [..., K] -> [..., max(K, 2)]
    """Logits of two classes at least: a single one z is as 0 and z, a single probability p as 1 - p and p."""
    if x.shape[-1] == 1:
        x = torch.cat([1 - x if probabilities else torch.zeros_like(x), x], -1)
    return x.clamp(min=torch.finfo(x.dtype).tiny).log() if probabilities else x


def _names(output: Output) -> tuple[str | None, str | None]:
    """The student's and the teacher's name of an output."""
    return output if isinstance(output, tuple) else (output, output)


def _sides(probabilities: Probabilities) -> tuple[bool, bool]:
    """Whether the student's and the teacher's outputs are probabilities."""
    return probabilities if isinstance(probabilities, tuple) else (probabilities, probabilities)


def _needs(output: Output, mask: str | None) -> Needs:
    ours, theirs = _names(output)
    return Needs(in_order((ours, mask)), in_order((theirs,)))


def _check_temperature(temperature: float) -> None:
    if not 0 < temperature < math.inf:
        raise RecipeError(f"temperature must be above 0 and finite, got {temperature!r}")
