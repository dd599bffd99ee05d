"""Trained weights back into the module that a graph was exported from, whatever layout the exporter gave them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from alula.errors import ModelError
from alula.graph.model import Model

Layout = Callable[[np.ndarray], np.ndarray]
_GATES: Final = {4: (0, 2, 3, 1), 3: (1, 0, 2)}  # ONNX's i o f c and z r h in the order of PyTorch's LSTM and GRU


def update_module(module: nn.Module, before: Model, after: Model) -> nn.Module:
    """A copy of a module with the weights of a trained graph.

    Args:
        module: what ``before`` was exported from.
        before: the exported graph, by whose values it is found out how the exporter laid each weight out.
        after: the same graph, trained.

    Raises:
        ModelError: a weight that changed cannot be brought back into the module (named).
    """
    updated = copy.deepcopy(module)
    state = updated.state_dict()
    changed = [name for name in before.graph.initializers if _changed(name, before, after)]
    for name in changed:
        parts = [part for part in name.split("+") if part in state]
        if not parts or not _give_back(state, parts, before.weight(name), after.weight(name)):
            raise ModelError(
                f"the trained weight {name!r} has no counterpart in {type(module).__name__}; train the graph instead: "
                "pass export_module(module, example), and a Model comes back"
            )
    updated.load_state_dict(state)
    return updated


def _changed(name: str, before: Model, after: Model) -> bool:
    if name not in after.graph.initializers:
        raise ModelError(f"the graph has lost its weight {name!r}; it was changed by more than training")
    return not np.array_equal(before.weight(name), after.weight(name))


def _give_back(state: dict[str, Any], parts: list[str], before: np.ndarray, after: np.ndarray) -> bool:
    """Write a trained weight into the state; whether each of its parts was found in it."""
    old, new = _pieces(before, len(parts)), _pieces(after, len(parts))
    return all(any(_write(state[part], *pair) for pair in zip(old, new, strict=True)) for part in parts)


def _pieces(array: np.ndarray, count: int) -> list[np.ndarray]:
    """What an exported array holds of each of the tensors it was made of: recurrent layers join theirs."""
    if count == 1:
        return [array]
    return [] if array.size % count else list(array.reshape(count, -1, *array.shape[2:]))


def _write(target: Tensor, before: np.ndarray, after: np.ndarray) -> bool:
    """Write a piece in the layout in which it was the target, if there is one."""
    held = target.detach().cpu().double().numpy()
    for layout in _layouts(before):
        laid = layout(before)
        if laid.shape == held.shape and np.allclose(laid, held, rtol=1e-5, atol=1e-7):
            target.copy_(torch.from_numpy(np.array(layout(after), np.float64)))
            return True
    return False


def _layouts(array: np.ndarray) -> Iterator[Layout]:
    """The ways in which an exported array can stand for a tensor of PyTorch."""
    yield lambda values: values
    if array.ndim >= 2:
        yield lambda values: np.swapaxes(values, -1, -2)
    for count, order in _GATES.items():
        if array.ndim >= 2 and len(array) == 1 and array.shape[1] % count == 0:  # one direction of a recurrent layer
            yield partial(_reorder_first, count=count, order=order)
        if len(array) % count == 0:
            yield partial(_reorder, count=count, order=order)


def _reorder_first(values: np.ndarray, *, count: int, order: tuple[int, ...]) -> np.ndarray:
    return _reorder(values[0], count=count, order=order)


def _reorder(values: np.ndarray, *, count: int, order: tuple[int, ...]) -> np.ndarray:
    """Rows of gates in another order."""
    return np.concatenate([np.split(values, count)[gate] for gate in order])
