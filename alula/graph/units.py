"""Where the units of a coupling stand: in weights that compute them, in columns that read them, in tensors."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from alula.graph.channels import Axes, Coupling, Member, trace_grains
from alula.graph.layers import RECURRENT, Layer
from alula.graph.matrices import no_matrix
from alula.graph.model import Model

_NEVER_NEGATIVE = frozenset({"Relu", "Clip"})


@dataclass(frozen=True, slots=True, eq=False)
class Reader:
    """A layer that reads units: ``columns`` [units, k] of its matrix (:mod:`alula.graph.matrices`) are theirs."""

    layer: Layer
    columns: np.ndarray


@dataclass(frozen=True, slots=True, eq=False)
class Sighting:
    """A tensor that shows units: ``indices`` [units, k] along its ``axis``, of ``length`` places, are theirs."""

    tensor: str
    axis: int
    length: int
    indices: np.ndarray


def rows_of(weight: np.ndarray, member: Member) -> np.ndarray:  # -> [units, values of each]
    """All values that each unit has in an initializer, in one row."""
    taken = np.take(weight, member.indices.reshape(-1), member.axis)
    return np.moveaxis(taken, member.axis, 0).reshape(len(member.indices), -1)


def computing_rows(coupling: Coupling, array: Callable[[str], np.ndarray]) -> np.ndarray:  # -> [units, k]
    """All weights that compute each unit, in one row.

    Args:
        coupling: the units.
        array: the values of an initializer, by its name.
    """
    return joined_rows(coupling.producers, array)


def joined_rows(members: Sequence[Member], array: Callable[[str], np.ndarray]) -> np.ndarray:  # -> [units, k]
    """All values that each unit has in some initializers, in one row; ``array`` gives one by its name."""
    return np.concatenate([rows_of(array(member.initializer), member) for member in members], axis=1)


def scaling_members(model: Model, coupling: Coupling) -> tuple[Member, ...]:
    """Where the weights stand that each unit is a multiple of: as they are scaled together, so is the unit.

    They are the weights that compute it and its bias; where it is normalised by its mean and variance, whose weights it
    does not follow, the scale and shift of the normalisation instead.
    """
    produced = {member.initializer for member in coupling.members if member.produces}
    names = {name for layer in model.layers() if layer.weight in produced for name in _scaling(model, layer)}
    return tuple(member for member in coupling.members if member.initializer in names)


def _scaling(model: Model, layer: Layer) -> set[str]:
    """Initializers by which the output of a layer is scaled."""
    names = {layer.weight}
    if layer.operator in RECURRENT:
        return names
    names |= {layer.bias} if layer.bias is not None else set()
    value = next(node for node in model.graph if node.name == layer.name).outputs[0]
    while (node := _sole_reader(value)) is not None and node.op_type in ("Add", "BatchNormalization"):
        beside = {str(other.name) for other in node.inputs[:3] if other is not None and other.is_initializer()}
        if node.op_type == "BatchNormalization":
            return beside
        if not beside:
            break
        names, value = names | beside, node.outputs[0]
    return names


def _sole_reader(value: ir.Value) -> ir.Node | None:
    """What alone reads a tensor."""
    readers = [use.node for use in value.uses()]
    return readers[0] if len(readers) == 1 and not value.is_graph_output() else None


def readers_of(model: Model, coupling: Coupling) -> tuple[Reader, ...]:
    """The layers that multiply these units by a matrix of their own; see :func:`other_readers_of` for the rest."""
    return tuple(
        Reader(layers[0], _columns(layers[0], member))
        for member, layers in _reading(model, coupling)
        if _obstacle(model, layers) is None
    )


def other_readers_of(model: Model, coupling: Coupling) -> dict[str, str]:
    """Layers that read these units otherwise, by name, and how."""
    return {
        layer.name: reason
        for _, layers in _reading(model, coupling)
        if (reason := _obstacle(model, layers)) is not None
        for layer in layers
    }


def _reading(model: Model, coupling: Coupling) -> Iterator[tuple[Member, list[Layer]]]:
    """Where units are read, and the layers that read them there: several, if they share a weight."""
    for member in coupling.members:
        layers = [layer for layer in model.layers() if member.initializer in layer.weights]
        if layers and member.axis in layers[0].input_axes:
            yield member, layers


def _obstacle(model: Model, layers: Sequence[Layer]) -> str | None:
    if len(layers) > 1:
        return f"its weight is shared by {', '.join(layer.name for layer in layers[:3])}"
    weight = model.graph.initializers[layers[0].weight]
    if len(weight.uses()) > 1 or weight.is_graph_output():
        return "something that is no layer reads its weight too"
    return no_matrix(layers[0])


def _columns(layer: Layer, member: Member) -> np.ndarray:  # -> [units, k]
    """Columns of the layer's matrix: those of a channel are one for each place of the kernel."""
    kernel = math.prod(layer.shape[axis] for axis in layer.input_axes if axis != member.axis)
    columns = member.indices[:, :, None] * kernel + np.arange(kernel)
    return columns.reshape(len(member.indices), -1)


def sightings_of(model: Model, couplings: Sequence[Coupling]) -> list[tuple[Sighting, ...]]:
    """Of each coupling, the tensors that show its units.

    They are those behind a Relu or Clip; where none of them does, the outputs of the layers that compute the units;
    none where neither do.
    """
    grains = {axes.grain: axes for axes in trace_grains(model)}
    found = []
    for coupling in couplings:
        seen = list(_seen(model, grains[coupling.grain], coupling))
        chosen = [sighting for node, sighting in seen if node.op_type in _NEVER_NEGATIVE]
        weights = {member.initializer for member in coupling.members if member.produces}
        chosen = chosen or [
            sighting for node, sighting in seen if weights & {value.name for value in node.inputs if value}
        ]
        found.append(tuple(chosen))
    return found


def _seen(model: Model, axes: Axes, coupling: Coupling) -> Iterator[tuple[ir.Node, Sighting]]:
    """All tensors with the units along an axis, and the nodes that compute them."""
    member = coupling.members[0]
    ids = axes.by_value[model.graph.initializers[member.initializer]][member.axis]
    assert ids is not None
    units = axes.classes.roots(ids[member.indices[:, 0]])  # [units]
    for node in model.graph:
        for value in node.outputs:
            for axis, along in enumerate(axes.by_value.get(value, [])):
                indices = None if along is None else _places(axes.classes.roots(along), units)
                if along is not None and indices is not None:
                    yield node, Sighting(str(value.name), axis, len(along), indices)


def _places(roots: np.ndarray, units: np.ndarray) -> np.ndarray | None:  # [length], [units] -> [units, k]
    """Where each unit stands along an axis; None where one stands nowhere, or they stand differently often."""
    order = np.argsort(roots, kind="stable")
    first = np.searchsorted(roots[order], units, "left")
    counts = np.searchsorted(roots[order], units, "right") - first
    if len(counts) == 0 or counts[0] == 0 or (counts != counts[0]).any():
        return None
    return np.asarray(order[first[:, None] + np.arange(counts[0])])
