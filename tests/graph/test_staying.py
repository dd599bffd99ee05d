"""Units that must stay are refused with the reason."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from alula import export_module
from alula.errors import ModelError
from alula.graph.removal import remove_units
from alula.graph.staying import why_none_goes, why_units_stay
from alula.testing.models import model_from_text


class Three(nn.Module):
    """A layer whose features a softmax reads, one around which the input is added, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.inner, self.outer, self.head = (nn.Linear(6, 6) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.softmax(self.gate(x), 1)
        y = torch.relu(self.inner(x))
        return torch.sigmoid(self.head(torch.relu(self.outer(x)) + y))


@pytest.mark.parametrize(("name", "message"), [
    ("head", "'head' cannot go: they reach the graph's output 'sigmoid'"),
    ("gate", "'gate' cannot go: what comes behind reads them as a whole"),
    ("outer", "'outer' go with those of 'inner'; name that"),
    ("nowhere", "no units are called 'nowhere'"),
])  # fmt: skip
def test_units_that_cannot_go_by_that_name_are_refused_with_the_reason(name: str, message: str) -> None:
    model = export_module(Three(), torch.zeros(2, 6))
    with pytest.raises(ModelError, match=message):
        remove_units(model, {name: [0]})


def test_layers_that_the_patterns_leave_out_are_named():
    model = model_from_text(
        "g (float[b, 4] x) => (float[b, 3] y) "
        "{ a = MatMul (x, first) c = MatMul (x, second) s = Add (a, c) r = Relu (s) y = MatMul (r, last) }",
        {
            "first": np.ones((4, 5), np.float32),
            "second": np.ones((4, 5), np.float32),
            "last": np.ones((5, 3), np.float32),
        },
    )
    first, second, last = model.layers()
    assert f"they go with those of {second.name}, which the patterns leave out" in why_none_goes(model, [first])
    assert "reach the graph's output 'y'" in why_none_goes(model, [last])
    assert why_none_goes(model, []) == "the patterns choose none"
    empty = model_from_text("g (float[b, 4] x) => (float[b, 4] y) { y = Relu (x) }")
    assert why_none_goes(empty, []) == "the graph has no layers"


def test_outputs_of_bodies_are_no_outputs_of_the_graph():
    model = model_from_text(
        """g (float[b, 4] x, bool which) => (float[b, 1] y) {
            h = MatMul (x, w)
            n = If (which) <then_branch = p () => (float[b, 4] t) { t = Identity (h) },
                            else_branch = q () => (float[b, 4] u) { u = Neg (h) }>
            y = ReduceSum <keepdims = 1> (n, axes)
        }""",
        {"w": np.ones((4, 4), np.float32), "axes": np.array([1])},
    )
    assert "'t'" not in why_units_stay(model, model.layers()[0])
