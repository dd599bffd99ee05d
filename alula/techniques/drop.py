"""Whole blocks taken out: residual blocks, sub-layers and layers of transformers, repeated convolutions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np

from alula.errors import DataError, RecipeError
from alula.graph.blocks import Block, find_blocks, without_blocks
from alula.graph.export import as_model
from alula.graph.layers import Layer
from alula.graph.model import Model, Note
from alula.graph.running import Runner, relative_change
from alula.graph.statistics import Request
from alula.settings import check_settings, expect
from alula.techniques.technique import Context, check_weights

Feeds = Mapping[str, np.ndarray]


@dataclass(frozen=True, slots=True)
class Drop:
    """Take out whole blocks (:func:`alula.graph.blocks.find_blocks`); nothing is trained afterwards.

    Which blocks do least harm is measured before: :func:`choose_blocks`.

    Attributes:
        blocks: names of blocks, or shell wildcards over them.
    """

    blocks: tuple[str, ...]

    def __post_init__(self) -> None:
        check_settings(self)
        if not self.blocks:
            raise RecipeError("blocks must be names of blocks, got none; choose_blocks tells the least harm")

    def requests(self, model: Model, layers: Sequence[Layer]) -> frozenset[Request]:  # noqa: ARG002
        """None: the blocks were chosen before."""
        return frozenset()

    def apply(self, model: Model, context: Context) -> Model:
        """The graph without the blocks of these names, as far as all of their layers are to be treated.

        Raises:
            RecipeError: a name means no block, or no block has all of its layers treated.
            ModelError: a weight that would go is not finite (the layer is named).
        """
        named = _named(find_blocks(model), self.blocks)
        treated = {layer.name for layer in context.layers}
        chosen = [block for block in named if treated.issuperset(block.layers)]
        if not chosen:
            raise RecipeError(f"none of the {len(named)} blocks consists of layers that are to be treated")
        inside = {layer for block in chosen for layer in block.layers}
        check_weights(model, (layer for layer in model.layers() if layer.name in inside))
        notes = [
            Note(block.name, "stays: some of its layers are not to be treated")
            for block in named
            if block not in chosen
        ]
        smaller = without_blocks(model, [block.name for block in chosen])
        return smaller.edited(smaller.edit(), notes)


def _named(blocks: Sequence[Block], patterns: Sequence[str]) -> list[Block]:
    """The blocks that patterns mean.

    Raises:
        RecipeError: one means none.
    """
    for pattern in patterns:
        if not any(_matches(block, pattern) for block in blocks):
            known = ", ".join(block.name for block in blocks[:6])
            raise RecipeError(f"{pattern!r} matches none of {len(blocks)} blocks; there are {known or 'none'}")
    return [block for block in blocks if any(_matches(block, pattern) for pattern in patterns)]


def _matches(block: Block, pattern: str) -> bool:
    return block.name == pattern or fnmatchcase(block.name, pattern)


def choose_blocks(model: Model, count: int, feeds: Sequence[Feeds], among: Iterable[str] = ("*",)) -> tuple[str, ...]:
    """Names of blocks that together do little harm, for :class:`Drop`: the least harmful, then the least beside it...

    Each is measured anew beside those chosen before, since of two blocks that do the same one must stay.

    Args:
        model: the graph.
        count: how many.
        feeds: what the outputs are compared on.
        among: shell wildcards over names of blocks to choose from.

    Raises:
        RecipeError: there are fewer blocks.
        DataError: there are no feeds, they do not fit, or the outputs are not finite.
    """
    expect("count", count, int)
    if count < 0:
        raise RecipeError(f"count must be at least 0, got {count}")
    model = as_model(model)
    among = (among,) if isinstance(among, str) else tuple(among)
    if not among:
        raise RecipeError("blocks must be names of blocks, got none")
    expect("among", among, tuple[str, ...])
    blocks = {block.name: block for block in _named(find_blocks(model), among)}
    chosen: list[str] = []
    for _ in range(count):
        gone = {layer for name in chosen for layer in blocks[name].layers}
        left = [name for name, block in blocks.items() if not gone.intersection(block.layers)]
        if not left:
            raise RecipeError(f"{count} blocks were asked for, the graph has only {len(chosen)} that lie apart")
        harms = measure_block_harm(model, left, feeds, beside=chosen)
        chosen.append(min(left, key=lambda name: harms[name]))
    return tuple(chosen)


def measure_block_harm(
    model: Model, blocks: Iterable[str], feeds: Sequence[Feeds], beside: Sequence[str] = ()
) -> dict[str, float]:
    """How much the outputs change without each block: the largest |y' - y| / |y| of the outputs y, over all feeds.

    Args:
        model: the graph.
        blocks: names of blocks.
        feeds: what the outputs are compared on.
        beside: names of blocks that are gone in any case.

    Raises:
        ModelError: there is no block of a name.
        DataError: there are no feeds, they do not fit, or the outputs are not finite.
    """
    if not feeds:
        raise DataError("feeds are empty; give at least one example")
    before = Runner(model)
    return {name: relative_change(before, Runner(without_blocks(model, [*beside, name])), feeds) for name in blocks}
