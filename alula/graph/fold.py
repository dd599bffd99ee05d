"""Constant folding: what a graph computes from constants alone is computed once.

Small results (shape arithmetic, scales) are folded always. A weight is folded only through operators that cannot make
it larger, and only where every reader of it can be folded too, so that the file never grows. What is known of a
shape is followed through, its free axes standing as ``UNKNOWN``.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from alula.graph.known import filling_in_zeros

SMALL_BYTES = 64 * 1024  # up to here folding may make a file grow
WEIGHT_BYTES = 1024  # above this a constant counts as a weight, below as an index, an axis, a scale
UNKNOWN = np.iinfo(np.int64).min + 1  # a free axis within a partly known shape

MOVES = frozenset({"Concat", "Flatten", "Gather", "Identity", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze"})
_WHOLE_MOVES = MOVES - {"Gather"}  # cannot give more elements than they are given
_ARITHMETIC = frozenset({"Add", "Sub", "Mul", "Div"})
_ELEMENTWISE = _ARITHMETIC | frozenset(
    [
        "Abs",
        "And",
        "Cast",
        "CastLike",
        "Ceil",
        "Equal",
        "Exp",
        "Floor",
        "Greater",
        "GreaterOrEqual",
        "Less",
        "LessOrEqual",
        "Log",
        "Max",
        "Min",
        "Mod",
        "Neg",
        "Not",
        "Or",
        "Pow",
        "Reciprocal",
        "Sign",
        "Sqrt",
        "Where",
    ]
)
_REDUCTIONS = frozenset({"ReduceL2", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum"})
_FILLS = frozenset({"ConstantOfShape", "Expand", "Range"})
FOLDABLE = MOVES | _ELEMENTWISE | _REDUCTIONS | _FILLS
_RESHAPES = frozenset({"Flatten", "Reshape", "Squeeze", "Unsqueeze"})
_KEEPS_ORDER = _RESHAPES | {"Cast", "Identity", "Transpose"}
_CODES = frozenset({ir.DataType.UINT4, ir.DataType.UINT8, ir.DataType.UINT16})
_SMALL_FLOATS = frozenset({ir.DataType.FLOAT8E4M3FN, ir.DataType.FLOAT8E5M2})
TRANSPOSED = "alula.transposed"  # metadata of a folded weight: the axes of the original, in the order they lie now

_log = logging.getLogger(__name__)


class Folder:
    """One pass of folding over the main graph of ``model``, in place.

    ``sources`` tells for each folded value the weights it was made of, by name; ``changed`` holds those that are more
    than one weight reshaped or transposed; ``replaced`` tells by the name of each folded tensor what stands for it.
    """

    def __init__(self, model: ir.Model) -> None:
        self.graph = model.graph
        self.opset = model.opset_imports
        self.sources: dict[ir.Value, tuple[str, ...]] = {}
        self.changed: set[ir.Value] = set()
        self.replaced: dict[str, ir.Value] = {}
        self.partial: dict[ir.Value, np.ndarray] = {}
        self._made: dict[tuple[object, ...], ir.Value] = {}

    def fold_small(self) -> int:
        """Fold everything whose inputs and result are small; give how many nodes were folded."""
        self.partial.clear()
        kept = filling_in_zeros(self.graph)
        return sum(self._fold_shape(node) or self._fold_small(node) for node in list(self.graph) if node not in kept)

    def fold_weights(self) -> int:
        """Fold weights through moves and arithmetic that do not make them larger; give how many nodes were folded."""
        kept = filling_in_zeros(self.graph)
        return sum(self._fold_weight(node) for node in list(self.graph) if node not in kept)

    def _fold_shape(self, node: ir.Node) -> bool:
        """Shape and Size of a value whose shape is known, wholly or in part."""
        if node.op_type not in {"Shape", "Size"} or node.domain != "" or node.inputs[0] is None:
            return False
        shape = node.inputs[0].shape
        if shape is None:
            return False
        axes = known_axes(shape)
        if node.op_type == "Shape":
            result = axes[node.attributes.get_int("start", 0) : node.attributes.get_int("end", None)]
        else:
            result = np.array(UNKNOWN if UNKNOWN in axes else math.prod(map(int, axes)), np.int64)
        return self._know(node, result)

    def _fold_small(self, node: ir.Node) -> bool:
        if not _is_foldable(node) or any(value is not None and _is_tied(value) for value in node.inputs):
            return False
        arrays = [self._array(value) for value in node.inputs]
        if any(value is not None and array is None for value, array in zip(node.inputs, arrays, strict=True)):
            return False
        if any(array is not None and array.nbytes > SMALL_BYTES for array in arrays):
            return False
        if _result_bytes(node, arrays) > SMALL_BYTES:
            return False
        if any(array is not None and _has_unknown(array) for array in arrays):
            return self._fold_partial(node, arrays)
        return self._replace(node, self._evaluate(node, arrays))

    def _fold_partial(self, node: ir.Node, arrays: Sequence[np.ndarray | None]) -> bool:
        """Follow a partly known shape through a node; fold it if what it picks is known."""
        movable = arrays if node.op_type == "Concat" else arrays[:1]
        fixed = arrays[len(movable) :]
        if node.op_type in MOVES and not any(array is not None and _has_unknown(array) for array in fixed):
            result = self._evaluate(node, arrays)
        elif node.op_type in _ARITHMETIC:
            left, right = (np.asarray(array) for array in arrays)
            unknown = (left == UNKNOWN) | (right == UNKNOWN)
            safe = [np.where(array == UNKNOWN, 1, array) for array in (left, right)]
            result = self._evaluate(node, safe)
            result = None if result is None else np.where(unknown, UNKNOWN, result)
        else:
            return False
        return result is not None and self._know(node, result)

    def _know(self, node: ir.Node, result: np.ndarray) -> bool:
        if _has_unknown(result):
            self.partial[node.outputs[0]] = result
            return False
        return self._replace(node, result)

    def _fold_weight(self, node: ir.Node) -> bool:
        if not _is_foldable(node) or node.op_type in _FILLS or node.op_type == "Gather":
            return False
        if _key(node) in self._made:
            return self._replace(node, None)
        arrays = [_constant(value) for value in node.inputs]
        if any(value is not None and array is None for value, array in zip(node.inputs, arrays, strict=True)):
            return False
        weights = [value for value in node.inputs if value is not None and _bytes(value) > WEIGHT_BYTES]
        if not weights or not all(_dies(value) and _made_of(value) <= _bytes(value) + SMALL_BYTES for value in weights):
            return False
        return self._replace(node, self._evaluate(node, arrays))

    def _array(self, value: ir.Value | None) -> np.ndarray | None:
        if value is None or _bytes(value) > SMALL_BYTES:
            return None
        return self.partial.get(value, _constant(value))

    def _evaluate(self, node: ir.Node, arrays: Sequence[np.ndarray | None]) -> np.ndarray | None:
        """What onnx's own reference implementation computes; None if it refuses."""
        from onnx.reference import ReferenceEvaluator

        names = ["" if array is None else f"x{index}" for index, array in enumerate(arrays)]
        proto = ir.to_proto(node)
        del proto.input[:], proto.output[:]
        proto.input.extend(names)
        proto.output.append("y")
        feeds = {name: array for name, array in zip(names, arrays, strict=True) if name}
        try:
            with np.errstate(all="ignore"):
                (result,) = ReferenceEvaluator(proto, opsets=dict(self.opset)).run(None, feeds)
        except Exception as error:  # noqa: BLE001  (whatever it is, the node is left for the runtime to judge)
            _log.debug("not folded: %s %s: %s", node.op_type, node.name, error)
            return None
        return np.asarray(result)

    def _replace(self, node: ir.Node, result: np.ndarray | None) -> bool:
        """Put a constant in the place of the node's output; equal computations share one."""
        output, key = node.outputs[0], _key(node)
        if output.is_graph_output():
            return False
        made = self._made.get(key)
        if made is None and result is None:
            return False
        self.graph.remove(node)  # its output's name is free now
        if made is None:
            assert result is not None
            made = self._made[key] = constant_value(str(output.name), result)
            self._follow(node, made)
        if made.name not in self.graph.initializers:
            self.graph.register_initializer(made)
        output.replace_all_uses_with(made)
        self.replaced[str(output.name)] = made
        for index in range(len(node.inputs)):
            node.replace_input_with(index, None)
        return True

    def _follow(self, node: ir.Node, made: ir.Value) -> None:
        """Remember which weights a folded value was made of, and how it lies compared with them."""
        inputs = [value for value in node.inputs if value is not None and is_weight(value)]
        names = [name for value in inputs for name in self.sources.get(value, (str(value.name),))]
        self.sources[made] = tuple(dict.fromkeys(names))
        data = node.inputs[0]
        assert data is not None
        before = data.metadata_props.get(TRANSPOSED)
        if data in self.changed or node.op_type not in _KEEPS_ORDER or (before and node.op_type in _RESHAPES):
            self.changed.add(made)
        elif node.op_type == "Transpose":
            axes = range(data.const_value.numpy().ndim)  # type: ignore[union-attr]
            old = [int(axis) for axis in before.split(",")] if before else axes
            perm = node.attributes.get_ints("perm", axes[::-1])
            made.metadata_props[TRANSPOSED] = ",".join(str(old[axis]) for axis in perm)
        elif before:
            made.metadata_props[TRANSPOSED] = before


def known_axes(shape: ir.Shape) -> np.ndarray:
    """The lengths of the axes, ``UNKNOWN`` where they are free."""
    return np.array([axis if isinstance(axis, int) else UNKNOWN for axis in shape], np.int64)


def constant_value(name: str, array: np.ndarray) -> ir.Value:
    """An initializer, not yet part of a graph."""
    tensor = ir.tensor(np.ascontiguousarray(array).reshape(array.shape), name=name)
    return ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape), const_value=tensor)


def is_weight(value: ir.Value) -> bool:
    """Whether the value is a floating-point initializer of at least one axis."""
    tensor = value.const_value
    return (
        tensor is not None
        and value.is_initializer()
        and tensor.dtype.is_floating_point()
        and len(tensor.shape) >= 1
        and tensor.size > 1
    )


def _is_foldable(node: ir.Node) -> bool:
    known = node.op_type in FOLDABLE and node.domain == "" and len(node.outputs) == 1 and bool(node.inputs)
    return known and not _decodes(node)


def _decodes(node: ir.Node) -> bool:
    """Whether codes of a weight become indices of its codebook (``Cluster``), or floats of 8 bits become float32.

    Folding that would undo it.
    """
    source = node.inputs[0]
    if node.op_type != "Cast" or source is None:
        return False
    indexes = any(use.node.op_type == "Gather" and use.idx == 1 for use in node.outputs[0].uses())
    return source.dtype in _SMALL_FLOATS or (source.dtype in _CODES and indexes)


def _is_constant(value: ir.Value) -> bool:
    return (
        value.is_initializer()
        and not value.is_graph_input()
        and value.const_value is not None
        and value.dtype != ir.DataType.STRING
        and value.graph is not None
    )


def _constant(value: ir.Value | None) -> np.ndarray | None:
    if value is None or not _is_constant(value):
        return None
    assert value.const_value is not None
    return value.const_value.numpy()


def _bytes(value: ir.Value) -> int:
    return 0 if value.const_value is None else value.const_value.nbytes


def _dies(value: ir.Value) -> bool:
    """Whether nothing will read the value once its readers are folded."""
    return not value.is_graph_output() and all(
        _is_foldable(use.node)
        and use.node.graph is value.graph
        and not use.node.outputs[0].is_graph_output()
        and all(_is_constant(other) for other in use.node.inputs if other is not None)
        for use in value.uses()
    )


def _is_tied(value: ir.Value) -> bool:
    """Whether a weight is read by more than what is folded, such as a table that is also an output's matrix.

    A second copy of it would be trained and changed by itself.
    """
    tensor = value.const_value
    return tensor is not None and len(tensor.shape) > 1 and is_weight(value) and not _dies(value)


def _made_of(value: ir.Value) -> float:
    """Bytes of all that its readers make of a value, were they folded; where several go into one, its share."""
    shares: dict[tuple[object, ...], float] = {}
    for use in value.uses():
        output = use.node.outputs[0]
        if output.shape is None or output.dtype is None or not output.shape.is_static():
            return math.inf
        result_bytes = math.prod(map(int, output.shape.numpy())) * output.dtype.bitwidth / 8
        inputs = [other for other in use.node.inputs if other is not None]
        share = inputs.count(value) * _bytes(value) / sum(map(_bytes, inputs))
        shares[_key(use.node)] = result_bytes * share
    return sum(shares.values())


def _has_unknown(array: np.ndarray) -> bool:
    return array.dtype == np.int64 and bool((array == UNKNOWN).any())


def _result_bytes(node: ir.Node, arrays: Sequence[np.ndarray | None]) -> float:
    """An upper bound of what the node gives, found without running it."""
    given = [array for array in arrays if array is not None]
    if not given:
        return math.inf
    moved = given if node.op_type == "Concat" else given[:1]
    try:
        elements = _result_elements(node, given)
        itemsize = max(array.itemsize for array in (moved if node.op_type in MOVES else given))
    except (ValueError, TypeError, IndexError, OverflowError):
        return math.inf
    if node.op_type == "Cast":
        itemsize = max(1, ir.DataType(node.attributes.get_int("to", 1)).bitwidth // 8)
    return elements * itemsize


def _result_elements(node: ir.Node, given: Sequence[np.ndarray]) -> float:
    if node.op_type in _WHOLE_MOVES or node.op_type in _REDUCTIONS:
        return sum(array.size for array in (given if node.op_type == "Concat" else given[:1]))
    if node.op_type == "Gather":
        axis = node.attributes.get_int("axis", 0)
        return float(given[1].size * given[0].size / max(1, given[0].shape[axis]))
    if node.op_type == "ConstantOfShape":
        return _product(given[0])
    if node.op_type == "Expand":
        return _product(np.broadcast_shapes(given[0].shape, tuple(int(axis) for axis in given[1])))
    if node.op_type == "Range":
        start, limit, step = (float(array) for array in given)
        return abs((limit - start) / step) + 1 if step else math.inf
    return _product(np.broadcast_shapes(*(array.shape for array in given)))


def _product(axes: Iterable[Any]) -> int:
    return math.prod(abs(int(axis)) for axis in axes)


def _key(node: ir.Node) -> tuple[object, ...]:
    attributes = sorted((name, repr(attribute.value)) for name, attribute in node.attributes.items())
    return (node.op_type, *node.inputs, *attributes)
