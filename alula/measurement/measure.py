"""Everything that a target can tell about contenders, original and candidates interleaved in one run."""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import partial

import numpy as np

from alula.errors import DataError
from alula.measurement.energy import find_meter, summarise_energy
from alula.measurement.latency import compare_latency, summarise_latency, take_turns
from alula.measurement.measurement import Measurement
from alula.measurement.memory import measure_memory
from alula.measurement.trace import Trace, open_parts, replay
from alula.targets import Artifact, Target

LOADS = 3


def measure(
    target: Target,
    contenders: Mapping[str, Mapping[str, Artifact]],
    trace: Trace,
    *,
    seconds: float = 3.0,
    seed: int = 0,
    memory: bool = True,
) -> dict[str, dict[str, Measurement]]:
    """Measure contenders on a target, all in one interleaved run.

    Args:
        target: where they run.
        contenders: name -> part -> artifact; the first is the original that the others are compared with.
        trace: the calls of one example.
        seconds: of timed work for each contender.
        seed: of the order of turns and of bootstrap draws.
        memory: whether to measure peak memory, in processes of their own (about a second for each contender).

    Returns:
        By contender: ``latency_p50_ms``, ``latency_p95_ms``, ``latency_p99_ms``; ``latency_ratio``, original by
        candidate, above 1 is faster; ``load_ms``, ``size_bytes``; ``memory_bytes`` and ``memory_increase_bytes`` where
        they can be told (see :func:`alula.measurement.memory.measure_memory`); and ``energy_mj`` where the machine's
        counters may be read (otherwise see
        :func:`alula.measurement.energy.estimate_energy`).

    Raises:
        DataError: no contender, no call in the trace, or ``seconds`` not above 0.
        TargetError: an artifact is missing, or the runtime refuses or fails on it.
    """
    if not contenders or not trace or not seconds > 0:
        raise DataError(
            f"measuring needs a contender, a call and seconds above 0; got {len(contenders)}, {len(trace)}, {seconds}"
        )
    results = _measure_timing(target, contenders, trace, seconds=seconds, seed=seed)
    loads = measure_load(target, contenders, trace)
    memories = measure_memory(target, contenders, trace) if memory else {}
    for name, artifacts in contenders.items():
        results[name] |= {"load_ms": loads[name], "size_bytes": measure_size(artifacts), **memories.get(name, {})}
    return results


def _measure_timing(
    target: Target, contenders: Mapping[str, Mapping[str, Artifact]], trace: Trace, *, seconds: float, seed: int
) -> dict[str, dict[str, Measurement]]:
    runs = {name: partial(replay, open_parts(target, parts, trace), trace) for name, parts in contenders.items()}
    turns = take_turns(runs, seconds=seconds, seed=seed, meter=find_meter())
    original = next(iter(contenders))
    results = {}
    for name, taken in turns.items():
        ratio = compare_latency(turns[original], taken) if name != original else _itself(len(taken))
        energy = summarise_energy(taken)
        results[name] = summarise_latency(taken, seed=seed) | {"latency_ratio": ratio}
        if energy is not None:
            results[name]["energy_mj"] = energy
    return results


def measure_load(
    target: Target, contenders: Mapping[str, Mapping[str, Artifact]], trace: Trace
) -> dict[str, Measurement]:
    """Milliseconds to open the parts that a trace runs, from files in the system's cache; contenders take turns."""
    taken: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(LOADS):
        for name in list(contenders)[:: 1 if turn % 2 == 0 else -1]:
            before = time.perf_counter()
            open_parts(target, contenders[name], trace)
            taken[name].append(1e3 * (time.perf_counter() - before))
    method = f"median and extremes of {LOADS} interleaved openings"
    return {
        name: Measurement(float(np.median(times)), "ms", min(times), max(times), None, LOADS, method)
        for name, times in taken.items()
    }


def measure_size(artifacts: Mapping[str, Artifact]) -> Measurement:
    """Bytes of all files of all parts."""
    size = sum(artifact.size_bytes for artifact in artifacts.values())
    return Measurement(float(size), "bytes", float(size), float(size), None, 1, "sum of the files' sizes")


def _itself(rounds: int) -> Measurement:
    return Measurement(1.0, "x", 1.0, 1.0, None, rounds, "the original, compared with itself")
