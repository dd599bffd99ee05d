"""Which part of a quantized graph computes which layer of the float one.

Graphs are matched by the names of tensors, which tools of quantization keep for what stays in float. A layer's part
begins at tensors that both graphs have, ends at the layer's output, and holds one node that multiplies by constants.
Where a tool took out the activation behind a layer, since saturation does its work, the output bears its name.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, TypeAlias

import onnx_ir as ir

from alula.diagnosing.operands import CODED, INTEGER, Operands, is_anchor, operands_of, output_codes
from alula.errors import ModelError
from alula.graph.known import computed_from_constants
from alula.graph.layers import Layer
from alula.graph.model import Model, Note
from alula.graph.quantized import quantized_operators
from alula.graph.slices import Slice, slice_back

Codes: TypeAlias = tuple[ir.Value, ir.Value | None]  # scale and zero point
Stops: TypeAlias = dict[str, tuple[str, Codes | None]]

_ABSORBED: Final = frozenset({"Clip", "Relu"})
_CODES: Final = "_quantized"  # what ONNX Runtime's quantizer adds to the name of a tensor that became codes
_INTEGERS: Final = frozenset({"DynamicQuantizeLinear", "QuantizeLinear"}) | CODED | INTEGER


@dataclass(frozen=True, slots=True)
class Match:
    """A float layer and the part of the quantized graph that computes it.

    ``output`` is the float tensor that the part's end stands for: the layer's own, or what the activation behind it
    gives. The end holds codes where ``codes`` has their scale and zero point.
    """

    layer: Layer
    output: str
    part: Slice
    operands: Operands
    codes: Codes | None = None

    @property
    def quantized(self) -> bool:
        """Whether any of the part computes with codes, or has its weights as codes."""
        return bool(quantized_operators(self.part.nodes))

    @property
    def quantizes_activations(self) -> bool:
        """Whether what the layer reads becomes codes."""
        return any(node.op_type in _INTEGERS or node.op_type.startswith("DynamicQuantize") for node in self.part.moving)


@dataclass(frozen=True, slots=True)
class Matching:
    """The layers that were found, the tensors where parts may begin and what they stand for, and what was not found.

    ``stops`` names, for a tensor of the quantized graph, the float tensor, and scale and zero point where it is codes.
    """

    matches: tuple[Match, ...]
    stops: Stops
    notes: tuple[Note, ...]


def match(original: Model, quantized: Model) -> Matching:
    """Find the layers of a float graph in a quantized one.

    Raises:
        ModelError: inputs or outputs differ, nothing is quantized, or no layer is found.
    """
    _check_pair(original, quantized)
    nodes = {str(node.name): node for node in original.graph}
    values = {str(value.name): value for node in quantized.graph for value in node.outputs}
    moving = _tensors(quantized)
    stops: Stops = {name: (name, None) for name in _tensors(original) & moving}
    found, notes = [], []
    for layer in original.layers():
        result = _match_layer(layer, nodes[layer.name], quantized, values, (stops, moving))
        if isinstance(result, str):
            notes.append(Note(layer.name, f"not matched: {result}"))
            continue
        found.append(result)
        stops |= _ends(result)
    if not found:
        reason = f" ({notes[0]})" if notes else ""
        raise ModelError(
            f"none of the {len(original.layers())} layers of the original is found in the quantized model{reason}; "
            "give the float model that it was made from"
        )
    return Matching(tuple(found), stops, tuple(notes))


def _check_pair(original: Model, quantized: Model) -> None:
    if counts := quantized_operators(original.graph.all_nodes()):
        raise ModelError(f"the original must be a float model, it is quantized ({', '.join(counts)})")
    if not quantized_operators(quantized.graph.all_nodes()) and not _narrow(quantized):
        raise ModelError("there is nothing to diagnose: the quantized model has no quantized operator; swap the two?")
    for side in ("inputs", "outputs"):
        wanted, given = (sorted(str(spec.name) for spec in getattr(model, side)) for model in (original, quantized))
        if wanted != given:
            raise ModelError(
                f"the quantized model must have the original's {side} {wanted}, got {given}; "
                "give the float model that it was made from"
            )


def _narrow(model: Model) -> bool:
    """Whether weights are codes without an operator that says so: tables of int8."""
    kinds = Counter(value.dtype for value in model.graph.initializers.values())
    return any(kinds[kind] for kind in (ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.INT4, ir.DataType.UINT4))


def _tensors(model: Model) -> set[str]:
    """Names of the inputs, and of everything that is computed from them."""
    constant = computed_from_constants(model.graph)
    moving = {str(value.name) for node in model.graph if node not in constant for value in node.outputs if value.name}
    return moving | {str(value.name) for value in model.graph.inputs}


def _match_layer(
    layer: Layer, node: ir.Node, quantized: Model, values: dict[str, ir.Value], known: tuple[Stops, set[str]]
) -> Match | str:
    """The match of a layer, or why there is none; ``known`` are stops, and the tensors that are no constants."""
    stops, moving = known
    for tensor in _outputs(node, layer):
        for name in (tensor, f"{tensor}{_CODES}"):
            if name in values:
                part = slice_back(quantized.graph, values[name], set(stops) - {name})
                return _match_end(layer, node, part, tensor, moving)
    return f"the quantized model has no tensor {layer.output!r}, and none of an activation behind it"


def _ends(found: Match) -> Stops:
    """The end of a layer's part, and the codes that it was made of, as beginnings of others."""
    end, producer = found.part.end, found.part.end.producer()
    ends: Stops = {str(end.name): (found.output, found.codes)}
    if producer is not None and producer.op_type == "DequantizeLinear" and producer.inputs[0] is not None:
        held = producer.inputs[0]
        maker = held.producer()
        codes = None if maker is None else output_codes(maker)
        if codes is not None:
            ends[str(held.name)] = (found.output, codes)
    return ends


def _match_end(layer: Layer, node: ir.Node, part: Slice, tensor: str, moving: set[str]) -> Match | str:
    if not part.closed:
        return "an If, Loop or Scan stands in its way"
    wanted = layer.operator == "Gather"
    anchors = [one for one in part.moving if is_anchor(one, moving) and one.op_type.startswith("Gather") == wanted]
    if not anchors or (len(anchors) > 1 and not wanted):
        what = "no layer" if not anchors else f"{len(anchors)} layers"
        return f"{what} of the quantized model stands between the tensors around it that both have"
    producer = part.end.producer()
    codes = None if producer is None else output_codes(producer)
    before = tensor != layer.output and part.end is anchors[-1].outputs[0] and codes is None
    output = layer.output if before and anchors[-1].domain == "" else tensor
    if codes is not None and tensor == layer.output:
        output = _activated(node, layer)
    operands = operands_of(anchors[-1], layer, node, moving) if not wanted else Operands(None)
    return Match(layer, output, part, operands, codes)


def _outputs(node: ir.Node, layer: Layer) -> Iterator[str]:
    """The output of a layer, and of the activation that alone reads it."""
    yield layer.output
    if (activated := _activated(node, layer)) != layer.output:
        yield activated


def _activated(node: ir.Node, layer: Layer) -> str:
    output = next(value for value in node.outputs if value.name == layer.output)
    uses = list(output.uses())
    if len(uses) == 1 and not output.is_graph_output() and uses[0].node.op_type in _ABSORBED:
        return str(uses[0].node.outputs[0].name)
    return layer.output
