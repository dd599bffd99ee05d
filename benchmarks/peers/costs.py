"""The cost of quantization itself as a page of tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

INTRODUCTION = """\
Written by `benchmarks/calibration_cost.py`. Each run is a process of its own; seconds and peak memory are of loading
the float model, calibrating and writing the quantized file, without imports. Medians of runs in turns. *Above imports*
is the peak less what the process held once its packages were imported. The last two columns hold the most that any of
alula's recipes took on as many samples against what the other tool took: seconds, and memory above imports. ORT dynamic
is not calibrated at all. *Strided by 1* is ONNX Runtime's option `CalibStridedMinMax`, meant for min-max, which also
keeps its percentile method from holding every activation of every sample at once."""

Run = Mapping[str, Any]


def render(results: Mapping[str, Any]) -> str:
    """The whole page in Markdown."""
    lines = ["# What post-training quantization costs", "", INTRODUCTION]
    for key, row in results["rows"].items():
        lines += ["", f"## {key}", "", *_describe_row(row)]
    return "\n".join(lines) + "\n"


def _describe_row(row: Mapping[str, Any]) -> Iterator[str]:
    runs = row["runs"]
    yield "| method | samples | seconds (extremes) | peak MB | above imports MB | alula's by its, seconds | MB |"
    yield "|---|---|---|---|---|---|---|"
    yield from (_table_row(run, runs) for run in runs)
    yield ""
    yield from (
        f"- {name}: {ratio:.2f} times the peak at {many} samples as at {few}" for name, ratio, few, many in growth(runs)
    )
    yield ""
    machine = row["machine"]
    tools = ", ".join(f"{name} {version}" for name, version in _versions(row).items())
    yield f"{machine['processor']}, {machine['cores']} cores; {tools}; commit {row['commit']}."


def growth(runs: Sequence[Run]) -> Iterator[tuple[str, float, int, int]]:
    """For each method that ran on two numbers of samples: its name, peak by peak, and the two numbers."""
    for name in dict.fromkeys(run["name"] for run in runs):
        sizes = {run["samples"]: run["peak_bytes"] for run in runs if run["name"] == name and "failure" not in run}
        if len(sizes) > 1:
            few, many = min(sizes), max(sizes)
            yield name, sizes[many] / sizes[few], few, many


def ours_by(run: Run, runs: Sequence[Run], key: str) -> float | None:
    """The most that any of alula's recipes took on as many samples, by what another tool took; None for alula's own."""
    if run["maker"] == "alula" or "failure" in run:
        return None
    ours = [
        one[key]
        for one in runs
        if one["maker"] == "alula" and one["samples"] == run["samples"] and "failure" not in one
    ]
    return max(ours) / run[key] if ours and run[key] else None


def _table_row(run: Run, runs: Sequence[Run]) -> str:
    if "failure" in run:
        return f"| {run['name']} | {run['samples']} | failed: {run['failure']} | | | | |"
    seconds = f"{run['seconds']:.1f} ({run['fastest_seconds']:.1f} to {run['slowest_seconds']:.1f})"
    memory = f"{run['peak_bytes'] / 1e6:.0f} | {run['increase_bytes'] / 1e6:.0f}"
    ratios = (ours_by(run, runs, key) for key in ("seconds", "increase_bytes"))
    shares = " | ".join("" if ratio is None else f"{ratio:.2f}" for ratio in ratios)
    return f"| {run['name']} | {run['samples']} | {seconds} | {memory} | {shares} |"


def _versions(row: Mapping[str, Any]) -> dict[str, str]:
    found = dict(row["versions"])
    for run in row["runs"]:
        found |= {name: version for name, version in run.get("tool_versions", {}).items() if name == "nncf"}
    return found
