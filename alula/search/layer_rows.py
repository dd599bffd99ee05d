"""What each layer became in a candidate, read off its graph."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from alula.graph.model import Note
from alula.measurement.energy import estimate_energy
from alula.search.result import LayerRow

if TYPE_CHECKING:
    import onnx_ir as ir

    from alula.graph.layers import Layer
    from alula.graph.model import Model
    from alula.measurement.measurement import Measurement


def layer_rows(part: str, original: Model, candidate: Model, macs: Mapping[str, int | None]) -> tuple[LayerRow, ...]:
    """One row for each layer of the original: its bits in the candidate, bytes, multiply-accumulates, and notes on it.

    Args:
        part: name of the graph in its task.
        original: the float graph.
        candidate: the compressed one.
        macs: multiply-accumulates of one run, by layer name, where they are known.
    """
    nodes = {str(node.name): node for node in candidate.graph}
    reasons: dict[str, str] = {note.place: note.text for note in candidate.notes}
    return tuple(
        LayerRow(
            part=part,
            name=layer.name,
            operator=layer.operator,
            bits=_bits(layer, candidate, nodes.get(layer.name)),
            weight_bytes=sum(_stored_bytes(candidate, name) for name in layer.weights),
            macs=macs.get(layer.name),
            harm=None,
            latency_share=None,
            why=reasons.get(layer.name, ""),
        )
        for layer in original.layers()
    )


def where_the_time_goes(part: str, rows: tuple[LayerRow, ...], candidate: Model) -> Note:
    """What a reader needs to see why a candidate is no faster: work left in float, and conversions around the rest."""
    left = [row for row in rows if computes_in_float(row)]
    total, floating = sum(row.macs or 0 for row in rows), sum(row.macs or 0 for row in left)
    known = total and all(row.macs is not None for row in rows)
    share = f", {floating / total:.0%} of the multiply-accumulates" if known else ""
    kinds = Counter(row.operator for row in left).most_common(3)
    words = f" ({', '.join(f'{count} {kind}' for kind, count in kinds)})" if left else ""
    conversions = sum(node.op_type in ("QuantizeLinear", "DynamicQuantizeLinear") for node in candidate.graph)
    converted = "1 activation is" if conversions == 1 else f"{conversions} activations are"
    layers = "layer computes" if len(rows) == 1 else "layers compute"
    text = f"{len(left)} of {len(rows)} {layers} in float{words}{share}; {converted} converted to integers on the way"
    return Note(part, text)


def computes_in_float(row: LayerRow) -> bool:
    """Whether a layer's products are formed in float, whatever its weights are stored in."""
    return " x " not in row.bits


def operand_bits(row: LayerRow) -> int:
    """Width of the operands that a layer multiplies: that of float32 unless both are integers."""
    return 32 if computes_in_float(row) else 8 if "16" not in row.bits else 16


def _bits(layer: Layer, candidate: Model, node: ir.Node | None) -> str:
    """Weight and activation in words: "int8 x uint8", "int4/32" (weights in blocks of 32), "float16", "float32"."""
    codes = candidate.graph.initializers.get(f"{layer.weight}.codes")
    if codes is None:
        half = candidate.graph.initializers.get(f"{layer.weight}.float16")
        held = half if half is not None else candidate.graph.initializers.get(layer.weight)
        return "float32" if held is None or held.dtype is None else _name(held.dtype.numpy())
    weight = "int8" if codes.dtype is None else _name(codes.dtype.numpy())
    readers = [use.node for use in codes.uses()]
    if any(reader.op_type == "MatMulInteger" for reader in readers):
        return f"{weight} x uint8, dynamic"
    block = max((int(reader.attributes.get_int("block_size", 0)) for reader in readers), default=0)
    activation = None if node is None else _activation(layer, node)
    return (f"{weight}/{block}" if block else weight) + (f" x {activation}" if activation else "")


def _activation(layer: Layer, node: ir.Node) -> str | None:
    """Type of the codes that a node's activation is dequantized from, or None."""
    for value in node.inputs:
        producer = None if value is None or value.name == layer.weight else value.producer()
        if producer is None or producer.op_type != "DequantizeLinear" or len(producer.inputs) < 3:
            continue
        source, zero = producer.inputs[0], producer.inputs[2]
        quantizer = None if source is None else source.producer()
        if quantizer is None or quantizer.op_type != "QuantizeLinear" or zero is None or zero.dtype is None:
            continue
        return _name(zero.dtype.numpy())
    return None


def _stored_bytes(candidate: Model, weight: str) -> int:
    names = (weight, f"{weight}.codes", f"{weight}.scale", f"{weight}.zero_point", f"{weight}.float16")
    held = (candidate.graph.initializers.get(name) for name in names)
    return sum(value.const_value.nbytes for value in held if value is not None and value.const_value is not None)


def _name(dtype: np.dtype[np.generic]) -> str:
    return str(dtype)


def energy_of(rows: Iterable[LayerRow], calls: Mapping[str, int]) -> Measurement | None:
    """An estimate of the energy of one example, whose parts run so often; None where the work of a layer is unknown."""
    macs: Counter[int] = Counter()
    moved = 0
    for row in rows:
        if row.macs is None:
            return None
        macs[operand_bits(row)] += row.macs * calls.get(row.part, 0)
        moved += row.weight_bytes * calls.get(row.part, 0)
    return estimate_energy(macs, moved)
