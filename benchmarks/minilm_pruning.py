"""A quarter of the multiplications of MiniLM as a spam filter: layers dropped, heads and features pruned, distilled.

    python benchmarks/minilm_pruning.py [--seeds 0 1 2] [--epochs 4] [--threads 1] [--again [ROWS]] [--out FOLDER]

Three of the six layers are dropped; of the others a quarter of the heads, a quarter of the features in each head, and
more than half of the features between the two products go, and what stays makes up for them by least squares. It then
learns from the original on the 1,000 messages that trained the original's head. Every score is taken on the built
artifact in ONNX Runtime, one message at a time; no choice was made by the held-out messages.

Goes on where it was stopped, row by row. Writes results/minilm_pruning.json and .md; the networks lie in
out/benchmarks/minilm.
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats

import alula
from alula.graph.statistics import collect
from alula.measurement import describe_machine, versions
from alula.measurement.latency import compare_latency, summarise_latency, take_turns
from alula.measurement.score_interval import measure_drop
from alula.recipe import Recipe, Step, apply_recipe, requests_of
from alula.task import Task
from alula.techniques import Drop, Prune
from alula.training.losses import CrossEntropy, Mix, SoftLabels
from alula.training.relations import Hidden
from benchmarks.networks.spam import (
    MessageBatches,
    Messages,
    layer_block,
    mean_length,
    pairs_of,
    spread_by_length,
)  # fmt: skip
from benchmarks.peers.commit import read_commit
from examples.spam.task import TRAINING, read_examples, score, task

log = logging.getLogger("benchmarks.minilm_pruning")
RESULTS = Path(__file__).parent / "results"
WORK = Path("out/benchmarks/minilm")
DROPPED = (1, 2, 4)  # of six layers, by the messages for selection
STEPS = (
    Step(Drop(tuple(layer_block(number) for number in DROPPED))),
    Step(Prune(0.25, criterion="brain surgeon", scope="uniform"), include=("*.attention.self.*",)),
    Step(Prune(0.5417, criterion="l2", scope="uniform", compensate=True), include=("*.intermediate.dense",)),
)
CALIBRATION = 200  # messages of those for training
BATCH = 16
TIMED = 16  # messages, short and long, in one replay
REPLAY_SECONDS = 6.0  # of timed work for each network


@dataclass(frozen=True)
class Setting:
    """What all rows have in common."""

    task: Task
    messages: Messages
    original: alula.Model
    epochs: float
    work: Path
    rows: dict[str, dict[str, Any]] = field(default_factory=dict)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=float, default=4)
    parser.add_argument("--threads", type=int, default=1, help="of training")
    parser.add_argument("--again", nargs="?", const="", help="do rows again that begin so, such as time; or all")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(arguments.threads)
    work = WORK if arguments.out == RESULTS else arguments.out / "networks"
    if arguments.again == "":
        shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True, exist_ok=True)
    spam = task()
    setting = Setting(
        task=spam,
        messages=Messages.of(spam, read_examples()[:TRAINING]),
        original=spam.parts["model"],
        epochs=arguments.epochs,
        work=work,
        rows=read_rows(arguments.out, again=arguments.again),
    )
    for name, make in makers(setting, arguments.seeds).items():
        if name not in setting.rows:
            setting.rows[name] = measure(name, make, setting)
            write(arguments.out, setting)


def read_rows(folder: Path, *, again: str | None) -> dict[str, dict[str, Any]]:
    """The rows that are there, but for those to be done again: all that begin so."""
    path = folder / "minilm_pruning.json"
    rows = json.loads(path.read_text())["rows"] if path.is_file() else {}
    return {name: row for name, row in rows.items() if again is None or not name.startswith(again)}


def makers(setting: Setting, seeds: Sequence[int]) -> dict[str, Callable[[], Any]]:
    """How the network of each row is made, and the two rows of times."""
    made: dict[str, Callable[[], Any]] = {
        "original": lambda: setting.original,
        "three layers": partial(smaller, setting, STEPS[:1]),
        "pruned, not trained": partial(smaller, setting, STEPS),
    }
    first, *others = seeds
    made[f"distilled, seed {first}"] = partial(distilled, setting, first)
    timed = ("original", "three layers", f"distilled, seed {first}")
    for threads in (1, 2):
        made[f"time, {threads} threads"] = partial(compare_times, setting, timed, threads)
    made[f"labels alone, seed {first}"] = partial(from_labels, setting, first)
    for seed in others:
        made[f"distilled, seed {seed}"] = partial(distilled, setting, seed)
        made[f"labels alone, seed {seed}"] = partial(from_labels, setting, seed)
    made[f"six layers, labels alone, seed {first}"] = partial(from_labels, setting, first, whole=True)
    return made


def measure(name: str, make: Callable[[], Any], setting: Setting) -> dict[str, Any]:
    """One row: a network built, scored and counted, or times."""
    started = time.monotonic()
    made = make()
    row = made if isinstance(made, dict) else judged(made, name, setting)
    row |= {"seconds": round(time.monotonic() - started), "commit": read_commit()}
    log.info("%s: %s", name, {key: row[key] for key in ("selection", "held_out", "ratio") if key in row})
    return row


def smaller(setting: Setting, steps: Sequence[Step]) -> alula.Model:
    """The original after some steps, each calibrated on what those before it left."""
    path = setting.work / f"steps-{Recipe(tuple(steps)).fingerprint[:12]}.onnx"
    if not path.is_file():
        model = setting.original
        for step in steps:
            recipe = Recipe((step,))
            requests = requests_of(recipe, model)
            feeds = [feeds for feeds, _ in setting.messages.training[:CALIBRATION]]
            model = apply_recipe(model, recipe, collect(model, feeds, requests) if requests else None)
        model.save(path)
    return alula.load_model(path)


def distilled(setting: Setting, seed: int) -> alula.Model:
    """What is left, trained to answer as the original does, to compute as its layers do, and to be right."""
    student = smaller(setting, STEPS)
    hidden = Hidden(pairs_of(student, setting.original), mask="attention_mask")
    loss = Mix(((1.0, SoftLabels(temperature=2.0)), (1.0, CrossEntropy()), (1.0, hidden)))
    model: alula.Model = alula.distill(
        student,
        setting.original,
        MessageBatches(setting.messages.training, BATCH, dropout=0.1),
        loss=loss,
        training=settings(setting, seed),
        out=setting.work / f"distilled-{seed}",
    )
    return model


def from_labels(setting: Setting, seed: int, *, whole: bool = False) -> alula.Model:
    """What is left, or the whole original, trained by the labels of the same messages: to hold distillation against."""
    model: alula.Model = alula.finetune(
        setting.original if whole else smaller(setting, STEPS),
        MessageBatches(setting.messages.training, BATCH, dropout=0.1),
        loss=CrossEntropy(),
        training=settings(setting, seed),
        out=setting.work / f"{'whole' if whole else 'labels'}-{seed}",
    )
    return model


def settings(setting: Setting, seed: int) -> alula.Training:
    """Of all training. The table of words stays: most of them are in no message that is trained on."""
    return alula.Training(
        epochs=setting.epochs, learning_rate=1e-4, weight_decay=0.01, clip=1.0, warm_up=0.1, seed=seed,
        freeze=("encoder.embeddings.*",),
    )  # fmt: skip


def judged(model: alula.Model, name: str, setting: Setting) -> dict[str, Any]:
    """What the built artifact of a network answers, and what it costs."""
    target = alula.OnnxRuntime(threads=1)
    artifact = target.build(model, setting.work, file_name(name))
    opened = target.open(artifact)

    def run(feeds: Mapping[str, np.ndarray], part: str = "model") -> dict[str, np.ndarray]:  # noqa: ARG001
        return opened(feeds)

    length = mean_length(setting.messages.held_out)
    cost = alula.measure_cost(model, {spec.name: (1, length) for spec in model.inputs})
    right = score(run, setting.messages.held_out)  # [held out]
    row: dict[str, Any] = {
        "macs": cost.total_macs,
        "parameters": cost.parameters,
        "bytes": artifact.path.stat().st_size,
        "selection": float(score(run, setting.messages.selection).mean()),
        "held_out": float(right.mean()),
        "wrong": np.flatnonzero(right == 0).tolist(),
    }
    if name != "original":
        row |= against_original(right, row["macs"], setting)
    return row


def against_original(right: np.ndarray, macs: int, setting: Setting) -> dict[str, Any]:
    """How many multiplications are saved, and how much is lost on the same messages."""
    first = setting.rows["original"]
    before = right_of(first["wrong"], len(right))
    drop = measure_drop(before, right, float(before.mean() - right.mean()), setting.task)
    return {"ratio": first["macs"] / macs, "drop": drop.to_json()}


def right_of(wrong: Sequence[int], count: int) -> np.ndarray:
    """1 for each message that was filed rightly, 0 for the others, [count].

    >>> right_of([1], 3).tolist()
    [1.0, 0.0, 1.0]
    """
    right = np.ones(count)
    right[list(wrong)] = 0
    return right


def file_name(row: str) -> str:
    """The name of the artifact of a row.

    >>> file_name("distilled, seed 0")
    'distilled-seed-0'
    """
    return row.replace(",", "").replace(" ", "-")


def compare_times(setting: Setting, names: Sequence[str], threads: int) -> dict[str, Any]:
    """Milliseconds of a message, and how many times as fast as the original, all in turns."""
    target = alula.OnnxRuntime(threads=threads)
    timed = [feeds for feeds, _ in spread_by_length(setting.messages.held_out, TIMED)]
    runs = {name: replay(target, setting.work / f"{file_name(name)}.onnx", timed) for name in names}
    turns = take_turns(runs, seconds=REPLAY_SECONDS)
    return {
        "milliseconds": {
            name: summarise_latency(taken)["latency_p50_ms"].value / TIMED for name, taken in turns.items()
        },
        "times as fast": {
            name: compare_latency(turns["original"], taken).to_json()
            for name, taken in turns.items()
            if name != "original"
        },
    }


def replay(target: alula.OnnxRuntime, path: Path, timed: Sequence[Mapping[str, np.ndarray]]) -> Callable[[], None]:
    """What is timed: some messages, one at a time."""
    opened = target.open(target.build(alula.load_model(path), path.parent / "timed", path.stem))

    def run() -> None:
        for feeds in timed:
            opened(feeds)

    return run


def write(folder: Path, setting: Setting) -> None:
    """The rows so far, and their page."""
    folder.mkdir(parents=True, exist_ok=True)
    about = {
        "epochs": setting.epochs,
        "timed": TIMED,
        "tokens": mean_length(setting.messages.held_out),
        "messages": {name: len(getattr(setting.messages, name)) for name in ("training", "selection", "held_out")},
        "machine": describe_machine(),
        "versions": versions(),
    }
    data = {"rows": setting.rows, **about}
    (folder / "minilm_pruning.json").write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    (folder / "minilm_pruning.md").write_text(render(data), encoding="utf-8")


def render(data: Mapping[str, Any]) -> str:
    """The page of results."""
    rows, messages = data["rows"], data["messages"]
    known = ", ".join(f"{name} {version}" for name, version in data["versions"].items())
    commits = ", ".join(dict.fromkeys(row["commit"] for row in rows.values()))
    return f"""# A spam filter with a quarter of its multiplications

Written by `benchmarks/minilm_pruning.py`: MiniLM of six layers with a linear head (examples/spam). Layers 1, 2 and 4
are dropped; of the others a quarter of the heads, a quarter of the features in each head, and 54 % of the features
between the two products go, what stays makes up for them by least squares, and then it learns from the original.

{messages["training"]:,} messages train, {messages["selection"]:,} were there to select by (which layers go, what is
pruned and how), {messages["held_out"]:,} are held out: no choice was made by them. MACs are of a message of
{data["tokens"]} tokens, the mean; scores are those of the float file in ONNX Runtime, one message at a time. Points
lost: those of the original less the network's, on the same messages, with their 95 % interval.

{networks_table(rows)}

{summary(rows)}

The original's head was trained on these messages and its encoder never was; in the rows of labels alone all of a
network but its table of words was.

Of {data["timed"]} held-out messages of all lengths, one at a time, the networks in turns:

{times_table(rows)}

{data["machine"].get("processor", "")}; {known}; {data["epochs"]:g} epochs; commit {commits}.
"""


def networks_table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """What each network answers and costs."""
    lines = [
        "| network | million MACs | times fewer | MB | right, held out | points lost | right, selection |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        if "macs" not in row:
            continue
        ratio = f"{row['ratio']:.2f}" if "ratio" in row else ""
        lines.append(
            f"| {name} | {row['macs'] / 1e6:.1f} | {ratio} | {row['bytes'] / 1e6:.1f} | {row['held_out']:.2%} | "
            f"{lost(row)} | {row['selection']:.2%} |"
        )
    return "\n".join(lines)


def lost(row: Mapping[str, Any]) -> str:
    """The points lost and their interval."""
    if "drop" not in row:
        return ""
    value, low, high = (100 * row["drop"][key] for key in ("value", "low", "high"))
    return f"{value:.2f} ({low:.2f} to {high:.2f})"


def summary(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """What each way of training loses over seeds."""
    lines = []
    for way in ("distilled", "labels alone"):
        drops = [100 * row["drop"]["value"] for name, row in rows.items() if name.startswith(f"{way}, seed")]
        if len(drops) > 1:
            half = t_interval(drops)
            lines.append(
                f"{way.capitalize()}: {np.mean(drops):.2f} ± {half:.2f} points lost (95 % t-interval over {len(drops)} "
                f"seeds, on these messages), at most {max(drops):.2f}."
            )
    return "\n".join(lines)


def t_interval(values: Sequence[float]) -> float:
    """Half the length of the 95 % interval of the mean, by Student's t.

    >>> round(t_interval([1.0, 2.0, 3.0]), 2)
    2.48
    """
    return float(stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values)))


def times_table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Milliseconds of a message, and how many times as fast."""
    lines = ["| network | threads | ms a message | times as fast |", "|---|---|---|---|"]
    for row_name, row in rows.items():
        for name, milliseconds in row.get("milliseconds", {}).items():
            ratio = row["times as fast"].get(name)
            speed = "" if ratio is None else f"{ratio['value']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})"
            lines.append(f"| {name} | {row_name.split()[1]} | {milliseconds:.2f} | {speed} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
