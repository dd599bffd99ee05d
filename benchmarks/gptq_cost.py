"""Seconds and peak memory of GPTQ on a small language model, beside GPTQModel and llm-compressor, and what comes of it.

    python benchmarks/gptq_cost.py [--rows "16 x 512" ...] [--tools alula ...] [--rounds 3] [--again]

SmolLM2-135M, trained on (networks/smollm.py), calibrated on windows of the validation text of WikiText-2; perplexity on
windows of its test text. Each run is a process of its own with two threads; seconds and peak memory are of loading the
float network, calibrating, rounding and writing, without imports. Tools take turns; the median over rounds is given.
The other tools live in virtual environments of their own:

    for tool in gptqmodel llmcompressor; do python3 -m venv .venv-$tool; \
        .venv-$tool/bin/pip install -r benchmarks/peers/requirements-$tool.txt; done

Writes results/gptq_cost.json and .md. A row that is done is kept and not done again.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any, Final, TypeAlias

import numpy as np

import alula
from alula.measurement import describe_machine, versions
from benchmarks.networks import smollm
from benchmarks.peers.calling import ROOT, last_line
from benchmarks.peers.commit import read_commit
from benchmarks.peers.files import ORDER_FILE, Order, Report, read_report, write_json, write_report

RESULTS: Final = Path(__file__).parent / "results"
WORK: Final = ROOT / "runs" / "smollm"
ROWS: Final = {"16 x 512": 16, "128 x 512": 128}
TOOLS: Final = ("alula", "gptqmodel", "llmcompressor")
MEMORY_LIMIT_BYTES: Final = 16 * 2**30
LIMIT_SECONDS: Final = 2400
log = logging.getLogger("benchmarks.gptq_cost")

Row: TypeAlias = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--tools", nargs="+", choices=TOOLS, default=list(TOOLS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--windows", type=int, default=100, help="of the test text, for the perplexity")
    parser.add_argument("--again", action="store_true", help="do rows anew that are done")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--work", type=Path, default=WORK, help="where networks are kept")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    smollm.prepare(arguments.work)
    path = arguments.out / "gptq_cost.json"
    results = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"rows": {}}
    text = np.load(arguments.work / "test.npy")[: arguments.windows]
    if "float" not in results:
        results["float"] = smollm.perplexity(alula.load_model(arguments.work / "model.onnx"), text)
    for row in arguments.rows:
        found = {} if arguments.again else results["rows"].get(row, {})
        for tool, made in measure(ROWS[row], [tool for tool in arguments.tools if tool not in found], arguments, text):
            found[tool] = made
            results["rows"][row] = found
            results |= {"windows": len(text), "machine": describe_machine(), "versions": versions()}
            write_json(path, results)
            path.with_suffix(".md").write_text(render(results), encoding="utf-8")


def measure(
    samples: int, tools: Sequence[str], arguments: argparse.Namespace, text: np.ndarray
) -> Iterator[tuple[str, Row]]:
    """What each tool needs for so many windows, in turns."""
    runs: dict[str, list[Report]] = {tool: [] for tool in tools}
    for turn in range(arguments.rounds):
        for tool in tools[:: 1 if turn % 2 == 0 else -1]:
            if not any(report.failure for report in runs[tool]):
                runs[tool].append(run(tool, samples, arguments.work))
                log.info("%s, %d windows: %.1f s %s", tool, samples, runs[tool][-1].seconds, runs[tool][-1].failure)
    for tool in tools:
        yield tool, summarise(runs[tool], None if runs[tool][-1].failure else score(tool, arguments.work, text))


def run(tool: str, samples: int, work: Path, bits: int = 4) -> Report:
    """One run of a tool, in a process of its own."""
    folder = work / f"made-{tool}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    model = work / ("model.onnx" if tool == "alula" else "hf")
    order = Order(
        tool,
        {"samples": samples, "bits": bits},
        str(model.resolve()),
        str((work / "valid.npy").resolve()),
        MEMORY_LIMIT_BYTES,
    )
    write_json(folder / ORDER_FILE, asdict(order))
    python = sys.executable if tool == "alula" else str(ROOT / f".venv-{tool}" / "bin" / "python")
    quiet = {"GPTQMODEL_CPU_WORKERS": "2", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "2", "PYTHONPATH": str(ROOT)}
    command = [python, "-m", "benchmarks.peers.language", str(folder.resolve())]
    with (folder / "log.txt").open("w") as output:
        try:
            subprocess.run(command, cwd=folder, env=os.environ | quiet, stdout=output, stderr=subprocess.STDOUT,
                           timeout=LIMIT_SECONDS, check=False)  # fmt: skip
        except (subprocess.TimeoutExpired, FileNotFoundError) as error:
            write_report(folder, Report(failure=str(error)))
    return read_report(folder) or Report(failure=last_line((folder / "log.txt").read_text(errors="replace")))


def summarise(reports: Sequence[Report], perplexity: float | None) -> Row:
    """The median of the runs, or why there is none."""
    if reports[-1].failure:
        return {"failure": reports[-1].failure}
    return {
        "seconds": [report.seconds for report in reports],
        "peak_bytes": max(report.peak_bytes for report in reports),
        "baseline_bytes": max(report.baseline_bytes for report in reports),
        "perplexity": perplexity,
        "versions": dict(reports[-1].versions),
        "commit": read_commit(),
    }


def score(tool: str, work: Path, text: np.ndarray) -> float:
    """Perplexity of what a tool made, all by one program: alula's graph with the tool's weights in it."""
    if tool == "alula":
        return smollm.perplexity(alula.load_model(work / "made-alula" / "model.onnx", allow_quantized=True), text)
    made = smollm.with_weights(alula.load_model(work / "model.onnx"), work / f"made-{tool}" / "made")
    return smollm.perplexity(made, text)


HEAD: Final = """# What GPTQ costs on a small language model

Written by `benchmarks/gptq_cost.py`: SmolLM2-135M, trained on for some steps so that it lies on no grid, its layers at
4 bits, symmetric, in blocks of 64, head and table in float. Each run is a process of its own with two threads; seconds
and peak memory are of loading, calibrating, rounding and writing, without imports; median of runs in turns (least to
most). Perplexity is of the test text of WikiText-2.
"""


def render(results: Row) -> str:
    """The page of results."""
    lines = [HEAD, f"In float: {results['float']:.3f} on {results['windows']} windows of {smollm.LENGTH} tokens.", ""]
    for name, row in results["rows"].items():
        lines += [f"## {name} tokens", "", "| tool | seconds | peak memory | perplexity |", "|---|---|---|---|"]
        lines += [_line(tool, made) for tool, made in row.items()]
        known = sorted({f"{key} {value}" for made in row.values() for key, value in made.get("versions", {}).items()})
        commits = sorted({made["commit"] for made in row.values() if "commit" in made})
        lines += [
            "",
            f"{results['machine'].get('processor', '')}; {', '.join(known)}; commit {', '.join(commits)}.",
            "",
        ]
    return "\n".join(lines)


def _line(tool: str, made: Mapping[str, Any]) -> str:
    if "failure" in made:
        return f"| {tool} | failed: {made['failure']} | | |"
    seconds = made["seconds"]
    spread = f"{median(seconds):.1f} ({min(seconds):.1f} to {max(seconds):.1f})"
    return f"| {tool} | {spread} | {made['peak_bytes'] / 2**20:,.0f} MiB | {made['perplexity']:.3f} |"


if __name__ == "__main__":
    main()
