"""A histogram of float32 values that needs no range in advance.

| symbol | code | shape | unit | meaning |
|---|---|---|---|---|
| x | array | [...] | of the tensor | values seen |
| b(x) | | | bin | the upper 16 bits of x as float32: sign, exponent and 7 bits of mantissa |
| n_b | counts | [65536] | values | how many values fell into bin b |
| v_b | values | [occupied] | of the tensor | centre of bin b |

Source: ours. b(x) is x truncated to bfloat16, so a bin is 2^-7 of its power of two wide and its centre lies within
2^-8 of every value in it, relatively, over the whole range of float32. The bins are fixed, hence one pass, exact
merging, and a result that depends on neither order nor batching. NaN and the infinities have bins of their own.
The state is 512 KiB per tensor, however much is added; adding takes at most a few MB of scratch.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

_BINS: Final = 1 << 16
_CHUNK: Final = 1 << 17  # values at a time: bincount holds them as int64, 1 MB
_NEGATIVE_ZERO: Final = 0x8000
_POSITIVE_INFINITY: Final = 0x7F80
_NEGATIVE_INFINITY: Final = 0xFF80
_ASCENDING: Final = np.r_[
    _NEGATIVE_INFINITY - 1 : _NEGATIVE_ZERO : -1, 0:_POSITIVE_INFINITY
]  # finite bins; zeros are one


class FloatHistogram:
    """A mutable accumulator: counts of float32 values by their upper 16 bits."""

    __slots__ = ("counts",)

    def __init__(self) -> None:
        self.counts: NDArray[np.int64] = np.zeros(_BINS, np.int64)  # by upper 16 bits

    def add(self, array: ArrayLike) -> None:
        """Count every value of an array of any shape, layout and real type (read as float32); it is not kept."""
        pieces = np.nditer(
            np.asarray(array),
            flags=["external_loop", "buffered", "zerosize_ok"],
            op_dtypes=[np.dtype(np.float32)],
            casting="unsafe",
            buffersize=_CHUNK,
        )
        with np.errstate(over="ignore"):  # a float64 beyond float32 counts as infinite
            for piece in pieces:
                self._count(np.asarray(piece))

    def merge(self, other: FloatHistogram) -> None:
        """Add what another histogram has seen; the other is not changed."""
        self.counts += other.counts

    @property
    def total(self) -> int:
        """How many values were added, NaN and infinities included."""
        return int(self.counts.sum())

    @property
    def nonfinite(self) -> int:
        """How many of them were NaN or infinite."""
        return int(self.counts[_POSITIVE_INFINITY:_NEGATIVE_ZERO].sum() + self.counts[_NEGATIVE_INFINITY:].sum())

    def occupied(self) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """The finite bins that hold something: centres, ascending (float32 [n]), and counts (int64 [n]).

        The centre of the bin around 0 is 0, so that the zeros of a ReLU stay zeros. Centres may lie beyond the exact
        minimum and maximum by 2^-8 of them; who needs those exactly keeps them beside the histogram.
        """
        counts = self.counts[_ASCENDING]
        zero = _NEGATIVE_INFINITY - _NEGATIVE_ZERO - 1
        counts[zero] += self.counts[_NEGATIVE_ZERO]
        held = np.flatnonzero(counts)
        centres = ((_ASCENDING[held].astype(np.uint32) << 16) | 0x8000).view(np.float32)
        centres[held == zero] = 0.0
        return centres, counts[held]

    def _count(self, piece: NDArray[Any]) -> None:  # float32 [<= _CHUNK]
        found = np.bincount(np.ascontiguousarray(piece).view(np.uint32) >> 16)
        self.counts[: len(found)] += found
