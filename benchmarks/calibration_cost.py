"""What post-training quantization itself costs: peak memory against the number of images, and seconds.

    python benchmarks/calibration_cost.py [--parts memory seconds] [--rows minilm-spam ...] [--again]
    python benchmarks/calibration_cost.py --samples 8 --rounds 1   a smoke run; results stay out of benchmarks/results

Every run is a process of its own that reads its inputs one by one, so that they count for nothing. Seconds and peak are
of loading the float model, calibrating and writing the quantized file; imports come before and are not in them. Runs to
be compared take turns, and the median over rounds is given.
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from alula.graph.model import Model
from alula.measurement import describe_machine, versions
from benchmarks.peers.calling import ROOT, Method, call, require_peers
from benchmarks.peers.commit import read_commit
from benchmarks.peers.costs import render
from benchmarks.peers.files import Feeds, Report, write_feeds, write_json
from benchmarks.peers.rows import ROWS, methods_for, open_row, photo_feeds, record_feeds

log = logging.getLogger("benchmarks.calibration_cost")
PARTS = ("memory", "seconds")
IMAGES = (100, 1000)
SAMPLES = 300
MEMORY_ROWS = ("efficientnet-lite0", "resnet18")
SECONDS_ROWS = ("efficientnet-lite0", "resnet18", "minilm-spam")
RANGES = ("min-max", "percentile", "mse", "entropy")


def main() -> None:
    arguments = read_arguments()
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("benchmarks").setLevel(logging.INFO)
    require_peers()
    results = json.loads(arguments.results.read_text()) if arguments.results.is_file() else {"rows": {}}
    measures = {"memory": (measure_memory, MEMORY_ROWS), "seconds": (measure_seconds, SECONDS_ROWS)}
    for part in arguments.parts:
        measure, names = measures[part]
        for name in (name for name in names if name in arguments.rows):
            key = f"{part}: {name}"
            if key in results["rows"] and not arguments.again:
                log.info("%s: already there", key)
                continue
            log.info(key)
            origin = {"machine": describe_machine(), "versions": versions(), "commit": read_commit()}
            results["rows"][key] = {"runs": measure(name, arguments), **origin}
            write_json(arguments.results, results)
            arguments.results.with_suffix(".md").write_text(render(results), encoding="utf-8")


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--rows", nargs="+", choices=SECONDS_ROWS, default=SECONDS_ROWS)
    parser.add_argument("--rounds", type=int, default=3, help="runs of each method whose seconds count")
    parser.add_argument("--samples", type=int, help="calibration samples, instead of 100, 300 and 1,000")
    parser.add_argument("--memory-limit", type=float, default=18, help="GiB at which a process is refused more")
    parser.add_argument("--again", action="store_true", help="measure again what is there already")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "calibration_cost", help="where files are kept")
    arguments = parser.parse_args()
    smoke = arguments.samples is not None
    folder = arguments.work if smoke else ROOT / "benchmarks" / "results"
    for needed in (folder, arguments.work):
        needed.mkdir(parents=True, exist_ok=True)
    arguments.results = folder / ("smoke.json" if smoke else "calibration_cost.json")
    return arguments


def measure_memory(name: str, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Peak memory of percentile calibration on few and on many images."""
    model = open_row(name, None).parts["model"]
    theirs = Method("ORT, Percentile", "onnxruntime static", {"method": "Percentile", "chunk": None})
    chunked = replace(theirs, name="ORT, Percentile, strided by 1", settings={"method": "Percentile", "chunk": 1})
    methods = [our_method("onnxruntime", "percentile"), theirs, chunked]
    counts = IMAGES if arguments.samples is None else (arguments.samples, 2 * arguments.samples)
    runs = []
    for count in counts:
        calibration = arguments.work / f"photos-{count}.npz"
        if not calibration.exists():
            write_feeds(calibration, photo_feeds(count))
        runs += repeat(methods, model, calibration, arguments, rounds=1)
    return runs


def measure_seconds(name: str, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Seconds of the whole quantization, by every method."""
    task = open_row(name, None)
    count = arguments.samples or SAMPLES
    calibration = arguments.work / f"{name}-{count}.npz"
    if not calibration.exists():
        spare = task.evaluation if len(task.calibration) < count else []
        examples = [*task.calibration[:count], *spare[: count - len(task.calibration)]]
        write_feeds(calibration, record_feeds(task, examples))
    ours = [our_method(runtime, method) for runtime in ("onnxruntime", "openvino") for method in RANGES]
    theirs = [method for method in methods_for(transformer=ROWS[name].transformer) if not is_a_twin(method)]
    return repeat([*ours, *theirs], task.parts["model"], calibration, arguments, rounds=arguments.rounds)


def is_a_twin(method: Method) -> bool:
    """Whether a method costs the same as another one: NNCF's presets differ in the grids alone."""
    return method.settings.get("preset") == "performance"


def our_method(runtime: str, method: str) -> Method:
    """A static recipe of alula's, with a method for ranges."""
    settings = {"target": runtime, "proposal": f"int8 static, {method} ranges"}
    return Method(f"alula, {runtime}, {method}", "alula", settings)


def repeat(
    methods: Sequence[Method], model: Model, calibration: Path, arguments: argparse.Namespace, *, rounds: int
) -> list[dict[str, Any]]:
    """Run the methods in turns; one result for each. What failed is not run again."""
    source = model.save(arguments.work / "float.onnx")
    limit, count = int(arguments.memory_limit * 2**30), len(Feeds(calibration))
    found: dict[str, list[Report]] = {method.name: [] for method in methods}
    for turn in range(rounds):
        for method in methods[:: 1 if turn % 2 == 0 else -1]:
            if any(report.failure for report in found[method.name]):
                continue
            folder = arguments.work / "made"
            shutil.rmtree(folder, ignore_errors=True)
            report = call(method, source, calibration, folder, memory_limit_bytes=limit, timeout_seconds=1800)
            log.info("  %s, %d samples: %.1f s %s", method.name, count, report.seconds, report.failure)
            found[method.name].append(report)
    return [summarise(method, count, found[method.name]) for method in methods]


def summarise(method: Method, count: int, reports: Sequence[Report]) -> dict[str, Any]:
    """The median run of a method."""
    failures = [report.failure for report in reports if report.failure]
    identity = {"name": method.name, "maker": method.kind.split()[0], "samples": count}
    if failures:
        return identity | {"failure": failures[0], "settings": dict(method.settings)}
    seconds = [report.seconds for report in reports]
    return identity | {
        "seconds": median(seconds),
        "fastest_seconds": min(seconds),
        "slowest_seconds": max(seconds),
        "rounds": len(reports),
        "peak_bytes": int(median(report.peak_bytes for report in reports)),
        "increase_bytes": int(median(report.increase_bytes for report in reports)),
        "tool_versions": dict(reports[0].versions),
    }


if __name__ == "__main__":
    main()
