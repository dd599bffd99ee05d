"""Examples per second by batch size, where the graph leaves the batch axis free."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np

from alula.errors import DataError
from alula.graph.model import TensorSpec
from alula.measurement.intervals import median_interval
from alula.measurement.latency import CONFIDENCE, Turn, take_turns, turn_medians
from alula.measurement.measurement import Measurement
from alula.measurement.trace import Trace, open_parts, replay
from alula.targets import Artifact, Opened, Target

log = logging.getLogger(__name__)


def measure_throughput(
    target: Target,
    contenders: Mapping[str, Mapping[str, Artifact]],
    trace: Trace,
    *,
    batches: Sequence[int] = (1, 4, 16),
    seconds: float = 1.0,
    seed: int = 0,
) -> dict[str, dict[str, Measurement]]:
    """Examples per second of each contender, all taking turns at each batch size.

    The batch axis is the first axis of the first input where that is free, and every other axis of that name.

    Returns:
        By contender, ``throughput_batch<size>_per_s``; sizes that the graph does not take are left out and logged.

    Raises:
        TargetError: an artifact is missing or cannot be opened.
    """
    opened = {name: open_parts(target, artifacts, trace) for name, artifacts in contenders.items()}
    results: dict[str, dict[str, Measurement]] = {name: {} for name in contenders}
    for batch in batches:
        try:
            batched = enlarge_trace(next(iter(opened.values())), trace, batch)
            for parts in opened.values():
                replay(parts, batched)
        except DataError as error:
            log.info("no throughput at batch %d: %s", batch, error)
            continue
        runs = {name: partial(replay, parts, batched) for name, parts in opened.items()}
        for name, turns in take_turns(runs, seconds=seconds, seed=seed).items():
            results[name][f"throughput_batch{batch}_per_s"] = _summarise(turns, batch)
    return results


def enlarge_trace(opened: Mapping[str, Opened], trace: Trace, batch: int) -> Trace:
    """The trace of one example repeated along its batch axis, to ``batch`` examples.

    Raises:
        DataError: an input has no free batch axis, or holds several examples already.
    """
    if batch == 1:
        return trace
    return tuple((part, _enlarge(opened[part].inputs, feeds, batch)) for part, feeds in trace)


def _enlarge(specs: Sequence[TensorSpec], feeds: Mapping[str, np.ndarray], batch: int) -> dict[str, np.ndarray]:
    first = specs[0]
    if not first.shape or isinstance(first.shape[0], int):
        raise DataError(f"the batch axis is fixed: {first}")
    if feeds[first.name].shape[0] != 1:
        raise DataError(f"the recorded input {first.name!r} holds {feeds[first.name].shape[0]} examples, not one")
    enlarged = dict(feeds)
    for spec in specs:
        axis = _batch_axis(spec, first.shape[0])
        if axis is not None:
            enlarged[spec.name] = np.repeat(feeds[spec.name], batch, axis)
    return enlarged


def _batch_axis(spec: TensorSpec, symbol: str | None) -> int | None:
    """Where the batch axis stands in an input: by its name, or first where axes have none."""
    if not spec.shape:
        return None
    if symbol is None:
        return 0 if spec.shape[0] is None else None
    return spec.shape.index(symbol) if symbol in spec.shape else None


def _summarise(turns: Sequence[Turn], batch: int) -> Measurement:
    rates = batch / turn_medians(turns)  # [turns]
    low, high, coverage = median_interval(rates, CONFIDENCE)
    method = f"batch of {batch}; median of {len(rates)} interleaved turns, sign-test interval"
    return Measurement(float(np.median(rates)), "examples/s", low, high, round(coverage, 4), len(rates), method)
