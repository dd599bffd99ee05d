"""Slow textbook versions of alula.numerics.metrics: loops over plain numbers."""

from __future__ import annotations

import math
from functools import cache


def predict(outputs):
    """Class of each row [n, C], first of the largest."""
    return [max(range(len(row)), key=lambda k: (row[k], -k)) for row in outputs.tolist()]


def accuracy(outputs, labels):
    return [float(p == t) for p, t in zip(predict(outputs), labels.tolist(), strict=True)]


def top5(outputs, labels):
    found = []
    for row, label in zip(outputs.tolist(), labels.tolist(), strict=True):
        best = sorted(range(len(row)), key=lambda k: (-row[k], k))[:5]
        found.append(float(label in best))
    return found


def cosine(outputs, references):
    found = []
    for x, y in zip(
        outputs.reshape(len(outputs), -1).tolist(), references.reshape(len(outputs), -1).tolist(), strict=True
    ):
        dot = sum(a * b for a, b in zip(x, y, strict=True))
        found.append(dot / math.sqrt(sum(a * a for a in x)) / math.sqrt(sum(b * b for b in y)))
    return found


def power_error(outputs, references, power):
    found = []
    for x, y in zip(
        outputs.reshape(len(outputs), -1).tolist(), references.reshape(len(outputs), -1).tolist(), strict=True
    ):
        found.append(sum(abs(a - b) ** power for a, b in zip(x, y, strict=True)) / len(x))
    return found


def mask_overlap(predicted, labels, classes):
    """Mean over shown classes of intersection / union, from sets of places."""
    found = []
    for p, t in zip(
        predicted.reshape(len(predicted), -1).tolist(), labels.reshape(len(labels), -1).tolist(), strict=True
    ):
        ratios = []
        for k in classes:
            inside = {i for i, value in enumerate(p) if value == k}
            true = {i for i, value in enumerate(t) if value == k}
            if inside | true:
                ratios.append(len(inside & true) / len(inside | true))
        found.append(sum(ratios) / len(ratios) if ratios else 1.0)
    return found


def f1(predicted, labels, classes):
    """Mean over the shown classes of the harmonic mean of precision and recall."""
    scores = []
    for k in classes:
        tp = sum(p == k == t for p, t in zip(predicted, labels, strict=True))
        found, true = predicted.count(k), labels.count(k)
        if found + true == 0:
            continue
        precision, recall = tp / found if found else 0.0, tp / true if true else 0.0
        scores.append(2 * precision * recall / (precision + recall) if tp else 0.0)
    return sum(scores) / len(scores)


def matthews(predicted, labels, classes):
    """Correlation of the one-hot tables (Gorodkin 2004, eq. 8: covariances summed over classes)."""
    n = len(labels)

    def covariance(a, b):
        total = 0.0
        for k in classes:
            a_mean, b_mean = a.count(k) / n, b.count(k) / n
            total += sum(((x == k) - a_mean) * ((y == k) - b_mean) for x, y in zip(a, b, strict=True))
        return total

    return covariance(predicted, labels) / math.sqrt(covariance(predicted, predicted) * covariance(labels, labels))


def pearson(x, y):
    x_mean, y_mean = sum(x) / len(x), sum(y) / len(y)
    top = sum((a - x_mean) * (b - y_mean) for a, b in zip(x, y, strict=True))
    return top / math.sqrt(sum((a - x_mean) ** 2 for a in x) * sum((b - y_mean) ** 2 for b in y))


def auc(scores, labels):
    """Share of (positive, negative) pairs in the right order; a tie counts half."""
    positive = [s for s, label in zip(scores, labels, strict=True) if label]
    negative = [s for s, label in zip(scores, labels, strict=True) if not label]
    return sum((p > n) + 0.5 * (p == n) for p in positive for n in negative) / (len(positive) * len(negative))


def edit_distance(a, b):
    """By its recursive definition."""

    @cache
    def distance(i, j):
        if i == 0 or j == 0:
            return i + j
        return min(distance(i - 1, j) + 1, distance(i, j - 1) + 1, distance(i - 1, j - 1) + (a[i - 1] != b[j - 1]))

    return distance(len(a), len(b))
