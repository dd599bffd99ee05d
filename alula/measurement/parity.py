"""Whether an artifact computes what its graph says: both run on the same inputs, output by output."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from alula.graph.model import Model
from alula.graph.running import Runner
from alula.measurement.trace import Trace, open_parts
from alula.targets import Artifact, Target

Floats = npt.NDArray[np.float64]

# Operators after which a runtime may fuse and round in another order, by one step of the grid.
_ROUNDING = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "MatMulInteger", "ConvInteger"})


@dataclass(frozen=True, slots=True)
class Tolerance:
    """Least cosine, and largest error as a fraction of the output's largest magnitude over the trace."""

    cosine: float
    error: float


FLOAT_TOLERANCE = Tolerance(cosine=0.9999, error=0.01)
QUANTIZED_TOLERANCE = Tolerance(cosine=0.99, error=0.5)


@dataclass(frozen=True, slots=True)
class Parity:
    """The worst output's error and cosine, whether all are tolerable, and what was found, in words."""

    max_error: float
    cosine: float
    ok: bool
    note: str


def check_parity(
    models: Mapping[str, Model],
    target: Target,
    artifacts: Mapping[str, Artifact],
    trace: Trace,
    tolerance: Tolerance | None = None,
) -> Parity:
    """Run graph and artifact on a trace and compare every output.

    The graph runs without optimisations, so that it is the text of the graph that is compared with.

    Args:
        models: graphs by part.
        target: what built the artifacts.
        artifacts: by part.
        trace: inputs.
        tolerance: by default tight for graphs in float, wide for graphs with rounding.

    Raises:
        TargetError: an artifact is missing or cannot be opened.
        DataError: the inputs do not fit.
    """
    opened = open_parts(target, artifacts, trace)
    worst: list[tuple[bool, float, float, str]] = []
    for part in sorted(opened):
        reference = Runner(models[part], optimise=False)
        pairs = [(reference(feeds), opened[part](feeds)) for called, feeds in trace if called == part]
        limits = tolerance or _tolerance_of(models[part])
        for output in pairs[0][0]:
            error, cosine = compare([want[output] for want, _ in pairs], [have.get(output) for _, have in pairs])
            fits = error <= limits.error and cosine >= limits.cosine
            worst.append((fits, error, cosine, f"{part}: output {output!r}"))
    return _conclude(worst)


def agree(
    target: Target, originals: Mapping[str, Artifact], candidates: Mapping[str, Artifact], trace: Trace
) -> dict[tuple[str, str], float]:
    """How far a candidate's outputs agree with the original's on a trace: cosine by part and output.

    Raises:
        TargetError: an artifact is missing or cannot be opened.
    """
    before, after = (open_parts(target, artifacts, trace) for artifacts in (originals, candidates))
    cosines = {}
    for part in sorted(before):
        pairs = [(before[part](feeds), after[part](feeds)) for called, feeds in trace if called == part]
        for output in pairs[0][0]:
            wanted, given = [want[output] for want, _ in pairs], [have.get(output) for _, have in pairs]
            cosines[part, output] = compare(wanted, given)[1]
    return cosines


def compare(wanted: list[np.ndarray], given: list[np.ndarray | None]) -> tuple[float, float]:
    """Largest error relative to the largest wanted magnitude, and cosine, of one output over all calls.

    Numbers that are not finite must stand at the same places; where they do not, or shapes differ, the error is
    infinite and the cosine 0.
    """
    if any(have is None or have.shape != want.shape for want, have in zip(wanted, given, strict=True)):
        return np.inf, 0.0
    want, have = _flat(wanted), _flat([array for array in given if array is not None])  # [values] each
    finite = np.isfinite(want)
    if not np.array_equal(want[~finite], have[~finite], equal_nan=True) or not np.isfinite(have[finite]).all():
        return np.inf, 0.0
    want, have = want[finite], have[finite]
    difference = float(np.max(np.abs(want - have), initial=0.0))
    scale = float(np.max(np.abs(want), initial=0.0))
    error = 0.0 if difference == 0 else difference / scale if scale else np.inf
    norms = float(np.linalg.norm(want) * np.linalg.norm(have))
    return error, float(want @ have / norms) if norms else float(difference == 0)


def _flat(arrays: list[np.ndarray]) -> Floats:
    return np.concatenate([array.astype(np.float64).ravel() for array in arrays])


def _tolerance_of(model: Model) -> Tolerance:
    return QUANTIZED_TOLERANCE if any(node.op_type in _ROUNDING for node in model.graph) else FLOAT_TOLERANCE


def _conclude(rows: list[tuple[bool, float, float, str]]) -> Parity:
    error, cosine = max(row[1] for row in rows), min(row[2] for row in rows)
    bad = next((row for row in rows if not row[0]), None)
    if bad:
        note = f"{bad[3]} differs from the graph: error {bad[1]:.2g} of its largest value, cosine {bad[2]:.4f}"
    else:
        note = f"{len(rows)} outputs agree: error up to {error:.2g} of the largest value, cosine {cosine:.6f}"
    return Parity(error, cosine, bad is None, note)
