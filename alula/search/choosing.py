"""Which candidate is best, which hold the budget, and what the others lack.

The cost of a candidate is what the budget minimises, relative to the original: below 1 is better. Measured times differ
from run to run. So candidates of one structure (the same layers in the same bits: they differ in constants alone, and
run alike) share the median of their costs, and costs within TIE of each other count as equal: then the drop that is
surely not exceeded, the smaller file, the order of trying decide. That is what lets the same seed choose the same
candidate again. (The bound of the drop and not the drop: among candidates that change many answers, luck would win.)
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Final

from alula.search.words import bytes_in_words, score_in_words, speed_change_in_words

if TYPE_CHECKING:
    from alula.budget import Budget
    from alula.search.trial import Trial

TIE: Final = {"latency": 0.07, "energy": 0.07, "size": 0.01}
_KEYS: Final = {"latency": "latency_p50_ms", "size": "size_bytes", "energy": "energy_mj"}
_UNITS: Final = {"max_latency_ms": "ms", "max_energy_mj": "mJ"}


@dataclass(frozen=True, slots=True, eq=False)
class Terms:
    """What candidates are judged by: the budget, the original, and the drop allowed in score units.

    ``strict``: a candidate is faster only if its whole interval is; short measurements are too wide for that.
    """

    budget: Budget
    original: Trial
    allowed_drop: float
    strict: bool = False

    def cost(self, trial: Trial) -> float:
        """What the budget minimises, relative to the original; below 1 is better. Infinite where it is not known."""
        objective = self.budget.minimize
        if objective == "size":
            return trial.candidate.size_bytes / max(self.original.candidate.size_bytes, 1)
        if objective == "latency":
            ratio = trial.candidate.measurements.get("latency_ratio")
            return math.inf if ratio is None or ratio.value <= 0 else 1 / ratio.value
        energy = trial.candidate.measurements.get(_KEYS[objective])
        base = self.original.candidate.measurements.get(_KEYS[objective])
        return math.inf if energy is None or base is None or base.value <= 0 else energy.value / base.value

    def is_better(self, trial: Trial) -> bool:
        """Whether a candidate beats the original on what is minimised."""
        ratio = trial.candidate.measurements.get("latency_ratio")
        if self.strict and self.budget.minimize == "latency" and ratio is not None and ratio.low is not None:
            return ratio.low > 1
        return self.cost(trial) < 1

    def holds_drop(self, trial: Trial) -> bool:
        """Whether the drop on the selection examples is within the budget."""
        return trial.candidate.drop <= self.allowed_drop + 1e-12

    def holds(self, trial: Trial) -> bool:
        """Whether a candidate may be chosen: trusted, within every limit, better than the original."""
        return not trial.distrust and not self.lacks(trial)

    def lacks(self, trial: Trial) -> tuple[str, ...]:
        """What keeps a candidate from holding the budget, with the distance, in words."""
        return tuple(text for text, _ in self._gaps(trial))

    def distance(self, trial: Trial) -> float:
        """How far from the budget: the sum of the relative excesses; 0 when it holds."""
        return sum(excess for _, excess in self._gaps(trial))

    def _gaps(self, trial: Trial) -> list[tuple[str, float]]:
        gaps = []
        if not self.holds_drop(trial):
            drop, allowed = trial.candidate.drop, self.allowed_drop
            above = score_in_words(drop - allowed)
            text = f"its drop is {score_in_words(drop)}, {above} above the {allowed:.4g} allowed"
            scale = max(allowed, 0.01 * abs(self.original.candidate.score), 1e-9)
            gaps.append((text, (drop - allowed) / scale))
        for field in ("max_size_bytes", "max_latency_ms", "max_energy_mj", "max_memory_bytes"):
            gaps += self._limit_gap(trial, field)
        if not self.is_better(trial):
            gaps.append((self._no_better(trial), max(self.cost(trial) - 1, 0.001)))
        return gaps

    def _limit_gap(self, trial: Trial, field: str) -> list[tuple[str, float]]:
        limit = getattr(self.budget, field)
        if limit is None:
            return []
        quantity, value = _quantity(trial, field)
        if value is None:
            return [(f"its {quantity} was not measured", 1.0)]
        if value <= limit:
            return []
        in_words = bytes_in_words if field.endswith("_bytes") else (lambda number: f"{number:.3g} {_UNITS[field]}")
        text = f"its {quantity} is {in_words(value)}, {in_words(value - limit)} above the {in_words(limit)} allowed"
        return [(text, value / limit - 1)]

    def _no_better(self, trial: Trial) -> str:
        objective = self.budget.minimize
        if objective == "latency":
            ratio = trial.candidate.measurements.get("latency_ratio")
            found = None if ratio is None else speed_change_in_words(trial.candidate)
            return f"it is not faster than the original: {found or 'its speed was not measured'}"
        return f"it does not need less {objective} than the original ({self.cost(trial):.2f}x)"


def rank(trials: Iterable[Trial], terms: Terms) -> tuple[Trial, ...]:
    """Cheapest first; among equally cheap ones the least bound of the drop, then the smallest file, then the first."""
    trials = tuple(trials)
    costs = _pooled_costs(trials, terms)
    left = sorted(range(len(trials)), key=lambda index: (costs[index], index))
    ranked: list[Trial] = []
    while left:
        limit = costs[left[0]] * (1 + TIE[terms.budget.minimize])
        tied = [index for index in left if costs[index] <= limit]
        left = [index for index in left if costs[index] > limit]
        tied.sort(key=lambda index: (_sure_drop(trials[index]), trials[index].candidate.size_bytes, index))
        ranked += [trials[index] for index in tied]
    return tuple(ranked)


def runs_alike(one: Trial, other: Trial) -> bool:
    """Whether two candidates have the same layers in the same bits, so that one is as fast as the other."""
    return _structure(one) == _structure(other)


def _sure_drop(trial: Trial) -> float:
    """The upper end of the drop's interval on the selection examples; the drop itself where there is none."""
    drop = trial.candidate.measurements.get("drop")
    return trial.candidate.drop if drop is None or drop.high is None else drop.high


def closest(trials: Sequence[Trial], terms: Terms) -> Trial | None:
    """The trusted candidate nearest to the budget; one that holds the drop before any that does not."""
    trusted = [trial for trial in rank(trials, terms) if not trial.distrust]
    return min(trusted, key=lambda trial: (not terms.holds_drop(trial), terms.distance(trial)), default=None)


def non_dominated(trials: Sequence[Trial], terms: Terms) -> tuple[str, ...]:
    """Names of those (the original among them) that no other beats in both drop and cost, in the order given."""
    points = [(terms.original.name, 0.0, 1.0)]
    points += [(trial.name, trial.candidate.drop, terms.cost(trial)) for trial in trials if not trial.distrust]
    return tuple(
        name
        for name, drop, cost in points
        if not any(d <= drop and c <= cost and (d < drop or c < cost) for _, d, c in points)
    )


def _pooled_costs(trials: Sequence[Trial], terms: Terms) -> list[float]:
    """The cost of each trial; where it is measured in time, the median over all trials of its structure."""
    costs = [terms.cost(trial) for trial in trials]
    if terms.budget.minimize == "size":
        return costs
    groups: dict[object, list[float]] = {}
    for trial, cost in zip(trials, costs, strict=True):
        groups.setdefault(_structure(trial), []).append(cost)
    return [median(groups[_structure(trial)]) for trial in trials]


def _structure(trial: Trial) -> object:
    rows = tuple((row.part, row.name, row.bits) for row in trial.candidate.layers)
    kinds = tuple(type(step.technique).__name__ for step in trial.candidate.recipe.steps)
    return (rows, kinds) if rows else trial.name


def _quantity(trial: Trial, field: str) -> tuple[str, float | None]:
    """What a limit of the budget is about, in words, and the candidate's value of it."""
    if field == "max_size_bytes":
        return "size", float(trial.candidate.size_bytes)
    key = {"max_latency_ms": "latency_p50_ms", "max_energy_mj": "energy_mj", "max_memory_bytes": "memory_bytes"}[field]
    measurement = trial.candidate.measurements.get(key)
    words = {"max_latency_ms": "latency", "max_energy_mj": "energy", "max_memory_bytes": "peak memory"}[field]
    return words, None if measurement is None else measurement.value
