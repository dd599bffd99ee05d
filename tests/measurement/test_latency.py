from __future__ import annotations

import gc

import numpy as np
import pytest

from alula.measurement.latency import (
    MINIMUM_ROUNDS,
    SETTLE_SECONDS,
    TURN_SECONDS,
    Turn,
    _orders,
    compare_latency,
    measure_spread,
    summarise_latency,
    take_turns,
)
from tests.oracles.timing import FakeClock


def timed(fast=0.002, slow=0.006, *, seconds=2.0, seed=0, **noise):
    clock = FakeClock(seed)
    runs = {"slow": clock.run("slow", slow, **noise), "fast": clock.run("fast", fast, **noise)}
    return take_turns(runs, seconds=seconds, seed=seed, clock=clock), clock


def blocks_of(calls):
    return [name for index, name in enumerate(calls) if index == 0 or calls[index - 1] != name]


def test_known_ratio_is_recovered():
    turns, _ = timed()
    ratio = compare_latency(turns["slow"], turns["fast"])
    assert ratio.value == pytest.approx(3.0)
    assert ratio.low == pytest.approx(3.0)
    assert ratio.unit == "x"
    assert summarise_latency(turns["slow"])["latency_p50_ms"].value == pytest.approx(6.0)


def test_interval_covers_the_true_ratio_under_noise(monkeypatch):
    monkeypatch.setattr(gc, "collect", lambda: 0)  # 100 full collections take longer than the test
    covered = 0
    for seed in range(100):
        turns, _ = timed(seconds=0.5, seed=seed, jitter=0.2)
        ratio = compare_latency(turns["slow"], turns["fast"])
        covered += ratio.low <= 3.0 <= ratio.high
    assert covered >= 90, "at 95 % confidence"


def test_drift_cancels():
    """A machine that becomes 4 times slower during the run: one after the other would be wrong by as much."""
    turns, _ = timed(load=lambda now: 1 + 0.5 * now)
    assert compare_latency(turns["slow"], turns["fast"]).value == pytest.approx(3.0, rel=0.03)


def test_order_alternates():
    turns, clock = timed()
    blocks = blocks_of(clock.calls)
    assert blocks.count("slow") >= len(turns["slow"]) / 2, "never one contender first and then the other"
    assert len(turns["slow"]) == len(turns["fast"])
    assert len(turns["slow"]) % 2 == 0, "every order is followed by its reverse"


def test_every_order_is_followed_by_its_reverse():
    orders = list(_orders(list("abc"), 8, seed=0))
    assert len(orders) == 8
    assert orders[1::2] == [order[::-1] for order in orders[::2]]
    assert all(sorted(order) == list("abc") for order in orders)


def test_seed_draws_the_order():
    orders = [tuple(timed(seed=seed)[1].calls) for seed in (1, 1, 2, 3, 4)]
    assert orders[0] == orders[1]
    assert len(set(orders[1:])) > 1


def test_spends_the_time_it_was_given():
    turns, _ = timed(seconds=2.0)
    assert sum(turn.seconds.sum() for turn in turns["slow"]) == pytest.approx(2.0, rel=0.2)


def test_long_replays_still_get_enough_rounds():
    turns, _ = timed(fast=1.0, slow=2.0, seconds=0.1)
    assert len(turns["fast"]) == MINIMUM_ROUNDS
    assert all(len(turn.seconds) == 1 for turn in turns["fast"])
    assert compare_latency(turns["slow"], turns["fast"]).confidence > 0.95


def test_free_replays_end():
    clock = FakeClock()
    turns = take_turns({"nothing": clock.run("nothing", 0.0)}, seconds=0.1, clock=clock)
    assert len(turns["nothing"]) >= MINIMUM_ROUNDS


def test_turns_open_with_untimed_replays():
    """The first replays after another contender's turn are slow, and must not be counted."""
    clock = FakeClock()
    last = [None, 0.0]

    def run(name):
        def work():
            if last[0] != name:
                last[:] = name, clock.now
            clock.now += 0.010 if clock.now - last[1] < SETTLE_SECONDS else 0.001

        return work

    turns = take_turns({name: run(name) for name in "ab"}, seconds=1.0, clock=clock)
    assert max(turn.seconds.max() for turn in turns["a"]) == pytest.approx(0.001)


def test_collector_rests_and_returns():
    states = []
    take_turns({"a": lambda: states.append(gc.isenabled())}, seconds=0.01)
    assert not any(states)
    assert gc.isenabled()
    with pytest.raises(ZeroDivisionError):
        take_turns({"a": lambda: 1 / 0}, seconds=0.01)
    assert gc.isenabled(), "also after a failure"


def test_energy_of_timed_replays_alone():
    clock = FakeClock()
    turns = take_turns({"a": clock.run("a", 0.01)}, seconds=0.5, clock=clock, meter=lambda: 30 * clock.now)
    assert [turn.energy_j / len(turn.seconds) for turn in turns["a"]] == pytest.approx([0.3] * len(turns["a"]))


def test_tail_percentiles():
    turns = [Turn(np.r_[np.full(99, 0.001), 0.050]) for _ in range(20)]
    summary = summarise_latency(turns)
    assert summary["latency_p50_ms"].value == pytest.approx(1)
    assert summary["latency_p95_ms"].value == pytest.approx(1)
    assert summary["latency_p99_ms"].value > 1
    assert "20 replays took over 3 times the median" in summary["latency_p50_ms"].method
    assert summary["latency_p50_ms"].n == 2000


def test_few_replays_are_said_to_be_few():
    summary = summarise_latency([Turn(np.array([0.5]))] * 8)
    assert "only 8 replays" in summary["latency_p99_ms"].method
    assert "only" not in summary["latency_p50_ms"].method


def test_noisy_machine_is_named():
    calm = [Turn(np.full(5, 0.01 * (1 + 0.01 * (i % 2)))) for i in range(20)]
    restless = [Turn(np.full(5, 0.01 * (1 + (i % 2)))) for i in range(20)]
    assert measure_spread(calm) < 0.02
    assert "noisy" not in compare_latency(calm, calm).method
    assert "noisy machine: turns spread by 67%" in compare_latency(restless, calm).method


def test_turn_length():
    turns, _ = timed()
    assert turns["fast"][0].seconds.sum() == pytest.approx(TURN_SECONDS, rel=0.1)
