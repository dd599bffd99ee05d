"""Structured pruning by every criterion: the score against the MACs that stay, and against measured latency.

    python benchmarks/pruning_curves.py [--networks mnist spoken] [--seeds 5] [--threads 1] [--again]

LeNet-5 on MNIST, and a network on spoken digits that is tested on a voice it never heard. For each seed a network is
trained, pruned by each criterion to each share of its MACs (the amount of `alula.Prune` is searched by bisection), and
healed by a short training, the same for all. Scores and times are those of the file in ONNX Runtime; the pruned files
and the original take turns. Nothing is chosen by the test data. One row is one network, seed and criterion; a script
that is started again does not repeat rows. Writes results/pruning_curves.json, .md and pruning_curves-<network>.svg.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import nn

import alula
from alula.graph.statistics import Statistics, collect
from alula.measurement import describe_machine, versions
from alula.measurement.latency import compare_latency, summarise_latency, take_turns
from alula.targets import Opened
from alula.techniques.criteria import CRITERIA
from alula.techniques.technique import Context
from benchmarks.curves import Curve, Mean, Panel, amount_for, draw, mean_of
from benchmarks.networks import mnist, spoken
from benchmarks.peers.calling import ROOT
from benchmarks.peers.commit import read_commit
from benchmarks.peers.files import write_json

log = logging.getLogger("benchmarks.pruning_curves")
SHARES: Final = (0.7, 0.5, 0.3, 0.2, 0.1)  # of the MACs, that stay
MULTIPLE: Final = 4  # of channels: ONNX Runtime's blocked convolutions take no other widths, and without are slower
STATISTICS_ROWS: Final = 512
BATCH: Final = 500  # rows of one call when scoring

Rows = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Network:
    """What is pruned, its data by split, how it is trained at first, and how what is left of it is healed."""

    title: str
    make: Callable[[], nn.Module]
    data: Callable[[str], Rows]
    training: alula.Training
    healing: alula.Training
    healing_rows: int
    criteria: tuple[str, ...] = CRITERIA


NETWORKS: Final = {
    "mnist": Network(
        "LeNet-5 on MNIST",
        mnist.LeNet5,
        mnist.images,
        alula.Training(epochs=3, batch_size=128, learning_rate=2e-3),
        alula.Training(epochs=1, batch_size=128, learning_rate=1e-3),
        10_000,
        tuple(name for name in CRITERIA if name != "batch-norm scale"),  # it has no batch normalisation
    ),
    "spoken": Network(
        "Spoken digits, a voice never heard",
        spoken.network,
        spoken.clips,
        alula.Training(epochs=40, batch_size=64, learning_rate=3e-3, augment=spoken.shift_and_mask),
        alula.Training(epochs=4, batch_size=64, learning_rate=2e-3, augment=spoken.shift_and_mask),
        2_000,
    ),
}


@dataclass(frozen=True)
class Settings:
    """Where files are, and how long each pruned file is timed."""

    work: Path
    seconds: float
    healing_share: float = 1.0  # of the healing rows and of the epochs at first: less in a smoke run


def main() -> None:
    arguments = read_arguments()
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    log.setLevel(logging.INFO)
    torch.set_num_threads(arguments.threads)
    path = arguments.out / "pruning_curves.json"
    results = json.loads(path.read_text()) if path.is_file() else {"rows": {}}
    settings = Settings(arguments.work, arguments.seconds, arguments.healing_share)
    for name, seed, criterion in rows_of(arguments.networks, arguments.seeds):
        key = f"{name}, seed {seed}, {criterion}"
        if key in results["rows"] and not arguments.again:
            continue
        started = time.monotonic()
        row = measure(name, seed, criterion, settings)
        origin = {"machine": describe_machine(), "versions": versions(), "commit": read_commit()}
        results["rows"][key] = {**row, "seconds": round(time.monotonic() - started, 1), **origin}
        log.info("%s: %.0f s, %s", key, results["rows"][key]["seconds"], [point["healed"] for point in row["points"]])
        write_json(path, results)
        publish(results["rows"], arguments.out)


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--seeds", type=int, default=5, help="how many")
    parser.add_argument("--threads", type=int, default=1, help="of training; files are timed with one")
    parser.add_argument("--seconds", type=float, default=0.2, help="of timed work for each file")
    parser.add_argument("--again", action="store_true", help="measure again what is there already")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "pruning_curves", help="where networks are kept")
    parser.add_argument("--healing-share", type=float, default=1.0, help="less training: a smoke run")
    arguments = parser.parse_args()
    for folder in (arguments.out, arguments.work):
        folder.mkdir(parents=True, exist_ok=True)
    return arguments


def rows_of(networks: Sequence[str], seeds: int) -> Iterator[tuple[str, int, str]]:
    """All rows, seed by seed, so that what is done when the time is over compares all criteria."""
    for seed in range(seeds):
        for name in networks:
            yield from ((name, seed, criterion) for criterion in NETWORKS[name].criteria)


def measure(name: str, seed: int, criterion: str, settings: Settings) -> dict[str, Any]:
    """Scores and latencies of one network pruned by one criterion to every share."""
    network = NETWORKS[name]
    reference = train_reference(name, seed, settings)
    prune = pruning(reference, criterion, seed, network)
    macs = alula.measure_cost(reference).macs
    runs, points = {"original": open_in(reference, settings, "original")}, []
    rows = tuple(part[: round(network.healing_rows * settings.healing_share)] for part in network.data("train"))
    for share in SHARES:
        amount = amount_for(lambda amount: alula.measure_cost(prune(amount)).macs / macs, share)
        smaller = prune(amount)
        healed = alula.finetune(smaller, *rows, training=replace(network.healing, seed=seed))
        runs[str(share)] = open_in(healed, settings, f"{criterion}-{share}")
        points.append({
            "share": share, "amount": amount, "macs": alula.measure_cost(smaller).macs / macs,
            "pruned": score(open_in(smaller, settings, "pruned"), network),
            "healed": score(runs[str(share)], network),
        })  # fmt: skip
    for point, latency in zip(points, time_in_turns(runs, network, settings.seconds), strict=True):
        point.update(latency)
    return {"original": score(runs["original"], network), "points": points}


def train_reference(name: str, seed: int, settings: Settings) -> alula.Model:
    """The network before pruning, trained once for each seed."""
    network = NETWORKS[name]
    path = settings.work / f"{name}-{seed}.onnx"
    if path.is_file():
        return alula.load_model(path)
    torch.manual_seed(seed)
    inputs, labels = network.data("train")
    drawn = alula.export_module(network.make().eval(), torch.from_numpy(inputs[:2]))
    training = replace(network.training, seed=seed, epochs=network.training.epochs * settings.healing_share)
    trained: alula.Model = alula.finetune(drawn, inputs, labels, training=training)
    trained.save(path)
    return alula.load_model(path)  # as every later row has it


def pruning(reference: alula.Model, criterion: str, seed: int, network: Network) -> Callable[[float], alula.Model]:
    """The network pruned by an amount; what one amount gave is kept."""
    layers = tuple(reference.layers())
    whole = alula.Prune(
        0.5,
        criterion=criterion,  # type: ignore[arg-type]
        scope="global",
        multiple=MULTIPLE,
        seed=seed,
    )
    statistics = watch(reference, whole, network)

    @cache
    def prune(amount: float) -> alula.Model:
        return replace(whole, amount=amount).apply(reference, Context(layers, statistics))

    return prune


def watch(model: alula.Model, technique: alula.Prune, network: Network) -> Statistics:
    """What the criterion asks for, on training rows."""
    inputs, _ = network.data("train")
    name = model.inputs[0].name
    feeds = ({name: inputs[start : start + 64]} for start in range(0, STATISTICS_ROWS, 64))
    return collect(model, feeds, technique.requests(model, model.layers()))


def open_in(model: alula.Model, settings: Settings, name: str) -> Opened:
    """The model as a file in ONNX Runtime, with one thread."""
    target = alula.OnnxRuntime(threads=1)
    return target.open(target.build(model, settings.work / "files", name))


def score(opened: Opened, network: Network) -> float:
    """Share of the test rows that are classified rightly."""
    inputs, labels = network.data("test")
    (name,) = (spec.name for spec in opened.inputs)
    parts = (opened({name: inputs[start : start + BATCH]}) for start in range(0, len(inputs), BATCH))
    answers = np.concatenate([next(iter(outputs.values())).argmax(1) for outputs in parts])
    return float((answers == labels).mean())


def time_in_turns(runs: dict[str, Opened], network: Network, seconds: float) -> list[dict[str, float]]:
    """Median milliseconds of each pruned file for one example, and how many times faster than the original it is."""
    one = network.data("test")[0][:1]
    calls = {name: (lambda opened=opened: opened({opened.inputs[0].name: one})) for name, opened in runs.items()}
    turns = take_turns(calls, seconds=seconds)
    return [
        {
            "latency_ms": summarise_latency(turns[name])["latency_p50_ms"].value,
            "faster": compare_latency(turns["original"], turns[name]).value,
        }
        for name in runs
        if name != "original"
    ]


def publish(rows: dict[str, dict[str, Any]], folder: Path) -> None:
    """Write the page, and a picture of each network that has rows."""
    parts = [
        "# Structured pruning, criterion by criterion",
        "",
        "Written by `benchmarks/pruning_curves.py`. Mean over seeds and the half width of its 95 % t-interval, in per",
        "cent of the test examples. Each network was pruned to a share of its MACs with `alula.Prune`, units being",
        "compared over the whole graph; scored; trained a little further; and scored again, as a file in ONNX Runtime.",
        "*Times faster* is the latency of the original by that of the pruned file, one example, one thread, in turns.",
        f"Widths are multiples of {MULTIPLE}: others fall out of ONNX Runtime's blocked convolutions.",
        "LeNet-5 has no batch normalisations, and so no row by their scales.",
    ]
    for name, network in NETWORKS.items():
        found = {criterion: series(rows, name, criterion) for criterion in network.criteria}
        found = {criterion: seeds for criterion, seeds in found.items() if seeds}
        if found:
            picture = f"pruning_curves-{name}.svg"
            (folder / picture).write_text(draw(panels(network, found)), encoding="utf-8")
            parts += ["", *section(network, found, picture)]
    origin = next(reversed(rows.values()))
    known = ", ".join(f"{name} {version}" for name, version in origin["versions"].items())
    parts += ["", f"{origin['machine'].get('processor', '')}, one thread; {known}; commit {origin['commit']}.", ""]
    (folder / "pruning_curves.md").write_text("\n".join(parts), encoding="utf-8")


def series(rows: dict[str, dict[str, Any]], name: str, criterion: str) -> list[dict[str, Any]]:
    """The rows of a network and criterion, one for each seed."""
    return [row for key, row in rows.items() if key.startswith(f"{name}, ") and key.endswith(f", {criterion}")]


def over_seeds(seeds: Sequence[dict[str, Any]], what: str) -> list[Mean]:
    """Mean over seeds of what was measured at each share."""
    return [mean_of([row["points"][index][what] for row in seeds]) for index in range(len(SHARES))]


def panels(network: Network, found: dict[str, list[dict[str, Any]]]) -> list[Panel]:
    """Score against MACs and against latency, healed and not."""
    level = mean_of([row["original"] for seeds in found.values() for row in seeds]).value

    def curve(criterion: str, what: str, *, timed: bool) -> Curve:
        seeds = found[criterion]
        across = [1 / mean.value if timed else mean.value for mean in over_seeds(seeds, "faster" if timed else "macs")]
        original = mean_of([row["original"] for row in seeds])
        return Curve(criterion, (1.0, *across), (original, *over_seeds(seeds, what)))

    return [
        Panel(
            f"{network.title}, {words}",
            "share of the latency" if timed else "share of the MACs",
            tuple(curve(criterion, what, timed=timed) for criterion in found),
            level,
        )
        for what, words in (("healed", "healed"), ("pruned", "not healed"))
        for timed in (False, True)
    ]


def section(network: Network, found: dict[str, list[dict[str, Any]]], picture: str) -> list[str]:
    """The tables of one network."""
    first = next(iter(found.values()))
    original = mean_of([row["original"] for row in first])
    lines = [
        f"## {network.title}",
        "",
        f"![score against MACs and latency]({picture})",
        "",
        f"Before pruning: {percent(original)} ({len(first)} seeds).",
    ]
    for what, title in (("healed", "Healed"), ("pruned", "Not healed"), ("faster", "Times faster")):
        lines += ["", f"{title}, by the share of the MACs that stays:", ""]
        lines += ["| criterion | " + " | ".join(map(str, SHARES)) + " |", "|---" * (len(SHARES) + 1) + "|"]
        for criterion, seeds in found.items():
            cells = [times(mean) if what == "faster" else percent(mean) for mean in over_seeds(seeds, what)]
            lines.append(f"| {criterion} | " + " | ".join(cells) + " |")
    return lines


def percent(mean: Mean) -> str:
    """A share in per cent with its interval.

    >>> percent(Mean(0.98765, 0.001)), percent(Mean(0.5, None))
    ('98.77 ± 0.10', '50.00')
    """
    return f"{100 * mean.value:.2f}" + ("" if mean.half is None else f" ± {100 * mean.half:.2f}")


def times(mean: Mean) -> str:
    """A ratio with its interval."""
    return f"{mean.value:.2f}" + ("" if mean.half is None else f" ± {mean.half:.2f}")


if __name__ == "__main__":
    main()
