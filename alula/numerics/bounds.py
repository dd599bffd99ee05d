"""Upper confidence bounds of a drop, from scores of an original and a candidate on the same examples.

=========  ====================================================================================================
symbol     meaning
=========  ====================================================================================================
n          examples, drawn independently from the data that the statement is about
D          the true drop: mean score of the original minus that of the candidate; positive when it got worse
alpha      the allowed rate of bounds below D; every bound U here means P(U < D) <= alpha
p10, p01   P(original right, candidate wrong), P(original wrong, candidate right); D = p10 - p01
pi, theta  p10 + p01, the rate of discordant pairs; p10 / pi, the share of them that were lost
lost       count of pairs with the original right and the candidate wrong; gained is the opposite; m = lost + gained
gamma      the part of alpha paid for confining the nuisance parameter pi
X, Y       difference original - candidate in [low, high], and (high - X) / (high - low) in [0, 1]
K(mu)      capital of a gambler who bets that the mean of Y lies above mu
=========  ====================================================================================================

The exact paired bound. Outcomes (lost, gained) are ordered by the upper limit T that Tango's score test gives them, and
the bound is Buehler's for that order, which no other bound with the same order improves on:

    U = sup { d : sup over pi in C of P(T <= T observed | d, pi) > alpha - gamma }
    P(T <= t | d, pi) = sum over m of Bin(m; n, pi) * P(Bin(m, theta) <= c(m)),    theta = (1 + d / pi) / 2

where c(m) is the largest count lost out of m whose T is at most t, and C the Clopper-Pearson interval of pi at level
gamma (Berger and Boos). The supremum over C is bounded, not sampled: the tail is closed under "one lost pair less" and
"one gained pair more", so its probability falls in p10 and rises in p01, and over a cell [a, b] of pi it is at most the
value at p10 = (a + d) / 2, p01 = (b - d) / 2. Cells whose value is too high are halved until the question is settled.

Sources: Buehler, JASA 52 (1957); Berger and Boos, JASA 89 (1994); Tango, Statistics in Medicine 17 (1998); Lloyd and
Moldovan, Statistics in Medicine 26 (2007); Waudby-Smith and Ramdas, JRSS-B 86 (2024); Maurer and Pontil, COLT (2009),
theorem 4; Efron, JASA 82 (1987); Clopper and Pearson, Biometrika 26 (1934).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from alula.errors import BudgetError, DataError

if TYPE_CHECKING:
    from collections.abc import Callable

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

_NUISANCE_SHARE = 0.02  # gamma / alpha
_NEGLIGIBLE = 1e-8  # probability left out at each end of the binomial sum, and added back to the p-value
_LARGEST_BET = 0.9  # of the capital at risk: below 1, so that a single example cannot ruin the gambler
_ORDERS = 8
_JACKKNIFE_GROUPS = 200


def exact_paired_upper_bound(lost: int, gained: int, n: int, alpha: float) -> float:
    """Exact upper confidence bound of the drop for right/wrong scores; P(bound < D) <= alpha whatever p10 and p01 are.

    Args:
        lost: examples that the original got right and the candidate wrong.
        gained: examples that the original got wrong and the candidate right.
        n: all examples, concordant ones included.
        alpha: one-sided error rate.

    Raises:
        DataError: the counts are negative, n is not positive, or lost + gained > n.
        BudgetError: alpha is not strictly between 0 and 1.

    >>> round(exact_paired_upper_bound(0, 0, 300, 0.05), 4)  # the "rule of three": about 3 / n
    0.01
    """
    _check_counts(lost, gained, n)
    _check_alpha(alpha)
    gamma = _NUISANCE_SHARE * alpha
    pi_range = clopper_pearson_interval(lost + gained, n, gamma)
    tail = _order_outcomes(lost, gained, n, alpha)
    step = 0.02 * math.sqrt(lost + gained + 1) / n  # about 1 % of the distance from the observed drop to the bound
    bound = _guess_bound((lost - gained) / n, pi_range, tail, alpha - gamma, step)
    while not _is_rejected(bound, pi_range, tail, alpha - gamma, step):
        bound += step
    return min(bound, 1.0)


def score_upper_limit(lost: float, gained: float, n: int, alpha: float) -> float:
    """Tango's approximate upper limit of the drop: the d whose score statistic is the alpha quantile of a normal.

    Takes fractional counts, so it also serves to extrapolate. Approximate: its coverage is near, not above, 1 - alpha.

    >>> round(score_upper_limit(7, 5, 1000, 0.05), 4)
    0.0085
    """
    from scipy.special import ndtri

    quantile = float(ndtri(alpha))
    low, high = -1.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        if score_statistic(lost, gained, n, middle) <= quantile:
            high = middle
        else:
            low = middle
    return high


def score_statistic(lost: npt.ArrayLike, gained: npt.ArrayLike, n: int, drop: float) -> Floats:
    """(lost - gained - n d) over its standard deviation at the likeliest p10, p01 with p10 - p01 = d (Tango, eq. 3-5).

    With q the likeliest p01:  2 n q^2 - (m - d (2n - lost + gained)) q - gained d (1 - d) = 0,
    and the variance of lost - gained is n (2 q + d (1 - d)).

    Args:
        lost: counts, any shape.
        gained: counts, same shape.
        n: all examples.
        drop: the d that is tested, in [-1, 1].
    """
    lost_, gained_ = np.asarray(lost, dtype=np.float64), np.asarray(gained, dtype=np.float64)
    linear = lost_ + gained_ - drop * (2 * n - lost_ + gained_)
    root = np.sqrt(np.maximum(linear**2 + 8 * n * gained_ * drop * (1 - drop), 0.0))
    q = (linear + root) / (4 * n)
    variance = np.maximum(n * (2 * q + drop * (1 - drop)), 0.0)
    distance = lost_ - gained_ - n * drop
    with np.errstate(divide="ignore", invalid="ignore"):
        statistic = distance / np.sqrt(variance)
    return np.where(np.abs(distance) < 1e-12 * n, 0.0, statistic)


@dataclass(frozen=True)
class _Tail:
    """The outcomes that are no worse than the observed one, and what their probabilities need."""

    cutoffs: Integers  # (n + 1,): c(m), the largest count lost out of m discordant pairs that is in the tail; -1: none
    log_choose: Floats  # (n + 1,): ln of n over m


def _order_outcomes(lost: int, gained: int, n: int, alpha: float) -> _Tail:
    from scipy.special import gammaln

    limit = score_upper_limit(lost, gained, n, alpha)
    observed = float(score_statistic(lost, gained, n, limit)) + 1e-9
    m = np.arange(n + 1)
    low, high = np.full(n + 1, -1), m.copy()  # c(m) lies in [low, high]; -1: nothing is in the tail
    while np.any(low < high):
        middle = (low + high + 1) // 2
        inside = score_statistic(middle, m - middle, n, limit) <= observed
        low, high = np.where(inside, middle, low), np.where(inside, high, middle - 1)
    return _Tail(low, gammaln(n + 1) - gammaln(m + 1) - gammaln(n - m + 1))


def _guess_bound(observed: float, pi_range: tuple[float, float], tail: _Tail, level: float, tolerance: float) -> float:
    """The drop from which on 9 values of pi all reject it; the true bound is here or a little higher."""
    kept, rejected = observed, max(pi_range[1], observed)
    while rejected - kept > tolerance:
        middle = (kept + rejected) / 2
        pi = np.linspace(max(pi_range[0], middle), pi_range[1], 9)
        is_kept = bool((_tail_probability(middle, pi, pi, tail) > level).any())
        kept, rejected = (middle, rejected) if is_kept else (kept, middle)
    return rejected


def _is_rejected(drop: float, pi_range: tuple[float, float], tail: _Tail, level: float, step: float) -> bool:
    """Whether every pi in the range provably gives the tail a probability of at most level at this drop.

    Cells of pi narrower than half a step are not worth deciding: the drop counts as kept.
    """
    low, high = max(pi_range[0], drop), pi_range[1]
    if low > high or drop >= 1:
        return True
    edges = np.linspace(low, high, 9)
    left, right = edges[:-1], edges[1:]
    while True:
        undecided = _tail_probability(drop, left, right, tail) > level
        if not undecided.any():
            return True
        left, right = left[undecided], right[undecided]
        if right[0] - left[0] < step / 2:
            return False
        middle = (left + right) / 2
        left, right = np.concatenate([left, middle]), np.concatenate([middle, right])


def _tail_probability(drop: float, left: Floats, right: Floats, tail: _Tail) -> Floats:
    """Upper bound of P(T <= t) over pi in [left, right], per cell; exact (but for 2e-8) where left = right.

    For drop < 0 a pi below -drop cannot be; such a pi is taken with theta = 0, which keeps the value falling in drop.
    """
    from scipy.special import bdtr, xlog1py, xlogy

    n = len(tail.cutoffs) - 1
    p10 = np.maximum((left + drop) / 2, 0.0)  # (cells,)
    p01 = np.minimum((right - drop) / 2, right)
    pi = p10 + p01
    theta = np.divide(p10, pi, out=np.zeros_like(pi), where=pi > 0)
    # Bernstein: P(|M - n pi| > sqrt(2 L n pi) + L) <= 2 exp(-L)
    half = math.sqrt(2 * n * pi.max() * -math.log(_NEGLIGIBLE)) - math.log(_NEGLIGIBLE)
    first = np.maximum(np.floor(n * pi - half), 0).astype(np.int64)
    m = first[:, None] + np.arange(min(n, int(2 * half) + 2) + 1)  # (cells, window)
    inside = m <= n
    m = np.minimum(m, n)
    log_pmf = tail.log_choose[m] + xlogy(m, pi[:, None]) + xlog1py(n - m, -pi[:, None])
    count = tail.cutoffs[m]
    given_m = np.where(count < 0, 0.0, bdtr(np.maximum(count, 0), m, theta[:, None]))
    probability = np.where(inside, np.exp(log_pmf), 0.0) * given_m
    return np.asarray(np.minimum(probability.sum(axis=1) + 2 * _NEGLIGIBLE, 1.0))


def clopper_pearson_interval(successes: int, n: int, alpha: float) -> tuple[float, float]:
    """Exact two-sided confidence interval of a probability, alpha / 2 on each side.

    >>> [round(end, 4) for end in clopper_pearson_interval(0, 10, 0.05)]
    [0.0, 0.3085]
    """
    from scipy.special import betaincinv

    _check_counts(successes, 0, n)
    _check_alpha(alpha)
    low = 0.0 if successes == 0 else float(betaincinv(successes, n - successes + 1, alpha / 2))
    high = 1.0 if successes == n else float(betaincinv(successes + 1, n - successes, 1 - alpha / 2))
    return low, high


def betting_upper_bound(differences: npt.ArrayLike, low: float, high: float, alpha: float, *, seed: int = 0) -> float:
    """Upper confidence bound of the mean difference, valid for every n and every distribution on [low, high].

    A gambler bets on "the mean of Y is above mu", with Y = (high - X) / (high - low), at predictable plug-in stakes:

        K(mu) = prod over i of (1 + min(lambda_i, c / mu) (Y_i - mu)),    lambda_i = sqrt(2 ln(1/alpha) / (n v_{i-1}))

    with v_{i-1} the variance of the values before i (Waudby-Smith and Ramdas, PrPl stakes for a fixed n, one-sided).
    When mu is the mean, K(mu) has mean 1 and so reaches 1/alpha with probability at most alpha (Markov). The same holds
    for the mean of K over several orders of the examples, which is used: no luck of one order decides. K falls in mu.

    Args:
        differences: original minus candidate, (n,).
        low: smallest possible difference.
        high: largest possible difference.
        alpha: one-sided error rate.
        seed: of the 8 orders in which the examples are taken. Fix it before looking.

    Raises:
        DataError: no differences, not finite, or outside [low, high].
        BudgetError: alpha is not strictly between 0 and 1.

    >>> round(betting_upper_bound([0.0, 0.01] * 500, -1, 1, 0.05), 4)  # the mean is 0.005
    0.0085
    """
    x = _checked_differences(differences, low, high)
    _check_alpha(alpha)
    random = np.random.default_rng(seed)
    y = np.stack([random.permutation((high - x) / (high - low)) for _ in range(_ORDERS)])  # (orders, n)
    stakes = np.sqrt(2 * math.log(1 / alpha) / (y.shape[1] * _variance_before(y)))  # (orders, n)

    def is_rejected(mu: float) -> bool:
        log_capital = np.log1p(np.minimum(stakes, _LARGEST_BET / mu) * (y - mu)).sum(axis=1)  # (orders,)
        return bool(np.logaddexp.reduce(log_capital) >= math.log(_ORDERS / alpha))

    rejected, kept = 0.0, 1.0
    for _ in range(40):
        middle = (rejected + kept) / 2
        rejected, kept = (middle, kept) if is_rejected(middle) else (rejected, middle)
    return high - (high - low) * rejected


def _variance_before(y: Floats) -> Floats:
    """Variance of the values before each one, in rows (orders, n); starts at 1/4, at the weight of one example."""
    count = np.arange(1, y.shape[1] + 1)
    mean = (0.5 + np.cumsum(y, axis=1)) / (1 + count)
    after = (0.25 + np.cumsum((y - mean) ** 2, axis=1)) / (1 + count)
    return np.concatenate([np.full((len(y), 1), 0.25), after[:, :-1]], axis=1)


def empirical_bernstein_upper_bound(differences: npt.ArrayLike, low: float, high: float, alpha: float) -> float:
    """Upper confidence bound of the mean difference in closed form (Maurer and Pontil 2009, theorem 4).

        mean + sqrt(2 V ln(2/alpha) / n) + 7 (high - low) ln(2/alpha) / (3 (n - 1))

    with V the sample variance. Valid for every n, and mostly wider than :func:`betting_upper_bound`. One example
    says nothing: the bound is then high.

    Args:
        differences: original minus candidate, (n,).
        low: smallest possible difference.
        high: largest possible difference.
        alpha: one-sided error rate.

    Raises:
        DataError: no differences, not finite, or outside [low, high].
        BudgetError: alpha is not strictly between 0 and 1.
    """
    x = _checked_differences(differences, low, high)
    _check_alpha(alpha)
    n = len(x)
    if n < 2:
        return high
    log_term = math.log(2 / alpha)
    width = math.sqrt(2 * x.var(ddof=1) * log_term / n) + 7 * (high - low) * log_term / (3 * (n - 1))
    return min(high, float(x.mean()) + width)


def bootstrap_upper_bound(
    original_parts: npt.ArrayLike,
    candidate_parts: npt.ArrayLike,
    aggregate: Callable[[Floats], float],
    alpha: float,
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> float:
    """Approximate upper confidence bound of aggregate(original) - aggregate(candidate), for scores that are no mean.

    Paired bootstrap with bias correction and acceleration (BCa, Efron 1987): the same examples are drawn for both
    models, and the bound is the quantile Phi(z0 + (z0 + z) / (1 - a (z0 + z))) of the resampled drops, with z =
    Phi^-1(1 - alpha). The acceleration a comes from a jackknife over at most 200 groups of examples. Its coverage is
    right only as n grows. Infinity where a sample of the examples has no score (such as one without a positive): then
    the examples are too few to tell.

    Args:
        original_parts: what the score is made of, per example, (n, k): true positives, false positives, ...
        candidate_parts: the same of the candidate, (n, k).
        aggregate: from parts of any number of examples, (any, k), to one score; NaN where a sample has none.
        alpha: one-sided error rate.
        resamples: how often to resample.
        seed: of the resampling.

    Raises:
        DataError: the parts are empty, not finite or of different shapes, or the score of all of them is not finite.
        BudgetError: alpha is not strictly between 0 and 1.
    """
    from scipy.special import ndtr, ndtri

    original, candidate = checked_parts(original_parts, candidate_parts)
    _check_alpha(alpha)
    random = np.random.default_rng(seed)
    n = len(original)

    def drop_on(rows: Integers) -> float:
        return float(aggregate(original[rows])) - float(aggregate(candidate[rows]))

    observed = drop_on(np.arange(n))
    check_finite(np.array([observed]), "the drop of all examples")
    drops = np.sort([drop_on(random.integers(n, size=n)) for _ in range(resamples)])
    acceleration = _acceleration(drop_on, random.permutation(n))
    if not (np.isfinite(drops).all() and math.isfinite(acceleration)):
        return math.inf
    share_below = (np.sum(drops < observed) + np.sum(drops <= observed)) / (2 * resamples)
    bias = float(ndtri(np.clip(share_below, 0.5 / resamples, 1 - 0.5 / resamples)))
    shifted = bias + float(ndtri(1 - alpha))
    stretch = 1 - acceleration * shifted
    level = float(ndtr(bias + shifted / stretch)) if stretch > 0 else 1.0
    return float(drops[min(math.ceil(level * resamples), resamples) - 1])


def _acceleration(drop_on: Callable[[Integers], float], order: Integers) -> float:
    """Skewness of the jackknife values over six, from leaving out one group of examples at a time; NaN if one is."""
    groups = np.array_split(order, min(len(order), _JACKKNIFE_GROUPS))
    if len(groups) < 2:
        return 0.0
    left_out = np.array([drop_on(np.concatenate(groups[:i] + groups[i + 1 :])) for i in range(len(groups))])
    if not np.isfinite(left_out).all():
        return math.nan
    pull = left_out.mean() - left_out
    spread = float((pull**2).sum())
    return 0.0 if spread == 0 else float((pull**3).sum()) / (6 * spread**1.5)


def examples_needed(bound_at: Callable[[int], float], n: int, max_drop: float, *, most: int = 10_000_000) -> int | None:
    """How many more examples would bring a bound down to max_drop, if what was observed persists.

    Args:
        bound_at: the bound expected on a given number of examples; falls as they grow.
        n: the examples at hand.
        max_drop: what the bound must not exceed.
        most: give up beyond this many examples.

    Returns:
        How many to add to n (0: enough already); None where even `most` would not do.

    >>> examples_needed(lambda n: 1 / n, 100, 0.002)
    400
    """
    if bound_at(n) <= max_drop:
        return 0
    enough = n
    while bound_at(enough) > max_drop:
        too_few, enough = enough, 2 * enough
        if too_few >= most:
            return None
    while enough - too_few > max(1, too_few // 1000):
        middle = (too_few + enough) // 2
        too_few, enough = (too_few, middle) if bound_at(middle) <= max_drop else (middle, enough)
    return enough - n


def paired_bound_at(lost: int, gained: int, n: int, bound: float, alpha: float) -> Callable[[int], float]:
    """The exact paired bound to expect on k examples at the observed rates, from the one on n, as a function of k.

    Approximated by Tango's score limit plus what the exact bound at n adds to it, which shrinks as 1 / k.
    """
    excess = bound - score_upper_limit(lost, gained, n, alpha)
    return lambda k: score_upper_limit(lost * k / n, gained * k / n, k, alpha) + excess * n / k


def mean_bound_at(mean: float, deviation: float, bound: float, n: int, log_term: float) -> Callable[[int], float]:
    """The bound of a mean to expect on k examples, from the one on n, as a function of k.

    Approximated by the shape of Bernstein's inequality, s sqrt(2 L / k) + b L / k: b is what makes it meet the bound
    at n. With log_term L = 0 the whole width shrinks as 1 / sqrt(k), as a bootstrap's does.
    """
    width = bound - mean
    slow = width if log_term == 0 else min(width, deviation * math.sqrt(2 * log_term / n))
    return lambda k: mean + slow * math.sqrt(n / k) + (width - slow) * n / k


def check_finite(values: Floats, what: str) -> None:
    """Refuse NaN and infinity, saying how many there are and where the first one is.

    Raises:
        DataError: a value is not finite.
    """
    wrong = np.argwhere(~np.isfinite(values))
    if len(wrong):
        where = ", ".join(str(int(index)) for index in wrong[0])
        raise DataError(
            f"{what} must be finite numbers; {len(wrong)} of {values.size} are not, "
            f"the first at index {where}: {values[tuple(wrong[0])]}"
        )


def _check_alpha(alpha: float) -> None:
    if not 0 < alpha < 1:
        raise BudgetError(f"alpha (1 - confidence) must lie strictly between 0 and 1, got {alpha}")


def _check_counts(lost: int, gained: int, n: int) -> None:
    if n < 1 or lost < 0 or gained < 0 or lost + gained > n:
        raise DataError(
            "counts must not be negative, and together at most n, the examples, of which at least one is needed; "
            f"got lost={lost}, gained={gained}, n={n}"
        )


def _checked_differences(differences: npt.ArrayLike, low: float, high: float) -> Floats:
    x = np.asarray(differences, dtype=np.float64)
    if x.ndim != 1 or len(x) == 0:
        raise DataError(f"differences must be one number per example, of at least one example; got shape {x.shape}")
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise DataError(f"bounds must be finite and low < high, got low={low}, high={high}")
    check_finite(x, "differences")
    slack = 1e-9 * (high - low)  # from float arithmetic
    outside = np.flatnonzero((x < low - slack) | (x > high + slack))
    if len(outside):
        raise DataError(
            f"differences must lie in [{low}, {high}]; {len(outside)} of {len(x)} do not, "
            f"the first at index {outside[0]}: {x[outside[0]]}; give wider bounds"
        )
    return np.clip(x, low, high)


def checked_parts(original_parts: npt.ArrayLike, candidate_parts: npt.ArrayLike) -> tuple[Floats, Floats]:
    """Parts of two models on the same examples, as numbers, (n, k) both.

    Raises:
        DataError: they are empty, not finite or of different shapes.
    """
    original, candidate = (np.asarray(parts, dtype=np.float64) for parts in (original_parts, candidate_parts))
    if original.ndim != 2 or original.shape != candidate.shape or len(original) == 0:
        raise DataError(
            "parts must have shape (examples, parts), the same for both models, with at least one example; "
            f"got {original.shape} for the original and {candidate.shape} for the candidate"
        )
    check_finite(original, "parts of the original")
    check_finite(candidate, "parts of the candidate")
    return original, candidate
