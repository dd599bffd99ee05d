"""A layer as a chain of smaller ones: what each rank costs and loses, its weights, and its nodes in the graph.

Multiply-accumulates are those of one output position of the layer: a link that runs before a stride works at more of
them. Looking a table up costs none, and the matrix behind a narrow table as many as it has weights.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol, TypeAlias

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from alula.graph.editing import Editor, like
from alula.graph.layers import Layer
from alula.graph.matrices import weight_matrix
from alula.numerics.factors import (
    Floats,
    SingularFactors,
    canonical,
    canonical_whole,
    singular_factors,
    tucker,
    tucker_lost,
)

Ints: TypeAlias = NDArray[np.int64]
Ranks: TypeAlias = tuple[int, ...]

_CANONICAL_RANKS: Final = 10  # that are tried: each is a fit of its own


@dataclass(frozen=True, slots=True, eq=False)
class Link:
    """One layer of a chain: its weight, and the attributes of its node where they differ from the layer's."""

    weight: np.ndarray
    attributes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class Ladder:
    """The ways to factorize one layer, from the least ranks to the full ones.

    Attributes:
        ranks: [n, ranks of one way].
        parameters: [n].
        macs: multiply-accumulates for each output position, [n].
        lost: share of the energy of the weight, or of the layer's outputs where it is weighted, that is lost, [n].
    """

    ranks: Ints
    parameters: Ints
    macs: Ints
    lost: Floats


class Chain(Protocol):
    """One form of chain for one layer."""

    @property
    def full(self) -> Ranks:
        """The ranks at which nothing has to be lost."""
        ...

    def options(self, multiple: int = 1) -> Ints:
        """Ranks worth trying, [n, ranks]."""
        ...

    def parameters(self, ranks: Ints) -> Ints:
        """Weights of all links, for each row of ranks."""
        ...

    def macs(self, ranks: Ints) -> Ints:
        """Multiply-accumulates for each output position, for each row of ranks."""
        ...

    def lost(self, ranks: Ints) -> Floats:
        """The share of the energy that each row of ranks loses."""
        ...

    def links(self, ranks: Ranks) -> list[Link]:
        """The layers of the chain, the one that reads the input first."""
        ...


class Singular:
    """Two links, by singular values: the kernel of a convolution stays whole in the first."""

    def __init__(self, layer: Layer, node: ir.Node, weight: np.ndarray, moments: Floats | None = None) -> None:
        self._layer, self._node = layer, node
        self._matrix = weight[None] if layer.operator == "Gather" else weight_matrix(weight, layer)  # [g, m, n]
        self._moments = moments
        self._factors: SingularFactors | None = None

    @property
    def full(self) -> Ranks:
        """The lesser side of the matrix."""
        return (min(self._matrix.shape[1:]),)

    def options(self, multiple: int = 1) -> Ints:  # noqa: ARG002
        """Every rank."""
        return np.arange(1, self.full[0] + 1)[:, None]

    def parameters(self, ranks: Ints) -> Ints:
        """Those are r (m + n) for each group."""
        groups, rows, columns = self._matrix.shape
        return np.asarray(ranks[:, 0] * groups * (rows + columns))

    def macs(self, ranks: Ints) -> Ints:
        """As many as parameters; of a table's, those behind the look-up."""
        return ranks[:, 0] * self._matrix.shape[2] if self._layer.operator == "Gather" else self.parameters(ranks)

    def lost(self, ranks: Ints) -> Floats:
        """What the singular values left out hold."""
        return self._found().lost()[ranks[:, 0]]

    def links(self, ranks: Ranks) -> list[Link]:
        """In the layout of the operator."""
        layer = self._layer
        left, right = self._found().at(ranks[0])  # [g, m, r], [g, r, n]
        if layer.operator == "Gather":
            return [Link(left[0]), Link(right[0])]
        if layer.operator != "Conv":
            factors = (right[0], left[0])
            transposed = {"transB": 1} if layer.operator == "Gemm" and layer.output_axis == 0 else {}
            return [Link(factor if layer.output_axis == 0 else factor.T, transposed) for factor in factors]
        group, ones = {"group": layer.groups}, (1,) * (len(layer.shape) - 2)
        first, last = right.reshape(-1, *layer.shape[1:]), left.reshape(layer.shape[0], -1, *ones)
        return [Link(first, {**_window(self._node), **group}), Link(last, group)]

    def _found(self) -> SingularFactors:
        if self._factors is None:
            self._factors = singular_factors(self._matrix, self._moments)
        return self._factors


class Tucker:
    """Three links: 1 x 1 to fewer channels, the kernel between fewer, 1 x 1 to all."""

    def __init__(self, layer: Layer, node: ir.Node, weight: np.ndarray) -> None:
        self._layer, self._node = layer, node
        self._kernel = weight.reshape(layer.groups, -1, *layer.shape[1:])  # [g, o, i, d...]
        self._lost: Floats | None = None

    @property
    def full(self) -> Ranks:
        """Outputs and inputs of a group."""
        return self._kernel.shape[1], self._kernel.shape[2]

    def options(self, multiple: int = 1) -> Ints:  # noqa: ARG002
        """Every pair, but those of which one is more than the other can use."""
        outputs, inputs = np.meshgrid(*(np.arange(1, length + 1) for length in self.full), indexing="ij")
        pairs = np.stack([outputs.ravel(), inputs.ravel()], axis=1)
        size = math.prod(self._layer.shape[2:])
        return pairs[(pairs[:, 0] <= pairs[:, 1] * size) & (pairs[:, 1] <= pairs[:, 0] * size)]

    def parameters(self, ranks: Ints) -> Ints:
        """Those are q i + p q d + o p for each group."""
        return self._inner(ranks) + self._behind(ranks)

    def macs(self, ranks: Ints) -> Ints:
        """The first link runs before the stride."""
        return self._inner(ranks) * math.prod(_strides(self._node, self._layer)) + self._behind(ranks)

    def _inner(self, ranks: Ints) -> Ints:
        return ranks[:, 1] * self.full[1] * self._layer.groups

    def _behind(self, ranks: Ints) -> Ints:
        outer, inner = ranks.T
        core = outer * inner * math.prod(self._layer.shape[2:])
        return np.asarray((core + self.full[0] * outer) * self._layer.groups)

    def lost(self, ranks: Ints) -> Floats:
        """What the truncated higher-order singular value decomposition loses: the weights lose less."""
        if self._lost is None:
            self._lost = tucker_lost(self._kernel)
        return self._lost[ranks[:, 0], ranks[:, 1]]

    def links(self, ranks: Ranks) -> list[Link]:
        """The window of the layer goes with the kernel."""
        found = tucker(self._kernel, (ranks[0], ranks[1]))
        group, ones = {"group": self._layer.groups}, (1,) * (len(self._layer.shape) - 2)
        inner = found.inner.reshape(-1, found.inner.shape[2], *ones)  # [g q, i, 1...]
        core = found.core.reshape(-1, *found.core.shape[2:])  # [g p, q, d...]
        outer = found.outer.reshape(self._layer.shape[0], -1, *ones)  # [g o, p, 1...]
        return [Link(inner, group), Link(core, {**_window(self._node), **group}), Link(outer, group)]


class Canonical:
    """1 x 1 to r channels, along each axis of the kernel a filter for each of them, 1 x 1 to all outputs."""

    def __init__(self, layer: Layer, node: ir.Node, weight: np.ndarray, seed: int) -> None:
        self._layer, self._node, self._kernel, self._seed = layer, node, weight, seed
        self._axes = [axis for axis, length in enumerate(layer.shape[2:]) if length > 1]
        self._found: dict[int, tuple[Floats, ...]] = {}

    @property
    def full(self) -> Ranks:
        """The most that makes the layer smaller: CP has no rank that always suffices."""
        return (max(1, self._kernel.size // int(self.parameters(np.array([[1]]))[0])),)

    def options(self, multiple: int = 1) -> Ints:
        """A few, from the least to the most that makes the layer smaller."""
        (most,) = self.full
        whole = max(1, most // multiple)
        return multiple * np.unique(np.geomspace(1, whole, _CANONICAL_RANKS).astype(np.int64))[:, None]

    def parameters(self, ranks: Ints) -> Ints:
        """Those are r times the sum of the lengths."""
        outputs, inputs, *kernel = self._layer.shape
        return ranks[:, 0] * (outputs + inputs + sum(kernel[axis] for axis in self._axes))

    def macs(self, ranks: Ints) -> Ints:
        """Each link runs at the positions that the strides before it leave."""
        outputs, inputs, *kernel = self._layer.shape
        left = math.prod(_strides(self._node, self._layer))
        one = left * inputs
        for axis in self._axes:
            left //= math.prod(_strides(self._node, self._layer)[other] for other in self._with(axis))
            one += left * kernel[axis]
        return ranks[:, 0] * (one + outputs)

    def lost(self, ranks: Ints) -> Floats:
        """What each fit leaves."""
        total = float((self._kernel.astype(np.float64) ** 2).sum()) or 1.0
        left = [((self._kernel - canonical_whole(self._fit(int(rank)))) ** 2).sum() for rank in ranks[:, 0]]
        return np.array(left, np.float64) / total

    def links(self, ranks: Ranks) -> list[Link]:
        """Each axis has its own part of the layer's window."""
        outer, inner, *along = self._fit(ranks[0])
        ones = (1,) * len(along)
        along[self._axes[0]] = along[self._axes[0]] * math.prod(  # axes of one element have no filter, but a factor
            factor for axis, factor in enumerate(along) if axis not in self._axes
        )
        middle = []
        for axis in self._axes:
            shape = [1] * len(along)
            shape[axis] = -1
            window = _window(self._node, self._with(axis), len(along))
            middle.append(Link(along[axis].T.reshape(ranks[0], 1, *shape), {**window, "group": ranks[0]}))
        return [Link(inner.T.reshape(*inner.T.shape, *ones)), *middle, Link(outer.reshape(*outer.shape, *ones))]

    def _with(self, axis: int) -> list[int]:
        """The axes whose strides and pads go with the filter along one: axes of one element with the first's."""
        others = [other for other in range(len(self._layer.shape) - 2) if other not in self._axes]
        return [axis, *others] if axis == self._axes[0] else [axis]

    def _fit(self, rank: int) -> tuple[Floats, ...]:
        if rank not in self._found:
            self._found[rank] = canonical(self._kernel, rank, seed=self._seed)
        return self._found[rank]


def ranks_of(chain: Chain, multiple: int = 1) -> Ladder:
    """What the ways to factorize a layer cost and lose; ranks are multiples where the full rank allows."""
    ranks = chain.options(multiple)
    fits = [(column % multiple == 0) | (column == full) for column, full in zip(ranks.T, chain.full, strict=True)]
    ranks = ranks[np.all(fits, axis=0)] if np.all(fits, axis=0).any() else ranks[-1:]
    return Ladder(ranks, chain.parameters(ranks), chain.macs(ranks), chain.lost(ranks))


def write_chain(editor: Editor, layer: Layer, links: Sequence[Link]) -> None:
    """Let the links compute what a layer did; its node, name and bias go to the last, of a table to the first."""
    weights = [
        editor.constant(f"{layer.weight}.{number}", np.ascontiguousarray(link.weight, np.float32))
        for number, link in enumerate(links)
    ]
    node = editor.node(layer.name)
    if layer.operator == "Gather":
        _write_table(editor, node, *weights)
    else:
        place = 1 if node.inputs[1] is editor.value(layer.weight) else 0
        value = node.inputs[1 - place]
        for number, (link, weight) in enumerate(zip(links[:-1], weights, strict=False)):
            inputs = [value, weight] if place == 1 else [weight, value]
            made = editor.insert(
                layer.operator, inputs, f"{layer.output}.{number}", before=node, attributes=link.attributes
            )
            value = made.outputs[0]
        node.replace_input_with(1 - place, value)
        node.replace_input_with(place, weights[-1])
        if layer.operator == "Conv":
            node.attributes.clear()
            node.attributes.update({name: ir.AttrInt64(name, value) for name, value in links[-1].attributes.items()})
    editor.drop_constant(layer.weight)


def _write_table(editor: Editor, node: ir.Node, narrow: ir.Value, matrix: ir.Value) -> None:
    """Look rows of a narrow table up, and multiply them; the product takes over the look-up's name."""
    rows = node.outputs[0]
    uses, name = list(rows.uses()), str(rows.name)
    node.replace_input_with(0, narrow)
    product = editor.insert("MatMul", [rows, matrix], f"{name}.product", after=node).outputs[0]
    like(product, rows)
    rows.shape = None
    for use in uses:
        use.node.replace_input_with(use.idx, product)
    outputs = editor.graph.outputs
    for index, value in enumerate(outputs):
        if value is rows:
            outputs[index] = product
    editor.rename(rows, f"{name}.narrow")
    editor.rename(product, name)


def _strides(node: ir.Node, layer: Layer) -> list[int]:
    return list(node.attributes.get_ints("strides", (1,) * (len(layer.shape) - 2)))


def _window(node: ir.Node, axes: Iterable[int] | None = None, rank: int = 0) -> dict[str, Any]:
    """How a convolution moves over what it reads; along some of its axes only, if they are given."""
    padding = node.attributes.get_string("auto_pad", "NOTSET")
    found: dict[str, Any] = {} if padding == "NOTSET" else {"auto_pad": padding}
    for name in ("strides", "dilations", *(("pads",) if padding == "NOTSET" else ())):
        given = node.attributes.get_ints(name, None)
        if given is None:
            continue
        kept = list(given)
        if axes is not None:
            kept = [value if index % rank in axes else int(name != "pads") for index, value in enumerate(given)]
        found[name] = kept
    return found
