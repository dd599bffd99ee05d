"""Fourier transforms and windows."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Final

import torch
from torch import Tensor

from alula.graph.ops.casting import type_of
from alula.graph.ops.host import Int, Number, number, one_int

FLOAT: Final = 1  # ONNX's number of float32


def fourier(
    x: Tensor,
    dft_length: Int | None = None,
    axis: Int | None = None,
    *,
    inverse: int = 0,
    onesided: int = 0,
    opset: int,
) -> Tensor:
    """DFT: x [..., n, ..., 1 or 2] of real numbers, or of real and imaginary parts."""
    along = (1 if opset < 20 else -2) if axis is None else one_int(axis)
    along %= x.ndim
    length = None if dft_length is None else one_int(dft_length)
    if inverse and onesided:
        values = torch.view_as_complex(x.contiguous())
        real: Tensor = torch.fft.irfft(values, length, along)
        return real.unsqueeze(-1)
    if onesided:
        return torch.view_as_real(torch.fft.rfft(x[..., 0], length, along))
    values = torch.view_as_complex(x.contiguous()) if x.shape[-1] == 2 else torch.complex(x[..., 0], x[..., 0] * 0)
    return torch.view_as_real((torch.fft.ifft if inverse else torch.fft.fft)(values, length, along))


def short_fourier(
    x: Tensor, frame_step: Int, window: Tensor | None = None, frame_length: Int | None = None, *, onesided: int = 1
) -> Tensor:
    """STFT: x [N, n, 1] -> [N, frames, bins, 2]."""
    whole = window.shape[0] if window is not None else x.shape[1]
    length = whole if frame_length is None else one_int(frame_length)
    real = x[..., 0] if x.ndim == 3 and x.shape[-1] == 1 else None
    source = real if real is not None else torch.view_as_complex(x.contiguous())
    frames = source.unfold(1, length, one_int(frame_step))  # [N, frames, length]
    frames = frames if window is None else frames * window
    if onesided and real is not None:
        return torch.view_as_real(torch.fft.rfft(frames, dim=-1))
    return torch.view_as_real(torch.fft.fft(frames, dim=-1))


def _cosines(size: Int, terms: Sequence[float], kind: int, anchor: Tensor, *, periodic: int) -> Tensor:
    """A window that is a sum of cosines with these factors."""
    count = one_int(size)
    period = max(1, count if periodic else count - 1)
    phase = torch.arange(count, device=anchor.device, dtype=torch.float64) * (2 * math.pi / period)
    window = torch.zeros(count, dtype=torch.float64, device=anchor.device)
    for index, factor in enumerate(terms):
        window = window + factor * torch.cos(index * phase)
    return window.to(type_of(kind))


def mel_weights(
    num_mel_bins: Int, dft_length: Int, sample_rate: Int, lower_edge_hertz: Number, upper_edge_hertz: Number, *,
    output_datatype: int = FLOAT, anchor: Tensor,
) -> Tensor:  # fmt: skip
    """MelWeightMatrix [dft_length // 2 + 1, num_mel_bins] of triangles with peak 1."""
    bands, length, rate = one_int(num_mel_bins), one_int(dft_length), one_int(sample_rate)
    least, greatest = (2595 * math.log10(1 + number(edge) / 700) for edge in (lower_edge_hertz, upper_edge_hertz))
    step = (greatest - least) / (bands + 2)
    hertz = [700 * (10 ** ((least + step * place) / 2595) - 1) for place in range(bands + 2)]
    edges = torch.tensor([(length + 1) * frequency // rate for frequency in hertz], dtype=torch.float64)
    low, middle, high = edges[:-2], edges[1:-1], edges[2:]  # [bands]
    bins = torch.arange(length // 2 + 1, dtype=torch.float64)[:, None]
    rising = torch.where(middle > low, (bins - low) / (middle - low).clamp(min=1), (bins == middle).double())
    falling = (high - bins) / (high - middle).clamp(min=1)
    weights = torch.where(bins < middle, rising, torch.where(bins > middle, falling, torch.ones_like(falling)))
    return weights.clamp(min=0).to(device=anchor.device, dtype=type_of(output_datatype))


def hann_window(size: Int, *, output_datatype: int = FLOAT, periodic: int = 1, anchor: Tensor) -> Tensor:
    """HannWindow."""
    return _cosines(size, (0.5, -0.5), output_datatype, anchor, periodic=periodic)


def hamming_window(size: Int, *, output_datatype: int = FLOAT, periodic: int = 1, anchor: Tensor) -> Tensor:
    """HammingWindow."""
    return _cosines(size, (25 / 46, -21 / 46), output_datatype, anchor, periodic=periodic)


def blackman_window(size: Int, *, output_datatype: int = FLOAT, periodic: int = 1, anchor: Tensor) -> Tensor:
    """BlackmanWindow."""
    return _cosines(size, (0.42, -0.5, 0.08), output_datatype, anchor, periodic=periodic)


OPERATORS: Final[dict[str, Callable[..., Any]]] = {
    "BlackmanWindow": blackman_window,
    "DFT": fourier,
    "HammingWindow": hamming_window,
    "HannWindow": hann_window,
    "MelWeightMatrix": mel_weights,
    "STFT": short_fourier,
}
