"""A sample of the rows that a layer's matrix multiplies: few, evenly spread over all that calibration showed."""

from __future__ import annotations

from typing import Final

import numpy as np

from alula.errors import DataError
from alula.graph.moments import Reading

KEPT: Final = 512  # rows at most, and at least half as many where there were


class RowSample:
    """Every n-th row of one reading, n doubling whenever too many are held; neither order nor batching play a part."""

    def __init__(self, reading: Reading) -> None:
        self._reading = reading
        self._kept = np.empty((reading.groups, 0, reading.columns), np.float32)
        self._seen, self._step = 0, 1

    def add(self, array: np.ndarray) -> None:
        """Add what one run showed of the tensor."""
        if array.size == 0:
            return
        for rows in self._reading.rows(array):  # [groups, rows, k]
            new = rows[:, -self._seen % self._step :: self._step].astype(np.float32)
            self._kept = np.concatenate([self._kept, new], axis=1)
            self._seen += rows.shape[1]
            while self._kept.shape[1] > KEPT:
                self._kept, self._step = self._kept[:, ::2], 2 * self._step

    def freeze(self) -> np.ndarray:  # -> [groups, rows, k]
        """The rows.

        Raises:
            DataError: there was none.
        """
        if self._seen == 0:
            raise DataError(
                f"calibration never produced a value of tensor {self._reading.tensor!r}; give more examples"
            )
        return np.ascontiguousarray(self._kept)
