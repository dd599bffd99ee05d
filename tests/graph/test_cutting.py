"""A piece of a graph: computes what the whole does there, and its weights go back."""

from __future__ import annotations

import numpy as np
import pytest

from alula.errors import ModelError
from alula.graph.cutting import copy_out, cut_out, graft, substitute
from alula.graph.editing import Editor
from alula.testing import convolution_network, dense_network
from alula.testing.models import model_from_text


def tensors(model) -> list[str]:
    return [str(node.outputs[0].name) for node in model.graph]


def test_pieces_in_a_row_are_the_whole() -> None:
    model = convolution_network()
    middle = tensors(model)[2]
    x = np.random.default_rng(0).normal(size=(2, 3, 8, 8)).astype(np.float32)
    (name,), (out,) = [spec.name for spec in model.inputs], [spec.name for spec in model.outputs]
    front, back = cut_out(model, [name], [middle]), cut_out(model, [middle], [out])
    np.testing.assert_array_equal(back.run(front.run({name: x}))[out], model.run({name: x})[out])
    assert set(front.graph.initializers) | set(back.graph.initializers) == set(model.graph.initializers)
    assert not set(front.graph.initializers) & set(back.graph.initializers)


def test_trained_weights_go_back() -> None:
    model = dense_network()
    (name,) = (spec.name for spec in model.inputs)
    piece = cut_out(model, [name], [tensors(model)[0]])
    editor = Editor(piece.edit())
    changed = next(iter(piece.graph.initializers))
    editor.replace_constant(changed, piece.weight(changed) * 2)
    whole = graft(model, piece.edited(editor.model))
    np.testing.assert_array_equal(whole.weight(changed), model.weight(changed) * 2)
    assert whole.outputs == model.outputs
    assert model.fingerprint != whole.fingerprint
    assert graft(model, piece).fingerprint == model.fingerprint


def test_what_cannot_be_cut_is_said() -> None:
    model = convolution_network()
    first, last = tensors(model)[2], tensors(model)[5]
    with pytest.raises(ModelError, match="computes no tensor 'nowhere'"):
        cut_out(model, ["nowhere"], [last])
    with pytest.raises(ModelError, match="reads more than"):
        cut_out(model, [last], [first])
    with pytest.raises(ModelError, match="was not cut out of it"):
        graft(dense_network(), cut_out(model, [model.inputs[0].name], [first]))


def test_one_piece_can_stand_for_several_nodes_that_read_the_same() -> None:
    text = """net (float[n, 4] x) => (float[n, 2] s) {
        [first] a = MatMul (x, w) [between] r = Relu (a) [second] b = MatMul (x, v) [sum] s = Add (r, b) }"""
    random = np.random.default_rng(0)
    model = model_from_text(text, {name: random.standard_normal((4, 2)).astype(np.float32) for name in "wv"})
    nodes = [node for node in model.graph if node.name in {"first", "second"}]
    piece = copy_out(model, nodes, [model.graph.inputs[0]], [node.outputs[0] for node in nodes])
    editor = Editor(piece.edit())
    for name in "wv":
        editor.replace_constant(name, 2 * piece.weight(name))
    doubled = piece.edited(editor.model)
    whole = substitute(model, dict.fromkeys(("first", "second"), doubled))
    feeds = {"x": random.standard_normal((3, 4)).astype(np.float32)}
    np.testing.assert_allclose(whole.run(feeds)["s"], 2 * model.run(feeds)["s"], rtol=1e-6)
    assert [node.op_type for node in whole.graph].count("MatMul") == 2
