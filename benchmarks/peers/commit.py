"""Which code a result came from."""

from __future__ import annotations

import subprocess

from benchmarks.peers.calling import ROOT


def read_commit() -> str:
    """The commit that ran, with a mark where alula's code or the benchmarks' differ from it."""
    commit = _git("rev-parse", "HEAD").strip()
    changed = _git("status", "--porcelain", "--", "alula", "benchmarks/*.py", "benchmarks/peers", "examples")
    return commit + (" with changes" if changed else "")


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout
