"""How fast the lifted module trains, beside the PyTorch module that the graph came from.

    python benchmarks/lift_speed.py [--seconds 6] [--threads 2] [--networks resnet18 ...]

One step is forward, loss and backward on one batch, in training mode; both modules take turns on the same batch, and
the ratio is the median over rounds with its interval. Writes results/lift_speed.json and .md.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from alula import export_module, trainable
from alula.measurement import describe_machine, versions
from alula.measurement.latency import compare_latency, summarise_latency, take_turns
from benchmarks.peers.commit import read_commit
from benchmarks.peers.resnet18 import ResNet18

log = logging.getLogger("benchmarks.lift_speed")
RESULTS = Path(__file__).parent / "results"
LIMIT = 1.15  # times the seconds of the module itself


@dataclass(frozen=True)
class Network:
    """A module, and one batch for it."""

    module: nn.Module
    batch: Tensor


class SmallResidual(nn.Module):
    """ResNet-20 (He et al. 2016, section 4.2): images [n, 3, 32, 32] to logits [n, 10]."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        blocks, before = [], 16
        for width in (16, 32, 64):
            for index in range(3):
                blocks.append(Residual(before, width, 2 if index == 0 and width > 16 else 1))
                before = width
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(64, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Logits."""
        logits: Tensor = self.head(self.blocks(self.stem(images)).mean((2, 3)))
        return logits


class Residual(nn.Module):
    """Two 3x3 convolutions around which the input is added."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[n, inputs, h, w] to [n, outputs, h / stride, w / stride]."""
        return torch.relu(self.body(x) + self.shortcut(x))


class Recurrent(nn.Module):
    """Frames [n, 50, 40] through a bidirectional LSTM to logits [n, 20]."""

    def __init__(self) -> None:
        super().__init__()
        self.cells = nn.LSTM(40, 128, batch_first=True, bidirectional=True)
        self.head = nn.Linear(256, 20)

    def forward(self, frames: Tensor) -> Tensor:
        """Logits."""
        states, _ = self.cells(frames)
        logits: Tensor = self.head(states.mean(1))
        return logits


def encoder() -> Network:
    """Four transformer layers of 256, sequences of 64."""
    layer = nn.TransformerEncoderLayer(256, 4, 1024, dropout=0.0, batch_first=True)
    stack = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
    return Network(nn.Sequential(stack, nn.Linear(256, 10)), torch.randn(8, 64, 256))


NETWORKS: dict[str, Callable[[], Network]] = {
    "resnet20": lambda: Network(SmallResidual(), torch.randn(32, 3, 32, 32)),
    "resnet18": lambda: Network(ResNet18(), torch.randn(4, 3, 224, 224)),
    "transformer encoder": encoder,
    "lstm": lambda: Network(Recurrent(), torch.randn(16, 50, 40)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=6.0, help="of timed work for each module")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(arguments.threads)
    rows = {name: measure(name, arguments.seconds) for name in arguments.networks}
    origin = {
        "threads": arguments.threads,
        "machine": describe_machine(),
        "versions": versions(),
        "commit": read_commit(),
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "lift_speed.json").write_text(json.dumps({"rows": rows, **origin}, indent=1) + "\n", encoding="utf-8")
    (RESULTS / "lift_speed.md").write_text(render(rows, origin), encoding="utf-8")


def measure(name: str, seconds: float) -> dict[str, Any]:
    """Milliseconds of a step of both modules, and how many times as long the lifted one takes."""
    torch.manual_seed(0)
    network = NETWORKS[name]()
    lifted = trainable(export_module(network.module.eval(), network.batch))
    runs = {"eager": step_of(network.module.train(), network.batch), "lifted": step_of(lifted.train(), network.batch)}
    turns = take_turns(runs, seconds=seconds)
    ratio = compare_latency(turns["lifted"], turns["eager"])  # seconds of the lifted by those of the eager one
    times = {key: summarise_latency(taken)["latency_p50_ms"].value for key, taken in turns.items()}
    log.info("%s: %.3fx (%.3f to %.3f)", name, ratio.value, ratio.low or 0, ratio.high or 0)
    return {"ratio": ratio.to_json(), "milliseconds": times, "batch": list(network.batch.shape)}


def step_of(module: nn.Module, batch: Tensor) -> Callable[[], None]:
    """One step: forward, a loss, backward."""

    def step() -> None:
        module.zero_grad()
        module(batch).square().mean().backward()

    return step


def render(rows: dict[str, dict[str, Any]], origin: dict[str, Any]) -> str:
    """The page of results."""
    lines = [
        "# How fast the lifted module trains",
        "",
        "Written by `benchmarks/lift_speed.py`: a step (forward, loss, backward, in training mode) of the module",
        "generated from the graph, beside the PyTorch module that was exported; both in turns on one batch. The ratio",
        f"is the median over rounds, with its interval; at most {LIMIT} is wanted.",
        "",
        "| network | batch | module, ms | lifted, ms | times as long |",
        "|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        ratio, times = row["ratio"], row["milliseconds"]
        shape = " x ".join(map(str, row["batch"]))
        bounds = f"{ratio['low']:.3f} to {ratio['high']:.3f}"
        lines.append(
            f"| {name} | {shape} | {times['eager']:.4g} | {times['lifted']:.4g} | {ratio['value']:.3f} ({bounds}) |"
        )
    known = ", ".join(f"{name} {version}" for name, version in origin["versions"].items())
    lines += [
        "",
        f"{origin['machine'].get('processor', '')}, {origin['threads']} threads; {known}; commit {origin['commit']}.",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
