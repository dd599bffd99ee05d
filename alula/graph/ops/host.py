"""Lengths on the host: what a graph computes of shapes, with Python's whole numbers instead of tensors.

A value here is an int (no axis) or a tuple of ints (one axis). So a Reshape to computed lengths needs no device, no
synchronisation, and no break in a compiled graph: its lengths are those of ``Tensor.shape``, whatever traces them.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeAlias

import torch
from torch import Tensor

Host: TypeAlias = "int | tuple[int, ...]"
Ints: TypeAlias = "Sequence[int] | Tensor"  # an operator's argument that is read on the host
Floats: TypeAlias = "Sequence[float] | Tensor"
Int: TypeAlias = "int | Tensor"
Number: TypeAlias = "float | Tensor"  # an operator's argument that is one number

LIMIT: Final = 64  # elements of a constant that counts as lengths


def ints(value: Ints | Int) -> list[int]:
    """An argument as a list of whole numbers."""
    if isinstance(value, Tensor):
        return [int(number) for number in value.reshape(-1).tolist()]
    return [value] if not isinstance(value, Sequence) else list(value)


def floats(value: Floats) -> list[float]:
    """An argument as a list of numbers."""
    return [float(number) for number in value.reshape(-1).tolist()] if isinstance(value, Tensor) else list(value)


def one_int(value: Ints | Int) -> int:
    """An argument of one element as a whole number."""
    return ints(value)[0]


def number(value: Number) -> float:
    """An argument of one element as a Python number."""
    return value.item() if isinstance(value, Tensor) else value


def to_tensor(value: Any, anchor: Tensor) -> Tensor:
    """Lengths as an int64 tensor on the device of another one."""
    return torch.tensor(value, dtype=torch.int64, device=anchor.device)


def shape(x: Tensor, *, start: int = 0, end: int | None = None) -> Host:
    """Shape."""
    return tuple(x.shape)[start:end]


def size(x: Tensor) -> Host:
    """Size."""
    return x.numel()


def same(x: Host) -> Host:
    """Identity, and Cast between whole numbers."""
    return x


def gather(data: Host, indices: Host, *, axis: int = 0) -> Host:
    """Gather from one axis."""
    values = _as_tuple(data)
    return tuple(values[index] for index in indices) if isinstance(indices, tuple) else values[indices]


def concat(*parts: Host, axis: int = 0) -> Host:
    """Concat along the one axis."""
    return tuple(number for part in parts for number in _as_tuple(part))


def unsqueeze(x: Host, axes: Host = 0) -> Host:
    """Unsqueeze of a number."""
    return (x,) if isinstance(x, int) else x


def squeeze(x: Host, axes: Host = 0) -> Host:
    """Squeeze of one number along an axis."""
    return _as_tuple(x)[0]


def reshape(x: Host, shape: Host, *, allowzero: int = 0) -> Host:
    """Reshape between a number and an axis of any length."""
    return _as_tuple(x) if len(_as_tuple(shape)) else _as_tuple(x)[0]


def cut(x: Host, starts: Host, ends: Host, axes: Host = 0, steps: Host = 1) -> Host:
    """Slice along the one axis."""
    start, end, step = (_as_tuple(bound)[0] for bound in (starts, ends, steps))
    length = len(_as_tuple(x))
    if step < 0 and end < -length:
        return _as_tuple(x)[start::step]
    return _as_tuple(x)[start:end:step]


def product(x: Host, axes: Host | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0) -> Host:
    """ReduceProd of all elements."""
    found = 1
    for length in _as_tuple(x):
        found *= length
    return (found,) if keepdims else found


def _as_tuple(value: Host) -> tuple[int, ...]:
    return value if isinstance(value, tuple) else (value,)


def _broadcast(function: Callable[..., int], *operands: Host) -> Host:
    """A function of numbers, of numbers and axes: one number goes with an axis of any length."""
    if all(not isinstance(operand, tuple) for operand in operands):
        return function(*operands)
    longest = max(len(operand) for operand in operands if isinstance(operand, tuple))
    wide = [_as_tuple(operand) for operand in operands]
    wide = [operand * longest if len(operand) == 1 else operand for operand in wide]
    return tuple(function(*numbers) for numbers in zip(*wide, strict=True))


def add(left: Host, right: Host) -> Host:
    """Add."""
    return _broadcast(operator.add, left, right)


def subtract(left: Host, right: Host) -> Host:
    """Sub."""
    return _broadcast(operator.sub, left, right)


def multiply(left: Host, right: Host) -> Host:
    """Mul."""
    return _broadcast(operator.mul, left, right)


def divide(left: Host, right: Host) -> Host:
    """Div, of whole numbers: towards zero."""
    return _broadcast(_divide, left, right)


def _divide(left: int, right: int) -> int:
    quotient = abs(left) // abs(right)
    return quotient if (left < 0) == (right < 0) else -quotient


def negate(x: Host) -> Host:
    """Neg."""
    return _broadcast(operator.neg, x)


def maximum(*operands: Host) -> Host:
    """Max."""
    return _broadcast(max, *operands) if len(operands) > 1 else operands[0]


def minimum(*operands: Host) -> Host:
    """Min."""
    return _broadcast(min, *operands) if len(operands) > 1 else operands[0]


OPERATORS: Final[dict[str, Callable[..., Host]]] = {
    "Add": add,
    "Cast": same,
    "Concat": concat,
    "Div": divide,
    "Gather": gather,
    "Identity": same,
    "Max": maximum,
    "Min": minimum,
    "Mul": multiply,
    "Neg": negate,
    "ReduceProd": product,
    "Reshape": reshape,
    "Shape": shape,
    "Size": size,
    "Slice": cut,
    "Squeeze": squeeze,
    "Sub": subtract,
    "Unsqueeze": unsqueeze,
}
