"""What pruning is to save: parameters or multiply-accumulates, counted; or latency, measured on a target."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

import numpy as np

from alula.errors import RecipeError
from alula.graph.cost import measure_cost
from alula.graph.model import Model
from alula.measurement import Measurement
from alula.measurement.energy import compare_energy
from alula.measurement.latency import Clock, compare_latency, take_turns
from alula.settings import check_settings
from alula.targets import OnnxRuntime, Target

Kind = Literal["macs", "parameters", "latency"]
SECONDS: Final = 0.6  # of timing, for each artifact
_KINDS: Final[tuple[Kind, ...]] = ("macs", "parameters", "latency")


@dataclass(frozen=True, slots=True)
class Goal:
    """How many times fewer, or faster; one of the three is given, or several that must all hold.

    Attributes:
        macs: multiply-accumulates of one example.
        parameters: weights.
        latency: milliseconds of one example, measured on the target.
        target: where latency is measured; ONNX Runtime on one thread if nothing else is said.
    """

    macs: float | None = None
    parameters: float | None = None
    latency: float | None = None
    target: Target = field(default_factory=lambda: OnnxRuntime(threads=1))

    def __post_init__(self) -> None:
        check_settings(self)
        if not self.wanted():
            raise RecipeError("a goal is macs, parameters or latency, or several of them; got none")
        for kind, times in self.wanted().items():
            if not 1 <= times < float("inf"):
                raise RecipeError(f"{kind} must be at least 1 times fewer, got {times!r}; 2.0 is half")

    def wanted(self, share: float = 1.0) -> dict[Kind, float]:
        """How many times less of each kind, after a share of the way; what is counted comes before what is measured."""
        given = {kind: getattr(self, kind) for kind in _KINDS}
        return {kind: float(times) ** share for kind, times in given.items() if times is not None}

    @property
    def kind(self) -> Kind:
        """What places are compared by: what is measured, where that is asked for."""
        return list(self.wanted())[-1]


Cost = Callable[[Model], float]
"""What a graph costs, in parts of what the original does."""


def relative_costs(original: Model, goal: Goal, feeds: Mapping[str, np.ndarray]) -> dict[Kind, Cost]:
    """The costs of a graph as shares of the original's.

    Args:
        original: what is compared with.
        goal: which costs.
        feeds: one example.
    """
    return {
        kind: Stopwatch(original, goal.target, feeds) if kind == "latency" else _counter(original, kind, feeds)
        for kind in goal.wanted()
    }


def _counter(original: Model, kind: Kind, feeds: Mapping[str, np.ndarray]) -> Cost:
    whole = counted(original, kind, feeds)
    return lambda model: counted(model, kind, feeds) / whole


def counted(model: Model, kind: Kind, feeds: Mapping[str, np.ndarray]) -> float:
    """Parameters of a graph, or multiply-accumulates of one run."""
    cost = measure_cost(model, {name: array.shape for name, array in feeds.items()})
    return float(cost.parameters if kind == "parameters" else cost.total_macs)


class Stopwatch:
    """Times graphs on a target, each in turns with the original; with a meter of joules, compares their energy."""

    def __init__(
        self, original: Model, target: Target, feeds: Mapping[str, np.ndarray], meter: Clock | None = None
    ) -> None:
        self._target, self._feeds, self._meter = target, dict(feeds), meter
        self._original = self._run_of(original)

    def __call__(self, model: Model) -> float:
        """Latency as a share of the original's."""
        return 1 / self.compare(model).value

    def compare(self, model: Model, seconds: float = SECONDS) -> Measurement:
        """How many times faster than the original, or how many times less energy, with its interval."""
        runs = {"original": self._original, "pruned": self._run_of(model)}
        turns = take_turns(runs, seconds=seconds, meter=self._meter)
        compare = compare_latency if self._meter is None else compare_energy
        return compare(turns["original"], turns["pruned"])

    def _run_of(self, model: Model) -> Callable[[], object]:
        with tempfile.TemporaryDirectory() as folder:
            opened = self._target.open(self._target.build(model, Path(folder)))
        return lambda: opened(self._feeds)
