"""Chains compute what their layer would with the product of their weights, and cost what is said."""

from __future__ import annotations

import numpy as np
import pytest

from alula.graph.cost import measure_cost
from alula.graph.editing import Editor
from alula.graph.matrices import from_matrix, weight_matrix
from alula.numerics.factors import canonical, canonical_whole, tucker
from alula.techniques.factor_chains import Canonical, Singular, Tucker, ranks_of, write_chain
from alula.testing.conformance import check_valid, with_weight
from alula.testing.models import model_from_text, random_feeds
from tests.oracles.factors import nearest_of_rank

SAME = 'auto_pad = "SAME_UPPER"'
CONVOLUTIONS = {
    "pointwise": ("6, 8, 8", "", (8, 6, 1, 1), True),
    "pointwise with a stride and pads": ("6, 8, 8", "strides = [2, 3], pads = [1, 0, 0, 1]", (8, 6, 1, 1), False),
    "pointwise in groups": ("8, 5, 5", "group = 2", (6, 4, 1, 1), True),
    "a kernel": ("6, 8, 8", "pads = [1, 1, 1, 1]", (8, 6, 3, 3), True),
    "uneven pads": ("6, 8, 8", "strides = [2, 1], pads = [0, 2, 1, 0], dilations = [1, 2]", (8, 6, 2, 3), False),
    "padded by itself": ("6, 9, 8", f"strides = [2, 2], {SAME}", (8, 6, 3, 3), True),
    "groups": ("12, 7, 7", "group = 3, strides = [2, 2], pads = [1, 1, 1, 1]", (9, 4, 3, 3), True),
    "a row": ("6, 8, 8", "strides = [2, 1], pads = [0, 1, 0, 1]", (8, 6, 1, 3), False),
    "one axis": ("6, 9", "pads = [1, 1]", (5, 6, 3), True),
    "three axes": ("3, 5, 5, 5", "strides = [1, 2, 1]", (4, 3, 2, 2, 2), False),
}  # what is read, attributes, weight, whether there is a bias


def normal(*shape):
    return np.random.default_rng(list(shape)).standard_normal(shape).astype(np.float32)


def convolution(name):
    given, attributes, shape, biased = CONVOLUTIONS[name]
    rank = len(shape) - 2
    made = ", ".join(["n", str(shape[0]), *"abc"[:rank]])
    text = f"net (float[n, {given}] x) => (float[{made}] y) {{ y = Conv <{attributes}> (x, w{', b' * biased}) }}"
    return model_from_text(text.replace("<>", ""), {"w": normal(*shape), **({"b": normal(shape[0])} if biased else {})})


PRODUCTS = {
    "MatMul": ("(float[n, 4, 9] x) => (float[n, 4, 7] y) { y = MatMul (x, w) }", (9, 7)),
    "MatMul on the left": ("(float[n, 9, 4] x) => (float[n, 7, 4] y) { y = MatMul (w, x) }", (7, 9)),
    "Gemm": ("(float[n, 9] x) => (float[n, 7] y) { y = Gemm <alpha = 0.5, beta = 3.0> (x, w, b) }", (9, 7)),
    "Gemm, transposed": ("(float[n, 9] x) => (float[n, 7] y) { y = Gemm <transB = 1, alpha = 2.0> (x, w, b) }", (7, 9)),
}


def product(name):
    text, shape = PRODUCTS[name]
    return model_from_text(f"net {text}", {"w": normal(*shape), **({"b": normal(7)} if " b)" in text else {})})


def chained(model, kind, ranks, **settings):
    """The model with its only layer as a chain, and the chain."""
    editor = Editor(model.edit())
    (layer,) = model.layers()
    chain = kind(layer, model.graph.node(layer.name), model.weight(layer.weight), **settings)
    write_chain(editor, layer, chain.links(ranks))
    return model.edited(editor.model), chain


def agree(result, reference):
    check_valid(result)
    feeds = random_feeds(reference, batch=3)
    expected, found = reference.run(feeds), result.run(feeds)
    for name, wanted in expected.items():
        np.testing.assert_allclose(found[name], wanted, rtol=1e-3, atol=2e-5)
    assert (result.inputs, result.outputs) == (reference.inputs, reference.outputs)


@pytest.mark.parametrize("rank", [1, 2, "full"])
@pytest.mark.parametrize("name", [*CONVOLUTIONS, *PRODUCTS])
def test_two_links_are_the_nearest_matrix(name, rank):
    model = convolution(name) if name in CONVOLUTIONS else product(name)
    (layer,) = model.layers()
    matrix = weight_matrix(model.weight("w"), layer).astype(np.float64)
    rank = min(matrix.shape[1:]) if rank == "full" else rank
    near = np.array([nearest_of_rank(one, rank, np.eye(matrix.shape[2])) for one in matrix])
    result, chain = chained(model, Singular, (rank,))
    agree(result, with_weight(model, "w", lambda _: from_matrix(near, layer)))
    assert [one.name for one in result.layers()][-1] == layer.name
    assert chain.full == (min(matrix.shape[1:]),)


def test_a_narrow_table_and_a_matrix():
    for text in ("y = Gather (w, t)", "r = Gather (w, t) y = Relu (r)"):
        model = model_from_text(f"net (int64[n, 2] t) => (float[n, 2, 6] y) {{ {text} }}", {"w": normal(20, 6)})
        for rank in (1, 3, 6):
            near = nearest_of_rank(normal(20, 6).astype(np.float64), rank, np.eye(6))
            result, chain = chained(model, Singular, (rank,))
            agree(result, with_weight(model, "w", lambda _, near=near: near))
            assert result.weight("w.0").shape == (20, rank)
            assert chain.macs(np.array([[rank]]))[0] == rank * 6


KERNELS = [name for name in CONVOLUTIONS if "pointwise" not in name]


@pytest.mark.parametrize("ranks", [(1, 1), (2, 1), "full"])
@pytest.mark.parametrize("name", KERNELS)
def test_three_links_are_tuckers(name, ranks):
    model = convolution(name)
    (layer,) = model.layers()
    kernel = model.weight("w").reshape(layer.groups, -1, *layer.shape[1:])
    ranks = kernel.shape[1:3] if ranks == "full" else ranks
    near = kernel if ranks == kernel.shape[1:3] else tucker(kernel, ranks).whole()
    result, chain = chained(model, Tucker, ranks)
    agree(result, with_weight(model, "w", lambda _: near.reshape(layer.shape)))
    assert len(result.layers()) == 3
    assert chain.full == kernel.shape[1:3]


@pytest.mark.parametrize("rank", [1, 5])
@pytest.mark.parametrize("name", [name for name in KERNELS if name != "groups"])
def test_cp_has_a_link_for_each_axis_of_the_kernel(name, rank):
    model = convolution(name)
    (layer,) = model.layers()
    near = canonical_whole(canonical(model.weight("w"), rank, seed=3))
    result, _ = chained(model, Canonical, (rank,), seed=3)
    agree(result, with_weight(model, "w", lambda _: near))
    assert len(result.layers()) == 2 + sum(length > 1 for length in layer.shape[2:])


@pytest.mark.parametrize("kind", [Singular, Tucker, Canonical])
@pytest.mark.parametrize("attributes", ["pads = [1, 1, 1, 1]", "strides = [2, 4], pads = [0, 1, 1, 0]"])
def test_costs_are_those_of_the_graph(kind, attributes):
    """Where the window fits the image: outputs times stride are the inputs."""
    text = f"net (float[1, 6, 8, 8] x) => (float[1, 8, h, v] y) {{ y = Conv <{attributes}> (x, w) }}"
    model = model_from_text(text, {"w": normal(8, 6, 3, 3)})
    ranks = (3, 2) if kind is Tucker else (3,)
    result, chain = chained(model, kind, ranks, **({"seed": 0} if kind is Canonical else {}))
    cost, rows = measure_cost(result), np.array([ranks])
    positions = measure_cost(model).macs // model.weight("w").size
    assert cost.parameters == chain.parameters(rows)[0]
    assert cost.macs == chain.macs(rows)[0] * positions


@pytest.mark.parametrize("kind", [Singular, Tucker, Canonical])
def test_what_is_said_to_be_lost_is_lost_at_most(kind):
    model = convolution("a kernel")
    (layer,) = model.layers()
    weight = model.weight("w")
    chain = kind(layer, model.graph.node(layer.name), weight, **({"seed": 0} if kind is Canonical else {}))
    ladder = ranks_of(chain)
    for ranks, lost in list(zip(ladder.ranks.tolist(), ladder.lost, strict=True))[::5]:
        first, *middle, last = [link.weight for link in chain.links(tuple(ranks))]
        if kind is Canonical:
            whole = np.einsum("or,rh,rw,ri->oihw", last[..., 0, 0], middle[0][:, 0, :, 0], middle[1][:, 0, 0], first[..., 0, 0])  # fmt: skip  # noqa: E501
        elif kind is Tucker:
            whole = np.einsum("op,pqhw,qi->oihw", last[..., 0, 0], middle[0], first[..., 0, 0])
        else:
            whole = np.einsum("or,rihw->oihw", last[..., 0, 0], first)
        left = ((weight - whole) ** 2).sum() / (weight**2).sum()
        assert left <= lost + 1e-6
        assert kind is Tucker or left == pytest.approx(lost, abs=1e-5)


def test_ladders_climb_in_multiples_to_the_full_rank():
    model = product("MatMul")
    (layer,) = model.layers()
    chain = Singular(layer, model.graph.node(layer.name), model.weight("w"))
    assert ranks_of(chain).ranks[:, 0].tolist() == [1, 2, 3, 4, 5, 6, 7]
    assert ranks_of(chain, 3).ranks[:, 0].tolist() == [3, 6, 7]
    assert ranks_of(chain, 100).ranks[:, 0].tolist() == [7]
    assert (np.diff(ranks_of(chain).lost) < 0).all()
    kernel = convolution("a row")
    (layer,) = kernel.layers()
    pairs = ranks_of(Tucker(layer, kernel.graph.node(layer.name), kernel.weight("w")), 4).ranks.tolist()
    assert pairs == [[4, 4], [4, 6], [8, 4], [8, 6]]
