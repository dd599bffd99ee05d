"""A width for each layer beside one width for all, at the same average: ResNet-20, CIFAR-10 as JPEG.

    python benchmarks/mixed_precision.py [--depths 20] [--bits 4 3] [--methods ...] [--images 2000] [--again]

Weights alone are codes, of 8, 4, 3 or 2 bits with a step per output channel. 256 training images are what mixes are
chosen by; scores are of test images, which nothing was chosen by. A row that is done is kept and not done again, and
what a row measured before it was stopped is kept too. Writes results/mixed_precision.json and mixed_precision.md.
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np

import alula
from alula.measurement import describe_machine, versions
from alula.search.mixed import PREPARED
from benchmarks.networks import cifar
from benchmarks.peers.commit import read_commit

RESULTS: Final = Path(__file__).parent / "results"
WORK: Final = Path("out/benchmarks/mixed_precision")
CALIBRATION: Final = 256
EVALUATIONS: Final = 100
UNIFORM: Final = "one for all"
METHODS: Final = (UNIFORM, "sum alone", "error", "divergence")
WIDTHS: Final = (8, 4, 3, 2)
log = logging.getLogger("benchmarks.mixed_precision")

Row: TypeAlias = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--depths", nargs="+", type=int, default=[20])
    parser.add_argument("--bits", nargs="+", type=int, default=[4, 3], choices=WIDTHS)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--images", type=int, default=2000, help="test images that are scored")
    parser.add_argument("--again", action="store_true", help="measure rows anew that are there already")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    path = arguments.out / "mixed_precision.json"
    kept = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.is_file() else {}
    wanted = [(depth, bits, method) for depth in arguments.depths for bits in arguments.bits
              for method in arguments.methods]  # fmt: skip
    if arguments.again:
        kept = {key: row for key, row in kept.items() if key not in {row_key(*one) for one in wanted}}
    for rows in measure(kept, wanted, arguments.images):
        result = {"rows": rows, "machine": describe_machine(), "versions": versions()}
        path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        (arguments.out / "mixed_precision.md").write_text(render(result), encoding="utf-8")


def row_key(depth: int, bits: int, method: str) -> str:
    """A row's name in the results."""
    return f"{depth} / {bits} / {method}"


def measure(rows: dict[str, Row], wanted: Sequence[tuple[int, int, str]], images: int) -> Iterator[dict[str, Row]]:
    """The rows, after each that was not among those that are kept."""
    commit = read_commit()
    for depth, bits, method in wanted:
        key = row_key(depth, bits, method)
        if key not in rows:
            model = alula.load_model(RESULTS / "models" / f"resnet{depth}-cifar10-jpeg.onnx")
            row = uniform(model, bits) if method == UNIFORM else mixed(model, bits, method)
            small = row.pop("model")
            scores = {"score": score(small, images), "float_score": score(model, images), "images": images}
            rows[key] = {**row, **scores, "size_bytes": small.size_bytes, "commit": commit}
            log.info("ResNet-%s: %s", key, {name: value for name, value in rows[key].items() if name != "widths"})
            yield rows


def codes(bits: int) -> alula.QuantizeWeights:
    """Weights of a width."""
    return alula.QuantizeWeights(bits=bits, smallest=1)


def calibration() -> np.ndarray:
    """The images that mixes are chosen by."""
    images, _ = cifar.images("train")
    return images[np.random.default_rng(0).permutation(len(images))[:CALIBRATION]]


def uniform(model: alula.Model, bits: int) -> Row:
    """A row: one width for all."""
    started = time.monotonic()
    small = alula.apply_recipe(model, alula.Recipe((*PREPARED, alula.Step(codes(bits)))))
    return {"model": small, "weight_bits": bits, "seconds": round(time.monotonic() - started, 1)}


def mixed(model: alula.Model, bits: int, method: str) -> Row:
    """A row: a width for each layer, by the sum of what each does alone, or by a search for the least harm."""
    started, folder = time.monotonic(), WORK / f"{model.fingerprint[:8]}-{bits}-{method}"
    mixing = alula.Mixing(
        harm="divergence" if method == "divergence" else "error",
        evaluations=1 if method == "sum alone" else EVALUATIONS,
    )
    limit, options = alula.Limit(weight_bits=bits), [None, *map(codes, WIDTHS)]
    found = alula.mix(model, calibration(), limit=limit, options=options, mixing=mixing, out=folder)
    shutil.rmtree(folder)
    return {
        "model": found.model,
        "weight_bits": found.costs["weight_bits"],
        "expected_harm": found.expected_harm,
        "harm": found.harm,
        "uniform_harm": found.uniform_harm,
        "widths": [round(share.bits) for share in found.layers],
        "seconds": round(time.monotonic() - started, 1),
    }


def score(model: alula.Model, images: int) -> float:
    """The share of test images that a network has right; they are drawn, since the file has them class by class."""
    every, classes = cifar.images("test")
    drawn = np.random.default_rng(1).permutation(len(every))[:images]
    inputs, labels = every[drawn], classes[drawn]
    (spec,) = model.inputs
    parts = [inputs[start : start + 500] for start in range(0, len(inputs), 500)]
    answers = [next(iter(model.run({spec.name: part}).values())).argmax(-1) for part in parts]
    return float((np.concatenate(answers) == labels).mean())


HEAD: Final = """# A width for each layer

Written by `benchmarks/mixed_precision.py`: weights as codes of 8, 4, 3 or 2 bits, one width for all layers beside a
width for each, chosen by `alula.mix` on 256 training images. *sum alone*: by the integer programme on what each layer
does alone; *error* and *divergence*: with whole mixes measured after it, by that harm. Harm is in the unit of the row.
In the file codes of 2 and 3 bits take 4. Points are of a hundred test images that nothing was chosen by.

| network | bits at most | method | bits | file, bytes | expected harm | harm | one for all | points | float | seconds |
|---|---|---|---|---|---|---|---|---|---|---|
"""


def render(result: Row) -> str:
    """The page of results."""
    lines, widths = [], []
    for key, row in sorted(result["rows"].items()):
        depth, bits, method = key.split(" / ")
        harms = [f"{row[name]:.3g}" if name in row else "" for name in ("expected_harm", "harm", "uniform_harm")]
        points = [f"{100 * row[name]:.2f}" for name in ("score", "float_score")]
        cells = [
            f"ResNet-{depth}",
            bits,
            method,
            f"{row['weight_bits']:.2f}",
            f"{row['size_bytes']:,}",
            *harms,
            *points,
        ]
        lines.append(f"| {' | '.join(cells)} | {row['seconds']} |")
        if "widths" in row:
            widths.append(f"- ResNet-{depth}, {bits} bits, {method}: {' '.join(map(str, row['widths']))}")
    known = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    images = sorted({f"{row['images']:,}" for row in result["rows"].values()})
    commits = sorted({row["commit"] for row in result["rows"].values()})
    machine = result["machine"].get("processor", "")
    end = f"{', '.join(images)} test images; {machine}; {known}; commit {', '.join(commits)}."
    return HEAD + "\n".join([*lines, "", "Widths of the layers, in their order:", "", *widths, "", end]) + "\n"


if __name__ == "__main__":
    main()
