"""Why the units of a layer stay."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import onnx_ir as ir

from alula.graph.channels import find_couplings
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
    if not layers:
        return "the patterns choose none" if model.layers() else "the graph has no layers"
    chosen = {layer.name for layer in layers}
    reasons = [f"{layer.name!r}: {_why_alone(model, layer, chosen)}" for layer in layers[:shown]]
    return "; ".join(reasons) + (f"; and {len(layers) - shown} more" if len(layers) > shown else "")


def _why_alone(model: Model, layer: Layer, chosen: Collection[str]) -> str:
    """Why the units of a layer do not go by themselves: what they go with is not chosen, or they stay in any case."""
    for coupling in find_couplings(model):
        made = {member.initializer for member in coupling.members if member.produces}
        if layer.weight in made:
            others = [one.name for one in model.layers() if one.weight in made and one.name not in chosen]
            if others:
                more = ", ..." if len(others) > 3 else ""
                return f"they go with those of {', '.join(others[:3])}{more}, which the patterns leave out"
    return why_units_stay(model, layer)


def given_out(model: Model, layer: Layer) -> str | None:
    """The output of the graph that a layer's units reach without another layer between."""
    layers = {other.name for other in model.layers()} - {layer.name}
    start = next((value for node in model.graph for value in node.outputs if value.name == layer.output), None)
    outputs = set(model.graph.outputs)  # those of bodies are told apart by this
    queue, met = [] if start is None else [start], set[ir.Value]()
    while queue:
        value = queue.pop()
        if value in outputs:
            return str(value.name)
        met.add(value)
        for use in value.uses():
            if use.node.name not in layers:
                queue.extend(made for made in use.node.outputs if made not in met)
    return None
