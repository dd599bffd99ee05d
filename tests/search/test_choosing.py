from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from alula.budget import Budget
from alula.measurement.measurement import Measurement
from alula.recipe import Recipe
from alula.search.choosing import Terms, closest, non_dominated, rank
from alula.search.result import Candidate, LayerRow
from alula.search.trial import Trial


def trial(name, *, size=50, drop=0.0, ratio=2.0, low=None, distrust="", **measurements) -> Trial:
    found = {key: Measurement(value, "x") for key, value in measurements.items()}
    if ratio is not None:
        found["latency_ratio"] = Measurement(ratio, "x", low, None if low is None else ratio)
    candidate = Candidate(name, Recipe(), size, 0.9 - drop, drop, found)
    return Trial(candidate, np.array([0.9 - drop]), {}, distrust)


def terms(strict=False, **budget) -> Terms:
    original = trial("original", size=100, ratio=1.0, energy_mj=4.0)
    return Terms(Budget(**{"minimize": "size", **budget}), original, 0.01, strict)


def names(trials):
    return [one.name for one in trials]


def test_the_cheapest_comes_first() -> None:
    trials = [trial("a", size=60), trial("b", size=30), trial("c", size=45)]
    assert names(rank(trials, terms())) == ["b", "c", "a"]


def test_of_equally_fast_ones_the_smallest_drop_then_the_smallest_file_then_the_first_comes_first() -> None:
    trials = [
        trial("a", ratio=2.02, drop=0.02),
        trial("b", ratio=2.00, drop=0.01, size=51),
        trial("c", ratio=1.98, drop=0.01, size=50),
        trial("d", ratio=1.97, drop=0.01, size=50),
        trial("slow", ratio=1.5, drop=0.0),
    ]
    assert names(rank(trials, terms(minimize="latency"))) == ["c", "d", "b", "a", "slow"]


def test_noise_within_the_tie_does_not_change_the_order() -> None:
    rng, drops = np.random.default_rng(0), [0.03, 0.01, 0.02]
    orders = set()
    for _ in range(50):
        trials = [trial(str(i), ratio=2 * rng.uniform(0.97, 1.03), drop=drop) for i, drop in enumerate(drops)]
        orders.add(tuple(names(rank(trials, terms(minimize="latency")))))
    assert orders == {("1", "2", "0")}


def test_candidates_that_differ_in_constants_alone_share_their_time() -> None:
    row = LayerRow("model", "conv", "Conv", "int8 x uint8", 10, 10, None, None, "")
    other = replace(row, bits="float32")
    trials = [trial("lucky", ratio=4.0, drop=0.02), trial("a", ratio=2.8), trial("b", ratio=2.7), trial("c", ratio=2.9)]
    trials = [replace(one, candidate=replace(one.candidate, layers=(row,))) for one in trials]
    faster = trial("faster", ratio=3.2, drop=0.03)
    trials.append(replace(faster, candidate=replace(faster.candidate, layers=(other,))))
    assert names(rank(trials, terms(minimize="latency"))) == ["faster", "a", "b", "c", "lucky"]


def test_what_was_not_measured_comes_last_and_is_no_better() -> None:
    unknown = trial("unknown", ratio=None)
    limits = terms(minimize="latency")
    assert names(rank([unknown, trial("slow", ratio=0.5)], limits)) == ["slow", "unknown"]
    assert limits.cost(unknown) == math.inf
    assert not limits.is_better(unknown)


@pytest.mark.parametrize(
    ("ratio", "low", "strict", "better"),
    [(1.2, 1.1, True, True), (1.2, 0.9, True, False), (1.2, 0.9, False, True), (0.9, 0.8, False, False)],
)
def test_faster_means_the_whole_interval_where_it_is_strict(ratio, low, strict, better) -> None:
    assert terms(strict, minimize="latency").is_better(trial("a", ratio=ratio, low=low)) is better


def test_energy_is_compared_with_the_original() -> None:
    assert terms(minimize="energy").cost(trial("a", energy_mj=1.0)) == 0.25


@pytest.mark.parametrize(("energy", "better"), [(3.9, True), (4.0, False)])
def test_energy_is_compared_by_its_value_alone(energy, better) -> None:
    assert terms(strict=True, minimize="energy").is_better(trial("a", energy_mj=energy)) is better


def test_a_candidate_that_holds_lacks_nothing() -> None:
    good = trial("a", drop=0.01)
    assert terms().holds(good)
    assert terms().lacks(good) == ()
    assert terms().distance(good) == 0
    assert not terms().holds(trial("a", distrust="the artifact differs"))


@pytest.mark.parametrize(
    ("budget", "one", "words"),
    [
        ({}, {"drop": 0.03}, "its drop is 0.0300, 0.0200 above the 0.01 allowed"),
        ({}, {"size": 120}, "it does not need less size than the original (1.20x)"),
        ({"minimize": "latency"}, {"ratio": 0.5}, "not faster than the original"),
        ({"max_size_bytes": 40}, {}, "its size is 50 bytes, 10 bytes above the 40 bytes allowed"),
        ({"max_latency_ms": 2.0}, {"latency_p50_ms": 3.0}, "its latency is 3 ms, 1 ms above the 2 ms allowed"),
        ({"max_energy_mj": 2.0}, {"energy_mj": 3.0}, "its energy is 3 mJ, 1 mJ above the 2 mJ allowed"),
        ({"max_memory_bytes": 10}, {"memory_bytes": 30.0}, "its peak memory is 30 bytes, 20 bytes above"),
        ({"max_memory_bytes": 10}, {}, "its peak memory was not measured"),
    ],
)
def test_each_missing_thing_is_said_with_its_distance(budget, one, words) -> None:
    limits, candidate = terms(**budget), trial("a", **one)
    assert [words in text for text in limits.lacks(candidate)] == [True]
    assert limits.distance(candidate) > 0
    assert not limits.holds(candidate)


def test_the_closest_is_the_one_with_the_smallest_excess_that_is_trusted() -> None:
    trials = [trial("a", drop=0.05), trial("b", drop=0.02), trial("c", drop=0.011, distrust="differs")]
    found = closest(trials, terms())
    assert found is not None
    assert found.name == "b"
    assert closest([], terms()) is None


def test_the_front_holds_exactly_what_nothing_beats() -> None:
    rng = np.random.default_rng(1)
    trials = [trial(str(i), size=int(rng.integers(1, 99)), drop=round(rng.uniform(0, 0.1), 2)) for i in range(40)]
    points = {one.name: (one.candidate.drop, one.candidate.size_bytes / 100) for one in trials}
    points["original"] = (0.0, 1.0)
    slow = {
        name
        for name, (drop, cost) in points.items()
        if all(drop < d or cost < c or (drop, cost) == (d, c) for d, c in points.values())
    }
    assert set(non_dominated(trials, terms())) == slow


def test_a_trial_comes_back_from_json_as_it_was() -> None:
    one = trial("a", drop=0.125, energy_mj=3.0, distrust="why")
    back = Trial.from_json(one.to_json())
    assert back.candidate == one.candidate
    assert back.values.tolist() == one.values.tolist()
    assert back.distrust == "why"
