"""Weights that become zero little by little, while the others learn to do without (Zhu & Gupta 2018, equation 1)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

import numpy as np

from alula.errors import RecipeError
from alula.numerics.sparsity import allocate_by_shape, allocate_globally, count_removed, least, sparsity_at
from alula.settings import check_settings


def is_matrix(shape: Sequence[int]) -> bool:
    """Whether a weight has two axes at least that are longer than 1; biases of recurrent layers have one."""
    return sum(length > 1 for length in shape) >= 2


@dataclass(frozen=True, slots=True)
class Gradual:
    """The smallest weights become zero, a growing share of them, and stay zero.

    Attributes:
        amount: share that is zero in the end.
        begin: share of the steps before which nothing goes.
        end: share of the steps after which the amount is reached; what is left heals.
        every: steps between two choices.
        scope: how much each weight loses. ``global``: as many as it has among the smallest of all. ``uniform``: the
            same share. ``erk``: large ones most (Evci et al. 2020).
        exclude: patterns of initializers that stay dense.
    """

    amount: float
    begin: float = 0.0
    end: float = 0.6
    every: int = 10
    scope: Literal["global", "uniform", "erk"] = "global"
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_settings(self)
        count_removed(0, self.amount)
        if not 0 <= self.begin < self.end <= 1:
            raise RecipeError(f"begin and end must be shares of the steps, 0 <= begin < end <= 1; got {self.begin!r} "
                              f"and {self.end!r}")  # fmt: skip
        if self.every < 1:
            raise RecipeError(f"every must be at least 1, got {self.every!r}")

    def chooses_at(self, step: int, steps: int) -> bool:
        """Whether zeros are chosen after this many of all steps; at the end of the rise in any case."""
        first, last = self._rise(steps)
        return first < step <= last and ((step - first) % self.every == 0 or step == last)

    def is_reached(self, step: int, steps: int) -> bool:
        """Whether the amount is reached after this many of all steps."""
        return step >= self._rise(steps)[1]

    def _rise(self, steps: int) -> tuple[int, int]:
        """The steps before which nothing goes, and after which the amount is reached."""
        first = min(round(self.begin * steps), steps - 1)
        return first, max(first + 1, round(self.end * steps))

    def check(self, names: Iterable[str]) -> None:
        """Raise RecipeError where a pattern of what to exclude matches no initializer."""
        known = list(names)
        for pattern in self.exclude:
            if not any(fnmatchcase(name, pattern) for name in known):
                raise RecipeError(f"exclude pattern {pattern!r} matches none of {', '.join(known[:6])}, ...")

    def masks(self, weights: Mapping[str, np.ndarray], step: int, steps: int) -> dict[str, np.ndarray]:
        """Where weights stay, by name, after this many of all steps; of weights of two axes and more."""
        start, stop = self._rise(steps)
        share = sparsity_at(step, final=self.amount, steps=stop - start, start=start)
        chosen = {
            name: np.abs(weight)
            for name, weight in weights.items()
            if is_matrix(weight.shape) and not any(fnmatchcase(name, pattern) for pattern in self.exclude)
        }
        if not chosen:
            raise RecipeError("no weight is left to make sparse: all have one axis, or are excluded")
        amounts = self._allocated(list(chosen.values()), share)
        return {name: ~least(size, amount) for (name, size), amount in zip(chosen.items(), amounts, strict=True)}

    def _allocated(self, sizes: list[np.ndarray], share: float) -> list[float]:
        if self.scope == "uniform":
            return [share] * len(sizes)
        if self.scope == "erk":
            return allocate_by_shape([size.shape for size in sizes], share)
        return allocate_globally(sizes, share)
