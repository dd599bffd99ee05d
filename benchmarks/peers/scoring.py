"""Scores and times everything that was made of one network on one runtime, interleaved, in one process."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import numpy as np

from alula.errors import AlulaError
from alula.measurement import measure, record_trace
from alula.measurement.score import score
from alula.targets import Artifact, Opened, Target
from alula.task import Task
from benchmarks.peers.files import Feed
from benchmarks.peers.rows import record_feeds

log = logging.getLogger(__name__)
FLOAT = "float"
COMPARED_FEEDS = 64
NORMAL_95 = 1.96


@dataclass(frozen=True)
class Contender:
    """Something to score and time, or the reason why there is nothing."""

    name: str
    maker: str  # "float", "alula", "onnxruntime" or "nncf"
    artifact: Artifact | None = None
    failure: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)  # what else is known of it


@dataclass(frozen=True)
class Running:
    """What the scorer calls."""

    opened: Opened

    def __call__(self, feeds: Mapping[str, np.ndarray], part: str = "model") -> dict[str, np.ndarray]:
        """Run the one part that there is."""
        assert part == "model", part
        return self.opened(feeds)


@dataclass(frozen=True)
class Scored:
    """A contender with its score on each held-out example [n], and its cosine to the original's outputs."""

    contender: Contender
    values: np.ndarray
    cosine: float


def compare(
    task: Task, target: Target, contenders: Sequence[Contender], *, threads: Sequence[int], seconds: float
) -> list[dict[str, Any]]:
    """One result for each contender; the first is the original.

    Scores are of the examples that no search has seen: the half that alula certifies by.
    """
    scored, failed = score_all(task, target, contenders)
    artifacts = {name: {"model": artifact} for name, one in scored.items() if (artifact := one.contender.artifact)}
    trace = record_trace(task)
    results = {name: _describe(one, scored) for name, one in scored.items()}
    for count in threads:
        log.info("  timing %d contenders with %d thread(s)", len(scored), count)
        measured = measure(_with_threads(target, count), artifacts, trace, seconds=seconds, memory=False)
        for name, found in measured.items():
            kept = {key: found[key].to_json() for key in ("latency_p50_ms", "latency_ratio", "load_ms")}
            results[name]["threads"][str(count)] = kept
            results[name]["runs_per_example"] = len(trace)
    return [results.get(one.name) or failed[one.name] for one in contenders]


def score_all(
    task: Task, target: Target, contenders: Sequence[Contender]
) -> tuple[dict[str, Scored], dict[str, dict[str, Any]]]:
    """What could be scored, and of the others why not."""
    _, held_out = task.splits()
    feeds = list(islice(record_feeds(task, held_out), COMPARED_FEEDS))
    scored: dict[str, Scored] = {}
    failed: dict[str, dict[str, Any]] = {}
    original: np.ndarray | None = None
    for contender in contenders:
        log.info("  scoring %s", contender.name)
        try:
            opened = _open(target, contender)
            outputs = run_all(opened, feeds)
            values = score(task, Running(opened), held_out).values
        except AlulaError as error:
            failed[contender.name] = _identity(contender) | {"failure": str(error)}
            continue
        original = outputs if original is None else original
        scored[contender.name] = Scored(contender, values, cosine_of(outputs, original))
    return scored, failed


def run_all(opened: Opened, feeds: Sequence[Feed]) -> np.ndarray:
    """All outputs on all feeds, end to end, [values]: outputs of one number have a cosine only taken together."""
    return np.concatenate([output.ravel() for feed in feeds for output in opened(feed).values()]).astype(np.float64)


def cosine_of(a: np.ndarray, b: np.ndarray) -> float:
    """The cosine of two vectors; 0 where one is all zeros.

    >>> cosine_of(np.array([3.0, 4.0]), np.array([4.0, 3.0]))
    0.96
    """
    norms = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / norms if norms else 0.0


def mean_with_interval(differences: np.ndarray) -> tuple[float, float, float]:
    """The mean of paired differences [n] with its normal 95 % interval: (mean, low, high)."""
    mean = float(differences.mean())
    reach = NORMAL_95 * float(differences.std(ddof=1)) / np.sqrt(len(differences)) if len(differences) > 1 else 0.0
    return mean, mean - float(reach), mean + float(reach)


def _open(target: Target, contender: Contender) -> Opened:
    if contender.artifact is None:
        raise AlulaError(contender.failure)
    return target.open(contender.artifact)


def _with_threads(target: Target, threads: int) -> Target:
    changed: Any = target
    result: Target = replace(changed, threads=threads)
    return result


def _identity(contender: Contender) -> dict[str, Any]:
    return {"name": contender.name, "maker": contender.maker, **contender.facts}


def _describe(one: Scored, scored: Mapping[str, Scored]) -> dict[str, Any]:
    """The result without its times. Paired with the original, and with alula's choice where there is one."""
    contender = one.contender
    assert contender.artifact is not None
    result: dict[str, Any] = _identity(contender) | {
        "score": float(one.values.mean()),
        "examples": len(one.values),
        "drop": mean_with_interval(next(iter(scored.values())).values - one.values),
        "cosine": one.cosine,
        "size_bytes": contender.artifact.size_bytes,
        "threads": {},
    }
    ours = next((other for other in scored.values() if other.contender.facts.get("chosen")), None)
    if ours is not None:
        result["below_ours"] = mean_with_interval(ours.values - one.values)
    return result
