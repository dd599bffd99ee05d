"""What holds for every loss: the teacher stands still, maths is wide, names are told, parts add up."""

from __future__ import annotations

import dataclasses
import pickle

import pytest
import torch

from alula.errors import DataError, RecipeError
from alula.training.loss import Given, Mix, Needs, mean_of
from alula.training.losses import BinaryCrossEntropy, CrossEntropy, Decoupled, SoftLabels, SquaredError
from alula.training.relations import AttentionMaps, Hidden, Relational

IMAGE, WIDE = (4, 3, 5, 5), (4, 6, 5, 5)
LABELS = torch.tensor([0, 3, 1, 2])
AGAINST_TEACHER = [
    SoftLabels(),
    SoftLabels(2, standardise=True, direction="reverse"),
    Decoupled(),
    Decoupled(standardise=True),
    SquaredError(against="teacher"),
    BinaryCrossEntropy(against="teacher"),
    Hidden((("map", "map"), ("tokens", "tokens")), normalise=True),
    AttentionMaps((("map", "map"),)),
    AttentionMaps((("attention", "attention"),), kind="probabilities"),
    AttentionMaps((("attention", "attention"),), kind="scores"),
    Relational((("map", "map"),)),
    Mix(((0.5, SoftLabels()), (2.0, Hidden((("map", "map"),))))),
]


def tensors(seed, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    made = {
        "scores": torch.randn(4, 5, generator=generator),
        "map": torch.randn(IMAGE, generator=generator),
        "tokens": torch.randn(4, 6, 8, generator=generator),
        "attention": torch.randn(4, 2, 6, 6, generator=generator).softmax(-1),
    }
    return {name: tensor.to(dtype).requires_grad_() for name, tensor in made.items()}


@pytest.mark.parametrize("loss", AGAINST_TEACHER, ids=str)
def test_nothing_to_learn_from_an_equal(loss):
    student, teacher = tensors(0), tensors(0)
    value = loss(student, teacher, LABELS)
    value.backward()
    if not isinstance(loss, BinaryCrossEntropy):  # the entropy of the teacher stays
        assert value.item() == pytest.approx(0, abs=1e-6)
    gradients = {name: tensor.grad for name, tensor in student.items() if tensor.grad is not None}
    assert gradients
    for name, gradient in gradients.items():
        common = gradient.mean(-1, keepdim=True) if name == "attention" else 0  # probabilities keep their sum
        assert (gradient - common).abs().max() < 1e-5  # not NaN, which a root at 0 gives


@pytest.mark.parametrize("loss", AGAINST_TEACHER, ids=str)
def test_teacher_gets_no_gradient(loss):
    student, teacher = tensors(0), tensors(1)
    value = loss(student, teacher, LABELS)
    value.backward()
    assert value.item() > 0
    assert all(tensor.grad is None for tensor in teacher.values())


@pytest.mark.parametrize("loss", AGAINST_TEACHER, ids=str)
def test_half_precision_is_computed_in_float32(loss):
    student, teacher = tensors(0, torch.bfloat16), tensors(1, torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        value = loss(student, teacher, LABELS)
    assert value.dtype == torch.float32
    wide = [{name: tensor.detach().double() for name, tensor in one.items()} for one in (student, teacher)]
    assert value.item() == pytest.approx(loss(*wide, LABELS).item(), rel=1e-5)


@pytest.mark.parametrize("loss", AGAINST_TEACHER, ids=str)
def test_losses_are_configurations(loss):
    assert pickle.loads(pickle.dumps(loss)) == loss
    assert hash(loss) == hash(dataclasses.replace(loss))


@pytest.mark.parametrize("loss", [*AGAINST_TEACHER, CrossEntropy()], ids=str)
def test_an_empty_batch_is_refused(loss):
    empty = {name: tensor.detach()[:0] for name, tensor in tensors(0).items()}
    with pytest.raises(DataError, match="must hold values"):
        loss(empty, empty, LABELS[:0])


def test_a_missing_tensor_is_named():
    with pytest.raises(DataError, match=r"the teacher gave no tensor 'nothing', only \['attention', 'map'"):
        Hidden((("map", "nothing"),))(tensors(0), tensors(1))
    with pytest.raises(DataError, match="the student gave no tensor None"):
        CrossEntropy()({}, {}, LABELS)


@pytest.mark.parametrize(
    ("loss", "needs"),
    [
        (CrossEntropy(), Needs()),
        (CrossEntropy(output="a", mask="m"), Needs(("a", "m"), ("a",))),
        (SoftLabels(output=("a", "b"), mask="m"), Needs(("a", "m"), ("b",))),
        (SquaredError(output="a"), Needs(("a",), ("a",))),
        (Hidden((("a", "x"), ("b", "x")), mask="m"), Needs(("a", "b", "m"), ("x",))),
        (AttentionMaps((("a", "x"),), kind="scores", mask="m"), Needs(("a", "m"), ("x",))),
        (Relational((("a", "x"),)), Needs(("a",), ("x",))),
        (Mix(((1, Hidden((("b", "y"),))), (1, Hidden((("a", "x"), ("b", "y")))))), Needs(("b", "a"), ("y", "x"))),
    ],
    ids=str,
)
def test_needs(loss, needs):
    assert loss.needs() == needs


def test_a_mix_is_the_weighted_sum():
    parts = (SoftLabels(), SquaredError(against="teacher"), CrossEntropy(smoothing=0.1))
    expected = sum(w * loss(tensors(0), tensors(1), LABELS) for w, loss in zip((0.5, 2, 3), parts, strict=True))
    mix = Mix(tuple(zip((0.5, 2, 3), parts, strict=True)))
    torch.testing.assert_close(mix(tensors(0), tensors(1), LABELS), expected)


def test_a_mix_gives_each_part_its_own_projections():
    one, other = Hidden((("map", "map"),)), Hidden((("tokens", "tokens"),))
    mix = Mix(((1, SoftLabels()), (2, one), (3, other)))
    student, teacher = tensors(0), tensors(1)
    teacher["map"], teacher["tokens"] = torch.randn(WIDE), torch.randn(4, 6, 10)
    shapes = [{name: tensor.shape for name, tensor in each.items()} for each in (student, teacher)]
    projections = mix.projections(*shapes, seed=3)
    assert {name: tuple(weight.shape) for name, weight in projections.named_parameters()} == {
        "1.0.weight": (6, 3),
        "2.0.weight": (10, 8),
    }
    apart = SoftLabels()(student, teacher)
    apart = apart + 2 * one(student, teacher, None, projections["1"])
    apart = apart + 3 * other(student, teacher, None, projections["2"])
    torch.testing.assert_close(mix(student, teacher, None, projections), apart)


def test_parts_of_a_mix_do_not_start_alike():
    loss = Hidden((("map", "map"),))
    made = Mix(((1, loss), (1, loss))).projections({"map": IMAGE}, {"map": WIDE})
    assert not torch.equal(made["0"]["0"].weight, made["1"]["0"].weight)


def test_impossible_mixes_are_refused():
    with pytest.raises(RecipeError, match="at least one loss"):
        Mix(())
    with pytest.raises(RecipeError, match="the weight of SoftLabels must be finite and at least 0, got nan"):
        Mix(((float("nan"), SoftLabels()),))


def test_mean_of_what_is_kept():
    values = torch.tensor([[1.0, 3.0], [5.0, float("nan")], [9.0, 11.0]])
    assert mean_of(values, torch.tensor([True, False, True])).item() == 6  # what is left out may be anything
    assert mean_of(values[:, 0], torch.zeros(3, dtype=bool)).item() == 0
    assert mean_of(values[:, 0]).item() == 5


def _of_rows(tensors, rows):
    return {name: tensor[rows] for name, tensor in tensors.items()}


MASKED = [
    CrossEntropy(),
    CrossEntropy(mask="mask"),
    SoftLabels(mask="mask"),
    Decoupled(),
    SquaredError(against="teacher", mask="mask"),
    BinaryCrossEntropy(against="teacher"),
    Hidden((("tokens", "tokens"),), mask="mask"),
    AttentionMaps((("attention", "attention"),), kind="probabilities", mask="mask"),
    Mix(((0.5, CrossEntropy()), (2.0, SquaredError(against="teacher", mask="mask")), (1.0, SoftLabels()))),
]


@pytest.mark.parametrize("loss", MASKED, ids=lambda loss: type(loss).__name__)
@pytest.mark.parametrize("cut", [1, 2, 3])
def test_parts_of_a_batch_add_up_to_the_whole(loss, cut):
    """Rows that are left out lie where they please: parts that keep few of theirs count for few."""
    generator = torch.Generator().manual_seed(0)

    def made():
        attention = torch.randn(4, 2, 6, 6, generator=generator).softmax(-1)
        tokens = torch.randn(4, 6, 8, generator=generator)
        return {"tokens": tokens, "attention": attention}

    ours, theirs = made(), made()
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 0, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0]])
    labels = torch.randint(0, 8, (4, 6), generator=generator)
    labels[0, 3:], labels[2] = -100, -100
    ours["mask"] = mask
    inputs = {"mask": mask}
    expected = loss(ours, theirs, labels)
    parts = []
    for rows in (slice(0, cut), slice(cut, 4)):
        share = Given(_of_rows(inputs, rows), {}, labels[rows]), Given(inputs, {}, labels)
        parts.append(loss(_of_rows(ours, rows), _of_rows(theirs, rows), labels[rows], None, share))
    torch.testing.assert_close(torch.stack(parts).sum(), expected)


def test_what_cannot_be_split_is_refused():
    share = Given({"x": torch.zeros(2)}, {}, None), Given({"x": torch.zeros(4)}, {}, None)
    ours = {"tokens": torch.randn(2, 6), "mask": torch.ones(2)}
    with pytest.raises(RecipeError, match="relations are between all rows of a batch, which accumulate splits"):
        Relational((("tokens", "tokens"),))(ours, ours, None, None, share)
    with pytest.raises(RecipeError, match="a mask must be an input of the graph; 'mask' is computed"):
        SquaredError(against="teacher", mask="mask")(ours, ours, None, None, share)
