from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from alula.errors import BudgetError, DataError
from alula.measurement.certificate import Certificate, attempt_alpha, certify, certify_corpus
from alula.numerics.bounds import betting_upper_bound, exact_paired_upper_bound


def _right_or_wrong(lost, gained, n, right=600):
    original = np.zeros(n)
    original[:right] = 1
    candidate = original.copy()
    candidate[:lost] = 0
    candidate[right : right + gained] = 1
    return original, candidate


def _f1(parts):
    right, false_alarms, missed = parts.sum(axis=0)
    return 2 * right / (2 * right + false_alarms + missed)


class TestPaired:
    def test_holds(self):
        certificate = certify(*_right_or_wrong(7, 5, 1000), max_drop=0.01)
        assert certificate.bound == exact_paired_upper_bound(7, 5, 1000, 0.04)
        assert (certificate.verdict, certificate.method) == ("holds", "exact paired")
        assert (certificate.lost, certificate.gained, certificate.n) == (7, 5, 1000)
        assert certificate.drop == pytest.approx(0.002)
        assert (certificate.original_score, certificate.candidate_score) == (0.6, pytest.approx(0.598))
        assert certificate.alpha_spent == pytest.approx(0.04)
        assert certificate.examples_needed == 0

    def test_needs_more_and_that_many_more_do(self):
        certificate = certify(*_right_or_wrong(7, 5, 1000), max_drop=0.005)
        assert certificate.verdict == "not enough examples"
        share = (1000 + certificate.examples_needed) / 1000
        total = round(1000 * share)
        assert exact_paired_upper_bound(round(7 * share), round(5 * share), total, 0.04) == pytest.approx(
            0.005, rel=0.05
        )

    @pytest.mark.parametrize("max_drop", [0.002, 0.0015, 0.0])
    def test_fails_when_the_observed_drop_reaches_max_drop(self, max_drop):
        certificate = certify(*_right_or_wrong(7, 5, 1000), max_drop=max_drop)
        assert certificate.verdict == "fails"
        assert certificate.examples_needed is None

    def test_errors_count_the_other_way(self):
        original, candidate = _right_or_wrong(7, 5, 1000)
        accuracy = certify(original, candidate, max_drop=0.01)
        errors = certify(1 - original, 1 - candidate, max_drop=0.01, higher_is_better=False)
        assert (errors.lost, errors.gained, errors.bound) == (7, 5, accuracy.bound)
        assert errors.original_score == pytest.approx(0.4)

    def test_bounds_of_another_scale_are_not_right_or_wrong(self):
        scores = _right_or_wrong(7, 5, 1000)
        assert certify(*scores, max_drop=0.5, bounds=(0, 1)).method == "exact paired"
        assert certify(*scores, max_drop=0.5, bounds=(0, 5)).method == "betting"

    def test_booleans_and_lists_are_scores_too(self):
        original, candidate = _right_or_wrong(7, 5, 1000)
        expected = certify(original, candidate, max_drop=0.01)
        assert certify(original.astype(bool), candidate.astype(bool).tolist(), max_drop=0.01) == expected

    def test_a_later_attempt_is_held_to_more(self):
        first, second = (certify(*_right_or_wrong(7, 5, 1000), max_drop=0.01, attempt=k) for k in (1, 2))
        assert second.bound == exact_paired_upper_bound(7, 5, 1000, second.alpha_spent)
        assert second.alpha_spent == pytest.approx(0.008)
        assert first.verdict == "holds"
        assert second.verdict == "not enough examples"


class TestBounded:
    def test_is_the_betting_bound_on_the_doubled_range(self):
        random = np.random.default_rng(0)
        original = random.beta(20, 2, 800)
        candidate = np.clip(original - random.normal(0.004, 0.02, 800), 0, 1)
        certificate = certify(original, candidate, max_drop=0.05, bounds=(0, 1), seed=3)
        assert certificate.method == "betting"
        assert certificate.bound == betting_upper_bound(original - candidate, -1, 1, certificate.alpha_spent, seed=3)
        assert (certificate.verdict, certificate.lost, certificate.gained) == ("holds", None, None)
        less = certify(original, candidate, max_drop=0.006, bounds=(0, 1))
        assert less.verdict == "not enough examples"
        assert less.examples_needed > 100

    def test_a_hair_outside_is_rounding(self):
        certificate = certify([1.0] * 99 + [0.5], [1.0000001] * 99 + [0.5], max_drop=0.9, bounds=(0, 1))
        assert certificate.candidate_score <= 1.0

    @pytest.mark.parametrize(
        ("bounds", "message"),
        [((0, 0.5), "2 of 3 do not, the first at index 1"), ((1, 0), "first"), ((0, math.inf), "finite")],
    )
    def test_refuses_wrong_bounds(self, bounds, message):
        with pytest.raises(DataError, match=message):
            certify([0.1, 0.9, 0.8], [0.1, 0.2, 0.3], max_drop=0.1, bounds=bounds)


class TestCorpus:
    def test_unbounded_scores_are_approximate_and_say_so(self):
        random = np.random.default_rng(0)
        loss = random.exponential(1.0, 400)
        certificate = certify(loss, loss + random.normal(0.01, 0.05, 400), max_drop=0.05, higher_is_better=False)
        assert certificate.method == "bootstrap (approximate)"
        assert certificate.verdict == "holds"
        assert 0.005 < certificate.drop < certificate.bound < 0.02
        assert "approximate" in certificate.sentence()

    def test_f1(self):
        random = np.random.default_rng(1)
        before = random.poisson(2.0, (500, 3))
        after = before + (random.random((500, 3)) < 0.02) * np.array([0, 1, 1])
        certificate = certify_corpus(before, after, _f1, max_drop=0.02)
        assert certificate.original_score == pytest.approx(_f1(before))
        assert certificate.drop == pytest.approx(_f1(before) - _f1(after))
        assert certificate.verdict == "holds"
        flipped = certify_corpus(before, after, lambda p: 1 - _f1(p), max_drop=0.02, higher_is_better=False)
        assert flipped.bound == pytest.approx(certificate.bound)
        assert flipped.original_score == pytest.approx(1 - _f1(before))

    def test_few_examples_say_nothing(self):
        certificate = certify_corpus(np.ones((12, 3)), np.ones((12, 3)), _f1, max_drop=0.5)
        assert (certificate.verdict, certificate.bound) == ("not enough examples", math.inf)
        assert certificate.examples_needed == 18
        assert "say nothing" in certificate.sentence()

    @pytest.mark.parametrize("fault", ["nan", "raises"])
    def test_samples_without_a_score_are_too_few_examples(self, fault):
        """As the area under the curve has none without a positive, and scikit-learn's raises."""
        parts = np.zeros((300, 1))
        parts[:2] = 1

        def share_of_positives(sample):
            if not sample.any():
                return math.nan if fault == "nan" else {}["positive"]
            return float(sample.mean())

        certificate = certify_corpus(parts, parts, share_of_positives, max_drop=0.1)
        assert (certificate.verdict, certificate.bound, certificate.examples_needed) == (
            "not enough examples",
            math.inf,
            None,
        )
        assert "how many cannot be told" in certificate.sentence("auc")
        assert "no number" not in certificate.sentence("auc")

    def test_refuses_what_the_users_aggregate_does(self):
        parts = np.ones((40, 2))
        with pytest.raises(DataError, match=r"raised ZeroDivisionError"):
            certify_corpus(parts, parts, lambda p: 1 / 0, max_drop=0.1)
        with pytest.raises(DataError, match="must be finite; it gave nan"):
            certify_corpus(parts, parts, lambda p: math.nan, max_drop=0.1)
        with pytest.raises(DataError, match="one number"):
            certify_corpus(parts, parts, lambda p: p, max_drop=0.1)
        with pytest.raises(DataError, match=r"\(40, 2\) for the original and \(39, 2\)"):
            certify_corpus(parts, parts[:39], _f1, max_drop=0.1)


class TestAttempts:
    @pytest.mark.parametrize("alpha", [0.05, 0.3])
    def test_all_together_spend_at_most_alpha(self, alpha):
        assert sum(attempt_alpha(alpha, attempt) for attempt in range(1, 60)) == pytest.approx(alpha)
        assert attempt_alpha(alpha, 2) == pytest.approx(alpha * 0.16)

    def test_refuses(self):
        with pytest.raises(BudgetError, match="counted from 1"):
            attempt_alpha(0.05, 0)
        with pytest.raises(BudgetError, match="alpha"):
            attempt_alpha(1.0, 1)


class TestRefused:
    @pytest.mark.parametrize(
        ("original", "candidate", "message"),
        [
            ([], [], "at least one"),
            ([1, 0, 1], [1, 0], r"\(3,\) for the original and \(2,\)"),
            ([[1], [0]], [[1], [0]], "one number per example"),
            (
                [1.0, 0.5],
                [math.nan, math.inf],
                "candidate must be finite numbers; 2 of 2 are not, the first at index 0",
            ),
            ([1.0, -math.inf], [1.0, 0.5], "original must be finite numbers; 1 of 2 are not, the first at index 1"),
            (["good"], ["bad"], "must be numbers"),
            ([[1, 2], [3]], [1, 2], "rectangular"),
        ],
    )
    def test_scores(self, original, candidate, message):
        with pytest.raises(DataError, match=message):
            certify(original, candidate, max_drop=0.01)

    @pytest.mark.parametrize("confidence", [0.0, 1.0, 95, math.nan])
    def test_confidence(self, confidence):
        with pytest.raises(BudgetError, match="confidence"):
            certify([1, 0], [1, 0], max_drop=0.01, confidence=confidence)

    @pytest.mark.parametrize("max_drop", [-0.01, math.nan, math.inf])
    def test_max_drop(self, max_drop):
        with pytest.raises(BudgetError, match="max_drop"):
            certify([1, 0], [1, 0], max_drop=max_drop)


class TestWords:
    def test_holds(self):
        assert certify(*_right_or_wrong(7, 5, 1000), max_drop=0.01).sentence() == (
            "With 95 % confidence the candidate loses at most 0.9 points of accuracy on data like these: 1,000 "
            "held-out examples that the search never saw; it got wrong 7 that the original got right, and right 5 that "
            "it got wrong (exact paired test)."
        )

    def test_not_enough(self):
        certificate = certify(*_right_or_wrong(7, 5, 1000), max_drop=0.005, attempt=2)
        words = certificate.sentence("top-1 accuracy")
        assert words.startswith(
            "Not enough examples to tell, with 95 % confidence, that the candidate loses at most 0.5 points"
        )
        assert f"about {certificate.examples_needed:,} more held-out examples would do" in words
        assert words.endswith("This was attempt 2 on these examples; the confidence counts all attempts together.")

    def test_fails(self):
        words = certify(*_right_or_wrong(30, 5, 1000), max_drop=0.01).sentence()
        assert words.startswith("No certificate: the candidate must lose less than 1 point of accuracy, and did not")

    def test_without_labels_nothing_is_said_of_right_and_wrong(self):
        for counts, max_drop in (((7, 0, 1000), 0.02), ((7, 0, 1000), 0.009), ((30, 0, 1000), 0.01)):
            words = certify(*_right_or_wrong(*counts), max_drop=max_drop).sentence("agreement", labelled=False)
            assert f"it answers differently from the original on {counts[0]} of them" in words
            assert "of agreement with the original" in words
            assert not {"right", "wrong"} & set(words.replace(",", "").split())

    def test_gain(self):
        words = certify(*_right_or_wrong(0, 60, 1000), max_drop=0.0).sentence()
        assert "the candidate gains at least 4.72 points of accuracy" in words

    @pytest.mark.parametrize("bound", [0.00731, 0.0999, 0.1, 1e-7, 0.0, -0.003141, -1e-9, 0.0123456])
    @pytest.mark.parametrize("counts", [(7, 5), (None, None)])
    def test_figures_never_claim_more_than_was_shown(self, bound, counts):
        base = certify(*_right_or_wrong(7, 5, 1000), max_drop=0.1)
        words = replace(base, bound=bound, lost=counts[0], gained=counts[1]).sentence()
        figure = float(words.split(" loses at most " if bound >= 0 else " gains at least ")[1].split()[0])
        figure /= 100 if counts[0] else 1
        assert figure >= bound - 1e-9 if bound >= 0 else figure <= -bound
        assert figure <= 0.1


class TestJson:
    @pytest.mark.parametrize("max_drop", [0.01, 0.005, 0.001])
    def test_round_trip(self, max_drop):
        certificate = certify(*_right_or_wrong(7, 5, 1000), max_drop=max_drop)
        assert Certificate.from_json(json.loads(json.dumps(certificate.to_json(), allow_nan=False))) == certificate

    def test_infinity_becomes_null(self):
        certificate = certify_corpus(np.ones((2, 3)), np.ones((2, 3)), _f1, max_drop=0.5)
        assert certificate.to_json()["bound"] is None
        assert Certificate.from_json(certificate.to_json()) == certificate

    def test_refuses_what_is_no_certificate(self):
        data = certify([1, 0], [1, 0], max_drop=0.5).to_json()
        with pytest.raises(DataError, match="missing: \\['bound'\\], unknown: \\['bund'\\]"):
            Certificate.from_json({("bund" if key == "bound" else key): value for key, value in data.items()})
        with pytest.raises(DataError, match="verdict 'sure'"):
            Certificate.from_json(data | {"verdict": "sure"})


def test_import_pulls_in_no_scipy():
    code = "import sys, alula.measurement.certificate; sys.exit('scipy' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
