"""A layer's main weight as the matrix that multiplies what it reads, and back: y = W x for every row x.

| symbol | code | shape | meaning |
|---|---|---|---|
| W | matrix | [groups, out / groups, k] | one matrix per group of a convolution; elsewhere groups = 1 |
| x | a row | [k] | what one output position reads: k = in / groups * kernel (channel first, row-major), or k = in |
"""

from __future__ import annotations

import math

import numpy as np

from alula.errors import ModelError
from alula.graph.layers import Layer


def no_matrix(layer: Layer) -> str | None:
    """Why a layer does not multiply what it reads by one matrix per group, or None where it does."""
    if layer.operator == "Conv":
        return None
    if layer.operator not in ("Gemm", "MatMul"):
        return f"its weight is that of a {layer.operator}, not one matrix that multiplies what it reads"
    if len(layer.shape) != 2:
        return f"its weight of shape {list(layer.shape)} is a stack of matrices, not one"
    return None


def matrix_shape(layer: Layer) -> tuple[int, int, int]:
    """The shape of :func:`weight_matrix`: groups, rows of each, columns.

    Raises:
        ModelError: the layer does not multiply by one matrix per group (it is named).
    """
    reason = no_matrix(layer)
    if reason is not None:
        raise ModelError(f"layer {layer.name!r}: {reason}")
    rows, columns = layer.shape[layer.output_axis], math.prod(layer.shape[axis] for axis in layer.input_axes)
    return layer.groups, rows // layer.groups, columns


def weight_matrix(weight: np.ndarray, layer: Layer) -> np.ndarray:  # -> [groups, out / groups, k]
    """The main weight of a layer as matrices; a view where that is possible, in the type that it has.

    Raises:
        ModelError: the layer does not multiply by one matrix per group, or the weight has another shape than it has.
    """
    shape = matrix_shape(layer)
    if weight.shape != layer.shape:
        raise ModelError(f"layer {layer.name!r} has a weight of shape {list(layer.shape)}, got {list(weight.shape)}")
    return np.moveaxis(weight, layer.output_axis, 0).reshape(shape)


def from_matrix(matrix: np.ndarray, layer: Layer) -> np.ndarray:  # [groups, out / groups, k] -> the weight's shape
    """The weight of a layer that :func:`weight_matrix` gives as this matrix.

    Raises:
        ModelError: the layer does not multiply by one matrix per group, or the matrix has another shape.
    """
    shape = matrix_shape(layer)
    if matrix.shape != shape:
        raise ModelError(f"layer {layer.name!r} has a matrix of shape {list(shape)}, got {list(matrix.shape)}")
    inner = tuple(length for axis, length in enumerate(layer.shape) if axis != layer.output_axis)
    stacked = matrix.reshape(layer.shape[layer.output_axis], *inner)
    return np.ascontiguousarray(np.moveaxis(stacked, 0, layer.output_axis))
