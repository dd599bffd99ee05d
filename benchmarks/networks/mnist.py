"""MNIST, LeNet-5 (LeCun et al. 1998) as Caffe has it, and two networks of one kind, one a fifth of the other.

The data stand in the folder that ALULA_DATA names: mnist-train.npz and mnist-test.npz, `images` uint8 [n, 28, 28] and
`labels` (github.com/rasbt/mnist-pngs).
"""

from __future__ import annotations

from functools import cache
from typing import Final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.networks.cifar import data_folder

MEAN: Final = 0.1307  # of the training images, which are from 0 to 1
DEVIATION: Final = 0.3081
VALIDATION: Final = 5_000  # of the training images that nothing is trained on
SHIFT: Final = 2  # pixels


@cache
def images(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Normalised images [n, 1, 28, 28] and labels [n] of ``train`` (55,000), ``validation`` (5,000) or ``test``.

    Training images are in one shuffled order, so that the first of them are a sample.
    """
    with np.load(data_folder() / f"mnist-{'test' if split == 'test' else 'train'}.npz") as file:
        pixels, labels = file["images"], file["labels"].astype(np.int64)
    if split != "test":
        order = np.random.default_rng(0).permutation(len(labels))
        rows = order[-VALIDATION:] if split == "validation" else order[:-VALIDATION]
        pixels, labels = pixels[rows], labels[rows]
    return (pixels[:, None].astype(np.float32) / 255 - MEAN) / DEVIATION, labels


def shift(inputs: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
    """Each image moved by up to two pixels."""
    (name, batch), *_ = inputs.items()
    count, size = len(batch), batch.shape[-1]
    padded = functional.pad(batch, (SHIFT,) * 4, value=-MEAN / DEVIATION)
    down, right = torch.randint(2 * SHIFT + 1, (2, count, 1), generator=generator)
    rows, columns = down + torch.arange(size), right + torch.arange(size)
    picked = padded[torch.arange(count)[:, None, None], :, rows[:, :, None], columns[:, None, :]]  # [n, 28, 28, 1]
    return {name: picked.permute(0, 3, 1, 2).contiguous()}


class LeNet5(nn.Sequential):
    """Images [n, 1, 28, 28] to logits [n, 10]; 430,500 weights and 580 biases, 2.29 M multiplications.

    Caffe's has a rectifier behind the first linear layer alone. Here the convolutions have one too, as in most papers
    on pruning: a criterion that counts zeros would see none without.
    """

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(1, 20, 5),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(20, 50, 5),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(800, 500),
            nn.ReLU(),
            nn.Linear(500, 10),
        )


class Convolutional(nn.Sequential):
    """Images [n, 1, 28, 28] to logits [n, 10]: three convolutions of ``width``, twice and four times ``width``."""

    def __init__(self, width: int) -> None:
        super().__init__(
            *_convolution(1, width),
            nn.MaxPool2d(2),
            *_convolution(width, 2 * width),
            nn.MaxPool2d(2),
            *_convolution(2 * width, 4 * width),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(4 * width, 10),
        )


def teacher() -> Convolutional:
    """24,058 parameters, 1.92 M multiplications."""
    return Convolutional(16)


def student() -> Convolutional:
    """A fifth of the teacher: 4,861 parameters, 0.40 M multiplications."""
    return Convolutional(7)


def _convolution(inputs: int, outputs: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
