"""Coupled units: zeroing all that reads them and taking them out give the same outputs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from alula.errors import ModelError
from alula.graph.channels import find_couplings
from alula.graph.editing import Editor
from alula.graph.export import export_module
from alula.graph.removal import remove_units
from alula.graph.running import Runner
from alula.graph.tidy import tidy
from alula.testing.models import model_from_text
from tests.graph.architectures import ARCHITECTURES

TIME_FIRST = ("lstm", "bidirectional lstm", "gru")  # their first axis is no batch


def exported(name):
    torch.manual_seed(0)
    module, example = ARCHITECTURES[name]()
    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            nn.init.normal_(part.running_mean, std=0.1)
            nn.init.uniform_(part.running_var, 0.5, 1.5)
    return export_module(module.eval(), example, dynamic_batch=name not in TIME_FIRST), example


def without(model, coupling, units):
    """The graph with zeros in all weights of these units."""
    editor = Editor(model.edit())
    for member in coupling.members:
        array = editor.array(member.initializer).copy()
        places = [slice(None)] * array.ndim
        places[member.axis] = member.indices[units].reshape(-1)
        array[tuple(places)] = 0
        editor.replace_constant(member.initializer, array)
    return model.edited(editor.model)


def outputs_of(model, example):
    arrays = example if isinstance(example, tuple) else (example,)
    feeds = {spec.name: array.numpy() for spec, array in zip(model.inputs, arrays, strict=True)}
    return Runner(model)(feeds)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_zeroing_and_removing_are_one(name):
    model, example = exported(name)
    couplings = find_couplings(model)
    assert couplings, "nothing can go"
    for coupling in couplings:
        if coupling.size < 2:
            continue
        units = sorted({0, coupling.size // 2})[: coupling.size - 1]
        smaller = remove_units(model, {coupling.name: units})
        assert smaller.weight_bytes < model.weight_bytes
        assert smaller.inputs == model.inputs
        wanted, found = outputs_of(without(model, coupling, units), example), outputs_of(smaller, example)
        for output, array in wanted.items():
            assert found[output].shape == array.shape
            np.testing.assert_allclose(found[output], array, rtol=1e-3, atol=1e-4, err_msg=coupling.name)


@pytest.mark.parametrize("name", ["resnet", "transformer"])
def test_all_couplings_can_shrink_at_once(name):
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
    with pytest.raises(ModelError, match="no units are called 'head'"):
        remove_units(model, {"head": [0]})


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
