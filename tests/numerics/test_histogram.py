from __future__ import annotations

import time
import tracemalloc

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from alula.numerics.histogram import FloatHistogram
from tests.oracles import quantization as oracle

floats = arrays(np.float32, st.integers(0, 40), elements=st.floats(width=32))


def histogram_of(*pieces):
    histogram = FloatHistogram()
    for piece in pieces:
        histogram.add(piece)
    return histogram


@settings(max_examples=100, deadline=None)
@given(floats)
def test_counts_match_the_oracle(values):
    histogram = histogram_of(values)
    assert {int(b): int(histogram.counts[b]) for b in np.flatnonzero(histogram.counts)} == oracle.float_bins(values)
    assert histogram.total == values.size
    assert histogram.nonfinite == np.count_nonzero(~np.isfinite(values))


@settings(max_examples=100, deadline=None)
@given(floats)
def test_every_value_lies_within_its_bin(values):
    values = np.sort(values[np.isfinite(values)])
    centres, counts = histogram_of(values).occupied()
    assert centres.dtype == np.float32
    assert counts.dtype == np.int64
    assert (np.diff(centres) > 0).all()
    seen_as = np.repeat(centres, counts).astype(np.float64)
    assert len(seen_as) == len(values)
    assert (
        np.abs(seen_as - values) <= np.abs(values) * 2.0**-8 + 2.0**-134
    ).all()  # a bin of subnormals is 2^-133 wide


@settings(max_examples=50, deadline=None)
@given(floats, floats)
def test_neither_order_nor_batching_nor_merging_matters(first, second):
    whole = histogram_of(np.concatenate([first, second])).counts
    merged = histogram_of(second)
    other = histogram_of(first)
    merged.merge(other)
    np.testing.assert_array_equal(merged.counts, whole)
    np.testing.assert_array_equal(histogram_of(second[::-1], first).counts, whole)
    assert other.total == first.size


def test_zeros_are_one_value_and_exact():
    centres, counts = histogram_of(np.array([0.0, -0.0, 1e-45, 1.0, -1.0], np.float32)).occupied()
    assert centres[1] == 0
    np.testing.assert_array_equal(counts, [1, 3, 1])


def test_nothing_seen():
    centres, counts = histogram_of(np.zeros((0, 3))).occupied()
    assert len(centres) == len(counts) == 0


@pytest.mark.parametrize("dtype", [np.float16, np.float64, ml_dtypes.bfloat16, np.int64, np.uint8, np.bool_, ">f4"])
def test_other_types_count_as_float32(dtype):
    values = (np.arange(300).reshape(3, 100) % 7).astype(dtype)
    np.testing.assert_array_equal(histogram_of(values).counts, histogram_of(values.astype(np.float32)).counts)


def test_values_beyond_float32_count_as_infinite():
    assert histogram_of(np.array([1e300, -1e300, 1.0])).nonfinite == 2


def test_any_layout_in_pieces_larger_than_a_chunk():
    values = np.random.default_rng(0).standard_normal((600, 700)).astype(np.float32)
    wanted = histogram_of(*values).counts
    for view in (values, values.T, values[::-1, ::-1]):
        np.testing.assert_array_equal(histogram_of(view).counts, wanted)
    np.testing.assert_array_equal(histogram_of(np.broadcast_to(values, (2, 600, 700))).counts, 2 * wanted)
    scalar = histogram_of(3.0)
    assert (scalar.total, scalar.occupied()[0].tolist()) == (1, [3.0078125])


def test_scratch_memory_is_bounded():
    values = np.random.default_rng(0).standard_normal((2000, 2000)).astype(np.float32)
    histogram = FloatHistogram()
    for view in (values, values.T):
        tracemalloc.start()
        histogram.add(view)
        _, peak_bytes = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak_bytes < 8e6


def test_adding_is_fast_enough_for_calibration():
    values = np.random.default_rng(0).standard_normal(1 << 20).astype(np.float32)
    histogram = FloatHistogram()
    durations_s = []
    for _ in range(5):
        start = time.perf_counter()
        histogram.add(values)
        durations_s.append(time.perf_counter() - start)
    assert min(durations_s) / values.size < 20e-9  # about 1.5 ns on a quiet machine; a sort would take 60
