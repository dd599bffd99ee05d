"""Post-training quantization: alula against ONNX Runtime's tools and NNCF, on both runtimes.

    python benchmarks/ptq_peers.py [--rows minilm-spam ...] [--runtimes onnxruntime ...] [--again]
    python benchmarks/ptq_peers.py --samples 8 --seconds 0.2   a smoke run; results stay out of benchmarks/results

For each network and runtime: score on held-out examples, bytes, and latency for one input at a time, of the float
original, of what ``alula compress`` chose, and of each other tool at its best settings; the same calibration data,
the same threads, all timed in turns in one process. A result that is there already is left as it is unless --again.
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from alula.budget import Budget
from alula.graph.model import Model
from alula.measurement import describe_machine, versions
from alula.search.explore import compress
from alula.search.result import Candidate
from alula.targets import Artifact, Target, target_named
from alula.task import Task
from benchmarks.peers.calling import ROOT, call, require_peers
from benchmarks.peers.commit import read_commit
from benchmarks.peers.files import write_feeds, write_json
from benchmarks.peers.rendering import render
from benchmarks.peers.rows import ROWS, Row, methods_for, open_row, record_feeds
from benchmarks.peers.scoring import FLOAT, Contender, compare

log = logging.getLogger("benchmarks.ptq_peers")
RUNTIMES = ("onnxruntime", "openvino")
THREADS = (1, 2)


def main() -> None:
    arguments = read_arguments()
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("benchmarks").setLevel(logging.INFO)
    require_peers()
    results = open_results(arguments.results)
    for name in arguments.rows:
        for runtime in arguments.runtimes:
            key = f"{name} on {runtime}"
            if key in results["rows"] and not arguments.again:
                log.info("%s: already there", key)
                continue
            results["rows"][key] = run_row(ROWS[name], runtime, arguments)
            write_json(arguments.results, results)
            arguments.results.with_suffix(".md").write_text(render(results), encoding="utf-8")
            log.info("%s: written to %s", key, arguments.results)


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--runtimes", nargs="+", choices=RUNTIMES, default=RUNTIMES)
    parser.add_argument("--seconds", type=float, default=3.0, help="of timed work for each contender and thread count")
    parser.add_argument("--samples", type=int, help="calibration and evaluation examples; default: all")
    parser.add_argument("--again", action="store_true", help="search, score and time again what is there already")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "ptq_peers", help="where models are kept")
    arguments = parser.parse_args()
    name = "ptq_peers.json" if arguments.samples is None else f"smoke-{arguments.samples}.json"
    folder = ROOT / "benchmarks" / "results" if arguments.samples is None else arguments.work
    folder.mkdir(parents=True, exist_ok=True)
    arguments.results = folder / name
    return arguments


def open_results(path: Path) -> dict[str, Any]:
    """The results so far."""
    if path.is_file():
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return found
    return {"rows": {}}


def run_row(row: Row, runtime: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Make, score and time everything for one network on one runtime."""
    log.info("%s on %s", row.name, runtime)
    task = open_row(row.name, arguments.samples)
    model = task.parts["model"]
    folder = arguments.work / f"{row.name}-{arguments.samples or 'all'}-{model.fingerprint[:12]}"
    target = target_named(runtime)
    original = Contender(FLOAT, "float", target.build(model, folder / f"float-{runtime}"))
    ours = list(compress_with_alula(row, task, target, folder / f"alula-{runtime}", again=arguments.again))
    peers = list(quantize_with_peers(row, task, model, runtime, folder))
    found = compare(task, target, [original, *ours, *peers], threads=THREADS, seconds=arguments.seconds)
    return {
        "title": row.title,
        "largest_drop": row.largest_drop,
        "calibration_examples": len(task.calibration),
        "target": target.describe(),
        "seconds_of_timing": arguments.seconds,
        "contenders": found,
        "machine": describe_machine(),
        "versions": versions(),
        "commit": read_commit(),
    }


def compress_with_alula(row: Row, task: Task, target: Target, folder: Path, *, again: bool) -> Iterator[Contender]:
    """What the search chose, and what else is not dominated."""
    if again and folder.exists():
        shutil.rmtree(folder)
    log.info("  compressing with alula")
    frontier = compress(task, Budget(max_drop=row.largest_drop), target, folder)
    facts = {"search_seconds": frontier.seconds, "verdict": str(frontier), "distance": frontier.distance}
    chosen = frontier.best
    words = "alula" if frontier.chosen else "alula, budget not met"
    yield Contender(
        f"{words}: {chosen.name}", "alula", artifact_of(target, folder, chosen), facts=facts | {"chosen": True}
    )
    for name in frontier.pareto:
        if name not in (chosen.name, frontier.original.name):
            candidate = frontier.candidate(name)
            yield Contender(f"alula, not chosen: {name}", "alula", artifact_of(target, folder, candidate))


def artifact_of(target: Target, folder: Path, candidate: Candidate) -> Artifact:
    """The built model of a candidate."""
    path = folder / candidate.artifacts["model"]
    others = [path.with_suffix(".bin")] if path.suffix == ".xml" else []
    files = (path, *others)
    return Artifact(target.name, path, files, sum(file.stat().st_size for file in files))


def quantize_with_peers(row: Row, task: Task, model: Model, runtime: str, folder: Path) -> Iterator[Contender]:
    """What the other tools make of the network, from the feeds that alula's calibration sees."""
    source = folder / "float-onnx" / "model.onnx"
    if not source.exists():
        source.parent.mkdir(parents=True, exist_ok=True)
        model.save(source)
    calibration = folder / "calibration.npz"
    if not calibration.exists():
        write_feeds(calibration, record_feeds(task, task.calibration))
    for method in methods_for(transformer=row.transformer):
        if runtime not in method.runtimes:
            continue
        log.info("  %s", method.name)
        place = folder / "".join(letter if letter.isalnum() else "-" for letter in method.name.lower())
        report = call(method, source, calibration, place)
        maker = method.kind.split()[0]
        facts = {"quantizing_seconds": report.seconds, "notes": report.notes, "tool_versions": report.versions}
        if report.failure:
            yield Contender(method.name, maker, failure=report.failure)
            continue
        files = tuple(place / name for name in report.files)
        size = sum(file.stat().st_size for file in files)
        yield Contender(method.name, maker, Artifact(runtime, files[0], files, size), facts=facts)


if __name__ == "__main__":
    main()
