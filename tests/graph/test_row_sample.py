"""Some rows of what a layer reads: evenly spread, few, the same however the data came."""

from __future__ import annotations

import numpy as np
import pytest

from alula.errors import DataError, ModelError
from alula.graph.moments import Reading
from alula.graph.row_sample import KEPT, RowSample
from alula.graph.statistics import RowsRequest, collect
from alula.testing.models import model_from_text

FLAT = Reading("x", groups=1, columns=3, summed=-1)


def sampled(*arrays, reading=FLAT):
    sample = RowSample(reading)
    for array in arrays:
        sample.add(array)
    return sample.freeze()


def numbered(rows):
    return np.repeat(np.arange(rows, dtype=np.float32)[:, None], 3, axis=1)


def test_few_rows_are_all_kept():
    np.testing.assert_array_equal(sampled(numbered(7))[0], numbered(7))


@pytest.mark.parametrize("rows", [KEPT, KEPT + 1, 5 * KEPT + 3])
def test_many_are_thinned_evenly(rows):
    kept = sampled(numbered(rows))[0, :, 0]
    assert KEPT / 2 <= len(kept) <= KEPT
    assert kept[0] == 0
    assert len(set(np.diff(kept))) == 1, "evenly"


@pytest.mark.parametrize("batch", [1, 13, 700])
def test_batching_plays_no_part(batch):
    rows = numbered(2 * KEPT + 5)
    parts = [rows[start : start + batch] for start in range(0, len(rows), batch)]
    np.testing.assert_array_equal(sampled(*parts), sampled(rows))


def test_it_does_not_hold_on_to_what_it_was_given():
    given = numbered(4)
    sample = RowSample(FLAT)
    sample.add(given)
    given[:] = -1
    np.testing.assert_array_equal(sample.freeze()[0], numbered(4))


def test_windows_of_convolutions_are_what_their_matrix_multiplies():
    random = np.random.default_rng(0)
    model = model_from_text(
        "net (float[n, 4, 5, 5] x) => (float[n, 6, 3, 3] y) { [conv] y = Conv <group = 2, strides = [2, 2], "
        "pads = [1, 1, 1, 1], kernel_shape = [3, 3]> (x, w) }",
        {"w": random.standard_normal((6, 2, 3, 3)).astype(np.float32)},
    )
    x = random.standard_normal((2, 4, 5, 5)).astype(np.float32)
    (layer,) = model.layers()
    rows = collect(model, [{"x": x}], [RowsRequest(layer.name)]).rows(layer.name)  # [2, 18, 18]
    matrix = model.weight("w").reshape(2, 3, 18)
    given = (rows @ matrix.swapaxes(1, 2)).transpose(0, 2, 1).reshape(6, 2, 3, 3).transpose(1, 0, 2, 3)
    np.testing.assert_allclose(given, model.run({"x": x})["y"], rtol=1e-4, atol=1e-4)


def test_nothing_seen_is_refused():
    with pytest.raises(DataError, match="never produced a value of tensor 'x'"):
        sampled(np.empty((0, 3), np.float32))


def test_layers_that_are_not_there_and_rows_that_were_not_asked_for_are_refused():
    model = model_from_text(
        "net (float[n, 3] x) => (float[n, 2] y) { [fc] y = MatMul (x, w) }", {"w": np.ones((3, 2), np.float32)}
    )
    with pytest.raises(ModelError, match="no layer named 'other'"):
        collect(model, [{"x": numbered(2)}], [RowsRequest("other")])
    with pytest.raises(ModelError, match="no rows of layer 'fc' were collected"):
        collect(model, [{"x": numbered(2)}], []).rows("fc")
    with pytest.raises(DataError, match="are NaN or infinite"):
        collect(model, [{"x": numbered(2) + np.inf}], [RowsRequest(model.layers()[0].name)])
