"""The certificate: "the drop is at most X with confidence 1 - alpha on n examples", from scores of two models on them.

It is only worth something on examples that played no part in choosing the candidate. The bounds are in
:mod:`alula.numerics.bounds`, what they assume in docs/certificate.md.

=========================  =====================================================================================
scores                     method
=========================  =====================================================================================
all 0 or 1                 "exact paired": valid for every n
within given bounds        "betting": valid for every n
neither, or a corpus's     "bootstrap (approximate)": right only as n grows; refuses below 30 examples
=========================  =====================================================================================

The verdict "holds" means bound <= max_drop; "not enough examples" that the bound is above and the observed drop below
max_drop; "fails" that the observed drop is itself max_drop or more.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from alula.errors import BudgetError, DataError
from alula.numerics.bounds import (
    Floats,
    betting_upper_bound,
    bootstrap_upper_bound,
    check_finite,
    checked_parts,
    exact_paired_upper_bound,
    examples_needed,
    mean_bound_at,
    paired_bound_at,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import numpy.typing as npt

Method = Literal["exact paired", "betting", "bootstrap (approximate)"]
Verdict = Literal["holds", "fails", "not enough examples"]

_FEWEST_FOR_BOOTSTRAP = 30  # below, too few distinct resamples to tell anything of a tail


@dataclass(frozen=True, slots=True)
class Certificate:
    """What can be said of the drop of a candidate, and how sure it is."""

    max_drop: float  # what the budget allows, in units of the score
    confidence: float  # of the whole: all attempts together are wrong at most 1 - confidence of the time
    drop: float  # observed; positive when the candidate is worse
    bound: float  # upper confidence bound of the true drop; infinity where nothing can be said
    n: int  # examples
    method: Method
    verdict: Verdict
    examples_needed: int | None  # more, for the bound to reach max_drop if the rates persist; None: no number is known
    attempt: int  # 1 for the first candidate that was held against these examples
    alpha_spent: float  # error rate of this attempt alone
    lost: int | None  # examples that the original got right and the candidate wrong; None unless scores are 0 or 1
    gained: int | None  # the opposite
    original_score: float
    candidate_score: float

    def sentence(self, metric: str | None = None, *, labelled: bool = True) -> str:
        """The certificate in plain words; figures are rounded so that they never claim more than was shown.

        Args:
            metric: name of the score, such as "accuracy" (the default for scores that are 0 or 1).
            labelled: False where the score is agreement with the original: nothing is said of right and wrong then.
        """
        name = metric or ("score" if self.lost is None else "accuracy" if labelled else "agreement")
        name = name if labelled else f"{name} with the original"
        words = {"holds": _say_holds, "not enough examples": _say_not_enough, "fails": _say_fails}[self.verdict]
        again = f" This was attempt {self.attempt} on these examples; the confidence counts all attempts together."
        return words(self, name, _observation(self, name, labelled=labelled)) + (again if self.attempt > 1 else "")

    def to_json(self) -> dict[str, Any]:
        """As a plain dictionary for JSON; a bound of infinity becomes None."""
        return asdict(self) | {"bound": self.bound if math.isfinite(self.bound) else None}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Certificate:
        """Back from :meth:`to_json`.

        Raises:
            DataError: a field is missing or unknown, or the verdict or method is none of the known ones.
        """
        names = {field.name for field in fields(cls)}
        if set(data) != names:
            missing, unknown = sorted(names - set(data)), sorted(set(data) - names)
            raise DataError(f"not a certificate: fields missing: {missing}, unknown: {unknown}")
        if data["verdict"] not in get_args(Verdict) or data["method"] not in get_args(Method):
            raise DataError(f"not a certificate: verdict {data['verdict']!r}, method {data['method']!r}")
        return cls(**(dict(data) | {"bound": math.inf if data["bound"] is None else data["bound"]}))


def certify(
    original: npt.ArrayLike,
    candidate: npt.ArrayLike,
    *,
    max_drop: float,
    confidence: float = 0.95,
    attempt: int = 1,
    bounds: tuple[float, float] | None = None,
    higher_is_better: bool = True,
    seed: int = 0,
) -> Certificate:
    """Certify the drop of the mean score, from the scores of both models on the same held-out examples.

    Scores that are all 0 or 1, with bounds that are None or (0, 1), are taken as wrong and right. Do not rely on this
    for a score that could have been something between and merely was not on these examples.

    Args:
        original: score per example of the original, (n,).
        candidate: score per example of the candidate, in the same order, (n,).
        max_drop: the largest mean drop that is allowed, in units of the score.
        confidence: of the whole certificate, all attempts together.
        attempt: how many candidates have been held against these examples, this one included.
        bounds: smallest and largest score possible, where there are such.
        higher_is_better: False for errors and losses: the drop is then candidate - original.
        seed: of the order of bets and of resampling.

    Raises:
        DataError: scores of different lengths, none, not one number per example, not finite, or outside the bounds.
        BudgetError: confidence not strictly between 0 and 1, a negative or infinite max_drop, an attempt below 1.

    >>> certify([1, 1, 1, 0] * 250, [1, 1, 1, 0] * 250, max_drop=0.01).sentence()
    'With 95 % confidence the candidate loses at most 0.33 points of accuracy on data like these: 1,000 held-out
    examples that the search never saw; it got wrong 0 that the original got right, and right 0 that it got wrong
    (exact paired test).'
    """
    before, after = _checked_scores(original, candidate, bounds)
    terms = _checked_terms(max_drop, confidence, attempt)
    differences = (before - after) if higher_is_better else (after - before)  # (n,)
    if bounds in (None, (0, 1)) and bool(np.isin(np.concatenate([before, after]), (0, 1)).all()):
        evidence = _test_paired(differences, terms)
    elif bounds is not None:
        evidence = _test_bounded(differences, bounds[1] - bounds[0], terms, seed)
    else:
        parts = differences[:, None]
        evidence = _test_corpus(parts, np.zeros_like(parts), lambda rows: float(rows.mean()), terms, seed)
    return _conclude(evidence, terms, float(before.mean()), float(after.mean()))


def certify_corpus(
    original_parts: npt.ArrayLike,
    candidate_parts: npt.ArrayLike,
    aggregate: Callable[[Floats], float],
    *,
    max_drop: float,
    confidence: float = 0.95,
    attempt: int = 1,
    higher_is_better: bool = True,
    seed: int = 0,
) -> Certificate:
    """Certify, approximately, the drop of a score of the whole corpus (F1, word error rate, correlation).

    Args:
        original_parts: what the score is made of per example, (n, k): true positives, edits and words, ...
        candidate_parts: the same of the candidate, in the same order, (n, k).
        aggregate: from the parts of any number of examples, (any, k), to one score. Where it gives no finite one for
            some sample of the examples, the bound is infinite.
        max_drop: the largest drop that is allowed, in units of the score.
        confidence: of the whole certificate, all attempts together.
        attempt: how many candidates have been held against these examples, this one included.
        higher_is_better: False for error rates: the drop is then candidate - original.
        seed: of resampling.

    Raises:
        DataError: parts empty, not finite or of different shapes; aggregate raises or returns no finite number for all.
        BudgetError: confidence not strictly between 0 and 1, a negative or infinite max_drop, an attempt below 1.
    """
    terms = _checked_terms(max_drop, confidence, attempt)
    before, after = checked_parts(
        _as_numbers(original_parts, "parts of the original"), _as_numbers(candidate_parts, "parts of the candidate")
    )
    sign = 1.0 if higher_is_better else -1.0

    def score(parts: Floats) -> float:
        return sign * _aggregate(aggregate, parts)

    evidence = _test_corpus(before, after, score, terms, seed)
    return _conclude(evidence, terms, sign * score(before), sign * score(after))


def attempt_alpha(alpha: float, attempt: int) -> float:
    """The error rate that attempt 1, 2, 3 ... may spend: alpha * 0.8 * 0.2^(attempt - 1); they sum to at most alpha.

    A search may hold its second-best candidate against the same examples when the best one fails. The chance that any
    of them is certified wrongly is at most the sum (union bound), as long as the search learns nothing from these
    examples but that the one before failed.

    Raises:
        BudgetError: alpha is not strictly between 0 and 1, or the attempt is below 1.

    >>> [round(attempt_alpha(0.05, attempt), 4) for attempt in (1, 2, 3)]
    [0.04, 0.008, 0.0016]
    """
    if not 0 < alpha < 1:
        raise BudgetError(f"alpha (1 - confidence) must lie strictly between 0 and 1, got {alpha}")
    if attempt < 1:
        raise BudgetError(f"attempts are counted from 1, got {attempt}")
    return alpha * 0.8 * 0.2 ** (attempt - 1)


@dataclass(frozen=True, slots=True)
class _Terms:
    """What was asked for."""

    max_drop: float
    confidence: float
    attempt: int
    alpha: float  # that this attempt may spend


@dataclass(frozen=True, slots=True)
class _Evidence:
    """What one test found."""

    method: Method
    n: int
    drop: float
    bound: float
    bound_at: Callable[[int], float]  # on another number of examples
    lost: int | None = None
    gained: int | None = None


def _test_paired(differences: Floats, terms: _Terms) -> _Evidence:
    lost, gained, n = int((differences > 0).sum()), int((differences < 0).sum()), len(differences)
    bound = exact_paired_upper_bound(lost, gained, n, terms.alpha)
    bound_at = paired_bound_at(lost, gained, n, bound, terms.alpha)
    return _Evidence("exact paired", n, (lost - gained) / n, bound, bound_at, lost, gained)


def _test_bounded(differences: Floats, span: float, terms: _Terms, seed: int) -> _Evidence:
    n, drop, deviation = len(differences), float(differences.mean()), float(differences.std())
    bound = max(drop, betting_upper_bound(differences, -span, span, terms.alpha, seed=seed))
    return _Evidence("betting", n, drop, bound, mean_bound_at(drop, deviation, bound, n, -math.log(terms.alpha)))


def _test_corpus(
    before: Floats, after: Floats, score: Callable[[Floats], float], terms: _Terms, seed: int
) -> _Evidence:
    def score_of_sample(parts: Floats) -> float:
        try:
            return score(parts)
        except DataError:  # the score of all examples is defined, this sample's is not: a class is missing, say
            return math.nan

    n, drop = len(before), score(before) - score(after)
    bound = bootstrap_upper_bound(before, after, score_of_sample, terms.alpha, seed=seed)
    if math.isinf(bound):
        return _Evidence("bootstrap (approximate)", n, drop, bound, lambda _: math.inf)
    if n < _FEWEST_FOR_BOOTSTRAP:
        return _Evidence(
            "bootstrap (approximate)", n, drop, math.inf, lambda k: math.inf if k < _FEWEST_FOR_BOOTSTRAP else drop
        )
    bound = max(drop, bound)
    return _Evidence("bootstrap (approximate)", n, drop, bound, mean_bound_at(drop, 0.0, bound, n, 0.0))


def _conclude(evidence: _Evidence, terms: _Terms, original_score: float, candidate_score: float) -> Certificate:
    verdict: Verdict = "fails"
    if evidence.bound <= terms.max_drop:
        verdict = "holds"
    elif evidence.drop < terms.max_drop:
        verdict = "not enough examples"
    return Certificate(
        max_drop=terms.max_drop,
        confidence=terms.confidence,
        drop=evidence.drop,
        bound=evidence.bound,
        n=evidence.n,
        method=evidence.method,
        verdict=verdict,
        examples_needed=None if verdict == "fails" else examples_needed(evidence.bound_at, evidence.n, terms.max_drop),
        attempt=terms.attempt,
        alpha_spent=terms.alpha,
        lost=evidence.lost,
        gained=evidence.gained,
        original_score=original_score,
        candidate_score=candidate_score,
    )


def _aggregate(aggregate: Callable[[Floats], float], parts: Floats) -> float:
    try:
        value = float(aggregate(parts))
    except Exception as error:
        raise DataError(
            f"the aggregate of the metric must turn parts of shape {parts.shape} into one number; "
            f"it raised {type(error).__name__}: {error}"
        ) from error
    if not math.isfinite(value):
        raise DataError(
            f"the aggregate of the metric must be finite; it gave {value} for parts of shape {parts.shape} with sums "
            f"{parts.sum(axis=0).tolist()}; give examples of every class, or define the score of such ones"
        )
    return value


def _checked_terms(max_drop: float, confidence: float, attempt: int) -> _Terms:
    if not 0 < confidence < 1:
        raise BudgetError(f"confidence must lie strictly between 0 and 1 (0.95 for 95 %), got {confidence}")
    if not (math.isfinite(max_drop) and max_drop >= 0):
        raise BudgetError(f"max_drop must be a number of 0 or more, in units of the score; got {max_drop}")
    return _Terms(float(max_drop), float(confidence), attempt, attempt_alpha(1 - confidence, attempt))


def _checked_scores(
    original: npt.ArrayLike, candidate: npt.ArrayLike, bounds: tuple[float, float] | None
) -> tuple[Floats, Floats]:
    before, after = _as_numbers(original, "scores of the original"), _as_numbers(candidate, "scores of the candidate")
    if before.ndim != 1 or before.shape != after.shape or len(before) == 0:
        raise DataError(
            "scores must be one number per example, of the same examples for both models, at least one; "
            f"got shapes {before.shape} for the original and {after.shape} for the candidate"
        )
    check_finite(before, "scores of the original")
    check_finite(after, "scores of the candidate")
    if bounds is None:
        return before, after
    return _clip_within(before, bounds, "original"), _clip_within(after, bounds, "candidate")


def _clip_within(scores: Floats, bounds: tuple[float, float], owner: str) -> Floats:
    low, high = bounds
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise DataError(f"bounds of a score must be finite, the smaller one first; got {bounds}")
    slack = 1e-6 * (high - low)  # float32 arithmetic gives a cosine of 1.0000001
    outside = np.flatnonzero((scores < low - slack) | (scores > high + slack))
    if len(outside):
        raise DataError(
            f"scores of the {owner} must lie in their bounds [{low}, {high}]; {len(outside)} of {len(scores)} do not, "
            f"the first at index {outside[0]}: {scores[outside[0]]}; correct the scorer or its bounds"
        )
    return np.clip(scores, low, high)


def _as_numbers(values: npt.ArrayLike, what: str) -> Floats:
    try:
        return np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(f"{what} must be numbers in a rectangular array: {error}") from error


def _say_holds(certificate: Certificate, name: str, observation: str) -> str:
    bound = certificate.bound
    if bound >= 0:
        claim = f"loses at most {_amount(certificate, bound, name)}"
    else:
        claim = f"gains at least {_amount(certificate, bound, name)}"
    return (
        f"With {_percent(certificate)} confidence the candidate {claim} on data like these: "
        f"{_examples(certificate)}; {observation} ({_test(certificate)})."
    )


def _say_not_enough(certificate: Certificate, name: str, observation: str) -> str:
    needed = certificate.examples_needed
    more = "no number of examples within reach would do"
    if not math.isfinite(certificate.bound):
        more = "more are needed, in which no class is rare; how many cannot be told"
    if needed is not None:
        more = f"about {needed:,} more held-out examples would do, if what was observed persists"
    return (
        f"Not enough examples to tell, with {_percent(certificate)} confidence, that the candidate loses at most "
        f"{_amount(certificate, certificate.max_drop, name)}: {more}. So far: {_examples(certificate)}; "
        f"{observation}; {_what_can_be_said(certificate, name)} ({_test(certificate)})."
    )


def _say_fails(certificate: Certificate, name: str, observation: str) -> str:
    return (
        f"No certificate: the candidate must lose less than {_amount(certificate, certificate.max_drop, name)}, "
        f"and did not on {_examples(certificate)}; {observation}; "
        f"{_what_can_be_said(certificate, name)} ({_test(certificate)})."
    )


def _what_can_be_said(certificate: Certificate, name: str) -> str:
    if not math.isfinite(certificate.bound):
        return "so few examples say nothing of the true loss"
    verb = "loss is at most" if certificate.bound >= 0 else "gain is at least"
    return f"with {_percent(certificate)} confidence its true {verb} {_amount(certificate, certificate.bound, name)}"


def _observation(certificate: Certificate, name: str, *, labelled: bool) -> str:
    if certificate.lost is not None and not labelled:
        return f"it answers differently from the original on {certificate.lost:,} of them"
    if certificate.lost is not None and certificate.gained is not None:
        return (
            f"it got wrong {certificate.lost:,} that the original got right, "
            f"and right {certificate.gained:,} that it got wrong"
        )
    return f"its {name} on them is {certificate.candidate_score:.5g}, the original's {certificate.original_score:.5g}"


def _amount(certificate: Certificate, value: float, name: str) -> str:
    """The size of a bound in words: rounded up (a gain: towards 0), but never past a max_drop that it meets."""
    is_points = certificate.lost is not None
    scaled = 100 * value if is_points else value
    digits = 2 if is_points else (2 - math.floor(math.log10(abs(scaled))) if scaled else 0)
    rounded = math.ceil(scaled * 10.0**digits - 1e-7) / 10.0**digits
    if value <= certificate.max_drop:
        rounded = min(rounded, certificate.max_drop * (100 if is_points else 1))
    figure = f"{abs(rounded):.6g}"
    if not is_points:
        return f"{figure} of {name}"
    return f"{figure} point{'' if figure == '1' else 's'} of {name}"


def _examples(certificate: Certificate) -> str:
    return f"{certificate.n:,} held-out example{'' if certificate.n == 1 else 's'} that the search never saw"


def _test(certificate: Certificate) -> str:
    if certificate.method == "betting":
        return "betting bound, valid for any number of examples"
    return {"exact paired": "exact paired test"}.get(certificate.method, "paired bootstrap, approximate")


def _percent(certificate: Certificate) -> str:
    return f"{100 * certificate.confidence:.6g} %"
