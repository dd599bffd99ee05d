"""Where units stand: changing what computes one changes what shows it alone; cutting what reads one takes it out."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from alula.graph.channels import find_couplings
from alula.graph.editing import Editor
from alula.graph.export import export_module
from alula.graph.matrices import from_matrix, weight_matrix
from alula.graph.removal import remove_units
from alula.graph.running import Runner
from alula.graph.statistics import _exposing
from alula.graph.units import computing_rows, other_readers_of, readers_of, sightings_of
from alula.testing.models import (
    attention_network,
    convolution_network,
    model_from_text,
    random_feeds,
)
from tests.graph.architectures import ARCHITECTURES

FLATTENED = """net (float[n, 2, 4, 4] x) => (float[n, 3] y) {
    a = Conv (x, w, b) c = Flatten (a) d = Relu (c) y = Gemm <transB = 1> (d, v)
}"""
GROUPED = """net (float[n, 4, 5, 5] x) => (float[n, 2, s, t] y) {
    a = Conv (x, w) b = Relu (a) c = Conv <group = 2> (b, u) d = Relu (c) y = Conv (d, v)
}"""


def flattened():
    random = np.random.default_rng(0)
    shapes = {"w": (3, 2, 3, 3), "b": (3,), "v": (3, 12)}
    return model_from_text(
        FLATTENED, {name: random.standard_normal(s).astype(np.float32) for name, s in shapes.items()}
    )


def grouped():
    random = np.random.default_rng(0)
    shapes = {"w": (6, 4, 2, 2), "u": (8, 3, 2, 2), "v": (2, 8, 1, 1)}
    return model_from_text(GROUPED, {name: random.standard_normal(s).astype(np.float32) for name, s in shapes.items()})


def exported(name):
    torch.manual_seed(0)
    module, example = ARCHITECTURES[name]()
    return export_module(module.eval(), example)


def changed(model, name, change):
    editor = Editor(model.edit())
    editor.replace_constant(name, change(model.weight(name)).astype(np.float32))
    return model.edited(editor.model)


@pytest.mark.parametrize("build", [flattened, grouped])
def test_what_computes_a_unit_changes_what_shows_it_and_nothing_beside(build):
    model = build()
    feeds = random_feeds(model, batch=4)
    couplings = find_couplings(model)
    for coupling, (seen,) in zip(couplings, sightings_of(model, couplings), strict=True):
        (producer,) = (member for member in coupling.members if member.produces and member.axis == 0)
        weight = model.weight(producer.initializer).copy()
        weight[producer.indices[1]] *= -3
        other = changed(model, producer.initializer, lambda _, weight=weight: weight)
        before, after = (Runner(_exposing(one, [seen.tensor]), threads=1)(feeds)[seen.tensor] for one in (model, other))
        touched = np.moveaxis(before != after, seen.axis, 0).reshape(seen.length, -1).any(1)
        assert np.flatnonzero(touched).tolist() == sorted(seen.indices[1].tolist())


def test_they_are_seen_behind_their_relu():
    model = convolution_network()
    tensors = [[one.tensor for one in sightings] for sightings in sightings_of(model, find_couplings(model))]
    assert [set(one) for one in tensors] == [{"c", "e"}, {"h"}]
    (coupling,) = find_couplings(flattened())
    ((seen,),) = sightings_of(flattened(), [coupling])
    assert (seen.tensor, seen.axis, seen.length) == ("d", 1, 12)
    np.testing.assert_array_equal(seen.indices, np.arange(12).reshape(3, 4))


def test_where_there_is_no_relu_the_output_of_the_layer_shows_them():
    model = attention_network()
    couplings = find_couplings(model)
    outputs = {layer.output for layer in model.layers()}
    seen = {one.tensor for sightings in sightings_of(model, couplings) for one in sightings}
    assert seen & outputs


@pytest.mark.parametrize("build", [flattened, grouped, lambda: exported("resnet"), lambda: exported("vgg")])
def test_cutting_all_columns_that_read_a_unit_is_taking_it_out(build):
    model = build()
    feeds = random_feeds(model, batch=2)
    for coupling in find_couplings(model):
        assert not other_readers_of(model, coupling)
        cut = model
        for reader in readers_of(model, coupling):
            matrix = weight_matrix(cut.weight(reader.layer.weight), reader.layer).copy()
            matrix[:, :, reader.columns[-1]] = 0
            cut = changed(cut, reader.layer.weight, lambda _, m=matrix, layer=reader.layer: from_matrix(m, layer))
        wanted = Runner(remove_units(model, {coupling.name: [coupling.size - 1]}), threads=1)(feeds)
        for name, output in Runner(cut, threads=1)(feeds).items():
            np.testing.assert_allclose(output, wanted[name], rtol=1e-3, atol=1e-4)


def test_rows_are_all_weights_that_compute_a_unit():
    model = grouped()
    for coupling in find_couplings(model):
        rows = computing_rows(coupling, model.weight)
        producers = [member for member in coupling.members if member.produces]
        for unit in range(coupling.size):
            taken = [np.take(model.weight(m.initializer), m.indices[unit], m.axis).ravel() for m in producers]
            assert sorted(rows[unit].tolist()) == sorted(np.concatenate(taken).tolist())


def test_readers_without_a_matrix_are_told_with_a_reason():
    text = (
        "net (float[n, 2, 5, 5] x) => (float[n, c, h, w] y) { a = Conv (x, k) b = Relu (a) y = ConvTranspose (b, u) }"
    )
    weights = {"k": np.ones((3, 2, 1, 1), np.float32), "u": np.ones((3, 2, 2, 2), np.float32)}
    model = model_from_text(text, weights)
    (coupling,) = find_couplings(model)
    assert readers_of(model, coupling) == ()
    assert "ConvTranspose" in next(iter(other_readers_of(model, coupling).values()))
    text = """net (float[n, 4] x) => (float[n, 3] y) {
        a = MatMul (x, w) b = Relu (a) c = MatMul (b, v) d = MatMul (a, v) y = Add (c, d)
    }"""
    weights = {"w": np.ones((4, 5), np.float32), "v": np.ones((5, 3), np.float32)}
    shared = model_from_text(text, weights)
    (coupling,) = find_couplings(shared)
    assert readers_of(shared, coupling) == ()
    assert all("shared" in reason for reason in other_readers_of(shared, coupling).values())
