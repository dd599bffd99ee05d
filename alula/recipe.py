"""An ordered list of techniques with the layers that each is for; plain data that can be written down and replayed."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from types import NoneType
from typing import Any, TypeAlias, get_args, get_origin, get_type_hints

import numpy as np

from alula.errors import DataError, RecipeError, at
from alula.graph.layers import Layer, select
from alula.graph.load import load_model
from alula.graph.model import Model, Note
from alula.graph.statistics import AnyRequest, Statistics, collect
from alula.numerics.ranges import Entropy, MeanSquaredError, MinMax, Percentile
from alula.techniques import (
    Cluster,
    Context,
    Drop,
    Equalize,
    Factorize,
    Float16,
    Float32,
    FoldBatchNorm,
    Prune,
    Quantize,
    QuantizeDynamic,
    QuantizeWeights,
    Sparsify,
    StoreSparse,
    Technique,
)

_KINDS = (
    Cluster, Drop, Equalize, Factorize, Float16, Float32, FoldBatchNorm, Prune, Quantize, QuantizeDynamic,
    QuantizeWeights, Sparsify, StoreSparse,
)  # fmt: skip
_TECHNIQUES: dict[str, type[Any]] = {kind.__name__: kind for kind in _KINDS}
_RANGES = {kind.__name__: kind for kind in (Entropy, MeanSquaredError, MinMax, Percentile)}


Feeds: TypeAlias = Mapping[str, np.ndarray]

_NO_LAYERS = (
    "did nothing, as no layer has weights in plain sight; a step that stores weights in another form, such as Float16, "
    "comes last"
)


@dataclass(frozen=True, slots=True)
class Step:
    """One technique and what it is for: patterns over layer names (``Op:Conv``: by operator) and over parts."""

    technique: Technique
    include: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()
    part: str = "*"

    def __post_init__(self) -> None:
        if isinstance(self.include, str) or isinstance(self.exclude, str):
            raise RecipeError(f"include and exclude are tuples of patterns, got {self.include!r} and {self.exclude!r}")

    def layers(self, model: Model) -> tuple[Layer, ...]:
        """The layers of a model that this step is for.

        Raises:
            RecipeError: a pattern matches nothing.
        """
        return select(model.layers(), self.include, self.exclude)

    def to_json(self) -> dict[str, Any]:
        """The step as plain data."""
        data: dict[str, Any] = {"technique": type(self.technique).__name__, **_fields(self.technique)}
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        for key in ("include", "exclude", "part"):
            value = getattr(self, key)
            if value != defaults[key]:
                data[f"layers.{key}"] = list(value) if isinstance(value, tuple) else value
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Step:
        """Read what :meth:`to_json` wrote; unknown names are refused."""
        settings = dict(data)
        include = _words("layers.include", settings.pop("layers.include", ["*"]))
        exclude = _words("layers.exclude", settings.pop("layers.exclude", []))
        (part,) = _words("layers.part", [settings.pop("layers.part", "*")])
        kind = _known(_TECHNIQUES, settings.pop("technique", None), "technique")
        return cls(_build(kind, settings), include, exclude, part)

    def describe(self) -> str:
        """One line for people."""
        changed = _fields(self.technique)
        inside = ", ".join(f"{key}={_short(value)}" for key, value in changed.items())
        where = "" if self.include == ("*",) else f" on {', '.join(self.include)}"
        but = f" except {', '.join(self.exclude)}" if self.exclude else ""
        part = "" if self.part == "*" else f" in {self.part}"
        return f"{type(self.technique).__name__}({inside}){where}{but}{part}"


@dataclass(frozen=True, slots=True)
class Recipe:
    """Steps, done in order."""

    steps: tuple[Step, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The recipe as plain data."""
        return {"steps": [step.to_json() for step in self.steps]}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Recipe:
        """Read what :meth:`to_json` wrote.

        Raises:
            RecipeError: the data is not a recipe, or names a technique or setting that does not exist.
        """
        steps = data.get("steps") if isinstance(data, Mapping) else None
        if not isinstance(steps, list) or not all(isinstance(step, Mapping) for step in steps):
            raise RecipeError('a recipe is {"steps": [{"technique": ...}, ...]}; this is not one')
        return cls(tuple(Step.from_json(step) for step in steps))

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the recipe."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()

    def describe(self) -> str:
        """One line for people."""
        return "; ".join(step.describe() for step in self.steps) or "nothing"


def steps_for(recipe: Recipe, part: str) -> tuple[Step, ...]:
    """The steps that are for a part."""
    return tuple(step for step in recipe.steps if fnmatchcase(part, step.part))


def requests_of(recipe: Recipe, model: Model, part: str = "model") -> frozenset[AnyRequest]:
    """All statistics that the steps will read, to be collected once, on the original model.

    Steps that need no data are applied on the way, since they change what later steps see; they keep tensor names.

    Raises:
        RecipeError: a pattern matches nothing, or a technique is impossible for the layers.
    """
    requests: frozenset[AnyRequest] = frozenset()
    steps = steps_for(recipe, part)
    for number, step in enumerate(steps, 1):
        layers = step.layers(model)
        wanted = step.technique.requests(model, layers)
        requests |= wanted
        if not wanted and number < len(steps):  # what the last one changes, nobody sees
            model = step.technique.apply(model, Context(layers))
    return requests


def apply_recipe(
    model: Model | str | Path,
    recipe: Recipe,
    calibration: Statistics | Iterable[Feeds] | None = None,
    part: str = "model",
) -> Model:
    """Do all steps for a part, in order; the model itself is not changed.

    Args:
        model: a Model, or the path of an ONNX file.
        recipe: the steps.
        calibration: for techniques that read data. Feeds, such as a list of them: each step sees what the graph makes
            of them by then. Or :class:`Statistics` that were collected once, on the original (:func:`requests_of`).
        part: which part of a task the model is.

    Raises:
        RecipeError: a pattern matches nothing, or a technique is impossible for the layers (the step is named).
        DataError: feeds do not fit, or can be walked through only once.
        ModelError: the file is no model, or statistics are missing that a technique needs.
    """
    if not isinstance(calibration, Statistics | None) and iter(calibration) is calibration:
        raise DataError("a generator can be walked through once, and each step walks through all feeds; give a list")
    model = model if isinstance(model, Model) else load_model(model)
    for number, step in enumerate(steps_for(recipe, part), 1):
        name = f"step {number}, {type(step.technique).__name__}"
        with at(name):
            layers = step.layers(model)
            notes = [] if layers else [Note(name, _NO_LAYERS)]
            model = step.technique.apply(model, Context(layers, _seen(model, step.technique, layers, calibration)))
            model = model.edited(model.edit(), notes) if notes else model
    return model


def _seen(
    model: Model, technique: Technique, layers: Sequence[Layer], calibration: Statistics | Iterable[Feeds] | None
) -> Statistics:
    """What calibration tells a technique of the graph as it is now."""
    if calibration is None or isinstance(calibration, Statistics):
        return calibration or Statistics()
    requests = technique.requests(model, layers)
    return collect(model, calibration, requests) if requests else Statistics()


def _fields(thing: Any) -> dict[str, Any]:
    """The settings of a technique that differ from their defaults, as plain data."""
    plain = {}
    for field in dataclasses.fields(thing):
        value = getattr(thing, field.name)
        default = field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default
        if value != default:
            plain[field.name] = (
                {"name": type(value).__name__, **_fields(value)} if dataclasses.is_dataclass(value) else value
            )
    return plain


def _words(key: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, (list, tuple)) or not all(isinstance(word, str) for word in value):
        raise RecipeError(f"{key} of a step must be text, or a list of texts, got {value!r}")
    return tuple(value)


def _build(kind: type[Any], settings: Mapping[str, Any]) -> Any:
    known = {field.name: field for field in dataclasses.fields(kind)}
    if unknown := sorted(set(settings) - set(known)):
        raise RecipeError(f"{kind.__name__} has no setting {unknown}; it has {sorted(known)}")
    values = {key: _value(value) for key, value in settings.items()}
    for key, value in values.items():
        _check_kind(kind, key, value)
    try:
        return kind(**values)
    except (TypeError, ValueError) as error:
        raise RecipeError(f"{kind.__name__} does not take {dict(settings)}: {error}") from error


def _check_kind(owner: type[Any], name: str, value: Any) -> None:
    """Raise RecipeError unless the value is of the kind that the setting is annotated with."""
    hint = get_type_hints(owner)[name]
    kinds = {bool: "true or false", float: "a number", int: "a whole number", str: "text", NoneType: "null"}
    listed = {type(word) if isinstance(word, str) else word for word in get_args(hint)}  # of a Literal: its words
    wanted = {kind: words for kind, words in kinds.items() if kind in (listed or {hint})}
    if get_origin(hint) is tuple or any(get_origin(one) is tuple for one in get_args(hint)):
        fits, wanted = isinstance(value, tuple | int), {**wanted, tuple: "a list of texts"}
    elif not wanted:  # a range method
        fits, wanted = isinstance(value, tuple(_RANGES.values())), {object: "a range method"}
    elif isinstance(value, bool):
        fits = bool in wanted
    else:
        fits = isinstance(value, (*wanted, int) if float in wanted else tuple(wanted))
    if not fits:
        raise RecipeError(f"{name} of {owner.__name__} must be {' or '.join(wanted.values())}, got {value!r}")


def _value(data: Any) -> Any:
    """A setting as it was before it was written down."""
    if isinstance(data, list):
        return tuple(data)
    return _range(data) if isinstance(data, Mapping) else data


def _range(data: Mapping[str, Any]) -> Any:
    settings = dict(data)
    return _build(_known(_RANGES, settings.pop("name", None), "range method"), settings)


def _known(kinds: Mapping[str, type[Any]], name: object, what: str) -> type[Any]:
    if not isinstance(name, str) or name not in kinds:
        raise RecipeError(f"there is no {what} called {name!r}; there are {', '.join(sorted(kinds))}")
    return kinds[name]


def _short(value: Any) -> str:
    if not isinstance(value, dict):
        return str(value)
    settings = ", ".join(f"{key}={inner}" for key, inner in value.items() if key != "name")
    return f"{value['name']}({settings})" if settings else str(value["name"])
