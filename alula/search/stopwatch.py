"""What each place of a graph saves at each option, measured: whole artifacts, in turns with the original."""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path
from typing import Final, Literal, TypeAlias

import numpy as np

from alula.errors import RecipeError
from alula.examples import hash_all
from alula.graph.cost import measure_cost
from alula.measurement import describe_machine
from alula.measurement.energy import EnergyMeter, find_meter, summarise_energy
from alula.measurement.latency import summarise_latency, take_turns
from alula.pruning.goal import SECONDS, Stopwatch
from alula.search.exchanges import Choice
from alula.search.mixes import Feeds, Mixes
from alula.targets import Target
from alula.task_rows import fixed_batch

Kind: TypeAlias = Literal["latency_ms", "energy_mj"]
KINDS: Final[tuple[Kind, ...]] = ("latency_ms", "energy_mj")


def required_meter() -> EnergyMeter:
    """A meter of joules.

    Raises:
        RecipeError: the machine has none that may be read.
    """
    meter = find_meter()
    if meter is None:
        raise RecipeError(
            "energy_mj must be measured, and this machine has no meter that may be read: Linux shows the processor's "
            "own counters (RAPL) in /sys/class/powercap/intel-rapl:*/energy_uj, to root as a rule; let them be read, "
            "or limit latency_ms instead"
        )
    return meter


class MeasuredCosts:
    """Milliseconds or millijoules of one example of mixes; places of the same geometry are measured once."""

    def __init__(self, mixes: Mixes, target: Target, feed: Feeds, kind: Kind) -> None:
        rows = fixed_batch(mixes.model) or 1
        self._rows = rows
        self._meter = required_meter() if kind == "energy_mj" else None
        self._what, self._added_as = ("energy", "energy added") if kind == "energy_mj" else ("latency", "added")
        self._where = f"{target!r} of {hash_all([describe_machine()])[:12]}"  # numbers of another machine are no use
        self._example = {name: array[:rows] for name, array in feed.items()}
        self._mixes, self._target = mixes, target
        self._watch: Stopwatch | None = None
        shapes = {name: array.shape for name, array in self._example.items()}
        self._macs = {layer.name: layer.macs for layer in measure_cost(mixes.model, shapes).layers}
        self.original = mixes.kept(f"{self._what} on {self._where}", self._of_original)

    def of(self, place: int, possible: np.ndarray) -> np.ndarray:  # [options] -> [options]
        """What each option of a place adds; 0 where measuring cannot tell, or the option is impossible."""
        added = np.zeros(len(possible))
        for option in np.flatnonzero(possible):
            if option != self._mixes.untouched:
                name = f"{self._added_as} on {self._where} by {self._geometry(place)} at {option}"
                added[option] = self._mixes.kept(name, partial(self._added, self._mixes.alone(place, int(option))))
        return added

    def whole(self, choice: Choice) -> float:
        """What a mix costs."""
        return self._mixes.kept(f"{self._what} on {self._where} of {choice}", partial(self._whole, choice))

    def _whole(self, choice: Choice) -> float:
        return self.original / self._stopwatch().compare(self._mixes.build(choice)).value

    def _added(self, choice: Choice) -> float:
        less = self._stopwatch().compare(self._mixes.build(choice))
        low, high = less.low, less.high
        if low is not None and high is not None and low <= 1 <= high:
            return 0.0
        return self.original * (1 / less.value - 1)

    def _geometry(self, place: int) -> str:
        layers = self._mixes.places[place].layers
        return "; ".join(f"{one.operator} {one.shape} {one.groups} {self._macs[one.name]}" for one in layers)

    def _stopwatch(self) -> Stopwatch:
        if self._watch is None:
            self._watch = Stopwatch(self._mixes.model, self._target, self._example, self._meter)
        return self._watch

    def _of_original(self) -> float:
        with tempfile.TemporaryDirectory() as folder:
            opened = self._target.open(self._target.build(self._mixes.model, Path(folder)))
        turns = take_turns({"original": lambda: opened(self._example)}, seconds=SECONDS, meter=self._meter)["original"]
        found = summarise_latency(turns)["latency_p50_ms"] if self._meter is None else summarise_energy(turns)
        assert found is not None  # it was metered
        return found.value / self._rows
