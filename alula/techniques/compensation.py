"""Layers that make up for what they no longer read: least squares against what calibration saw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from alula.errors import ModelError, at
from alula.graph.channels import Coupling
from alula.graph.editing import Editor
from alula.graph.layers import Layer
from alula.graph.matrices import from_matrix, matrix_shape, no_matrix, weight_matrix
from alula.graph.model import Model, Note
from alula.graph.statistics import AnyRequest, MomentRequest, Statistics
from alula.graph.units import other_readers_of, readers_of
from alula.numerics.brain_surgeon import compensated, damped

Floats: TypeAlias = NDArray[np.float64]

LARGEST: Final = 8192  # values that an output reads: 512 MiB of second moments, and seconds to solve


def moment_requests(model: Model, couplings: Sequence[Coupling]) -> frozenset[AnyRequest]:
    """Second moments of what each layer reads that :func:`compensate` can change."""
    readers = (reader for coupling in couplings for reader in readers_of(model, coupling))
    return frozenset(MomentRequest(reader.layer.name) for reader in readers if is_solvable(reader.layer))


def is_solvable(layer: Layer) -> bool:
    """Whether second moments of what a layer reads, k^2 numbers, are kept in memory."""
    return why_no_moments(layer) is None


def why_no_moments(layer: Layer) -> str | None:
    """Why second moments of what a layer reads, k^2 numbers, are not kept, or None."""
    reason = no_matrix(layer)
    if reason is None and matrix_shape(layer)[-1] > LARGEST:
        return f"each of its outputs reads {matrix_shape(layer)[-1]:,} values, more than {LARGEST:,}"
    return reason


def compensate(
    model: Model,
    couplings: Sequence[Coupling],
    gone: Mapping[str, Sequence[int]],
    statistics: Statistics,
    damping: float = 0.01,
) -> Model:
    """The graph with the layers that read what is about to go changed for the best: their columns of it are 0.

    Args:
        model: the graph.
        couplings: of it.
        gone: numbers of the units that go, by the name of their coupling.
        statistics: second moments of what the readers read (:func:`moment_requests`).
        damping: what is added to their diagonal, as a share of its mean; it keeps weights near what they were.

    Raises:
        ModelError: second moments were not collected, or are of a graph of other widths.
    """
    losing = [coupling for coupling in couplings if len(gone.get(coupling.name, ()))]
    columns: dict[str, list[np.ndarray]] = {}  # of each layer, by its name
    for coupling in losing:
        for reader in readers_of(model, coupling):
            lost = reader.columns[list(gone[coupling.name])]
            columns.setdefault(reader.layer.name, []).append(lost.reshape(-1))
    editor = Editor(model.edit())
    for layer in model.layers():
        if layer.name not in columns or not is_solvable(layer):
            continue
        matrices, hessians = least_squares_of(model, layer, statistics, damping)
        solved = [
            compensated(matrix, hessian, np.concatenate(columns[layer.name]))
            for matrix, hessian in zip(matrices, hessians, strict=True)
        ]
        editor.replace_constant(layer.weight, from_matrix(np.stack(solved).astype(matrices.dtype), layer))
    others = {name: why for coupling in losing for name, why in other_readers_of(model, coupling).items()}
    others |= {
        layer.name: why
        for layer in model.layers() if layer.name in columns and (why := why_no_moments(layer)) is not None
    }  # fmt: skip
    notes = [Note(name, f"does not make up for the units that it read: {why}") for name, why in others.items()]
    return model.edited(editor.model, notes)


def least_squares_of(
    model: Model, layer: Layer, statistics: Statistics, damping: float
) -> tuple[np.ndarray, list[Floats]]:  # [groups, rows, k], groups of [k, k]
    """A layer's matrices, and the Hessian matrices of the squared errors of what they give.

    Raises:
        ModelError: second moments were not collected, or are of a layer of another width, or a weight is not finite.
    """
    matrices = weight_matrix(model.weight(layer.weight), layer)
    moments = moments_of(statistics, layer)
    if not np.isfinite(matrices).all():
        raise ModelError(f"layer {layer.name!r}: its weights hold NaN or infinity; nothing can be fitted to them")
    with at(f"layer {layer.name!r}"):
        return matrices, [damped(group, damping) for group in moments]


def moments_of(statistics: Statistics, layer: Layer) -> Floats:  # -> [groups, k, k]
    """Second moments of what a layer reads.

    Raises:
        ModelError: they were not collected, or on a graph in which the layer has another width.
    """
    moments = statistics.moments(layer.name).matrix
    check_size(f"second moments of layer {layer.name!r}", moments.shape[-1], matrix_shape(layer)[-1])
    return moments


def check_size(what: str, seen: int, wanted: int) -> None:
    """Raise ModelError unless statistics are as wide as the graph is now."""
    if seen != wanted:
        raise ModelError(
            f"the {what} are of {seen} values, the graph has {wanted} now; calibrate after what changed its width, or "
            "give apply_recipe feeds"
        )
