"""How the units that go are chosen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from alula.errors import RecipeError
from alula.numerics.allocation import Limits
from alula.settings import check_settings
from alula.techniques.criteria import CriterionName

BLOCKS: Final = (16, 8)  # channels that kernels of CPUs compute at once


@dataclass(frozen=True, slots=True)
class Pruning:
    """How units are chosen.

    Attributes:
        criterion: how much a unit matters (:class:`alula.Prune` tells each); by default ``taylor``, which reads
            gradients on the training data.
        scope: how couplings compare. ``global``: by importance relative to the mean of each. ``absolute``: by
            importance itself, for criteria that estimate a loss. ``sensitivity``: by how far the outputs move, measured
            for each coupling at each width. ``uniform``: each loses the same share.
        compensate: layers that read what went make up for it, by least squares on the training data, before anything is
            trained; ``brain surgeon`` takes that into account when it chooses.
        blocks: whole blocks may go too (:func:`alula.graph.blocks.find_blocks`); only with ``sensitivity``, which alone
            tells how a block compares with units.
        include: patterns of the layers whose units may go.
        exclude: patterns of the layers whose units stay.
        least: share of its units that a coupling keeps at least.
        multiple: what the number of units that a coupling keeps is a multiple of. Kernels compute channels in blocks,
            and are slower on widths between; so without a number it is 16 or 8, where the coupling's own width is a
            multiple of that and twice as large at least; or less, where the goal would be passed by far.
        rounds: in how many rounds of pruning and training the goal is met.
        seed: of the random criterion, and of the rows that the criterion sees.
    """

    criterion: CriterionName = "taylor"
    scope: Literal["global", "absolute", "sensitivity", "uniform"] = "global"
    compensate: bool = True
    blocks: bool = False
    include: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()
    least: float = 0.1
    multiple: int | None = None
    rounds: int = 1
    seed: int = 0

    def limits(self, size: int, blocks: Sequence[int] = BLOCKS) -> Limits:
        """What a coupling of so many units keeps.

        Args:
            size: of the coupling.
            blocks: what its width is to be a multiple of, where nothing is asked for.

        >>> [Pruning().limits(size).multiple for size in (12, 16, 48, 40, 100)]
        [1, 8, 16, 8, 1]
        """
        fitting = (block for block in blocks if size % block == 0 and size >= 2 * block)
        return Limits(self.least, next(fitting, 1) if self.multiple is None else self.multiple)

    def __post_init__(self) -> None:
        check_settings(self)
        self.limits(1)
        if self.blocks and self.scope != "sensitivity":
            raise RecipeError(f"blocks compare with units by sensitivity alone, got scope {self.scope!r}")
        for name, value, least in (("rounds", self.rounds, 1), ("seed", self.seed, 0), ("multiple", self.multiple, 1)):
            if value is not None and value < least:
                raise RecipeError(f"{name} must be a whole number of at least {least}, got {value!r}")
