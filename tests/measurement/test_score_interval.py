"""Intervals of scores and drops, against what scipy says and against how often they hold the truth."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from alula.measurement.score_interval import measure_drop, measure_score
from alula.task import Task
from tests.oracles.networks import linear


def task(**changes):
    settings = {
        "parts": {"model": linear()},
        "calibration": [0],
        "evaluation": list(range(8)),
        "scorer": lambda _run, examples: examples,
    }
    return Task(**(settings | changes))


def test_right_and_wrong_by_clopper_and_pearson():
    values = np.array([1.0] * 45 + [0.0] * 5)
    found = measure_score(values, 0.9, task())
    expected = stats.binomtest(45, 50).proportion_ci(0.95, method="exact")
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert (found.value, found.n, found.confidence) == (0.9, 50, 0.95)


def test_all_right_reaches_one():
    found = measure_score(np.ones(20), 1.0, task())
    assert found.high == 1.0
    assert found.low == pytest.approx(0.025 ** (1 / 20))


def test_means_hold_the_truth_about_as_often_as_they_say():
    random, held = np.random.default_rng(0), 0
    for _ in range(60):
        values = random.beta(2, 2, size=120)
        found = measure_score(values, float(values.mean()), task())
        held += found.low <= 0.5 <= found.high
    assert 52 <= held <= 60


def test_a_mean_is_about_two_standard_errors_wide():
    values = np.random.default_rng(1).normal(size=400)
    found = measure_score(values, float(values.mean()), task(bounds=None))
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * values.std() / 20, rel=0.2)
    assert measure_score(values, float(values.mean()), task(bounds=None)) == found, "the same seed, the same interval"


def test_pairs_are_surer_than_two_scores_apart():
    before = np.array([1.0] * 180 + [0.0] * 20)
    after = before.copy()
    after[:2] = 0
    found = measure_drop(before, after, 0.01, task())
    alone = measure_score(after, float(after.mean()), task())
    assert found.low < 0.01 < found.high
    assert found.high - found.low < 0.6 * (alone.high - alone.low)


def test_the_drop_of_an_error_counts_the_other_way():
    before, after = np.zeros(100), np.array([1.0] * 10 + [0.0] * 90)
    found = measure_drop(before, after, 0.1, task(higher_is_better=False))
    assert 0 < found.low < 0.1 < found.high
    swapped = measure_drop(after, before, -0.1, task(higher_is_better=False))
    assert (swapped.low, swapped.high) == pytest.approx((-found.high, -found.low))


def test_nothing_changed_is_a_drop_of_nothing():
    values = np.random.default_rng(2).random(50)
    found = measure_drop(values, values, 0.0, task())
    assert (found.low, found.value, found.high) == (0.0, 0.0, 0.0)


def test_metrics_of_a_corpus_are_resampled_whole():
    random = np.random.default_rng(3)
    parts = np.stack([random.integers(0, 5, 200), random.integers(5, 10, 200)], axis=1).astype(float)

    def rate(rows):
        return float(rows[:, 0].sum() / rows[:, 1].sum())

    found = measure_score(parts, rate(parts), task(aggregate=rate))
    assert found.low < rate(parts) < found.high
    assert found.high - found.low < 0.1


def test_a_metric_that_some_samples_do_not_define_has_no_interval():
    parts = np.zeros((4, 2))
    parts[0] = 1

    def broken(rows):
        if not rows.any():
            raise ValueError("no positives")
        return 1.0

    found = measure_score(parts, 1.0, task(aggregate=broken))
    assert (found.low, found.high) == (None, None)
    assert "undefined" in found.method
