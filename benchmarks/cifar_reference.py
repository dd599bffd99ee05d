"""Trains the published CIFAR-10 networks further on the JPEG images: what other benchmarks start from and compare with.

    python benchmarks/cifar_reference.py [--depths 20 56] [--epochs 12]

A killed run goes on where it was. Writes results/models/resnet<depth>-cifar10-jpeg.onnx and cifar_reference.json.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from pathlib import Path

import torch

import alula
from alula.training.scoring import score_by
from benchmarks.networks.cifar import images, published, shift_and_flip
from benchmarks.peers.commit import read_commit

RESULTS = Path(__file__).parent / "results"
WORK = Path("out/benchmarks")
log = logging.getLogger("benchmarks.cifar_reference")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--depths", type=int, nargs="+", default=[20])
    parser.add_argument("--epochs", type=int, default=12)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    for depth in arguments.depths:
        train(depth, arguments.epochs)


def train(depth: int, epochs: int) -> None:
    """One network."""
    started = time.monotonic()
    before = alula.export_module(published(depth), torch.randn(2, 3, 32, 32))
    score = score_by(before, images("test"))
    log.info("resnet%d: %.4f on the JPEG test images as published", depth, score(before))
    settings = alula.Training(
        epochs=epochs, batch_size=128, optimiser="sgd", learning_rate=0.05, augment=shift_and_flip
    )
    trained = alula.finetune(before, *images("train"), training=settings, out=WORK / f"reference-resnet{depth}")
    (RESULTS / "models").mkdir(parents=True, exist_ok=True)
    trained.save(RESULTS / "models" / f"resnet{depth}-cifar10-jpeg.onnx")
    path = RESULTS / "cifar_reference.json"
    rows = json.loads(path.read_text()) if path.is_file() else {}
    rows[f"resnet{depth}"] = {
        "published": score(before), "reference": score(trained), "epochs": epochs,
        "seconds": round(time.monotonic() - started), "commit": read_commit(),
    }  # fmt: skip
    path.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    log.info("resnet%d: %.4f", depth, rows[f"resnet{depth}"]["reference"])


if __name__ == "__main__":
    main()
