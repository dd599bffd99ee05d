"""The cost of quantization itself as a page of tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

INTRODUCTION = """\
Written by `benchmarks/calibration_cost.py`. Each run is a process of its own; seconds and peak memory are of loading
the float model, calibrating and writing the quantized file, without imports. Medians of runs in turns. *Above imports*
is the peak less what the process held once its packages were imported. *Strided* is ONNX Runtime's option
`CalibStridedMinMax`, meant for min-max, which also keeps its percentile method from holding every activation of every
sample at once."""

Run = Mapping[str, Any]


def render(results: Mapping[str, Any]) -> str:
    """The whole page in Markdown."""
    lines = ["# What post-training quantization costs", "", INTRODUCTION]
    for key, row in results["rows"].items():
        lines += ["", f"## {key}", "", *_describe_row(row)]
    return "\n".join(lines) + "\n"


def _describe_row(row: Mapping[str, Any]) -> Iterator[str]:
    yield "| method | samples | seconds (extremes) | peak MB | above imports MB |"
    yield "|---|---|---|---|---|"
    yield from map(_table_row, row["runs"])
    yield ""
    yield from (f"- {line}" for line in conclusions(row["runs"]))
    yield ""
    machine = row["machine"]
    tools = ", ".join(f"{name} {version}" for name, version in _versions(row).items())
    yield f"{machine['processor']}, {machine['cores']} cores; {tools}; commit {row['commit']}."


def conclusions(runs: Sequence[Run]) -> list[str]:
    """Ours by the best of theirs, for each number of samples; and how ours grows with that number."""
    lines = []
    for count in sorted({run["samples"] for run in runs}):
        ours, theirs = (_measured(runs, count, ours=flag) for flag in (True, False))
        for key, words in (("seconds", "seconds"), ("increase_bytes", "memory above imports"), ("peak_bytes", "peak")):
            if ours and theirs:
                lines.append(f"{count} samples, {words}: {_compare(ours, theirs, key)}")
    growth = [run for run in runs if run["maker"] == "alula" and "failure" not in run]
    if len({run["samples"] for run in growth}) > 1:
        few, many = (chosen(growth, key=lambda run: run["samples"]) for chosen in (min, max))
        ratio = many["peak_bytes"] / few["peak_bytes"]
        lines.append(f"alula's peak at {many['samples']} samples is {ratio:.2f} times that at {few['samples']}")
    return lines


def _measured(runs: Sequence[Run], count: int, *, ours: bool) -> list[Run]:
    return [
        run for run in runs if run["samples"] == count and (run["maker"] == "alula") == ours and "failure" not in run
    ]


def _compare(ours: Sequence[Run], theirs: Sequence[Run], key: str) -> str:
    """Our slowest or largest by each of theirs that is the least: the strictest reading."""
    worst = max(ours, key=lambda run: run[key])
    best = min(theirs, key=lambda run: run[key])
    return f"{worst[key] / best[key]:.2f} of the least of the others ({best['name']}), by {worst['name']}"


def _table_row(run: Run) -> str:
    if "failure" in run:
        return f"| {run['name']} | {run['samples']} | failed: {run['failure']} | | |"
    seconds = f"{run['seconds']:.1f} ({run['fastest_seconds']:.1f} to {run['slowest_seconds']:.1f})"
    memory = f"{run['peak_bytes'] / 1e6:.0f} | {run['increase_bytes'] / 1e6:.0f}"
    return f"| {run['name']} | {run['samples']} | {seconds} | {memory} |"


def _versions(row: Mapping[str, Any]) -> dict[str, str]:
    found = dict(row["versions"])
    for run in row["runs"]:
        found |= {name: version for name, version in run.get("tool_versions", {}).items() if name == "nncf"}
    return found
