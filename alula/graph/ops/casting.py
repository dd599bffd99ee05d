"""Types of tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import onnx_ir as ir
import torch
from torch import Tensor

from alula.errors import ModelError

TYPES: Final = {
    "FLOAT": torch.float32,
    "FLOAT16": torch.float16,
    "BFLOAT16": torch.bfloat16,
    "DOUBLE": torch.float64,
    "INT8": torch.int8,
    "INT16": torch.int16,
    "INT32": torch.int32,
    "INT64": torch.int64,
    "UINT8": torch.uint8,
    "BOOL": torch.bool,
}  # fmt: skip  (torch's types by ONNX's names)


def type_of(number: int) -> torch.dtype:
    """Torch's type for the number that ONNX gives a type.

    Raises:
        ModelError: torch does not compute with it.
    """
    name = ir.DataType(number).name
    if name not in TYPES:
        raise ModelError(f"PyTorch does not compute with values of type {name}")
    return TYPES[name]


def cast(x: Tensor, *, to: int, saturate: int = 1, round_mode: str = "up") -> Tensor:
    """Cast."""
    return x.to(type_of(to))


def cast_like(x: Tensor, other: Tensor, *, saturate: int = 1, round_mode: str = "up") -> Tensor:
    """CastLike."""
    return x.to(other.dtype)


def cast_bits(x: Tensor, *, to: int) -> Tensor:
    """BitCast: the same bits read as another type of the same width.

    Raises:
        ModelError: the other type has another width.
    """
    dtype = type_of(to)
    if dtype.itemsize != x.element_size():
        raise ModelError(f"{x.dtype} and {dtype} differ in width")
    return x.view(dtype)


OPERATORS: Final[dict[str, Callable[..., Any]]] = {"BitCast": cast_bits, "Cast": cast, "CastLike": cast_like}
