"""What every technique is: a frozen dataclass with two methods."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import onnx_ir as ir

from alula.errors import ModelError
from alula.graph.layers import Layer
from alula.graph.model import Model
from alula.graph.statistics import AnyRequest, Statistics


@dataclass(frozen=True, slots=True)
class Context:
    """What a technique is given beside the model: the layers it is to treat, and what calibration saw."""

    layers: tuple[Layer, ...]
    statistics: Statistics = field(default_factory=Statistics)


def other_type(graph: ir.Graph, layer: Layer) -> str | None:
    """Why a layer cannot be treated that does not compute in float32, or None."""
    dtype = graph.initializers[layer.weight].dtype
    if dtype in {None, ir.DataType.FLOAT}:
        return None
    return f"its weights are {dtype.name.lower()}, only float32 is taken; apply Float32 before"


def other_readers(graph: ir.Graph, layers: Iterable[Layer], name: str) -> str | None:
    """Who else needs a weight in float, so that it would be in the file twice, or None.

    Args:
        graph: the graph.
        layers: those to be treated.
        name: the weight, an initializer.
    """
    value, treated = graph.initializers[name], {layer.name for layer in layers}
    if value.is_graph_output():
        return "it is an output of the graph too"
    others = {use.node for use in value.uses() if use.node.graph is not graph or use.node.name not in treated}
    names = sorted(str(node.name or node.op_type) for node in others)
    return f"it is shared with {', '.join(names[:3])}, which is not to be treated" if names else None


def check_weights(model: Model, layers: Iterable[Layer]) -> None:
    """Raise ModelError (the layer is named) where a weight holds NaN or infinity: what matters cannot be told then."""
    for layer in layers:
        for name in layer.weights:
            weight = model.weight(name)
            if weight.dtype.kind == "f" and not np.isfinite(weight).all():
                raise ModelError(f"layer {layer.name!r}: its weights hold NaN or infinity; what matters cannot be told")


class Technique(Protocol):
    """Model in, new model out; the input is never changed."""

    def requests(self, model: Model, layers: Sequence[Layer]) -> frozenset[AnyRequest]:
        """The statistics that :meth:`apply` will read."""
        ...

    def apply(self, model: Model, context: Context) -> Model:
        """A new model. What was skipped, and why, is added to its notes."""
        ...
