"""The page on what quantization costs."""

from __future__ import annotations

from typing import Any

from benchmarks.peers.calling import ran_out_of_memory
from benchmarks.peers.costs import growth, ours_by, render


def run(name: str, maker: str, samples: int, seconds: float, megabytes: int) -> dict[str, Any]:
    return {
        "name": name, "maker": maker, "samples": samples, "seconds": seconds, "fastest_seconds": seconds,
        "slowest_seconds": seconds, "rounds": 3, "peak_bytes": megabytes * 10**6,
        "increase_bytes": (megabytes - 50) * 10**6, "tool_versions": {"nncf": "3"},
    }  # fmt: skip


FAILED = {"name": "whole", "maker": "onnxruntime", "samples": 1000, "failure": "too large"}
OURS = [run("ours", "alula", 100, 2, 150), run("ours, slow", "alula", 100, 4, 100)]
THEIRS = run("theirs", "onnxruntime", 100, 10, 450)
RUNS = [*OURS, THEIRS, FAILED]


def test_our_worst_is_held_against_theirs() -> None:
    assert ours_by(THEIRS, RUNS, "seconds") == 0.4
    assert ours_by(THEIRS, RUNS, "increase_bytes") == 0.25


def test_only_as_many_samples_are_compared() -> None:
    assert ours_by(run("theirs", "nncf", 1000, 10, 450), RUNS, "seconds") is None


def test_ours_and_failures_are_held_against_nothing() -> None:
    assert ours_by(OURS[0], RUNS, "seconds") is None
    assert ours_by(FAILED, RUNS, "seconds") is None
    failed = {**FAILED, "maker": "alula", "samples": 100}
    assert ours_by(THEIRS, [failed, THEIRS], "seconds") is None


def test_growth_is_from_the_fewest_to_the_most() -> None:
    runs = [run("ours", "alula", samples, 1, megabytes) for samples, megabytes in ((300, 140), (1000, 153), (100, 150))]
    assert list(growth([*runs, THEIRS, FAILED])) == [("ours", 1.02, 100, 1000)]


def test_page() -> None:
    machine = {"processor": "P", "cores": "2"}
    row = {"runs": RUNS, "machine": machine, "versions": {"numpy": "2"}, "commit": "abc"}
    text = render({"rows": {"memory: net": row}})
    assert "## memory: net" in text
    assert "| ours | 100 | 2.0 (2.0 to 2.0) | 150 | 100 |  |  |" in text
    assert "| theirs | 100 | 10.0 (10.0 to 10.0) | 450 | 400 | 0.40 | 0.25 |" in text
    assert "| whole | 1000 | failed: too large | | | | |" in text
    assert "nncf 3" in text
    assert {line.count("|") for line in text.splitlines() if line.startswith("|")} == {8}


def test_refused_memory_is_told_from_other_failures() -> None:
    for text in ("numpy._ArrayMemoryError: Unable", "std::bad_alloc", "Failed to allocate memory for requested buffer"):
        assert ran_out_of_memory(f"Traceback\n{text}\n")
    assert not ran_out_of_memory("ValueError: Too many bins for data range.")
