"""Probes: reductions inside the graph show what numpy reads off the tensor itself."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import onnx_ir as ir
import pytest

from alula.errors import DataError
from alula.graph.editing import Editor
from alula.graph.probes import STEPS, add_probe, can_probe
from alula.graph.running import Runner
from alula.graph.statistics import Collector, Request, collect
from alula.graph.summaries import SAMPLE_LIMIT, summarise
from alula.graph.tidy import tidy
from alula.testing.models import model_from_text

SHAPES = {
    "n, 3, h": (4, 3, 7),
    "n, 3, 8, 5": (2, 3, 8, 5),
    "n, h, 6": (5, 4, 6),
    "n, 6": (9, 6),
    "n, k": (3, 2),
    "7": (7,),
    "n": (5,),
    "2, 3": (2, 3),
    "1, c, h, w": (1, 2, 30, 40),
}


def probed(text, opset, axes, *, sample=True, kind="float"):
    """A graph whose inner tensor a = -x is watched, and its probe."""
    model = tidy(model_from_text(f"net ({kind}[{text}] x) => ({kind}[{text}] y) {{ a = Neg (x) y = Neg (a) }}"))
    editor = Editor(model.edit())
    editor.model.opset_imports[""] = opset
    value = editor.value("a")
    assert can_probe(value, axes)
    probe = add_probe(editor, value, axes, sample=sample)
    return Runner(model.edited(editor.model)), probe


def assert_alike(found, expected):
    assert found.shape == expected.shape
    assert found.reductions.keys() == expected.reductions.keys()
    for axis, reduction in expected.reductions.items():
        np.testing.assert_array_equal(found.reductions[axis].minimum, reduction.minimum)
        np.testing.assert_array_equal(found.reductions[axis].maximum, reduction.maximum)
        np.testing.assert_allclose(found.reductions[axis].total, reduction.total, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("opset", [12, 17, 18, 21])
@pytest.mark.parametrize("text", SHAPES)
def test_probes_show_what_the_tensor_does(text, opset):
    shape = SHAPES[text]
    axes = sorted({0, -1, min(1, len(shape) - 1)})
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    for wanted in ([], axes):
        run, probe = probed(text, opset, wanted)
        found, expected = probe.read(run({"x": -x})), summarise(x, wanted, sample=True)
        assert_alike(found, expected)
        np.testing.assert_array_equal(found.sample, x.reshape(-1), "small tensors are taken whole")


def test_a_number_can_be_probed():
    model = tidy(model_from_text("net (float x) => (float y) { a = Neg (x) y = Neg (a) }"))
    statistics = collect(model, [{"x": np.array(2, np.float32)}, {"x": np.array(4, np.float32)}], [Request("a")])
    assert (statistics["a"].minimum, statistics["a"].maximum, statistics["a"].mean) == (-4, -2, -3)


@pytest.mark.parametrize("text", ["n, 16, 60, 60", "n, h, 320", "n, c, h, w"])
@pytest.mark.parametrize("rows", [1, 3, 40])
def test_samples_are_evenly_spaced_bounded_and_see_every_channel(text, rows):
    fixed = [int(length) if length.strip().isdigit() else None for length in text.split(",")[1:]]
    shape = (rows, *(length or {1: 80, 2: 50, 3: 50}[axis] for axis, length in enumerate(fixed, 1)))
    x = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    run, probe = probed(text, 21, [])
    sample = probe.read(run({"x": -x})).sample
    steps = np.unique(np.diff(sample.astype(np.int64)))
    assert len(steps) == 1
    assert rows * SAMPLE_LIMIT / 2.7 < len(sample) <= rows * SAMPLE_LIMIT + 1
    for axis, length in enumerate(fixed, 1):
        if length:
            seen = np.unique(np.unravel_index(sample.astype(np.int64), shape)[axis])
            assert len(seen) == length


def test_steps_are_one_and_primes():
    assert all(step % divisor for step in STEPS for divisor in range(2, step))
    assert all(a < b <= 2 * a for a, b in pairwise(STEPS))


@pytest.mark.parametrize("shape", [(0, 3, 7), (2, 3, 0)])
def test_nothing_is_read_off_an_empty_tensor(shape):
    run, probe = probed("n, 3, h", 21, [1])
    summary = probe.read(run({"x": np.zeros(shape, np.float32)}))
    assert (summary.size, dict(summary.reductions), summary.sample) == (0, {}, None)


@pytest.mark.parametrize("kind", ["float16", "double", "int32"])
def test_other_types_are_read_as_float32(kind):
    run, probe = probed("n, 3", 21, [1], kind=kind)
    x = np.array([[-1, 0, 2], [3, 1, 5]])
    outputs = run({"x": -x.astype({"double": np.float64}.get(kind, kind))})
    assert_alike(probe.read(outputs), summarise(x, [1], sample=True))


def test_axes_that_are_not_there_and_unknown_ranks_cannot_be_probed():
    value = ir.Value(name="a")
    ir.node("Neg", [], outputs=[value])
    assert not can_probe(value, [])
    value.shape = ir.Shape([1, 2])
    assert can_probe(value, [-2, 1])
    assert not can_probe(value, [2])
    assert not can_probe(ir.Value(name="input", shape=ir.Shape([1])), [])


def test_infinities_and_overflowing_sums_are_told_apart():
    model = tidy(model_from_text("net (float[n, 3000] x) => (float[n, 3000] y) { a = Neg (x) y = Neg (a) }"))
    collector = Collector(model, [Request("a", channel_axis=0, histogram=True)])
    huge = np.full((1, 3000), -3e38, np.float32)
    collector({"x": huge})
    collector({"x": huge})
    np.testing.assert_allclose(collector.statistics()["a"].mean, 3e38, rtol=1e-6)
    huge[0, 5] = np.inf
    with pytest.raises(DataError, match=r"'a' holds 1 values.*of 3,000"):
        collector({"x": huge})


def test_what_is_watched_is_not_held():
    """The activations themselves are no outputs: only numbers per channel, a shape and a sample are."""
    model = tidy(model_from_text("net (float[n, 4, 99] x) => (float[n, 4, 99] y) { a = Neg (x) y = Neg (a) }"))
    collector = Collector(model, [Request("a", channel_axis=1)])
    outputs = collector._runner({"x": np.ones((1, 4, 99), np.float32)})
    assert sorted(array.size for array in outputs.values()) == [3, 4, 4, 4, 4 * 99]
