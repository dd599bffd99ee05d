"""Weights alone at 8, 4, 3 and 2 bits: score, bytes and loss of what alula makes, beside other tools at equal bytes.

    python benchmarks/few_bits.py [--networks minilm-spam ...] [--bits 8 4 3 2] [--only NAME ...] [--again]

Everybody quantizes the same layers of the same float graph (normalisations folded), with the same steps: blocks of 64
inputs for transformers, whole output channels for the others; calibration by the same 128 examples of the task. The
recipe of alula that is compared was fixed before, for all networks; other recipes of alula stand beside it. Scores are
of examples that nothing was chosen by. The other tools have a virtual environment of their own:

    python3 -m venv .venv-fewbits && .venv-fewbits/bin/pip install -r benchmarks/peers/requirements-fewbits.txt

Writes results/few_bits.json and few_bits.md. What is done is kept and not done again.
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np

from alula.measurement import describe_machine, versions
from alula.measurement.score import Scores, drop, score
from alula.measurement.score_interval import measure_drop
from alula.task import Task

sys.path.append(str(Path(__file__).resolve().parents[1]))

from benchmarks.networks import cifar, lee50, whisper
from benchmarks.peers.calling import ROOT
from benchmarks.peers.commit import read_commit
from benchmarks.peers.few import Bench, Contender, Network, aware, opened, weights
from benchmarks.peers.files import write_json
from examples.spam.task import task as spam
from examples.vision.task import task as vision
from examples.voice.task import task as voice

RESULTS: Final = Path(__file__).parent / "results"
WORK: Final = ROOT / "runs" / "few_bits"
LEARNED: Final = 200  # steps for each block
GPTQ: Final = "alula: GPTQ in order, zero points"
GPTQ_LEARNED: Final = f"alula: GPTQ in order, biases corrected, then rounding learned in {LEARNED} steps a block"
COMPARED: Final = {"transformer": GPTQ, "recurrent": GPTQ, "convolutions": GPTQ_LEARNED}  # by kind of network
log = logging.getLogger("benchmarks.few_bits")

Row: TypeAlias = dict[str, Any]

NETWORKS: Final[dict[str, Network]] = {
    "minilm-spam": Network(spam, 64, ("Op:Gather", "Op:Gemm"), most=500),
    "minilm-lee50": Network(lee50.task, 64, ("Op:Gather",), halves=False),
    "resnet20-cifar10": Network(cifar.task, None, halves=False, most=1_000, kind="convolutions"),
    "efficientnet-lite0": Network(vision, None, most=250, kind="convolutions"),
    "silero-vad": Network(voice, None, most=250, kind="recurrent"),
    "whisper-tiny.en": Network(lambda: whisper.task(48, 8), 64, ("Op:Gather", "Op:Conv"), halves=False, compared=6),
}
FEW: Final = (4, 3, 2)
TRANSFORMERS: Final = ("transformer",)
CONVOLUTIONS: Final = ("convolutions",)
CONTENDERS: Final[dict[str, Contender]] = {
    GPTQ_LEARNED: Contender(
        weights(sequential=True, rounding="gptq", symmetric=False, bias_correction="data", learned=LEARNED),
        bits=FEW, zero_point=None, kinds=CONVOLUTIONS,
    ),
    GPTQ: Contender(weights(sequential=True, rounding="gptq", symmetric=False), zero_point=None),
    "alula: nearest": Contender(weights()),
    "alula: nearest, zero points": Contender(weights(symmetric=False), bits=FEW, zero_point=None),
    "alula: HQQ, zero points": Contender(weights(rounding="hqq", symmetric=False), bits=FEW, zero_point=None),
    "alula: GPTQ in order": Contender(weights(sequential=True, rounding="gptq"), bits=FEW),
    "alula: GPTQ, zero points, biases corrected": Contender(
        weights(rounding="gptq", symmetric=False, bias_correction="data"),
        bits=FEW, zero_point=None, kinds=("convolutions", "recurrent"),
    ),
    "alula: GPTQ in order, zero points, biases corrected": Contender(
        weights(sequential=True, rounding="gptq", symmetric=False, bias_correction="data"),
        bits=FEW, zero_point=None, kinds=("convolutions", "recurrent"),
    ),
    "alula: AWQ, then GPTQ in order, zero points": Contender(
        aware(symmetric=False), bits=FEW, zero_point=None, kinds=TRANSFORMERS
    ),
    f"alula: zero points, rounding learned in {LEARNED} steps a block": Contender(
        weights(symmetric=False, learned=LEARNED), bits=FEW, zero_point=None, kinds=CONVOLUTIONS
    ),
    "ONNX Runtime: nearest": Contender(
        tool="onnxruntime", settings={"algorithm": "nearest"}, bits=(8, 4, 2), zero_point=None, kinds=TRANSFORMERS
    ),
    "ONNX Runtime: HQQ": Contender(
        tool="onnxruntime", settings={"algorithm": "hqq"}, bits=(4,), zero_point=16, kinds=TRANSFORMERS
    ),
    "ONNX Runtime: GPTQ": Contender(
        tool="onnxruntime", settings={"algorithm": "gptq"}, bits=(4,), zero_point=None, kinds=TRANSFORMERS
    ),
    "NNCF: symmetric": Contender(tool="nncf", settings={"mode": "int{bits}_sym"}),
    "NNCF: asymmetric, AWQ, scale estimation": Contender(
        tool="nncf", settings={"mode": "int{bits}_asym", "awq": True, "scale_estimation": True}, bits=(4,),
        zero_point=None, kinds=TRANSFORMERS,
    ),
    "NNCF: symmetric, AWQ, scale estimation": Contender(
        tool="nncf", settings={"mode": "int{bits}_sym", "awq": True, "scale_estimation": True}, bits=(4,),
        kinds=TRANSFORMERS,
    ),
    "optimum-quanto": Contender(tool="quanto", bits=(8, 4, 2), zero_point=16, matrices=True),
    "hqq": Contender(tool="hqq", zero_point=16, matrices=True),
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--bits", nargs="+", type=int, choices=(8, *FEW), default=[8, *FEW])
    parser.add_argument("--only", nargs="+", choices=list(CONTENDERS), default=list(CONTENDERS))
    parser.add_argument("--again", action="store_true", help="do anew what is done")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--work", type=Path, default=WORK, help="where models are kept")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    path = arguments.out / "few_bits.json"
    results = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"networks": {}}
    for name in arguments.networks:
        bench = Bench(NETWORKS[name], (arguments.work / name).resolve())
        found = results["networks"].setdefault(name, {"rows": {}})
        found |= describe(bench)
        for _ in measure(bench, found["rows"], arguments):
            results |= {"machine": describe_machine(), "versions": versions()}
            write_json(path, results)
            path.with_suffix(".md").write_text(render(results), encoding="utf-8")


def describe(bench: Bench) -> Row:
    """What is said of a network once."""
    return {
        "metric": bench.task.metric,
        "score": bench.original.score,
        "examples": bench.original.n,
        "calibration": min(128, len(bench.task.calibration)),
        "weights": sum(rows * columns for rows, columns in bench.shapes),
        "matrices": len(bench.shapes),
        "block": bench.network.block,
        "float_bytes": sum(path.stat().st_size for path in bench.files.values()),
    }


def measure(bench: Bench, rows: dict[str, Row], arguments: argparse.Namespace) -> Iterator[None]:
    """Each width and contender in turn, the fixed recipe of alula first; pauses after each that was done."""
    for bits in arguments.bits:
        row = rows.setdefault(str(bits), {})
        for name, contender in CONTENDERS.items():
            wanted = name in arguments.only and bits in contender.bits and bench.network.kind in contender.kinds
            if wanted and (name not in row or arguments.again):
                row[name] = measured(bench, name, contender, bits)
                log.info("%s, %d bits, %s: %s", bench.task.name, bits, name, row[name])
                yield


def measured(bench: Bench, name: str, contender: Contender, bits: int) -> Row:
    """What comes of a contender at a width."""
    folder = folder_of(bench, bits, name)
    shutil.rmtree(folder, ignore_errors=True)
    started = time.monotonic()
    try:
        files, reports = contender.files(bench, bits, folder)
        run = opened(files)
        seconds, scores = time.monotonic() - started, score(bench.task, run, bench.examples)
    except Exception as error:  # noqa: BLE001 - whatever a tool trips over is told in its place
        return {"failure": " ".join(str(error).split())[:300], "commit": read_commit()}
    errors = bench.errors(run)
    np.savez(folder / "values.npz", scores=scores.values, errors=errors)
    zero = bits if contender.zero_point is None else contender.zero_point
    each = bench.bits_per_weight(bits, zero)
    row = {
        "score": scores.score,
        "drop": interval(bench.task, bench.original, scores),
        "error": float(errors.sum()),
        "bits_per_weight": each,
        "bytes": round(each * sum(rows * columns for rows, columns in bench.shapes) / 8),
        "seconds": round(seconds, 1),
        "versions": {key: value for report in reports for key, value in report.versions.items()},
        "commit": read_commit(),
    }
    if not contender.matrices:
        row["file_bytes"] = sum(path.stat().st_size for path in files.values())
    kept = folder_of(bench, bits, COMPARED[bench.network.kind]) / "values.npz"
    if name != COMPARED[bench.network.kind] and kept.is_file():
        with np.load(kept) as ours:
            row["behind_alula"] = interval(bench.task, summed(bench.task, ours["scores"]), scores)
            row["times_the_error"] = ratio(errors, ours["errors"])
    return row


def folder_of(bench: Bench, bits: int, name: str) -> Path:
    """Where a contender's files are kept."""
    return bench.folder / f"{bits}" / "".join(letter if letter.isalnum() else "-" for letter in name)


def ratio(theirs: np.ndarray, ours: np.ndarray) -> list[float]:
    """How many times as large one error is as another, with the middle 95 % of what resampled rows give."""
    drawn = np.random.default_rng(0).integers(len(ours), size=(1000, len(ours)))
    low, high = np.quantile(theirs[drawn].sum(1) / ours[drawn].sum(1), [0.025, 0.975])
    return [float(theirs.sum() / ours.sum()), float(low), float(high)]


def summed(task: Task, values: np.ndarray) -> Scores:
    """Scores as they were kept."""
    return Scores(values, task.aggregate(values) if task.aggregate else float(values.mean()))


def interval(task: Task, before: Scores, after: Scores) -> list[float]:
    """How much is lost, and the ends of its interval, on the same examples."""
    lost = measure_drop(before.values, after.values, drop(before, after, task), task)
    return [lost.value, *(float(end) for end in (lost.low, lost.high) if end is not None)]


HEAD: Final = f"""# Weights at 8, 4, 3 and 2 bits: alula and the other tools

Written by `benchmarks/few_bits.py`. In each table everybody quantized the same matrices of the same float graph with
steps for as many weights, and was scored on the same examples, which nothing was chosen by.

- *drop*: of the float network's score; *behind alula*: what is scored less than by the first line. Both paired, in
  hundredths. The first line is one recipe for all networks of a kind: {GPTQ.removeprefix("alula: ")}, which was fixed
  before; for convolutions the rounding is learned behind it, which was found on ResNet-20.
- *error*: |y' - y|^2 / |y|^2 of outputs on some of these examples; *times alula's*: its ratio to that of the first line
  (rows of outputs resampled).
- *bits* of a weight: its code and its share of a scale of 16 bits and of a zero point, of as many bits as a code, or of
  16 where the tool keeps it in float; *KB*: of all that was quantized, by these bits.
- *file*: as it is, with what stayed in float. alula keeps scales in 32 bits, and codes of 3 and 2 bits in 4.
"""


def render(results: Row) -> str:
    """The page of results."""
    lines = [HEAD, *summary(results["networks"])]
    for name, found in results["networks"].items():
        steps = f"for {found['block']} inputs" if found["block"] else "for each output channel"
        lines += [
            "", f"## {name}", "",
            f"{found['metric']} {found['score']:.4f} in float, {found['examples']:,} examples; calibrated on",
            f"{found['calibration']}. {found['matrices']} matrices with {found['weights']:,} weights, steps {steps};",
            f"float file {found['float_bytes'] / 1e6:.2f} MB.",
        ]  # fmt: skip
        for bits, row in sorted(found["rows"].items(), key=lambda one: -int(one[0])):
            if not row:
                continue
            lines += [
                "",
                f"### {name}, {bits} bits",
                "",
                COLUMNS,
                *(table_line(*one) for one in first(row, compared(name))),
            ]
            lines += ["", *(f"- {who} gave nothing: {one['failure']}" for who, one in row.items() if "failure" in one)]
    commits, known = said(results)
    return "\n".join([*lines, "", f"{results['machine'].get('processor', '')}; {known}; commit {commits}.", ""])


def compared(network: str) -> str:
    """The recipe of alula's that a network is compared by."""
    return COMPARED[NETWORKS[network].kind]


def first(row: Mapping[str, Row], name: str) -> list[tuple[str, Row]]:
    """A table's lines, one of them in front."""
    return sorted(row.items(), key=lambda line: line[0] != name)


COLUMNS: Final = """\
| what | score | drop (95 %) | behind alula (95 %) | error | times alula's (95 %) | bits | KB | file, KB | made in |
|---|---|---|---|---|---|---|---|---|---|"""


def table_line(name: str, one: Mapping[str, Any]) -> str:
    """A line of a table."""
    if "failure" in one:
        return f"| {name} | | | | | | | | | |"
    file = f"{one['file_bytes'] / 1000:,.0f}" if "file_bytes" in one else ""
    behind = spelled(one["behind_alula"]) if "behind_alula" in one else ""
    times = multiple(one["times_the_error"]) if "times_the_error" in one else ""
    seconds = f"{one['seconds']:.0f} s"
    cells = [name, f"{one['score']:.4f}", spelled(one["drop"]), behind, f"{one['error']:.2g}", times,
             f"{one['bits_per_weight']:.2f}", f"{one['bytes'] / 1000:,.0f}", file, seconds]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def spelled(interval: list[float]) -> str:
    """A difference with its interval."""
    value, *ends = (f"{100 * number:+.2f}" for number in interval)
    return f"{value} ({' to '.join(ends)})" if ends else value


def multiple(interval: list[float]) -> str:
    """A ratio with its interval."""
    value, low, high = interval
    return f"{value:.2f} ({low:.2f} to {high:.2f})"


def summary(networks: Mapping[str, Row]) -> Iterator[str]:
    """One line for each table: the fixed recipe beside the others' highest score, and beside their least error."""
    yield ("| network | bits | alula's score | best of the others | its score | it is behind (95 %) "
           "| alula's error | least of theirs | times alula's (95 %) |")  # fmt: skip
    yield "|---|---|---|---|---|---|---|---|---|"
    for name, found in networks.items():
        for bits, row in sorted(found["rows"].items(), key=lambda one: -int(one[0])):
            others = {who: one for who, one in row.items() if not who.startswith("alula") and "score" in one}
            if compared(name) in row and others and all("behind_alula" in one for one in others.values()):
                best = max(others, key=lambda who: (others[who]["score"], -others[who]["error"]))
                closest = min(others, key=lambda who: float(others[who]["error"]))
                ours, one = row[compared(name)], others[best]
                times = multiple(others[closest]["times_the_error"])
                yield (f"| {name} | {bits} | {ours['score']:.4f} | {best} | {one['score']:.4f} | "
                       f"{spelled(one['behind_alula'])} | {ours['error']:.2g} | {closest} | {times} |")  # fmt: skip


def said(results: Row) -> tuple[str, str]:
    """Commits and versions."""
    every = [one for found in results["networks"].values() for row in found["rows"].values() for one in row.values()]
    theirs = {key: value for one in every for key, value in one.get("versions", {}).items()}
    known = ", ".join(f"{key} {value}" for key, value in (results["versions"] | theirs).items())
    return ", ".join(sorted({one["commit"] for one in every})), known


if __name__ == "__main__":
    main()
