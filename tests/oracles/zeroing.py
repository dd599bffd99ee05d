"""The textbook meaning of taking units out: a graph of the old size, with zeros in all their weights."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from alula.graph.channels import Coupling, find_couplings
from alula.graph.editing import Editor
from alula.graph.export import export_module
from alula.graph.model import Model
from alula.graph.removal import remove_units
from alula.graph.running import Runner


def exported(build, *, dynamic_batch: bool = True):
    """The graph of a module with drawn weights and statistics, and an example input."""
    torch.manual_seed(0)
    module, example = build()
    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            nn.init.normal_(part.running_mean, std=0.1)
            nn.init.uniform_(part.running_var, 0.5, 1.5)
    return export_module(module.eval(), example, dynamic_batch=dynamic_batch), example


def without(model: Model, coupling: Coupling, units: Sequence[int]) -> Model:
    """The graph with zeros in all weights of these units."""
    editor = Editor(model.edit())
    for member in coupling.members:
        array = editor.array(member.initializer).copy()
        places = [slice(None)] * array.ndim
        places[member.axis] = member.indices[units].reshape(-1)
        array[tuple(places)] = 0
        editor.replace_constant(member.initializer, array)
    return model.edited(editor.model)


def outputs_of(model: Model, example) -> dict[str, np.ndarray]:
    """What a graph gives for an example."""
    arrays = example if isinstance(example, tuple) else (example,)
    feeds = {spec.name: array.numpy() for spec, array in zip(model.inputs, arrays, strict=True)}
    return Runner(model, threads=1)(feeds)


def check_all(model: Model, example) -> tuple[Coupling, ...]:
    """Zeroing and removing units give the same outputs, for each coupling; all of the couplings."""
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
    return couplings
