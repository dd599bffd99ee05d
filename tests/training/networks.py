"""Small networks and data that they can learn, for the tests of training."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from alula import Model, export_module


def rows(count: int = 96, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Images [n, 3, 8, 8] whose class is which of two channels is brighter."""
    rng = np.random.default_rng(seed)
    images = rng.normal(size=(count, 3, 8, 8)).astype(np.float32)
    return images, (images[:, 0].mean((1, 2)) > images[:, 1].mean((1, 2))).astype(np.int64)


class Small(nn.Module):
    """A convolution with batch normalisation, and a classifier of two classes."""

    def __init__(self, width: int = 6, *, norm: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width) if norm else nn.Identity()
        self.head = nn.Linear(width, 2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.norm(self.conv(images))).mean((2, 3)))


def small(width: int = 6, *, norm: bool = True, seed: int = 0) -> Model:
    """The network as a graph."""
    torch.manual_seed(seed)
    return export_module(Small(width, norm=norm), torch.zeros(2, 3, 8, 8))
