"""Units that must stay are refused with the reason."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from alula import export_module
from alula.errors import ModelError
from alula.graph.removal import remove_units


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
