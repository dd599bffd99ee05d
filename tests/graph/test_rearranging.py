"""Splits by way of sequences, and transposes between reshapes, in one form."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alula.graph.running import Runner
from alula.graph.tidy import tidy
from alula.testing.models import model_from_text


def run(model, **feeds):
    return Runner(model, threads=1)(feeds)


def operators(model):
    return [node.op_type for node in model.graph]


def split_model(axis, lengths, picks, attributes="", rank=2):
    """A SplitToSequence whose parts are picked by number."""
    declared = [f"int64 i{index} = {{{pick}}}" for index, pick in enumerate(picks)]
    if isinstance(lengths, list):
        declared.append(f"int64[{len(lengths)}] n = {{{', '.join(map(str, lengths))}}}")
    elif lengths is not None:
        declared.append(f"int64 n = {{{lengths}}}")
    left = rank - 1 if lengths is None and "keepdims = 0" in attributes else rank
    outputs = [f"float[{', '.join(f'd{index}{axis}' for axis in range(left))}] y{index}" for index in range(len(picks))]
    picked = " ".join(f"p{index} = SequenceAt (s, i{index}) y{index} = Neg (p{index})" for index in range(len(picks)))
    return model_from_text(
        f"n (float[4, 6] x) => ({', '.join(outputs)}) <{', '.join(declared)}> "
        f"{{ s = SplitToSequence <axis = {axis}{attributes}> ({'x' if lengths is None else 'x, n'}) {picked} }}",
        {},
    )


@pytest.mark.parametrize(
    ("axis", "lengths", "picks", "attributes"),
    [
        (1, [1, 3, 2], [0, 1, 2], ""),
        (-1, [2, 4], [1, 0, 1], ""),
        (0, [3, 1], [-1, -2], ""),
        (1, 4, [0, 1], ""),
        (1, 2, [2, 0], ""),
        (1, 6, [0], ""),
        (1, None, [0, 5, -1], ""),
        (0, None, [3, 1], ", keepdims = 0"),
        (-1, None, [3, 1], ", keepdims = 0"),
        (1, [2, 4], [1], ", keepdims = 0"),
    ],
    ids=["uneven", "negative axis", "negative picks", "scalar, uneven", "scalar", "whole", "ones", "dropped",
         "dropped, negative axis", "keepdims means nothing beside lengths"],
)  # fmt: skip
def test_a_sequence_that_is_only_picked_from_becomes_a_split(axis, lengths, picks, attributes):
    model = split_model(axis, lengths, picks, attributes)
    tidied = tidy(model)
    assert "Split" in operators(tidied)
    assert not {"SplitToSequence", "SequenceAt"} & set(operators(tidied))
    assert tidied.outputs == model.outputs or [one.name for one in tidied.outputs] == [
        one.name for one in model.outputs
    ]
    x = np.random.default_rng(0).standard_normal((4, 6)).astype(np.float32)
    for (name, wanted), found in zip(run(model, x=x).items(), run(tidied, x=x).values(), strict=True):
        np.testing.assert_array_equal(found, wanted, err_msg=name)


@settings(max_examples=20, deadline=None)
@given(cuts=st.sets(st.integers(1, 5), max_size=4), axis=st.sampled_from([1, -1]), data=st.data())
def test_any_lengths(cuts, axis, data):
    edges = [0, *sorted(cuts), 6]
    lengths = [after - before for before, after in itertools.pairwise(edges)]
    picks = data.draw(st.lists(st.integers(-len(lengths), len(lengths) - 1), min_size=1, max_size=4))
    model = split_model(axis, lengths, picks)
    x = np.random.default_rng(0).standard_normal((4, 6)).astype(np.float32)
    parts = np.split(x, edges[1:-1], 1)
    for pick, found in zip(picks, run(tidy(model), x=x).values(), strict=True):
        np.testing.assert_array_equal(found, -parts[pick])


@pytest.mark.parametrize(
    "text",
    [
        (
            "n (float[4, 6] x) => (int64 y) <int64[2] n = {2, 4}> { s = SplitToSequence <axis = 1> (x, n)"
            "y = SequenceLength (s) }"
        ),
        (
            "n (float[4, 6] x, int64 i) => (float[4, d] y) <int64[2] n = {2, 4}> {"
            "s = SplitToSequence <axis = 1> (x, n) y = SequenceAt (s, i) }"
        ),
        (
            "n (float[4, a] x) => (float[4, d] y) <int64 n = {2}, int64 i = {1}> {"
            "s = SplitToSequence <axis = 1> (x, n) y = SequenceAt (s, i) }"
        ),
        (
            "n (float[4, 6] x, int64[2] n) => (float[4, d] y) <int64 i = {1}> { s = SplitToSequence <axis = 1> (x, n)"
            "y = SequenceAt (s, i) }"
        ),
    ],
    ids=["its length", "a computed pick", "an unknown number of parts", "computed lengths"],
)
def test_other_sequences_are_left_alone(text):
    assert "SplitToSequence" in operators(tidy(model_from_text(text, {})))


def test_an_output_keeps_its_name_when_a_part_is_one():
    model = model_from_text(
        "n (float[4, 6] x) => (float[4, 2] y) <int64[2] n = {2, 4}, int64 i = {0}> "
        "{ s = SplitToSequence <axis = 1> (x, n) y = SequenceAt (s, i) }",
        {},
    )
    tidied = tidy(model)
    assert operators(tidied) == ["Split"]
    assert [one.name for one in tidied.outputs] == ["y"]
    x = np.arange(24, dtype=np.float32).reshape(4, 6)
    np.testing.assert_array_equal(run(tidied, x=x)["y"], x[:, :2])


KEYS = (
    "n (float[b, 4, 6, 5] x) => (float[b, 4, 5, 6] y) <int64[3] j = {-1, 6, 5}, int64[4] k = {-1, 4, LAST}> "
    "{ a = Reshape (x, j) t = Transpose <perm = [PERM]> (a) y = Reshape (t, k) }"
)
HEADS = (
    "n (float[6, b, 20] x) => (float[b, 4, 6, 5] y) <int64[3] j = {6, -1, 5}, int64[4] k = {-1, 4, 6, 5}> "
    "{ a = Reshape (x, j) t = Transpose <perm = [1, 0, 2]> (a) y = Reshape (t, k) }"
)


def test_heads_are_not_hidden_in_the_batch():
    """Both ways that exporters write attention; the outputs stay, and one transpose of the heads is in sight."""
    random = np.random.default_rng(0)
    for text, shape, wanted in (
        (KEYS.replace("LAST", "5, 6").replace("PERM", "0, 2, 1"), (3, 4, 6, 5), ["Transpose"]),
        (HEADS, (6, 3, 20), ["Reshape", "Transpose"]),
    ):
        model = model_from_text(text, {})
        tidied = tidy(model)
        assert operators(tidied) == wanted
        x = random.standard_normal(shape).astype(np.float32)
        np.testing.assert_array_equal(run(tidied, x=x)["y"], run(model, x=x)["y"])


def test_other_transposes_between_reshapes_are_left_alone():
    """Axes that are split in another way than they were joined, or swapped with the joined one."""
    for text in (
        (
            "n (float[2, 4, 6, 5] x) => (float[4, 2, 5, 6] y) <int64[3] j = {8, 6, 5}, int64[4] k = {4, 2, 5, 6}> "
            "{ a = Reshape (x, j) t = Transpose <perm = [0, 2, 1]> (a) y = Reshape (t, k) }"
        ),
        (
            "n (float[2, 4, 6, 5] x) => (float[2, 4, 5, 6] y) <int64[3] j = {8, 6, 5}, int64[4] k = {2, 4, 5, 6}> "
            "{ a = Reshape (x, j) t = Transpose <perm = [2, 0, 1]> (a) y = Reshape (t, k) }"
        ),
    ):
        model = model_from_text(text, {})
        tidied = tidy(model)
        assert operators(tidied) == ["Reshape", "Transpose", "Reshape"]
        x = np.random.default_rng(0).standard_normal((2, 4, 6, 5)).astype(np.float32)
        np.testing.assert_array_equal(run(tidied, x=x)["y"], run(model, x=x)["y"])
