from __future__ import annotations

import math
import time

import numpy as np
import pytest

from alula.errors import BudgetError, DataError
from alula.numerics import bounds
from tests.oracles import bounds as oracle


class TestExactPaired:
    @pytest.mark.parametrize(("n", "alpha"), [(12, 0.05), (12, 0.2), (25, 0.04), (18, 0.008)])
    def test_covers_at_every_pair_of_rates(self, n, alpha):
        worst = oracle.worst_miss_rate(
            lambda lost, gained: bounds.exact_paired_upper_bound(lost, gained, n, alpha), n, np.linspace(0, 1, 41)
        )
        assert 0.4 * alpha < worst <= alpha  # valid, and not by being empty

    def test_covers_where_rates_are_small(self):
        worst = oracle.worst_miss_rate(
            lambda lost, gained: bounds.exact_paired_upper_bound(lost, gained, 28, 0.05), 28, np.linspace(0, 0.3, 41)
        )
        assert 0.02 < worst <= 0.05

    def test_the_enumeration_sees_an_invalid_bound(self):
        """The approximate limit must fail where the exact one passes, or the tests above prove nothing."""
        worst = oracle.worst_miss_rate(
            lambda lost, gained: bounds.score_upper_limit(lost, gained, 18, 0.04), 18, np.linspace(0, 1, 41)
        )
        assert worst > 0.045

    def test_matches_the_slow_bound(self):
        n, alpha = 5, 0.05
        for (lost, gained), slow in oracle.buehler_bounds(n, alpha).items():
            fast = bounds.exact_paired_upper_bound(lost, gained, n, alpha)
            step = 0.02 * math.sqrt(lost + gained + 1) / n
            assert slow - 0.01 <= fast <= slow + 3 * step + 0.01, (lost, gained, slow, fast)

    @pytest.mark.parametrize("n", [1, 5, 60])
    def test_no_discordant_pair_gives_the_clopper_pearson_zero(self, n):
        """With nothing lost and nothing gained the worst case is p01 = 0, where (1 - D)^n = alpha."""
        exact = 1 - (0.05 * (1 - 0.02)) ** (1 / n)
        assert exact - 1e-6 <= bounds.exact_paired_upper_bound(0, 0, n, 0.05) <= exact + 0.03 / n

    def test_nothing_to_win_is_a_binomial_limit(self):
        """When the original is always right nothing can be gained: the bound is near, not below, Clopper-Pearson's."""
        for lost in (1, 5, 30):
            binomial = bounds.clopper_pearson_interval(lost, 200, 0.1)[1]
            assert binomial - 1e-9 <= bounds.exact_paired_upper_bound(lost, 0, 200, 0.05) <= 1.1 * binomial

    def test_is_monotone(self):
        assert oracle.is_falling([bounds.exact_paired_upper_bound(lost, 3, 50, 0.05) for lost in range(30, -1, -3)])
        assert oracle.is_falling([bounds.exact_paired_upper_bound(9, 4, n, 0.05) for n in (20, 40, 80, 160, 320)])
        assert oracle.is_falling([bounds.exact_paired_upper_bound(9, 4, 99, a) for a in (0.001, 0.01, 0.05, 0.2)])

    def test_extremes(self):
        assert bounds.exact_paired_upper_bound(10, 0, 10, 0.05) == 1.0
        assert bounds.exact_paired_upper_bound(1, 0, 1, 0.05) == 1.0
        all_gained = bounds.exact_paired_upper_bound(0, 10, 10, 0.05)
        assert 1 - 2 * 0.05**0.1 <= all_gained < 0.55  # from P(all gained) = ((1 - D) / 2)^n at pi = 1

    def test_tail_is_closed(self):
        """One lost pair less, or one gained pair more, stays in the tail: what the bound over a cell rests on."""
        for lost, gained, n in [(0, 0, 40), (3, 2, 40), (10, 20, 40), (25, 5, 40), (7, 5, 1000), (0, 40, 40)]:
            for alpha in (0.3, 0.05, 0.001):
                growth = np.diff(bounds._order_outcomes(lost, gained, n, alpha).cutoffs)
                assert growth.min() >= 0
                assert growth.max() <= 1

    def test_cells_bound_what_is_inside(self):
        tail = bounds._order_outcomes(6, 3, 60, 0.05)
        for drop in (-0.1, 0.0, 0.08, 0.2):
            left, right = np.array([0.21]), np.array([0.3])
            cell = bounds._tail_probability(drop, left, right, tail)
            inside = np.linspace(0.21, 0.3, 19)
            assert (bounds._tail_probability(drop, inside, inside, tail) <= cell + 1e-12).all()

    def test_tail_probability_is_the_trinomial_sum(self):
        n, drop, pi = 15, 0.1, 0.3
        tail = bounds._order_outcomes(4, 2, n, 0.05)
        outcomes = oracle.list_outcomes(n)
        inside = outcomes[outcomes[:, 0] <= tail.cutoffs[outcomes.sum(axis=1)]]
        exact = oracle.trinomial(inside, n, (pi + drop) / 2, (pi - drop) / 2).sum()
        found = bounds._tail_probability(drop, np.array([pi]), np.array([pi]), tail)[0]
        assert found == pytest.approx(exact, abs=5e-8)

    def test_large_n_is_quick_and_near_the_score_limit(self):
        begin = time.process_time()
        bound = bounds.exact_paired_upper_bound(1500, 1400, 50_000, 0.05)
        assert time.process_time() - begin < 10  # a hundredfold slip; the figure itself is in the benchmark
        assert bound == pytest.approx(bounds.score_upper_limit(1500, 1400, 50_000, 0.05), rel=0.02)

    @pytest.mark.parametrize("counts", [(-1, 0, 5), (0, -1, 5), (3, 3, 5), (0, 0, 0), (0, 0, -4)])
    def test_refuses_impossible_counts(self, counts):
        with pytest.raises(DataError, match="counts"):
            bounds.exact_paired_upper_bound(*counts, 0.05)

    @pytest.mark.parametrize("alpha", [0.0, 1.0, -0.1, math.nan])
    def test_refuses_impossible_alpha(self, alpha):
        with pytest.raises(BudgetError, match="alpha"):
            bounds.exact_paired_upper_bound(1, 1, 5, alpha)


class TestScoreLimit:
    def test_matches_numeric_maximisation(self):
        for lost, gained, n in [(0, 0, 20), (5, 3, 20), (0, 6, 20), (19, 1, 20), (7, 5, 1000), (2, 9, 30)]:
            slow = oracle.score_limit(lost, gained, n, 0.05)
            assert bounds.score_upper_limit(lost, gained, n, 0.05) == pytest.approx(slow, abs=1e-5)

    def test_becomes_walds_for_many_examples(self):
        n, lost, gained = 10**6, 60_000, 50_000
        drop = (lost - gained) / n
        wald = drop + 1.6448536 * math.sqrt((lost + gained) / n - drop**2) / math.sqrt(n)
        assert bounds.score_upper_limit(lost, gained, n, 0.05) == pytest.approx(wald, rel=1e-3)


class TestClopperPearson:
    def test_ends_put_half_of_alpha_outside(self):
        from scipy.stats import binom

        low, high = bounds.clopper_pearson_interval(7, 40, 0.05)
        assert binom.sf(6, 40, low) == pytest.approx(0.025)
        assert binom.cdf(7, 40, high) == pytest.approx(0.025)
        assert bounds.clopper_pearson_interval(0, 9, 0.1)[0] == 0.0
        assert bounds.clopper_pearson_interval(9, 9, 0.1)[1] == 1.0


class TestBetting:
    def test_matches_the_loop(self):
        random = np.random.default_rng(3)
        x = random.normal(0.05, 0.2, 40).clip(-1, 1)
        order = np.random.default_rng(7)
        orders = [order.permutation(x) for _ in range(8)]
        slow = oracle.betting_bound(orders, -1.0, 1.0, 0.05, steps=1000)
        assert bounds.betting_upper_bound(x, -1, 1, 0.05, seed=7) == pytest.approx(slow, abs=2.1e-3)

    @pytest.mark.parametrize("rate", [0.01, 0.1, 0.5])
    def test_misses_rarely(self, rate):
        """Two-point differences at the end of their range: the hardest case; a normal bound misses far too often."""
        random = np.random.default_rng(5)
        n, runs, alpha = 60, 400, 0.1
        samples = (random.random((runs, n)) < rate).astype(float)
        missed = sum(bounds.betting_upper_bound(x, -1, 1, alpha) < rate for x in samples)
        normal = samples.mean(axis=1) + 1.2816 * samples.std(axis=1) / math.sqrt(n)
        assert missed <= alpha * runs
        if rate == 0.01:
            assert (normal < rate).mean() > 2 * alpha

    def test_constant_differences(self):
        assert bounds.betting_upper_bound([1.0] * 50, -1, 1, 0.05) == pytest.approx(1.0, abs=1e-6)
        zero = bounds.betting_upper_bound([0.0] * 1000, -1, 1, 0.05)
        assert 0 < zero < 2 * 0.5 * math.log(20) / 0.9 / 1000 * 1.2  # mu (1/alpha grows as exp(n c (y / mu - 1)))
        assert bounds.betting_upper_bound([0.3], -1, 1, 0.05) <= 1.0

    def test_scales_with_units(self):
        x = np.random.default_rng(0).uniform(-1, 1, 200)
        assert bounds.betting_upper_bound(100 * x, -100, 100, 0.05) == pytest.approx(
            100 * bounds.betting_upper_bound(x, -1, 1, 0.05)
        )

    def test_barely_depends_on_the_seed(self):
        x = np.random.default_rng(0).uniform(-1, 1, 500)
        found = [bounds.betting_upper_bound(x, -1, 1, 0.05, seed=seed) for seed in range(6)]
        assert bounds.betting_upper_bound(x, -1, 1, 0.05, seed=2) == found[2]
        assert np.std(found) < 0.1 * (np.mean(found) - x.mean())

    def test_is_tighter_than_bernstein(self):
        x = np.random.default_rng(1).normal(0.01, 0.05, 1000).clip(-1, 1)
        assert x.mean() < bounds.betting_upper_bound(x, -1, 1, 0.05)
        assert bounds.betting_upper_bound(x, -1, 1, 0.05) < bounds.empirical_bernstein_upper_bound(x, -1, 1, 0.05)


class TestEmpiricalBernstein:
    def test_is_the_theorem(self):
        x, n, log_term = np.array([0.1, -0.2, 0.4, 0.0, 0.3]), 5, math.log(2 / 0.1)
        pairs = sum((a - b) ** 2 for a in x for b in x) / (2 * n * (n - 1))  # V of the paper: over ordered pairs
        slow = x.mean() + math.sqrt(2 * pairs * log_term / n) + 7 * 20 * log_term / (3 * (n - 1))
        assert bounds.empirical_bernstein_upper_bound(x, -10, 10, 0.1) == pytest.approx(min(10, slow))
        many = np.tile(x, 400)
        slow = many.mean() + math.sqrt(2 * many.var(ddof=1) * log_term / 2000) + 7 * 20 * log_term / (3 * 1999)
        assert bounds.empirical_bernstein_upper_bound(many, -10, 10, 0.1) == pytest.approx(slow)

    def test_one_example_says_nothing(self):
        assert bounds.empirical_bernstein_upper_bound([0.0], -1, 1, 0.05) == 1


@pytest.mark.parametrize("bound", [bounds.betting_upper_bound, bounds.empirical_bernstein_upper_bound])
class TestDifferencesRefused:
    @pytest.mark.parametrize(
        ("differences", "low", "high", "message"),
        [
            ([], -1, 1, "at least one"),
            ([[0.0]], -1, 1, "one number per example"),
            ([0.0, math.nan, math.inf], -1, 1, "2 of 3 are not, the first at index 1"),
            ([0.0, 1.5], -1, 1, "1 of 2 do not, the first at index 1: 1.5"),
            ([0.0], 1, 1, "low < high"),
            ([0.0], -math.inf, 1, "finite"),
        ],
    )
    def test_refuses(self, bound, differences, low, high, message):
        with pytest.raises(DataError, match=message):
            bound(differences, low, high, 0.05)

    def test_refuses_alpha(self, bound):
        with pytest.raises(BudgetError, match="alpha"):
            bound([0.0], -1, 1, 1.5)


def _f1(parts):
    right, false_alarms, missed = parts.sum(axis=0)
    return 2 * right / (2 * right + false_alarms + missed)


class TestBootstrap:
    def test_agrees_with_scipys_bca(self):
        from scipy.stats import bootstrap

        random = np.random.default_rng(2)
        x = random.exponential(1.0, 150)  # skewed, so that bias and acceleration matter
        parts = x[:, None]
        ours = bounds.bootstrap_upper_bound(parts, 0 * parts, lambda p: p.mean(), 0.05, resamples=8000)
        theirs = bootstrap(
            (x,), np.mean, confidence_level=0.95, alternative="less", n_resamples=8000, rng=random, method="BCa"
        ).confidence_interval.high
        plain = x.mean() + 1.6449 * x.std() / math.sqrt(150)
        assert ours == pytest.approx(theirs, abs=0.012)
        assert ours > plain + 0.01

    def test_misses_about_as_often_as_said(self):
        random = np.random.default_rng(4)
        missed = 0
        for run in range(150):
            original = random.poisson(2.0, (120, 3))
            candidate = original + random.integers(0, 2, (120, 3)) * np.array([0, 1, 1])
            truth = 4 / (4 + 4) - 4 / (4 + 5)
            missed += bounds.bootstrap_upper_bound(original, candidate, _f1, 0.1, resamples=200, seed=run) < truth
        assert 4 <= missed <= 30  # 15 expected; the ends have a chance below 1 in 1,000 each

    def test_same_seed_same_bound_and_pairs_stay_together(self):
        parts = np.random.default_rng(0).poisson(3.0, (60, 3))
        assert bounds.bootstrap_upper_bound(parts, parts, _f1, 0.05) == 0.0
        worse = parts + np.array([0, 1, 0])
        first = bounds.bootstrap_upper_bound(parts, worse, _f1, 0.05, seed=1)
        assert first == bounds.bootstrap_upper_bound(parts, worse, _f1, 0.05, seed=1)
        assert first > _f1(parts) - _f1(worse)

    def test_one_example(self):
        assert bounds.bootstrap_upper_bound([[1.0]], [[0.5]], lambda p: p.mean(), 0.05) == 0.5

    @pytest.mark.parametrize(
        ("original", "candidate", "message"),
        [
            (np.ones((3, 2)), np.ones((4, 2)), r"\(3, 2\) for the original and \(4, 2\)"),
            (np.ones(3), np.ones(3), "shape"),
            (np.ones((0, 2)), np.ones((0, 2)), "at least one"),
            (np.array([[1.0], [math.nan]]), np.ones((2, 1)), "index 1, 0"),
        ],
    )
    def test_refuses(self, original, candidate, message):
        with pytest.raises(DataError, match=message):
            bounds.bootstrap_upper_bound(original, candidate, _f1, 0.05)

    def test_refuses_scores_that_are_not_finite(self):
        with pytest.raises(DataError, match="drop of all examples"):
            bounds.bootstrap_upper_bound(np.ones((5, 1)), np.ones((5, 1)), lambda p: math.nan, 0.05)

    def test_a_sample_without_a_score_makes_the_bound_infinite(self):
        parts = np.arange(200.0)[:, None]  # a resample misses example 0 in one of three

        def mean_if_complete(sample):
            return sample.mean() if (sample == 0).any() else math.nan

        assert bounds.bootstrap_upper_bound(parts, parts, mean_if_complete, 0.05) == math.inf
        assert bounds.bootstrap_upper_bound(parts, parts, np.mean, 0.05) == 0

    def test_so_does_a_group_without_which_there_is_no_score(self):
        parts = np.arange(200.0)[:, None]
        seen = []

        def mean_of_draws(sample):  # only the groups of the jackknife are smaller than the whole
            seen.append(len(sample))
            return sample.mean() if len(sample) == 200 else math.nan

        assert bounds.bootstrap_upper_bound(parts, parts, mean_of_draws, 0.05, resamples=50) == math.inf
        assert 199 in seen


class TestExamplesNeeded:
    def test_finds_the_smallest_number(self):
        for max_drop in (0.05, 0.01, 0.0031):
            total = 20 + bounds.examples_needed(lambda n: 1 / n, 20, max_drop)
            exact = math.ceil(1 / max_drop)
            assert exact <= total <= math.ceil(exact * 1.001)

    def test_enough_already_and_never(self):
        assert bounds.examples_needed(lambda n: 0.0, 10, 0.0) == 0
        assert bounds.examples_needed(lambda n: 0.5, 10, 0.4) is None

    def test_paired_extrapolation_foretells_the_bound(self):
        lost, gained, n = 12, 8, 1000
        bound = bounds.exact_paired_upper_bound(lost, gained, n, 0.04)
        at = bounds.paired_bound_at(lost, gained, n, bound, 0.04)
        assert at(n) == pytest.approx(bound)
        actual = bounds.exact_paired_upper_bound(60, 40, 5000, 0.04)
        assert at(5000) == pytest.approx(actual, rel=0.03)

    def test_mean_extrapolation_foretells_the_bound(self):
        random = np.random.default_rng(0)
        x = random.normal(0.01, 0.1, 8000).clip(-1, 1)
        few = x[:1000]
        bound = bounds.betting_upper_bound(few, -1, 1, 0.05)
        at = bounds.mean_bound_at(few.mean(), few.std(), bound, 1000, math.log(20))
        assert at(1000) == pytest.approx(bound)
        actual = bounds.betting_upper_bound(x, -1, 1, 0.05) - x.mean()
        assert at(8000) - few.mean() == pytest.approx(actual, rel=0.15)
        assert bounds.mean_bound_at(0.0, 0.0, 1.0, 100, 0.0)(400) == 0.5
