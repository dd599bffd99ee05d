"""The networks that are compared on: each a task of alula's, and the ways in which the other tools quantize it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np

from alula.graph.load import load_model
from alula.graph.model import Model
from alula.measurement.trace import record_trace
from alula.numerics.metrics import cosine
from alula.task import Run, Task
from benchmarks.peers.calling import Method
from benchmarks.peers.files import Feed
from examples.data import cache_folder
from examples.spam.task import task as spam_task
from examples.vision.task import normalized, read_photos
from examples.vision.task import task as vision_task
from examples.voice.task import task as voice_task

CALIBRATION_METHODS = ("MinMax", "Entropy", "Percentile")
WARM_UP_PHOTOS = 100


@dataclass(frozen=True)
class Row:
    """One network: what it is, its task, and what it may lose."""

    name: str
    title: str
    task: Callable[[], Task]
    transformer: bool = False
    largest_drop: float = 0.01


def methods_for(*, transformer: bool = False) -> tuple[Method, ...]:
    """Every way in which the other tools quantize a network after training, at the settings that serve it best."""
    return (
        *_static(None, "all operators"),
        *(_static(["MatMul"], "MatMul only") if transformer else ()),
        Method("ORT dynamic", "onnxruntime dynamic"),
        *_nncf("mixed", transformer=transformer),
        *(() if transformer else _nncf("performance", transformer=False)),
    )


def _static(operators: list[str] | None, words: str) -> Iterator[Method]:
    for method in CALIBRATION_METHODS:
        settings = {"method": method, "operators": operators}
        yield Method(f"ORT static, {method}, {words}", "onnxruntime static", settings)


def _nncf(preset: str, *, transformer: bool) -> Iterator[Method]:
    settings = {"preset": preset, "transformer": transformer}
    words = f"{preset}, transformer" if transformer else preset
    yield Method(f"NNCF, ONNX, {words}", "nncf onnx", settings)
    yield Method(f"NNCF, OpenVINO, {words}", "nncf openvino", settings, runtimes=("openvino",))


Compared = tuple[np.ndarray, np.ndarray]  # (photo uint8 [3, 224, 224], the original's logits [1000])


def resnet18_task() -> Task:
    """ResNet-18 with drawn weights on photos, scored by the cosine between its logits and the original's."""
    photos = [photo for photo, _ in read_photos()]
    model = resnet18(photos[:WARM_UP_PHOTOS])
    compared = [(photo, model.run(_images(photo))["logits"][0]) for photo in photos[WARM_UP_PHOTOS:]]
    return Task(
        parts={"model": model},
        calibration=compared[:300],
        evaluation=compared[300:],
        scorer=score_by_cosine,
        name="resnet18",
        metric="cosine to the original",
        bounds=(-1.0, 1.0),
        labelled=False,
    )


def score_by_cosine(run: Run, examples: Sequence[Compared]) -> np.ndarray:
    """The cosine of each photo's logits with the original's; one photo at a time."""
    logits = np.stack([run(_images(photo))["logits"][0] for photo, _ in examples])  # [n, 1000]
    return np.asarray(cosine(logits, np.stack([original for _, original in examples])))


def resnet18(photos: Sequence[np.ndarray]) -> Model:
    """The network, exported at the first call and read from the cache from then on."""
    path = cache_folder(Path(__file__), "torch", "onnxscript") / "resnet18.onnx"
    if not path.exists():
        import torch

        from alula.graph.export import export_module
        from benchmarks.peers.resnet18 import warmed_up

        images = torch.from_numpy(np.stack([normalized(photo) for photo in photos]))
        module = warmed_up(images)
        export_module(module, images[:2], input_names=["images"], output_names=["logits"]).save(path)
    return load_model(path)


def photo_feeds(count: int) -> Iterator[Feed]:
    """The first photos, as the networks for images take them."""
    return (_images(photo) for photo, _ in read_photos()[:count])


def _images(photo: np.ndarray) -> Feed:
    return {"images": normalized(photo)[None]}


ROWS = {
    row.name: row
    for row in (
        Row("efficientnet-lite0", "EfficientNet-Lite0, ImageNet photos, top-1 accuracy", vision_task),
        Row("minilm-spam", "MiniLM spam filter, SMS messages, accuracy", spam_task, transformer=True),
        Row("silero-vad", "silero-vad, spoken digits, balanced frame accuracy", voice_task),
        Row("resnet18", "ResNet-18, drawn weights, photos, cosine to the original", resnet18_task),
    )
}


def shortened(task: Task, samples: int | None) -> Task:
    """The task with this many calibration examples, and as many to select by and to certify by."""
    if samples is None:
        return task
    return replace(task, calibration=task.calibration[:samples], evaluation=task.evaluation[: 2 * samples])


def record_feeds(task: Task, examples: Sequence[object], limit: int | None = None) -> Iterator[Feed]:
    """What the task's scorer feeds the original on these examples, at most ``limit`` feeds."""
    count = 0
    for index in range(len(examples)):
        whole = replace(task, calibration=examples[index : index + 1])
        for _, feed in record_trace(whole, limit=1_000_000):
            if count == limit:
                return
            count += 1
            yield feed


@cache
def open_row(name: str, samples: int | None) -> Task:
    """The task of a row, made once."""
    return shortened(ROWS[name].task(), samples)
