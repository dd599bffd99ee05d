"""Whose time it is: what the runtime's profiler timed, assigned to the layers of the graph that was built.

Runtimes fuse and rename. Most nodes keep the name of the product they grew around, with something behind it. Others are
called after the last operator that was fused into them (OpenVINO's FullyConnected after the addition of a bias), or
after the tensor they write (ONNX Runtime's blocked convolutions): for these, the nearest layer before it is looked for.
What belongs to no layer converts between types or layouts, or is something else.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Literal

from alula.search.result import LayerRow, TimeSplit

if TYPE_CHECKING:
    import onnx_ir as ir

    from alula.graph.model import Model
    from alula.targets import NodeTime

Kind = Literal["int8", "floating", "conversions", "other"]

_CONVERT: Final = frozenset({
    "QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "FakeQuantize", "Reorder", "ReorderInput",
    "ReorderOutput",
})  # fmt: skip
_CONVERT_IF_NEW: Final = frozenset({"Cast", "Convert", "Transpose"})  # no conversion where the original has it too
_FUSED_BEHIND: Final = 3  # operators that a product may take along: addition, activation, clip
_BLOCKED: Final = "_nchwc"  # ends the name of a node that is called after the tensor it writes
_DECORATION: Final = re.compile(r"^fused |(_token_\d+|_nhwc|_quant)$")
_PRODUCT: Final = re.compile(r"Conv(?!ert)|FullyConnected|MatMul|Gemm|LSTM|GRU|RNN")


@dataclass(frozen=True, slots=True)
class Share:
    """One timed node, the layer it computes (if any), and what kind of work it is."""

    time: NodeTime
    layer: str | None
    kind: Kind


def assign(times: Sequence[NodeTime], original: Model, candidate: Model) -> tuple[Share, ...]:
    """Say of each timed node which layer of the original it computes, and what kind of work it is.

    Args:
        times: what was profiled of the candidate, in any order.
        original: the float graph.
        candidate: the graph that was built.
    """
    owners = _owners(original, candidate)
    before = {str(node.name) for node in original.graph}

    def owner_of(name: str) -> str | None:
        return owners.get(_plain(name, owners))

    names = [_plain(one.name, owners) for one in times]
    converts = [
        one.operator in _CONVERT or (one.operator in _CONVERT_IF_NEW and name not in before)
        for one, name in zip(times, names, strict=True)
    ]
    layers = [
        None if conversion else next((owner for name in (one.name, *one.origins) if (owner := owner_of(name))), None)
        for one, conversion in zip(times, converts, strict=True)
    ]
    layers = _with_fused(times, names, layers, candidate, owners)
    return tuple(
        Share(one, layer, _kind(one, layer, converts=conversion))
        for one, layer, conversion in zip(times, layers, converts, strict=True)
    )


def split_time(shares: Mapping[str, Sequence[Share]], calls: Mapping[str, int]) -> TimeSplit:
    """Where the time of one example goes, over all parts.

    Args:
        shares: by part, of one call.
        calls: by part, for one example.
    """
    weighted = [(calls.get(part, 1) * one.time.milliseconds, one) for part, all_of in shares.items() for one in all_of]
    total = sum(milliseconds for milliseconds, _ in weighted)

    def fraction(kind: Kind) -> float:
        return sum(milliseconds for milliseconds, one in weighted if one.kind == kind) / total if total else 0.0

    return TimeSplit(
        total_ms=total,
        int8=fraction("int8"),
        floating=fraction("floating"),
        conversions=fraction("conversions"),
        other=fraction("other"),
        conversion_count=sum(one.kind == "conversions" for _, one in weighted),
        node_count=len(weighted),
    )


def with_shares(
    rows: Iterable[LayerRow], shares: Mapping[str, Sequence[Share]], calls: Mapping[str, int], total_ms: float
) -> tuple[LayerRow, ...]:
    """The rows with each layer's share of ``total_ms``; None for layers that no timed node is known to compute."""
    spent: dict[tuple[str, str], float] = {}
    for part, all_of in shares.items():
        for one in all_of:
            if one.layer is not None:
                key = (part, one.layer)
                spent[key] = spent.get(key, 0.0) + calls.get(part, 1) * one.time.milliseconds
    return tuple(
        replace(row, latency_share=spent[row.part, row.name] / total_ms)
        if total_ms and (row.part, row.name) in spent
        else row
        for row in rows
    )


def _kind(time: NodeTime, layer: str | None, *, converts: bool) -> Kind:
    if converts:
        return "conversions"
    if layer is None:
        return "other"
    return "int8" if time.precision == "int8" else "floating"


def _owners(original: Model, candidate: Model) -> dict[str, str | None]:
    """The layer of every node of the candidate's graph; a replaced layer's nodes are named after its output."""
    nodes = {str(node.name) for node in candidate.graph}
    before = {str(node.name) for node in original.graph}
    owners: dict[str, str | None] = dict.fromkeys(nodes)
    replaced = {}
    for layer in original.layers():
        if layer.name in nodes:
            owners[layer.name] = layer.name
        else:
            replaced[layer.output] = layer.name
    for name in nodes - before:
        stem = name.rpartition("/")[0].rpartition(".")[0]
        owners[name] = owners[name] or replaced.get(stem)
    return owners


def _plain(name: str, known: Mapping[str, object]) -> str:
    """The name in the graph that a runtime's name grew from; the name itself where none did."""
    stem = name
    while stem:
        for shorter in (stem, _DECORATION.sub("", stem)):
            if shorter in known:
                return shorter
        stem = stem.rpartition("/")[0]
    return name


def _with_fused(
    times: Sequence[NodeTime],
    names: Sequence[str],
    layers: Sequence[str | None],
    candidate: Model,
    owners: Mapping[str, str | None],
) -> list[str | None]:
    """The layers, with those of products that are called after something behind them; nearest first, each once."""
    nodes = {str(node.name): node for node in candidate.graph if node.name}
    producers = {str(value.name): node for node in candidate.graph for value in node.outputs}
    found = list(layers)
    taken = set(layers)
    for steps in range(_FUSED_BEHIND + 1):
        for index, (one, name) in enumerate(zip(times, names, strict=True)):
            if found[index] is not None or not _PRODUCT.search(one.operator):
                continue
            starts = _starts(one, name, nodes, producers)
            free = [owners.get(before) for before in _products_before(starts, steps) if owners.get(before) not in taken]
            if free:
                found[index] = free[0]
                taken.add(free[0])
    return found


def _starts(time: NodeTime, name: str, nodes: Mapping[str, ir.Node], producers: Mapping[str, ir.Node]) -> list[ir.Node]:
    """The nodes of the graph that a timed node is called after, or made of."""
    if time.name.endswith(_BLOCKED):
        found = [producers.get(time.name.removesuffix(_BLOCKED))]
    else:
        found = [nodes.get(one, producers.get(one)) for one in (name, *time.origins)]
    return [node for node in found if node is not None]


def _products_before(starts: Sequence[ir.Node], steps: int) -> list[str]:
    """Names of the products that many steps before the given nodes, with none between."""
    reached = list(starts)
    for _ in range(steps):
        open_ends = [one for one in reached if not _PRODUCT.search(one.op_type)]
        inputs = [value for one in open_ends for value in one.inputs if value is not None]
        reached = [producer for value in inputs if (producer := value.producer()) is not None]
    return [str(one.name) for one in reached if _PRODUCT.search(one.op_type)]
