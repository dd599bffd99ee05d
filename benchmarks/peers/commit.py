"""Which code a result came from."""

from __future__ import annotations

import subprocess

from benchmarks.peers.calling import ROOT


def read_commit() -> str:
    """The commit that runs, with a mark where alula's code or the benchmarks' differ from it."""
    return _COMMIT


def _read() -> str:
    commit = _git("rev-parse", "HEAD").strip()
    changed = _git("status", "--porcelain", "--", "alula", "benchmarks/*.py", "benchmarks/networks", "benchmarks/peers",
                   "examples")  # fmt: skip
    return commit + (" with changes" if changed else "")


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout


_COMMIT = _read()  # at import, with the code that it tells of: the folder may be at another one when a row is done
