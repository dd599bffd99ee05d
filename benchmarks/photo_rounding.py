"""What learned rounding makes of EfficientNet-Lite0 in ten minutes: weights of 4 bits, activations in float or of 8.

    python benchmarks/photo_rounding.py [--bits w4 w4a8] [--candidates ...] [--minutes 10] [--threads 2] [--again]

First each candidate learns by 160 of the 200 calibration photos of examples/vision, without their labels; the one with
the least error of logits on the other 40, of those that stay within the minutes, then learns by all 200. It and
rounding to the nearest are scored by the 800 photos that are there for evaluation, which chose nothing. Where one
candidate is named, nothing is tried. Seconds are of quantizing, calibration with it, and learning. Rows that are done
are kept. Writes results/photo_rounding.json and .md.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
import torch

import alula
from alula.measurement import describe_machine, versions
from alula.techniques.technique import Technique
from benchmarks.peers.commit import read_commit
from benchmarks.peers.scoring import mean_with_interval
from examples.vision.task import CALIBRATION, classifier, normalized, read_photos

RESULTS: Final = Path(__file__).parent / "results"
LEARN: Final = 160  # photos, when a candidate is tried
NEAREST: Final = "nearest"
BATCH: Final = 20
log = logging.getLogger("benchmarks.photo_rounding")

Row: TypeAlias = dict[str, Any]
TECHNIQUES: Final[dict[str, Technique]] = {
    "w4": alula.QuantizeWeights(bits=4, smallest=1),
    "w4a8": alula.Quantize(weight_bits=4, weight_search=True),
}


@dataclass(frozen=True)
class Candidate:
    """Settings, and how many photos a step learns from."""

    rows: int = 16
    settings: alula.Reconstruction = field(default_factory=alula.Reconstruction)


CANDIDATES: Final = {
    f"{granularity}, {steps} steps of {rows}, rate {rate:g}": Candidate(
        rows, alula.Reconstruction(granularity=granularity, steps=steps, calls=1, learning_rate=rate)
    )
    for granularity in ("layer", "block")
    for rows, steps in ((16, 250), (8, 500))
    for rate in (0.01, 0.03)
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bits", nargs="+", choices=list(TECHNIQUES), default=list(TECHNIQUES))
    parser.add_argument("--candidates", nargs="+", choices=list(CANDIDATES), default=list(CANDIDATES))
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--again", action="store_true", help="do rows anew that are done")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(arguments.threads)
    path, commit = arguments.out / "photo_rounding.json", read_commit()
    result = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"tried": {}, "rows": {}}
    photos = read_photos()
    original = alula.apply_recipe(classifier(), alula.Recipe((alula.Step(alula.FoldBatchNorm()),)))
    for table, key, row in measure(result, original, photos, arguments):
        result[table][key] = row | {"commit": commit, "threads": arguments.threads}
        result |= {"minutes": arguments.minutes, "machine": describe_machine(), "versions": versions()}
        log.info("%s: %s", key, {name: value for name, value in row.items() if name != "right"})
        path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        path.with_suffix(".md").write_text(render(result), encoding="utf-8")


def measure(
    result: Row, original: alula.Model, photos: list[tuple[np.ndarray, int]], arguments: argparse.Namespace
) -> Iterator[tuple[str, str, Row]]:
    """Each row that is not there yet: the table that it belongs to, its name, and what it holds."""
    images = np.stack([normalized(photo) for photo, _ in photos[:CALIBRATION]])
    learn, held_out = images[:LEARN], images[LEARN:]
    if "float" not in result["rows"] or arguments.again:
        yield "rows", "float", score(original, photos[CALIBRATION:])
    for bits in arguments.bits:
        tried = (NEAREST, *arguments.candidates) if len(arguments.candidates) > 1 else ()
        for name in tried:
            key = f"{bits} / {name}"
            if key not in result["tried"] or arguments.again:
                made, row = make(original, learn, bits, CANDIDATES.get(name))
                yield "tried", key, row | {"error": relative_error(made, original, held_out)}
        chosen = best(result["tried"], bits, 60 * arguments.minutes) if tried else arguments.candidates[0]
        for name in (NEAREST, chosen):
            key = f"{bits} / {name}"
            if key not in result["rows"] or arguments.again:
                made, row = make(original, images, bits, CANDIDATES.get(name))
                yield "rows", key, row | score(made, photos[CALIBRATION:])


def best(tried: dict[str, Row], bits: str, seconds: float) -> str:
    """The candidate of least error of those that were within the seconds; it may be rounding to the nearest."""
    within = {key: row for key, row in tried.items() if key.startswith(f"{bits} / ") and row["seconds"] <= seconds}
    return min(within, key=lambda key: float(within[key]["error"])).removeprefix(f"{bits} / ")


def make(original: alula.Model, images: np.ndarray, bits: str, candidate: Candidate | None) -> tuple[alula.Model, Row]:
    """A quantized network, and what it took: seconds on the clock and of the processor, and what else ran."""
    load, clock, processor = os.getloadavg()[0], time.monotonic(), time.process_time()
    made = alula.quantize(original, images, technique=TECHNIQUES[bits])
    calibrated = time.monotonic()
    if candidate is not None:
        starts = range(0, len(images), candidate.rows)
        feeds = [{"images": images[start : start + candidate.rows]} for start in starts]
        made = alula.reconstruct(made, original, feeds, settings=candidate.settings)
    return made, {
        "seconds": round(time.monotonic() - clock, 1),
        "seconds_of_calibration": round(calibrated - clock, 1),
        "processor_seconds": round(time.process_time() - processor, 1),
        "load": [round(load, 1), round(os.getloadavg()[0], 1)],
    }


def relative_error(model: alula.Model, original: alula.Model, images: np.ndarray) -> float:
    """Squared error of the logits, as a share of their square."""
    wanted = logits_of(original, images)
    return float(np.square(logits_of(model, images) - wanted).sum() / np.square(wanted).sum())


def logits_of(model: alula.Model, images: np.ndarray) -> np.ndarray:  # [n, 1000]
    """What a network gives."""
    starts = range(0, len(images), BATCH)
    return np.concatenate([model.run({"images": images[start : start + BATCH]})["logits"] for start in starts])


def score(model: alula.Model, photos: list[tuple[np.ndarray, int]]) -> Row:
    """Which photos a network has right, a digit each."""
    starts = range(0, len(photos), BATCH)
    parts = (np.stack([normalized(photo) for photo, _ in photos[start : start + BATCH]]) for start in starts)
    guesses = np.concatenate([logits_of(model, part).argmax(-1) for part in parts])
    right = guesses == np.array([label for _, label in photos])
    return {"score": float(right.mean()), "right": "".join("01"[int(one)] for one in right)}


HEAD: Final = """# Learned rounding in ten minutes

Written by `benchmarks/photo_rounding.py`: EfficientNet-Lite0, weights of 4 bits with a step per output channel, ranges
of weights by least squared error, activations in float (w4) or of 8 bits (w4a8). Drop: from the float network on the
same photos, in points of a hundred, paired, with a normal 95 % interval. Load: processes that wanted a core, at the
start and at the end; above the number of threads, something else ran and the seconds are too many.
"""


def render(result: Row) -> str:
    """The page of results."""
    rows, tried = result["rows"], result["tried"]
    original = np.array([int(digit) for digit in rows["float"]["right"]])
    said = f"In float {100 * original.mean():.2f}, on {len(original)} photos. At most {result['minutes']:g} minutes."
    lines = [HEAD, said, "",
             "| bits | rounding | score | drop (95 %) | seconds | processor seconds | load |",
             "|---|---|---|---|---|---|---|"]  # fmt: skip
    for key, row in rows.items():
        if key != "float":
            mean, low, high = mean_with_interval(original - np.array([int(digit) for digit in row["right"]]))
            drop = f"{100 * mean:+.2f} ({100 * low:+.2f} to {100 * high:+.2f})"
            lines.append(f"| {key.replace(' / ', ' | ')} | {100 * row['score']:.2f} | {drop} | {_cost(row)} |")
    said = f"What was tried, by {LEARN} photos; error of the logits on {CALIBRATION - LEARN} others, as a share:"
    head = ["| bits | rounding | error | seconds | processor seconds | load |", "|---|---|---|---|---|---|"]
    lines += ["", said, "", *head] if tried else []
    lines += [f"| {key.replace(' / ', ' | ')} | {row['error']:.4f} | {_cost(row)} |" for key, row in tried.items()]
    commits = sorted({row["commit"] for row in (*rows.values(), *tried.values())})
    known = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    return "\n".join(
        [*lines, "", f"{result['machine'].get('processor', '')}; {known}; commit {', '.join(commits)}.", ""]
    )


def _cost(row: Row) -> str:
    return f"{row['seconds']} | {row['processor_seconds']} | {row['load'][0]}, {row['load'][1]}"


if __name__ == "__main__":
    main()
