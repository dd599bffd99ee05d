"""Second moments against explicit loops over every output position, streamed in any number of batches."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from alula.errors import DataError, ModelError
from alula.graph import moments as module
from alula.graph.editing import Editor
from alula.graph.matrices import weight_matrix
from alula.graph.statistics import Collector, MomentRequest, Request, Statistics, collect
from alula.testing.models import attention_network, dense_network, model_from_text, random_feeds

CONVOLUTIONS = {  # input shape, weight shape, attributes
    "plain": ((3, 7, 6), (4, 3, 3, 2), "group = 1"),
    "padded": ((3, 5, 6), (4, 3, 3, 3), "pads = [1, 0, 2, 1]"),
    "strided": ((2, 8, 7), (4, 2, 3, 3), "strides = [2, 3], pads = [1, 1, 1, 1]"),
    "dilated": ((2, 9, 8), (3, 2, 3, 2), "dilations = [2, 3], pads = [2, 0, 1, 1]"),
    "grouped": ((4, 5, 5), (6, 2, 3, 3), "group = 2, pads = [1, 1, 1, 1]"),
    "depthwise": ((3, 6, 6), (6, 1, 3, 3), "group = 3, strides = [2, 2]"),
    "same upper": ((2, 7, 6), (3, 2, 4, 3), 'auto_pad = "SAME_UPPER", strides = [2, 2]'),
    "same lower": ((2, 7, 6), (3, 2, 4, 3), 'auto_pad = "SAME_LOWER", strides = [2, 2]'),
    "valid": ((2, 7, 6), (3, 2, 4, 3), 'auto_pad = "VALID"'),
    "sequence": ((3, 11), (4, 3, 5), "pads = [2, 2], strides = [2]"),
    "volume": ((2, 4, 5, 4), (3, 2, 2, 3, 2), "pads = [1, 0, 1, 0, 1, 0]"),
}


def convolution(kind):
    shape, weight_shape, attributes = CONVOLUTIONS[kind]
    lengths = ", ".join(map(str, shape))
    free = ", ".join(["n", "c", "h", "w", "d"][: len(shape) + 1])
    text = f"net (float[n, {lengths}] x) => (float[{free}] y) {{ y = Conv <{attributes}> (x, w) }}"
    weight = np.random.default_rng(0).standard_normal(weight_shape).astype(np.float32)
    return model_from_text(text, {"w": weight}), weight


def rows_by_probing(model, x, layer):
    """Every row that a linear layer reads, [groups, rows, k]: y by each weight alone is one column of the rows."""
    groups, per_group, k = weight_matrix(model.weight(layer.weight), layer).shape
    columns = []
    for index in range(k):
        matrix = np.zeros((groups, per_group, k), np.float32)
        matrix[:, 0, index] = 1
        editor = Editor(model.edit())
        editor.replace_constant(layer.weight, matrix.reshape(layer.shape))
        y = model.edited(editor.model).run({"x": x})["y"]  # [n, out, *space]
        firsts = y.reshape(len(y), groups, per_group, -1)[:, :, 0]  # [n, groups, positions]
        columns.append(np.moveaxis(firsts, 1, 0).reshape(groups, -1))
    return np.stack(columns, axis=-1).astype(np.float64)


@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_convolutions_against_a_loop_over_rows(kind):
    model, _ = convolution(kind)
    (layer,) = model.layers()
    batches = [random_feeds(model, batch=rows, seed=rows) for rows in (2, 1, 3)]
    seen = collect(model, batches, [MomentRequest(layer.name)]).moments(layer.name)
    expected, count = 0.0, 0
    for feeds in batches:
        for row in rows_by_probing(model, feeds["x"], layer).swapaxes(0, 1):
            expected = expected + row[:, :, None] * row[:, None, :]
            count += 1
    assert seen.rows == count
    assert seen.matrix.dtype == np.float64
    np.testing.assert_allclose(seen.matrix, expected / count, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("left", [False, True])
def test_products_read_rows_along_all_other_axes(left):
    text = "net (float[n, 3, 5] x) => (float[n, a, b] y) { y = MatMul (" + ("w, x" if left else "x, w") + ") }"
    model = model_from_text(text, {"w": np.ones((4, 3) if left else (5, 4), np.float32)})
    x = np.random.default_rng(0).standard_normal((2, 3, 5)).astype(np.float32)
    seen = collect(model, [{"x": x}], [MomentRequest(model.layers()[0].name)]).moments(model.layers()[0].name)
    vectors = [x[i, :, j] if left else x[i, j] for i, j in itertools.product(range(2), range(5 if left else 3))]
    expected = sum(np.outer(v.astype(float), v) for v in vectors) / len(vectors)
    assert seen.rows == len(vectors)
    np.testing.assert_allclose(seen.matrix, expected[None], rtol=1e-5, atol=1e-6)


def test_large_runs_are_taken_in_pieces(monkeypatch):
    model, _ = convolution("padded")
    name = model.layers()[0].name
    feeds = random_feeds(model, batch=5)
    whole = collect(model, [feeds], [MomentRequest(name)]).moments(name)
    monkeypatch.setattr(module, "CHUNK_VALUES", 1)
    pieces = collect(model, [feeds], [MomentRequest(name)]).moments(name)
    assert whole.rows == pieces.rows
    np.testing.assert_allclose(whole.matrix, pieces.matrix, rtol=1e-5, atol=1e-6)


def test_moments_beside_other_requests_of_the_same_tensor():
    model = dense_network()
    last = model.layers()[-1]
    feeds = random_feeds(model, batch=4)
    requests = [MomentRequest(last.name), Request(last.input, histogram=True, channel_axis=-1)]
    statistics = collect(model, [feeds], requests)
    alone = collect(model, [feeds], requests[1:])[last.input]
    np.testing.assert_allclose(statistics[last.input].channels[-1].mean, alone.channels[-1].mean, rtol=1e-6)
    squares = np.diag(statistics.moments(last.name).matrix[0])
    assert (squares >= statistics[last.input].channels[-1].mean ** 2 - 1e-9).all(), "E x^2 is at least (E x)^2"


def test_layers_that_read_the_same_rows_share_a_matrix():
    model = attention_network()
    names = [layer.name for layer in model.layers() if layer.operator in ("MatMul", "Gemm")]
    statistics = collect(model, [random_feeds(model)], [MomentRequest(name) for name in names])
    inputs = {layer.name: layer.input for layer in model.layers()}
    by_input = {}
    for name in names:
        by_input.setdefault(inputs[name], []).append(statistics.moments(name).matrix)
    assert max(map(len, by_input.values())) > 1
    assert all(matrix is group[0] for group in by_input.values() for matrix in group)


def test_what_was_not_asked_for_is_an_error():
    model = dense_network()
    assert not Statistics()
    assert collect(model, [random_feeds(model)], [MomentRequest(model.layers()[0].name)]), (
        "it holds no tensor, but moments"
    )
    with pytest.raises(ModelError, match="second moments of layer"):
        collect(model, [random_feeds(model)], []).moments(model.layers()[0].name)
    with pytest.raises(ModelError, match="no layer named 'nowhere'"):
        Collector(model, [MomentRequest("nowhere")])


def test_a_layer_without_a_matrix_is_refused_by_name():
    text = "net (float[n, 2, 5, 5] x) => (float[n, c, h, w] y) { y = ConvTranspose (x, w) }"
    model = model_from_text(text, {"w": np.ones((2, 3, 2, 2), np.float32)})
    with pytest.raises(ModelError, match="ConvTranspose"):
        Collector(model, [MomentRequest(model.layers()[0].name)])


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused_by_name(poison):
    model, _ = convolution("plain")
    feeds = random_feeds(model)
    feeds["x"][0, 0, 0, 0] = poison
    with pytest.raises(DataError, match="x"):
        collect(model, [feeds], [MomentRequest(model.layers()[0].name)])


def test_no_data_and_empty_data_are_refused():
    model, _ = convolution("plain")
    request = MomentRequest(model.layers()[0].name)
    with pytest.raises(DataError, match="empty"):
        collect(model, [], [request])
    with pytest.raises(DataError, match="never produced a value"):
        collect(model, [random_feeds(model, batch=0)], [request])


@pytest.mark.parametrize("size", [1e-30, 1e-20, 1.0, 1e25])
def test_squares_neither_over_nor_underflow(size):
    model = dense_network()
    layer = model.layers()[0]
    x = (np.random.default_rng(0).standard_normal((8, *model.inputs[0].shape[1:])) * size).astype(np.float32)
    seen = collect(model, [{model.inputs[0].name: x}], [MomentRequest(layer.name)]).moments(layer.name)
    wide = x.astype(np.float64)
    np.testing.assert_allclose(seen.matrix[0] / size**2, wide.T @ wide / 8 / size**2, rtol=1e-5, atol=1e-6)


def test_feeds_may_be_written_over_between_calls():
    model = dense_network()
    name, request = model.inputs[0].name, MomentRequest(model.layers()[0].name)
    batches = [np.full((3, 16), number, np.float32) for number in (1, 2, 3)]

    def reusing():
        buffer = np.empty((3, 16), np.float32)
        for batch in batches:
            buffer[:] = batch
            yield {name: buffer}

    found, expected = (collect(model, feeds, [request]).moments(request.layer).matrix
                       for feeds in (reusing(), [{name: batch} for batch in batches]))  # fmt: skip
    np.testing.assert_array_equal(found, expected)
