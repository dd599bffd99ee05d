"""Scores: how good outputs are, example by example, and over a corpus.

=========  ==============================================================================================
symbol     meaning
=========  ==============================================================================================
n          examples
C          classes; one column (C = 1, or no class axis) is a single logit: class 1 where it is above 0
tp fp fn   examples of a class found, wrongly found, and missed
s, c       examples in all, and those predicted right
p_k, t_k   how many examples are predicted, and truly are, of class k
=========  ==============================================================================================

A per-example function takes ``outputs`` [n, ...] and ``labels`` [n, ...] and gives one score per example [n], or k
parts per example [n, k] from which a metric of the whole corpus is computed: ``aggregate(parts)``. An example whose
output holds a NaN scores NaN, so that no broken model passes for a merely bad one. Ties go to the first class, as in
argmax.

Sources: Matthews, BBA 405 (1975); Gorodkin, Computational Biology and Chemistry 28 (2004), the K-category form; Hanley
and McNeil, Radiology 143 (1982); Levenshtein, Soviet Physics Doklady 10 (1966).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from alula.errors import DataError

Floats = npt.NDArray[np.float64]
Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Metric:
    """A named way to score.

    Attributes:
        name: what reports call it.
        per_example: outputs [n, ...] and labels [n, ...] in, scores [n] or parts [n, k] out.
        bounds: least and greatest score possible; None where a score has no limit.
        higher_is_better: False for errors.
        aggregate: the corpus metric from parts [n, k]; None: the score is the mean over examples.
        class_axis: axis of ``outputs`` that holds one value per class, where labels are class numbers; else None.
    """

    name: str
    per_example: Callable[[Any, Any], Floats]
    bounds: tuple[float, float] | None = (0.0, 1.0)
    higher_is_better: bool = True
    aggregate: Callable[[Floats], float] | None = None
    class_axis: int | None = None


def accuracy(outputs: Array, labels: Array) -> Floats:
    """1 where the predicted class is the label, else 0; the share of right positions where an example has many.

    Args:
        outputs: logits or probabilities [n, ..., C]; one column or [n]: logits, class 1 above 0.
        labels: class numbers [n, ...].

    Raises:
        DataError: shapes do not fit, or the outputs are not real numbers.
    """
    predicted = _predict(outputs)
    right = predicted == _shaped_as(labels, predicted, "labels")
    return _nan_where_broken(_mean_per_example(right), outputs)


def top5(outputs: Array, labels: Array) -> Floats:
    """1 where the label is among the five highest outputs [n, C], else 0.

    Raises:
        DataError: there are not more than five classes, or shapes do not fit.
    """
    outputs = _real(outputs)
    if outputs.ndim != 2 or outputs.shape[1] <= 5:
        raise DataError(f"top5 needs outputs [examples, more than 5 classes], got {list(outputs.shape)}")
    labels = _shaped_as(labels, outputs[:, 0], "labels").astype(np.int64)[:, None]
    own = np.take_along_axis(outputs, labels, axis=1)  # [n, 1]
    earlier = np.arange(outputs.shape[1]) < labels  # [n, C]
    rank = ((outputs > own) | ((outputs == own) & earlier)).sum(axis=1)
    return _nan_where_broken((rank < 5).astype(np.float64), outputs)


def agreement(outputs: Array, references: Array) -> Floats:
    """Share of positions where two outputs [n, ..., C] predict the same class, per example.

    Raises:
        DataError: shapes differ.
    """
    references = _shaped_as(references, _real(outputs), "references")
    return _nan_where_broken(accuracy(outputs, _predict(references)), references)


def class_divergence(outputs: Array, references: Array, *, probabilities: bool = False) -> Floats:
    """Kullback-Leibler divergence in nats of the classes that outputs tell from those that references tell, by example.

    KL(p || q) = sum_k p_k (log p_k - log q_k), with p from the references (Kullback & Leibler 1951, equation 2.4);
    where an example has many positions, their mean.

    Args:
        outputs: logits or probabilities [n, ..., C].
        references: likewise.
        probabilities: whether they are probabilities already; those of 0 count as the least normal float32.

    Raises:
        DataError: shapes differ.
    """
    references = _shaped_as(references, _real(outputs), "references")
    after, before = (_log_probabilities(array, probabilities) for array in (_real(outputs), references))
    return _nan_where_broken(_mean_per_example((np.exp(before) * (before - after)).sum(-1)), outputs)


def _log_probabilities(array: Array, probabilities: bool) -> Floats:  # noqa: FBT001
    values = np.asarray(array, np.float64)
    if probabilities:
        return np.log(np.maximum(values, float(np.finfo(np.float32).tiny)))
    values = values - values.max(axis=-1, keepdims=True)
    return np.asarray(values - np.log(np.exp(values).sum(axis=-1, keepdims=True)))


def cosine(outputs: Array, references: Array) -> Floats:
    """Cosine of the angle between output and reference, each example flattened; 1 where both are zero, 0 where one is.

    Raises:
        DataError: shapes differ.
    """
    x, y = _flat_pair(outputs, references)
    x, y = _unit(x), _unit(y)
    both_zero = ~x.any(axis=1) & ~y.any(axis=1)
    cosines: Floats = np.where(both_zero, 1.0, np.clip(np.einsum("nd,nd->n", x, y), -1.0, 1.0))
    return cosines


def squared_error(outputs: Array, references: Array) -> Floats:
    """Mean of (output - reference)^2 over each example; lower is better.

    Raises:
        DataError: shapes differ.
    """
    x, y = _flat_pair(outputs, references)
    return _mean_per_example((x - y) ** 2)


def absolute_error(outputs: Array, references: Array) -> Floats:
    """Mean of abs(output - reference) over each example; lower is better.

    Raises:
        DataError: shapes differ.
    """
    x, y = _flat_pair(outputs, references)
    return _mean_per_example(np.abs(x - y))


def intersection_over_union(outputs: Array, labels: Array) -> Floats:
    """Overlap of predicted and true masks, per example: intersection / union; 1 where both are empty.

    With C > 1 classes the mean over the classes that the example's prediction or label shows.

    Args:
        outputs: logits [n, C, ...] of classes, or [n, ...] or [n, 1, ...] of one mask (inside where above 0).
        labels: class numbers, or 0 and 1, [n, ...].

    Raises:
        DataError: shapes do not fit.
    """
    outputs, labels = _real(outputs), _real(labels)
    many = outputs.ndim == labels.ndim + 1 and outputs.shape[1] > 1
    predicted = outputs.argmax(axis=1) if many else (outputs > 0).astype(np.int64)
    labels = _shaped_as(labels, predicted, "labels")
    total, shown = np.zeros(len(outputs)), np.zeros(len(outputs))
    for k in range(outputs.shape[1]) if many else (1,):
        found, true = (predicted == k).reshape(len(outputs), -1), (labels == k).reshape(len(outputs), -1)
        union = (found | true).sum(axis=1)
        total += (found & true).sum(axis=1) / np.maximum(union, 1)
        shown += union > 0
    return _nan_where_broken(np.where(shown > 0, total / np.maximum(shown, 1), 1.0), outputs)


def f1(outputs: Array, labels: Array) -> Floats:
    """Parts (tp, fp, fn) [n, 3] of the F1 score of class 1, from two columns or one logit.

    Raises:
        DataError: there are more than two classes, or shapes do not fit.
    """
    if _classes(outputs) != 2:
        raise DataError(f"f1 is for two classes, got outputs {list(np.shape(outputs))}; use f1_macro")
    return f1_macro(outputs, labels)[:, 1::2]


def f1_macro(outputs: Array, labels: Array) -> Floats:
    """Parts (tp, fp, fn of every class) [n, 3 C] of the F1 score averaged over classes.

    Raises:
        DataError: shapes do not fit.
    """
    predicted, true = _count_classes(outputs, labels)  # [n, positions, C] each
    parts = [predicted & true, predicted & ~true, ~predicted & true]
    return _nan_where_broken(np.concatenate([part.sum(axis=1) for part in parts], axis=1).astype(np.float64), outputs)


def f1_of_parts(parts: Floats) -> float:
    """F1 = 2 tp / (2 tp + fp + fn), averaged over the classes that appear; 0 where none does. ``parts`` [n, 3 C]."""
    tp, fp, fn = parts.sum(axis=0).reshape(3, -1)
    wanted = 2 * tp + fp + fn
    shown = wanted > 0
    return float((2 * tp[shown] / wanted[shown]).mean()) if shown.any() else 0.0


def matthews(outputs: Array, labels: Array) -> Floats:
    """Parts (right, predicted one-hot, true one-hot) [n, 1 + 2 C] of Matthews' correlation coefficient.

    Raises:
        DataError: shapes do not fit.
    """
    predicted, true = _count_classes(outputs, labels)
    right = (predicted & true).any(axis=2).sum(axis=1, keepdims=True)
    parts = np.concatenate([right, predicted.sum(axis=1), true.sum(axis=1)], axis=1)
    return _nan_where_broken(parts.astype(np.float64), outputs)


def matthews_of_parts(parts: Floats) -> float:
    """Gorodkin's R_K = (c s - p.t) / sqrt((s^2 - p.p) (s^2 - t.t)); 0 where predictions or labels are one class."""
    sums = parts.sum(axis=0)
    right, (p, t) = sums[0], sums[1:].reshape(2, -1)
    s = t.sum()
    spread = (s * s - p @ p) * (s * s - t @ t)
    return float((right * s - p @ t) / math.sqrt(spread)) if spread > 0 else 0.0


def pearson(outputs: Array, labels: Array) -> Floats:
    """Parts (output, label) [n, 2] of Pearson's correlation; one number per example.

    Raises:
        DataError: an example has more than one number.
    """
    return np.concatenate([_one_number(outputs, "outputs"), _one_number(labels, "labels")], axis=1)


def pearson_of_parts(parts: Floats) -> float:
    """Correlation of the two columns; 0 where the outputs are constant, NaN where the labels are."""
    x, y = (parts - parts.mean(axis=0)).T
    x_norm, y_norm = float(np.linalg.norm(x)), float(np.linalg.norm(y))
    if y_norm == 0:
        return math.nan
    return float(np.clip(x @ y / (x_norm * y_norm), -1.0, 1.0)) if x_norm > 0 else 0.0


def auc(outputs: Array, labels: Array) -> Floats:
    """Parts (score of class 1, label) [n, 2] of the area under the receiver operating characteristic.

    Args:
        outputs: [n], [n, 1], or two columns [n, 2], whose difference is the score.
        labels: 0 or 1, [n].

    Raises:
        DataError: there are more than two classes, or labels other than 0 and 1.
    """
    outputs = _real(outputs).astype(np.float64)
    if outputs.ndim == 2 and outputs.shape[1] == 2:
        outputs = outputs[:, 1] - outputs[:, 0]
    labels = _one_number(labels, "labels")
    if not np.isin(labels, (0, 1)).all():
        raise DataError(f"auc needs labels 0 and 1, got {np.unique(labels)[:5].tolist()}")
    return np.concatenate([_one_number(outputs, "outputs"), labels], axis=1)


def auc_of_parts(parts: Floats) -> float:
    """P(score of a positive > score of a negative) + half of P(equal); NaN where one of the two kinds is missing."""
    values, place = np.unique(parts[:, 0], return_inverse=True)
    positive = np.bincount(place, weights=parts[:, 1], minlength=len(values))
    negative = np.bincount(place, weights=1 - parts[:, 1], minlength=len(values))
    pairs = positive.sum() * negative.sum()
    below = np.cumsum(negative) - negative
    return float((positive * (below + negative / 2)).sum() / pairs) if pairs > 0 else math.nan


def word_error_rate(hypotheses: Sequence[Any], references: Sequence[Any]) -> Floats:
    """Parts (edits, words of the reference) [n, 2]: the least insertions, deletions and substitutions between them.

    Args:
        hypotheses: texts, split at white space, or sequences of whole numbers or words.
        references: the same, what should have been said.

    Raises:
        DataError: the two lengths differ, or the tokens are fractions (raw network outputs: decode them first).
    """
    if len(hypotheses) != len(references):
        raise DataError(f"there must be one reference per hypothesis, got {len(references)} for {len(hypotheses)}")
    parts = np.zeros((len(references), 2))
    for row, (hypothesis, reference) in enumerate(zip(hypotheses, references, strict=True)):
        said, wanted = _tokens(hypothesis), _tokens(reference)
        parts[row] = edit_distance(said, wanted), len(wanted)
    return parts


def word_error_rate_of_parts(parts: Floats) -> float:
    """Edits / words of all references together (at least one word is counted)."""
    edits, words = parts.sum(axis=0)
    return float(edits / max(words, 1.0))


def edit_distance(a: Sequence[Any], b: Sequence[Any]) -> int:
    """Levenshtein's distance: the fewest insertions, deletions and substitutions that turn ``a`` into ``b``.

    >>> edit_distance("kitten", "sitting")
    3
    """
    codes = {token: code for code, token in enumerate(dict.fromkeys([*a, *b]))}
    b_codes = np.array([codes[token] for token in b], dtype=np.int64)  # [len(b)]
    steps = np.arange(len(b) + 1)
    costs = steps.copy()  # distance of a's first tokens to every prefix of b
    for token in a:
        row = costs + 1  # delete the token
        row[1:] = np.minimum(row[1:], costs[:-1] + (b_codes != codes[token]))
        costs = np.minimum.accumulate(row - steps) + steps  # insert tokens of b
    return int(costs[-1])


ACCURACY = Metric("accuracy", accuracy, class_axis=-1)
TOP5 = Metric("top5", top5, class_axis=-1)
AGREEMENT = Metric("agreement", agreement)
COSINE = Metric("cosine", cosine, bounds=(-1.0, 1.0))
SQUARED_ERROR = Metric("squared_error", squared_error, bounds=None, higher_is_better=False)
ABSOLUTE_ERROR = Metric("absolute_error", absolute_error, bounds=None, higher_is_better=False)
INTERSECTION_OVER_UNION = Metric("intersection_over_union", intersection_over_union, class_axis=1)
F1 = Metric("f1", f1, aggregate=f1_of_parts, class_axis=-1)
F1_MACRO = Metric("f1_macro", f1_macro, aggregate=f1_of_parts, class_axis=-1)
MATTHEWS = Metric("matthews", matthews, (-1.0, 1.0), aggregate=matthews_of_parts, class_axis=-1)
PEARSON = Metric("pearson", pearson, (-1.0, 1.0), aggregate=pearson_of_parts)
AUC = Metric("auc", auc, aggregate=auc_of_parts)
WORD_ERROR_RATE = Metric(
    "word_error_rate", word_error_rate, bounds=None, higher_is_better=False, aggregate=word_error_rate_of_parts
)

METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        ACCURACY,
        TOP5,
        AGREEMENT,
        COSINE,
        SQUARED_ERROR,
        ABSOLUTE_ERROR,
        INTERSECTION_OVER_UNION,
        F1,
        F1_MACRO,
        MATTHEWS,
        PEARSON,
        AUC,
        WORD_ERROR_RATE,
    )
}


def metric_named(name: str) -> Metric:
    """The metric of that name.

    Raises:
        DataError: there is none; the message lists those there are.
    """
    if name not in METRICS:
        raise DataError(f"there is no metric {name!r}; known are {', '.join(METRICS)}, or make your own Metric")
    return METRICS[name]


def _real(values: Any) -> Array:
    """``values`` as an array of real numbers with an example axis; narrow machine-learning floats become float32."""
    array = np.asarray(values)
    if array.dtype.kind not in "fiub":
        if array.dtype.name not in {"bfloat16", "float8_e4m3fn", "float8_e5m2"}:
            raise DataError(f"a metric needs real numbers, got an array of {array.dtype}")
        array = array.astype(np.float32)
    if array.ndim == 0:
        raise DataError("a metric needs one entry per example along the first axis, got a single number")
    return array


def _shaped_as(values: Any, wanted: Array, what: str) -> Array:
    """``values`` in the shape of ``wanted``, where only axes of length one differ."""
    array = _real(values)
    if array.shape[0] != wanted.shape[0] or _long_axes(array) != _long_axes(wanted):
        raise DataError(f"{what} must be shaped {list(wanted.shape)} for these outputs, got {list(array.shape)}")
    return array.reshape(wanted.shape)


def _long_axes(array: Array) -> tuple[int, ...]:
    return tuple(size for size in array.shape[1:] if size != 1)


def _classes(outputs: Array) -> int:
    """Number of classes that outputs [n, ..., C] tell apart; one column tells two."""
    shape = np.shape(outputs)
    return 2 if len(shape) < 2 else max(shape[-1], 2)


def _predict(outputs: Array) -> Array:
    """Class numbers [n, ...] from outputs [n, ..., C]; one column is a logit, above 0 for class 1."""
    outputs = _real(outputs)
    if outputs.ndim == 1:
        return (outputs > 0).astype(np.int64)
    return outputs.argmax(axis=-1) if outputs.shape[-1] > 1 else (outputs[..., 0] > 0).astype(np.int64)


def _count_classes(outputs: Array, labels: Array) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Predicted and true classes as one-hot arrays [n, positions, C]."""
    predicted, classes = _predict(outputs), np.arange(_classes(outputs))
    labels = _shaped_as(labels, predicted, "labels")
    n = len(predicted)
    return predicted.reshape(n, -1, 1) == classes, labels.reshape(n, -1, 1) == classes


def _mean_per_example(values: Array) -> Floats:
    """Mean over all axes but the first."""
    means: Floats = values.reshape(len(values), math.prod(values.shape[1:])).mean(axis=1, dtype=np.float64)
    return means


def _nan_where_broken(scores: Floats, outputs: Array) -> Floats:
    """Scores [n] or [n, k], NaN where the example's outputs hold a NaN."""
    outputs = _real(outputs)
    if outputs.dtype.kind == "f":
        scores[np.isnan(outputs).reshape(len(outputs), -1).any(axis=1)] = math.nan
    return scores


def _flat_pair(outputs: Array, references: Array) -> tuple[Floats, Floats]:
    """Both as float64 [n, d]."""
    outputs = _real(outputs)
    references = _shaped_as(references, outputs, "references")
    shape = (len(outputs), math.prod(outputs.shape[1:]))
    return outputs.reshape(shape).astype(np.float64), references.reshape(shape).astype(np.float64)


def _unit(x: Floats) -> Floats:
    """Rows of length one; zero rows stay zero. Scaled by the largest entry first, so that nothing overflows."""
    largest = np.abs(x).max(axis=1, keepdims=True, initial=0.0)
    scaled = x / np.where(largest > 0, largest, 1.0)
    length = np.linalg.norm(scaled, axis=1, keepdims=True)
    unit: Floats = scaled / np.where(length > 0, length, 1.0)
    return unit


def _one_number(values: Any, what: str) -> Floats:
    """``values`` [n] or [n, 1, ...] as [n, 1]."""
    array = _real(values)
    if array.size != len(array):
        raise DataError(f"{what} must hold one number per example, got {list(array.shape)}")
    return array.reshape(-1, 1).astype(np.float64)


def _tokens(sentence: Any) -> list[Any]:
    if isinstance(sentence, str):
        return sentence.split()
    tokens = np.asarray(sentence).tolist()
    if not isinstance(tokens, list) or any(isinstance(token, float | list) for token in tokens):
        raise DataError("word_error_rate needs texts or sequences of whole numbers; decode the network's outputs first")
    return tokens
