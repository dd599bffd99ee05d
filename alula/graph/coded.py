"""A constant that stands in the graph as codes: the DequantizeLinear that reads it, and its arrays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import onnx_ir as ir

from alula.graph.editing import Editor
from alula.numerics.grids import dequantize

_DYNAMIC: Final = "alula.dynamic"  # in a node's metadata, which runtimes pass over


@dataclass(frozen=True, slots=True)
class Coded:
    """Codes, scale and zero point by name of initializer, and the node that makes real numbers of them."""

    node: ir.Node
    codes: str
    scale: str
    zero_point: str | None

    @property
    def axis(self) -> int:
        """The axis that scales belong to, or along which blocks lie."""
        return int(self.node.attributes.get_int("axis", 1))

    @property
    def block(self) -> int:
        """Elements that share a scale along the axis; 0: all of them."""
        return int(self.node.attributes.get_int("block_size", 0))

    def values(self, editor: Editor) -> np.ndarray:
        """The real numbers, float32."""
        codes, scale = editor.array(self.codes), editor.array(self.scale)
        zero_point = np.zeros_like(scale) if self.zero_point is None else editor.array(self.zero_point)
        axis = self.axis if scale.ndim else None
        return dequantize(codes, scale, zero_point, axis=axis, block=self.block or None)


def coded(value: ir.Value | None) -> Coded | None:
    """The codes behind a tensor, where a DequantizeLinear of constants makes it."""
    node = None if value is None else value.producer()
    if node is None or node.op_type != "DequantizeLinear" or node.domain != "":
        return None
    inputs = list(node.inputs)
    if any(one is None or not one.is_initializer() for one in inputs):
        return None
    codes, scale, *rest = (str(one.name) for one in inputs)  # type: ignore[union-attr]
    return Coded(node, codes, scale, rest[0] if rest else None)


def mark_dynamic(node: ir.Node) -> None:
    """Note on a node that its activations may be rounded at run time, which ONNX has no operator to say."""
    node.metadata_props[_DYNAMIC] = "1"


def is_dynamic(node: ir.Node) -> bool:
    """Whether a node's activations may be rounded at run time."""
    return _DYNAMIC in node.metadata_props
