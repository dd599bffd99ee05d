"""LeNet-5 on MNIST with 99 of 100 weights zero: what that costs in score, and what the file then weighs.

    python benchmarks/extreme_sparsity.py [--seeds 3] [--threads 1] [--again]

For each seed a dense network is trained. A copy of it loses its smallest weights, of all layers together, in steps of
the cubic schedule with a little training after each; then it is trained on with its zeros kept. The dense one teaches
it. Both see the same images, moved by up to two pixels. Scores are those of the file in ONNX Runtime on the 10,000 test
images; the difference is paired, image by image. Nothing is chosen by them: all epochs are trained, the last weights
count. One row is one seed; a killed row goes on where it was. Writes results/extreme_sparsity.json and .md.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

import alula
from alula.measurement import describe_machine, versions
from alula.numerics.sparsity import sparsity_at
from alula.targets import Opened
from alula.techniques import Float16, QuantizeWeights, Sparsify, StoreSparse, Technique
from alula.training.loss import Mix
from alula.training.losses import CrossEntropy, SoftLabels
from benchmarks.curves import Mean, mean_of
from benchmarks.networks import mnist
from benchmarks.peers.calling import ROOT
from benchmarks.peers.commit import read_commit
from benchmarks.peers.files import write_json

log = logging.getLogger("benchmarks.extreme_sparsity")
SPARSITY: Final = 0.99
LIMIT: Final = 0.002  # of the score, that may be lost
STEPS: Final = 12  # in which weights go
DENSE: Final = alula.Training(epochs=8, batch_size=128, learning_rate=2e-3, augment=mnist.shift)
BETWEEN: Final = alula.Training(
    epochs=1, batch_size=128, learning_rate=1e-3, schedule="constant", augment=mnist.shift, weight_decay=0
)
AFTER: Final = replace(BETWEEN, epochs=40, learning_rate=3e-3, schedule="cosine")
TAUGHT: Final = Mix(((0.5, CrossEntropy()), (0.5, SoftLabels(temperature=4))))
FORMS: Final[dict[str, tuple[Technique, ...]]] = {
    "as it is": (),
    "zeros left out": (StoreSparse(),),
    "float16, zeros left out": (Float16(), StoreSparse()),
    "int8, zeros left out": (QuantizeWeights(8), StoreSparse()),
}
BATCH: Final = 500  # rows of one call when scoring


@dataclass(frozen=True)
class Settings:
    """Where files are, and which share of the epochs is trained: less than 1 in a smoke run."""

    work: Path
    share: float = 1.0

    def training(self, training: alula.Training, seed: int) -> alula.Training:
        """A training of this seed and share."""
        return replace(training, seed=seed, epochs=training.epochs * self.share)


def main() -> None:
    arguments = read_arguments()
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    for logger in (log, logging.getLogger("alula.training")):  # epochs take minutes
        logger.setLevel(logging.INFO)
    torch.set_num_threads(arguments.threads)
    path = arguments.out / "extreme_sparsity.json"
    results = json.loads(path.read_text()) if path.is_file() else {"rows": {}}
    for seed in range(arguments.seeds):
        key = f"seed {seed}"
        if key in results["rows"] and not arguments.again:
            continue
        started = time.monotonic()
        row = measure(seed, Settings(arguments.work / key.replace(" ", "-"), arguments.share))
        origin = {"machine": describe_machine(), "versions": versions(), "commit": read_commit()}
        results["rows"][key] = {**row, "seconds": round(time.monotonic() - started), **origin}
        log.info("%s: %s", key, row)
        write_json(path, results)
        page = render(list(results["rows"].values()))
        path.with_suffix(".md").write_text(page, encoding="utf-8")


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="how many")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--share", type=float, default=1.0, help="of the epochs: less in a smoke run")
    parser.add_argument("--again", action="store_true", help="measure again what is there already")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "extreme_sparsity", help="where networks are kept")
    arguments = parser.parse_args()
    for folder in (arguments.out, arguments.work):
        folder.mkdir(parents=True, exist_ok=True)
    return arguments


def measure(seed: int, settings: Settings) -> dict[str, Any]:
    """Scores of both networks, and bytes and scores of the files."""
    dense = train_dense(seed, settings)
    sparse = train_sparse(dense, seed, settings)
    forms = {"dense": dense} | {name: in_form(sparse, steps) for name, steps in FORMS.items()}
    rights, files = {}, {}
    for name, model in forms.items():
        target = alula.OnnxRuntime(threads=1)
        artifact = target.build(model, settings.work, name.replace(" ", "-"))
        rights[name] = are_right(target.open(artifact))
        files[name] = {"bytes": artifact.size_bytes, "score": float(rights[name].mean())}
    for name, right in rights.items():
        files[name] |= paired_drop(rights["dense"], right)
    kept, weights = count_weights(sparse)
    return {"weights": weights, "kept": kept, "files": files}


def train_dense(seed: int, settings: Settings) -> alula.Model:
    """The network before anything is taken out."""
    torch.manual_seed(seed)
    inputs, labels = mnist.images("train")
    drawn = alula.export_module(mnist.LeNet5().eval(), torch.from_numpy(inputs[:2]))
    training = settings.training(DENSE, seed)
    trained: alula.Model = alula.finetune(drawn, inputs, labels, training=training, out=settings.work / "dense")
    return trained


def train_sparse(dense: alula.Model, seed: int, settings: Settings) -> alula.Model:
    """The network with its zeros."""
    inputs, labels = mnist.images("train")
    model = dense
    for step in range(1, STEPS + 1):
        model = in_form(model, (Sparsify(sparsity_at(step, final=SPARSITY, steps=STEPS), scope="global"),))
        last = step == STEPS
        training = settings.training(AFTER if last else BETWEEN, seed * 100 + step)
        model = alula.distill(
            model, dense, inputs, labels, loss=TAUGHT, training=training, out=settings.work / f"sparse-{step}"
        )
    return model


def in_form(model: alula.Model, techniques: Sequence[Technique]) -> alula.Model:
    """The model after one technique after another, each for all layers."""
    steps = tuple(alula.Step(technique) for technique in techniques)
    return alula.apply_recipe(model, alula.Recipe(steps)) if steps else model


def are_right(opened: Opened) -> np.ndarray:  # -> bool [10,000]
    """Which test images are classified rightly."""
    inputs, labels = mnist.images("test")
    (name,) = (spec.name for spec in opened.inputs)
    parts = (opened({name: inputs[start : start + BATCH]}) for start in range(0, len(inputs), BATCH))
    answers = np.concatenate([next(iter(outputs.values())).argmax(1) for outputs in parts])
    return np.asarray(answers == labels)


def paired_drop(before: np.ndarray, after: np.ndarray) -> dict[str, float]:  # bool [n], bool [n]
    """How much the score fell, with its 95 % interval (normal) over the images, which both networks saw.

    >>> paired_drop(np.array([True, True]), np.array([True, True]))
    {'drop': 0.0, 'low': 0.0, 'high': 0.0}
    """
    lost = before.astype(np.float64) - after
    half = 1.96 * float(lost.std(ddof=1)) / len(lost) ** 0.5
    return {"drop": float(lost.mean()), "low": float(lost.mean()) - half, "high": float(lost.mean()) + half}


def count_weights(model: alula.Model) -> tuple[int, int]:
    """How many weights of layers are not zero, and how many there are; biases are none."""
    weights = [model.weight(name) for layer in model.layers() for name in layer.weights]
    return sum(int(np.count_nonzero(weight)) for weight in weights), sum(weight.size for weight in weights)


def render(rows: Sequence[dict[str, Any]]) -> str:
    """The page of results."""
    first = rows[0]
    sparsity = 1 - first["kept"] / first["weights"]
    drop = mean_of([row["files"]["as it is"]["drop"] for row in rows])
    verdict = "is met" if drop.value <= LIMIT else "is missed"
    lines = [
        "# LeNet-5 with 99 of 100 weights zero",
        "",
        f"Written by `benchmarks/extreme_sparsity.py`, MNIST, {len(rows)} seeds. {first['kept']:,} of",
        f"{first['weights']:,} weights stay ({sparsity:.2%} are zero), and all 580 biases. Scores are per cent of the",
        "10,000 test images, mean and half width of the 95 % t-interval over seeds. The limit on the drop,",
        f"{100 * LIMIT:.1f} point, {verdict}: {points(drop)}.",
        "",
        "| file | bytes | times smaller | score | drop, points | drop of each seed (95 % interval over the images) |",
        "|---|---|---|---|---|---|",
    ]
    for name in first["files"]:
        found = [row["files"][name] for row in rows]
        size, dense = (mean_of([row["files"][which]["bytes"] for row in rows]).value for which in (name, "dense"))
        score, drop = mean_of([one["score"] for one in found]), mean_of([one["drop"] for one in found])
        each = "; ".join(
            f"{100 * one['drop']:.2f} ({100 * one['low']:.2f} to {100 * one['high']:.2f})" for one in found
        )
        label = name if name == "dense" else f"sparse, {name}"
        lines.append(
            f"| {label} | {size:,.0f} | {dense / size:.1f} | {points(score)} | "
            + (" | |" if name == "dense" else f"{points(drop)} | {each} |")
        )
    known = ", ".join(f"{name} {version}" for name, version in first["versions"].items())
    lines += ["", f"{first['machine'].get('processor', '')}; {known}; commit {rows[-1]['commit']}.", ""]
    return "\n".join(lines)


def points(mean: Mean) -> str:
    """A share in per cent with its interval.

    >>> points(Mean(0.98765, 0.001)), points(Mean(0.5, None))
    ('98.77 ± 0.10', '50.00')
    """
    return f"{100 * mean.value:.2f}" + ("" if mean.half is None else f" ± {100 * mean.half:.2f}")


if __name__ == "__main__":
    main()
