"""The front door: a quantized model beside the float one that it was made from."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
import onnx

from alula.diagnosing.causes import SIDES, Evidence, causes_of, held_weights
from alula.diagnosing.matching import Match, Matching, match
from alula.diagnosing.operands import codes_behind, range_of
from alula.diagnosing.result import Diagnosis, Distribution, LayerNoise
from alula.diagnosing.twin import Kind, Noise, Twin, make_twin, with_one_layer
from alula.errors import DataError, ModelError, RecipeError, at
from alula.graph.export import as_model
from alula.graph.feeds import feeds_of
from alula.graph.load import load_model, model_from_proto
from alula.graph.model import Model, Note
from alula.graph.opset import raise_opset
from alula.graph.running import Runner
from alula.graph.shapes import with_shapes
from alula.graph.statistics import Collector, Request, Statistics, TensorStatistics
from alula.numerics.noise import decibels
from alula.recipe import Recipe, Step, apply_recipe
from alula.search.calibration import Recording
from alula.search.diagnosis import channel_axis
from alula.search.result import Finding
from alula.search.sensitivity import Harm, compare
from alula.settings import expect
from alula.targets.processor import read_processor
from alula.techniques import FoldBatchNorm
from alula.techniques.float32 import in_float32

AnyModel: TypeAlias = Model | str | Path | onnx.ModelProto
Data: TypeAlias = np.ndarray | Mapping[str, np.ndarray] | Iterable[Any]

LAYERS: Final = 60  # whose harm at the end of the network is measured one by one, those that add most noise first
RECORDED: Final = 16  # feeds kept to run networks on in which one layer is quantized
SHOWN: Final = 8  # layers whose distributions are kept
BINS: Final = 80
_WATCHED: Final = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})


def diagnose(
    quantized: AnyModel,
    original: AnyModel,
    data: Data,
    *,
    layers: int = LAYERS,
    vnni: bool | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Diagnosis:
    """What quantization did to each layer of a network, why, and what helps; the worst layer first.

    Any ONNX graph that kept the names of its float tensors is taken: QuantizeLinear and DequantizeLinear, QLinear
    operators, dynamic ones, weights alone as codes; whoever made it. One pass over the data runs both networks side by
    side; batch normalisations of the original are folded if the quantized model has none.

    >>> from alula.testing import dense_network
    >>> from alula.quantization import quantize
    >>> rows = np.random.default_rng(0).standard_normal((64, 16)).astype(np.float32)
    >>> diagnosis = diagnose(quantize(dense_network(), rows), dense_network(), rows)
    >>> [layer.bits for layer in diagnosis.layers], diagnosis.findings
    (['int8 x uint8', 'int8 x uint8'], ())

    Args:
        quantized: a Model, the path of an ONNX file, or an ONNX message.
        original: the float model that it was made from.
        data: inputs as they come in use: arrays, or feeds, which may come from a generator.
        layers: how many layers, those that add most noise first, are quantized alone to see what that does to the
            outputs; of the others it is not known.
        vnni: whether products of 8 bits are summed in 32 where the model will run; None: ask this processor.
        on_progress: called with the number of layers done and of all.

    Raises:
        ModelError: a file is no model; nothing is quantized, or the original is; no layer is found in both.
        DataError: the data is empty, not finite, or does not fit; the float network gives NaN on it.
        RecipeError: layers is below 0.
    """
    expect("layers", layers, int)
    if layers < 0:
        raise RecipeError(f"layers must be at least 0, got {layers}")
    expect("vnni", vnni, bool | None)
    model, given = open_pair(quantized, original)
    matching = match(model, given)
    twin, statistics, feeds = _watch(model, given, matching, data)
    names = _loudest(matching, twin, layers)
    harms = _harms(model, given, matching, (names, feeds), on_progress)
    safe = _sums_in_32_bits() if vnni is None else vnni
    examined = [
        _examine(model, found, (twin, statistics), harms.get(found.layer.name), vnni=safe) for found in matching.matches
    ]
    examined.sort(key=lambda one: -one.error)
    whole = compare(_run(model, feeds), _run(given, feeds))
    worst = [one.match for one in examined if one.match.quantized][:SHOWN]
    return Diagnosis(
        layers=tuple(one.row for one in examined),
        findings=tuple(finding for one in examined for finding in one.findings),
        notes=(*matching.notes, *_left_out(matching, names)),
        error=whole.error,
        sqnr_db=decibels(1.0, whole.error**2),
        agreement=whole.agreement,
        runs=statistics.runs,
        distributions=tuple(_distribution(model, one, statistics) for one in worst),
    )


def open_pair(quantized: AnyModel, original: AnyModel) -> tuple[Model, Model]:
    """The float graph and the quantized one, in the same form: float32, one opset, normalisations folded in both."""
    given = _open(quantized)
    model = in_float32(as_model(original))
    if not any(node.op_type == "BatchNormalization" for node in given.graph):
        model = apply_recipe(model, Recipe((Step(FoldBatchNorm()),)))
    opset = max(model.opset, given.opset)
    return with_shapes(_raised(model, opset)), _raised(given, opset)


def _open(thing: AnyModel) -> Model:
    if isinstance(thing, str | Path):
        return load_model(thing, allow_quantized=True)
    if isinstance(thing, onnx.ModelProto):
        copy = onnx.ModelProto()
        copy.CopyFrom(thing)
        return model_from_proto(copy, allow_quantized=True)
    return as_model(thing)


def _raised(model: Model, opset: int) -> Model:
    if model.opset == opset:
        return model
    graph, note = raise_opset(model.edit(), opset)
    if note is not None:
        raise ModelError(f"both models must be of one opset, and one cannot be raised to {opset}: {note.text}")
    return model.edited(graph)


def _watch(
    model: Model, given: Model, matching: Matching, data: Data
) -> tuple[Twin, Statistics, list[Mapping[str, np.ndarray]]]:
    """One pass over the data: the noise of each layer, what the float network showed, and a few feeds."""
    twin = make_twin(model, given, matching)
    collector = Collector(model, _requests(model, matching))
    recording = Recording(RECORDED)
    for feed in feeds_of(model.inputs, data):
        collector(feed)
        twin(feed)
        recording.add(feed)
    if not recording.calls:
        raise DataError("there are no data to diagnose with; give at least one example")
    return twin, collector.statistics(), recording.calls


def _requests(model: Model, matching: Matching) -> set[Request]:
    """A histogram, and the channels' ranges, of what each layer reads; the range of what it gives."""
    requests: set[Request] = set()
    for layer in (one.layer for one in matching.matches):
        if layer.operator in _WATCHED and layer.input not in model.graph.initializers:
            requests.add(Request(layer.input, histogram=True, channel_axis=channel_axis(layer)))
            requests.add(Request(layer.output))
    return requests


def _loudest(matching: Matching, twin: Twin, limit: int) -> list[str]:
    """The quantized layers that add most noise."""
    names = [one.layer.name for one in matching.matches if one.quantized]
    return sorted(names, key=lambda name: -twin.noise[name, "added"].error)[:limit]


def _harms(
    model: Model,
    given: Model,
    matching: Matching,
    tried: tuple[list[str], list[Mapping[str, np.ndarray]]],
    on_progress: Callable[[int, int], None] | None,
) -> dict[str, Harm]:
    """What each of some layers does to the outputs when it alone is quantized."""
    names, feeds = tried
    reference, harms = _run(model, feeds), dict[str, Harm]()
    for found in matching.matches:
        if found.layer.name in names:
            with at(f"layer {found.layer.name!r}"):
                candidate = with_one_layer(model, given, found, matching)
                harms[found.layer.name] = compare(reference, _run(candidate, feeds))
            if on_progress is not None:
                on_progress(len(harms), len(names))
    return harms


def _run(model: Model, feeds: list[Mapping[str, np.ndarray]]) -> list[dict[str, np.ndarray]]:
    runner = Runner(model)
    return [runner(feed) for feed in feeds]


@dataclass(frozen=True, slots=True)
class _Examined:
    """A layer, how much harm it does (or the noise that it adds, where that is not known), and what was found."""

    match: Match
    error: float
    row: LayerNoise
    findings: tuple[Finding, ...]


def _examine(
    model: Model, found: Match, seen: tuple[Twin, Statistics], harm: Harm | None, *, vnni: bool
) -> _Examined:  # fmt: skip
    twin, statistics = seen
    name = found.layer.name
    noise = {kind: sums for (layer, kind), sums in twin.noise.items() if layer == name}
    with at(f"layer {name!r}"):
        held = held_weights(found)
    added = noise["added"].error if "added" in noise else 0.0
    reached = harm or Harm(added, None, statistics.runs)
    findings = causes_of(Evidence(model, found, statistics, noise, reached, held, vnni))
    return _Examined(found, reached.error, _row(found, noise, harm, findings), findings)


def _row(
    found: Match, noise: Mapping[Kind, Noise], harm: Harm | None, findings: tuple[Finding, ...]
) -> LayerNoise:  # fmt: skip
    alone = noise["added"].sqnr_db if "added" in noise else None
    by_weights = alone is not None and not found.quantizes_activations  # all of it
    weights, activations = (noise[side].sqnr_db if side in noise else None for side in SIDES)
    return LayerNoise(
        name=found.layer.name,
        operator=found.layer.operator,
        bits=_bits(found),
        sqnr_db=noise["running"].sqnr_db,
        added_db=alone,
        weights_db=alone if by_weights else weights,
        activations_db=math.inf if by_weights else activations,
        shift=noise["added"].shift if "added" in noise else 0.0,
        error=None if harm is None else harm.error,
        agreement=None if harm is None else harm.agreement,
        cause=findings[0].cause if findings else "",
        fix=findings[0].fix if findings else "",
    )


def _bits(found: Match) -> str:
    """Weight and activation in words, as far as they can be told: "int8 x uint8", "int4", "float32"."""
    if not found.quantized:
        return "float32"
    weight = found.operands.weights.get(found.layer.weight)
    words = "codes" if weight is None else codes_behind(weight)[0]
    if found.operands.activation is None or not found.quantizes_activations:
        return words
    return f"{words} x {codes_behind(found.operands.activation)[0]}"


def _left_out(matching: Matching, names: list[str]) -> list[Note]:
    floats = [one.layer.name for one in matching.matches if not one.quantized]
    notes = [Note(name, "stays in float in the quantized model") for name in floats]
    unmeasured = len(matching.matches) - len(floats) - len(names)
    if unmeasured > 0:
        words = "add less noise than the others, and were not quantized alone to see what that does to the outputs"
        notes.append(Note("layers", f"{unmeasured} {words}"))
    return notes


def _distribution(model: Model, found: Match, statistics: Statistics) -> Distribution:
    layer = found.layer
    edges, counts = _histogram(statistics.get(layer.input))
    operand = found.operands.activation
    low, high = (None, None) if operand is None else range_of(operand) or (None, None)
    weight = np.abs(model.weight(layer.weight).astype(np.float64))
    others = tuple(axis for axis in range(weight.ndim) if axis != layer.output_axis)
    widths = weight.max(axis=others) if layer.input_axes else np.zeros(0)
    return Distribution(layer.name, layer.input, edges, counts, low, high, tuple(map(float, widths)))


def _histogram(seen: TensorStatistics | None) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Edges and counts of equal bins; none where nothing was watched."""
    if seen is None or seen.histogram is None:
        return (), ()
    values, counts = seen.sample()
    found, edges = np.histogram(values.astype(np.float64), BINS, weights=counts.astype(np.float64))
    return tuple(map(float, edges)), tuple(map(float, found))


def _sums_in_32_bits() -> bool:
    processor = read_processor()
    return processor.has_int8_dot_product or not processor.is_x86
