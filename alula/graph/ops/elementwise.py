"""Operators that treat every element alike: arithmetic, mathematical functions, activations."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import functional as F

from alula.errors import ModelError
from alula.graph.ops.host import Number, number

_SELU_ALPHA: Final = 1.67326319217681884765625  # the constants of SELU in float32
_SELU_GAMMA: Final = 1.05070102214813232421875


def clip(x: Tensor, min: Number | None = None, max: Number | None = None) -> Tensor:
    """Clip."""
    if min is None and max is None:
        return x
    if isinstance(min, Tensor) or isinstance(max, Tensor):
        least, greatest = (
            None if bound is None else torch.as_tensor(bound, dtype=x.dtype, device=x.device) for bound in (min, max)
        )
        return torch.clamp(x, least, greatest)
    return torch.clamp(x, min, max)


def divide(left: Tensor, right: Tensor) -> Tensor:
    """Div; whole numbers are divided towards zero."""
    return left / right if left.is_floating_point() else torch.div(left, right, rounding_mode="trunc")


def modulo(left: Tensor, right: Tensor, *, fmod: int = 0) -> Tensor:
    """Mod: the sign is the divisor's, or with ``fmod`` the dividend's."""
    return torch.fmod(left, right) if fmod else torch.remainder(left, right)


def power(x: Tensor, exponent: Number) -> Tensor:
    """Pow; the result is of the base's type. A known exponent has kernels of its own, several times faster."""
    return torch.pow(x, exponent).to(x.dtype)


def multiply(left: Tensor, right: Tensor) -> Tensor:
    """Mul."""
    return left * right


def add(left: Tensor, right: Tensor) -> Tensor:
    """Add."""
    return left + right


def subtract(left: Tensor, right: Tensor) -> Tensor:
    """Sub."""
    return left - right


def maximum(*operands: Tensor) -> Tensor:
    """Max."""
    return functools.reduce(torch.maximum, operands)


def minimum(*operands: Tensor) -> Tensor:
    """Min."""
    return functools.reduce(torch.minimum, operands)


def total(*operands: Tensor) -> Tensor:
    """Sum."""
    return functools.reduce(torch.add, operands)


def mean(*operands: Tensor) -> Tensor:
    """Mean."""
    return total(*operands) / len(operands)


def round_half_even(x: Tensor) -> Tensor:
    """Round."""
    return torch.round(x)


def celu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    """Celu."""
    return F.celu(x, alpha)


def elu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    """Elu."""
    return F.elu(x, alpha)


def selu(x: Tensor, *, alpha: float = _SELU_ALPHA, gamma: float = _SELU_GAMMA) -> Tensor:
    """Selu."""
    if (alpha, gamma) == (_SELU_ALPHA, _SELU_GAMMA):
        return F.selu(x)
    return gamma * F.elu(x, alpha)


def gelu(x: Tensor, *, approximate: str = "none") -> Tensor:
    """Gelu."""
    return F.gelu(x, approximate=approximate)


def hard_sigmoid(x: Tensor, *, alpha: float = 0.2, beta: float = 0.5) -> Tensor:
    """HardSigmoid."""
    if math.isclose(alpha, 1 / 6, rel_tol=1e-6) and beta == 0.5:
        return F.hardsigmoid(x)
    return torch.clamp(alpha * x + beta, 0, 1)


def leaky_relu(x: Tensor, *, alpha: float = 0.01) -> Tensor:
    """LeakyRelu."""
    return F.leaky_relu(x, alpha)


def prelu(x: Tensor, slope: Tensor, *, opset: int = 7) -> Tensor:
    """PRelu; the slope broadcasts to x, before opset 7 along the channels."""
    if opset < 7 and slope.ndim == 1 and x.ndim > 2:
        slope = slope.reshape(-1, *[1] * (x.ndim - 2))
    per_channel = slope.shape == (*x.shape[1:2], *[1] * (x.ndim - 2))
    if x.is_floating_point() and (slope.numel() == 1 or per_channel):
        return F.prelu(x, slope.reshape(-1))
    return torch.where(x >= 0, x, x * slope)


def shrink(x: Tensor, *, bias: float = 0.0, lambd: float = 0.5) -> Tensor:
    """Shrink."""
    moved = torch.where(x < -lambd, x + bias, torch.where(x > lambd, x - bias, torch.zeros_like(x)))
    return moved.to(x.dtype)


def softplus(x: Tensor) -> Tensor:
    """Softplus; beyond torch's usual threshold of 20 a float64 still tells it from x."""
    return F.softplus(x, threshold=40.0)


def swish(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    """Swish: x * sigmoid(alpha * x)."""
    return F.silu(x) if alpha == 1 else x * torch.sigmoid(alpha * x)


def swiglu(gate: Tensor, x: Tensor, *, alpha: float = 1.0) -> Tensor:
    """SwiGLU: x times Swish of the gate."""
    return swish(gate, alpha=alpha) * x


def hard_swish(x: Tensor) -> Tensor:
    """HardSwish."""
    return F.hardswish(x)


def thresholded_relu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    """ThresholdedRelu."""
    return F.threshold(x, alpha, 0.0)


def relu(x: Tensor) -> Tensor:
    """Relu."""
    return F.relu(x)


def mish(x: Tensor) -> Tensor:
    """Mish."""
    return F.mish(x)


def softsign(x: Tensor) -> Tensor:
    """Softsign."""
    return F.softsign(x)


def drop_out(
    x: Tensor, ratio: Number = 0.5, training_mode: Number = False, *, seed: int = 0, outputs: int = 1, training: bool
) -> tuple[Tensor, ...]:
    """Dropout: passes x on unless both the graph and the module say that they train; and the mask of what was kept.

    Raises:
        ModelError: the graph wants the values that its own random numbers drop.
    """
    if training and number(training_mode) and number(ratio):
        if outputs == 1:
            return (F.dropout(x, number(ratio)),)
        kept = F.dropout(torch.ones_like(x), number(ratio))
        return x * kept, kept != 0
    if number(training_mode) and number(ratio):
        raise ModelError("a mask that ONNX's own random numbers draw cannot be drawn again")
    return x, torch.ones_like(x, dtype=torch.bool)


OPERATORS: Final[dict[str, Callable[..., Any]]] = {
    "Abs": torch.abs,
    "Acos": torch.acos,
    "Acosh": torch.acosh,
    "Add": add,
    "Asin": torch.asin,
    "Asinh": torch.asinh,
    "Atan": torch.atan,
    "Atanh": torch.atanh,
    "Ceil": torch.ceil,
    "Celu": celu,
    "Clip": clip,
    "Cos": torch.cos,
    "Cosh": torch.cosh,
    "Div": divide,
    "Dropout": drop_out,
    "Elu": elu,
    "Erf": torch.erf,
    "Exp": torch.exp,
    "Floor": torch.floor,
    "Gelu": gelu,
    "HardSigmoid": hard_sigmoid,
    "HardSwish": hard_swish,
    "LeakyRelu": leaky_relu,
    "Log": torch.log,
    "Max": maximum,
    "Mean": mean,
    "Min": minimum,
    "Mish": mish,
    "Mod": modulo,
    "Mul": multiply,
    "Neg": torch.neg,
    "PRelu": prelu,
    "Pow": power,
    "Reciprocal": torch.reciprocal,
    "Relu": relu,
    "Round": round_half_even,
    "Selu": selu,
    "Shrink": shrink,
    "Sigmoid": torch.sigmoid,
    "Sign": torch.sign,
    "Sin": torch.sin,
    "Sinh": torch.sinh,
    "Softplus": softplus,
    "Softsign": softsign,
    "Sqrt": torch.sqrt,
    "Sub": subtract,
    "Sum": total,
    "SwiGLU": swiglu,
    "Swish": swish,
    "Tan": torch.tan,
    "Tanh": torch.tanh,
    "ThresholdedRelu": thresholded_relu,
}
