"""ResNet-20 and ResNet-56 on CIFAR-10 as JPEG with fewer multiplications, beside Torch-Pruning.

    python benchmarks/resnet_pruning.py [--rows ...] [--seeds 0 1 2] [--epochs 10] [--again] [--retime]

Each row prunes the reference (benchmarks/cifar_reference.py) to a goal, heals it for the same number of epochs with the
same trainer, taught by the reference, and compares it with the reference on the 10,000 test images, paired, and in
batch-1 latency, in turns. Rows are written to results/resnet_pruning.json as they are done, and not done again;
--retime measures the latency of those that are there once more, on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

import alula
from alula.measurement import describe_machine, versions
from alula.pruning.goal import Stopwatch
from alula.training.loss import Mix
from alula.training.losses import CrossEntropy, SoftLabels
from benchmarks.curves import mean_of
from benchmarks.networks.cifar import images, shift_and_flip
from benchmarks.peers.commit import read_commit

RESULTS: Final = Path(__file__).parent / "results"
PEER: Final = Path(os.environ.get("ALULA_PRUNING_PEER", ".venv-pruning/bin/python"))
WORK: Final = Path("out/benchmarks/resnet_pruning")
HEALING: Final = Mix(((1.0, SoftLabels(temperature=4.0)), (0.5, CrossEntropy())))
LIMITS: Final = {"2.1x": (1.7, 0.3), "3.5x": (2.5, 1.5)}  # of each case: least times faster, most points lost
log = logging.getLogger("benchmarks.resnet_pruning")


@dataclass(frozen=True)
class Case:
    """What is pruned, how far, and by whom."""

    depth: int
    tool: str
    goal: alula.Goal | None
    pruning: alula.Pruning | None = None


SURGEON: Final = alula.Pruning("brain surgeon", scope="sensitivity", blocks=True)
CASES: Final[dict[str, Case]] = {
    "2.1x": Case(20, "alula", alula.Goal(macs=2.1, latency=1.75), SURGEON),
    "3.5x": Case(20, "alula", alula.Goal(macs=3.5, latency=2.55), SURGEON),
    "2.1x torch-pruning": Case(20, "torch-pruning", alula.Goal(macs=2.1)),
    "3.5x torch-pruning": Case(20, "torch-pruning", alula.Goal(macs=3.5)),
    "2.1x by multiplications": Case(20, "alula", alula.Goal(macs=2.1), SURGEON),
    "1x": Case(20, "alula", None),
    "resnet56 2.1x": Case(56, "alula", alula.Goal(macs=2.1), SURGEON),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=float, default=10)
    parser.add_argument("--again", action="store_true", help="measure rows anew that are there")
    parser.add_argument("--retime", action="store_true", help="measure latency anew, of healed models that are kept")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    path = arguments.out / "resnet_pruning.json"
    rows: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    for seed in arguments.seeds:
        for name in arguments.rows:
            key = f"{name} seed {seed}"
            if key not in rows or arguments.again:
                log.info(key)
                row = measure(name, CASES[name], seed, arguments.epochs)
                rows = keep(path, key, row)
            elif arguments.retime:
                rows = keep(path, key, rows[key] | {"latency": time_row(name, CASES[name], seed, arguments.epochs)})


def keep(path: Path, key: str, row: dict[str, Any]) -> dict[str, Any]:
    """Write a row beside those that are there by now: two runs may fill one table."""
    rows: dict[str, Any] = (json.loads(path.read_text()) if path.is_file() else {}) | {key: row}
    path.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    path.with_suffix(".md").write_text(render(rows), encoding="utf-8")
    return rows


def folder(name: str, seed: int, epochs: float) -> Path:
    """Where the models of a row are kept."""
    return WORK / f"{name.replace(' ', '-')}-{seed}-{epochs:g}"


def reference_of(depth: int) -> alula.Model:
    """What is pruned."""
    return alula.load_model(RESULTS / "models" / f"resnet{depth}-cifar10-jpeg.onnx")


def time_row(name: str, case: Case, seed: int, epochs: float) -> dict[str, Any]:
    """How many times faster the healed model is than its reference."""
    healed = alula.load_model(folder(name, seed, epochs) / "healed.onnx")
    log.info("%s seed %d is timed", name, seed)
    return compare(reference_of(case.depth), healed)


def compare(reference: alula.Model, healed: alula.Model) -> dict[str, Any]:
    """Latency of one image on one thread, in turns."""
    image = np.random.default_rng(0).normal(size=(1, 3, 32, 32)).astype(np.float32)
    watch = Stopwatch(reference, alula.OnnxRuntime(threads=1), {"images": image})
    faster: dict[str, Any] = watch.compare(healed, seconds=4.0).to_json()
    return faster


def measure(name: str, case: Case, seed: int, epochs: float) -> dict[str, Any]:
    """One row: pruned, healed, compared."""
    started = time.monotonic()
    reference, work = reference_of(case.depth), folder(name, seed, epochs)
    pruned = prune(reference, case, seed, work)
    training = alula.Training(
        epochs=epochs, batch_size=128, optimiser="sgd", learning_rate=0.05, augment=shift_and_flip, seed=seed
    )
    teacher = alula.Remembered(reference, WORK / "answers")  # asked once for all rows of a seed
    healed = alula.distill(pruned, teacher, *images("train"), loss=HEALING, training=training, out=work)
    healed.save(work / "healed.onnx")
    right = {key: is_right(model) for key, model in (("reference", reference), ("healed", healed))}
    difference = right["healed"] - right["reference"]  # per image
    shapes = {"images": (1, 3, 32, 32)}
    costs = [alula.measure_cost(model, shapes) for model in (reference, healed)]
    return {
        "reference": float(right["reference"].mean()), "healed": float(right["healed"].mean()),
        "unhealed": float(is_right(pruned).mean()), "drop": -float(difference.mean()),
        "drop_interval": 1.96 * float(difference.std(ddof=1)) / len(difference) ** 0.5,
        "macs": costs[0].macs / costs[1].macs, "parameters": costs[0].parameters / costs[1].parameters,
        "latency": compare(reference, healed), "widths": widths(healed), "epochs": epochs,
        "seconds": round(time.monotonic() - started), "commit": read_commit(), "machine": describe_machine(),
        "versions": versions(),
    }  # fmt: skip


def prune(reference: alula.Model, case: Case, seed: int, work: Path) -> alula.Model:
    """The pruned graph, without healing; kept, since timing is never the same twice."""
    path = work / "pruned.onnx"
    if not path.is_file():
        work.mkdir(parents=True, exist_ok=True)
        if case.goal is None:
            reference.save(path)
        elif case.tool == "alula":
            inputs, labels = images("train")
            order = np.random.default_rng(seed).permutation(len(labels))[:1024]
            alula.prune(reference, inputs[order], labels[order], goal=case.goal, pruning=case.pruning).save(path)
        else:
            state = work / "reference.onnx"
            reference.save(state)
            command = [str(PEER), "-m", "benchmarks.peers.slim", str(state), str(path), str(case.goal.macs), str(seed)]
            subprocess.run(command, check=True)
    return alula.load_model(path)


def is_right(model: alula.Model) -> np.ndarray:
    """1 for each test image whose class is found, else 0."""
    inputs, labels = images("test")
    logits = [next(iter(model.run({"images": inputs[i : i + 250]}).values())) for i in range(0, len(labels), 250)]
    right: np.ndarray = (np.concatenate(logits).argmax(1) == labels).astype(np.float64)
    return right


def widths(model: alula.Model) -> list[int]:
    """Output channels of each convolution, in order."""
    return [layer.shape[0] for layer in model.layers() if layer.operator == "Conv"]


def render(rows: dict[str, dict[str, Any]]) -> str:
    """The page of results."""
    lines = [
        "# Pruned residual networks on CIFAR-10, JPEG", "",
        "Written by `benchmarks/resnet_pruning.py`: pruned to the goal, healed by the same trainer with the same",
        "settings and the reference as teacher; 1x is the reference itself, healed so. Drop: points lost on the 10,000",
        "test images, paired, with 95 % interval over the images. Latency: ONNX Runtime, batch 1, one thread, in turns",
        "with the reference.", "",
        "| row | MACs | parameters | latency | reference | not healed | healed | drop | epochs | commit |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for name, row in rows.items():
        latency = row["latency"]
        lines.append(
            f"| {name} | {row['macs']:.2f}x | {row['parameters']:.2f}x | "
            f"{latency['value']:.2f}x ({latency['low']:.2f} to {latency['high']:.2f}) | "
            f"{row['reference']:.2%} | {row['unhealed']:.2%} | {row['healed']:.2%} | "
            f"{100 * row['drop']:.2f} ± {100 * row['drop_interval']:.2f} | {row['epochs']:g} | {row['commit'][:9]} |"
        )
    lines += ["", "Over the seeds, with 95 % t-intervals where there are several:", "", *means(rows)]
    last = next(reversed(rows.values()))
    known = ", ".join(f"{name} {version}" for name, version in last["versions"].items())
    lines += ["", f"{last['machine'].get('processor', '')}; {known}; Torch-Pruning 1.6.1.", ""]
    return "\n".join(lines)


def means(rows: dict[str, dict[str, Any]]) -> list[str]:
    """The table of means over the seeds of each case."""
    cases: dict[str, list[dict[str, Any]]] = {}
    for name, row in rows.items():
        cases.setdefault(name.rpartition(" seed ")[0], []).append(row)
    lines = ["| case | seeds | MACs | latency | drop | limits: latency, drop |", "|---|---|---|---|---|---|"]
    for name, found in cases.items():
        macs, latency = mean_of([row["macs"] for row in found]), mean_of([row["latency"]["value"] for row in found])
        drop = mean_of([100 * row["drop"] for row in found])
        interval = "" if drop.half is None else f" ± {drop.half:.2f}"
        lines.append(
            f"| {name} | {len(found)} | {macs.value:.2f}x | {latency.value:.2f}x | {drop.value:.2f}{interval} | "
            f"{_verdict(name, latency.value, drop.value)} |"
        )
    return lines


def _verdict(case: str, latency: float, drop: float) -> str:
    """What a case was to reach, and whether it did; empty where nothing was set."""
    if case not in LIMITS:
        return ""
    least, most = LIMITS[case]
    words = ["reached" if holds else "missed" for holds in (latency >= least, drop <= most)]
    return f"{least}x {words[0]}, {most} {words[1]}"


if __name__ == "__main__":
    main()
