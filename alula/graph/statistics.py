"""What one streaming pass over calibration data saw, for exactly the tensors that were asked for.

Bound: a :class:`Collector` holds one batch of the requested activations at a time, plus per tensor 512 KiB for a
histogram and three numbers per channel. Nothing grows with the number of examples.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from alula.errors import DataError, ModelError
from alula.graph.model import Model
from alula.graph.running import Runner
from alula.numerics.histogram import FloatHistogram

SAMPLE_LIMIT = 8_192  # values of one tensor and row that enter its histogram; minimum and maximum see all of them


@dataclass(frozen=True, slots=True)
class Request:
    """A tensor that a technique wants seen; with ``channel_axis``, each channel along it apart."""

    tensor: str
    histogram: bool = False
    channel_axis: int | None = None


@dataclass(frozen=True, slots=True, eq=False)
class ChannelStatistics:
    """What was seen of each channel along one axis of a tensor, [C] each."""

    minimum: np.ndarray
    maximum: np.ndarray
    mean: np.ndarray


@dataclass(frozen=True, slots=True, eq=False)
class TensorStatistics:
    """What was seen of one tensor, and of its channels along each axis that was asked for."""

    count: int
    minimum: float
    maximum: float
    mean: float
    histogram: FloatHistogram | None = None
    channels: Mapping[int, ChannelStatistics] = field(default_factory=dict)

    def sample(self) -> tuple[np.ndarray, np.ndarray]:
        """The histogram as sorted values [n] and their counts [n]; the two ends are the exact extremes."""
        if self.histogram is None:
            raise ModelError("a histogram was not asked for this tensor")
        values, counts = self.histogram.occupied()
        values = np.clip(values, self.minimum, self.maximum)
        ends = np.array([self.minimum, self.maximum], np.float32)
        return np.concatenate([ends[:1], values, ends[1:]]), np.concatenate([[1], counts, [1]])


class Statistics(Mapping[str, TensorStatistics]):
    """Tensor statistics by tensor name; a name that was never asked for is an error with a reason."""

    def __init__(self, tensors: Mapping[str, TensorStatistics] | None = None, runs: int = 0) -> None:
        self._tensors = dict(tensors or {})
        self.runs = runs

    def __getitem__(self, name: str) -> TensorStatistics:
        if name not in self._tensors:
            raise ModelError(f"no statistics were collected for tensor {name!r}; request it before calibration")
        return self._tensors[name]

    def __contains__(self, name: object) -> bool:
        return name in self._tensors

    def get(  # type: ignore[override]
        self, name: str, default: TensorStatistics | None = None
    ) -> TensorStatistics | None:
        """The statistics of a tensor, or the default where none were collected."""
        return self._tensors.get(name, default)

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


_JOINS = {"minimum": np.minimum, "maximum": np.maximum, "total": np.add, "size": np.add}


@dataclass(slots=True)
class _Accumulator:
    """Running statistics of one tensor."""

    tensor: str
    wants_histogram: bool
    axes: frozenset[int]
    count: int = 0
    total: float = 0.0
    minimum: float = np.inf
    maximum: float = -np.inf
    histogram: FloatHistogram | None = None
    channels: dict[int, dict[str, np.ndarray]] = field(default_factory=dict)

    def add(self, array: np.ndarray) -> None:
        if array.size == 0:
            return
        with np.errstate(over="ignore"):
            array = array.astype(np.float32, copy=False)
        low, high, total = self._pass_over(array)
        if not np.isfinite(total):  # as cheap a test as there is
            raise DataError(_nonfinite(self.tensor, array))
        self.count += array.size
        self.total += total
        self.minimum = min(self.minimum, low)
        self.maximum = max(self.maximum, high)
        if self.wants_histogram:
            self._add_histogram(array)

    def _pass_over(self, array: np.ndarray) -> tuple[float, float, float]:
        """Minimum, maximum and total; by way of those of each channel where they are wanted too."""
        if not self.axes:
            return float(array.min()), float(array.max()), _total(array)
        *_, seen = (self._add_channels(array, axis) for axis in sorted(self.axes))
        return float(seen["minimum"].min()), float(seen["maximum"].max()), float(seen["total"].sum())

    def _add_histogram(self, array: np.ndarray) -> None:
        if self.histogram is None:
            self.histogram = FloatHistogram()
        flat = np.ascontiguousarray(array).reshape(-1)
        rows = min(array.shape[0], 32) if array.ndim else 1
        self.histogram.add(flat[:: _stride(flat.size, rows * SAMPLE_LIMIT)])

    def _add_channels(self, array: np.ndarray, axis: int) -> dict[str, np.ndarray]:
        if not -array.ndim <= axis < array.ndim:
            raise ModelError(
                f"tensor {self.tensor!r} has {array.ndim} axes, its channels were asked for along axis {axis}"
            )
        others = tuple(index for index in range(array.ndim) if index != axis % array.ndim)
        size = array.size // array.shape[axis]
        seen = {
            "minimum": array.min(axis=others),
            "maximum": array.max(axis=others),
            "total": _channel_totals(array, axis % array.ndim),
            "size": np.full(array.shape[axis], size, np.int64),
        }
        before = self.channels.get(axis)
        known = seen["size"] if before is None else before["size"]
        if known.shape != seen["size"].shape:
            raise DataError(
                f"tensor {self.tensor!r} has {seen['size'].size} channels along axis {axis} now, it had "
                f"{known.size} before; give calibration data of one kind"
            )
        self.channels[axis] = seen if before is None else {key: _JOINS[key](before[key], seen[key]) for key in seen}
        return seen

    def freeze(self) -> TensorStatistics:
        if self.count == 0:
            raise DataError(f"calibration never produced a value of tensor {self.tensor!r}; give more examples")
        return TensorStatistics(
            count=self.count,
            minimum=self.minimum,
            maximum=self.maximum,
            mean=self.total / self.count,
            histogram=self.histogram,
            channels={
                axis: ChannelStatistics(seen["minimum"], seen["maximum"], seen["total"] / seen["size"])
                for axis, seen in self.channels.items()
            },
        )


class Collector:
    """Runs a graph like a :class:`Runner` does, and watches the requested tensors go by."""

    def __init__(self, model: Model, requests: Iterable[Request], *, threads: int = 0) -> None:
        accumulators = _accumulators(requests)
        self._outputs = [spec.name for spec in model.outputs]
        self._inputs = {spec.name for spec in model.inputs}
        self._accumulators = accumulators
        self._runner = Runner(_exposing(model, accumulators), threads=threads)
        self._runs = 0

    def __call__(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run once and add what went by.

        Raises:
            DataError: the feeds do not fit, or a requested tensor holds NaN or infinity (named).
        """
        for name, array in feeds.items():  # an infinity may be meant where no one asks for the range: masks
            if array.dtype.kind == "f" and np.isnan(array).any():
                raise DataError(_nonfinite(f"input {name}", array))
        outputs = self._runner(feeds)
        for name, accumulator in self._accumulators.items():
            accumulator.add(feeds[name] if name in self._inputs else outputs[name])
        self._runs += 1
        return {name: outputs[name] for name in self._outputs}

    def statistics(self) -> Statistics:
        """What was seen so far.

        Raises:
            DataError: nothing was run, or a tensor was always empty.
        """
        if self._accumulators and self._runs == 0:
            raise DataError("calibration data is empty; give at least one example")
        return Statistics({name: seen.freeze() for name, seen in self._accumulators.items()}, self._runs)


def collect(model: Model, feeds: Iterable[Mapping[str, np.ndarray]], requests: Iterable[Request]) -> Statistics:
    """Statistics of the requested tensors over an iterable of feeds, which may be a generator of any length."""
    collector = Collector(model, requests)
    for feed in feeds:
        collector(feed)
    return collector.statistics()


def _accumulators(requests: Iterable[Request]) -> dict[str, _Accumulator]:
    """One accumulator per tensor, for everything that its requests ask for."""
    asked: dict[str, list[Request]] = {}
    for request in requests:
        asked.setdefault(request.tensor, []).append(request)
    return {
        tensor: _Accumulator(
            tensor,
            any(request.histogram for request in group),
            frozenset(request.channel_axis for request in group if request.channel_axis is not None),
        )
        for tensor, group in sorted(asked.items())
    }


def _exposing(model: Model, tensors: Iterable[str]) -> Model:
    """The model with the requested tensors as additional outputs."""
    graph = model.edit()
    values = {str(value.name): value for node in graph.graph for value in node.outputs}
    present = {spec.name for spec in (*model.inputs, *model.outputs)}
    for name in tensors:
        if name in present:
            continue
        if name not in values:
            raise ModelError(_unknown(name, graph.graph))
        value = values[name]
        if value.dtype is None:
            value.dtype = ir.DataType.FLOAT
        graph.graph.outputs.append(value)
    return model.edited(graph)


def _unknown(name: str, graph: ir.Graph) -> str:
    inside = {str(value.name) for body in graph.subgraphs() for node in body for value in node.outputs}
    if name in inside:
        return f"tensor {name!r} lies in a body of If, Loop or Scan, which is not looked into; ask for one outside"
    if name in graph.initializers:
        return f"{name!r} is an initializer: its values are known without calibration"
    return f"the graph has no tensor named {name!r}"


def _channel_totals(array: np.ndarray, axis: int) -> np.ndarray:  # [..., C, ...] -> [C]
    """Sums in float32 over the inner axes, which numpy does pairwise, then in float64 over the outer ones."""
    with np.errstate(over="ignore"):
        inner = array.sum(axis=tuple(range(axis + 1, array.ndim)))  # [..., C]
    if not np.isfinite(inner).all():
        inner = array.sum(axis=tuple(range(axis + 1, array.ndim)), dtype=np.float64)
    return np.asarray(inner.sum(axis=tuple(range(axis)), dtype=np.float64))


def _stride(size: int, limit: int) -> int:
    """A step that takes at most ``limit`` values and comes by every channel: it shares no factor with any axis."""
    step = max(1, -(-size // limit))
    while math.gcd(step, size) > 1:
        step += 1
    return step


def _total(array: np.ndarray) -> float:
    """The sum; pairwise in float32 along rows, then in float64; all in float64 where float32 overflows."""
    flat = np.ascontiguousarray(array).reshape(-1)
    whole = flat.size - flat.size % 1024
    with np.errstate(over="ignore"):
        rows = flat[:whole].reshape(-1, 1024).sum(axis=1)
    if not np.isfinite(rows).all():
        return float(flat.sum(dtype=np.float64))
    return float(rows.sum(dtype=np.float64) + flat[whole:].sum(dtype=np.float64))


def _nonfinite(place: str, array: np.ndarray) -> str:
    bad = array.size - int(np.isfinite(array).sum())
    return f"{place!r} holds {bad:,} values that are NaN or infinite, of {array.size:,}; clean the calibration data"
