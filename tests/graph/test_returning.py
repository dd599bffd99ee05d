"""Trained weights of a graph back in the module: the module then computes what the graph computes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from alula import export_module
from alula.errors import ModelError
from alula.graph.editing import Editor
from alula.graph.model import Model
from alula.graph.returning import update_module


class Everything(nn.Module):
    """Layers whose weights the exporter transposes, joins and orders anew."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(10, 8)
        self.square = nn.Linear(8, 8)
        self.attention = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.forwards = nn.LSTM(8, 8, batch_first=True)
        self.both = nn.LSTM(8, 4, batch_first=True, bidirectional=True)
        self.gated = nn.GRU(8, 8, batch_first=True)
        self.norm = nn.BatchNorm1d(8)
        self.head = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.attention(self.square(self.table(x)))
        h = self.gated(self.both(self.forwards(h)[0])[0])[0]
        return self.head(self.norm(h.mean(1)))


def trained(model: Model, module: nn.Module) -> Model:
    """The graph with all weights of a module moved a little, as training does."""
    editor, rng, known = Editor(model.edit()), np.random.default_rng(0), set(module.state_dict())
    for name, value in model.graph.initializers.items():
        array = value.const_value.numpy()
        if array.dtype == np.float32 and array.size > 1 and known.issuperset(name.split("+")):
            moved = array + rng.uniform(0.01, 0.05, array.shape).astype(np.float32)
            editor.replace_constant(name, moved)
    return model.edited(editor.model)


def test_the_module_computes_what_the_trained_graph_computes() -> None:
    torch.manual_seed(0)
    module, x = Everything().eval(), torch.randint(0, 10, (2, 5))
    before = export_module(module, x)
    after = trained(before, module)
    was = module(x).detach().numpy().copy()
    updated = update_module(module, before, after)
    want = after.run({"x": x.numpy()})[after.outputs[0].name]
    assert np.abs(want - was).max() > 0.01  # training moved the output
    np.testing.assert_allclose(updated(x).detach().numpy(), want, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(module(x).detach().numpy(), was)  # the user's own is as it was


def test_a_weight_without_counterpart_is_named() -> None:
    module, x = nn.Sequential(nn.Linear(4, 4)), torch.randn(2, 4)
    before = export_module(module, x)
    with pytest.raises(ModelError, match=r"'0\.weight' has no counterpart in the module"):
        update_module(nn.Sequential(nn.ReLU(), nn.Linear(4, 4)), before, trained(before, module))


def test_a_graph_that_lost_a_weight_is_refused() -> None:
    one, other = (export_module(nn.Sequential(nn.Linear(4, 4, bias=bias)), torch.randn(2, 4)) for bias in (True, False))
    with pytest.raises(ModelError, match=r"lost its weight '0\.bias'"):
        update_module(nn.Sequential(nn.Linear(4, 4)), one, other)


class Alike(nn.Module):
    """Weights whose values do not tell how they were laid out: zeros, and the identity."""

    def __init__(self) -> None:
        super().__init__()
        self.square, self.cells, self.gated = nn.Linear(6, 6), nn.LSTM(6, 6), nn.GRU(6, 6)
        nn.init.eye_(self.square.weight)
        for cells in (self.cells, self.gated):
            for name, value in cells.named_parameters():
                if "bias" in name:
                    nn.init.zeros_(value)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.gated(self.cells(self.square(x))[0])[0]


def test_where_values_tell_nothing_another_export_does() -> None:
    torch.manual_seed(0)
    module, x = Alike().eval(), torch.randn(3, 2, 6)

    def export(one: nn.Module) -> Model:
        return export_module(one, x, dynamic_batch=False)

    before = export(module)
    after = trained(before, module)
    updated = update_module(module, before, after, export)
    want = next(iter(after.run({"x": x.numpy()}).values()))
    np.testing.assert_allclose(updated(x).detach().numpy(), want, rtol=1e-4, atol=1e-5)
    with pytest.raises(ModelError, match="do not tell how the exporter laid"):
        update_module(module, before, after)
