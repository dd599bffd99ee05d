"""What nodes say of lengths: bounds of slices, and where targets are written."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alula.graph.lengths import find_slices, whole_numbers, written
from alula.testing.models import model_from_text


def sliced(starts, ends, axes=None, steps=None):
    """The node of a Slice with these constants."""
    given_ = {"s": starts, "e": ends, "a": axes, "p": steps}
    declared = ", ".join(
        f"int64[{len(value)}] {name} = {{{', '.join(map(str, value))}}}" for name, value in given_.items() if value
    )
    names = ["x", "s", "e", "a" if axes else ("" if steps else None), "p" if steps else None]
    inputs = ", ".join(name for name in names if name is not None)
    model = model_from_text(f"n (float[b, 6, 8] x) => (float[c, d, e0] y) <{declared}> {{ y = Slice ({inputs}) }}", {})
    return next(iter(model.graph))


@settings(max_examples=40, deadline=None)
@given(st.integers(-12, 12), st.integers(-12, 12))
def test_slices_take_what_python_takes(start, end):
    found = find_slices(sliced([start], [end], [-1]), [None, 6, 8])
    assert list(found) == [2]
    assert list(range(8))[found[2]] == list(range(8))[start:end]
    assert 0 <= found[2].start <= found[2].stop, "a run, empty or not"


def test_axes_that_are_not_named_are_the_first():
    assert find_slices(sliced([0, 2], [9, 5]), [None, 6, 8]) == {0: None, 1: slice(2, 5)}


def test_only_runs_are_known():
    lengths = [None, 6, 8]
    assert find_slices(sliced([0, 1], [6, 8], [1, 2], [2, 1]), lengths) == {1: None, 2: slice(1, 8)}
    assert find_slices(sliced([5], [-9], [1], [-1]), lengths) == {1: None}


@pytest.mark.parametrize(("computed", "wanted"), [("s", {1: None}), ("e", {1: None}), ("a", None), ("p", {1: None})])
def test_computed_bounds_are_unknown(computed, wanted):
    declared = [f"int64[1] {name} = {{{value}}}" for name, value in zip("seap", (1, 4, 1, 1), strict=True)]
    kept = ", ".join(one for one in declared if not one.startswith(f"int64[1] {computed}"))
    text = f"n (float[b, 6, 8] x, int64[1] {computed}) => (float[c, d, g] y) <{kept}> {{ y = Slice (x, s, e, a, p) }}"
    assert find_slices(next(iter(model_from_text(text, {}).graph)), [None, 6, 8]) == wanted


def test_targets_are_written_where_their_parts_are():
    model = model_from_text(
        "n (float[b, t, 8] x, int64[2] g) => (float[c, d, e, f] y) <int64[1] z = {0}, int64[1] two = {2},"
        "int64[2] heads = {4, 2}> { k = Shape (x) n = Slice (k, z, two, z) u = Concat <axis = 0> (n, heads)"
        "y = Reshape (x, u) }",
        {},
    )
    places = written(next(node.inputs[1] for node in model.graph if node.op_type == "Reshape"))
    assert places[:2] == [None, None]
    assert [(place[0].name, place[1]) for place in places[2:]] == [("heads", 0), ("heads", 1)]
    assert written(model.graph.inputs[1]) == [None, None]
    assert written(None) is None


def test_whole_numbers_are_an_input_or_an_attribute():
    new = model_from_text(
        "n (float[2, 3] x) => (float[2] y) <int64[1] a = {1}> { y = ReduceSum <keepdims = 0> (x, a) }", {}
    )
    old = model_from_text(
        "n (float[2, 3] x) => (float[2] y) { y = ReduceL2 <axes = [-1], keepdims = 0> (x) }", {}, opset=17
    )
    none = model_from_text("n (float[2, 3] x) => (float[1, 1] y) { y = ReduceSum (x) }", {})
    found = [whole_numbers(next(iter(model.graph)), 1, "axes") for model in (new, old, none)]
    assert found == [[1], [-1], None]
    assert np.array(found[0]).dtype.kind == "i"
