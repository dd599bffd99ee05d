"""Weights that become zero little by little, while the others learn to do without (Zhu & Gupta 2018, equation 1)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

import numpy as np

from alula.errors import RecipeError
from alula.numerics.sparsity import allocate_by_shape, allocate_globally, count_removed, least, sparsity_at


@dataclass(frozen=True, slots=True)
class Gradual:
    """The smallest weights become zero, a growing share of them, and stay zero until the next choice.

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
        count_removed(0, self.amount)
        if not 0 <= self.begin < self.end <= 1:
            raise RecipeError(f"begin and end must be shares of the steps, 0 <= begin < end <= 1; got {self.begin!r} "
                              f"and {self.end!r}")  # fmt: skip
        if self.every < 1 or self.scope not in ("global", "uniform", "erk"):
            raise RecipeError(f"every must be at least 1, and scope global, uniform or erk; got {self.every!r} and "
                              f"{self.scope!r}")  # fmt: skip

    def chooses_at(self, step: int, steps: int) -> bool:
        """Whether zeros are chosen after this many of all steps; at the end of the rise in any case."""
        first, last = round(self.begin * steps), max(1, round(self.end * steps))
        return first < step <= last and ((step - first) % self.every == 0 or step == last)

    def masks(self, weights: Mapping[str, np.ndarray], step: int, steps: int) -> dict[str, np.ndarray]:
        """Where weights stay, by name, after this many of all steps; of weights of two axes and more."""
        start, stop = round(self.begin * steps), max(1, round(self.end * steps))
        share = sparsity_at(step, final=self.amount, steps=max(stop - start, 1), start=start)
        chosen = {
            name: np.abs(weight)
            for name, weight in weights.items()
            if weight.ndim >= 2 and not any(fnmatchcase(name, pattern) for pattern in self.exclude)
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
