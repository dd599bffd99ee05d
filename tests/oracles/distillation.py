"""Slow textbook versions of the losses of alula.training: loops over plain numbers, from the papers' equations."""

from __future__ import annotations

import math

import numpy as np


def softmax(logits, temperature=1.0):
    weights = [math.exp(z / temperature) for z in logits]
    return [weight / sum(weights) for weight in weights]


def kl(p, q):
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)


def z_scores(logits):
    mean = sum(logits) / len(logits)
    variance = sum((z - mean) ** 2 for z in logits) / len(logits)
    return [(z - mean) / math.sqrt(variance) for z in logits]


def cross_entropy(rows, labels, smoothing=0.0):
    losses = []
    for row, label in zip(rows.tolist(), labels.tolist(), strict=True):
        p = softmax(row)
        wanted = [(1 - smoothing) * (k == label) + smoothing / len(row) for k in range(len(row))]
        losses.append(-sum(w * math.log(p[k]) for k, w in enumerate(wanted) if w))
    return sum(losses) / len(losses)


def binary_cross_entropy(rows, labels):
    losses = []
    for z, y in zip(rows.reshape(-1).tolist(), labels.reshape(-1).tolist(), strict=True):
        s = 1 / (1 + math.exp(-z))
        losses.append(-y * math.log(s) - (1 - y) * math.log(1 - s))
    return sum(losses) / len(losses)


def soft_labels(ours, theirs, temperature, *, standardise=False, reverse=False):
    losses = []
    for row, told in zip(ours.tolist(), theirs.tolist(), strict=True):
        scores = (z_scores(told), z_scores(row)) if standardise else (told, row)
        p, q = (softmax(one, temperature) for one in scores)
        losses.append(temperature**2 * (kl(q, p) if reverse else kl(p, q)))
    return sum(losses) / len(losses)


def decoupled(ours, theirs, labels, alpha, beta, temperature, *, standardise=False):
    losses = []
    for row, told, label in zip(ours.tolist(), theirs.tolist(), labels.tolist(), strict=True):
        scores = (z_scores(told), z_scores(row)) if standardise else (told, row)
        p, q = (softmax(one, temperature) for one in scores)
        target = kl([p[label], 1 - p[label]], [q[label], 1 - q[label]])
        others = [k for k in range(len(p)) if k != label]
        rest = kl([p[k] / (1 - p[label]) for k in others], [q[k] / (1 - q[label]) for k in others])
        losses.append(temperature**2 * (alpha * target + beta * rest))
    return sum(losses) / len(losses)


def hidden(ours, theirs, matrix=None, *, normalise=False):
    """Features last: [n, C], with W [C', C]."""
    errors = []
    for h, g in zip(ours, theirs, strict=True):
        pair = [h if matrix is None else [sum(w * x for w, x in zip(row, h, strict=True)) for row in matrix], g]
        if normalise:
            pair = [[x / math.hypot(*v) for x in v] for v in pair]
        errors += [(a - b) ** 2 for a, b in zip(*pair, strict=True)]
    return sum(errors) / len(errors)


def block_means(maps, size):
    """Maps [B, C, H, W] averaged over blocks, where H and W are multiples of the size."""
    batch, channels, height, width = maps.shape
    made = np.zeros((batch, channels, size, size))
    for y in range(size):
        for x in range(size):
            block = maps[
                :, :, y * height // size : (y + 1) * height // size, x * width // size : (x + 1) * width // size
            ]
            made[:, :, y, x] = block.mean((2, 3))
    return made


def attention_maps(ours, theirs):
    losses = []
    for a, b in zip(ours, theirs, strict=True):
        units = []
        for maps in (a, b):
            energy = [
                sum(float(v) ** 2 for v in maps[:, y, x]) for y in range(maps.shape[1]) for x in range(maps.shape[2])
            ]
            length = math.sqrt(sum(q * q for q in energy))
            units.append([q / length for q in energy])
        losses.append(math.sqrt(sum((p - q) ** 2 for p, q in zip(*units, strict=True))))
    return sum(losses) / len(losses)


def attention_probabilities(ours, theirs, tokens=None):
    losses = []
    for example in range(len(ours)):
        for head in range(ours.shape[1]):
            for row in range(ours.shape[2]):
                if tokens is None or tokens[example, row]:
                    losses.append(kl(theirs[example, head, row].tolist(), ours[example, head, row].tolist()))
    return sum(losses) / len(losses)


def _huber(a, b):
    error = abs(a - b)
    return error * error / 2 if error <= 1 else error - 0.5


def relational(ours, theirs, distance, angle):
    n = len(ours)
    pairs = [(i, j) for i in range(n) for j in range(n) if i != j]
    triples = [(i, j, k) for i, j in pairs for k in range(n) if k not in (i, j)]
    total = 0.0
    if pairs:
        scales = [sum(math.dist(x[i], x[j]) for i, j in pairs) / len(pairs) for x in (ours, theirs)]
        far = [
            [math.dist(x[i], x[j]) / scale for i, j in pairs] for x, scale in zip((ours, theirs), scales, strict=True)
        ]
        total += distance * sum(map(_huber, *far)) / len(pairs)
    if triples:
        turned = [[_cosine(x[i] - x[j], x[k] - x[j]) for i, j, k in triples] for x in (ours, theirs)]
        total += angle * sum(map(_huber, *turned)) / len(triples)
    return total


def _cosine(a, b):
    lengths = math.hypot(*a) * math.hypot(*b)
    return sum(x * y for x, y in zip(a, b, strict=True)) / lengths if lengths else 0.0


def statistics_distance(tensors, remembered):
    """Tensors [B, C, places...] against running (mean, variance) pairs [C]."""
    total = 0.0
    for x, (mean, variance) in zip(tensors, remembered, strict=True):
        for channel in range(x.shape[1]):
            values = x[:, channel].reshape(-1).tolist()
            seen = sum(values) / len(values)
            deviation = math.sqrt(sum((v - seen) ** 2 for v in values) / len(values))
            total += (seen - float(mean[channel])) ** 2 + (deviation - math.sqrt(float(variance[channel]))) ** 2
    return total
