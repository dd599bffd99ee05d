"""Which tensors are zero with the weights of a unit."""

from __future__ import annotations

import numpy as np
import pytest

from alula.graph.channels import find_couplings, trace_axes
from alula.graph.running import Runner
from alula.graph.statistics import _exposing
from alula.graph.tidy import tidy
from alula.graph.vanishing import vanishes
from alula.testing.models import model_from_text
from tests.oracles.zeroing import without

BODIES = {
    "the product itself": ("t = MatMul (x, w)", True),
    "with its bias": ("h = MatMul (x, w) t = Add (h, c)", True),
    "with one number": ("h = MatMul (x, w) t = Add (h, one)", False),
    "scaled": ("h = MatMul (x, w) t = Mul (h, one)", True),
    "an odd function": ("h = MatMul (x, w) t = Tanh (h)", True),
    "a gate": ("h = MatMul (x, w) t = Sigmoid (h)", False),
    "gated": ("h = MatMul (x, w) g = Sigmoid (h) t = Mul (h, g)", True),
    "a cosine": ("h = MatMul (x, w) t = Cos (h)", False),
    "a sum of both": ("h = MatMul (x, w) k = Relu (h) t = Add (h, k)", True),
    "a sum with a gate": ("h = MatMul (x, w) g = Sigmoid (h) t = Add (h, g)", False),
    "one of two": ("h = MatMul (x, w) k = Greater (h, c) g = Sigmoid (h) t = Where (k, h, g)", False),
    "both of two": ("h = MatMul (x, w) k = Greater (h, c) g = Neg (h) t = Where (k, h, g)", True),
    "halves, turned": (
        "h = MatMul (x, w) a, b = Split <axis = 1> (h, half) n = Neg (b) r = Concat <axis = 1> (n, a) t = Add (h, r)",
        True,
    ),
}  # fmt: skip


@pytest.mark.parametrize("body", BODIES)
def test_it_is_zero_exactly_where_a_run_shows_zeros(body):
    text, wanted = BODIES[body]
    random = np.random.default_rng(0)
    weights = {
        name: random.standard_normal(shape).astype(np.float32)
        for name, shape in {"w": (6, 8), "c": (8,), "v": (8, 3)}.items()
    }
    declared = "float one = {1.0}, int64[2] half = {4, 4}"
    graph = f"n (float[b, 6] x) => (float[b, 3] y) <{declared}> {{ {text} y = MatMul (t, v) }}"
    model = tidy(model_from_text(graph, weights))
    axes = trace_axes(model)
    tensor = next(node.inputs[0] for node in model.graph if node.outputs[0].name == "y")
    units = axes.classes.roots(axes.of(tensor)[1])
    assert vanishes(axes, tensor, frozenset(units.tolist())) is wanted
    (coupling,) = find_couplings(model)
    zeroed = without(model, coupling, [1])
    x = random.standard_normal((5, 6)).astype(np.float32)
    shown = Runner(_exposing(zeroed, [tensor.name]), threads=1)._session.run([tensor.name], {"x": x})[0]
    (member,) = (member for member in coupling.members if member.initializer == "w")
    assert (not shown[:, member.indices[1]].any()) is wanted


def test_what_the_graph_is_given_does_not_vanish():
    model = tidy(model_from_text("n (float[b, 6] x) => (float[b, 6] y) { y = Relu (x) }", {}))
    axes = trace_axes(model)
    assert not vanishes(axes, model.graph.inputs[0], frozenset({1, 2}))
    assert not vanishes(axes, model.graph.inputs[0], frozenset())
