"""Quantized forms as fake quantization: whole numbers held in floats, gradients straight through the rounding.

A code q is a whole number in a float tensor, so that gradients reach what was quantized. Rounding passes gradients on
as they are (Bengio et al., 2013, "Estimating or propagating gradients through stochastic neurons"); what was clamped
gets none.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor

from alula.errors import ModelError
from alula.graph.ops.convolutions import convolve

LIMITS: Final = {
    "INT2": (-2, 1),
    "UINT2": (0, 3),
    "INT4": (-8, 7),
    "UINT4": (0, 15),
    "INT8": (-128, 127),
    "UINT8": (0, 255),
    "INT16": (-32768, 32767),
    "UINT16": (0, 65535),
    "INT32": (-(2**31), 2**31 - 1),
}  # fmt: skip  (least and greatest code by ONNX's name of the type)


def code_limits(codes: Tensor, type_name: str) -> tuple[int, int]:
    """Least and greatest code of the grid that the codes of a weight are on, which may be narrower than their type.

    Runtimes read 2, 3 or 5 bits as int4 or int8; the width is that of the widest code. Where the least code of a signed
    type is not used, it stays unused: grids with as many steps below zero as above, and three values, are kept.

    >>> [code_limits(torch.tensor(codes), "INT8") for codes in ([-4, 3], [-3, 2], [-1, 0, 1], [127, -5])]
    [(-4, 3), (-3, 3), (-1, 1), (-127, 127)]
    """
    low, high = LIMITS[type_name]
    if high > LIMITS["UINT8"][1] or codes.numel() == 0:
        return low, high
    least, most = int(codes.min()), int(codes.max())
    bits = next(bits for bits in range(1, 9) if most < 2**bits and least >= -(2**bits))
    if low == 0:
        return 0, 2**bits - 1
    return -(2**bits) if least == -(2**bits) else 1 - 2**bits, 2**bits - 1


class _ToCodes(torch.autograd.Function):
    """clamp(round(ratio) + zero point); the gradient of ratio, where nothing was clamped.

    In one function, since a step of training passes over each activation for every operation that autograd sees.
    """

    @staticmethod
    def forward(ctx: Any, ratio: Tensor, zero_point: Tensor | None, limits: tuple[float, float]) -> Tensor:
        """The codes."""
        codes = torch.round(ratio)
        codes = codes if zero_point is None else codes.add_(zero_point)
        clamped = codes.clamp(*limits)
        ctx.save_for_backward(clamped == codes)
        return clamped

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        """Straight through."""
        (inside,) = ctx.saved_tensors
        return gradients[0] * inside, None, None


def round_straight(x: Tensor) -> Tensor:
    """Rounded to the nearest whole number, halves to even; its gradient is that of x."""
    return to_codes(x, None, (-math.inf, math.inf))


def to_codes(ratio: Tensor, zero_point: Tensor | None, limits: tuple[float, float]) -> Tensor:
    """clamp(round(ratio) + zero point), halves to even; the gradient of ratio, where nothing was clamped."""
    codes: Tensor = _ToCodes.apply(ratio, zero_point, limits)  # type: ignore[no-untyped-call]  # by torch
    return codes


def spread(parameter: Tensor, x: Tensor, axis: int, block_size: int) -> Tensor:
    """A scale or zero point of the tensor, of each slice along an axis [n], or of each block, to go with x."""
    if parameter.numel() == 1 and block_size == 0:
        return parameter.reshape(())
    if block_size:
        return parameter.repeat_interleave(block_size, axis).narrow(axis, 0, x.shape[axis])
    return parameter.reshape([-1 if index == axis % x.ndim else 1 for index in range(x.ndim)])


def quantize(
    x: Tensor, scale: Tensor, zero_point: Tensor | None = None, *,
    axis: int = 1, block_size: int = 0, output_dtype: int = 0, limits: tuple[int, int], **others: Any,
) -> Tensor:  # fmt: skip
    """QuantizeLinear: codes q = clamp(round(x / scale) + zero point); their least and greatest are ``limits``."""
    if others.get("precision"):
        raise ModelError("a precision of the division is not differentiated")
    x = x.to(scale.dtype) if not x.is_floating_point() else x
    offset = None if zero_point is None else spread(zero_point, x, axis, block_size).to(x.dtype)
    return to_codes(x / spread(scale, x, axis, block_size).to(x.dtype), offset, limits)


def dequantize(
    x: Tensor, scale: Tensor, zero_point: Tensor | None = None, *,
    axis: int = 1, block_size: int = 0, output_dtype: int = 0,
) -> Tensor:  # fmt: skip
    """DequantizeLinear: x = (q - zero point) * scale."""
    codes = x.to(scale.dtype)
    if zero_point is not None:
        codes = codes - spread(zero_point, x, axis, block_size).to(scale.dtype)
    return codes * spread(scale, x, axis, block_size)


def fake_quantize(
    weight: Tensor, scale: Tensor, zero_point: Tensor | None = None, *,
    axis: int = 1, block_size: int = 0, output_dtype: int = 0, limits: tuple[int, int],
) -> Tensor:  # fmt: skip
    """A float weight as its codes give it back: what DequantizeLinear of a constant becomes."""
    codes = quantize(weight, scale, zero_point, axis=axis, block_size=block_size, limits=limits)
    return dequantize(codes, scale, zero_point, axis=axis, block_size=block_size)


def cast_codes(codes: Tensor, dtype: torch.dtype) -> Tensor:
    """Codes as the whole numbers that they are, where they leave the graph."""
    return torch.round(codes).to(dtype)


def quantize_dynamic(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """DynamicQuantizeLinear: codes of 0 to 255, their scale and zero point, by the range of x with 0 in it."""
    low, high = torch.clamp(x.min(), max=0), torch.clamp(x.max(), min=0)
    scale = (high - low) / 255
    divisor = torch.where(scale == 0, torch.ones_like(scale), scale)
    zero_point = torch.clamp(torch.round(-low / divisor), 0, 255).detach()
    codes = to_codes(x / divisor, zero_point, (0, 255))
    return codes, scale, zero_point


def multiply_codes(
    a: Tensor, b: Tensor, a_zero_point: Tensor | None = None, b_zero_point: Tensor | None = None
) -> Tensor:
    """MatMulInteger: sums of products of codes, in float64, which holds them exactly."""
    left = _centred(a, a_zero_point, -2)
    return left @ _centred(b, b_zero_point, -1)


def convolve_codes(
    x: Tensor, w: Tensor, x_zero_point: Tensor | None = None, w_zero_point: Tensor | None = None, **attributes: Any
) -> Tensor:
    """ConvInteger: as MatMulInteger."""
    return convolve(_centred(x, x_zero_point, 1), _centred(w, w_zero_point, 0), **attributes)


def multiply_quantized(*inputs: Tensor, limits: tuple[int, int]) -> Tensor:
    """QLinearMatMul of a, its scale and zero point, b, its, and the scale and zero point of the result."""
    a, a_scale, a_zero, b, b_scale, b_zero, scale, zero = inputs
    product = multiply_codes(a, b, a_zero, b_zero) * (_along(a_scale, a, -2) * _along(b_scale, b, -1))
    return to_codes(product / scale, zero, limits)


def convolve_quantized(*inputs: Tensor, limits: tuple[int, int], **attributes: Any) -> Tensor:
    """QLinearConv of x, its scale and zero point, w, its, the scale and zero point of the result, and the bias."""
    x, x_scale, x_zero, w, w_scale, w_zero, scale, zero, *bias = inputs
    sums = convolve_codes(x, w, x_zero, w_zero, **attributes)
    if bias:
        sums = sums + _along(bias[0].double(), sums, 1)
    return to_codes(sums * (x_scale * _along(w_scale, sums, 1)) / scale, zero, limits)


def _along(parameter: Tensor, x: Tensor, axis: int) -> Tensor:
    return spread(parameter.double(), x, axis, 0)


def _centred(codes: Tensor, zero_point: Tensor | None, axis: int) -> Tensor:
    if zero_point is None:
        return codes.double()
    return codes.double() - spread(zero_point.double(), codes, axis, 0)


OPERATORS: Final[dict[str, Callable[..., Any]]] = {
    "ConvInteger": convolve_codes,
    "DequantizeLinear": dequantize,
    "DynamicQuantizeLinear": quantize_dynamic,
    "MatMulInteger": multiply_codes,
    "QLinearConv": convolve_quantized,
    "QLinearMatMul": multiply_quantized,
    "QuantizeLinear": quantize,
}
