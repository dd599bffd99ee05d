"""Few values that stand for many: weighted k-means of numbers on a line.

| symbol | code | shape | unit | meaning |
|---|---|---|---|---|
| w_i | values | [n] | of the weights | what is to be clustered |
| h_i | importance | [n] | any | what an error of w_i costs, at least 0; 1 where not given |
| c_j | codebook | [k] | of the weights | the values that stand for them, ascending |
| a_i | codes | [n] | | which one stands for w_i: the nearest |

    minimise  sum_i h_i (w_i - c_(a_i))^2              c_j = sum_(a_i = j) h_i w_i / sum_(a_i = j) h_i

On a line, clusters are intervals, so the best ones of n values are found by dynamic programming over where they end
(D_m(i): least cost of the first i values in m clusters). More than ``GROUPS`` different values are grouped into that
many first, and the result is settled on the values themselves by Lloyd's steps.

    D_m(i) = min over j < i of  D_(m-1)(j) + cost(j, i)

Sources: Han et al. 2016, "Deep compression", section 3 (weights that share values); Choi et al. 2017, "Towards the
limit of network quantization" (weighted by the Hessian's diagonal, which for the outputs of a layer is the mean square
of its inputs); Wang and Song 2011, "Ckmeans.1d.dp" (the exact solution); Lloyd 1982, "Least squares quantization in
PCM".
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from alula.errors import DataError, RecipeError

Floats = NDArray[np.float64]

GROUPS: Final = 512  # up to as many different values, the clusters are the best there are
_LEAST_IMPORTANCE: Final = 1e-6  # of the mean: a weight whose input was always 0 in calibration still counts a little
_STEPS: Final = 200  # of Lloyd's, at most


def find_codebook(
    values: NDArray[np.floating], count: int, *, importance: NDArray[np.floating] | None = None
) -> Floats:  # -> [at most count]
    """The ``count`` numbers, ascending, that stand for all values with the least weighted squared error.

    Where there are no more than ``count`` different values, it is those.

    Args:
        values: w, [n].
        count: k, at least 1.
        importance: h, [n].

    Raises:
        RecipeError: the count is less than 1.
        DataError: a value or importance is not finite, or an importance negative, or their shapes differ.
    """
    if count < 1:
        raise RecipeError(f"a codebook has at least 1 value, got {count}")
    wide = np.asarray(values, np.float64).ravel()
    heavy = np.ones_like(wide) if importance is None else np.asarray(importance, np.float64).ravel()
    _check(wide, heavy)
    distinct, places = np.unique(wide, return_inverse=True)
    if len(distinct) <= count:
        return distinct
    mean = heavy.mean()
    heavy = np.maximum(heavy / mean, _LEAST_IMPORTANCE) if mean > 0 else np.ones_like(heavy)
    sums = _Sums(distinct, np.bincount(places, heavy).astype(np.float64))
    ends = _grouped(sums, count)
    return _settled(sums, sums.means(ends[_best_ends(sums, ends, count)]))


def nearest(values: NDArray[np.floating], codebook: NDArray[np.floating]) -> NDArray[np.int64]:  # as the values
    """The place in an ascending codebook of the number nearest to each value.

    >>> nearest(np.array([0.1, 0.9]), np.array([0.0, 1.0])).tolist()
    [0, 1]
    """
    wide = codebook.astype(np.float64)  # the sum of two large float32 is none
    return np.searchsorted((wide[1:] + wide[:-1]) / 2, values)


def clustering_error(
    values: NDArray[np.floating], codebook: Floats, importance: NDArray[np.floating] | None = None
) -> float:
    """The weighted squared error of values replaced by the nearest of a codebook: sum of h (w - c)^2."""
    squares = (np.asarray(values, np.float64) - codebook[nearest(values, codebook)]) ** 2
    return float((squares if importance is None else squares * importance).sum())


class _Sums:
    """Sums over ranges of sorted values: of importance, importance x value, importance x value^2."""

    def __init__(self, values: Floats, importance: Floats) -> None:
        self.values = values
        self._centre = float(np.average(values, weights=importance))  # sums of squares lose fewest digits around it
        self._scale = float(np.abs(values - self._centre).max()) or 1.0
        moved = (values - self._centre) / self._scale
        powers = np.stack([importance, importance * moved, importance * moved**2])
        self._sums = np.concatenate([np.zeros((3, 1)), powers.cumsum(1)], axis=1)  # [3, n + 1]

    def means(self, ends: NDArray[np.int64]) -> Floats:
        """The weighted mean of each range between one end and the next, the first being 0."""
        mass, first, _ = np.diff(self._sums[:, ends], axis=1)
        return np.asarray(first / mass * self._scale + self._centre)

    def costs(self, ends: NDArray[np.int64]) -> Floats:  # -> [ends, ends]
        """The cost of one cluster from each end to each later one; infinite where it would be empty."""
        mass, first, second = self._sums[:, None, ends] - self._sums[:, ends, None]
        later = np.triu(np.ones(mass.shape, np.bool_), 1)
        squares = np.divide(first**2, mass, where=later, out=np.zeros_like(mass))
        return np.where(later, np.maximum(second - squares, 0), np.inf)


def _grouped(sums: _Sums, count: int) -> NDArray[np.int64]:
    """Ends of at most ``GROUPS`` groups of neighbours, half of them as many as each other, half as wide."""
    size = len(sums.values)
    groups = max(GROUPS, 2 * count)
    if size <= groups:
        return np.arange(size + 1)
    as_many = np.linspace(0, size, groups // 2 + 1).astype(np.int64)
    low, high = sums.values[0], sums.values[-1]
    as_wide = np.searchsorted(sums.values, np.linspace(low, high, groups // 2 + 1)[1:-1])
    return np.unique(np.concatenate([as_many, as_wide]))


def _best_ends(sums: _Sums, ends: NDArray[np.int64], count: int) -> NDArray[np.int64]:  # -> [count + 1], into ends
    """Where the clusters begin and end that cost least, by dynamic programming."""
    costs = sums.costs(ends)  # [n + 1, n + 1]
    least = costs[0]  # D_1
    count = min(count, len(ends) - 1)
    choices = np.zeros((count, len(ends)), np.int64)
    for clusters in range(1, count):
        total = least[:, None] + costs
        choices[clusters] = total.argmin(0)
        least = np.take_along_axis(total, choices[clusters][None], 0)[0]
    found = [len(ends) - 1]
    for clusters in range(count - 1, -1, -1):
        found.append(int(choices[clusters, found[-1]]))
    return np.array(found[::-1], np.int64)


def _settled(sums: _Sums, codebook: Floats) -> Floats:
    """The codebook after Lloyd's steps on all values; none of them makes the error larger."""
    size = len(sums.values)
    before = None
    for _ in range(_STEPS):
        inner = np.searchsorted(sums.values, (codebook[1:] + codebook[:-1]) / 2)
        ends = np.unique(np.concatenate([[0], inner, [size]]))
        if before is not None and np.array_equal(ends, before):
            break
        codebook, before = sums.means(ends), ends
    return codebook


def _check(values: Floats, importance: Floats) -> None:
    if importance.shape != values.shape:
        raise DataError(f"importance is one number per value, got {importance.size} for {values.size}")
    if values.size == 0:
        raise DataError("there are no values to cluster")
    for what, array in (("values", values), ("importance", importance)):
        if not np.isfinite(array).all():
            raise DataError(f"{what} must be finite, got {array.size - int(np.isfinite(array).sum())} that are not")
    if (importance < 0).any():
        raise DataError("importance must be at least 0")
