"""Optimal brain quantization by the book: one column after another, each time with the inverse of what is left."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from alula.numerics.grids import Grid, scale_and_zero_point


def obq(
    weights: np.ndarray,
    moments: np.ndarray,
    grid: Grid,
    order: Sequence[int],
    block: int | None,
    find_range: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]] | None = None,
) -> np.ndarray:  # [out, k] -> [out, k]
    """What the codes stand for; ``moments`` are damped already. Frantar and Alistarh 2022, equations 2 and 3."""
    w = weights.astype(np.float64)
    width = block or w.shape[1]
    left, parameters = list(order), {}
    for column in order:
        number = column // width
        if number not in parameters:
            members = w[:, number * width : (number + 1) * width].astype(np.float32)
            low, high = find_range(members) if find_range else (members.min(1), members.max(1))
            parameters[number] = scale_and_zero_point(low, high, grid)
        scale, zero = (np.asarray(one).astype(np.float64) for one in parameters[number])
        codes = np.clip(np.rint(np.float32(w[:, column]) / np.float32(scale)) + zero, grid.lowest, grid.highest)
        on_grid = (codes - zero) * scale
        inverse = np.linalg.inv(moments[np.ix_(left, left)])
        place = left.index(column)
        for row in range(len(w)):
            w[row, left] -= (w[row, column] - on_grid[row]) / inverse[place, place] * inverse[place]
        w[:, column] = on_grid
        left.remove(column)
    return w
