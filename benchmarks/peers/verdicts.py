"""What a comparison says: alula's choice against the best of the other tools."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

LEVEL_SPEED = 0.02  # medians that differ by less are called level

Result = Mapping[str, Any]


@dataclass(frozen=True)
class Comparison:
    """alula's choice against one other result; differences are ours minus theirs, speeds theirs by ours."""

    peer: str
    score_difference: tuple[float, float, float]  # mean, and its 95 % interval
    speeds: Mapping[str, float]  # by number of threads; above 1 where ours is faster

    @property
    def accuracy(self) -> str:
        """Ours is ahead or behind where the interval says so."""
        _, low, high = self.score_difference
        return "ahead" if low > 0 else "behind" if high < 0 else "level"

    @property
    def speed(self) -> dict[str, str]:
        """By number of threads: ours is ahead, behind or level."""
        return {threads: judge_speed(ratio) for threads, ratio in self.speeds.items()}

    @property
    def holds(self) -> bool:
        """Ours is at least as accurate, and at least as fast at every number of threads."""
        return "behind" not in (self.accuracy, *self.speed.values())


def judge_speed(ratio: float) -> str:
    """Words for theirs by ours.

    >>> [judge_speed(ratio) for ratio in (1.3, 1.01, 0.9)]
    ['ahead', 'level', 'behind']
    """
    if abs(ratio - 1) <= LEVEL_SPEED:
        return "level"
    return "ahead" if ratio > 1 else "behind"


def our_choice(contenders: Sequence[Result]) -> Result | None:
    """What alula's search chose."""
    return next((one for one in contenders if one.get("chosen") and is_measured(one)), None)


def peers_of(contenders: Sequence[Result]) -> list[Result]:
    """Results of the other tools that ran."""
    return [one for one in contenders if one["maker"] not in ("float", "alula") and is_measured(one)]


def fastest_within(contenders: Sequence[Result], largest_drop: float) -> Result | None:
    """The peer that is fastest at one thread of those that lose no more than allowed."""
    within = [one for one in peers_of(contenders) if one["drop"][0] <= largest_drop]
    return min(within, key=lambda one: median_ms(one, "1"), default=None)


def most_accurate(contenders: Sequence[Result]) -> Result | None:
    """The peer that scores best of those that are faster than the original, the faster one where several do."""
    faster = [one for one in peers_of(contenders) if one["threads"]["1"]["latency_ratio"]["value"] > 1]
    return max(faster, key=lambda one: (one["score"], -median_ms(one, "1")), default=None)


def compare_with(ours: Result, peer: Result) -> Comparison:
    """How alula's choice stands against a peer."""
    mean, low, high = peer["below_ours"]
    speeds = {threads: median_ms(peer, threads) / median_ms(ours, threads) for threads in ours["threads"]}
    return Comparison(peer["name"], (mean, low, high), speeds)


def median_ms(result: Result, threads: str) -> float:
    """Median milliseconds of one example."""
    return float(result["threads"][threads]["latency_p50_ms"]["value"])


def is_measured(result: Result) -> bool:
    """Whether a result was scored and timed."""
    return not result.get("failure")
