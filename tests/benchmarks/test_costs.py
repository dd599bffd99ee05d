"""The page on what quantization costs."""

from __future__ import annotations

from typing import Any

from benchmarks.peers.costs import conclusions, render


def run(name: str, maker: str, samples: int, seconds: float, megabytes: int) -> dict[str, Any]:
    return {
        "name": name, "maker": maker, "samples": samples, "seconds": seconds, "fastest_seconds": seconds,
        "slowest_seconds": seconds, "rounds": 3, "peak_bytes": megabytes * 10**6,
        "increase_bytes": (megabytes - 50) * 10**6, "tool_versions": {"nncf": "3"},
    }  # fmt: skip


FAILED = {"name": "whole", "maker": "onnxruntime", "samples": 1000, "failure": "MemoryError"}
RUNS = [
    run("ours", "alula", 100, 2, 150),
    run("ours, slow", "alula", 100, 4, 100),
    run("theirs", "onnxruntime", 100, 10, 450),
    run("theirs, slow", "nncf", 100, 20, 250),
]


def test_our_worst_is_held_against_their_best() -> None:
    seconds, increase, peak = conclusions(RUNS)
    assert seconds == "100 samples, seconds: 0.40 of the least of the others (theirs), by ours, slow"
    assert "0.50 of the least of the others (theirs, slow), by ours" in increase
    assert "0.60 of the least" in peak


def test_growth_is_said() -> None:
    many = run("ours", "alula", 1000, 20, 153)
    assert "alula's peak at 1000 samples is 1.02 times that at 100" in conclusions([RUNS[0], many])


def test_nothing_is_concluded_without_both() -> None:
    assert conclusions(RUNS[:2]) == []
    assert conclusions([run("ours", "alula", 1000, 2, 150), FAILED]) == []


def test_page() -> None:
    machine = {"processor": "P", "cores": "2"}
    row = {"runs": [*RUNS, FAILED], "machine": machine, "versions": {"numpy": "2"}, "commit": "abc"}
    text = render({"rows": {"memory: net": row}})
    assert "## memory: net" in text
    assert "| ours | 100 | 2.0 (2.0 to 2.0) | 150 | 100 |" in text
    assert "| whole | 1000 | failed: MemoryError | | |" in text
    assert "nncf 3" in text
