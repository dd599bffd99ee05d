"""Why the units of a layer stay."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from alula.graph.layers import Layer
from alula.graph.model import Model


def why_units_stay(model: Model, layer: Layer) -> str:
    """In words, of a layer whose units are no coupling."""
    given = given_out(model, layer)
    if given is not None:
        return f"they reach the graph's output {given!r}, whose shape must stay"
    return "what comes behind reads them as a whole (a softmax, a layer normalisation, an operator without a rule)"


def why_none_goes(model: Model, layers: Sequence[Layer], shown: int = 3) -> str:
    """In words, of layers none of whose units can go: the reason for each of the first."""
    reasons = [f"{layer.name!r}: {why_units_stay(model, layer)}" for layer in layers[:shown]]
    return "; ".join(reasons) + (f"; and {len(layers) - shown} more" if len(layers) > shown else "")


def given_out(model: Model, layer: Layer) -> str | None:
    """The output of the graph that a layer's units reach without another layer between."""
    layers = {other.name for other in model.layers()} - {layer.name}
    start = next((value for node in model.graph for value in node.outputs if value.name == layer.output), None)
    queue, met = [] if start is None else [start], set[ir.Value]()
    while queue:
        value = queue.pop()
        if value.is_graph_output():
            return str(value.name)
        met.add(value)
        for use in value.uses():
            if use.node.name not in layers:
                queue.extend(made for made in use.node.outputs if made not in met)
    return None
