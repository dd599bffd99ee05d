"""What every technique is: a frozen dataclass with two methods."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from alula.graph.layers import Layer
from alula.graph.model import Model
from alula.graph.statistics import Request, Statistics


@dataclass(frozen=True, slots=True)
class Context:
    """What a technique is given beside the model: the layers it is to treat, and what calibration saw."""

    layers: tuple[Layer, ...]
    statistics: Statistics = field(default_factory=Statistics)


class Technique(Protocol):
    """Model in, new model out; the input is never changed."""

    def requests(self, model: Model, layers: Sequence[Layer]) -> frozenset[Request]:
        """The statistics that :meth:`apply` will read."""
        ...

    def apply(self, model: Model, context: Context) -> Model:
        """A new model. What was skipped, and why, is added to its notes."""
        ...
