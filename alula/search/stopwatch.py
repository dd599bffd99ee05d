"""What each place of a graph saves of its latency at each option: whole artifacts, timed in turns with the original."""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path

import numpy as np

from alula.examples import hash_all
from alula.graph.cost import measure_cost
from alula.measurement import describe_machine
from alula.measurement.latency import summarise_latency, take_turns
from alula.pruning.goal import SECONDS, Stopwatch
from alula.search.exchanges import Choice
from alula.search.mixes import Feeds, Mixes
from alula.targets import Target
from alula.task_rows import fixed_batch


class Latencies:
    """Latencies of mixes, in milliseconds of one example; places of the same geometry are timed once."""

    def __init__(self, mixes: Mixes, target: Target, feed: Feeds) -> None:
        rows = fixed_batch(mixes.model) or 1
        self._rows = rows
        self._where = f"{target!r} of {hash_all([describe_machine()])[:12]}"  # timings of another machine are no use
        self._example = {name: array[:rows] for name, array in feed.items()}
        self._mixes, self._target = mixes, target
        self._watch: Stopwatch | None = None
        shapes = {name: array.shape for name, array in self._example.items()}
        self._macs = {layer.name: layer.macs for layer in measure_cost(mixes.model, shapes).layers}
        self.original = mixes.kept(f"latency on {self._where}", self._milliseconds)

    def of(self, place: int, possible: np.ndarray) -> np.ndarray:  # [options] -> [options]
        """Milliseconds that each option of a place adds; 0 where timing cannot tell, or the option is impossible."""
        added = np.zeros(len(possible))
        for option in np.flatnonzero(possible):
            if option != self._mixes.untouched:
                name = f"added on {self._where} by {self._geometry(place)} at {option}"
                added[option] = self._mixes.kept(name, partial(self._added, self._mixes.alone(place, int(option))))
        return added

    def whole(self, choice: Choice) -> float:
        """Milliseconds of a mix."""
        return self._mixes.kept(f"latency on {self._where} of {choice}", partial(self._latency, choice))

    def _latency(self, choice: Choice) -> float:
        return self.original / self._stopwatch().compare(self._mixes.build(choice)).value

    def _added(self, choice: Choice) -> float:
        faster = self._stopwatch().compare(self._mixes.build(choice))
        low, high = faster.low, faster.high
        if low is not None and high is not None and low <= 1 <= high:
            return 0.0
        return self.original * (1 / faster.value - 1)

    def _geometry(self, place: int) -> str:
        layers = self._mixes.places[place].layers
        return "; ".join(f"{one.operator} {one.shape} {one.groups} {self._macs[one.name]}" for one in layers)

    def _stopwatch(self) -> Stopwatch:
        if self._watch is None:
            self._watch = Stopwatch(self._mixes.model, self._target, self._example)
        return self._watch

    def _milliseconds(self) -> float:
        with tempfile.TemporaryDirectory() as folder:
            opened = self._target.open(self._target.build(self._mixes.model, Path(folder)))
        turns = take_turns({"original": lambda: opened(self._example)}, seconds=SECONDS)
        return summarise_latency(turns["original"])["latency_p50_ms"].value / self._rows
