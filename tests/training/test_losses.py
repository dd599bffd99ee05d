"""Losses of outputs against textbook loops, finite differences and their limits."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch.autograd import gradcheck

from alula.errors import DataError, RecipeError
from alula.training.losses import BinaryCrossEntropy, CrossEntropy, Decoupled, SoftLabels, SquaredError
from tests.oracles import distillation as oracle

LOGITS = st.integers(2, 6).flatmap(
    lambda classes: st.tuples(*[arrays(np.float64, (3, classes), elements=st.floats(-6, 6, width=16))] * 2)
)
LABELS = torch.tensor([1, 0, 1])


def run(loss, ours, theirs=None, labels=None, **named):
    student = {"scores": torch.as_tensor(ours), **{name: torch.as_tensor(value) for name, value in named.items()}}
    return loss(student, {} if theirs is None else {"scores": torch.as_tensor(theirs)}, labels)


def randn(*shape, seed=0):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@given(LOGITS, st.sampled_from([0.0, 0.1]))
def test_cross_entropy(logits, smoothing):
    found = run(CrossEntropy(smoothing=smoothing), logits[0], labels=LABELS)
    assert found.item() == pytest.approx(oracle.cross_entropy(logits[0], LABELS, smoothing), abs=1e-9)


@given(LOGITS, st.sampled_from([1.0, 4.0]), st.booleans())
def test_soft_labels(logits, temperature, reverse):
    loss = SoftLabels(temperature, direction="reverse" if reverse else "forward")
    expected = oracle.soft_labels(*logits, temperature, reverse=reverse)
    assert run(loss, *logits).item() == pytest.approx(expected, abs=1e-9)


@given(LOGITS, st.sampled_from([1.0, 4.0]))
def test_decoupled(logits, temperature):
    found = run(Decoupled(0.5, 8, temperature), *logits, LABELS)
    assert found.item() == pytest.approx(oracle.decoupled(*logits, LABELS, 0.5, 8, temperature), abs=1e-8)


def test_standardised():
    ours, theirs = randn(5, 7) * 3 + 1, randn(5, 7, seed=1)
    labels = torch.tensor([0, 6, 3, 2, 2])
    soft = oracle.soft_labels(ours, theirs, 2.0, standardise=True)
    assert run(SoftLabels(2, standardise=True), ours, theirs).item() == pytest.approx(soft, rel=1e-4)
    parts = oracle.decoupled(ours, theirs, labels, 1, 8, 2.0, standardise=True)
    assert run(Decoupled(temperature=2, standardise=True), ours, theirs, labels).item() == pytest.approx(
        parts, rel=1e-4
    )


def test_standardised_logits_need_not_match_in_size():
    theirs = randn(5, 7)
    assert run(SoftLabels(standardise=True), 10 * theirs + 3, theirs).item() == pytest.approx(0, abs=1e-9)
    assert run(SoftLabels(), 10 * theirs + 3, theirs).item() > 1


def test_a_head_that_starts_at_zero_has_a_gradient():
    ours = torch.zeros(5, 7, requires_grad=True)
    run(SoftLabels(standardise=True), ours, randn(5, 7).float()).backward()
    assert 0 < ours.grad.abs().max() < 1e3


@pytest.mark.parametrize("loss", [SoftLabels(standardise=True), Decoupled(standardise=True)])
@pytest.mark.parametrize("classes", [1, 2])
def test_two_classes_are_not_standardised(loss, classes):
    with pytest.raises(RecipeError, match="z-scores of two classes"):
        run(loss, randn(3, classes), randn(3, classes))


def test_divergence_in_both_parts_is_that_of_soft_labels():
    """Zhao et al. 2022, equation 6: KL = KL(b) + (1 - p_y) KL(q)."""
    ours, theirs = randn(1, 6), randn(1, 6, seed=1)
    label = torch.tensor([4])
    rest = 1 - float((theirs / 3).softmax(-1)[0, 4])
    torch.testing.assert_close(
        run(Decoupled(1, rest, 3), ours, theirs, label), run(SoftLabels(3), ours, theirs), rtol=1e-12, atol=0
    )


def test_at_high_temperature_logits_are_matched():
    """Hinton et al. 2015, equation 4: T^2 KL becomes the squared error of centred logits / 2K."""
    ours, theirs = randn(4, 5), randn(4, 5, seed=1)
    difference = (ours - ours.mean(-1, keepdim=True)) - (theirs - theirs.mean(-1, keepdim=True))
    expected = (difference**2).sum(-1).mean() / (2 * 5)
    assert run(SoftLabels(1e4), ours, theirs).item() == pytest.approx(expected.item(), rel=1e-3)


def test_without_labels_the_teacher_says_which_class_is_true():
    ours, theirs = randn(4, 5), randn(4, 5, seed=1)
    torch.testing.assert_close(run(Decoupled(), ours, theirs), run(Decoupled(), ours, theirs, theirs.argmax(-1)))


@pytest.mark.parametrize("loss", [SoftLabels(2), SoftLabels(2, direction="reverse"), Decoupled(temperature=2)])
def test_one_logit_is_two_classes(loss):
    ours, theirs, labels = randn(6, 1), randn(6, 1, seed=1), torch.tensor([0, 1, 1, 0, 1, 0])
    two = [torch.cat([torch.zeros_like(z), z], -1) for z in (ours, theirs)]
    expected = run(loss, *two, labels)
    torch.testing.assert_close(run(loss, ours, theirs, labels), expected)
    torch.testing.assert_close(run(loss, ours[:, 0], theirs[:, 0], labels[:, None]), expected)
    told = type(loss)(**{**{name: getattr(loss, name) for name in loss.__dataclass_fields__}, "probabilities": True})
    torch.testing.assert_close(run(told, ours.sigmoid(), theirs.sigmoid(), labels), expected)


def test_one_logit_against_labels():
    ours, labels = randn(6, 1), torch.tensor([0, 1, 1, 0, 1, 0])
    expected = oracle.binary_cross_entropy(ours, labels)
    assert run(CrossEntropy(), ours, labels=labels).item() == pytest.approx(expected)
    assert run(BinaryCrossEntropy(), ours, labels=labels).item() == pytest.approx(expected)


@pytest.mark.parametrize("loss", [CrossEntropy, SoftLabels, Decoupled])
def test_probabilities(loss):
    ours, theirs, labels = randn(3, 5), randn(3, 5, seed=1), torch.tensor([4, 0, 2])
    expected = run(loss(), ours, theirs, labels)
    torch.testing.assert_close(run(loss(probabilities=True), ours.softmax(-1), theirs.softmax(-1), labels), expected)


@pytest.mark.parametrize(
    "loss", [CrossEntropy(probabilities=True), SoftLabels(probabilities=True), Decoupled(probabilities=True)]
)
def test_probabilities_of_0_and_1_are_finite(loss):
    ours = torch.eye(3).requires_grad_()
    value = run(loss, ours, torch.eye(3).roll(1, 0), torch.tensor([1, 2, 0]))
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(ours.grad).all()


@pytest.mark.parametrize("loss", [SoftLabels(1), SoftLabels(1, direction="reverse"), Decoupled(temperature=1)])
def test_classes_that_are_ruled_out_add_nothing(loss):
    ours, theirs, labels = randn(3, 4), randn(3, 4, seed=1), torch.tensor([0, 1, 2])
    expected = run(loss, ours, theirs, labels)
    never = torch.full((3, 1), -math.inf)
    widened = torch.cat([ours, never], -1).requires_grad_()
    value = run(loss, widened, torch.cat([theirs, never], -1), labels)
    torch.testing.assert_close(value, expected)
    value.backward()
    assert torch.isfinite(widened.grad).all()


@pytest.mark.parametrize("loss", [CrossEntropy(), SoftLabels(), Decoupled()])
def test_large_logits_are_stable(loss):
    ours = (1e4 * randn(3, 5).float()).requires_grad_()
    value = run(loss, ours, 1e4 * randn(3, 5, seed=1).float(), torch.tensor([0, 1, 2]))
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(ours.grad).all()


@pytest.mark.parametrize("loss", [CrossEntropy, SoftLabels, Decoupled])
def test_rows_that_are_left_out(loss):
    """Tokens by the label, and by a mask, are as if they were not there; with none left the loss is 0."""
    ours, theirs = randn(2, 3, 5), randn(2, 3, 5, seed=1)
    labels = torch.tensor([[1, 4, -100], [0, -100, -100]])
    kept = labels != -100
    expected = run(loss(), ours[kept], theirs[kept], labels[kept])
    torch.testing.assert_close(run(loss(), ours, theirs, labels), expected)
    whole = torch.where(kept, labels, 2)
    torch.testing.assert_close(run(loss(mask="m"), ours, theirs, whole, m=kept.long()), expected)
    torch.testing.assert_close(run(loss(mask="m"), ours, theirs, labels, m=torch.ones(2, 3)), expected)
    torch.testing.assert_close(run(loss(ignore=-1), ours, theirs, torch.where(kept, labels, -1)), expected)
    nothing = run(loss(), ours.requires_grad_(), theirs, torch.full((2, 3), -100))
    nothing.backward()
    assert nothing.item() == 0
    assert ours.grad.abs().max() == 0


@pytest.mark.parametrize("loss", [CrossEntropy, SoftLabels, Decoupled])
def test_axis_of_the_classes(loss):
    ours, theirs = randn(2, 5, 3, 4), randn(2, 5, 3, 4, seed=1)
    labels = torch.arange(24).view(2, 3, 4) % 5
    rows = [x.movedim(1, -1).reshape(-1, 5) for x in (ours, theirs)]
    expected = run(loss(), *rows, labels.flatten())
    torch.testing.assert_close(run(loss(), ours, theirs, labels), expected)  # maps [B, K, H, W]
    last = [x.movedim(1, -1) for x in (ours, theirs)]
    torch.testing.assert_close(run(loss(axis=-1), *last, labels), expected)
    flat = [x.flatten(2) for x in (ours, theirs)]  # [B, K, n]
    torch.testing.assert_close(run(loss(axis=1), *flat, labels.flatten(1)), expected)
    with pytest.raises(RecipeError, match=r"axis 4 is none of the axes of the output \[2, 5, 3, 4\]"):
        run(loss(axis=4), ours, theirs, labels)


@pytest.mark.parametrize(
    "loss",
    [
        CrossEntropy(smoothing=0.1),
        SoftLabels(2),
        SoftLabels(2, direction="reverse"),
        SoftLabels(2, standardise=True),
        Decoupled(temperature=2),
        Decoupled(temperature=2, standardise=True),
        SquaredError(against="teacher"),
        BinaryCrossEntropy(against="teacher"),
    ],
    ids=str,
)
def test_gradients(loss):
    theirs, labels = randn(3, 4, seed=1), torch.tensor([0, 3, -100])
    assert gradcheck(lambda ours: run(loss, ours, theirs, labels), (randn(3, 4).requires_grad_(),))


@pytest.mark.parametrize("loss", [SoftLabels(2, probabilities=True), BinaryCrossEntropy(probabilities=True)])
def test_gradients_of_probabilities(loss):
    ours = torch.rand(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 0.8 + 0.1
    theirs, labels = ours.roll(1), torch.ones(3, 4)
    assert gradcheck(lambda x: run(loss, x, theirs, labels), (ours.requires_grad_(),))


def test_numbers():
    ours, theirs = randn(4, 3), randn(4, 3, seed=1)
    labels = (theirs > 0).double()
    squares = sum((a - b) ** 2 for a, b in zip(ours.flatten().tolist(), theirs.flatten().tolist(), strict=True)) / 12
    assert run(SquaredError(), ours, labels=theirs).item() == pytest.approx(squares)
    assert run(SquaredError(against="teacher"), ours, theirs).item() == pytest.approx(squares)
    expected = oracle.binary_cross_entropy(ours, labels)
    assert run(BinaryCrossEntropy(), ours, labels=labels).item() == pytest.approx(expected)
    assert run(BinaryCrossEntropy(probabilities=True), ours.sigmoid(), labels=labels).item() == pytest.approx(expected)
    told = oracle.binary_cross_entropy(ours, theirs.sigmoid())
    assert run(BinaryCrossEntropy(against="teacher"), ours, theirs).item() == pytest.approx(told)
    told = run(BinaryCrossEntropy(against="teacher", probabilities=True), ours.sigmoid(), theirs.sigmoid())
    assert told.item() == pytest.approx(run(BinaryCrossEntropy(against="teacher"), ours, theirs).item())


@pytest.mark.parametrize("loss", [SquaredError, BinaryCrossEntropy])
def test_numbers_that_are_left_out(loss):
    ours, labels, kept = randn(2, 3, 5), (randn(2, 3, 5, seed=1) > 0).long(), torch.tensor([[1, 1, 0], [1, 0, 0]])
    expected = run(loss(), ours[kept > 0], labels=labels[kept > 0])
    torch.testing.assert_close(run(loss(mask="m"), ours, labels=labels, m=kept), expected)


def test_labels_of_one_column_are_not_spread_over_the_batch():
    ours = randn(4, 1)
    torch.testing.assert_close(run(SquaredError(), ours, labels=ours[:, 0] + 2).item(), 4.0)


def test_an_output_by_name():
    student, teacher = (
        {"a": randn(3, 4), "b": randn(3, 4, seed=1)},
        {"x": randn(3, 4, seed=2), "b": randn(3, 4, seed=3)},
    )
    torch.testing.assert_close(
        SoftLabels(output=("b", "x"))(student, teacher), run(SoftLabels(), student["b"], teacher["x"])
    )
    torch.testing.assert_close(SoftLabels(output="b")(student, teacher), run(SoftLabels(), student["b"], teacher["b"]))


@pytest.mark.parametrize(
    ("loss", "labels", "message"),
    [
        (CrossEntropy(), None, "compares with labels, and there are none"),
        (SquaredError(), None, "compares with labels, and there are none"),
        (CrossEntropy(), torch.tensor([0, 1]), r"labels must have the shape \[3\], got \[2\]"),
        (CrossEntropy(), torch.zeros(3), "whole numbers that name classes, got torch.float32"),
        (CrossEntropy(), torch.tensor([0, 4, -100]), "labels must be from 0 to 3, got 0 to 4"),
        (Decoupled(), torch.tensor([0, -1, -100]), "labels must be from 0 to 3, got -1 to 0"),
        (SquaredError(), torch.zeros(3, 3), r"labels must have the shape \[3, 4\], got \[3, 3\]"),
        (SoftLabels(mask="m"), None, r"the mask 'm' must have the first axes of \[3\], got the shape \[2\]"),
    ],
)
def test_data_that_do_not_fit(loss, labels, message):
    with pytest.raises(DataError, match=message):
        run(loss, randn(3, 4), randn(3, 4), labels, m=torch.ones(2))


@pytest.mark.parametrize("loss", [SoftLabels(), Decoupled(), SquaredError(against="teacher")])
def test_other_classes_than_the_teacher(loss):
    with pytest.raises(RecipeError, match=r"the same shape, got \[3, 4\] and \[3, 5\]"):
        run(loss, randn(3, 4), randn(3, 5))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SoftLabels(0), "temperature must be above 0"),
        (lambda: Decoupled(temperature=math.nan), "temperature must be above 0"),
        (lambda: SoftLabels(direction="both"), "direction must be 'forward' or 'reverse'"),
        (lambda: Decoupled(alpha=-1), "alpha must be finite and at least 0"),
        (lambda: CrossEntropy(smoothing=1), "smoothing must be at least 0 and below 1"),
        (lambda: SquaredError(against="nobody"), "against must be 'labels' or 'teacher'"),
    ],
)
def test_impossible_settings(make, message):
    with pytest.raises(RecipeError, match=message):
        make()
