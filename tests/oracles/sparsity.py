"""Sparsity as the papers write it, weight by weight."""

from __future__ import annotations

import numpy as np


def wanda_mask(weights, norms, amount):
    """Sun et al. 2024, algorithm 1: in each row, the least of |w_ij| ||x_j|| go."""
    mask = np.zeros(weights.shape, bool)
    for i, row in enumerate(weights):
        scores = [(abs(float(w)) * float(norms[j]), j) for j, w in enumerate(row)]
        for _, j in sorted(scores)[: int(amount * len(row))]:
            mask[i, j] = True
    return mask


def group_mask(scores, kept, group):
    """All but the largest of each group of neighbours [k]; the last group is filled up with zeros."""
    mask = np.ones(len(scores), bool)
    for start in range(0, len(scores), group):
        members = range(start, min(start + group, len(scores)))
        for index in sorted(members, key=lambda index: (scores[index], index))[-kept:]:
            mask[index] = False
    return mask


def brain_surgeon(weights, moments, amount, *, block, damping=0.01, pattern=None, run=None):
    """Sequential optimal brain surgery, column by column, each time with the inverse of what may still change.

    Frantar & Alistarh 2023, equations 3 to 5: for the columns F = {j, ...}, removing w_j changes w_F by
    -w_j [H_F^-1]_j: / [H_F^-1]_jj and costs w_j^2 / [H_F^-1]_jj. Masks are chosen when their first column is reached.
    """
    w = np.array(weights, float)
    rows, k = w.shape
    mean = np.trace(moments) / k
    h = np.array(moments, float) + (damping * mean if mean > 0 else 1.0) * np.eye(k)
    zero, mask = w == 0, np.zeros(w.shape, bool)
    inverses = [np.linalg.inv(h[j:, j:]) for j in range(k)]
    for j in range(k):
        within = k if run is None else run
        place = j % within
        if pattern is None and j % block == 0:
            span = range(j, min(j + block, k))
            costs = {(i, c): w[i, c] ** 2 / inverses[c][0, 0] for i in range(rows) for c in span}
            costs.update({(i, c): -1.0 for i, c in costs if zero[i, c]})
            wanted = int(amount * rows * (span[-1] + 1) + 1e-9) - mask.sum()
            for i, c in sorted(costs, key=lambda at: (costs[at], at))[: max(wanted, 0)]:
                mask[i, c] = True
        if pattern is not None and place % pattern[1] == 0:
            span = range(j, j - place + min(place + pattern[1], within))
            for i in range(rows):
                scores = [-1.0 if zero[i, c] else w[i, c] ** 2 / inverses[c][0, 0] for c in span]
                mask[i, span.start : span.stop] = group_mask(scores, *pattern)
        mask[:, j] |= zero[:, j]
        for i in range(rows):
            if mask[i, j]:
                w[i, j:] -= w[i, j] * inverses[j][0] / inverses[j][0, 0]
                w[i, j] = 0
    return w
