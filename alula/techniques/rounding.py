"""How the weights of a layer are rounded where calibration tells what the layer reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from alula.graph.layers import Layer
from alula.graph.matrices import from_matrix, weight_matrix
from alula.graph.model import Model
from alula.numerics.gptq import Ends, gptq
from alula.numerics.grids import Grid, Quantized
from alula.numerics.ranges import channel_mean_squared_error_range, output_error_range
from alula.techniques.compensation import why_no_moments

Ranges = Literal["extremes", "weights", "outputs"]


@dataclass(frozen=True, slots=True)
class Rounding:
    """How the weights of one layer are put on a grid.

    Attributes:
        grid: the codes to use.
        block: weights along the summed axis that share a scale; None: one scale per output channel.
        ranges: of each row: its ``extremes``, or the range of least squared error of its ``weights`` or of the
            layer's ``outputs``.
        nearest: round to the nearest code; else by GPTQ (:func:`alula.numerics.gptq.gptq`).
        by_size_of_inputs: GPTQ rounds columns by falling mean square of what they read.
        damping: of GPTQ: share of the mean of the second moments' diagonal that is added to it.
    """

    grid: Grid
    block: int | None
    ranges: Ranges
    nearest: bool
    by_size_of_inputs: bool
    damping: float

    def quantized(self, weights: Sequence[np.ndarray], layers: Sequence[Layer], moments: np.ndarray) -> list[Quantized]:
        """The weights of layers on the grid; ``moments`` [groups, k, k] are those of what all of them read.

        Rows of a matrix are rounded each by itself, so that those of several layers are rounded in one go.
        """
        matrices = [weight_matrix(weight, layer) for weight, layer in zip(weights, layers, strict=True)]
        joined = np.concatenate(matrices, axis=1)  # [groups, out, k]
        order = self._columns(layers[0], moments.shape[-1])
        if order is not None:
            joined, moments = joined[..., order], moments[:, order[:, None], order]
        parts = [self._rounded(*pair) for pair in zip(joined, moments, strict=True)]
        codes = np.stack([part.codes for part in parts])
        if order is not None:
            codes = codes[..., np.argsort(order)]
        scale, zero_point = (np.stack([getattr(part, name) for part in parts]) for name in ("scale", "zero_point"))
        ends = np.cumsum([matrix.shape[1] for matrix in matrices])[:-1]
        pieces = zip(layers, *(np.split(one, ends, axis=1) for one in (codes, scale, zero_point)), strict=True)
        return [self._of_layer(*piece) for piece in pieces]

    def _of_layer(self, layer: Layer, codes: np.ndarray, scale: np.ndarray, zero_point: np.ndarray) -> Quantized:
        """Codes [groups, out / groups, k] and what belongs to rows [groups, out / groups, ...] as the weight lies."""
        held = from_matrix(codes, layer)
        scale, zero_point = (one.reshape(-1, *one.shape[2:]) for one in (scale, zero_point))
        if self.block is None:
            return Quantized(held, scale, zero_point, layer.output_axis, None, self.grid)
        scale, zero_point = (self._laid(one, layer) for one in (scale, zero_point))
        return Quantized(held, scale, zero_point, layer.input_axes[0], self.block, self.grid)

    def _columns(self, layer: Layer, count: int) -> NDArray[np.intp] | None:  # -> [k]
        """The order of columns in which blocks lie in one piece, the places of a kernel in turn; None: as they are."""
        if self.block is None or layer.operator != "Conv":
            return None
        return np.arange(count).reshape(layer.shape[1], -1).T.ravel()

    def _laid(self, parameter: NDArray[Any], layer: Layer) -> NDArray[Any]:  # [out, blocks]
        """Scales or zero points as the weight lies: [out, blocks], [blocks, out], or [out, blocks, kernel...]."""
        if layer.operator == "Conv":
            by_place = parameter.reshape(len(parameter), *layer.shape[2:], -1)
            return np.ascontiguousarray(np.moveaxis(by_place, -1, 1))
        return parameter.T if layer.output_axis == 1 else parameter

    def _rounded(self, matrix: np.ndarray, moments: np.ndarray) -> Quantized:  # [out, k], [k, k]
        def find_range(rows: NDArray[np.float32], columns: NDArray[np.intp]) -> Ends:
            if self.ranges == "outputs":
                return output_error_range(rows, moments[np.ix_(columns, columns)], self.grid)
            low, high = channel_mean_squared_error_range(rows, self.grid, axis=0)
            return np.asarray(low), np.asarray(high)

        return gptq(
            matrix,
            np.eye(len(moments)) if self.nearest else moments,  # where inputs have nothing in common it is the nearest
            self.grid,
            block=self.block,
            find_range=None if self.ranges == "extremes" else find_range,
            by_size_of_inputs=self.by_size_of_inputs and not self.nearest,
            damping=self.damping,
        )


def unknown_inputs(model: Model, layer: Layer, name: str) -> str | None:
    """Why nothing is known of what a weight of a layer multiplies, or None."""
    if layer.input in model.graph.initializers:
        return "its input is a constant"
    return why_no_moments(layer) or (None if name == layer.weight else "it multiplies states, not inputs")
