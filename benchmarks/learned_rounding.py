"""What learned rounding gives back of what a few bits take: ResNet-20 on CIFAR-10, JPEG.

    python benchmarks/learned_rounding.py [--bits w4 w3 w2 w4a4] [--methods nearest layer block] [--steps 1000]

Weights of 4, 3 and 2 bits with activations in float, and both of 4 bits; ranges by least squared error, rounded to the
nearest, then layer by layer and block by block. Rows are drawn at random, since the files hold one class after another:
1,024 training images without their labels for calibration, 2,000 test images for the score. Nothing is chosen by the
score. A row that is done is kept and not done again. Writes results/learned_rounding.json and learned_rounding.md.
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
import torch

import alula
from alula.measurement import describe_machine, versions
from alula.numerics.ranges import MeanSquaredError
from alula.techniques.technique import Technique
from benchmarks.networks import cifar
from benchmarks.peers.commit import read_commit

RESULTS: Final = Path(__file__).parent / "results"
WORK: Final = Path("out/benchmarks/rounding")
CALIBRATION, TEST = 1_024, 2_000  # rows
NEAREST: Final = "nearest"
METHODS: Final = (NEAREST, "layer", "block")
log = logging.getLogger("benchmarks.learned_rounding")

Row: TypeAlias = dict[str, Any]
TECHNIQUES: Final[dict[str, Technique]] = {
    **{f"w{bits}": alula.QuantizeWeights(bits=bits, smallest=1) for bits in (4, 3, 2)},
    "w4a4": alula.Quantize(weight_bits=4, activation_bits=4, weight_search=True, range=MeanSquaredError()),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bits", nargs="+", choices=list(TECHNIQUES), default=list(TECHNIQUES))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--steps", type=int, default=1000, help="for each layer or block")
    parser.add_argument("--learning-rate", type=float, default=1e-2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--again", action="store_true", help="do rows anew that are done")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--work", type=Path, default=WORK, help="where the state of a row is kept")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(arguments.threads)
    commit = read_commit()
    path = arguments.out / "learned_rounding.json"
    result = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"rows": {}}
    original, images, test = float_network(), cifar.drawn("train", CALIBRATION)[0], cifar.drawn("test", TEST)
    result.setdefault("float", scored(original, test))
    for bits in arguments.bits:
        for method in arguments.methods:
            steps = 0 if method == NEAREST else arguments.steps
            key = f"{bits} / {method} / {steps}"
            if key in result["rows"] and not arguments.again:
                continue
            settings = None if method == NEAREST else alula.Reconstruction(
                granularity=method, steps=steps, learning_rate=arguments.learning_rate)  # fmt: skip
            row = measure(original, images, bits, settings, arguments.work / key.replace(" / ", "-"))
            result["rows"][key] = {**row[1], "score": scored(row[0], test), "commit": commit,
                                   "learning_rate": arguments.learning_rate}  # fmt: skip
            result |= {"threads": arguments.threads, "machine": describe_machine(), "versions": versions()}
            log.info("%s: %.4f, %s s", key, result["rows"][key]["score"], result["rows"][key]["seconds"])
            path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
            (arguments.out / "learned_rounding.md").write_text(render(result), encoding="utf-8")


def float_network() -> alula.Model:
    """ResNet-20 with its normalisations folded."""
    path = RESULTS / "models" / "resnet20-cifar10-jpeg.onnx"
    if not path.is_file():
        raise SystemExit(f"no {path}: run benchmarks/cifar_reference.py --depths 20 first")
    return alula.apply_recipe(alula.load_model(path), alula.Recipe((alula.Step(alula.FoldBatchNorm()),)))


def measure(
    original: alula.Model, images: np.ndarray, bits: str, settings: alula.Reconstruction | None, work: Path
) -> tuple[alula.Model, Row]:
    """A quantized network, and how long its rounding took."""
    quantized = alula.quantize(original, images, technique=TECHNIQUES[bits])
    started = time.monotonic()
    if settings is None:
        return quantized, {"seconds": 0}
    made = alula.reconstruct(quantized, original, images, settings=settings, out=work)
    seconds = round(time.monotonic() - started)
    shutil.rmtree(work)  # the state of a row that is done
    notes = [str(note) for note in made.notes[len(quantized.notes) :]]
    return made, {"seconds": seconds, "notes": notes}


def scored(model: alula.Model, test: tuple[np.ndarray, np.ndarray]) -> float:
    """The share of test images that a network has right."""
    inputs, labels = test
    parts = (inputs[start : start + 500] for start in range(0, len(inputs), 500))
    answers = [next(iter(model.run({"images": part}).values())).argmax(-1) for part in parts]
    return float((np.concatenate(answers) == labels).mean())


HEAD: Final = f"""# What learned rounding gives back

Written by `benchmarks/learned_rounding.py`: ResNet-20 on CIFAR-10 (JPEG), ranges by least squared error,
{CALIBRATION:,} unlabelled training images for calibration, {TEST:,} test images for the score, both drawn at random.
One seed, and a score of {TEST:,} images: differences of a point or two tell nothing. Seconds are of the learning alone.
"""


def render(result: Row) -> str:
    """The page of results."""
    lines = [_line(key, row) for key, row in result["rows"].items()]
    machine = f"{result['machine'].get('processor', '')}, {result['threads']} threads"
    return "\n".join([HEAD, f"In float: {100 * result['float']:.2f} points.", "",
                      "| bits | rounding | steps | learning rate | score | seconds |", "|---|---|---|---|---|---|",
                      *lines, "", f"{machine}; commit {', '.join(_commits(result))}.", ""])  # fmt: skip


def _line(key: str, row: Row) -> str:
    bits, method, steps = key.split(" / ")
    rate = "" if method == NEAREST else row["learning_rate"]
    return f"| {bits} | {method} | {steps} | {rate} | {100 * row['score']:.2f} | {row['seconds']} |"


def _commits(result: Row) -> Sequence[str]:
    return sorted({row["commit"] for row in result["rows"].values()})


if __name__ == "__main__":
    main()
