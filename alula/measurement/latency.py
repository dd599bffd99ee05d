"""Timing of several contenders in one run, taking turns, and what the turns say.

One contender after the other would measure the machine's mood as well. So they take turns: each round visits all of
them in a drawn order and the next round in the reverse of it (A B B A), which cancels a steady drift. A turn opens with
replays that are not timed: they bring the contender's weights back into the caches and let the threads of the one
before come to rest. The number of rounds is fixed before the first, so that no result decides when to stop.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from alula.measurement.intervals import Floats, median_interval, quantiles_with_intervals
from alula.measurement.measurement import Measurement

CONFIDENCE = 0.95
TURN_SECONDS = 0.05
SETTLE_SECONDS = 0.005
MINIMUM_ROUNDS = 8
MAXIMUM_REPLAYS = 256
NOISY_SPREAD = 0.10
OUTLIER_FACTOR = 3.0

Clock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class Turn:
    """One contender's stretch in one round: seconds of each replay [replays], and joules of all of them if metered."""

    seconds: Floats
    energy_j: float | None = None


def take_turns(
    runs: Mapping[str, Callable[[], object]],
    *,
    seconds: float,
    seed: int = 0,
    clock: Clock = time.perf_counter,
    meter: Clock | None = None,
) -> dict[str, tuple[Turn, ...]]:
    """Time every contender in alternating turns.

    Args:
        runs: what to time, by contender.
        seconds: of timed work for each contender; at least ``MINIMUM_ROUNDS`` turns are taken however long they last.
        seed: of the order in each round.
        clock: seconds of a steady clock.
        meter: joules used so far, where the machine has a meter.

    Returns:
        The turns of each contender, round by round.
    """
    turns: dict[str, list[Turn]] = {name: [] for name in runs}
    turn_seconds = min(TURN_SECONDS, seconds / MINIMUM_ROUNDS)
    with _collector_off():
        costs = {name: _warm_up(run, seconds / 10, clock) for name, run in runs.items()}
        replays = {name: _count_replays(turn_seconds, cost) for name, cost in costs.items()}
        longest = max(replays[name] * costs[name] for name in runs)
        for order in _orders(list(runs), _count_rounds(seconds, max(longest, turn_seconds)), seed):
            for name in order:
                turns[name].append(_take_turn(runs[name], replays[name], clock, meter))
    return {name: tuple(taken) for name, taken in turns.items()}


def summarise_latency(turns: Sequence[Turn], *, seed: int = 0) -> dict[str, Measurement]:
    """The median, 95th and 99th percentile of a replay in milliseconds, each with its bootstrap interval over turns."""
    milliseconds = [turn.seconds * 1e3 for turn in turns]
    table = quantiles_with_intervals(milliseconds, (0.5, 0.95, 0.99), confidence=CONFIDENCE, seed=seed)  # [3, 3]
    count = sum(map(len, milliseconds))
    method = f"{count} replays in {len(turns)} interleaved turns after warm-up; bootstrap over turns{_remarks(turns)}"
    return {
        f"latency_p{percent}_ms": Measurement(
            float(value), "ms", float(low), float(high), CONFIDENCE, count, method + _tail_remark(percent, count)
        )
        for percent, (value, low, high) in zip((50, 95, 99), table, strict=True)
    }


def compare_latency(original: Sequence[Turn], candidate: Sequence[Turn]) -> Measurement:
    """How many times faster the candidate is: median over rounds of original / candidate, with its exact interval."""
    ratios = turn_medians(original) / turn_medians(candidate)  # [rounds]
    low, high, coverage = median_interval(ratios, CONFIDENCE)
    method = f"median of {len(ratios)} per-round ratios original / candidate; sign-test interval{_remarks(original)}"
    return Measurement(float(np.median(ratios)), "x", low, high, round(coverage, 4), len(ratios), method)


def turn_medians(turns: Sequence[Turn]) -> Floats:
    """Median seconds of a replay, turn by turn: [turns]."""
    return np.array([np.median(turn.seconds) for turn in turns])


def measure_spread(turns: Sequence[Turn]) -> float:
    """How restless the machine was: the interquartile range of the turns' medians as a fraction of their median."""
    lower, middle, upper = np.quantile(turn_medians(turns), [0.25, 0.5, 0.75])
    return float((upper - lower) / middle)


def _remarks(turns: Sequence[Turn]) -> str:
    """What a reader must know about these timings: a noisy machine, outliers."""
    seconds = np.concatenate([turn.seconds for turn in turns])
    outliers = int(np.sum(seconds > OUTLIER_FACTOR * np.median(seconds)))
    spread = measure_spread(turns)
    noise = f"; noisy machine: turns spread by {spread:.0%}" if spread > NOISY_SPREAD else ""
    return noise + (f"; {outliers} replays took over {OUTLIER_FACTOR:g} times the median" if outliers else "")


def _tail_remark(percent: int, count: int) -> str:
    needed = round(1 / (1 - percent / 100))
    return f"; only {count} replays: close to the slowest one" if count < 5 * needed and percent > 50 else ""


@contextmanager
def _collector_off() -> Iterator[None]:
    """Python's garbage collector would stop single replays at moments of its own."""
    was_on = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _warm_up(run: Callable[[], object], seconds: float, clock: Clock) -> float:
    """Replay for a while, at least twice; the fastest replay's seconds."""
    fastest, start = float("inf"), clock()
    for replay in range(MAXIMUM_REPLAYS):
        before = clock()
        run()
        fastest = min(fastest, clock() - before)
        if replay > 0 and clock() - start >= seconds:
            break
    return max(fastest, 1e-9)


def _count_replays(turn_seconds: float, cost: float) -> int:
    return int(min(MAXIMUM_REPLAYS, max(1, round(turn_seconds / cost))))


def _count_rounds(seconds: float, turn_seconds: float) -> int:
    """An even number: each order is followed by its reverse."""
    return max(MINIMUM_ROUNDS, 2 * round(seconds / turn_seconds / 2))


def _orders(names: list[str], rounds: int, seed: int) -> Iterator[list[str]]:
    generator = np.random.default_rng(seed)
    for _ in range(rounds // 2):
        order = [names[index] for index in generator.permutation(len(names))]
        yield order
        yield order[::-1]


def _take_turn(run: Callable[[], object], replays: int, clock: Clock, meter: Clock | None) -> Turn:
    _settle(run, clock)
    seconds = np.empty(replays)
    joules = meter() if meter else 0.0
    for index in range(replays):
        before = clock()
        run()
        seconds[index] = clock() - before
    return Turn(seconds, meter() - joules if meter else None)


def _settle(run: Callable[[], object], clock: Clock) -> None:
    start = clock()
    for _ in range(MAXIMUM_REPLAYS):
        run()
        if clock() - start >= SETTLE_SECONDS:
            return
