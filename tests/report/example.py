"""A result with realistic numbers, for looking at the page and testing it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from alula.budget import Budget
from alula.graph.model import Note
from alula.measurement.certificate import certify
from alula.measurement.measurement import Measurement
from alula.recipe import Recipe, Step
from alula.search.result import Candidate, Finding, Frontier, LayerRow, TimeSplit
from alula.techniques import Float16, FoldBatchNorm, Quantize, QuantizeDynamic, QuantizeWeights

LATENCY_MS = 24.6


def example_frontier() -> Frontier:
    """The spam filter: dynamic int8 was chosen, static int8 collapsed."""
    candidates = (
        _candidate("int8-dynamic", Recipe((Step(QuantizeDynamic()),)), 22_900_000, 0.9842, 0.0021, 2.91,
                   "chosen: the fastest that holds the budget", layers=_layers(),
                   notes=(Note("embeddings/position", "left in float32: a table of 512 rows gains nothing"),)),
        _candidate("int8-static", Recipe((Step(FoldBatchNorm()), Step(Quantize()))), 23_400_000, 0.6127, 0.3736, 3.24,
                   "collapsed: loses 0.3736, 37 times what the budget allows"),
        _candidate("int8-static-mixed", Recipe((Step(Quantize(), exclude=("*/dense/*",)),)), 41_700_000, 0.9811, 0.0052,
                   1.74, "beaten by int8-dynamic: larger, slower and less accurate"),
        _candidate("int8-weights", Recipe((Step(QuantizeWeights(bits=8)),)), 23_100_000, 0.9858, 0.0005, 0.81,
                   "slower than the original: this runtime unpacks the weights on every call"),
        _candidate("int4-weights", Recipe((Step(QuantizeWeights(bits=4, block=32)),)), 14_800_000, 0.9769, 0.0094, 1.12,
                   "smaller, but not faster than int8-dynamic; latency was to be minimised"),
        _candidate("float16", Recipe((Step(Float16()),)), 45_500_000, 0.9863, 0.0, 0.64,
                   "slower than the original: this CPU has no float16 arithmetic"),
    )  # fmt: skip
    original = _candidate("original", Recipe(()), 90_900_000, 0.9863, 0.0, 1.0, "the model as it was given")
    candidates = (replace(candidates[0], time=TimeSplit(8.6, 0.62, 0.03, 0.11, 0.24, 8, 257)), *candidates[1:])
    rows = tuple(replace(row, harm=None, bits="float32") for row in _layers())
    original = replace(original, layers=rows, time=TimeSplit(25.1, 0.0, 0.8, 0.0, 0.2, 0, 269))
    return Frontier(
        task="spam-filter",
        metric="accuracy",
        labelled=True,
        original=original,
        candidates=candidates,
        chosen="int8-dynamic",
        pareto=("int8-dynamic", "int8-static", "int8-weights", "int4-weights", "original"),
        certificate=_certificate(1_900),
        budget=Budget(max_drop=0.01),
        target={"target": "onnxruntime", "version": "1.32.0", "threads": "2", "provider": "CPUExecutionProvider"},
        findings=(_finding(),),
        seed=7,
        seconds=214.0,
        versions={"alula": "0.1.0", "onnxruntime": "1.32.0", "numpy": "2.4.6", "onnx": "1.23.2"},
        machine={"processor": "x86-64, AVX-512 VNNI", "cores": "2", "memory": "16 GB", "system": "Linux 6.6"},
        command="alula compress examples/spam/task.py --max-drop 1% --minimize latency --seed 7 --out out/spam",
        fingerprints={"task": "6f1d" * 16, "model": "a03b" * 16},
    )


def failed_frontier() -> Frontier:
    """Nothing held the budget."""
    good = example_frontier()
    return replace(
        good,
        chosen=None,
        closest="int8-weights",
        certificate=None,
        budget=Budget(max_drop=0.0001),
        distance="int8-weights loses 0.0005 and may lose 0.0001: 0.0004 too much",
    )


def hostile_frontier() -> Frontier:
    """Names and texts that would be markup if anything let them through."""
    bad = "<script>document.title='hacked'</script>\"'&</script><img src=x onerror=alert(1)>"
    good = example_frontier()
    row = LayerRow(bad, bad, bad, bad, 1, 1, 0.1, 0.1, bad)
    rows = (row, replace(row, part="model"))
    evil = replace(good.candidates[0], name=bad, layers=rows, notes=(Note(bad, bad),), verdict=bad)
    return replace(
        good,
        task=bad,
        metric=bad,
        candidates=(evil, *good.candidates[1:]),
        chosen=bad,
        pareto=(bad,),
        findings=(Finding(bad, bad, bad, bad, {bad: 1.0}, bad),),
        target={bad: bad},
        command=bad,
        versions={bad: bad},
        machine={bad: bad},
        fingerprints={bad: bad},
    )


def _candidate(name, recipe, size_bytes, score, drop, speed, verdict, layers=(), notes=()) -> Candidate:
    return Candidate(name, recipe, size_bytes, score, drop, _measurements(size_bytes, score, speed), notes, verdict,
                     layers, {"model": f"trials/{name}/model.onnx"})  # fmt: skip


def _measurements(size_bytes: int, score: float, speed: float) -> dict[str, Measurement]:
    milliseconds = LATENCY_MS / speed

    def measured(value, unit, spread, method, n=480, estimated=False) -> Measurement:
        return Measurement(value, unit, value * (1 - spread), value * (1 + spread), 0.95, n, method, estimated)

    return {
        "score": Measurement(score, "", max(score - 0.006, 0), min(score + 0.004, 1), 0.95, 1_850, "bootstrap"),
        "drop": Measurement(0.9863 - score, "", 0.9863 - score - 0.004, 0.9863 - score + 0.004, 0.95, 1_850, "exact"),
        "size_bytes": Measurement(size_bytes, "bytes", None, None, None, 1, "sum of files"),
        "latency_p50_ms": measured(milliseconds, "ms", 0.03, "interleaved blocks"),
        "latency_p95_ms": measured(milliseconds * 1.21, "ms", 0.05, "interleaved blocks"),
        "latency_p99_ms": measured(milliseconds * 1.52, "ms", 0.09, "interleaved blocks"),
        "latency_ratio": measured(speed, "x", 0.0 if speed == 1 else 0.04, "interleaved pairs"),
        "load_ms": measured(size_bytes / 4e5, "ms", 0.1, "fresh process", n=5),
        "memory_bytes": measured(size_bytes * 1.7, "bytes", 0.01, "peak resident, fresh process", n=3),
        "energy_mj": measured(milliseconds * 31, "mJ", 0.2, "operation counts x energy per operation", estimated=True),
    }


def _certificate(n: int):
    original = np.ones(n)
    candidate = np.ones(n)
    original[:26] = 0
    candidate[1:30] = 0
    return certify(original, candidate, max_drop=0.01)


def _finding() -> Finding:
    return Finding(
        "model",
        "encoder/layer.5/intermediate/dense",
        "outlier channel",
        "One of 384 input channels spans a range 38 times that of the median channel, so that a scale for the whole "
        "tensor leaves 3 of 256 levels for the others.",
        {"range_of_outlier": 41.7, "range_of_median_channel": 1.09, "levels_left": 3.0},
        "quantize its activation per row at run time (dynamic), or leave this layer in float",
    )


def _layers() -> tuple[LayerRow, ...]:
    rows = [LayerRow("model", "embeddings/word", "Gather", "int8", 11_720_448, 0, 0.0001, 0.004, "weights only")]
    square = (384, 384)
    sizes = {"attention/query": square, "attention/key": square, "attention/value": square,
             "attention/output": square, "intermediate/dense": (384, 1536), "output/dense": (1536, 384)}  # fmt: skip
    for block in range(6):
        for index, (name, (rows_in, rows_out)) in enumerate(sizes.items()):
            weights = rows_in * rows_out
            harm = abs(round(0.0042 / (1 + abs(block - 5) + abs(index - 4)) - 0.0006, 4))
            share = weights / 11_400_000 * 0.97
            rows.append(LayerRow("model", f"encoder/layer.{block}/{name}/MatMul", "MatMul", "int8 x uint8", weights,
                                 weights * 64, harm, share, "runs in int8 on this target"))  # fmt: skip
    rows.append(LayerRow("model", "head", "Gemm", "float32", 3_080, 768, None, 0.001, "too small to gain from int8"))
    return tuple(rows)
