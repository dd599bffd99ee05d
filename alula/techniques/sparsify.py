"""Unstructured and n:m sparsity: single weights become zero, the shapes stay."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np

from alula.errors import DataError, ModelError, RecipeError, at
from alula.graph.editing import Editor
from alula.graph.layers import Layer
from alula.graph.matrices import from_matrix, weight_matrix
from alula.graph.model import Model, Note
from alula.graph.statistics import MomentRequest
from alula.numerics.sparse_gpt import sparse_gpt
from alula.numerics.sparsity import (
    Mask,
    allocate_by_shape,
    allocate_globally,
    count_removed,
    least,
    least_of_groups,
    least_of_rows,
    weigh_by_inputs,
)
from alula.settings import check_settings
from alula.techniques.compensation import moments_of
from alula.techniques.rounding import unknown_inputs
from alula.techniques.technique import Context, other_readers

Criterion = Literal["magnitude", "wanda", "sparsegpt", "random"]
Scope = Literal["uniform", "global", "erk"]
_CRITERIA: Final = ("magnitude", "wanda", "sparsegpt", "random")
_SCOPES: Final = ("uniform", "global", "erk")
_WITH_DATA: Final = frozenset({"wanda", "sparsegpt"})
_NO_TIME: Final = Note(
    "zeros", "they save no time: dense kernels multiply by them; they save bytes where StoreSparse stores them"
)


@dataclass(frozen=True, slots=True)
class Sparsify:
    """Set the weights that matter least to zero; nothing is trained afterwards.

    Zeros that are there already go first, count, and stay zero.

    Attributes:
        amount: share of the weights to remove, from 0 up to but not including 1. A pattern sets its own.
        criterion: which weights of a layer go. ``magnitude``: the smallest. ``wanda``: the smallest times the size of
            what they multiply, in each row. ``sparsegpt``: those whose loss the others can make up for, and they do.
            ``random``: the control. Where a layer does not multiply by one matrix, ``magnitude``, and a note says so.
        pattern: such as ``2:4``: of each 4 neighbours along the inputs 2 stay. Instead of an amount.
        scope: how much each layer loses. ``uniform``: the same share. ``global``: as many as it has among the smallest
            weights of all. ``erk``: large layers most (Evci et al. 2020).
        damping: of the second moments for ``sparsegpt``, as a share of the mean of their diagonal.
        seed: of the random criterion.
    """

    amount: float | None = None
    criterion: Criterion = "magnitude"
    pattern: str | None = None
    scope: Scope = "uniform"
    damping: float = 0.01
    seed: int = 0

    def __post_init__(self) -> None:
        check_settings(self)
        if (self.amount is None) == (self.pattern is None):
            raise RecipeError(f"give either an amount or a pattern, got {self.amount!r} and {self.pattern!r}")
        if self.amount is not None:
            count_removed(0, self.amount)
        if self.pattern is not None and self.scope != "uniform":
            raise RecipeError(f"a pattern takes the same share of every layer; scope must be uniform, got {self.scope}")
        if self.damping < 0:
            raise RecipeError(f"damping must be at least 0, got {self.damping}")
        self._kept_and_group()

    def requests(self, model: Model, layers: Sequence[Layer]) -> frozenset[MomentRequest]:
        """Second moments of what the layers read, for the criteria that weigh by them."""
        if self.criterion not in _WITH_DATA:
            return frozenset()
        return frozenset(
            MomentRequest(layer.name) for layer in layers if unknown_inputs(model, layer, layer.weight) is None
        )

    def apply(self, model: Model, context: Context) -> Model:
        """The graph with zeros in the weights of the chosen layers.

        Raises:
            ModelError: a weight is not finite (the layer is named), or its second moments were not collected.
            DataError: second moments are not positive definite, or what they give is not finite (the layer is named).
        """
        editor = Editor(model.edit())
        chosen, notes = _choose_weights(model, context)
        amounts = self._allocate([model.weight(name) for name in chosen])
        random = np.random.default_rng(self.seed)
        for (name, layer), amount in zip(chosen.items(), amounts, strict=True):
            with at(f"layer {layer.name!r}"):
                before, reason = model.weight(name), unknown_inputs(model, layer, name)
                weighed = self.criterion in _WITH_DATA and reason is None
                moments = moments_of(context.statistics, layer) if weighed else None
                after = self._sparse(before, layer, moments, amount, random)
                if not np.array_equal(before, after):
                    editor.replace_constant(name, after)
                notes += self._notes(name, layer, after, reason)
        return model.edited(editor.model, [*notes, _NO_TIME])

    def _allocate(self, weights: Sequence[np.ndarray]) -> Sequence[float]:
        """The share that each weight loses."""
        if self.amount is None or self.scope == "uniform":
            return [self.amount or 0.0] * len(weights)
        if self.scope == "erk":
            return allocate_by_shape([weight.shape for weight in weights], self.amount)
        return allocate_globally([_magnitude(weight) for weight in weights], self.amount)

    def _sparse(
        self, weight: np.ndarray, layer: Layer, moments: np.ndarray | None, amount: float, random: np.random.Generator
    ) -> np.ndarray:
        """A weight with its zeros; ``moments`` [groups, k, k] where the criterion weighs by them."""
        if moments is not None and self.criterion == "sparsegpt":
            return self._compensated(weight, layer, moments, amount)
        scores = random.random(weight.shape) if self.criterion == "random" else _magnitude(weight)
        if moments is not None:
            norms = np.sqrt(np.diagonal(moments, axis1=1, axis2=2))  # [groups, k]
            scores = from_matrix(weigh_by_inputs(weight_matrix(weight, layer), norms), layer)
        scores = np.where(weight == 0, -1.0, scores)
        return np.where(self._mask(scores, layer, amount, in_rows=moments is not None), weight.dtype.type(0), weight)

    def _mask(self, scores: np.ndarray, layer: Layer, amount: float, *, in_rows: bool) -> Mask:
        pattern = self._kept_and_group()
        if pattern is not None:
            return least_of_groups(scores, *pattern, _input_axis(layer))
        if in_rows:
            return from_matrix(least_of_rows(weight_matrix(scores, layer), amount), layer)
        return least(scores, amount)

    def _compensated(self, weight: np.ndarray, layer: Layer, moments: np.ndarray, amount: float) -> np.ndarray:
        """The weight by SparseGPT; of a convolution with neighbouring channels side by side, as patterns need them."""
        order = _channels_last(layer)
        made = [
            sparse_gpt(
                group[:, order],
                moment[np.ix_(order, order)],
                amount,
                pattern=self._kept_and_group(),
                run=layer.shape[_input_axis(layer)] or None,
                damping=self.damping,
            )[:, np.argsort(order)]
            for group, moment in zip(weight_matrix(weight, layer), moments, strict=True)
        ]
        changed = from_matrix(np.stack(made), layer).astype(weight.dtype)
        if not np.isfinite(changed.astype(np.float64)).all():
            raise DataError(f"what makes up for the zeros lies beyond {weight.dtype}; raise the damping")
        return changed

    def _kept_and_group(self) -> tuple[int, int] | None:
        """A pattern as numbers."""
        if self.pattern is None:
            return None
        found = re.fullmatch(r"(\d+):(\d+)", self.pattern)
        kept, group = (int(found[1]), int(found[2])) if found else (0, 0)
        if not 0 < kept < group:
            raise RecipeError(f"a pattern is n:m with 0 < n < m, such as 2:4, got {self.pattern!r}")
        return kept, group

    def _notes(self, name: str, layer: Layer, weight: np.ndarray, reason: str | None) -> Iterator[Note]:
        zeros = 1 - np.count_nonzero(weight) / max(weight.size, 1)
        yield Note(layer.name, f"{name}: {zeros:.1%} of {weight.size:,} weights are zero")
        if self.criterion in _WITH_DATA and reason:
            yield Note(layer.name, f"{name}: by magnitude, not {self.criterion}: {reason}")
        pattern, length = self._kept_and_group(), weight.shape[_input_axis(layer)]
        if pattern is not None and length % pattern[1]:
            rest = length % pattern[1]
            yield Note(layer.name, f"{name}: {length} inputs are no multiple of {pattern[1]}; of the last {rest}, "
                                   f"{min(rest, pattern[0])} stay")  # fmt: skip


def _choose_weights(model: Model, context: Context) -> tuple[Mapping[str, Layer], list[Note]]:
    """The weights to treat, each with the first layer that has it; notes on those that others need as they are."""
    chosen: dict[str, Layer] = {}
    notes = []
    for layer in context.layers:
        for name in layer.weights:
            reason = other_readers(model.graph, context.layers, name)
            if reason:
                notes.append(Note(layer.name, f"{name} stays as it is: {reason}"))
            elif not np.isfinite(_magnitude(model.weight(name))).all():
                raise ModelError(f"layer {layer.name!r}: its weights hold NaN or infinity; what matters cannot be told")
            else:
                chosen.setdefault(name, layer)
    return chosen, notes


def _magnitude(weight: np.ndarray) -> np.ndarray:
    return np.asarray(np.abs(weight.astype(np.promote_types(weight.dtype, np.float32), copy=False)))


def _input_axis(layer: Layer) -> int:
    """The axis of a weight along which the groups of a pattern lie; of a table, its features."""
    if layer.input_axes:
        return layer.input_axes[0]
    return 0 if layer.output_axis == len(layer.shape) - 1 else len(layer.shape) - 1


def _channels_last(layer: Layer) -> np.ndarray:  # [k]
    """The columns of a layer's matrix in an order in which the channels of one place of the kernel are neighbours."""
    inner = [layer.shape[axis] for axis in layer.input_axes]  # channels, kernel
    return np.moveaxis(np.arange(int(np.prod(inner))).reshape(inner), 0, -1).reshape(-1)
