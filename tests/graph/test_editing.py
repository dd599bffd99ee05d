"""Small steps on a copy of a graph."""

from __future__ import annotations

import numpy as np
import pytest

from alula.errors import ModelError
from alula.graph.editing import Editor, set_input
from alula.testing.models import model_from_text

TEXT = "net (float[n, 2] x) => (float[n, 2] y) { a = Mul (x, w) y = Add (a, b) }"
BODY = """net (float[n, 2] x, bool flag) => (float[n, 2] y) { a = Mul (x, w) y = If (flag)
    <then_branch = yes () => (float[n, 2] p) { p = Relu (a) },
     else_branch = no () => (float[n, 2] q) { q = Mul (a, w) }>
}"""


@pytest.fixture
def model():
    return model_from_text(TEXT, {"w": np.array([2, 3], np.float32), "b": np.array([1, 1], np.float32)})


def test_edits_leave_the_model_alone(model):
    before = model.to_bytes()
    editor = Editor(model.edit())
    editor.replace_constant("w", np.array([5, 5], np.float32))
    node = editor.insert("Neg", [editor.value("a")], "minus", after=editor.value("a").producer())
    set_input(editor.value("y").producer(), editor.value("a"), node.outputs[0])
    changed = model.edited(editor.model)
    assert model.to_bytes() == before
    np.testing.assert_array_equal(changed.run({"x": np.ones((1, 2), np.float32)})["y"], [[-4, -4]])


def test_names_are_never_given_twice(model):
    editor = Editor(model.edit())
    assert editor.fresh("new") == "new"
    assert editor.fresh("a") == "a_2"
    editor.constant("a_2", np.zeros(1, np.float32))
    assert editor.fresh("a") == "a_3"
    assert editor.fresh(str(model.graph[0].name)) != model.graph[0].name


def test_names_in_bodies_are_not_given_again_outside():
    editor = Editor(model_from_text(BODY, {"w": np.ones(2, np.float32)}).edit())
    assert editor.fresh("p") == "p_2"


def test_equal_constants_of_one_name_are_one(model):
    editor = Editor(model.edit())
    first = editor.constant("c", np.array([1, 2], np.float32))
    assert editor.constant("c", np.array([1, 2], np.float32)) is first
    assert editor.constant("c", np.array([1, 3], np.float32)).name == "c_2"
    assert editor.constant("c", np.array([1, 2], np.float64)).name == "c_3"
    assert editor.constant("c", np.array([[1, 2]], np.float32)).name == "c_4"


def test_constants_go_when_nothing_reads_them(model):
    editor = Editor(model.edit())
    assert not editor.drop_constant("w")
    set_input(editor.value("a").producer(), editor.value("w"), editor.constant("v", np.ones(2, np.float32)))
    assert editor.drop_constant("w")
    assert editor.fresh("w") == "w"


def test_constants_that_a_body_or_an_output_reads_stay():
    editor = Editor(model_from_text(BODY, {"w": np.ones(2, np.float32)}).edit())
    assert editor.shared("w")
    set_input(editor.value("a").producer(), editor.value("w"), editor.constant("v", np.ones(2, np.float32)))
    assert not editor.drop_constant("w")
    exported = model_from_text(
        "net (float[2] x) => (float[2] y, float[2] w) { y = Add (x, w) }", {"w": np.ones(2, np.float32)}
    )
    editor = Editor(exported.edit())
    assert editor.shared("w")
    set_input(editor.value("y").producer(), editor.value("w"), editor.constant("v", np.ones(2, np.float32)))
    assert not editor.drop_constant("w")


def test_nodes_go_in_where_they_are_asked_for(model):
    editor = Editor(model.edit())
    editor.insert("Neg", [editor.value("x")], "first")
    editor.insert("Neg", [editor.value("a")], "middle", after=editor.value("a").producer())
    editor.insert("Neg", [editor.value("a")], "late", before=editor.value("y").producer())
    assert [node.op_type for node in editor.graph] == ["Neg", "Mul", "Neg", "Neg", "Add"]
    assert [node.outputs[0].name for node in editor.graph] == ["first", "a", "middle", "late", "y"]


def test_a_node_that_is_read_cannot_be_removed(model):
    editor = Editor(model.edit())
    with pytest.raises(ValueError, match="a"):
        editor.remove(editor.value("a").producer())


def test_unknown_tensors_are_refused_by_name(model):
    with pytest.raises(ModelError, match="'nonsense'"):
        Editor(model.edit()).value("nonsense")
