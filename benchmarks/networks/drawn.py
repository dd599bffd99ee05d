"""Networks to be calibrated by draws: what is drawn from, and examples for the score that are never drawn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np

import alula
from benchmarks.networks import cifar
from benchmarks.peers.files import Feed
from examples.spam.task import TRAINING, read_examples, spam_filter
from examples.vision.task import classifier, normalized, read_photos

TEST_IMAGES: Final = 2_000
TEST_MESSAGES: Final = 1_500
PHOTOS: Final = 500  # for the score; the others are drawn from

Batch: TypeAlias = tuple[Feed, np.ndarray]  # inputs [b, ...], labels [b]


@dataclass(frozen=True)
class Network:
    """A float network, with one sample a feed to calibrate by, and batches to score by."""

    title: str
    model: alula.Model
    pool: Sequence[Feed]
    test: Sequence[Batch]
    transformer: bool = False


def resnet20() -> Network:
    """ResNet-20 on CIFAR-10 as JPEG; the files are sorted by class, so that test images are drawn."""
    model = alula.load_model(cifar.MODELS / "resnet20-cifar10-jpeg.onnx")
    pool = [{"images": image[None]} for image in cifar.images("train")[0]]
    images, labels = cifar.drawn("test", TEST_IMAGES)
    batches = [({"images": images[part]}, labels[part]) for part in np.split(np.arange(TEST_IMAGES), 4)]
    return Network("ResNet-20, CIFAR-10 (JPEG), of 50,000 training images", model, pool, batches)


def minilm() -> Network:
    """The spam filter: drawn from what its head was trained on, scored on others; messages are in random order."""
    examples = read_examples()
    training, others = examples[:TRAINING], examples[TRAINING : TRAINING + TEST_MESSAGES]
    pool = [feeds for feeds, _ in training]
    title = f"MiniLM spam filter, of the {TRAINING:,} messages that trained its head"
    return Network(title, spam_filter(training), pool, by_length(others), transformer=True)


def by_length(messages: Sequence[tuple[Feed, int]]) -> list[Batch]:
    """Messages in batches of one length, which need no padding."""
    groups: dict[int, list[tuple[Feed, int]]] = {}
    for message in messages:
        groups.setdefault(message[0]["input_ids"].size, []).append(message)
    return [
        ({name: np.concatenate([feed[name] for feed, _ in group]) for name in group[0][0]},
         np.array([label for _, label in group]))
        for group in groups.values()
    ]  # fmt: skip


def efficientnet() -> Network:
    """EfficientNet-Lite0 on photos, one of each class."""
    examples = [(normalized(photo)[None], label) for photo, label in read_photos()]
    pool, test = [{"images": image} for image, _ in examples[PHOTOS:]], examples[:PHOTOS]
    batches = [
        ({"images": np.concatenate([image for image, _ in part])}, np.array([label for _, label in part]))
        for part in (test[start : start + 20] for start in range(0, PHOTOS, 20))
    ]
    return Network(f"EfficientNet-Lite0, ImageNet, of {len(pool)} photos", classifier(), pool, batches)


NETWORKS: Final[dict[str, Callable[[], Network]]] = {
    "resnet20": resnet20, "minilm": minilm, "efficientnet": efficientnet,
}  # fmt: skip
