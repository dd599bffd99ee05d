"""What leads to a tensor is found and copied, and a graph moved into another computes what it did."""

from __future__ import annotations

import numpy as np

from alula.graph.editing import Editor
from alula.graph.running import Runner
from alula.graph.slices import Copier, move_in, slice_back
from alula.testing import dense_network, model_from_text, random_feeds

TWO = """two (float[n, 3] x, float[n, 3] y) => (float[n, 3] z) {
    a = Mul (x, w)
    half = Mul (w, w)
    b = Add (a, half)
    z = Add (b, y)
}"""


def value(model, name):
    return next(value for node in model.graph for value in node.outputs if value.name == name)


def test_a_slice_goes_back_to_where_it_is_stopped() -> None:
    model = model_from_text(TWO, {"w": np.ones(3, np.float32)})
    whole = slice_back(model.graph, value(model, "z"), set())
    assert [one.name for one in whole.begins] in (["x", "y"], ["y", "x"])
    part = slice_back(model.graph, value(model, "z"), {"b"})
    assert {one.name for one in part.begins} == {"b", "y"}
    assert [node.outputs[0].name for node in part.nodes] == ["z"]
    assert (
        slice_back(model.graph, value(model, "b"), {"b"}).nodes == slice_back(model.graph, value(model, "b"), ()).nodes
    )


def test_constants_do_not_move() -> None:
    text = TWO.replace("half = Mul (w, w)", "half = Cast <to = 1> (Cast_in)").replace("Cast_in", "codes")
    model = model_from_text(text, {"w": np.ones(3, np.float32), "codes": np.ones(3, np.int8)})
    part = slice_back(model.graph, value(model, "z"), {"a"})
    assert all(one.name in ("b", "z") for node in part.moving for one in node.outputs)


def test_a_copied_slice_computes_the_same_from_other_tensors() -> None:
    model = model_from_text(TWO, {"w": np.array([1, 2, 3], np.float32)})
    editor = Editor(model.edit())
    part = slice_back(model.graph, value(model, "b"), set())
    found = Copier(editor, "again:").copy(part.nodes, {model.graph.inputs[0]: editor.value("y")})
    editor.graph.outputs.append(found[part.end])
    feeds = random_feeds(model)
    outputs = Runner(model.edited(editor.model))(feeds)
    w = np.array([1, 2, 3], np.float32)
    np.testing.assert_allclose(outputs["again:b"], feeds["y"] * w + w * w, rtol=1e-6)
    assert set(model.graph.initializers) == {name for name in model.graph.initializers if not name.startswith("again")}


def test_a_graph_moved_in_twice_computes_what_it_did() -> None:
    model = dense_network()
    editor = Editor(model.edit())
    for prefix in ("one:", "two:"):
        named = move_in(editor, model, prefix)
        editor.graph.outputs.append(named["scores"])
    feeds = random_feeds(model)
    outputs = Runner(model.edited(editor.model))(feeds)
    assert set(outputs) == {"scores", "one:scores", "two:scores"}
    for name in ("one:scores", "two:scores"):
        np.testing.assert_array_equal(outputs[name], outputs["scores"])
