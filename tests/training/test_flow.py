"""Tensors that are held from one to the next are those that whole runs give, whatever changes in between."""

from __future__ import annotations

import numpy as np
import pytest

from alula.errors import DataError
from alula.graph import walking
from alula.graph.editing import Editor
from alula.graph.model import Model
from alula.testing.models import model_from_text
from alula.training.flow import Flow

# a stream that is read again at the end, a branch of two layers, and a layer that reads what another has read already
TEXT = """n (float[b, 4] x) => (float[b, 4] y) { s = MatMul (x, w0)
    a = MatMul (s, w1) r = Relu (a) c = MatMul (r, w2) d = MatMul (s, w3) t = Add (c, d) u = Add (t, s)
    y = MatMul (u, w4) }"""
ASKED = {0: "x", 1: "s", 2: "r", 3: "s", 4: "u"}  # what the layer of a weight reads


def network() -> Model:
    random = np.random.default_rng(0)
    return model_from_text(TEXT, {f"w{one}": random.normal(size=(4, 4)).astype(np.float32) for one in range(5)})


def feeds(count: int = 3) -> list[dict[str, np.ndarray]]:
    return [{"x": np.random.default_rng(one).normal(size=(2, 4)).astype(np.float32)} for one in range(count)]


def layer_of(model: Model, number: int) -> str:
    return next(one.name for one in model.layers() if one.weight == f"w{number}")


def scaled(model: Model, number: int) -> Model:
    editor = Editor(model.edit())
    editor.replace_constant(f"w{number}", 2 * model.weight(f"w{number}"))
    return model.edited(editor.model)


@pytest.mark.parametrize("order", [(0, 1, 2, 3, 4), (0, 3, 1, 2, 4), (0, 1, 4, 2, 3), (4, 2, 0, 1, 3), (4, 3, 2, 1, 0)])
def test_it_is_what_whole_runs_give(order):
    model = network()
    held, anew = Flow(feeds(), hold=True), Flow(feeds(), hold=False)
    for place, number in enumerate(order):
        names, later = list(dict.fromkeys((ASKED[number], "x"))), [ASKED[one] for one in order[place + 1 :]]
        made, wanted = (list(one.tensors(model, names, [*later, "x"])) for one in (held, anew))
        for one, other in zip(made, wanted, strict=True):
            assert list(one) == names
            for name in names:
                np.testing.assert_array_equal(one[name], other[name])
        model = scaled(model, number)
        held.change([layer_of(model, number)])


def test_nothing_runs_twice(monkeypatch):
    model, run = network(), []
    counted = walking.copy_out

    def counting(graph, nodes, inputs, outputs):
        run.extend(node.name for node in nodes)
        return counted(graph, nodes, inputs, outputs)

    monkeypatch.setattr(walking, "copy_out", counting)
    flow = Flow(feeds(), hold=True)
    for number, name in enumerate(("s", "r", "s", "u", "y")):
        list(flow.tensors(model, [name], ["s", "u", "y"]))
        flow.change([layer_of(model, 4)] if number < 4 else [])
    assert sorted(run) == sorted(node.name for node in model.graph)


@pytest.mark.parametrize("hold", [True, False])
def test_what_is_not_finite_is_refused(hold):
    data = [{"x": np.full((2, 4), 3e38, np.float32)}]
    with pytest.raises(DataError, match="'s'"), np.errstate(all="ignore"):
        list(Flow(data, hold=hold).tensors(network(), ["s"], []))
