"""How much of a score is the luck of the calibration draw: int8 after ten draws each of 32, 128 and 512 samples.

    python benchmarks/calibration_luck.py [--networks resnet20 ...] [--sizes 32 128 512] [--methods ...] [--again]

Of each network alula's quantization stands beside ONNX Runtime's and NNCF's, all with the same draws, and all run by
ONNX Runtime on the same examples, which nothing was calibrated by. Nothing is chosen by the score. A network, size and
method that is done is kept and not done again. Writes results/calibration_luck.json and calibration_luck.md.
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
import onnxruntime

import alula
from alula.measurement import describe_machine, versions
from alula.numerics.ranges import Entropy, MeanSquaredError, Percentile
from alula.techniques.technique import Technique
from benchmarks.networks.drawn import NETWORKS, Batch, Network
from benchmarks.peers.calling import Method, call_all, require_peers
from benchmarks.peers.commit import read_commit
from benchmarks.peers.files import Feed, write_feeds
from benchmarks.peers.luck import Row, render

RESULTS: Final = Path(__file__).parent / "results"
WORK: Final = Path("out/benchmarks/calibration_luck")
SIZES: Final = (32, 128, 512)
DRAWS: Final = 10
log = logging.getLogger("benchmarks.calibration_luck")

OURS: Final[dict[str, Technique]] = {
    "alula": alula.Quantize(),
    "alula, percentile": alula.Quantize(range=Percentile()),
    "alula, squared error": alula.Quantize(range=MeanSquaredError()),
    "alula, entropy": alula.Quantize(range=Entropy()),
    "alula, weights of 4 bits": alula.Quantize(weight_bits=4),
    "alula, weights of 4 bits, searched": alula.Quantize(weight_bits=4, weight_search=True),
}
THEIRS: Final = ("ORT, MinMax", "ORT, Percentile", "ORT, Entropy", "NNCF")
METHODS: Final = ("alula", *THEIRS, *(name for name in OURS if name != "alula"))

Results: TypeAlias = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--sizes", nargs="+", type=int, default=list(SIZES))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--draws", type=int, default=DRAWS)
    parser.add_argument("--again", action="store_true", help="measure anew what is there already")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    log.setLevel(logging.INFO)
    require_peers()
    path, commit = arguments.out / "calibration_luck.json", read_commit()
    results = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"rows": {}, "float": {}}
    for key, row in measure(results, arguments):
        results["rows"][key] = row | {"commit": commit}
        results |= {"machine": describe_machine(), "versions": versions()}
        path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        path.with_suffix(".md").write_text(render(results), encoding="utf-8")


def measure(results: Results, arguments: argparse.Namespace) -> Iterator[tuple[str, Row]]:
    """Each row that is not there yet."""
    for name in arguments.networks:
        wanted = [(size, method) for size in arguments.sizes for method in arguments.methods
                  if arguments.again or f"{name} / {size} / {method}" not in results["rows"]]  # fmt: skip
        network = NETWORKS[name]()
        wanted = [(size, method) for size, method in wanted if size < len(network.pool)]
        if not wanted:
            continue
        source = WORK / name / "float.onnx"
        source.parent.mkdir(parents=True, exist_ok=True)
        network.model.save(source)
        labels = np.concatenate([labels for _, labels in network.test])  # [n]
        original = logits_of(source, network.test)  # [n, classes]
        results["float"][name] = {"title": network.title, "right": digits(original.argmax(-1) == labels)}
        for size, method in wanted:
            log.info("%s, %d samples: %s", name, size, method)
            made = make(network, source, size, method, arguments.draws)
            yield f"{name} / {size} / {method}", scored(made, network.test, labels, original)


def make(network: Network, source: Path, size: int, method: str, draws: int) -> Iterator[Path | str]:
    """What a method makes by each draw, one at a time; or why it made nothing."""
    folder = source.parent / f"{size}-{''.join(letter for letter in method if letter.isalnum())}"
    shutil.rmtree(folder, ignore_errors=True)
    samples = {folder / str(draw): draw_samples(network.pool, size, draw) for draw in range(draws)}
    if method in OURS:
        for place, feeds in samples.items():
            place.mkdir(parents=True)
            alula.quantize(network.model, feeds, technique=OURS[method]).save(place / "model.onnx")
            yield place / "model.onnx"
    else:
        yield from quantize_by_peer(peer(method, network), source, samples)
    shutil.rmtree(folder)


def quantize_by_peer(method: Method, source: Path, samples: dict[Path, list[Feed]]) -> Iterator[Path | str]:
    """The same of another tool, which makes all of them first."""
    calibrations = {}
    for place, feeds in samples.items():
        place.mkdir(parents=True)
        calibrations[place] = (place / "calibration.npz").resolve()
        write_feeds(calibrations[place], feeds)
    for place, report in zip(samples, call_all(method, source.resolve(), calibrations), strict=True):
        yield report.failure or place / report.files[0]


def peer(name: str, network: Network) -> Method:
    """How another tool quantizes a network: of a transformer ONNX Runtime's tool takes MatMul alone, its best there."""
    if name == "NNCF":
        return Method(name, "nncf onnx", {"preset": "mixed", "transformer": network.transformer})
    operators = ["MatMul"] if network.transformer else None
    return Method(name, "onnxruntime static", {"method": name.removeprefix("ORT, "), "operators": operators})


def draw_samples(pool: Sequence[Feed], size: int, draw: int) -> list[Feed]:
    """Samples for calibration, the same for everyone."""
    chosen = np.random.default_rng([size, draw]).choice(len(pool), size, replace=False)
    return [pool[index] for index in chosen.tolist()]


def scored(made: Iterator[Path | str], test: Sequence[Batch], labels: np.ndarray, original: np.ndarray) -> Row:
    """How often each example was filed rightly, and each draw's score and relative squared error of the logits."""
    right, errors, failures = [], [], []
    for one in made:
        if isinstance(one, str):
            failures.append(one)
            continue
        logits = logits_of(one, test)
        right.append(logits.argmax(-1) == labels)
        errors.append(float(np.square(logits - original).sum() / np.square(original).sum()))
    times = digits(np.sum(right, axis=0)) if right else ""
    return {"scores": [float(one.mean()) for one in right], "errors": errors, "right": times, "failures": failures}


def digits(counts: np.ndarray) -> str:
    """Small numbers, a letter each: 0 to 9, then a to z."""
    return "".join(np.base_repr(int(count), 36).lower() for count in counts)


def logits_of(path: Path, test: Sequence[Batch]) -> np.ndarray:  # [n, classes]
    """What a graph gives, in ONNX Runtime with one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(None, feed)[0] for feed, _ in test])


if __name__ == "__main__":
    main()
