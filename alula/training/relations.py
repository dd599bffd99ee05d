"""Losses of what is inside the networks: hidden values, attention, and how the examples of a batch stand to each other.

| symbol | code | shape | unit | meaning |
|---|---|---|---|---|
| h^S, h^T | ours, theirs | [B, C, places...] | of the tensor | hidden values: C features at each place |
| W | projections | [C^T, C^S] | | learned, where the widths differ |
| Q | energy | [B, places] | | sum over features of h^2 |
| A^S, A^T | ours, theirs | [B, heads, T, T] | | attention: probabilities, or scores before the softmax |
| x_i | features | [B, d] | of the tensor | all values of example i in one row |
| d_ij | distances | [B, B] | of their mean | |x_i - x_j| / mean over i != j of |x_i - x_j| |
| c_ijk | cosines | [B, B, B] | | cosine of the angle at x_j between x_i and x_k |
| l | huber_loss | | | Huber's: e^2 / 2 where |e| <= 1, else |e| - 1/2 |

Sources: hidden values, Romero et al. 2015, "FitNets", equation 3, as the mean square of Jiao et al. 2020, "TinyBERT",
equation 8: mean of (W h^S - h^T)^2; maps, Zagoruyko & Komodakis 2017, "Paying more attention to attention",
equation 2: |Q^S / |Q^S| - Q^T / |Q^T||; attention scores, TinyBERT, equation 7: mean of (A^S - A^T)^2; attention
probabilities, Wang et al. 2020, "MiniLM", section 3.1: mean over heads and rows of KL(A^T || A^S); relations, Park et
al. 2019, "Relational knowledge distillation", section 3.2: l(d^S_ij - d^T_ij) and l(c^S_ijk - c^T_ijk), mean over pairs
and triples of different examples.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from alula.errors import RecipeError
from alula.settings import check_settings
from alula.training.loss import (
    Given,
    Loss,
    Needs,
    Shapes,
    check_weights,
    count_kept,
    in_order,
    mean_of,
    refuse_other_shape,
)
from alula.training.losses import divergence

Pairs = tuple[tuple[str, str], ...]

NORM_FLOOR: Final = 1e-6  # shorter vectors have no direction; dividing by their length would blow their gradient up


@dataclass(frozen=True, slots=True)
class OfPairs(Loss):
    """A loss of tensors of the student beside tensors of the teacher, summed over the pairs.

    Attributes:
        pairs: names of a tensor of the student and of one of the teacher.
    """

    pairs: Pairs

    def needs(self) -> Needs:
        """Both sides of the pairs."""
        return Needs(in_order(ours for ours, _ in self.pairs), in_order(theirs for _, theirs in self.pairs))

    def check_pairs(self) -> None:
        """Raise RecipeError unless there are pairs of names."""
        if not self.pairs:
            raise RecipeError(f"pairs must name tensors as ((student's, teacher's), ...), got {self.pairs!r}")

    def tensors(self, given: Given) -> Iterator[tuple[Tensor, Tensor]]:
        """The tensors of each pair."""
        return ((given.ours(ours), given.theirs(theirs)) for ours, theirs in self.pairs)


@dataclass(frozen=True, slots=True)
class Hidden(OfPairs):
    """Mean of (W h^S - h^T)^2, summed over the pairs; W is learned where the widths differ, else it is the identity.

    Where the places differ in number (the height and width of maps), both are averaged down to the smaller.

    Attributes:
        pairs: names of a tensor of the student and of one of the teacher.
        normalise: give the features at each place length 1, so that only their direction counts.
        axis: of the features; None: the last of at most 3 axes ([B, tokens, C]), else the second ([B, C, H, W]).
        mask: name of a tensor among the student's, over the batch and the places, that is 0 where nothing counts.
    """

    normalise: bool = False
    axis: int | None = None
    mask: str | None = None

    def __post_init__(self) -> None:
        check_settings(self)
        self.check_pairs()

    def needs(self) -> Needs:
        """Both sides of the pairs, and the mask."""
        ours, theirs = zip(*self.pairs, strict=True)
        return Needs(in_order((*ours, self.mask)), in_order(theirs))

    def count(self, given: Given) -> float:
        """Places that the mask keeps."""
        kept = count_kept(given, self.mask)
        return Loss.count(self, given) if kept is None else kept

    def projections(self, student_shapes: Shapes, teacher_shapes: Shapes, seed: int = 0) -> nn.ModuleDict:
        """W of each pair whose widths differ, by its number: a linear layer without bias; on maps, a 1x1 convolution.

        Raises:
            RecipeError: a shape is missing, or has no such axis.
        """
        made = nn.ModuleDict()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for number, (ours, theirs) in enumerate(self.pairs):
                widths = self._width(student_shapes, ours), self._width(teacher_shapes, theirs)
                if widths[0] != widths[1]:
                    made[str(number)] = nn.Linear(*widths, bias=False)
        return made

    def compare(self, given: Given) -> Tensor:
        """The loss; projections are those of :meth:`projections`.

        Raises:
            RecipeError: widths differ and there is no projection, or the tensors differ in their number of axes.
        """
        values = [self._compare(given, number, *tensors) for number, tensors in enumerate(self.tensors(given))]
        return torch.stack(values).sum()

    def _compare(self, given: Given, number: int, ours: Tensor, theirs: Tensor) -> Tensor:
        ours, theirs = _pooled(_features_second(ours, self.axis), _features_second(theirs, self.axis))
        ours, theirs = ours.movedim(1, -1), theirs.movedim(1, -1)  # [B, places..., C]
        if given.projections is not None and str(number) in given.projections:
            ours = given.projections[str(number)](ours)
        if ours.shape != theirs.shape:
            raise RecipeError(
                f"{self.pairs[number]} must hold as many features at as many places, got {list(ours.shape)} and "
                f"{list(theirs.shape)} (features last); where the widths differ, pass what projections() makes"
            )
        if self.normalise:
            ours, theirs = unit(ours), unit(theirs)
        return mean_of((ours - theirs) ** 2, given.mask(self.mask, ours.shape[:-1]))

    def _width(self, shapes: Shapes, name: str) -> int:
        if name not in shapes:
            raise RecipeError(f"the shape of {name!r} is not known, only those of {sorted(shapes)}")
        return int(shapes[name][_feature_axis(len(shapes[name]), self.axis)])


@dataclass(frozen=True, slots=True)
class AttentionMaps(OfPairs):
    """Where the networks look, summed over the pairs.

    Attributes:
        pairs: names of a tensor of the student and of one of the teacher.
        kind: what they are. ``maps``: of convolutions [B, C, H, W]; the squares summed over the features are compared,
            so that widths may differ, and maps of other sizes are averaged down to the smaller. ``probabilities`` and
            ``scores``: attention after or before the softmax, [B, heads, T, T]; the divergence or the squared error of
            each head, of their mean where the networks have other numbers of heads.
        mask: name of a tensor [B, T] among the student's that is 0 for tokens whose attention does not count.
    """

    kind: Literal["maps", "probabilities", "scores"] = "maps"
    mask: str | None = None

    def __post_init__(self) -> None:
        check_settings(self)
        self.check_pairs()
        if self.mask is not None and self.kind == "maps":
            raise RecipeError("a mask is of tokens, which maps have not; use mask=None")

    def needs(self) -> Needs:
        """Both sides of the pairs, and the mask."""
        ours, theirs = zip(*self.pairs, strict=True)
        return Needs(in_order((*ours, self.mask)), in_order(theirs))

    def count(self, given: Given) -> float:
        """Tokens that the mask keeps."""
        kept = count_kept(given, self.mask)
        return Loss.count(self, given) if kept is None else kept

    def compare(self, given: Given) -> Tensor:
        """The loss.

        Raises:
            RecipeError: the tensors differ in more than features, heads and the size of maps, or are not of four axes.
        """
        pairs = list(self.tensors(given))
        if self.kind == "maps":
            return torch.stack([_compare_maps(*pair) for pair in pairs]).sum()
        compare = _compare_probabilities if self.kind == "probabilities" else _compare_scores
        values = [compare(*_same_heads(*pair)) for pair in pairs]  # [B, T, ...] each
        return torch.stack([mean_of(value, given.mask(self.mask, value.shape[:2])) for value in values]).sum()


@dataclass(frozen=True, slots=True)
class Relational(OfPairs):
    """How the examples of a batch stand to each other: their distances, and the angles between them (Park et al. 2019).

    Widths may differ. Memory grows with B^2 d: give it pooled features.

    Attributes:
        pairs: names of a tensor of the student and of one of the teacher.
        distance: weight of the distances.
        angle: weight of the angles.
    """

    distance: float = 25.0
    angle: float = 50.0

    def __post_init__(self) -> None:
        check_settings(self)
        self.check_pairs()
        check_weights(distance=self.distance, angle=self.angle)

    def count(self, given: Given) -> float:  # noqa: ARG002
        """Never of a part: rows are compared with each other.

        Raises:
            RecipeError: a batch was split.
        """
        raise RecipeError("relations are between all rows of a batch, which accumulate splits; leave accumulate at 1")

    def compare(self, given: Given) -> Tensor:
        """The loss; 0 for a batch with no pairs or triples."""
        values = [self._compare(ours.flatten(1), theirs.flatten(1)) for ours, theirs in self.tensors(given)]
        return torch.stack(values).sum()

    def _compare(self, ours: Tensor, theirs: Tensor) -> Tensor:  # [B, d], [B, d'] -> []
        if len(ours) != len(theirs):
            raise RecipeError(f"student and teacher must see the same examples, got {len(ours)} and {len(theirs)}")
        total = ours.sum() * 0
        pairs, triples = len(ours) * (len(ours) - 1), len(ours) * (len(ours) - 1) * (len(ours) - 2)
        if self.distance and pairs:
            errors = functional.huber_loss(_distances(ours), _distances(theirs), reduction="sum")
            total = total + self.distance * errors / pairs
        if self.angle and triples:
            errors = functional.huber_loss(_cosines(ours), _cosines(theirs), reduction="sum")
            total = total + self.angle * errors / triples
        return total


def unit(x: Tensor) -> Tensor:  # [..., d] -> [..., d]
    """Vectors along the last axis with length 1; those without a direction stay as they are.

    >>> unit(torch.tensor([[3.0, 4.0], [0.0, 0.0]])).tolist()
    [[0.6..., 0.8...], [0.0, 0.0]]
    """
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return x / torch.where(length > NORM_FLOOR, length, 1)


def _distances(x: Tensor) -> Tensor:  # [B, d] -> [B, B]
    distances = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")  # its gradient at 0 is 0
    mean = distances.sum() / (len(x) * (len(x) - 1))
    return distances / torch.where(mean > NORM_FLOOR, mean, 1)


def _cosines(x: Tensor) -> Tensor:  # [B, d] -> [B, B, B]: at [j, i, k] of the angle at j; 0 where i is k
    directions = unit(x[None] - x[:, None])  # [B, B, d]: at [j, i] from j to i
    return (directions @ directions.mT) * (1 - torch.eye(len(x), dtype=x.dtype, device=x.device))


def _compare_maps(ours: Tensor, theirs: Tensor) -> Tensor:
    if ours.ndim < 3 or ours.ndim != theirs.ndim:
        raise RecipeError(f"maps have the axes [B, C, places...], got {list(ours.shape)} and {list(theirs.shape)}")
    ours, theirs = _pooled(ours, theirs)
    ours, theirs = (unit((h**2).sum(1).flatten(1)) for h in (ours, theirs))  # [B, places]
    differences: Tensor = torch.linalg.vector_norm(ours - theirs, dim=-1)  # its gradient at 0 is 0
    return differences.mean()


def _same_heads(ours: Tensor, theirs: Tensor) -> tuple[Tensor, Tensor]:  # [B, heads, T, T'] each
    """Attention with as many heads on both sides: the mean of them where there are not."""
    if ours.ndim != 4 or theirs.ndim != 4:
        raise RecipeError(f"attention has the axes [B, heads, T, T], got {list(ours.shape)} and {list(theirs.shape)}")
    if ours.shape[1] != theirs.shape[1]:
        ours, theirs = ours.mean(1, keepdim=True), theirs.mean(1, keepdim=True)
    refuse_other_shape(ours, theirs)
    return ours, theirs


def _compare_probabilities(ours: Tensor, theirs: Tensor) -> Tensor:  # [B, heads, T, T'] -> [B, T]
    log_ours, log_theirs = (p.clamp(min=torch.finfo(p.dtype).tiny).log() for p in (ours, theirs))
    return divergence(log_theirs, log_ours).mean(1)


def _compare_scores(ours: Tensor, theirs: Tensor) -> Tensor:  # [B, heads, T, T'] -> [B, T, T']
    return torch.where(ours == theirs, 0, ours - theirs).square().mean(1)  # masked scores are -infinity on both sides


def _feature_axis(axes: int, axis: int | None) -> int:
    """Where the features stand among the axes of a tensor."""
    axis = axis if axis is not None else -1 if axes <= 3 else 1
    if not -axes <= axis < axes:
        raise RecipeError(f"axis {axis} is none of the {axes} axes of a tensor")
    return axis


def _features_second(x: Tensor, axis: int | None) -> Tensor:
    """A tensor as [B, C, places...]."""
    return x.movedim(_feature_axis(x.ndim, axis), 1) if x.ndim > 1 else x.unsqueeze(1)


def _pooled(ours: Tensor, theirs: Tensor) -> tuple[Tensor, Tensor]:  # [B, C, places...] each
    """Both averaged down to the smaller number of places along each axis."""
    if ours.ndim != theirs.ndim:
        raise RecipeError(
            f"the tensors of a pair must have as many axes, got {list(ours.shape)} and {list(theirs.shape)}"
        )
    size = [min(lengths) for lengths in zip(ours.shape[2:], theirs.shape[2:], strict=True)]
    return _pool(ours, size), _pool(theirs, size)


def _pool(h: Tensor, size: list[int]) -> Tensor:
    if list(h.shape[2:]) == size:
        return h
    if h.ndim == 3:
        return functional.adaptive_avg_pool1d(h, size[0])
    if h.ndim == 4:
        return functional.adaptive_avg_pool2d(h, (size[0], size[1]))
    if h.ndim == 5:
        return functional.adaptive_avg_pool3d(h, (size[0], size[1], size[2]))
    raise RecipeError(f"maps of other sizes are compared with up to 3 spatial axes, got {h.ndim - 2}")
