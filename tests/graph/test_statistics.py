"""Statistics: one streaming pass gives what numpy gives for all data at once, in memory that does not grow."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alula.errors import DataError, ModelError
from alula.graph.running import Runner
from alula.graph.statistics import ActivityRequest, Collector, Request, Statistics, _accumulators, collect
from alula.graph.summaries import SAMPLE_LIMIT
from alula.testing.models import model_from_text, random_feeds

AFFINE = "net (float[n, 3, h] x) => (float[n, 3, h] y) <float half = {0.5}> { a = Mul (x, half) y = Exp (a) }"
BODY = """net (float[n, 4] x, bool flag) => (float[n, 4] y) { a = Relu (x) y = If (flag)
    <then_branch = yes () => (float[n, 4] p) { p = Tanh (a) }, else_branch = no () => (float[n, 4] q) { q = Neg (a) }>
}"""


def seen(batches, **request):
    """Statistics of one tensor that takes these values."""
    accumulator = _accumulators([Request("t", **request)])["t"]
    for batch in batches:
        accumulator.add(np.asarray(batch))
    return accumulator.freeze()


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.integers(0, 4), min_size=1, max_size=5).filter(any), st.integers(0, 2**32 - 1), st.sampled_from([1, -2])
)
def test_streaming_is_one_shot(rows, seed, axis):
    random = np.random.default_rng(seed)
    batches = [random.standard_normal((n, 3, 5)).astype(np.float32) * 10 for n in rows]
    whole = np.concatenate(batches)
    statistics = seen(batches, channel_axis=axis, histogram=True)
    assert statistics.count == whole.size
    assert (statistics.minimum, statistics.maximum) == (whole.min(), whole.max())
    np.testing.assert_allclose(statistics.mean, whole.mean(dtype=np.float64), rtol=1e-5, atol=1e-6)
    channels = statistics.channels[axis]
    np.testing.assert_array_equal(channels.minimum, whole.min(axis=(0, 2)))
    np.testing.assert_array_equal(channels.maximum, whole.max(axis=(0, 2)))
    np.testing.assert_allclose(channels.mean, whole.mean(axis=(0, 2), dtype=np.float64), rtol=1e-5, atol=1e-6)
    assert statistics.histogram.total == whole.size, "small tensors are counted whole"


def test_means_of_large_tensors_are_exact_to_float32():
    large = (np.random.default_rng(0).standard_normal((4, 8, 60, 60)) + 3).astype(np.float32)
    statistics = seen([large], channel_axis=1)
    np.testing.assert_allclose(statistics.mean, large.mean(dtype=np.float64), rtol=1e-6)
    np.testing.assert_allclose(statistics.channels[1].mean, large.mean(axis=(0, 2, 3), dtype=np.float64), rtol=1e-6)


def test_collector_runs_like_a_runner_and_sees_inputs_outputs_and_what_lies_between():
    model = model_from_text(AFFINE)
    x = np.random.default_rng(0).standard_normal((2, 3, 4)).astype(np.float32)
    collector = Collector(model, [Request("x"), Request("a", channel_axis=1), Request("y", histogram=True)])
    outputs = collector({"x": x})
    assert list(outputs) == ["y"]
    np.testing.assert_array_equal(outputs["y"], Runner(model)({"x": x})["y"])
    statistics = collector.statistics()
    assert statistics.runs == 1
    assert statistics["x"].maximum == x.max()
    np.testing.assert_allclose(statistics["a"].channels[1].maximum, (x / 2).max(axis=(0, 2)))
    np.testing.assert_allclose(statistics["y"].mean, np.exp(x / 2).mean(), rtol=1e-6)
    assert statistics["y"].histogram.total == x.size
    assert statistics["a"].histogram is None


def test_two_requests_for_a_tensor_are_one():
    x = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    statistics = collect(
        model_from_text(AFFINE), [{"x": x}], [Request("x", histogram=True), Request("x", channel_axis=1), Request("x")]
    )
    assert statistics["x"].histogram is not None
    np.testing.assert_array_equal(statistics["x"].channels[1].maximum, [15, 19, 23])


def test_channels_along_two_axes_are_kept_apart():
    x = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    requests = [Request("x", channel_axis=1), Request("x", channel_axis=-1)]
    channels = collect(model_from_text(AFFINE), [{"x": x}], requests)["x"].channels
    np.testing.assert_array_equal(channels[1].maximum, [15, 19, 23])
    np.testing.assert_array_equal(channels[-1].maximum, [20, 21, 22, 23])


@pytest.mark.parametrize("shape", [(1, 32, 768), (1, 96, 56, 56), (3, 64, 80), (1, 8192 * 7)])
def test_every_channel_enters_a_sampled_histogram(shape):
    for channel in range(0, shape[-1], 7):
        x = np.ones(shape, np.float32)
        x[..., channel] = 2.0
        values, counts = seen([x], histogram=True).histogram.occupied()
        share = counts[values > 1.5].sum() / counts.sum()
        assert share > 0 or shape[-1] > 8192
        if shape[-1] <= 768:
            assert share == pytest.approx(1 / shape[-1], rel=0.2)


@pytest.mark.parametrize("shape", [(64, 32, 32, 32), (1, 2_000_000), (700, 5000)], ids=str)
def test_the_histogram_of_a_large_tensor_is_a_fair_sample(shape):
    """Values that depend on channel and position, as real ones do: quantiles of the sample are those of all values."""
    random = np.random.default_rng(1)
    axes = [random.standard_normal([n if i == axis else 1 for i in range(len(shape))]) for axis, n in enumerate(shape)]
    array = (sum(axes) + random.standard_normal(shape)).astype(np.float32)
    statistics = seen([array], histogram=True)
    assert SAMPLE_LIMIT / 2 <= statistics.histogram.total <= 33 * SAMPLE_LIMIT
    values, counts = statistics.histogram.occupied()
    sampled = np.repeat(values, counts)
    for quantile in (0.01, 0.25, 0.5, 0.75, 0.99):
        below = (array <= np.quantile(sampled, quantile)).mean()
        standard_error = np.sqrt(quantile * (1 - quantile) / len(sampled))
        assert abs(below - quantile) < 5 * standard_error + 0.002, (below, quantile)  # 0.002: width of a bin


def test_the_ends_of_a_sample_are_the_exact_extremes():
    array = np.zeros((1, 1_000_000), np.float32)
    array[0, 123_457], array[0, 654_321] = -7.123, 9.876
    values, counts = seen([array], histogram=True).sample()
    assert (values[0], values[-1]) == (np.float32(-7.123), np.float32(9.876))
    assert (np.diff(values) >= 0).all()
    assert len(values) == len(counts)


def test_a_sample_wants_a_histogram():
    with pytest.raises(ModelError, match="histogram"):
        seen([[1.0]]).sample()


def peak_bytes(runs):
    model = model_from_text(AFFINE)
    collector = Collector(
        model, [Request("x", histogram=True), Request("a", histogram=True, channel_axis=1)], threads=1
    )
    x = np.random.default_rng(0).standard_normal((1, 3, 256)).astype(np.float32)
    collector({"x": x})
    tracemalloc.start()
    for run in range(runs):
        collector({"x": x * np.float32(1 + run / 1000)})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def test_memory_does_not_grow_with_the_number_of_runs():
    few, many = peak_bytes(100), peak_bytes(1000)
    assert many < few + 400_000, (few, many)  # keeping the inputs alone would add 900 x 3 KB


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused_by_name(bad):
    x = np.zeros((1, 3, 2), np.float32)
    x[0, 1, 1] = bad
    with pytest.raises(DataError, match=r"x' holds 1 values.*of 6"):
        collect(model_from_text(AFFINE), [{"x": x}], [Request("x")])


def test_a_tensor_that_overflows_is_refused_by_name():
    with pytest.raises(DataError, match="'y' holds 6 values"):
        collect(model_from_text(AFFINE), [{"x": np.full((1, 3, 2), 1e6, np.float32)}], [Request("y")])


def test_nan_in_an_input_is_refused_also_where_nobody_asked():
    model = model_from_text("net (float[n] x, float[n] z) => (float[n] y) { y = Max (x, z) }")
    x, z = np.ones(2, np.float32), np.array([np.nan, 1], np.float32)
    with pytest.raises(DataError, match="input z"):
        collect(model, [{"x": x, "z": z}], [Request("y")])
    mask = np.array([-np.inf, 0], np.float32)
    assert collect(model, [{"x": x, "z": mask}], [Request("y")])["y"].maximum == 1, "a mask is no broken data"


def test_sums_beyond_float32_are_not_taken_for_infinities():
    huge = np.full((2, 3000), 3e38, np.float32)
    statistics = seen([huge, huge], channel_axis=0)
    np.testing.assert_allclose([statistics.mean, *statistics.channels[0].mean], 3e38, rtol=1e-6)


def test_empty_calibration_is_refused():
    with pytest.raises(DataError, match="calibration data is empty"):
        collect(model_from_text(AFFINE), [], [Request("x")])


def test_a_tensor_that_never_holds_a_value_is_refused_by_name():
    with pytest.raises(DataError, match="never produced a value of tensor 'a'"):
        collect(model_from_text(AFFINE), [{"x": np.zeros((0, 3, 2), np.float32)}], [Request("a")])


def test_axes_of_length_zero_are_no_obstacle():
    feeds = [{"x": np.zeros(shape, np.float32)} for shape in ((0, 3, 2), (2, 3, 0), (1, 3, 2))]
    statistics = collect(model_from_text(AFFINE), feeds, [Request("a", histogram=True, channel_axis=1)])
    assert (statistics["a"].count, statistics.runs) == (6, 3)


def test_unknown_tensors_are_refused_by_name():
    with pytest.raises(ModelError, match="no tensor named 'nonsense'"):
        Collector(model_from_text(AFFINE), [Request("nonsense")])


def test_tensors_in_bodies_and_initializers_are_refused_with_the_reason():
    model = model_from_text(BODY)
    with pytest.raises(ModelError, match=r"'p' lies in a body of If"):
        Collector(model, [Request("p")])
    assert collect(model, [{"x": np.ones((1, 4), np.float32), "flag": np.array(True)}], [Request("a")])["a"].mean == 1
    with pytest.raises(ModelError, match="'half' is an initializer"):
        Collector(model_from_text(AFFINE), [Request("half")])


@pytest.mark.parametrize("kind", ["int32", "int64", "uint8", "bool", "float16", "double"])
def test_tensors_of_other_types(kind):
    model = model_from_text(f"net ({kind}[n] x) => ({kind}[n] y) {{ a = Identity (x) y = Expand (a, s) }}",
                            {"s": np.array([1], np.int64)})  # fmt: skip
    array = np.array([0, 1, 1, 0]).astype(model.inputs[0].dtype)
    statistics = collect(model, [{"x": array}], [Request("x"), Request("y")])
    assert [(s.minimum, s.maximum, s.mean) for s in statistics.values()] == [(0, 1, 0.5)] * 2


def test_channels_that_change_and_axes_that_do_not_exist_are_refused():
    with pytest.raises(DataError, match=r"'t' has 4 channels.*3 before"):
        seen([np.ones((2, 3)), np.ones((2, 4))], channel_axis=1)
    with pytest.raises(ModelError, match="'t' has 1 axes"):
        seen([np.ones(3)], channel_axis=1)


def test_statistics_that_were_not_collected_are_refused_by_name():
    assert "x" not in Statistics()
    with pytest.raises(ModelError, match="no statistics were collected for tensor 'x'"):
        Statistics()["x"]


def test_feeds_are_checked():
    model = model_from_text(AFFINE)
    with pytest.raises(DataError, match="missing"):
        collect(model, [{}], [Request("x")])
    with pytest.raises(DataError, match="float32"):
        collect(model, [{"x": random_feeds(model)["x"].astype(np.float64)}], [Request("x")])


@pytest.mark.parametrize("axis", [1, -1])
@pytest.mark.parametrize("tensor", ["x", "a", "y"])
def test_activity_is_the_mean_size_and_the_share_of_zeros_of_each_channel(tensor, axis):
    text = "net (float[n, 3, 4] x) => (float[n, 3, 4] y) { a = Relu (x) y = Neg (a) }"
    model = model_from_text(text)
    batches = [random_feeds(model, batch=rows, seed=rows)["x"] for rows in (2, 5)]
    batches[0][0, 1] = 0
    request = ActivityRequest(tensor, axis)
    statistics = collect(model, [{"x": batch} for batch in batches], [request, Request("a", histogram=True)])
    whole = np.concatenate(batches)
    whole = {"x": whole, "a": np.maximum(whole, 0), "y": -np.maximum(whole, 0)}[tensor]
    others = tuple(other for other in range(3) if other != axis % 3)
    seen = statistics.activity(tensor, axis)
    np.testing.assert_allclose(seen.magnitude, np.abs(whole).mean(others), rtol=1e-5)
    np.testing.assert_allclose(seen.zeros, (whole == 0).mean(others), rtol=1e-6)
    with pytest.raises(ModelError, match="activity of tensor"):
        statistics.activity(tensor, 0)


def test_activity_refuses_what_is_not_finite():
    model = model_from_text("net (float[n, 3] x) => (float[n, 3] y) { y = Relu (x) }")
    with pytest.raises(DataError, match="infinite"):
        collect(model, [{"x": np.array([[1, np.inf, 2]], np.float32)}], [ActivityRequest("y", 1)])
