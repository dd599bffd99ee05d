"""Read-only views of the weight-bearing nodes of a graph."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

import onnx_ir as ir

from alula.errors import RecipeError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

RECURRENT = frozenset({"LSTM", "GRU", "RNN"})


@dataclass(frozen=True, slots=True)
class Layer:
    """One weight-bearing node.

    ``weights`` names its initializers, the main one first (recurrent layers have two: W and R).
    ``output_axis`` is the axis of the main weight that runs over output channels, features or gates;
    ``input_axes`` are the axes that are summed over.
    """

    name: str
    operator: str
    weights: tuple[str, ...]
    bias: str | None
    input: str
    output: str
    shape: tuple[int, ...]
    output_axis: int
    input_axes: tuple[int, ...]
    groups: int = 1

    @property
    def weight(self) -> str:
        """Name of the main weight."""
        return self.weights[0]

    @property
    def depthwise(self) -> bool:
        """Whether each group is a single channel."""
        return self.groups > 1 and self.shape[1] == 1 and self.operator == "Conv"


def find_layers(graph: ir.Graph) -> tuple[Layer, ...]:
    """The layers of the main graph; the bodies of If and Loop are not looked into."""
    return tuple(layer for node in graph if (layer := _layer(node)) is not None)


def select(layers: Sequence[Layer], include: Iterable[str] = ("*",), exclude: Iterable[str] = ()) -> tuple[Layer, ...]:
    """The layers whose name matches a pattern of ``include`` and none of ``exclude``.

    Patterns are shell wildcards over names; one that is the whole name of a layer means that layer; ``Op:Conv`` selects
    by operator.

    Raises:
        RecipeError: a pattern matches nothing; the message lists near names.
    """
    chosen = {layer.name for pattern in include for layer in _matching(layers, pattern)}
    dropped = {layer.name for pattern in exclude for layer in _matching(layers, pattern)}
    return tuple(layer for layer in layers if layer.name in chosen - dropped)


def _matching(layers: Sequence[Layer], pattern: str) -> list[Layer]:
    if pattern.startswith("Op:"):
        found = [layer for layer in layers if layer.operator == pattern[3:]]
    else:
        found = [layer for layer in layers if layer.name == pattern]
        found = found or [layer for layer in layers if fnmatchcase(layer.name, pattern)]
    if not found and not (pattern == "*" and not layers):
        names = ", ".join(layer.name for layer in layers[:6])
        raise RecipeError(
            f"layer pattern {pattern!r} matches none of {len(layers)} layers; they are called {names}, ..."
        )
    return found


def _layer(node: ir.Node) -> Layer | None:
    if node.domain not in ("", "ai.onnx"):
        return None
    view = _VIEWS.get(node.op_type)
    return None if view is None else view(node)


def _weight_of(node: ir.Node, index: int) -> ir.Value | None:
    value = node.inputs[index] if index < len(node.inputs) else None
    return value if value is not None and value.is_initializer() and value.const_value is not None else None


def _name_of(value: ir.Value | None) -> str | None:
    return None if value is None else value.name


def _convolution(node: ir.Node) -> Layer | None:
    weight = _weight_of(node, 1)
    if weight is None:
        return None
    shape = _shape(weight)
    if len(shape) < 3:
        return None
    transposed = node.op_type == "ConvTranspose"
    axes = (0 if transposed else 1, *range(2, len(shape)))
    groups = int(node.attributes.get_int("group", 1))
    return _make(node, weight, data=0, bias=2, output_axis=1 if transposed else 0, input_axes=axes, groups=groups)


def _gemm(node: ir.Node) -> Layer | None:
    weight = _weight_of(node, 1)
    if weight is None or len(_shape(weight)) != 2 or int(node.attributes.get_int("transA", 0)):
        return None
    output_axis = 0 if int(node.attributes.get_int("transB", 0)) else 1
    return _make(node, weight, data=0, bias=2, output_axis=output_axis, input_axes=(1 - output_axis,))


def _matmul(node: ir.Node) -> Layer | None:
    right, left = _weight_of(node, 1), _weight_of(node, 0)
    if right is not None and left is None and len(_shape(right)) >= 2:
        rank = len(_shape(right))
        return _make(node, right, data=0, bias=None, output_axis=rank - 1, input_axes=(rank - 2,))
    if left is not None and right is None and len(_shape(left)) >= 2:
        rank = len(_shape(left))
        return _make(node, left, data=1, bias=None, output_axis=rank - 2, input_axes=(rank - 1,))
    return None


def _gather(node: ir.Node) -> Layer | None:
    table = _weight_of(node, 0)
    if table is None or len(_shape(table)) < 2 or table.dtype not in _FLOATS or _picked_by_codes(node):
        return None
    axis = int(node.attributes.get_int("axis", 0)) % len(_shape(table))
    return _make(node, table, data=1, bias=None, output_axis=axis, input_axes=())


def _picked_by_codes(node: ir.Node) -> bool:
    """Whether constant codes tell what a Gather takes: part of decoding a weight (``Recode``), not a look-up."""
    cast = node.inputs[1].producer() if node.inputs[1] is not None else None
    source = cast.inputs[0] if cast is not None and cast.op_type == "Cast" else None
    return source is not None and source.is_initializer()


def _recurrent(node: ir.Node) -> Layer | None:
    weight, recurrence = _weight_of(node, 1), _weight_of(node, 2)
    if weight is None or recurrence is None or len(_shape(weight)) != 3 or len(_shape(recurrence)) != 3:
        return None
    return _make(node, weight, data=0, bias=3, output_axis=1, input_axes=(2,), others=(str(recurrence.name),))


def _make(
    node: ir.Node,
    weight: ir.Value,
    *,
    data: int,
    bias: int | None,
    output_axis: int,
    input_axes: tuple[int, ...],
    groups: int = 1,
    others: tuple[str, ...] = (),
) -> Layer | None:
    source = node.inputs[data]
    if source is None or weight.dtype not in _FLOATS:
        return None
    return Layer(
        name=str(node.name),
        operator=node.op_type,
        weights=(str(weight.name), *others),
        bias=None if bias is None else _name_of(_weight_of(node, bias)),
        input=str(source.name),
        output=next((value.name for value in node.outputs if value.name), ""),  # an LSTM may give its state only
        shape=_shape(weight),
        output_axis=output_axis,
        input_axes=input_axes,
        groups=groups,
    )


def _shape(weight: ir.Value) -> tuple[int, ...]:
    assert weight.const_value is not None
    return tuple(int(axis) for axis in weight.const_value.shape)  # type: ignore[arg-type]


_FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE})
_VIEWS = {
    "Conv": _convolution,
    "ConvTranspose": _convolution,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "Gather": _gather,
    **dict.fromkeys(RECURRENT, _recurrent),
}
