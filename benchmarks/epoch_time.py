"""How long an epoch of alula's trainer takes, beside a loop written by hand over the same network in PyTorch.

    python benchmarks/epoch_time.py [--rounds 12] [--threads 2] [--networks resnet20 spoken] [--precisions float32 ...]

Both train the same network from the same weights on the same rows in memory: as many rows in a step, the same
optimiser, precision, learning rates and memory layout. They take turns, an epoch of a few batches each; the ratio is
the median over rounds with its interval. alula's epochs are those of one run of `train`, which reports after each step:
while it waits in its report, the other one works. Writes results/epoch_time.json and .md.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

import numpy as np
import torch
from torch import nn
from torch.nn import functional

import alula
from alula.measurement import describe_machine, versions
from alula.measurement.latency import Turn, compare_latency
from alula.training.batches import batches_of
from alula.training.losses import CrossEntropy
from alula.training.trainer import Around, Progress, train
from alula.training.training import learning_rate_at
from benchmarks.networks import cifar, spoken
from benchmarks.peers.commit import read_commit

RESULTS = Path(__file__).parent / "results"
LIMIT: Final = 1.15  # times the seconds of the loop by hand
WARM_UP: Final = 2  # rounds that are not counted
log = logging.getLogger("benchmarks.epoch_time")

Arrays: TypeAlias = tuple[np.ndarray, np.ndarray]
Precision: TypeAlias = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class Case:
    """A network, rows of inputs and labels for one epoch, and the rows of a step."""

    network: Callable[[], nn.Module]
    data: Callable[[], Arrays]
    batch_size: int


def _first(arrays: Arrays, rows: int) -> Arrays:
    return arrays[0][:rows], arrays[1][:rows]


CASES: Final = {
    "resnet20": Case(lambda: cifar.ResNet(20), lambda: _first(cifar.images("train"), 1_280), 128),
    "spoken": Case(spoken.network, lambda: _first(spoken.clips("train"), 1_920), 64),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--networks", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--precisions", nargs="+", choices=["float32", "bfloat16"], default=["float32", "bfloat16"])
    parser.add_argument("--again", action="store_true", help="do rows anew that are done")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("alula").setLevel(logging.WARNING)
    torch.set_num_threads(arguments.threads)
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / "epoch_time.json"
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.is_file() else {}
    for key in [(network, precision) for network in arguments.networks for precision in arguments.precisions]:
        name = ", ".join(key)
        if arguments.again or name not in rows:
            rows[name] = measure(CASES[key[0]], key[1], arguments.rounds)
            log.info("%s: %.3fx (%.3f to %.3f)", name, *(rows[name]["ratio"][end] for end in ("value", "low", "high")))
            result = {"rows": rows, "threads": arguments.threads, "machine": describe_machine(),
                      "versions": versions(), "commit": read_commit()}  # fmt: skip
            path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
            path.with_suffix(".md").write_text(render(result), encoding="utf-8")


def measure(case: Case, precision: Precision, rounds: int) -> dict[str, Any]:
    """Seconds of an epoch of both, and how many times as long alula's takes."""
    torch.manual_seed(0)
    network, (inputs, labels) = case.network(), case.data()
    model = alula.export_module(network.eval(), torch.from_numpy(inputs[:2]))
    epochs = 1 + 2 * math.ceil((rounds + WARM_UP) / 2)  # the first is not counted; then an even number
    training = alula.Training(epochs=epochs, batch_size=case.batch_size, optimiser="sgd", precision=precision)
    batches = batches_of(model, inputs, labels, batch_size=case.batch_size)
    turns = Turns(ByHand(network, inputs, labels, training).train_epoch, len(batches))
    train(model, batches, CrossEntropy(), training, around=Around(report=turns.report))
    ours, theirs = ([Turn(np.array([one])) for one in taken[WARM_UP:]] for taken in (turns.ours, turns.theirs))
    seconds = {"alula": float(np.median(turns.ours[WARM_UP:])), "by hand": float(np.median(turns.theirs[WARM_UP:]))}
    ratio = compare_latency(ours, theirs)  # seconds of alula's epoch by those of the other
    return {"ratio": ratio.to_json(), "seconds": seconds, "batches": len(batches), "batch_size": case.batch_size}


class ByHand:
    """The loop as it is written by hand, at its best: rows picked by index, images in the layout of convolutions."""

    def __init__(self, network: nn.Module, inputs: np.ndarray, labels: np.ndarray, training: alula.Training) -> None:
        self._network = network.train()
        self._network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack it
        self._inputs, self._labels = torch.from_numpy(inputs), torch.from_numpy(labels)
        self._training, self._step = training, 0
        self._optimiser = torch.optim.SGD(
            self._network.parameters(), training.learning_rate, 0.9, weight_decay=training.weight_decay, nesterov=True
        )

    def train_epoch(self) -> float:
        """All rows once, in a drawn order; the mean loss."""
        size, total = self._training.batch_size, 0.0
        count = len(self._labels) // size
        for rows in torch.randperm(len(self._labels))[: count * size].view(count, size):
            self._optimiser.param_groups[0]["lr"] = self._rate(count)
            images = self._inputs[rows].contiguous(memory_format=torch.channels_last)
            with torch.autocast("cpu", torch.bfloat16, enabled=self._training.precision == "bfloat16"):
                logits = self._network(images)
            loss = functional.cross_entropy(logits.float(), self._labels[rows])
            self._optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            self._optimiser.step()
            total += loss.item()
            self._step += 1
        return total / count

    def _rate(self, count: int) -> float:
        return learning_rate_at(self._step, int(self._training.epochs * count), self._training)


class Turns:
    """Lets another one work while a run of alula waits in its report: A, A B, B A, A B, B A, ...

    The first epoch of alula's is not counted, for nobody saw it begin; each later one makes a round with the epoch of
    the other that stands beside it.

    Attributes:
        ours: seconds of each of alula's epochs.
        theirs: seconds of each epoch of the other.
    """

    def __init__(
        self, other: Callable[[], object], batches: int, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self.ours: list[float] = []
        self.theirs: list[float] = []
        self._other, self._batches, self._clock = other, batches, clock
        self._since = 0.0

    def report(self, progress: Progress) -> None:
        """Told of a step: at the end of an epoch note its seconds, and after every second one let the other work."""
        epoch, within = divmod(progress.step, self._batches)
        if within:
            return
        if epoch > 1:
            self.ours.append(self._clock() - self._since)
        for _ in range(2 if epoch % 2 == 0 else 0):
            started = self._clock()
            self._other()
            self.theirs.append(self._clock() - started)
        self._since = self._clock()


HEAD: Final = f"""# How long an epoch takes

Written by `benchmarks/epoch_time.py`: an epoch of alula's trainer, beside a loop written by hand over the same network
in PyTorch, with the same rows in memory, optimiser, precision and memory layout; in turns. The ratio is the median over
rounds, with its interval; at most {LIMIT} is wanted.

| network | rows | by hand, s | alula, s | times as long |
|---|---|---|---|---|"""


def render(result: dict[str, Any]) -> str:
    """The page of results."""
    lines = [HEAD]
    for name, row in result["rows"].items():
        ratio, seconds = row["ratio"], row["seconds"]
        rows = f"{row['batches']} x {row['batch_size']}"
        bounds = f"{ratio['value']:.3f} ({ratio['low']:.3f} to {ratio['high']:.3f})"
        lines.append(f"| {name} | {rows} | {seconds['by hand']:.4g} | {seconds['alula']:.4g} | {bounds} |")
    known = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    machine = f"{result['machine'].get('processor', '')}, {result['threads']} threads"
    return "\n".join([*lines, "", f"{machine}; {known}; commit {result['commit']}.", ""])


if __name__ == "__main__":
    main()
