"""Whole blocks: what lies between two tensors of one form, and the graph without it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from alula.errors import ModelError
from alula.graph.blocks import find_blocks, without_blocks
from alula.graph.export import export_module
from alula.graph.running import Runner
from alula.graph.tidy import tidy
from alula.testing.models import model_from_text
from tests.graph.architectures import Layer, encoder, residual
from tests.oracles.zeroing import exported, outputs_of


def chain():
    """Three times x + relu(x W) behind an embedding of the input; the middle of the second drawn small."""
    random = np.random.default_rng(0)
    weights = {name: random.standard_normal((4, 4)).astype(np.float32) for name in ("w0", "w1", "w2", "w3")}
    model = model_from_text(
        "n (float[b, 4] x) => (float[b, 4] y) { e = MatMul (x, w0) s = Relu (e)"
        "a1 = MatMul (s, w1) b1 = Relu (a1) s1 = Add (s, b1)"
        "a2 = MatMul (s1, w2) b2 = Relu (a2) s2 = Add (s1, b2)"
        "a3 = MatMul (s2, w3) b3 = Relu (a3) y = Add (s2, b3) }",
        weights,
    )
    return tidy(model), weights


def test_blocks_are_found_with_what_lies_between():
    model, _ = chain()
    blocks = find_blocks(model)
    assert [(block.input, block.output) for block in blocks] == [("s1", "s2"), ("s2", "y")]
    layers = {layer.weight: layer.name for layer in model.layers()}
    assert [block.layers for block in blocks] == [(layers["w2"],), (layers["w3"],)]


@pytest.mark.parametrize("gone", [(0,), (1,), (0, 1)])
def test_without_blocks_is_the_network_written_without_them(gone):
    model, weights = chain()
    blocks = find_blocks(model)
    smaller = without_blocks(model, [blocks[index].name for index in gone])
    x = np.random.default_rng(1).standard_normal((3, 4)).astype(np.float32)
    wanted = np.maximum(x @ weights["w0"], 0)
    for number, name in enumerate(("w1", "w2", "w3")):
        if number - 1 not in gone:
            wanted = wanted + np.maximum(wanted @ weights[name], 0)
    np.testing.assert_allclose(Runner(smaller, threads=1)({"x": x})["y"], wanted, rtol=1e-4, atol=1e-5)
    assert (smaller.inputs, smaller.outputs) == (model.inputs, model.outputs), "the interface stays"
    assert len(smaller.layers()) == 4 - len(gone)
    assert smaller.weight_bytes == model.weight_bytes - 64 * len(gone), "weights go with their layers"
    assert [note.place for note in smaller.notes] == [blocks[index].name for index in gone]


def test_taking_no_block_out_changes_nothing():
    model, _ = chain()
    assert without_blocks(model, []).fingerprint == model.fingerprint


def test_an_unknown_block_is_refused_with_those_that_are_there():
    model, _ = chain()
    with pytest.raises(ModelError, match=f"no blocks are called 'x'; the graph has {find_blocks(model)[0].name}"):
        without_blocks(model, ["x"])


def test_a_tensor_read_in_a_body_ends_in_no_block():
    """What a branch does with a tensor is unknown: nothing around it may go."""
    model = model_from_text(
        "n (float[b, 4] x, bool c) => (float[b, 4] y, float[b, 4] z) { s = Relu (x) a = MatMul (s, w) r = Relu (a)"
        "y = Identity (r) z = If (c) <then_branch = t () => (float[b, 4] p) { p = Neg (s) },"
        "else_branch = f () => (float[b, 4] q) { q = Identity (s) }> }",
        {"w": np.eye(4, dtype=np.float32)},
    )
    assert find_blocks(model) == ()


def test_the_inner_half_of_a_residual_block_is_none():
    """A downsampling block: its shortcut goes around the second activation, and cannot be left in the air."""
    model, _ = exported(lambda: (torch.nn.Sequential(residual(3, 8, 2), residual(8, 8)), torch.randn(2, 3, 8, 8)))
    for block in find_blocks(model):
        left = {layer.name for layer in without_blocks(model, [block.name]).layers()}
        assert left == {layer.name for layer in model.layers()} - set(block.layers)


def test_layers_of_transformers_are_joined_of_their_halves():
    model, example = exported(encoder)
    names = {block.name: len(block.layers) for block in find_blocks(model)}
    assert names == {
        "1.layers.0.linear1..1.layers.0.linear2": 2,
        "1.layers.1.self_attn..1.layers.1.self_attn.out_proj": 2,
        "1.layers.1.linear1..1.layers.1.linear2": 2,
        "1.layers.1.self_attn..1.layers.1.linear2": 4,
    }
    halves, whole = list(names)[1:3], "1.layers.1.self_attn..1.layers.1.linear2"
    one, other = (outputs_of(without_blocks(model, chosen), example) for chosen in (halves, [whole]))
    for name, array in one.items():
        np.testing.assert_array_equal(array, other[name])
    overlapping = without_blocks(model, [whole, *halves])
    assert overlapping.weight_bytes == without_blocks(model, [whole]).weight_bytes


def test_dropping_a_layer_is_the_module_without_it():
    torch.manual_seed(0)
    module = torch.nn.Sequential(Layer(before=True), Layer(before=True), Layer(before=True)).eval()
    x = torch.randn(2, 6, 16)
    model = export_module(module, x)
    block = next(block for block in find_blocks(model) if all(name.startswith("1.") for name in block.layers)
                 and len(block.layers) == 6)  # fmt: skip
    wanted = module[2](module[0](x)).detach().numpy()
    (found,) = outputs_of(without_blocks(model, [block.name]), x).values()
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


def test_shapes_that_inference_cannot_name_are_known_by_the_stream():
    """A free axis that is called anew behind each operator is the same along a residual stream."""
    model, _ = chain()
    graph = model.edit()
    for number, node in enumerate(graph.graph):
        for value in node.outputs:
            if not value.is_graph_output():
                value.shape = type(value.shape)([f"unk__{number}", 4])
    assert len(find_blocks(model.edited(graph))) == 2


def test_a_network_of_one_layer_has_no_block():
    model = model_from_text(
        "n (float[b, 4] x) => (float[b, 2] y) { y = MatMul (x, w) }", {"w": np.ones((4, 2), np.float32)}
    )
    assert find_blocks(tidy(model)) == ()
