from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest

from alula.errors import DataError
from alula.numerics import metrics
from tests.oracles import metrics as oracle

SEEDS = range(5)


def draw(seed, n=40, classes=7):
    """Logits with ties, and labels."""
    generator = np.random.default_rng(seed)
    return generator.integers(-3, 4, size=(n, classes)).astype(np.float32), generator.integers(0, classes, size=n)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", ["accuracy", "top5"])
def test_right_or_wrong_matches_oracle(name, seed):
    outputs, labels = draw(seed)
    assert getattr(metrics, name)(outputs, labels).tolist() == getattr(oracle, name)(outputs, labels)


@pytest.mark.parametrize("seed", SEEDS)
def test_errors_and_cosine_match_oracle(seed):
    x, y = np.random.default_rng(seed).normal(size=(2, 6, 3, 5)).astype(np.float32)
    np.testing.assert_allclose(metrics.cosine(x, y), oracle.cosine(x, y), rtol=1e-12)
    np.testing.assert_allclose(metrics.squared_error(x, y), oracle.power_error(x, y, 2), rtol=1e-12)
    np.testing.assert_allclose(metrics.absolute_error(x, y), oracle.power_error(x, y, 1), rtol=1e-12)


@pytest.mark.parametrize("seed", SEEDS)
def test_agreement_matches_oracle(seed):
    (x, _), (y, _) = draw(seed), draw(seed + 100)
    expected = [float(a == b) for a, b in zip(oracle.predict(x), oracle.predict(y), strict=True)]
    assert metrics.agreement(x, y).tolist() == expected
    assert metrics.agreement(x, x).tolist() == [1.0] * len(x)


@pytest.mark.parametrize("seed", SEEDS)
def test_f1_and_matthews_match_oracle(seed):
    outputs, labels = draw(seed, classes=4)
    predicted = oracle.predict(outputs)
    macro = metrics.f1_of_parts(metrics.f1_macro(outputs, labels))
    assert macro == pytest.approx(oracle.f1(predicted, labels.tolist(), range(4)), abs=1e-12)
    correlation = metrics.matthews_of_parts(metrics.matthews(outputs, labels))
    assert correlation == pytest.approx(oracle.matthews(predicted, labels.tolist(), range(4)), abs=1e-12)


@pytest.mark.parametrize("seed", SEEDS)
def test_f1_of_two_classes_is_of_class_one(seed):
    outputs, labels = draw(seed, classes=2)
    predicted = oracle.predict(outputs)
    expected = oracle.f1(predicted, labels.tolist(), [1])
    parts = metrics.f1(outputs, labels)
    assert parts.shape == (40, 3)
    assert metrics.f1_of_parts(parts) == pytest.approx(expected, abs=1e-12)
    logit = outputs[:, 1] - outputs[:, 0]
    assert (metrics.f1(logit[:, None], labels) == parts).all()


def test_parts_add_up_whatever_the_chunks():
    outputs, labels = draw(3, classes=4)
    for name in ("f1_macro", "matthews"):
        metric = metrics.metric_named(name)
        whole = metric.per_example(outputs, labels)
        chunks = [metric.per_example(outputs[i : i + 7], labels[i : i + 7]) for i in range(0, 40, 7)]
        assert (np.concatenate(chunks) == whole).all()
        assert metric.aggregate(whole) == pytest.approx(metric.aggregate(whole.sum(axis=0, keepdims=True)), abs=1e-12)


@pytest.mark.parametrize("seed", SEEDS)
def test_pearson_and_auc_match_oracle(seed):
    generator = np.random.default_rng(seed)
    x, y = generator.integers(0, 9, size=30).astype(float), generator.integers(0, 2, size=30)
    assert metrics.auc_of_parts(metrics.auc(x, y)) == pytest.approx(oracle.auc(x.tolist(), y.tolist()), abs=1e-12)
    two_columns = np.stack([np.zeros(30), x], axis=1)
    assert (metrics.auc(two_columns, y) == metrics.auc(x, y)).all()
    z = generator.normal(size=30) + 1e6  # far from zero: naive moments would lose the digits
    assert metrics.pearson_of_parts(metrics.pearson(x, z)) == pytest.approx(oracle.pearson(x, z - 1e6), abs=1e-8)


@pytest.mark.parametrize("seed", SEEDS)
def test_overlap_matches_oracle(seed):
    generator = np.random.default_rng(seed)
    logits, mask = generator.normal(size=(5, 4, 3)), generator.integers(0, 2, size=(5, 4, 3))
    expected = oracle.mask_overlap((logits > 0).astype(int), mask, [1])
    np.testing.assert_allclose(metrics.intersection_over_union(logits, mask), expected, rtol=1e-12)
    np.testing.assert_allclose(metrics.intersection_over_union(logits[:, None], mask), expected, rtol=1e-12)
    many, labels = generator.normal(size=(5, 6, 4, 3)), generator.integers(0, 6, size=(5, 4, 3))
    expected = oracle.mask_overlap(many.argmax(axis=1), labels, range(6))
    np.testing.assert_allclose(metrics.intersection_over_union(many, labels), expected, rtol=1e-12)


@pytest.mark.parametrize("seed", range(20))
def test_edit_distance_matches_oracle(seed):
    generator = np.random.default_rng(seed)
    a, b = (tuple(generator.integers(0, 4, size=generator.integers(0, 9)).tolist()) for _ in range(2))
    assert metrics.edit_distance(a, b) == oracle.edit_distance(a, b)
    assert metrics.edit_distance(a, a) == 0
    assert metrics.edit_distance(a, ()) == len(a)


def test_word_error_rate_counts_edits_over_words():
    parts = metrics.word_error_rate(["the cat sat", "", [1, 2, 3]], ["the cat sat down", "hello", [1, 3]])
    assert parts.tolist() == [[1, 4], [1, 1], [1, 2]]
    assert metrics.word_error_rate_of_parts(parts) == pytest.approx(3 / 7)
    assert metrics.word_error_rate_of_parts(metrics.word_error_rate([""], [""])) == 0.0


def test_word_error_rate_refuses_raw_outputs_and_other_lengths():
    with pytest.raises(DataError, match="decode"):
        metrics.word_error_rate(np.ones((2, 3), np.float32), ["a", "b"])
    with pytest.raises(DataError, match="one reference per hypothesis, got 1 for 2"):
        metrics.word_error_rate(["a", "b"], ["a"])


def test_accuracy_of_one_column_is_by_the_sign_of_the_logit():
    outputs = np.array([[-0.1], [0.1], [0.0]])
    assert metrics.accuracy(outputs, np.array([0, 1, 0])).tolist() == [1, 1, 1]
    assert metrics.accuracy(outputs[:, 0], np.array([[1], [0], [1]])).tolist() == [0, 0, 0]


def test_accuracy_of_many_positions_is_their_share():
    outputs = np.eye(3)[np.array([[0, 1, 2, 2], [1, 1, 1, 1]])]  # [2, 4, 3]
    assert metrics.accuracy(outputs, np.array([[0, 1, 2, 0], [0, 0, 0, 0]])).tolist() == [0.75, 0.0]


def test_a_constant_output_earns_no_credit_for_ties():
    outputs, labels = np.zeros((10, 10)), np.arange(10)
    assert metrics.top5(outputs, labels).sum() == 5
    assert metrics.accuracy(outputs, labels).sum() == 1
    assert metrics.pearson_of_parts(metrics.pearson(np.zeros(10), labels)) == 0.0
    assert metrics.matthews_of_parts(metrics.matthews(outputs, labels)) == 0.0
    assert metrics.auc_of_parts(metrics.auc(np.zeros(10), labels % 2)) == 0.5


def test_perfect_outputs_score_the_best():
    labels = np.array([0, 1, 2, 1, 0, 6])
    outputs = np.eye(7)[labels] * 5 - 1
    for name in ("accuracy", "top5", "f1_macro", "matthews"):
        metric = metrics.metric_named(name)
        values = metric.per_example(outputs, labels)
        assert (metric.aggregate(values) if metric.aggregate else values.mean()) == pytest.approx(1.0), name
    assert metrics.auc_of_parts(metrics.auc(labels, labels > 1)) == 1.0
    assert metrics.pearson_of_parts(metrics.pearson(-labels, labels)) == pytest.approx(-1.0)


def test_cosine_of_zero_huge_and_tiny_vectors():
    zero, one = np.zeros((1, 3)), np.ones((1, 3))
    assert metrics.cosine(zero, zero) == 1.0
    assert metrics.cosine(zero, one) == 0.0
    for scale in (1e-300, 1e300, 5e-324):
        assert metrics.cosine(one * scale, one) == pytest.approx(1.0)
    assert metrics.cosine(-one, one) == -1.0


def test_undefined_corpus_metrics_are_nan_not_a_number_that_looks_good():
    assert math.isnan(metrics.auc_of_parts(metrics.auc(np.arange(3.0), np.ones(3))))
    assert math.isnan(metrics.pearson_of_parts(metrics.pearson(np.arange(3.0), np.ones(3))))
    assert metrics.f1_of_parts(np.zeros((4, 3))) == 0.0


def test_empty_masks_agree():
    assert metrics.intersection_over_union(np.full((1, 2, 2), -1.0), np.zeros((1, 2, 2), int)) == 1.0


@pytest.mark.parametrize("name", [name for name in metrics.METRICS if name != "word_error_rate"])
def test_a_nan_output_is_a_nan_score(name):
    shape, labels = (3, 7), np.array([1, 0, 1])
    if name == "f1":
        shape = (3, 2)
    elif name in {"pearson", "auc"}:
        shape = (3,)
    elif name in {"cosine", "agreement", "squared_error", "absolute_error"}:
        labels = np.ones(shape)
    elif name == "intersection_over_union":
        labels = np.ones(shape, int)
    outputs = np.random.default_rng(0).normal(size=shape)
    outputs[1, ...] = np.nan
    values = metrics.METRICS[name].per_example(outputs, labels)
    broken = np.isnan(values) if values.ndim == 1 else np.isnan(values).any(axis=1)
    assert broken.tolist() == [False, True, False]


def test_narrow_floats_are_read():
    outputs, labels = draw(1)
    assert (metrics.accuracy(outputs.astype(ml_dtypes.bfloat16), labels) == metrics.accuracy(outputs, labels)).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: metrics.accuracy(np.ones((3, 2)), np.ones((4,))), r"labels must be shaped \[3\]"),
        (lambda: metrics.accuracy(np.ones((3, 2)), np.ones((3, 2))), r"labels must be shaped \[3\]"),
        (lambda: metrics.accuracy(np.array(["a"]), np.ones(1)), "real numbers"),
        (lambda: metrics.accuracy(np.float32(1), np.ones(1)), "first axis"),
        (lambda: metrics.top5(np.ones((3, 5)), np.ones(3)), "more than 5 classes"),
        (lambda: metrics.f1(np.ones((3, 3)), np.ones(3)), "use f1_macro"),
        (lambda: metrics.cosine(np.ones((3, 3)), np.ones((3, 4))), r"references must be shaped \[3, 3\]"),
        (lambda: metrics.auc(np.ones(3), np.array([0, 1, 2])), "labels 0 and 1"),
        (lambda: metrics.pearson(np.ones((3, 2)), np.ones(3)), "one number per example"),
        (lambda: metrics.metric_named("acuracy"), "known are accuracy, top5"),
    ],
)
def test_what_does_not_fit_is_said(call, message):
    with pytest.raises(DataError, match=message):
        call()


def test_every_metric_is_listed_under_its_own_name():
    assert all(metric.name == name for name, metric in metrics.METRICS.items())
    listed = {id(metric) for metric in metrics.METRICS.values()}
    assert listed == {id(value) for value in vars(metrics).values() if isinstance(value, metrics.Metric)}


@pytest.mark.parametrize("seed", SEEDS)
def test_divergence_of_classes_is_the_textbook_sum(seed):
    x, y = np.random.default_rng(seed).normal(size=(2, 6, 3, 5)) * 3
    p, q = (np.exp(one) / np.exp(one).sum(-1, keepdims=True) for one in (y, x))
    terms = [[sum(a * math.log(a / b) for a, b in zip(*pair, strict=True)) for pair in zip(*rows, strict=True)]
             for rows in zip(p, q, strict=True)]  # fmt: skip
    expected = np.mean(terms, axis=1)
    np.testing.assert_allclose(metrics.class_divergence(x, y), expected, rtol=1e-9)
    np.testing.assert_allclose(metrics.class_divergence(q, p, probabilities=True), expected, rtol=1e-9)
    np.testing.assert_allclose(metrics.class_divergence(x + 1000, x), 0.0, atol=1e-9)


def test_divergence_of_classes_bears_zeros_and_refuses_other_shapes():
    sure = np.eye(3)
    assert metrics.class_divergence(sure, sure, probabilities=True).tolist() == [0, 0, 0]
    assert np.isfinite(metrics.class_divergence(sure[::-1], sure, probabilities=True)).all()
    assert np.isnan(metrics.class_divergence(np.full((1, 3), np.nan), sure[:1])).all()
    with pytest.raises(DataError, match="references must be shaped"):
        metrics.class_divergence(sure, sure[:, :2])
