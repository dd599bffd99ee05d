"""What every technique is: a frozen dataclass with two methods."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

import numpy as np
import onnx_ir as ir

from alula.errors import ModelError
from alula.graph.layers import Layer
from alula.graph.model import Model
from alula.graph.statistics import AnyRequest, Statistics

_LEAST: Final = 256 * float(np.finfo(np.float32).tiny)
_MOST: Final = 1e36


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
    fix = "apply Float32 before" if dtype == ir.DataType.FLOAT16 else "export the network in float32"
    return f"its weights are {dtype.name.lower()}, only float32 is taken; {fix}"


def out_of_range(weight: np.ndarray) -> str | None:
    """Why scales of a weight would be no ordinary float32 numbers, which runtimes flush to 0 or overflow; or None."""
    largest = float(np.abs(weight).max(initial=0.0))
    if 0 < largest < _LEAST:
        return f"its weights are {largest:.3g} at most, and runtimes take scales as small as theirs for 0"
    if np.isfinite(largest) and largest > _MOST:
        return f"its weights reach {largest:.3g}, and codes times their scales would overflow"
    return None


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
