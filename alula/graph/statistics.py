"""What one streaming pass over calibration data saw, for exactly the tensors that were asked for.

Bound: a :class:`Collector` needs what inference on one batch needs, plus per tensor 512 KiB for a histogram, a sample
of about 32 KiB a row for it, and three numbers per channel. Of a tensor whose number of axes is known only when the
graph runs, and of one whose second moments are asked for, one batch is held, and the moments are k^2 numbers per layer.
Gradients need what one training step needs. Nothing grows with the number of examples.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias, TypeVar

import numpy as np
import onnx_ir as ir

from alula.errors import DataError, ModelError
from alula.graph.editing import Editor
from alula.graph.model import Model
from alula.graph.moments import MomentSum, Reading, SecondMoments, reading_of
from alula.graph.probes import Probe, add_activity, add_probe, can_probe
from alula.graph.row_sample import RowSample
from alula.graph.running import Runner
from alula.graph.summaries import Reduction, Summary, summarise
from alula.numerics.histogram import FloatHistogram

if TYPE_CHECKING:
    from alula.graph.gradients import Sensitivity, SensitivityMeter

_Kind = TypeVar("_Kind")


@dataclass(frozen=True, slots=True)
class Request:
    """A tensor that a technique wants seen; with ``channel_axis``, each channel along it apart."""

    tensor: str
    histogram: bool = False
    channel_axis: int | None = None


@dataclass(frozen=True, slots=True)
class MomentRequest:
    """The second moments of what a layer's matrix multiplies (:meth:`Statistics.moments`); ``layer`` is its name."""

    layer: str


@dataclass(frozen=True, slots=True)
class RowsRequest:
    """Some rows of what a layer's matrix multiplies (:meth:`Statistics.rows`); ``layer`` is its name."""

    layer: str


@dataclass(frozen=True, slots=True)
class ActivityRequest:
    """How active each channel of a tensor is (:meth:`Statistics.activity`)."""

    tensor: str
    channel_axis: int


@dataclass(frozen=True, slots=True)
class GradientRequest:
    """How the outputs depend on the units of every coupling (:meth:`Statistics.sensitivities`)."""


AnyRequest: TypeAlias = Request | MomentRequest | RowsRequest | ActivityRequest | GradientRequest


@dataclass(frozen=True, slots=True, eq=False)
class Activity:
    """Of each channel: the mean of its absolute values, and the share of its values that are 0; [C] each."""

    magnitude: np.ndarray
    zeros: np.ndarray


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

    def __init__(
        self,
        tensors: Mapping[str, TensorStatistics] | None = None,
        runs: int = 0,
        *,
        moments: Mapping[str, SecondMoments] | None = None,
        rows: Mapping[str, np.ndarray] | None = None,
        activities: Mapping[ActivityRequest, Activity] | None = None,
        sensitivities: Mapping[str, Sensitivity] | None = None,
    ) -> None:
        self._tensors = dict(tensors or {})
        self._moments, self._activities = dict(moments or {}), dict(activities or {})
        self._sensitivities, self._rows = dict(sensitivities or {}), dict(rows or {})
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

    def moments(self, layer: str) -> SecondMoments:
        """The second moments of what a layer's matrix multiplies.

        Raises:
            ModelError: they were not asked for (:class:`MomentRequest`).
        """
        return _collected(self._moments, layer, f"second moments of layer {layer!r}")

    def rows(self, layer: str) -> np.ndarray:  # -> [groups, rows, k]
        """Some rows of what a layer's matrix multiplies, evenly spread over all that were seen.

        Raises:
            ModelError: they were not asked for (:class:`RowsRequest`).
        """
        return _collected(self._rows, layer, f"rows of layer {layer!r}")

    def activity(self, tensor: str, channel_axis: int) -> Activity:
        """How active each channel of a tensor is.

        Raises:
            ModelError: it was not asked for (:class:`ActivityRequest`).
        """
        wanted = ActivityRequest(tensor, channel_axis)
        return _collected(self._activities, wanted, f"activity of tensor {tensor!r} along axis {channel_axis}")

    def sensitivities(self, coupling: str) -> Sensitivity:
        """How the outputs depend on the units of a coupling.

        Raises:
            ModelError: they were not asked for (:class:`GradientRequest`), or the graph had no such coupling.
        """
        return _collected(self._sensitivities, coupling, f"gradients of the units of {coupling!r}")

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def __bool__(self) -> bool:
        """Whether anything was collected, of tensors or of other things."""
        return any((self._tensors, self._moments, self._rows, self._activities, self._sensitivities))


@dataclass(slots=True)
class _Accumulator:
    """Running statistics of one tensor."""

    tensor: str
    wants_histogram: bool
    axes: frozenset[int]
    count: int = 0
    reductions: dict[int | None, Reduction] = field(default_factory=dict)
    histogram: FloatHistogram | None = None

    def add(self, array: np.ndarray) -> None:
        """Add an array, of any size and type."""
        for axis in self.axes:
            if not -array.ndim <= axis < array.ndim:
                raise ModelError(
                    f"tensor {self.tensor!r} has {array.ndim} axes, its channels were asked for along axis {axis}"
                )
        if array.size == 0:
            return
        summary = summarise(array, self.axes, sample=self.wants_histogram)
        if not summary.is_finite():
            raise DataError(_nonfinite(self.tensor, array))
        self.join(summary)

    def join(self, summary: Summary) -> None:
        """Add what one run showed, which is finite."""
        if summary.size == 0:
            return
        self.count += summary.size
        for axis, seen in summary.reductions.items():
            before = self.reductions.get(axis)
            self.reductions[axis] = seen if before is None else self._joined(axis, before, seen)
        if summary.sample is not None:
            self.histogram = self.histogram or FloatHistogram()
            self.histogram.add(summary.sample)

    def _joined(self, axis: int | None, before: Reduction, seen: Reduction) -> Reduction:
        if before.total.shape != seen.total.shape:
            raise DataError(
                f"tensor {self.tensor!r} has {seen.total.size} channels along axis {axis} now, it had "
                f"{before.total.size} before; give calibration data of one kind"
            )
        return Reduction(
            np.minimum(before.minimum, seen.minimum),
            np.maximum(before.maximum, seen.maximum),
            before.total + seen.total,
        )

    def freeze(self) -> TensorStatistics:
        if self.count == 0:
            raise DataError(f"calibration never produced a value of tensor {self.tensor!r}; give more examples")
        whole = next(iter(self.reductions.values()))
        return TensorStatistics(
            count=self.count,
            minimum=float(whole.minimum.min()),
            maximum=float(whole.maximum.max()),
            mean=float(whole.total.sum()) / self.count,
            histogram=self.histogram,
            channels={
                axis: ChannelStatistics(seen.minimum, seen.maximum, seen.total * (seen.total.size / self.count))
                for axis, seen in self.reductions.items()
                if axis is not None
            },
        )


class Collector:
    """Runs a graph like a :class:`Runner` does, and watches what was requested go by.

    Raises:
        ModelError: a request names a tensor or layer that the graph has not, a layer that multiplies by no matrix, or
            gradients of a graph with an operator that has none.
    """

    def __init__(self, model: Model, requests: Iterable[AnyRequest], *, threads: int = 0) -> None:
        requests = tuple(requests)
        self._outputs = [spec.name for spec in model.outputs]
        self._inputs = {spec.name for spec in model.inputs}
        self._readings = _readings(model, [one.layer for one in _of_kind(requests, MomentRequest)])
        self._moments = {reading: MomentSum(reading) for reading in self._readings.values()}
        self._sampled = _readings(model, [one.layer for one in _of_kind(requests, RowsRequest)])
        self._samples = {reading: RowSample(reading) for reading in self._sampled.values()}
        self._meter = _meter(model) if _of_kind(requests, GradientRequest) else None
        self._model, self._activities, derived = _with_activities(model, _of_kind(requests, ActivityRequest))
        self._threads = threads
        self._accumulators = _accumulators([*_of_kind(requests, Request), *derived])
        held = {reading.tensor for reading in (*self._moments, *self._samples)}
        watched, self._probes = _watching(self._model, self._accumulators, held)
        self._runner = Runner(watched, threads=threads)
        self._exposing: dict[str, Runner] = {}
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
        for name in self._outputs:
            if outputs[name].dtype.kind == "f" and np.isnan(outputs[name]).any():
                raise DataError(f"output {name!r} holds NaN; the graph overflows on these data, or they do not fit it")
        for name, accumulator in self._accumulators.items():
            if name in self._probes:
                self._join(name, self._probes[name].read(outputs), feeds)
            else:
                accumulator.add(feeds[name] if name in self._inputs else outputs[name])
        self._add_rows({**outputs, **feeds})
        if self._meter is not None:
            self._meter.add(feeds)
        self._runs += 1
        return {name: outputs[name] for name in self._outputs}

    def _add_rows(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Add what was held of this run to second moments and to samples."""
        readers: list[tuple[Reading, MomentSum | RowSample]] = [*self._moments.items(), *self._samples.items()]
        for name in sorted({reading.tensor for reading, _ in readers}):
            if not np.isfinite(arrays[name]).all():
                raise DataError(_nonfinite(name, arrays[name]))
        for reading, reader in readers:
            reader.add(arrays[reading.tensor])

    def _join(self, name: str, summary: Summary, feeds: Mapping[str, np.ndarray]) -> None:
        """Add a summary; where its totals are not finite, find out from the tensor itself whether its values are."""
        if summary.is_finite():
            self._accumulators[name].join(summary)
            return
        if name not in self._exposing:
            self._exposing[name] = Runner(_exposing(self._model, [name]), threads=self._threads)
        self._accumulators[name].add(self._exposing[name](feeds)[name])

    def statistics(self) -> Statistics:
        """What was seen so far.

        Raises:
            DataError: nothing was run, or a tensor was always empty.
        """
        if self._runs == 0 and any((self._accumulators, self._moments, self._samples, self._meter)):
            raise DataError("calibration data is empty; give at least one example")
        tensors = {name: seen.freeze() for name, seen in self._accumulators.items()}
        moments = {reading: seen.freeze() for reading, seen in self._moments.items()}
        samples = {reading: seen.freeze() for reading, seen in self._samples.items()}
        return Statistics(
            tensors,
            self._runs,
            moments={layer: moments[reading] for layer, reading in self._readings.items()},
            rows={layer: samples[reading] for layer, reading in self._sampled.items()},
            activities={
                request: Activity(*(tensors[name].channels[request.channel_axis].mean for name in names))
                for request, names in self._activities.items()
            },
            sensitivities=None if self._meter is None else self._meter.sensitivities(),
        )


def collect(model: Model, feeds: Iterable[Mapping[str, np.ndarray]], requests: Iterable[AnyRequest]) -> Statistics:
    """What was requested over an iterable of feeds, which may be a generator of any length."""
    collector = Collector(model, requests)
    for feed in feeds:
        collector(feed)
    return collector.statistics()


def summarise_tensor(model: Model, arrays: Sequence[np.ndarray], requests: Iterable[AnyRequest]) -> Statistics:
    """What was requested of the one tensor that layers of a graph read, from its values instead of by running it.

    Raises:
        DataError: the values are not finite, or there are none.
        ModelError: the graph has no layer of a name, or it multiplies by no matrix.
    """
    requests = tuple(requests)
    accumulators = _accumulators(_of_kind(requests, Request))
    readings = _readings(model, [one.layer for one in _of_kind(requests, MomentRequest)])
    moments = {reading: MomentSum(reading) for reading in readings.values()}
    readers: list[_Accumulator | MomentSum] = [*accumulators.values(), *moments.values()]
    for array in arrays:
        for one in readers:
            one.add(array)
    tensors = {name: seen.freeze() for name, seen in accumulators.items()}
    frozen = {reading: seen.freeze() for reading, seen in moments.items()}
    return Statistics(tensors, len(arrays), moments={layer: frozen[reading] for layer, reading in readings.items()})


def _of_kind(requests: Iterable[AnyRequest], kind: type[_Kind]) -> list[_Kind]:
    return [request for request in requests if isinstance(request, kind)]


_Key = TypeVar("_Key")


def _collected(found: Mapping[_Key, _Kind], key: _Key, what: str) -> _Kind:
    if key not in found:
        raise ModelError(f"no {what} were collected; request them before calibration")
    return found[key]


def _readings(model: Model, wanted: Iterable[str]) -> dict[str, Reading]:
    """How each layer reads its rows, by the layer's name."""
    layers = {layer.name: layer for layer in model.layers()}
    nodes = {str(node.name): node for node in model.graph}
    names = sorted(set(wanted))
    unknown = [name for name in names if name not in layers]
    if unknown:
        raise ModelError(f"the graph has no layer named {unknown[0]!r}; what it reads was asked for")
    return {name: reading_of(layers[name], nodes[name]) for name in names}


def _meter(model: Model) -> SensitivityMeter:
    """What measures the gradients; torch is imported only where they are asked for."""
    from alula.graph.channels import find_couplings
    from alula.graph.gradients import RandomProjection, SensitivityMeter

    return SensitivityMeter(model, find_couplings(model), RandomProjection())


def _with_activities(
    model: Model, requests: Iterable[ActivityRequest]
) -> tuple[Model, dict[ActivityRequest, tuple[str, str]], list[Request]]:
    """The model with the tensors whose means activities are; their names; requests for them."""
    if not requests:
        return model, {}, []
    editor = Editor(model.edit())
    tensors = {name: add_activity(editor, editor.value(name)) for name in sorted({one.tensor for one in requests})}
    activities = {request: tensors[request.tensor] for request in requests}
    derived = [Request(name, channel_axis=one.channel_axis) for one, names in activities.items() for name in names]
    return model.edited(editor.model), activities, derived


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


def _watching(
    model: Model, accumulators: Mapping[str, _Accumulator], held: set[str]
) -> tuple[Model, dict[str, Probe]]:  # fmt: skip
    """The model with a probe at each requested tensor, or the tensor itself as an output where none can be; probes.

    Tensors in ``held`` are outputs in any case.
    """
    exposed = {spec.name for spec in (*model.inputs, *model.outputs)} | held
    editor = Editor(_exposing(model, [*accumulators, *sorted(held - set(accumulators))]).edit())
    probes = {}
    for name, accumulator in accumulators.items():
        value = editor.value(name)
        if name not in exposed and can_probe(value, accumulator.axes):
            editor.graph.outputs.remove(value)
            probes[name] = add_probe(editor, value, accumulator.axes, sample=accumulator.wants_histogram)
    return model.edited(editor.model), probes


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
            value.type = ir.TensorType(ir.DataType.FLOAT)
        graph.graph.outputs.append(value)
    return model.edited(graph)


def _unknown(name: str, graph: ir.Graph) -> str:
    inside = {str(value.name) for body in graph.subgraphs() for node in body for value in node.outputs}
    if name in inside:
        return f"tensor {name!r} lies in a body of If, Loop or Scan, which is not looked into; ask for one outside"
    if name in graph.initializers:
        return f"{name!r} is an initializer: its values are known without calibration"
    return f"the graph has no tensor named {name!r}"


def _nonfinite(place: str, array: np.ndarray) -> str:
    bad = array.size - int(np.isfinite(array).sum())
    return f"{place!r} holds {bad:,} values that are NaN or infinite, of {array.size:,}; clean the calibration data"
