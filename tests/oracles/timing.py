"""A clock that moves only when work is done, and the textbook sign-test interval."""

from __future__ import annotations

from itertools import product

import numpy as np


class FakeClock:
    """Seconds that pass only inside the runs it makes."""

    def __init__(self, seed=0):
        self.now = 0.0
        self.calls = []
        self.generator = np.random.default_rng(seed)

    def __call__(self):
        return self.now

    def run(self, name, seconds, *, jitter=0.0, load=lambda _: 1.0):
        """A run that takes ``seconds``, times a log-normal jitter, times what the machine's load makes of it."""

        def work():
            self.calls.append(name)
            self.now += seconds * float(np.exp(jitter * self.generator.standard_normal())) * load(self.now)

        return work


def sign_test_interval(values, confidence):
    """Widest symmetric pair of order statistics that still covers, by counting every sequence of n coin flips."""
    n = len(values)
    heads = np.array([sum(flips) for flips in product((0, 1), repeat=n)])  # values below the median
    ordered, best = sorted(values), None
    for k in range(1, n // 2 + 1):
        coverage = np.mean((heads >= k) & (heads <= n - k))
        if best is None or coverage >= confidence:
            best = ordered[k - 1], ordered[n - k], coverage
    return best
