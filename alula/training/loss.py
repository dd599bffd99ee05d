"""What a loss is, what it is given, and what it needs."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
from torch import Tensor, nn

from alula.errors import DataError, RecipeError
from alula.settings import check_settings

Tensors: TypeAlias = Mapping[str, Tensor]
Shapes: TypeAlias = Mapping[str, Sequence[int]]


@dataclass(frozen=True, slots=True)
class Needs:
    """Names of the tensors that a loss reads, beside the first outputs."""

    student: tuple[str, ...] = ()
    teacher: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Given:
    """What a loss is computed from: tensors by graph name, the outputs first; labels; projections.

    Attributes:
        whole: where these are rows of a larger batch: the inputs and labels of these, and of all.
    """

    student: Tensors
    teacher: Tensors
    labels: Tensor | None = None
    projections: nn.ModuleDict | None = None
    whole: tuple[Given, Given] | None = None

    def ours(self, name: str | None = None) -> Tensor:
        """A tensor of the student, in float32 at least; without a name its first.

        Raises:
            DataError: it is missing or empty.
        """
        return _take(self.student, name, "student")

    def theirs(self, name: str | None = None) -> Tensor:
        """A tensor of the teacher, in float32 at least; without a name its first.

        Raises:
            RecipeError: there is no teacher.
            DataError: it is missing or empty.
        """
        if not self.teacher:
            raise RecipeError("this loss compares with a teacher, and there is none; alula.distill takes one")
        return _take(self.teacher, name, "teacher")

    def fitted_labels(self, shape: Sequence[int]) -> Tensor:
        """The labels in this shape, from which they may differ by axes of length 1 alone.

        Raises:
            DataError: they are missing, or differ by more.
        """
        if self.labels is None:
            raise DataError("this loss compares with labels, and there are none; give some, or compare with "
                            'the teacher (against="teacher"); blocks by themselves never see labels')  # fmt: skip
        if not fits(self.labels, shape):
            classes = self.labels.ndim == 1 and self.labels.is_floating_point() and bool((self.labels % 1 == 0).all())
            hint = "; if they are numbers of classes, give them as whole numbers" if classes else ""
            raise DataError(f"labels must have the shape {list(shape)}, got {list(self.labels.shape)}{hint}")
        return self.labels.reshape(tuple(shape))

    def mask(self, name: str | None, shape: Sequence[int]) -> Tensor | None:
        """Where a mask over the first axes of a shape is not 0, bool; without a name, None.

        Raises:
            DataError: it is missing, or of another shape.
        """
        if name is None:
            return None
        mask = self.ours(name)
        if list(mask.shape) != list(shape[: mask.ndim]):
            raise DataError(
                f"the mask {name!r} must have the first axes of {list(shape)}, got the shape {list(mask.shape)}"
            )
        return mask != 0


class Loss(ABC):
    """A number to make small: tensors of the student and of the teacher by graph name, and labels -> a scalar.

    Calling it sees to what holds for all: the teacher gets no gradient, and the maths is in float32 at least.
    """

    __slots__ = ()

    def __call__(
        self,
        student: Tensors,
        teacher: Tensors,
        labels: Tensor | None = None,
        projections: nn.ModuleDict | None = None,
        whole: tuple[Given, Given] | None = None,
    ) -> Tensor:
        """The loss, mean over the batch; of a part of a batch, its share of that mean.

        Args:
            student: tensors by name, the outputs first.
            teacher: likewise; empty where the loss reads labels alone.
            labels: of the batch.
            projections: what :meth:`projections` made, trained together with the student.
            whole: where these are rows of a larger batch: the inputs and labels of these, and of all.

        Raises:
            DataError: labels are missing or do not fit, or a tensor is missing or empty.
            RecipeError: student and teacher cannot be compared in this way.
        """
        detached = {name: tensor.detach() for name, tensor in teacher.items()}
        device = next((tensor.device.type for tensor in student.values()), "cpu")
        with torch.autocast(device, enabled=False):
            return self.shared(Given(student, detached, labels, projections, whole))

    def shared(self, given: Given) -> Tensor:
        """The loss; of a part of a batch, its share of what counts, so that the parts add up to the whole."""
        value = self.compare(given)
        if given.whole is None:
            return value
        part, whole = (self.count(one) for one in given.whole)
        return value * (part / max(whole, 1.0))

    def count(self, given: Given) -> float:
        """How many rows count, of inputs and labels; all, unless a loss leaves some out."""
        return float(len(next(iter(given.student.values()))))

    @abstractmethod
    def compare(self, given: Given) -> Tensor:
        """The loss, of a teacher that is detached, where no autocast is on."""

    @abstractmethod
    def needs(self) -> Needs:
        """The tensors that it reads, beside the first outputs."""

    def projections(self, student_shapes: Shapes, teacher_shapes: Shapes, seed: int = 0) -> nn.ModuleDict:  # noqa: ARG002
        """Parameters of its own, made once and given to each call; most losses have none.

        Args:
            student_shapes: lengths of the axes of the tensors that it needs, by name, the batch first.
            teacher_shapes: likewise.
            seed: of the first values.
        """
        return nn.ModuleDict()


@dataclass(frozen=True, slots=True)
class Mix(Loss):
    """A sum of losses, each with its weight.

    Attributes:
        parts: pairs of weight and loss.
    """

    parts: tuple[tuple[float, Loss], ...]

    def __post_init__(self) -> None:
        check_settings(self)
        if not self.parts:
            raise RecipeError("a mix must have at least one loss; give pairs such as (0.5, CrossEntropy())")
        for weight, loss in self.parts:
            check_weights(**{f"the weight of {type(loss).__name__}": weight})

    def compare(self, given: Given) -> Tensor:
        """The weighted sum."""
        values = [
            weight * loss.shared(replace(given, projections=_inner(given.projections, number)))
            for number, (weight, loss) in enumerate(self.parts)
        ]
        return torch.stack(values).sum()

    def shared(self, given: Given) -> Tensor:
        """The sum; each part has taken its own share."""
        return self.compare(given)

    def needs(self) -> Needs:
        """What its parts need."""
        needs = [loss.needs() for _, loss in self.parts]
        return Needs(
            in_order(name for need in needs for name in need.student),
            in_order(name for need in needs for name in need.teacher),
        )

    def projections(self, student_shapes: Shapes, teacher_shapes: Shapes, seed: int = 0) -> nn.ModuleDict:
        """Those of its parts, by the number of the part; parts that have none are left out."""
        made = {
            str(number): loss.projections(student_shapes, teacher_shapes, seed + number)
            for number, (_, loss) in enumerate(self.parts)
        }
        return nn.ModuleDict({number: modules for number, modules in made.items() if len(modules)})


def _inner(projections: nn.ModuleDict | None, number: int) -> nn.ModuleDict | None:
    """The projections of one part, if it has any."""
    found = projections[str(number)] if projections is not None and str(number) in projections else None
    assert found is None or isinstance(found, nn.ModuleDict)
    return found


def _take(tensors: Tensors, name: str | None, side: str) -> Tensor:
    name = next(iter(tensors), None) if name is None else name
    if name is None or name not in tensors:
        raise DataError(f"the {side} gave no tensor {name!r}, only {sorted(tensors)}; the loss's needs() name them all")
    tensor = tensors[name]
    if tensor.numel() == 0:
        raise DataError(f"the {side}'s tensor {name!r} must hold values, its shape is {list(tensor.shape)}")
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def in_order(names: Iterable[str | None]) -> tuple[str, ...]:
    """The names, each once, in the order that they came in.

    >>> in_order(["b", None, "a", "b"])
    ('b', 'a')
    """
    return tuple(dict.fromkeys(name for name in names if name is not None))


def fits(tensor: Tensor, shape: Sequence[int]) -> bool:
    """Whether a tensor has this shape, but for axes of length 1."""
    return [axis for axis in tensor.shape if axis != 1] == [axis for axis in shape if axis != 1]


def mean_of(values: Tensor, kept: Tensor | None = None) -> Tensor:  # [rows..., any...], bool [rows...] -> []
    """Mean over the values of the rows that are kept (None: all); 0 where none is."""
    if kept is None:
        return values.mean()
    rows = values.flatten(kept.ndim).mean(-1) if values.ndim > kept.ndim else values  # [rows...]
    return torch.where(kept, rows, 0).sum() / kept.sum().clamp(min=1)


def count_kept(given: Given, mask: str | None, known: Tensor | None = None) -> float | None:
    """How many rows a mask among the inputs, and labels that are known, keep; None where there is neither.

    Raises:
        RecipeError: the graph computes the mask, so that it is not known of rows that were not run yet; or labels and
            mask are of other rows.
    """
    if mask is None:
        return None if known is None else float(known.sum())
    if mask not in given.student:
        raise RecipeError(f"with accumulate, a mask must be an input of the graph; {mask!r} is computed")
    kept = given.student[mask] != 0
    if known is None:
        return float(kept.sum())
    if known.numel() == kept.numel():  # but for axes of length 1
        return float((known.flatten() & kept.flatten()).sum())
    if list(known.shape[: kept.ndim]) != list(kept.shape):
        raise RecipeError(f"labels of shape {list(known.shape)} do not go with the mask {mask!r} of {list(kept.shape)}")
    return float((known & kept.reshape(*kept.shape, *(1,) * (known.ndim - kept.ndim))).sum())


def refuse_other_shape(ours: Tensor, theirs: Tensor) -> None:
    """Raise RecipeError unless student and teacher give the same shape."""
    if ours.shape != theirs.shape:
        raise RecipeError(
            f"student and teacher must give the same shape, got {list(ours.shape)} and {list(theirs.shape)}"
        )


def check_weights(**weights: float) -> None:
    """Raise RecipeError unless weights are finite and at least 0."""
    for name, weight in weights.items():
        if not 0 <= weight < math.inf:
            raise RecipeError(f"{name} must be finite and at least 0, got {weight!r}")
