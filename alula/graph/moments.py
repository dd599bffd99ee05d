"""Second moments of what a layer reads, streamed: one matrix per layer, whatever the data.

| symbol | code | shape | meaning |
|---|---|---|---|
| x | rows | [groups, rows, k] | what each output position reads: windows of a convolution, padding included |
| M | matrix | [groups, k, k] | mean over rows of x x^T: products in float32, their sum in float64 |

Layers that read the same rows (query, key and value of an attention) share one matrix.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import onnx_ir as ir

from alula.errors import DataError
from alula.graph.matrices import matrix_shape

if TYPE_CHECKING:
    from alula.graph.layers import Layer

TOGETHER: Final = 2  # times as many rows as columns are multiplied at once
SAFE_EXPONENT: Final = 40  # the largest number of a row, as a power of two, whose square float32 holds with ease
CHUNK_VALUES: Final = 2**23  # of rows that are unfolded at a time, 64 MiB


@dataclass(frozen=True, slots=True, eq=False)
class SecondMoments:
    """``matrix`` [groups, k, k]: the mean over ``rows`` of x x^T, with x what the layer's matrix multiplies."""

    matrix: np.ndarray
    rows: int


@dataclass(frozen=True, slots=True)
class Reading:
    """Which tensor a layer reads, and how its rows are found in it; equal readings see equal rows.

    Attributes:
        tensor: the tensor's name.
        groups: groups of channels that are read apart.
        columns: k, the length of a row.
        summed: the axis that is summed over, of a product; None of a convolution.
        window: the kernel's shape and attributes, of a convolution.
    """

    tensor: str
    groups: int
    columns: int
    summed: int | None = None
    window: tuple[tuple[str, Any], ...] = ()

    def rows(self, array: np.ndarray) -> Iterator[np.ndarray]:  # -> [groups, rows, k], piece by piece
        """The rows of one run, in pieces of bounded size."""
        if self.summed is None:
            yield from self._windows(array)
            return
        axis = self.summed if array.ndim > 1 else -1
        flat = np.moveaxis(array, axis, -1).reshape(-1, self.columns)
        step = max(1, CHUNK_VALUES // max(self.columns, 1))
        for start in range(0, len(flat), step):
            yield flat[None, start : start + step]

    def _windows(self, array: np.ndarray) -> Iterator[np.ndarray]:  # [N, C, *space] -> [groups, rows, k]
        from alula.graph.ops.windows import Window

        window = Window.over(array.shape[2:], **{key: _listed(value) for key, value in self.window})
        positions = window.positions(array.shape[2:])
        if min(positions, default=1) < 1:
            return
        line = max(int(np.prod(positions[1:])) * self.columns * self.groups, 1)  # values of one place of the first axis
        lines = max(1, CHUNK_VALUES // line)
        step = max(1, lines // max(positions[0], 1)) if positions else max(1, CHUNK_VALUES // self.columns)
        for start in range(0, len(array), step):
            windows = self._unfold(array[start : start + step], window)
            for first in range(0, windows.shape[2], lines):
                piece = windows[:, :, first : first + lines]
                yield piece.reshape(self.groups, -1, self.columns)

    def _unfold(self, array: np.ndarray, window: Any) -> np.ndarray:  # [N, C, *space] -> [g, N, *out, C / g, *kernel]
        """All windows, in the memory of what they show."""
        axes = len(window.kernel_shape)
        pads = [(0, 0), (0, 0), *zip(window.pads[:axes], window.pads[axes:], strict=True)]
        padded = np.pad(array, pads)
        grouped = padded.reshape(len(array), self.groups, -1, *padded.shape[2:])  # [N, g, C / g, *space]
        reaches = np.lib.stride_tricks.sliding_window_view(grouped, window.reach, axis=tuple(range(3, 3 + axes)))
        strided = (slice(None, None, stride) for stride in window.strides)
        spread = (slice(None, None, dilation) for dilation in window.dilations)
        windows = reaches[(slice(None), slice(None), slice(None), *strided, *spread)]  # [N, g, C / g, *out, *kernel]
        order = (1, 0, *range(3, 3 + axes), 2, *range(3 + axes, 3 + 2 * axes))
        return np.asarray(windows.transpose(order))


def reading_of(layer: Layer, node: ir.Node) -> Reading:
    """How a layer reads its rows.

    Raises:
        ModelError: the layer does not multiply what it reads by a matrix (it is named).
    """
    groups, _, columns = matrix_shape(layer)
    if layer.operator != "Conv":
        from_left = layer.operator == "MatMul" and layer.output_axis == 0  # W x instead of x W
        return Reading(layer.input, groups, columns, summed=-2 if from_left else -1)
    told: dict[str, Any] = {
        "kernel_shape": layer.shape[2:],
        "auto_pad": node.attributes.get_string("auto_pad", "NOTSET"),
    }
    for name in ("strides", "dilations", "pads"):
        lengths = node.attributes.get_ints(name)
        if lengths is not None:
            told[name] = tuple(lengths)
    return Reading(layer.input, groups, columns, window=tuple(sorted(told.items())))


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, Sequence) and not isinstance(value, str) else value


def _square(rows: np.ndarray) -> np.ndarray:  # [rows, k] -> [k, k]
    """The sum of x x^T, right of its diagonal alone, of a product in float32."""
    from scipy.linalg.blas import ssyrk  # half of the work of a product of two matrices

    exponent = int(np.frexp(max(rows.max(initial=0), -rows.min(initial=0)))[1])
    near = abs(exponent) <= SAFE_EXPONENT
    scaled = rows if near else np.ldexp(rows, -exponent)  # squares shall neither over- nor underflow
    product = ssyrk(1.0, scaled.astype(np.float32, copy=False).T)
    return np.asarray(product if near else np.multiply(product, 4.0**exponent, dtype=np.float64))


class MomentSum:
    """The running sum of x x^T over the rows of one reading."""

    def __init__(self, reading: Reading) -> None:
        self._reading = reading
        self._sum = np.zeros((reading.groups, reading.columns, reading.columns))
        self._rows, self._waiting = 0, list[np.ndarray]()

    def add(self, array: np.ndarray) -> None:
        """Add what one run showed of the tensor, which is finite."""
        if array.size == 0:
            return
        for rows in self._reading.rows(array):
            self._waiting.append(rows.copy())  # whoever gave them may write into them again
            if sum(one.shape[1] for one in self._waiting) >= TOGETHER * self._reading.columns:
                self._add_waiting()

    def _add_waiting(self) -> None:
        """Add what waited: rows together, since adding k^2 numbers costs as much as multiplying some rows."""
        if self._waiting:
            rows = np.concatenate(self._waiting, axis=1)
            for index, group in enumerate(rows):
                self._sum[index] += _square(group)
            self._rows += rows.shape[1]
            self._waiting = []

    def freeze(self) -> SecondMoments:
        """The mean.

        Raises:
            DataError: there was no row.
        """
        self._add_waiting()
        if self._rows == 0:
            raise DataError(
                f"calibration never produced a value of tensor {self._reading.tensor!r}; give more examples"
            )
        mean = self._sum + self._sum.swapaxes(1, 2)  # the half left of the diagonal is zero until now
        diagonal = np.arange(self._reading.columns)
        mean[:, diagonal, diagonal] /= 2
        mean /= self._rows
        return SecondMoments(mean, self._rows)
