"""Coupled units: zeroing all that reads them and taking them out give the same outputs."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from alula import export_module
from alula.errors import ModelError
from alula.graph.channels import Classes, find_couplings, trace_axes
from alula.graph.removal import remove_units
from alula.graph.tidy import tidy
from alula.testing.models import model_from_text
from tests.graph.architectures import ARCHITECTURES, CONVOLUTIONAL, TIME_FIRST
from tests.oracles.zeroing import check_all, outputs_of, without
from tests.oracles.zeroing import exported as export

EXPECTED = {
    "resnet": ["body.0.0", "body.2.a.0", "body.3.a.0", "body.3.b.0"],
    "densenet": ["stem.0", "layers.0.0", "layers.1.0", "layers.2.0", "transition.0"],
    "inception": ["stem.0", "one.0", "reduce.0", "three.0", "pooled.0"],
    "mobilenet v3": [
        "body.0.0", "body.2.expand.0", "body.2.down", "body.3.expand.0", "body.3.down", "body.3.project.0"
    ],
    "shufflenet": ["stem.0", "stem.0#2", "branch.0.0", "last.0"],
    "upsampler": ["0", "2", "6"],
    "wavenet": ["enter", "gates.0", "leaves.0", "gates.1", "leaves.1"],
    "convnext": ["body.1.up"],
}  # fmt: skip


def exported(name):
    return export(ARCHITECTURES[name], dynamic_batch=name not in TIME_FIRST)


@pytest.mark.parametrize("name", CONVOLUTIONAL)
def test_zeroing_and_removing_are_one(name):
    couplings = check_all(*exported(name))
    assert [coupling.name for coupling in couplings] == EXPECTED.get(name, [coupling.name for coupling in couplings])


@pytest.mark.parametrize("name", ["resnet", "transformer"])
def test_all_couplings_can_shrink_at_once(name):
    """Heads and the features within them, too: what stays is the product of both."""
    model, example = exported(name)
    units = {one.name: range(one.size // 2) for one in find_couplings(model) if one.size > 1}
    smaller = remove_units(model, units)
    assert smaller.weight_bytes < 0.7 * model.weight_bytes
    assert [array.shape for array in outputs_of(smaller, example).values()] == [
        array.shape for array in outputs_of(model, example).values()
    ]


def test_what_cannot_go_is_refused_with_the_reason():
    model, _ = exported("resnet")
    first = find_couplings(model)[0]
    with pytest.raises(ModelError, match="would lose all of its"):
        remove_units(model, {first.name: range(first.size)})
    with pytest.raises(ModelError, match=f"has {first.size} units, numbered from 0"):
        remove_units(model, {first.name: [first.size]})
    with pytest.raises(ModelError, match="the units of layer 'head' cannot go: they reach the graph's output"):
        remove_units(model, {"head": [0]})
    with pytest.raises(ModelError, match=f"no units are called 'nothing'; the graph has {first.name}"):
        remove_units(model, {"nothing": [0]})


def test_taking_nothing_out_changes_nothing():
    model, _ = exported("resnet")
    assert remove_units(model, {}).fingerprint == model.fingerprint


def test_couplings_of_one_layer_have_names_of_their_own():
    """The two halves of what a layer computes go different ways: each shrinks by itself."""
    random = np.random.default_rng(0)
    shapes = {"w": (5, 12), "left": (4, 3), "right": (8, 3)}
    model = tidy(
        model_from_text(
            "n (float[b, 5] x) => (float[b, 3] y) <int64[2] halves = {4, 8}> { h = MatMul (x, w)"
            "a, c = Split <axis = 1> (h, halves) d = MatMul (a, left) e = MatMul (c, right) y = Add (d, e) }",
            {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()},
        )
    )
    couplings = find_couplings(model)
    assert sorted(coupling.size for coupling in couplings) == [4, 8]
    assert len({coupling.name for coupling in couplings}) == 2
    x = torch.from_numpy(random.standard_normal((2, 5)).astype(np.float32))
    for coupling in couplings:
        smaller = remove_units(model, {coupling.name: [1]})
        wanted, found = outputs_of(without(model, coupling, [1]), x), outputs_of(smaller, x)
        np.testing.assert_allclose(found["y"], wanted["y"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("seed", range(5))
def test_classes_are_those_of_merging_pairs_one_by_one(seed):
    """Against sets that are joined pair by pair."""
    random, classes = np.random.default_rng(seed), Classes()
    ids = classes.new(60)
    groups = {int(one): {int(one)} for one in ids}
    for _ in range(8):
        left, right = (random.integers(1, 61, random.integers(1, 12)) for _ in range(2))
        right = np.resize(right, len(left))
        classes.merge(left, right)
        for one, other in zip(left.tolist(), right.tolist(), strict=True):
            joined = groups[one] | groups[other]
            groups.update(dict.fromkeys(joined, joined))
    roots = classes.roots(ids).tolist()
    assert roots == [min(groups[one]) for one in ids.tolist()]


def test_frozen_classes_stay_frozen():
    classes = Classes()
    first, second = classes.new(3), classes.new(3)
    classes.freeze(first)
    classes.merge(second, first[::-1])
    assert not classes.roots(second).any()


def test_heads_and_features_within_are_units_of_their_own():
    model, _ = exported("transformer")
    kinds = {(one.name, one.grain): one for one in find_couplings(model) if one.name.startswith("0.attention")}
    assert set(kinds) == {("0.attention.q", "first"), ("0.attention.q#2", "last"), ("0.attention.v", "last")}
    heads, scores, mixed = kinds.values()
    rows = {member.initializer: member.indices for member in heads.members}
    assert rows["0.attention.q.weight"].tolist() == np.arange(16).reshape(4, 4).tolist(), "a head is a run of features"
    rows = {member.initializer: member.indices for member in scores.members}
    assert rows["0.attention.k.weight"].tolist() == np.arange(16).reshape(4, 4).T.tolist(), "a feature is in each head"
    assert "0.attention.out.weight" in mixed.initializers - scores.initializers


def test_axes_that_stay_do_not_carry_units():
    """Of queries, keys and values in one matrix the three is barred, and the heads behind it are found."""
    model, _ = exported("encoder")
    axes = trace_axes(model)
    barred = {value.shape[axis] for value, axis in axes.barred}
    assert 3 in barred
    heads = next(one for one in find_couplings(model) if one.name == "1.layers.0.self_attn")
    packed = next(one for one in heads.members if one.produces)
    assert packed.indices.tolist() == [
        [part * 16 + head * 4 + i for part in range(3) for i in range(4)] for head in range(4)
    ]


@pytest.mark.parametrize("given", [True, False], ids=["the last state", "every state"])
def test_steps_of_a_recurrent_layer_stay(given: bool) -> None:
    """A convolution whose channels become the steps of an LSTM."""

    class Steps(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.cells = torch.nn.Conv1d(3, 8, 3, padding=1), torch.nn.LSTM(5, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            states, (last, _) = self.cells(self.conv(x).transpose(0, 1))
            return last[0].sum(1) if given else states.sum((0, 2))

    torch.manual_seed(0)
    model = export_module(Steps(), torch.zeros(2, 3, 5))
    assert "conv" not in [coupling.name for coupling in find_couplings(model)]
