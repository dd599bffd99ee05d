"""All operators that can be trained, by their ONNX names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from alula.graph.ops import (
    attention,
    casting,
    convolutions,
    elementwise,
    gathering,
    logic,
    losses,
    matrices,
    normalisation,
    pooling,
    quantization,
    recurrent,
    reductions,
    regions,
    resizing,
    shaping,
    signals,
)

_FILES = (
    attention, casting, convolutions, elementwise, gathering, logic, losses, matrices, normalisation, pooling,
    quantization, recurrent, reductions, regions, resizing, shaping, signals,
)  # fmt: skip
OPERATORS: Final[dict[str, Callable[..., Any]]] = {name: op for file in _FILES for name, op in file.OPERATORS.items()}
STATISTICS: Final = {  # inputs that are statistics, grids, masks or tables of positions, not weights
    "Attention": (3,),
    "BatchNormalization": (3, 4),
    "OneHot": (2,),
    "RotaryEmbedding": (1, 2),
}
