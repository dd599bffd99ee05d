"""Losses inside the networks against textbook loops, finite differences and their limits."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import gradcheck

from alula.errors import DataError, RecipeError
from alula.training.relations import AttentionMaps, Hidden, Relational
from tests.oracles import distillation as oracle

PAIR = (("a", "b"),)


def randn(*shape, seed=0):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def run(loss, ours, theirs, projections=None, **named):
    return loss({"out": randn(1), "a": ours, **named}, {"out": randn(1), "b": theirs}, None, projections)


def project(loss, ours, theirs, seed=0):
    return loss.projections({"a": ours.shape}, {"b": theirs.shape}, seed).double()


@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("width", [6, 4])
def test_hidden_rows(normalise, width):
    ours, theirs = randn(3, 4), randn(3, width, seed=1)
    loss = Hidden(PAIR, normalise=normalise)
    projections = project(loss, ours, theirs)
    matrix = projections["0"].weight.tolist() if width != 4 else None
    found = run(loss, ours, theirs, projections).item()
    assert found == pytest.approx(oracle.hidden(ours.tolist(), theirs.tolist(), matrix, normalise=normalise))
    assert len(projections) == (width != 4)


def test_hidden_maps_of_other_sizes():
    ours, theirs = randn(2, 3, 4, 8), randn(2, 5, 2, 2, seed=1)
    loss = Hidden(PAIR)
    projections = project(loss, ours, theirs)
    small = torch.from_numpy(oracle.block_means(ours.numpy(), 2))
    rows = [x.movedim(1, -1).reshape(8, -1).tolist() for x in (small, theirs)]
    expected = oracle.hidden(*rows, projections["0"].weight.tolist())
    assert run(loss, ours, theirs, projections).item() == pytest.approx(expected)
    convolved = torch.nn.functional.conv2d(small, projections["0"].weight[:, :, None, None])
    assert expected == pytest.approx(((convolved - theirs) ** 2).mean().item())


@pytest.mark.parametrize("axis", [1, 2, 3])
def test_hidden_features_along_any_axis(axis):
    ours, theirs = randn(2, 3, 4, 4), randn(2, 5, 4, 4, seed=1)
    projections = project(Hidden(PAIR), ours, theirs)
    expected = run(Hidden(PAIR), ours, theirs, projections)
    moved = [x.movedim(1, axis) for x in (ours, theirs)]
    torch.testing.assert_close(run(Hidden(PAIR, axis=axis), *moved, projections), expected)
    assert project(Hidden(PAIR, axis=axis), *moved)["0"].weight.shape == (5, 3)


def test_hidden_tokens_that_are_left_out():
    ours, theirs, kept = randn(2, 3, 4), randn(2, 3, 4, seed=1), torch.tensor([[1, 1, 0], [1, 0, 0]])
    expected = oracle.hidden(ours[kept > 0].tolist(), theirs[kept > 0].tolist())
    assert run(Hidden(PAIR, mask="m"), ours, theirs, m=kept).item() == pytest.approx(expected)


def test_pairs_add_up():
    student, teacher = {"a": randn(3, 4), "b": randn(3, 2)}, {"x": randn(3, 4, seed=1), "y": randn(3, 2, seed=1)}
    both = Hidden((("a", "x"), ("b", "y")))(student, teacher)
    apart = Hidden((("a", "x"),))(student, teacher) + Hidden((("b", "y"),))(student, teacher)
    torch.testing.assert_close(both, apart)


def test_projections_are_drawn_by_the_seed_alone():
    loss = Hidden((("a", "b"), ("c", "b"), ("a", "a")))
    shapes = {"a": (8, 4), "c": (8, 5, 7)}, {"b": (8, 3, 6), "a": (8, 4)}
    state = torch.get_rng_state()
    first, again, other = (loss.projections(*shapes, seed) for seed in (0, 0, 1))
    assert torch.equal(state, torch.get_rng_state())
    assert list(first) == ["0", "1"]
    for number in first:
        assert torch.equal(first[number].weight, again[number].weight)
        assert not torch.equal(first[number].weight, other[number].weight)


def test_projections_learn():
    ours, theirs = randn(4, 3), randn(4, 5, seed=1)
    projections = project(Hidden(PAIR), ours, theirs)
    run(Hidden(PAIR), ours, theirs, projections).backward()
    assert projections["0"].weight.grad.abs().max() > 0


def test_attention_maps():
    ours, theirs = randn(3, 2, 4, 4), randn(3, 5, 4, 4, seed=1)
    expected = oracle.attention_maps(ours.numpy(), theirs.numpy())
    assert run(AttentionMaps(PAIR), ours, theirs).item() == pytest.approx(expected)
    small = oracle.block_means(theirs.numpy(), 2)
    expected = oracle.attention_maps(oracle.block_means(ours.numpy(), 2), small)
    assert run(AttentionMaps(PAIR), ours, torch.from_numpy(small)).item() == pytest.approx(expected)


def test_attention_maps_see_no_scale():
    ours = randn(3, 2, 4, 4)
    assert run(AttentionMaps(PAIR), 7 * ours, ours).item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("heads", [2, 3])
def test_attention_probabilities(heads):
    ours, theirs = randn(2, 2, 4, 5).softmax(-1), randn(2, heads, 4, 5, seed=1).softmax(-1)
    tokens = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]])
    pair = (ours, theirs) if heads == 2 else (ours.mean(1, keepdim=True), theirs.mean(1, keepdim=True))
    loss = AttentionMaps(PAIR, kind="probabilities")
    assert run(loss, ours, theirs).item() == pytest.approx(oracle.attention_probabilities(*pair))
    loss = AttentionMaps(PAIR, kind="probabilities", mask="m")
    assert run(loss, ours, theirs, m=tokens).item() == pytest.approx(oracle.attention_probabilities(*pair, tokens))


@pytest.mark.parametrize("heads", [2, 3])
def test_attention_scores(heads):
    ours, theirs = randn(2, 2, 4, 5), randn(2, heads, 4, 5, seed=1)
    pair = (ours, theirs) if heads == 2 else (ours.mean(1), theirs.mean(1))
    errors = [(a - b) ** 2 for a, b in zip(*(x.flatten().tolist() for x in pair), strict=True)]
    found = run(AttentionMaps(PAIR, kind="scores"), ours, theirs).item()
    assert found == pytest.approx(sum(errors) / len(errors))


@pytest.mark.parametrize("kind", ["probabilities", "scores"])
def test_attention_that_is_masked_on_both_sides(kind):
    """Probabilities of 0, and scores of -infinity."""
    blocked = torch.triu(torch.ones(4, 4, dtype=bool), 1)
    ours, theirs = (randn(2, 2, 4, 4, seed=seed).masked_fill(blocked, -torch.inf) for seed in (0, 1))
    if kind == "probabilities":
        ours, theirs = ours.softmax(-1), theirs.softmax(-1)
    value = run(AttentionMaps(PAIR, kind=kind), ours.requires_grad_(), theirs)
    value.backward()
    assert 0 < value.item() < 100
    assert torch.isfinite(ours.grad).all()


@pytest.mark.parametrize(("distance", "angle"), [(25, 50), (1, 0), (0, 1)])
def test_relational(distance, angle):
    ours, theirs = randn(5, 3), randn(5, 2, 4, seed=1)
    expected = oracle.relational(ours.numpy(), theirs.flatten(1).numpy(), distance, angle)
    assert expected > 0
    assert run(Relational(PAIR, distance, angle), ours, theirs).item() == pytest.approx(expected)


def test_relational_with_one_far_away():
    """Errors beyond 1, where Huber's loss is a line."""
    ours, theirs = randn(5, 3), randn(5, 3, seed=1)
    theirs[0] += 100
    expected = oracle.relational(ours.numpy(), theirs.numpy(), 1, 1)
    assert run(Relational(PAIR, 1, 1), ours, theirs).item() == pytest.approx(expected)


def test_relational_with_two_equal():
    """Nothing has no direction: its angles are taken for right ones."""
    ours, theirs = randn(5, 3), randn(5, 3, seed=1)
    ours[1] = ours[0]
    expected = oracle.relational(ours.numpy(), theirs.numpy(), 1, 1)
    assert run(Relational(PAIR, 1, 1), ours, theirs).item() == pytest.approx(expected)


def test_relations_stay_when_turned_moved_and_scaled():
    theirs = randn(5, 3)
    turn, _ = torch.linalg.qr(randn(3, 3, seed=1))
    assert run(Relational(PAIR), 3 * theirs @ turn + 2, theirs).item() == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("examples", [1, 2])
def test_relations_need_examples(examples):
    """One example has no relation; two have a distance, which is always its own mean."""
    ours = randn(examples, 3).requires_grad_()
    value = run(Relational(PAIR), ours, randn(examples, 4, seed=1))
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-12)
    assert ours.grad.abs().max() < 1e-12


def test_equal_examples_have_a_gradient():
    """The length of nothing has none of its own; all examples may be equal when training starts."""
    for ours in (torch.zeros(4, 3), torch.tensor([[0.0, 1], [0, 1], [2, 0], [1, 1]])):
        value = run(Relational(PAIR), ours.requires_grad_(), randn(4, 3).float())
        value.backward()
        assert value.item() > 0
        assert torch.isfinite(ours.grad).all()
        assert ours.grad.abs().max() < 1e3


@pytest.mark.parametrize("loss", [Hidden(PAIR, normalise=True), AttentionMaps(PAIR)])
def test_silent_places_have_a_gradient(loss):
    """After a ReLU all features of a place may be 0."""
    ours = torch.zeros(2, 3, 4, 4).requires_grad_()
    run(loss, ours, randn(2, 3, 4, 4).float()).backward()
    assert torch.isfinite(ours.grad).all()
    assert ours.grad.abs().max() < 10


@pytest.mark.parametrize(
    ("loss", "shape"),
    [
        (Hidden(PAIR), (3, 4)),
        (Hidden(PAIR, normalise=True), (2, 3, 4)),
        (Hidden(PAIR), (2, 3, 4, 4)),
        (AttentionMaps(PAIR), (2, 3, 4, 4)),
        (AttentionMaps(PAIR, kind="scores"), (2, 3, 4, 4)),
        (Relational(PAIR), (4, 3)),
    ],
    ids=str,
)
def test_gradients(loss, shape):
    theirs = randn(*shape, seed=1)
    assert gradcheck(lambda ours: run(loss, ours, theirs), (randn(*shape).requires_grad_(),))


def test_gradients_through_probabilities():
    theirs, loss = randn(2, 2, 3, 3, seed=1).softmax(-1), AttentionMaps(PAIR, kind="probabilities")
    assert gradcheck(lambda ours: run(loss, ours.softmax(-1), theirs), (randn(2, 2, 3, 3).requires_grad_(),))


@pytest.mark.parametrize(
    ("loss", "ours", "theirs", "message"),
    [
        (Hidden(PAIR), (3, 4), (3, 5), "where the widths differ, pass what projections"),
        (Hidden(PAIR), (3, 4), (3, 4, 4, 4), "must have as many axes"),
        (Hidden(PAIR), (3, 4), (2, 4), "must hold as many features at as many places"),
        (Hidden(PAIR, axis=2), (3, 4), (3, 4), "axis 2 is none of the 2 axes"),
        (AttentionMaps(PAIR), (3, 4), (3, 4), "maps have the axes"),
        (AttentionMaps(PAIR, kind="scores"), (3, 4, 4), (3, 4, 4), "attention has the axes"),
        (AttentionMaps(PAIR, kind="scores"), (2, 3, 4, 4), (2, 3, 5, 5), "must give the same shape"),
        (Relational(PAIR), (3, 4), (2, 4), "must see the same examples"),
    ],
)
def test_tensors_that_cannot_be_compared(loss, ours, theirs, message):
    with pytest.raises(RecipeError, match=message):
        run(loss, randn(*ours), randn(*theirs))


def test_a_mask_of_another_shape():
    with pytest.raises(DataError, match=r"the mask 'm' must have the first axes of \[2, 3\]"):
        run(Hidden(PAIR, mask="m"), randn(2, 3, 4), randn(2, 3, 4), m=torch.ones(2, 4))


def test_a_shape_that_is_not_known():
    with pytest.raises(RecipeError, match=r"the shape of 'b' is not known, only those of \['c'\]"):
        Hidden(PAIR).projections({"a": (1, 2)}, {"c": (1, 2)})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Hidden(()), "pairs must name tensors"),
        (lambda: Relational(("a", "b")), "pairs must be a tuple of tuple"),
        (lambda: AttentionMaps(("ab",)), "pairs must be a tuple of tuple"),
        (lambda: AttentionMaps(PAIR, kind="heads"), "kind must be 'maps', 'probabilities' or 'scores'"),
        (lambda: AttentionMaps(PAIR, mask="m"), "a mask is of tokens"),
        (lambda: Relational(PAIR, distance=float("inf")), "distance must be finite"),
    ],
)
def test_impossible_settings(make, message):
    with pytest.raises(RecipeError, match=message):
        make()
