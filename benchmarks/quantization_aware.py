"""ResNet-20 at few bits, before and after training on its grids: CIFAR-10 as JPEG.

    python benchmarks/quantization_aware.py [--rows W4A4 ...] [--seeds 0 1 2] [--epochs 10] [--threads 1] [--again]

The reference is what cifar_reference.py --depths 20 writes. Its weights and activations are put on grids of the bits of
a row (ranges by squared error on 1,024 training images), the first convolution and the last layer on 8, as is the
custom; then the float network teaches it, and it learns weights and steps of the grids together. Normalisations are
folded into the steps afterwards, and what is scored is the file in ONNX Runtime, where 8 bits run as integers and fewer
are codes of 8 bits that use less of them. Nothing is selected: what the last step leaves is scored once, on the 10,000
test images, and compared with the reference image by image. A row that is done is kept; a killed one goes on where it
was. Writes results/quantization_aware.json and .md.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

import alula
from alula.measurement import describe_machine, versions
from alula.numerics.ranges import MeanSquaredError
from alula.training.loss import Mix
from alula.training.losses import CrossEntropy, SoftLabels
from benchmarks.networks.cifar import images, shift_and_flip
from benchmarks.peers.commit import read_commit
from benchmarks.peers.files import write_json

RESULTS: Final = Path(__file__).parent / "results"
WORK: Final = Path("out/benchmarks/quantization_aware")
BITS: Final = {"W8A8": (8, 8), "W4A8": (4, 8), "W4A4": (4, 4), "W3A3": (3, 3), "W2A4": (2, 4), "W2A2": (2, 2)}
CALIBRATION: Final = 1024
TAUGHT: Final = Mix(((1.0, SoftLabels(temperature=4.0)), (0.5, CrossEntropy())))
log = logging.getLogger("benchmarks.quantization_aware")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", choices=list(BITS), default=list(BITS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=float, default=10)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--again", action="store_true", help="measure rows anew that are there")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(arguments.threads)
    path = arguments.out / "quantization_aware.json"
    for seed in arguments.seeds:
        for name in arguments.rows:
            rows: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
            key = f"{name} seed {seed}"
            if key in rows and not arguments.again:
                continue
            log.info(key)
            rows[key] = measure(name, seed, arguments.epochs)
            write_json(path, rows)
            path.with_suffix(".md").write_text(render(rows), encoding="utf-8")


def measure(name: str, seed: int, epochs: float) -> dict[str, Any]:
    """One row: on its grids, trained, folded, built, compared."""
    started = time.monotonic()
    reference = alula.load_model(RESULTS / "models" / "resnet20-cifar10-jpeg.onnx")
    work = WORK / f"{name}-{seed}-{epochs:g}"
    coarse = on_grids(reference, *BITS[name], seed=seed)
    training = alula.Training(
        epochs=epochs, batch_size=128, optimiser="sgd", learning_rate=0.02, augment=shift_and_flip, seed=seed
    )
    teacher = alula.Remembered(reference, WORK / "answers")
    trained = alula.distill(coarse, teacher, *images("train"), loss=TAUGHT, training=training, out=work)
    folded = alula.apply_recipe(trained, alula.Recipe((alula.Step(alula.FoldBatchNorm()),)))
    right, size = is_right(reference, work)[0], {}
    scores = {}
    for label, model in (("on its grids", coarse), ("trained", trained), ("folded", folded)):
        found, size[label] = is_right(model, work)
        difference = right - found
        interval = 1.96 * float(difference.std(ddof=1)) / len(difference) ** 0.5
        scores[label] = {"right": float(found.mean()), "drop": float(difference.mean()), "interval": interval}
    return {
        "reference": float(right.mean()), "scores": scores, "bytes": size, "epochs": epochs,
        "seconds": round(time.monotonic() - started), "commit": read_commit(), "machine": describe_machine(),
        "versions": versions(),
    }  # fmt: skip


def on_grids(reference: alula.Model, weight_bits: int, activation_bits: int, *, seed: int) -> alula.Model:
    """The network with weights and activations on grids of so many bits; of 8 in its first and last layer."""
    inputs, labels = images("train")
    order = np.random.default_rng(seed).permutation(len(labels))[:CALIBRATION]
    layers = reference.layers()
    inner = alula.Quantize(weight_bits, activation_bits, range=MeanSquaredError())
    recipe = alula.Recipe((
        alula.Step(inner, exclude=(layers[0].name, layers[-1].name)),
        alula.Step(alula.Quantize(range=MeanSquaredError())),
    ))  # fmt: skip
    return alula.apply_recipe(reference, recipe, inputs[order])


def is_right(model: alula.Model, work: Path) -> tuple[np.ndarray, int]:
    """1 for each test image whose class the built file finds, else 0; and the bytes of the file."""
    inputs, labels = images("test")
    target = alula.OnnxRuntime(threads=1)
    artifact = target.build(model, work / "built")
    opened = target.open(artifact)
    logits = [next(iter(opened({"images": inputs[i : i + 250]}).values())) for i in range(0, len(labels), 250)]
    right: np.ndarray = (np.concatenate(logits).argmax(1) == labels).astype(np.float64)
    return right, artifact.size_bytes


def render(rows: dict[str, dict[str, Any]]) -> str:
    """The page of results."""
    lines = [
        "# ResNet-20 trained on its grids", "",
        "Written by `benchmarks/quantization_aware.py`. W4A4: weights and activations at 4 bits, first and last layer",
        "at 8. Right of the 10,000 test images of CIFAR-10, JPEG, by the built file in ONNX Runtime; drop: points",
        "lost, paired, with 95 % interval over the images.", "",
        "| row | float | on its grids | trained | drop | epochs | minutes | commit |",
        "|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for name, row in rows.items():
        before, found = (row["scores"][label] for label in ("on its grids", "folded"))
        lines.append(
            f"| {name} | {row['reference']:.2%} | {before['right']:.2%} | {found['right']:.2%} | "
            f"{100 * found['drop']:.2f} ± {100 * found['interval']:.2f} | {row['epochs']:g} | "
            f"{row['seconds'] / 60:.0f} | {row['commit'][:9]} |"
        )
    last = next(reversed(rows.values()))
    known = ", ".join(f"{name} {version}" for name, version in last["versions"].items())
    lines += ["", f"{last['machine'].get('processor', '')}; {known}.", ""]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
