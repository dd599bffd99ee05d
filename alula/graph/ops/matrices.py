"""Products of matrices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor


def general_product(
    a: Tensor, b: Tensor, c: Tensor | None = None, *,
    alpha: float = 1.0, beta: float = 1.0, transA: int = 0, transB: int = 0, broadcast: int = 1,
) -> Tensor:  # fmt: skip
    """Gemm: alpha * a b + beta * c, either matrix transposed first."""
    left, right = a.t() if transA else a, b.t() if transB else b
    if c is None:
        product = left @ right
        return product if alpha == 1 else alpha * product
    if alpha == beta == 1 and c.ndim == 1:
        return torch.nn.functional.linear(left, right.t(), c)
    return torch.addmm(c.expand(left.shape[0], right.shape[1]), left, right, beta=beta, alpha=alpha)


def einsum(*operands: Tensor, equation: str) -> Tensor:
    """Einsum."""
    return torch.einsum(equation.replace(" ", ""), *operands)


OPERATORS: Final[dict[str, Callable[..., Any]]] = {
    "Det": torch.linalg.det,
    "Einsum": einsum,
    "Gemm": general_product,
    "MatMul": torch.matmul,
}
