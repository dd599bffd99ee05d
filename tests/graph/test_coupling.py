"""What each operator ties together, and networks of attention, recurrence and tables."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from alula.graph.channels import find_couplings
from alula.graph.tidy import tidy
from alula.testing.models import model_from_text
from tests.graph.architectures import ARCHITECTURES, OTHERS, TIME_FIRST
from tests.oracles.zeroing import check_all, exported

EXPECTED = {
    "llama": ["attention.q", "attention.q#2", "attention.v", "gate"],
    "two-tower": ["user.0", "user.2", "item.0"],
    "dlrm": ["bottom.0", "bottom.2", "top.0"],
    "swin": ["packed", "packed#2", "up", "merge"],
    "mpnet": ["q", "q#2", "v"],
    "silero": ["spectrum", "first", "second"],
    "text reader": ["body.0.0", "body.3.0", "cells"],
    "bidirectional lstm": ["first", "second"],
}


@pytest.mark.parametrize("name", OTHERS)
def test_zeroing_and_removing_are_one(name):
    couplings = check_all(*exported(ARCHITECTURES[name], dynamic_batch=name not in TIME_FIRST))
    assert [coupling.name for coupling in couplings] == EXPECTED.get(name, [coupling.name for coupling in couplings])


def couplings_of(text, shapes, inputs=((2, 6),), constants=()):
    """Sizes of the couplings of a graph with drawn weights, each checked against zeroing."""
    random = np.random.default_rng(0)
    weights = {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    model = tidy(model_from_text(text, {**weights, **dict(constants)}))
    if not find_couplings(model):
        return []
    example = tuple(torch.from_numpy(random.standard_normal(shape).astype(np.float32)) for shape in inputs)
    return sorted(coupling.size for coupling in check_all(model, example))


IN_OUT = {"w": (6, 8), "v": (8, 3)}
GRAPHS = {
    "slices of known bounds": (
        ("n (float[b, 6] x) => (float[b, 3] y) <int64[1] one = {1}, int64[1] s = {0}, int64[1] m = {-3},"
        "int64[1] e = {9223372036854775807}> { h = MatMul (x, w) l = Slice (h, s, m, one) r = Slice (h, m, e, one)"
        "p = MatMul (l, a) q = MatMul (r, c) y = Add (p, q) }"),
        {"w": (6, 8), "a": (5, 3), "c": (3, 3)}, [3, 5],
    ),
    "slices that overlap": (
        ("n (float[b, 6] x) => (float[b, 3] y) <int64[1] one = {1}, int64[1] s = {0}, int64[1] m = {5},"
        "int64[1] k = {3}, int64[1] e = {8}> { h = MatMul (x, w) l = Slice (h, s, m, one) r = Slice (h, k, e, one)"
        "g = Mul (l, r) y = MatMul (g, a) }"),
        {"w": (6, 8), "a": (5, 3)}, [1, 2],
    ),
    "every second": (
        ("n (float[b, 6] x) => (float[b, 3] y) <int64[1] one = {1}, int64[1] s = {0}, int64[1] e = {8},"
        "int64[1] two = {2}> { h = MatMul (x, w) l = Slice (h, s, e, one, two) y = MatMul (l, a) }"),
        {"w": (6, 8), "a": (4, 3)}, [],
    ),
    "a target of several parts": (
        ("n (float[b, t, 6] x) => (float[b, t, 3] y) <int64[1] s = {0}, int64[1] e = {2}, int64[1] one = {0},"
        "int64[2] heads = {4, 2}, int64[1] all = {8}> { h = MatMul (x, w) f = Shape (h) bt = Slice (f, s, e, one)"
        "u = Concat <axis = 0> (bt, heads) k = Reshape (h, u) r = Relu (k) z = Concat <axis = 0> (bt, all)"
        "j = Reshape (r, z) y = MatMul (j, v) }"),
        IN_OUT, [2, 4],
    ),
    "a fill of written lengths": (
        ("n (float[b, 6] x) => (float[b, 3] y) <int64[1] s = {0}, int64[1] e = {1}, int64[1] axes = {0},"
        "int64[1] eight = {8}> { h = MatMul (x, w) f = Shape (x) n = Slice (f, s, e, axes)"
        "t = Concat <axis = 0> (n, eight) o = ConstantOfShape <value = float[1] {1.0}> (t) g = Mul (h, o)"
        "y = MatMul (g, v) }"),
        IN_OUT, [8],
    ),
    "expanded to written lengths": (
        ("n (float[b, 6] x) => (float[b, 5, 3] y) <int64[1] one = {1}, int64[3] t = {1, 5, 8}> { h = MatMul (x, w)"
        "u = Unsqueeze (h, one) k = Expand (u, t) r = Relu (k) y = MatMul (r, v) }"),
        IN_OUT, [8],
    ),
    "a sum of products": (
        ("n (float[b, 6] x) => (float[b, b] y) { h = MatMul (x, w) k = MatMul (x, u)"
        'y = Einsum <equation = "nd, md -> nm"> (h, k) }'),
        {"w": (6, 8), "u": (6, 8)}, [8],
    ),
    "a product of what does not vanish": (
        ("n (float[b, 6] x) => (float[b, b] y) { h = MatMul (x, w) s = Sigmoid (h) t = Transpose <perm = [1, 0]> (s)"
        "y = MatMul (s, t) }"),
        {"w": (6, 8)}, [],
    ),
    "a product by Gemm of what does not vanish": (
        ("n (float[b, 6] x) => (float[b, b] y) { h = MatMul (x, w) s = Sigmoid (h)"
        "y = Gemm <transB = 1> (s, s) }"),
        {"w": (6, 8)}, [],
    ),
    "a product by Gemm of what vanishes": (
        ("n (float[b, 6] x) => (float[b, b] y) { h = MatMul (x, w) s = Relu (h) y = Gemm <transB = 1> (s, s) }"),
        {"w": (6, 8)}, [8],
    ),
    "slices of bounds in 32 bits": (
        ("n (float[b, 6] x) => (float[b, 3] y) <int32[1] one = {1}, int32[1] s = {0}, int32[1] m = {5},"
        "int32[1] e = {8}> { h = MatMul (x, w) l = Slice (h, s, m, one) r = Slice (h, m, e, one)"
        "p = MatMul (l, a) q = MatMul (r, c) y = Add (p, q) }"),
        {"w": (6, 8), "a": (5, 3), "c": (3, 3)}, [3, 5],
    ),
    "a sum over no axis": (
        ("n (float[b, 6] x) => (float[b, 3] y) { h = MatMul (x, w)"
        "r = ReduceSum <noop_with_empty_axes = 1> (h) y = MatMul (r, v) }"),
        IN_OUT, [8],
    ),
    "a sum of what vanishes": (
        ("n (float[b, 6] x) => (float[b] y) <int64[1] one = {1}> { h = MatMul (x, w) r = Relu (h)"
        "y = ReduceSum <keepdims = 0> (r, one) }"),
        {"w": (6, 8)}, [8],
    ),
    "a mean": (
        ("n (float[b, 6] x) => (float[b] y) <int64[1] one = {1}> { h = MatMul (x, w) r = Relu (h)"
        "y = ReduceMean <keepdims = 0> (r, one) }"),
        {"w": (6, 8)}, [],
    ),
    "a sum with a constant beside": (
        ("n (float[b, 6] x) => (float[b] y) <int64[1] one = {1}, float c = {1.0}> { h = MatMul (x, w) r = Add (h, c)"
        "y = ReduceSum <keepdims = 0> (r, one) }"),
        {"w": (6, 8)}, [],
    ),
    "zeros around features": (
        ("n (float[b, 6] x) => (float[b, 3] y) <int64[4] around = {0, 3, 0, 1}> { h = MatMul (x, w) k = MatMul (x, u)"
        "p = Pad (h, around) s = Add (p, k) r = Relu (s) y = MatMul (r, a) }"),
        {"w": (6, 8), "u": (6, 12), "a": (12, 3)}, [4, 8],
    ),
    "zeros around features of an axis that is named": (
        ("n (float[b, 6] x) => (float[b, 3] y) <int64[2] around = {0, 4}, float zero = {0.0}, int64[1] one = {-1}> {"
        "h = MatMul (x, w) k = MatMul (x, u) p = Pad (h, around, zero, one) s = Add (p, k) y = MatMul (s, a) }"),
        {"w": (6, 8), "u": (6, 12), "a": (12, 3)}, [4, 8],
    ),
    "a product of features between zeros": (
        ("n (float[b, 6] x) => (float[b, b] y) <int64[4] around = {0, 3, 0, 1}> { h = MatMul (x, w) k = MatMul (x, u)"
        "p = Pad (h, around) s = Add (p, k) t = Transpose (s) y = MatMul (s, t) }"),
        {"w": (6, 8), "u": (6, 12)}, [4, 8],
    ),
    "ones around features": (
        ("n (float[b, 6] x) => (float[b, 3] y) <int64[4] around = {0, 3, 0, 1}, float one = {1.0}> {"
        "h = MatMul (x, w) p = Pad (h, around, one) y = MatMul (p, a) }"),
        {"w": (6, 8), "a": (12, 3)}, [],
    ),
    "features that are cut off by padding": (
        ("n (float[b, 6] x) => (float[b, 3] y) <int64[4] around = {0, -3, 0, 0}> {"
        "h = MatMul (x, w) p = Pad (h, around) y = MatMul (p, a) }"),
        {"w": (6, 8), "a": (5, 3)}, [],
    ),
    "a softmax": ("n (float[b, 6] x) => (float[b, 3] y) { h = MatMul (x, w) s = Softmax (h) y = MatMul (s, v) }",
                  IN_OUT, []),
    "an operator without a rule": (
        ("n (float[b, 6] x) => (float[b, 3] y) <int64 a = {1}> { h = MatMul (x, w) s = CumSum (h, a)"
        "y = MatMul (s, v) }"), IN_OUT, [],
    ),
}  # fmt: skip


@pytest.mark.parametrize("graph", GRAPHS)
def test_what_goes_and_what_stays(graph):
    text, shapes, sizes = GRAPHS[graph]
    inputs = ((2, 3, 6),) if "float[b, t, 6]" in text else ((2, 6),)
    assert couplings_of(text, shapes, inputs) == sizes


@pytest.mark.parametrize("mode", ["DCR", "CRD"])
def test_channels_that_move_into_space(mode):
    text = (
        "n (float[b, 3, 4, 4] x) => (float[b, 2, 8, 8] y) { h = Conv (x, w)"
        f'd = DepthToSpace <blocksize = 2, mode = "{mode}"> (h) y = Conv (d, v) }}'
    )
    assert couplings_of(text, {"w": (12, 3, 1, 1), "v": (2, 3, 1, 1)}, ((2, 3, 4, 4),)) == [3]


@pytest.mark.parametrize(("groups", "outputs", "size"), [(1, 6, 4), (2, 3, 2), (4, 1, 4), (4, 2, 4)])
def test_transposed_convolutions_in_groups(groups, outputs, size):
    """In groups all lose the same; where each channel has its own outputs, they go with it."""
    made = groups * outputs
    text = (
        f"n (float[b, 3, 4, 4] x) => (float[b, 2, 7, 7] y) {{ h = Conv (x, w)"
        f"t = ConvTranspose <group = {groups}, strides = [2, 2]> (h, u, c) y = Conv (t, v) }}"
    )
    shapes = {"w": (4, 3, 1, 1), "u": (4, outputs, 1, 1), "c": (made,), "v": (2, made, 1, 1)}
    sizes = couplings_of(text, shapes, ((2, 3, 4, 4),))
    assert sizes == ([size] if groups == 4 else sorted([size, outputs]))


def test_a_target_that_others_read_is_not_changed_for_them():
    """Two reshapes with one computed target: only one of them has units, and the other keeps its lengths."""
    text = (
        "n (float[b, t, 6] x, float[b, t, 8] z) => (float[b, t, 3] y, float[b, t, 4, 2] o) <int64[1] s = {0},"
        "int64[1] e = {2}, int64[1] one = {0}, int64[2] heads = {4, 2}, int64[3] back = {0, 0, 8}> { h = MatMul (x, w)"
        "f = Shape (x) bt = Slice (f, s, e, one) u = Concat <axis = 0> (bt, heads) k = Reshape (h, u)"
        "o = Reshape (z, u) r = Relu (k) j = Reshape (r, back) y = MatMul (j, v) }"
    )
    assert couplings_of(text, IN_OUT, ((2, 3, 6), (2, 3, 8))) == [2, 4]


def test_what_a_target_computes_stays():
    """The heads are counted by another input: they stay, though their number is known; the features can go."""
    random = np.random.default_rng(0)
    model = tidy(
        model_from_text(
            "n (float[b, t, 6] x, float[b, c] z) => (float[b, t, 3] y) <int64[1] s = {0}, int64[1] one = {1},"
            "int64[1] two = {2}, int64[3] back = {0, 0, 8}> { h = MatMul (x, w) f = Shape (x) bt = Slice (f, s, two, s)"
            "g = Shape (z) n = Slice (g, one, two, s) u = Concat <axis = 0> (bt, n, two) k = Reshape (h, u)"
            "r = Relu (k) j = Reshape (r, back) y = MatMul (j, v) }",
            {name: random.standard_normal(shape).astype(np.float32) for name, shape in IN_OUT.items()},
        )
    )
    graph = model.edit()
    for node in graph.graph:
        if node.outputs[0].name in ("k", "r"):
            node.outputs[0].shape = type(node.outputs[0].shape)(["b", "t", 4, 2])
    example = (torch.randn(2, 3, 6), torch.randn(2, 4))
    assert [coupling.size for coupling in check_all(model.edited(graph), example)] == [2]
