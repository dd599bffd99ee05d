"""Peak memory of running a model, measured in a process of its own that holds the runtime and the model alone."""

from __future__ import annotations

import itertools
import json
import logging
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, is_dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from alula.errors import AlulaError, TargetError
from alula.measurement.measurement import Measurement
from alula.measurement.trace import Trace, open_parts, replay
from alula.targets import Artifact, Target, target_named

log = logging.getLogger(__name__)
_REPEATS = 2
_TIMEOUT_SECONDS = 600
_STATUS = Path("/proc/self/status")


def measure_memory(
    target: Target, contenders: Mapping[str, Mapping[str, Artifact]], trace: Trace, *, repeats: int = _REPEATS
) -> dict[str, dict[str, Measurement]]:
    """Peak resident bytes of a process that opens each contender and replays the trace; contenders take turns.

    Returns:
        By contender: ``memory_bytes``, the whole process, and ``memory_increase_bytes``, what the model added to the
        bare runtime. Nothing, with a logged reason, where it cannot be told: the system does not say, an input is text,
        or the process failed or was killed, as it is when memory runs out.
    """
    reason = _find_obstacle(trace)
    if reason:
        log.warning("peak memory is not measured: %s", reason)
        return {name: {} for name in contenders}
    try:
        with TemporaryDirectory(prefix="alula-") as scratch:
            feeds = _write_feeds(trace, Path(scratch) / "feeds.npz")
            requests = {name: _make_request(target, parts, trace, feeds) for name, parts in contenders.items()}
            readings = _take_turns(requests, repeats)
    except OSError as error:
        log.warning("peak memory is not measured: %s", error)
        readings = {}
    return {name: _summarise(readings[name]) if name in readings else {} for name in contenders}


def _take_turns(requests: Mapping[str, str], repeats: int) -> dict[str, list[tuple[int, int]]]:
    """Readings of each contender; none, with a logged reason, of one that fails."""
    readings: dict[str, list[tuple[int, int]]] = {name: [] for name in requests}
    for turn in range(repeats):
        for name in list(readings)[:: 1 if turn % 2 == 0 else -1]:
            try:
                readings[name].append(_run_child(name, requests[name]))
            except TargetError as error:
                log.warning("peak memory is not measured: %s", error)
                del readings[name]
    return readings


def _find_obstacle(trace: Trace) -> str:
    """Why memory cannot be measured, whatever the contender; empty if it can."""
    if not _STATUS.exists():
        return "this system has no /proc/self/status"
    texts = [name for _, feeds in trace for name, array in feeds.items() if array.dtype.hasobject]
    return f"the input {texts[0]!r} is text, which is not handed to another process" if texts else ""


def _summarise(readings: Sequence[tuple[int, int]]) -> dict[str, Measurement]:
    peaks = np.array(readings, dtype=np.float64)  # [repeats, 2]: peak, peak above the bare runtime
    method = (
        f"VmHWM of a process that opens the model and runs the trace; median and extremes of {len(peaks)} processes"
    )
    return {
        key: Measurement(
            float(np.median(column)), "bytes", float(column.min()), float(column.max()), None, len(peaks), method
        )
        for key, column in zip(("memory_bytes", "memory_increase_bytes"), peaks.T, strict=True)
    }


def _write_feeds(trace: Trace, path: Path) -> Path:
    """All arrays of a trace in order, as plain bytes, which every type of number survives."""
    arrays = [array for _, feeds in trace for array in feeds.values()]
    stored: dict[str, Any] = {str(i): np.frombuffer(array.tobytes(), np.uint8) for i, array in enumerate(arrays)}
    np.savez(path, **stored)
    return path


def _make_request(target: Target, artifacts: Mapping[str, Artifact], trace: Trace, feeds: Path) -> str:
    """The child's order as JSON."""
    settings: dict[str, Any] = asdict(target) if is_dataclass(target) and not isinstance(target, type) else {}
    files = {
        part: {"path": str(artifact.path.absolute()), "files": [str(file.absolute()) for file in artifact.files]}
        for part, artifact in artifacts.items()
    }
    order = {"target": target.name, "settings": settings, "artifacts": files, "calls": _list_calls(trace)}
    return json.dumps(order | {"feeds": str(feeds)})


def _list_calls(trace: Trace) -> list[list[Any]]:
    """Each call as [part, [[input, number of its array, type, shape], ...]]."""
    number = itertools.count()
    return [
        [part, [[name, next(number), str(array.dtype), array.shape] for name, array in feeds.items()]]
        for part, feeds in trace
    ]


def _run_child(name: str, request: str) -> tuple[int, int]:
    """Peak bytes, and peak bytes above the bare runtime."""
    command = [sys.executable, "-m", "alula.measurement.memory"]
    try:
        child = subprocess.run(  # noqa: S603  (our own interpreter and module)
            command, input=request, capture_output=True, text=True, timeout=_TIMEOUT_SECONDS, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise TargetError(f"{name!r}: measuring memory took over {_TIMEOUT_SECONDS} s and was stopped") from error
    if child.returncode < 0:
        raise TargetError(f"{name!r}: the process was killed by signal {-child.returncode}; was memory exhausted?")
    if child.returncode:
        lines = child.stderr.strip().splitlines() or ["no message"]
        raise TargetError(f"{name!r}: measuring memory failed: {lines[-1]}")
    answer = json.loads(child.stdout.strip().splitlines()[-1])
    return int(answer["peak_bytes"]), int(answer["increase_bytes"])


def report_memory(request: Mapping[str, Any]) -> dict[str, int]:
    """In the child: open, replay, and say the peak. ``ru_maxrss`` would not do: it is inherited from the parent."""
    target = _target_of(request)
    target.describe()  # loads the runtime, so that the model alone is counted above it
    trace = _read_trace(request)
    bare = _read_status("VmRSS")
    _reset_peak()
    replay(open_parts(target, _artifacts_of(request), trace), trace)
    peak = _read_status("VmHWM")
    return {"peak_bytes": peak, "increase_bytes": max(0, peak - bare)}


def _target_of(request: Mapping[str, Any]) -> Target:
    settings = {key: tuple(value) if isinstance(value, list) else value for key, value in request["settings"].items()}
    target: Any = target_named(request["target"])
    changed: Target = replace(target, **settings)
    return changed


def _artifacts_of(request: Mapping[str, Any]) -> dict[str, Artifact]:
    return {
        part: Artifact(request["target"], Path(entry["path"]), tuple(map(Path, entry["files"])), 0)
        for part, entry in request["artifacts"].items()
    }


def _read_trace(request: Mapping[str, Any]) -> Trace:
    with np.load(request["feeds"]) as stored:
        return tuple(
            (part, {name: _array(stored[str(number)], dtype, shape) for name, number, dtype, shape in feeds})
            for part, feeds in request["calls"]
        )


def _array(raw: np.ndarray, dtype: str, shape: Sequence[int]) -> np.ndarray:
    return np.frombuffer(raw.tobytes(), np.dtype(dtype)).reshape(shape)


def _read_status(key: str) -> int:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(f"{key}:"))
    return int(line.split()[1]) * 1024


def _reset_peak() -> None:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        log.debug("the peak before opening the model cannot be reset; it is far below the peak of running it")


def main() -> int:
    """Read an order from standard input, write the peak to standard output."""
    try:
        sys.stdout.write(json.dumps(report_memory(json.load(sys.stdin))) + "\n")
    except AlulaError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
