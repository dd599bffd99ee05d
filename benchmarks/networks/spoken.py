"""Spoken digits as log-mel spectrograms, and two networks of one kind, one a fifth of the other.

The data stand in the folder that ALULA_DATA names: spoken-digits.npz, the Free Spoken Digit Dataset
(github.com/Jakobovski/free-spoken-digit-dataset, CC BY-SA 4.0), 3,000 clips at 8 kHz of six speakers. Four speakers
are trained on, one validated on, one tested on: what is scored is a voice that was never heard.
"""

from __future__ import annotations

from functools import cache
from typing import Final

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.networks.cifar import data_folder

SPEAKERS: Final = {
    "train": ("george", "jackson", "lucas", "nicolas"),
    "validation": ("theo",),
    "test": ("yweweler",),
}
RATE_HZ: Final = 8_000
WINDOW: Final = 256  # samples: 32 ms
HOP: Final = 100  # samples: 12.5 ms
FRAMES: Final = 64  # 0.8 s, longer than 97 of 100 clips
BANDS: Final = 40
FLOOR: Final = 1e-4  # of the loudest band of a clip: what is 40 dB below it counts as silence
SHIFT: Final = (2, 8)  # bands and frames
MASK: Final = (6, 12)  # bands and frames at most


@cache
def clips(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Log-mel spectrograms [n, 1, 40, 64], each of mean 0 and deviation 1, and digits [n] of a split's speakers.

    The clips of ``train`` are in one shuffled order, so that the first of them are a sample.
    """
    with np.load(data_folder() / "spoken-digits.npz") as file:
        samples, offsets, digits = file["samples"], file["offsets"], file["digits"].astype(np.int64)
        speakers = file["speaker_names"][file["speakers"]]
    rows = np.flatnonzero(np.isin(speakers, SPEAKERS[split]))
    rows = np.random.default_rng(0).permutation(rows) if split == "train" else rows
    made = [spectrogram(samples[offsets[row] : offsets[row + 1]].astype(np.float64) / 2**15) for row in rows]
    return np.stack(made)[:, None].astype(np.float32), digits[rows]


def spectrogram(samples: np.ndarray) -> np.ndarray:  # [n] -> [bands, frames]
    """The middle 0.8 seconds of a clip, or all of it with silence around."""
    length = (FRAMES - 1) * HOP + WINDOW
    before = max(length - len(samples), 0) // 2
    padded = np.pad(samples, (before, max(length - len(samples) - before, 0)))
    start = (len(padded) - length) // 2
    pieces = np.lib.stride_tricks.sliding_window_view(padded[start : start + length], WINDOW)[::HOP]  # [frames, window]
    power = np.abs(np.fft.rfft(pieces * np.hanning(WINDOW))) ** 2  # [frames, window / 2 + 1]
    bands = mel_filters() @ power.T
    logarithms = np.log(np.maximum(bands, FLOOR * max(float(bands.max()), 1e-12)))
    return np.asarray((logarithms - logarithms.mean()) / max(float(logarithms.std()), 1e-6))


@cache
def mel_filters() -> np.ndarray:  # [bands, window / 2 + 1]
    """Triangles that are equally wide on the mel scale, 2595 log10(1 + f / 700), from 0 Hz to half the rate."""
    highest = 2595 * np.log10(1 + RATE_HZ / 2 / 700)
    edges = 700 * (10 ** (np.linspace(0, highest, BANDS + 2) / 2595) - 1)  # Hz
    frequencies = np.fft.rfftfreq(WINDOW, 1 / RATE_HZ)
    low, centre, high = (edges[first : first + BANDS, None] for first in range(3))
    return np.asarray(
        np.maximum(np.minimum((frequencies - low) / (centre - low), (high - frequencies) / (high - centre)), 0)
    )


def shift_and_mask(inputs: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
    """Each spectrogram moved in pitch and time, and one band of pitches and one span of time set to its mean.

    The masks are those of Park et al. 2019, "SpecAugment", section 2.
    """
    (name, batch), *_ = inputs.items()
    changed = batch
    for axis, (most, widest) in enumerate(zip(SHIFT, MASK, strict=True), 2):
        changed = _moved(changed, axis, most, generator)
        changed = _masked(changed, axis, widest, generator)
    return {name: changed}


def _moved(batch: Tensor, axis: int, most: int, generator: torch.Generator) -> Tensor:
    """Each row moved by up to ``most`` along an axis; its edge is repeated."""
    length = batch.shape[axis]
    offsets = torch.randint(-most, most + 1, (len(batch), 1), generator=generator)
    places = (torch.arange(length) + offsets).clamp(0, length - 1)  # [n, length]
    shape = [len(batch), 1, 1, 1]
    shape[axis] = length
    return batch.gather(axis, places.view(shape).expand(batch.shape))


def _masked(batch: Tensor, axis: int, widest: int, generator: torch.Generator) -> Tensor:
    """Each row with 0 in a span of up to ``widest`` along an axis."""
    length = batch.shape[axis]
    width = torch.randint(widest + 1, (len(batch), 1), generator=generator)
    start = torch.randint(length, (len(batch), 1), generator=generator)
    places = torch.arange(length)
    hidden = (places >= start) & (places < start + width)  # [n, length]
    shape = [len(batch), 1, 1, 1]
    shape[axis] = length
    return batch.masked_fill(hidden.view(shape), 0)


class Convolutional(nn.Sequential):
    """Spectrograms [n, 1, 40, 64] to logits [n, 10]: four convolutions, the widest four times ``width``."""

    def __init__(self, width: int) -> None:
        super().__init__(
            *_convolution(1, width, 2),
            *_convolution(width, 2 * width, 2),
            *_convolution(2 * width, 4 * width, 2),
            *_convolution(4 * width, 4 * width, 1),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(4 * width, 10),
        )


def network() -> Convolutional:
    """61,050 parameters, 3.04 M multiplications."""
    return Convolutional(16)


def student() -> Convolutional:
    """A fifth of the network: 11,973 parameters, 0.61 M multiplications."""
    return Convolutional(7)


def _convolution(inputs: int, outputs: int, stride: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
