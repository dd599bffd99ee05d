"""Quantization without data beside quantization with data: ResNet-20 on CIFAR-10, JPEG.

    python benchmarks/data_free.py [--rows 128] [--steps 200] [--techniques int8 ...]

Each technique is calibrated by training images, by images made up from what batch normalisations remember, and by
normal numbers; biases are corrected by means of data, and by normalisations alone. Training images, and the 2,000 test
images of the score, are drawn at random. Nothing is chosen by the score. Rows that are done, and images that are made
up, are kept. Writes results/data_free.json and data_free.md.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np

import alula
from alula.measurement import describe_machine
from alula.numerics.ranges import MeanSquaredError
from alula.techniques.technique import Technique
from benchmarks.learned_rounding import scored
from benchmarks.networks.cifar import drawn
from benchmarks.peers.commit import read_commit

RESULTS: Final = Path(__file__).parent / "results"
WORK: Final = Path("out/benchmarks/data_free")
TEST: Final = 2_000  # rows
SOURCES: Final = ("training images", "made-up images", "normal numbers")
log = logging.getLogger("benchmarks.data_free")

CALIBRATED: Final[dict[str, Technique]] = {
    "int8": alula.Quantize(),
    "weights of 4 bits, activations of 8": alula.Quantize(weight_bits=4),
    "4 bits both": alula.Quantize(weight_bits=4, activation_bits=4, range=MeanSquaredError()),
    "GPTQ, 4 bits": alula.QuantizeWeights(bits=4, rounding="gptq", smallest=1),
    "GPTQ, 3 bits": alula.QuantizeWeights(bits=3, rounding="gptq", smallest=1),
}
BY: Final[dict[str, Literal["data", "normalisations"] | None]] = {
    "as they are": None, "by normalisations": "normalisations", "by training images": "data",
}  # fmt: skip
CORRECTED: Final[dict[str, Technique]] = {
    f"{bits} bits, biases {said}": alula.QuantizeWeights(bits=bits, smallest=1, bias_correction=by)
    for bits in (4, 3)
    for said, by in BY.items()
}


HEAD: Final = f"""# Quantization without data

Written by `benchmarks/data_free.py`: ResNet-20 on CIFAR-10 (JPEG), {{calibration}} images to calibrate by, made up in
{{steps}} steps; {TEST:,} test images for the score, drawn at random. Differences of a point tell nothing.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=128, help="for calibration")
    parser.add_argument("--steps", type=int, default=200, help="of making images up")
    parser.add_argument("--techniques", nargs="+", choices=[*CALIBRATED, *CORRECTED], default=[*CALIBRATED, *CORRECTED])
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    path = RESULTS / "data_free.json"
    result = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"rows": {}}
    original, test = alula.load_model(RESULTS / "models" / "resnet20-cifar10-jpeg.onnx"), drawn("test", TEST)
    result.setdefault("float", scored(original, test))
    result |= {"calibration": arguments.rows, "steps": arguments.steps}
    images, _ = drawn("train", arguments.rows)
    given = dict(zip(SOURCES, (images, made_up(original, arguments.rows, arguments.steps), noise(images)), strict=True))
    for name in arguments.techniques:
        for source in given if name in CALIBRATED else SOURCES[:1]:
            if source not in result["rows"].setdefault(name, {}):
                made = alula.quantize(original, given[source], technique=(CALIBRATED | CORRECTED)[name])
                result["rows"][name][source] = scored(made, test)
                log.info("%s, %s: %.4f", name, source, result["rows"][name][source])
                result |= {"machine": describe_machine(), "commit": read_commit()}
                path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    (RESULTS / "data_free.md").write_text(render(result), encoding="utf-8")


def made_up(model: alula.Model, rows: int, steps: int) -> np.ndarray:
    """Images that give batch normalisations what they remember; kept, since they take minutes."""
    path = WORK / f"{rows}-{steps}.npy"
    if not path.is_file():
        started = time.monotonic()
        images = alula.synthesise(model, rows, steps=steps)["images"]
        log.info("%d images made up in %.0f s", rows, time.monotonic() - started)
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, images)
    return np.asarray(np.load(path))


def noise(images: np.ndarray) -> np.ndarray:
    """Normal numbers in their shape."""
    return np.random.default_rng(0).standard_normal(images.shape).astype(np.float32)


def render(result: dict[str, Any]) -> str:
    """The page of results."""

    def cells(name: str) -> str:
        found = result["rows"].get(name, {})
        return " | ".join(f"{100 * found[one]:.2f}" if one in found else "" for one in SOURCES)

    alone = [f"| {name} | {100 * found[SOURCES[0]]:.2f} |" for name, found in result["rows"].items()
             if name in CORRECTED and found]  # fmt: skip
    return "\n".join([
        *HEAD.format(**result).splitlines(), "",
        f"In float: {100 * result['float']:.2f} points. Normal numbers are on the scale of the images here.", "",
        f"| technique, calibrated by | {' | '.join(SOURCES)} |", "|---|---|---|---|",
        *[f"| {name} | {cells(name)} |" for name in CALIBRATED if name in result["rows"]], "",
        "Weights alone, to the nearest:", "", "| weights | score |", "|---|---|", *alone, "",
        f"{result['machine'].get('processor', '')}; commit {result['commit']}.", "",
    ])  # fmt: skip


if __name__ == "__main__":
    main()
