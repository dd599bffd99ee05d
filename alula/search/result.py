"""What a compression run found: the candidates, the chosen one, why the others were not, and how sure that is.

Everything here is data that round-trips through JSON. What is read back is checked field by field, so that a damaged
or edited ``result.json`` is named as such, and never surfaces as a KeyError somewhere in a report.
"""

from __future__ import annotations

import json
import math
import types
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, Self, Union, get_args, get_origin, get_type_hints

from alula.budget import Budget
from alula.errors import AlulaError, StorageError
from alula.graph.model import Note
from alula.measurement.certificate import Certificate
from alula.measurement.measurement import Measurement
from alula.recipe import Recipe
from alula.storage import write_text

RESULT_FILE = "result.json"
FORMAT = 1  # raised when a reader of an older version could not understand the file


class Record:
    """A frozen dataclass that round-trips through plain JSON data."""

    __slots__ = ()

    def to_json(self) -> dict[str, Any]:
        """The record as plain data: dictionaries, lists, strings and finite numbers."""
        return {item.name: _encode(getattr(self, item.name)) for item in fields(self)}  # type: ignore[arg-type]

    @classmethod
    def from_json(cls, data: Any) -> Self:
        """The record that :meth:`to_json` wrote.

        Raises:
            StorageError: a field is missing, unknown or of another type; the message holds its path.
        """
        record: Self = _decode_record(cls, data, cls.__name__.lower())
        return record


@dataclass(frozen=True, slots=True)
class LayerRow(Record):
    """One layer of a candidate: what it became, what it costs, and why."""

    part: str
    name: str
    operator: str
    bits: str  # weight x activation in words: "int8 x uint8", "float32", "int4/32"
    weight_bytes: int
    macs: int | None  # multiply-accumulates of one run; None where shapes cannot be told before running
    harm: float | None  # relative error of the graph's outputs when only this layer is compressed; None: not measured
    latency_share: float | None  # fraction of the time of all nodes, 0..1; None where the profiler shows no such node
    why: str


@dataclass(frozen=True, slots=True)
class TimeSplit(Record):
    """Where the time goes, node by node, by the runtime's own profiler: four fractions that add up to 1.

    Layers count as int8 when the runtime computes them in integers, whatever their graph says. ``conversions`` are
    quantizing, dequantizing, casts and layout changes that the original's graph does not ask for.
    """

    total_ms: float  # of all nodes, for one example; the profiler slows it down a little
    int8: float  # fraction spent in layers computed in integers
    floating: float  # fraction spent in layers computed in floating point
    conversions: float
    other: float  # everything that bears no weights and converts nothing
    conversion_count: int
    node_count: int


@dataclass(frozen=True, slots=True)
class Finding(Record):
    """Why a layer suffers, by name, with the numbers that show it and what helps."""

    part: str
    layer: str
    cause: str  # "outlier channel", "saturated activation", "layer normalisation tail", ...
    text: str
    values: dict[str, float]
    fix: str


@dataclass(frozen=True, slots=True)
class Candidate(Record):
    """One recipe, built for the target and measured there."""

    name: str
    recipe: Recipe
    size_bytes: int
    score: float
    drop: float  # positive when the score got worse
    measurements: dict[str, Measurement]
    notes: tuple[Note, ...] = ()
    verdict: str = ""  # why it was or was not chosen
    layers: tuple[LayerRow, ...] = ()
    artifacts: dict[str, str] = field(default_factory=dict)  # part -> path relative to the output folder; {}: not kept
    time: TimeSplit | None = None


@dataclass(frozen=True, slots=True)
class Frontier(Record):
    """The result of one run: what was tried, what is not dominated, what was chosen, and the proof."""

    task: str
    metric: str
    labelled: bool  # False: the score is agreement with the original
    original: Candidate
    candidates: tuple[Candidate, ...]
    chosen: str | None
    pareto: tuple[str, ...]
    certificate: Certificate | None
    budget: Budget
    target: dict[str, str]
    findings: tuple[Finding, ...] = ()
    distance: str = ""  # what is missing to the budget when nothing was chosen
    closest: str | None = None  # the candidate nearest to the budget, written when nothing was chosen
    seed: int = 0
    seconds: float = 0.0
    versions: dict[str, str] = field(default_factory=dict)
    machine: dict[str, str] = field(default_factory=dict)
    command: str = ""
    fingerprints: dict[str, str] = field(default_factory=dict)  # of the task, its models and the chosen artifact
    higher_is_better: bool = True  # of the score

    def __post_init__(self) -> None:
        names = [self.original.name, *(candidate.name for candidate in self.candidates)]
        doubled = sorted({name for name in names if names.count(name) > 1})
        if doubled:
            raise StorageError(f"candidates must have different names, got {doubled} more than once")
        wanted = {*self.pareto, self.chosen, self.closest} - {None}
        if unknown := sorted(map(str, wanted - set(names))):
            raise StorageError(f"chosen, closest and pareto must name candidates, got {unknown}; known: {names}")

    def candidate(self, name: str) -> Candidate:
        """The candidate (or the original) of this name.

        Raises:
            StorageError: there is none.
        """
        for candidate in (self.original, *self.candidates):
            if candidate.name == name:
                return candidate
        raise StorageError(f"no candidate is named {name!r}")

    @property
    def best(self) -> Candidate:
        """What was written: the chosen candidate, else the closest to the budget, else the original."""
        name = self.chosen or self.closest
        return self.original if name is None else self.candidate(name)

    def __str__(self) -> str:
        from alula.search.words import verdict_in_words

        return verdict_in_words(self)

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        from alula.search.words import summary_in_html

        return summary_in_html(self)


def write_result(frontier: Frontier, folder: Path) -> Path:
    """Write ``folder/result.json``; it appears whole or not at all.

    Raises:
        StorageError: the folder cannot be written.
    """
    path = folder / RESULT_FILE
    document = {"format": FORMAT, **frontier.to_json()}
    write_text(path, json.dumps(document, indent=1, allow_nan=False, ensure_ascii=False))
    return path


def read_result(folder: Path) -> Frontier:
    """The result that a run left in ``folder``.

    Raises:
        StorageError: there is none, or it is damaged, or a newer version wrote it.
    """
    path = folder / RESULT_FILE
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StorageError(
            f"{folder} holds no {RESULT_FILE}; give the folder that 'alula compress --out' wrote"
        ) from None
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise StorageError(f"{path} is damaged (not JSON: {error}); run 'alula compress' again") from error
    if not isinstance(data, dict) or data.pop("format", None) != FORMAT:
        raise StorageError(f"{path} must be a result of format {FORMAT}; this version of alula reads no other")
    try:
        return Frontier.from_json(data)
    except StorageError as error:
        raise StorageError(f"{path} is damaged: {error}; run 'alula compress' again") from error


def _encode(value: Any) -> Any:
    """``value`` as plain data; NaN and infinities, which JSON lacks, become strings."""
    if hasattr(value, "to_json"):
        return _encode(value.to_json())
    if is_dataclass(value) and not isinstance(value, type):
        return {item.name: _encode(getattr(value, item.name)) for item in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _encode(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_encode(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(float(value))
    return value


def _decode(kind: Any, value: Any, place: str) -> Any:
    """``value`` as the annotated type ``kind``, or a StorageError that names ``place``."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):  # only "X | None" is used
        return None if value is None else _decode(inner[0], value, place)
    if origin is Literal:
        return _expect(value in inner, value, place, f"one of {inner}", value)
    if origin is tuple:  # only tuple[X, ...] is used
        _expect(isinstance(value, list), value, place, "a list", value)
        return tuple(_decode(inner[0], item, f"{place}[{index}]") for index, item in enumerate(value))
    if origin is dict:
        _expect(isinstance(value, dict), value, place, "an object", value)
        return {key: _decode(inner[1], item, f"{place}.{key}") for key, item in value.items()}
    return _decode_plain(kind, value, place)


def _decode_plain(kind: type, value: Any, place: str) -> Any:
    if kind is float:
        number = float(value) if value in ("nan", "inf", "-inf") or _is_number(value) else None
        return _expect(number is not None, value, place, "a number", number)
    if kind is int:
        return _expect(_is_number(value) and not isinstance(value, float), value, place, "a whole number", value)
    if kind in (str, bool):
        return _expect(isinstance(value, kind), value, place, "text" if kind is str else "true or false", value)
    if issubclass(kind, Record) or not hasattr(kind, "from_json"):
        return _decode_record(kind, value, place)
    try:
        return kind.from_json(value)
    except (AlulaError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise StorageError(f"{place} must be a {kind.__name__}: {type(error).__name__}: {error}") from error


def _decode_record(kind: Any, data: Any, place: str) -> Any:
    """A dataclass from an object with exactly its fields (those with a default may be missing)."""
    _expect(isinstance(data, dict), data, place, "an object", data)
    hints = get_type_hints(kind)
    known = {item.name for item in fields(kind)}
    if unknown := sorted(set(data) - known):
        raise StorageError(f"{place} must have only the fields {sorted(known)}, got also {unknown}")
    values = {name: _decode(hints[name], item, f"{place}.{name}") for name, item in data.items()}
    try:
        return kind(**values)
    except TypeError as error:
        raise StorageError(f"{place} is incomplete: {error}") from error
    except AlulaError as error:
        raise StorageError(f"{place}: {error}") from error


def _expect(holds: bool, value: Any, place: str, wanted: str, result: Any) -> Any:  # noqa: FBT001
    if not holds:
        raise StorageError(f"{place} must be {wanted}, got {str(value)[:60]!r}")
    return result


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
