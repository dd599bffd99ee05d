"""How the weights of a layer are rounded where calibration tells what the layer reads."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from alula.graph.layers import Layer
from alula.graph.matrices import from_matrix, no_matrix, weight_matrix
from alula.graph.model import Model
from alula.numerics.gptq import gptq
from alula.numerics.grids import Grid, Quantized
from alula.numerics.ranges import channel_mean_squared_error_range

Ends = tuple[NDArray[np.float32], NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class Rounding:
    """The settings of GPTQ (:func:`alula.numerics.gptq.gptq`) for the weights of one layer.

    Attributes:
        grid: the codes to use.
        block: weights along the summed axis that share a scale; None: one scale per output channel.
        search: find each range by least squared error instead of the extremes.
        by_size_of_inputs: round columns by falling mean square of what they read.
        damping: share of the mean of the second moments' diagonal that is added to it.
    """

    grid: Grid
    block: int | None
    search: bool
    by_size_of_inputs: bool
    damping: float

    def quantized(self, weight: np.ndarray, layer: Layer, moments: np.ndarray) -> Quantized:
        """The weight on the grid; ``moments`` [groups, k, k] are those of what the layer reads."""
        parts = [
            gptq(
                matrix,
                moment,
                self.grid,
                block=self.block,
                find_range=self._searched if self.search else None,
                by_size_of_inputs=self.by_size_of_inputs,
                damping=self.damping,
            )
            for matrix, moment in zip(weight_matrix(weight, layer), moments, strict=True)
        ]
        codes = from_matrix(np.stack([part.codes for part in parts]), layer)
        scale, zero_point = (np.concatenate(some) for some in zip(*((one.scale, one.zero_point) for one in parts),
                                                                   strict=True))  # fmt: skip
        if self.block is None:
            return Quantized(codes, scale, zero_point, layer.output_axis, None, self.grid)
        if layer.output_axis == 1:  # scales [out, blocks] lie as the weight does
            scale, zero_point = scale.T, zero_point.T
        return Quantized(codes, scale, zero_point, layer.input_axes[0], self.block, self.grid)

    def _searched(self, rows: NDArray[np.float32]) -> Ends:
        low, high = channel_mean_squared_error_range(rows, self.grid, axis=0)
        return np.asarray(low), np.asarray(high)


def unknown_inputs(model: Model, layer: Layer, name: str) -> str | None:
    """Why nothing is known of what a weight of a layer multiplies, or None."""
    if layer.input in model.graph.initializers:
        return "its input is a constant"
    return no_matrix(layer) or (None if name == layer.weight else "it multiplies states, not inputs")
