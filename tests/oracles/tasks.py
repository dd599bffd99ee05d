"""Tiny tasks with real graphs for the search: quick to run, with a weakness planted where a test needs one."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto, helper

from alula.measurement.measurement import Measurement
from alula.task import Task, task_from_arrays
from tests.oracles.networks import make_model

FEATURES, HIDDEN, CLASSES = 32, 64, 8


def network(seed=0, outlier=1.0):
    """x -> MatMul -> Relu -> MatMul -> Relu -> Gemm; hidden channel 5 is ``outlier`` times wider, and undone behind."""
    rng = np.random.default_rng(seed)
    first = rng.normal(size=(FEATURES, HIDDEN)) / np.sqrt(FEATURES)
    second = rng.normal(size=(HIDDEN, HIDDEN)) / np.sqrt(HIDDEN)
    last = rng.normal(size=(CLASSES, HIDDEN)) / np.sqrt(HIDDEN)
    first[:, 5] *= outlier
    second[5, :] /= outlier
    weights = {"w1": first, "w2": second, "w3": last, "b3": rng.normal(size=CLASSES) * 0.1}
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["h1"], name="first"),
        helper.make_node("Relu", ["h1"], ["r1"]),
        helper.make_node("MatMul", ["r1", "w2"], ["h2"], name="second"),
        helper.make_node("Relu", ["h2"], ["r2"]),
        helper.make_node("Gemm", ["r2", "w3", "b3"], ["logits"], name="last", transB=1),
    ]
    return make_model(
        nodes,
        [("x", TensorProto.FLOAT, ["rows", FEATURES])],
        [("logits", TensorProto.FLOAT, ["rows", CLASSES])],
        {name: value.astype(np.float32) for name, value in weights.items()},
    )


def classification(n=600, seed=0, outlier=1.0, noise=0.1) -> Task:
    """Labels are the network's own answers, a fraction ``noise`` of them replaced: its accuracy is known."""
    model, rng = network(seed, outlier), np.random.default_rng(seed + 1)
    x = rng.normal(size=(n, FEATURES)).astype(np.float32)
    labels = np.argmax(model.run({"x": x})["logits"], axis=1)
    labels = np.where(rng.random(n) < noise, rng.integers(0, CLASSES, n), labels)
    return task_from_arrays(model, {"x": x}, labels, name="tiny")


def fake_measure(target, contenders, trace, *, seconds=0.0, seed=0, memory=True):
    """What ``alula.measurement.measure`` gives, for a machine whose time is the size of the file."""
    sizes = {name: sum(one.size_bytes for one in parts.values()) for name, parts in contenders.items()}
    base = next(iter(sizes.values()))
    return {
        name: {
            "latency_p50_ms": Measurement(size / 1000, "ms", size / 1000, size / 1000),
            "latency_ratio": Measurement(base / size, "x", base / size, base / size),
            "size_bytes": Measurement(float(size), "bytes"),
            "memory_bytes": Measurement(float(size), "bytes"),
        }
        for name, size in sizes.items()
    }
