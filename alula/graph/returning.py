"""Trained weights back into the module that a graph was exported from, whatever layout the exporter gave them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, Final

import numpy as np
import torch
from torch import nn

from alula.errors import ModelError
from alula.graph.layers import RECURRENT
from alula.graph.model import Model

Layout = Callable[[np.ndarray], np.ndarray]
_GATES: Final = {4: (0, 2, 3, 1), 3: (1, 0, 2)}  # ONNX's i o f c and z r h in the order of PyTorch's LSTM and GRU


def update_module(
    module: nn.Module, before: Model, after: Model, export: Callable[[nn.Module], Model] | None = None
) -> nn.Module:
    """A copy of a module with the weights of a trained graph.

    Args:
        module: what ``before`` was exported from.
        before: the exported graph, by whose values it is found out how the exporter laid each weight out.
        after: the same graph, trained.
        export: exports a module as ``module`` was. Where values do not tell layouts apart (zeros, a symmetric matrix),
            a copy of the module with other values is exported to tell them.

    Raises:
        ModelError: a weight that changed cannot be brought back into the module (named).
    """
    changed = [name for name in before.graph.initializers if _changed(name, before, after)]
    updated = copy.deepcopy(module)
    state = updated.state_dict()
    try:
        _give_all_back(state, changed, before, after)
    except _UnclearError:
        if export is None:
            raise
        marked = _marked(module)
        told = export(marked)
        old = {name: value.detach().cpu().double().numpy() for name, value in marked.state_dict().items()}
        _give_all_back(state, changed, told, after, old)
    updated.load_state_dict(state)
    return updated


class _UnclearError(ModelError):
    """The values of a weight do not tell how it was laid out."""


def _marked(module: nn.Module) -> nn.Module:
    """A copy whose values are all different."""
    marked = copy.deepcopy(module)
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in marked.state_dict().values():
            if value.is_floating_point():
                value.copy_(torch.rand(value.shape, generator=random) + 0.5)
    return marked


def _give_all_back(
    state: dict[str, Any],
    names: list[str],
    before: Model,
    after: Model,
    held: Mapping[str, np.ndarray] | None = None,
) -> None:
    """Write trained weights into a state.

    Args:
        state: of the module; it is changed.
        names: of the initializers to write.
        before: a graph whose weights are those that were ``held``.
        after: the trained graph.
        held: values of the state by name, as ``before`` has them; None: those of ``state``.
    """
    known = {name: value.detach().cpu().double().numpy() for name, value in state.items()} if held is None else held
    for name in names:
        parts = [part for part in name.split("+") if part in state]
        gated = name in _of_gates(before)
        laid = {
            part: _laid_out(known[part], before.weight(name), after.weight(name), len(parts), gated=gated)
            for part in parts
        }
        if not parts or not all(laid.values()):
            raise ModelError(
                f"the trained weight {name!r} has no counterpart in the module; train the graph instead: pass "
                "export_module(module, example), and a Model comes back"
            )
        for part, found in laid.items():
            if any(not np.array_equal(one, found[0]) for one in found[1:]):
                raise _UnclearError(f"the values of {part!r} do not tell how the exporter laid {name!r} out")
            state[part].copy_(torch.from_numpy(np.array(found[0], np.float64)))


def _of_gates(model: Model) -> set[str]:
    """The weights and biases of recurrent layers."""
    nodes = [node for node in model.graph if node.op_type in RECURRENT]
    return {str(value.name) for node in nodes for value in node.inputs[1:4] if value is not None}


def _laid_out(held: np.ndarray, before: np.ndarray, after: np.ndarray, count: int, *, gated: bool) -> list[np.ndarray]:
    """What a tensor of the module becomes, by each layout that made the exported array of it."""
    found = []
    for old, new in zip(_pieces(before, count), _pieces(after, count), strict=True):
        for layout in _gate_layouts(old) if gated else _layouts(old):
            laid = layout(old)
            if laid.shape == held.shape and np.allclose(laid, held, rtol=1e-5, atol=1e-7):
                found.append(layout(new))
    return found


def _changed(name: str, before: Model, after: Model) -> bool:
    if name not in after.graph.initializers:
        raise ModelError(f"the graph has lost its weight {name!r}; it was changed by more than training")
    return not np.array_equal(before.weight(name), after.weight(name))


def _pieces(array: np.ndarray, count: int) -> list[np.ndarray]:
    """What an exported array holds of each of the tensors it was made of: recurrent layers join theirs."""
    if count == 1:
        return [array]
    return [] if array.size % count else list(array.reshape(count, -1, *array.shape[2:]))


def _layouts(array: np.ndarray) -> Iterator[Layout]:
    """The ways in which an exported array can stand for a tensor of PyTorch."""
    yield lambda values: values
    if array.ndim >= 2:
        yield lambda values: np.swapaxes(values, -1, -2)


def _gate_layouts(array: np.ndarray) -> Iterator[Layout]:
    """The same of recurrent layers: gates in another order, of one direction by itself or of one of several."""
    yield lambda values: values
    if array.ndim >= 2 and len(array) == 1:
        yield lambda values: values[0]
    for count, order in _GATES.items():
        if array.ndim >= 2 and len(array) == 1 and array.shape[1] % count == 0:
            yield partial(_reorder_first, count=count, order=order)
        if len(array) % count == 0:
            yield partial(_reorder, count=count, order=order)


def _reorder_first(values: np.ndarray, *, count: int, order: tuple[int, ...]) -> np.ndarray:
    return _reorder(values[0], count=count, order=order)


def _reorder(values: np.ndarray, *, count: int, order: tuple[int, ...]) -> np.ndarray:
    """Rows of gates in another order."""
    return np.concatenate([np.split(values, count)[gate] for gate in order])
