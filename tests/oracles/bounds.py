"""Slow textbook versions of alula.numerics.bounds: enumeration, numeric maximisation and plain loops."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
from scipy.optimize import brentq, minimize_scalar
from scipy.stats import binom, norm


def list_outcomes(n):
    """All (lost, gained) with lost + gained <= n, as an array (outcomes, 2)."""
    return np.array([(lost, gained) for lost in range(n + 1) for gained in range(n + 1 - lost)])


def trinomial(outcomes, n, p10, p01):
    """Probability of each outcome, from factorials."""
    counts = np.column_stack([outcomes, n - outcomes.sum(axis=1)])
    chances = (p10, p01, max(0.0, 1 - p10 - p01))
    ways = [math.factorial(n) // math.prod(math.factorial(int(c)) for c in row) for row in counts]
    return np.array(ways, dtype=float) * np.prod([chances[i] ** counts[:, i] for i in range(3)], axis=0)


def worst_miss_rate(bound_of, n, rates):
    """Largest P(bound < D) over pairs of rates: the exact one, by enumeration."""
    outcomes = list_outcomes(n)
    bounds = np.array([bound_of(int(lost), int(gained)) for lost, gained in outcomes])
    return max(
        trinomial(outcomes, n, p10, p01)[bounds < p10 - p01 - 1e-12].sum()
        for p10 in rates
        for p01 in rates
        if p10 + p01 <= 1
    )


def score_limit(lost, gained, n, alpha):
    """Tango's limit with the constrained likelihood maximised numerically."""

    def statistic(drop):
        def minus_log_likelihood(p01):
            chances = (p01 + drop, p01, 1 - 2 * p01 - drop)
            counts = (lost, gained, n - lost - gained)
            return -sum(c * math.log(max(p, 1e-300)) for c, p in zip(counts, chances, strict=True) if c)

        limits = (max(0.0, -drop), (1 - drop) / 2)
        best = minimize_scalar(minus_log_likelihood, bounds=limits, method="bounded", options={"xatol": 1e-12})
        candidates = [*limits, best.x]
        p01 = min(candidates, key=minus_log_likelihood)
        return (lost - gained - n * drop) / math.sqrt(max(n * (2 * p01 + drop - drop**2), 1e-30))

    if statistic(1 - 1e-9) > norm.ppf(alpha):
        return 1.0
    return brentq(lambda drop: statistic(drop) - norm.ppf(alpha), -1 + 1e-9, 1 - 1e-9, xtol=1e-10)


def buehler_bounds(n, alpha, nuisance_share=0.02, steps=200):
    """The exact paired bound of every outcome: the tail enumerated, pi and drop on dense grids."""
    outcomes = list_outcomes(n)
    limits = np.array([score_limit(*outcome, n, alpha) for outcome in outcomes])
    gamma = nuisance_share * alpha
    found = {}
    for outcome, limit in zip(outcomes, limits, strict=True):
        tail = outcomes[limits <= limit + 1e-7]
        m = int(outcome.sum())
        lowest = 0.0 if m == 0 else brentq(lambda p, m=m: binom.sf(m - 1, n, p) - gamma / 2, 0, 1)
        highest = 1.0 if m == n else brentq(lambda p, m=m: binom.cdf(m, n, p) - gamma / 2, 0, 1)
        kept = (outcome[0] - outcome[1]) / n
        for drop in np.linspace(kept, 1, steps):
            rates = np.linspace(max(lowest, abs(drop)), highest, 40) if abs(drop) <= highest else []
            if any(trinomial(tail, n, (pi + drop) / 2, (pi - drop) / 2).sum() > alpha - gamma for pi in rates):
                kept = drop
        found[tuple(int(count) for count in outcome)] = kept
    return found


def betting_bound(orders, low, high, alpha, largest_bet=0.9, steps=20_000):
    """The betting bound, example by example, on a grid of means; orders lists the differences in each order used."""
    n = len(orders[0])
    rejected = 0.0
    for mu in np.linspace(0, 1, steps + 1)[1:]:
        capitals = []
        for order in orders:
            capital, seen, squares = 1.0, [], 0.0
            for difference in order:
                y = (high - difference) / (high - low)
                variance = (0.25 + squares) / (len(seen) + 1)
                stake = min(math.sqrt(2 * math.log(1 / alpha) / (n * variance)), largest_bet / mu)
                capital *= 1 + stake * (y - mu)
                seen.append(y)
                squares += (y - (0.5 + sum(seen)) / (len(seen) + 1)) ** 2
            capitals.append(capital)
        if sum(capitals) / len(capitals) < 1 / alpha:
            break
        rejected = mu
    return high - (high - low) * rejected


def is_falling(values):
    return all(later <= earlier + 1e-12 for earlier, later in pairwise(values))
