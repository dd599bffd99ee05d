"""What a comparison says: alula's choice against the best of the other tools."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

LEVEL_SPEED = 0.02  # medians that differ by less are called level

Result = Mapping[str, Any]


@dataclass(frozen=True)
class Speed:
    """Theirs by ours: above 1 where ours is faster; ``sure`` where the two intervals do not touch."""

    ratio: float
    sure: bool

    @property
    def word(self) -> str:
        """Ours is ahead or behind where that is sure and more than a trifle.

        >>> [Speed(1.3, True).word, Speed(1.3, False).word, Speed(0.99, True).word, Speed(0.9, True).word]
        ['ahead', 'level', 'level', 'behind']
        """
        if not self.sure or abs(self.ratio - 1) <= LEVEL_SPEED:
            return "level"
        return "ahead" if self.ratio > 1 else "behind"


@dataclass(frozen=True)
class Comparison:
    """alula's choice against one other result; a difference is ours minus theirs."""

    peer: str
    score_difference: tuple[float, float, float]  # mean, and its 95 % interval
    speeds: Mapping[str, Speed]  # by number of threads

    @property
    def accuracy(self) -> str:
        """Ours is ahead or behind where the interval says so."""
        _, low, high = self.score_difference
        return "ahead" if low > 0 else "behind" if high < 0 else "level"

    @property
    def holds(self) -> bool:
        """Ours is at least as accurate, and at least as fast at every number of threads."""
        return "behind" not in (self.accuracy, *(speed.word for speed in self.speeds.values()))


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
    return Comparison(
        peer["name"], (mean, low, high), {threads: _speed(ours, peer, threads) for threads in ours["threads"]}
    )


def _speed(ours: Result, peer: Result, threads: str) -> Speed:
    """From the medians; both ratios to the original are of the same rounds, so that their intervals tell."""
    own, other = (one["threads"][threads]["latency_ratio"] for one in (ours, peer))
    apart = own["low"] > other["high"] or own["high"] < other["low"]
    return Speed(median_ms(peer, threads) / median_ms(ours, threads), apart)


def median_ms(result: Result, threads: str) -> float:
    """Median milliseconds of one example."""
    return float(result["threads"][threads]["latency_p50_ms"]["value"])


def is_measured(result: Result) -> bool:
    """Whether a result was scored and timed."""
    return not result.get("failure")
