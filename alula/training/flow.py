"""Tensors of a graph over some feeds, asked for one after another while its weights change."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import numpy as np

from alula.errors import DataError
from alula.graph.cutting import cut_out
from alula.graph.feeds import Feeds
from alula.graph.model import Model
from alula.graph.running import Runner
from alula.graph.walking import Walk, has_body


class Flow:
    """What a graph computes, as far as it was asked for.

    What is alive is held, so that each node runs once for each feed and not again for all that comes after it. Where
    nothing is to be held, and in graphs with bodies of If, Loop or Scan, all is computed from the inputs each time.

    Args:
        feeds: all inputs.
        hold: whether what is alive is held.
    """

    def __init__(self, feeds: Sequence[Feeds], *, hold: bool) -> None:
        self._feeds, self._hold = feeds, hold
        self._walk: Walk | None = None

    def tensors(self, model: Model, names: Sequence[str], later: Collection[str]) -> Iterator[dict[str, np.ndarray]]:
        """Tensors by name, for one feed after another.

        Args:
            model: the graph as it is now.
            names: of the tensors.
            later: names of those that will be asked for.

        Raises:
            DataError: one is not finite.
        """
        if not self._hold or any(has_body(node) for node in model.graph):
            yield from _computed(model, names, self._feeds)
            return
        if self._walk is None:
            self._walk = Walk(model, self._feeds)
        self._walk.go_on(model)
        later = {*names, *later}
        made = [list(self._walk.reach(name, later)) for name in names]
        for arrays in zip(*made, strict=True):
            yield dict(zip(names, arrays, strict=True))

    def change(self, layers: Collection[str]) -> None:
        """Be told that the weights of some layers are others from now on: what depends on them is not held any more."""
        if self._walk is not None and self._walk.has_run(layers):
            self._walk = None


def _computed(model: Model, tensors: Sequence[str], feeds: Sequence[Feeds]) -> Iterator[dict[str, np.ndarray]]:
    """Tensors of a graph by name, for each feed, from its inputs on."""
    inside = [name for name in tensors if name not in {spec.name for spec in model.inputs}]
    run = Runner(cut_out(model, [spec.name for spec in model.inputs], inside), optimise=False) if inside else None
    for feed in feeds:
        made = {**feed, **(run(feed) if run is not None else {})}
        for name in inside:
            if made[name].dtype.kind == "f" and not np.isfinite(made[name]).all():
                raise DataError(f"the graph gives NaN or infinity at {name!r} on these data; remove such rows")
        yield {name: made[name] for name in tensors}
