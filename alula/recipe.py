"""An ordered list of techniques with the layers that each is for; plain data that can be written down and replayed."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from alula.errors import DataError, RecipeError, at
from alula.graph.export import as_model
from alula.graph.feeds import feeds_of
from alula.graph.layers import Layer, select
from alula.graph.model import Model, Note
from alula.graph.shapes import with_shapes
from alula.graph.statistics import AnyRequest, Statistics, collect
from alula.numerics.ranges import Entropy, MeanSquaredError, MinMax, OutputError, Percentile
from alula.settings import check_settings, expect
from alula.techniques import (
    ActivationAware,
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
    Recode,
    Rotate,
    Sparsify,
    SplitOutliers,
    StoreSparse,
    Technique,
)
from alula.techniques.sequence import apply_in_sequence

_KINDS = (
    ActivationAware, Cluster, Drop, Equalize, Factorize, Float16, Float32, FoldBatchNorm, Prune, Quantize,
    QuantizeDynamic, QuantizeWeights, Recode, Rotate, Sparsify, SplitOutliers, StoreSparse,
)  # fmt: skip
_TECHNIQUES: dict[str, type[Any]] = {kind.__name__: kind for kind in _KINDS}
_RANGES = {kind.__name__: kind for kind in (Entropy, MeanSquaredError, MinMax, OutputError, Percentile)}


_NO_LAYERS = (
    "did nothing, as no layer has weights in plain sight; a step that stores weights in another form, such as Float16, "
    "comes last"
)


@dataclass(frozen=True, slots=True)
class Step:
    """One technique and what it is for.

    Attributes:
        technique: what is done.
        include: patterns of layers, over names, or ``Op:Conv`` by operator.
        exclude: patterns of layers that are left out.
        part: pattern of the parts of a task.
        sequential: one layer after another, each by what those before it give as they are by then; needs feeds.
    """

    technique: Technique
    include: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()
    part: str = "*"
    sequential: bool = False

    def __post_init__(self) -> None:
        check_settings(self)

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
        for key in ("include", "exclude", "part", "sequential"):
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
        sequential = settings.pop("layers.sequential", False)
        kind = _known(_TECHNIQUES, settings.pop("technique", None), "technique")
        return cls(_build(kind, settings), include, exclude, part, sequential)

    def describe(self) -> str:
        """One line for people."""
        changed = _fields(self.technique)
        inside = ", ".join(f"{key}={_short(value)}" for key, value in changed.items())
        where = "" if self.include == ("*",) else f" on {', '.join(self.include)}"
        but = f" except {', '.join(self.exclude)}" if self.exclude else ""
        part = "" if self.part == "*" else f" in {self.part}"
        order = " one layer after another" if self.sequential else ""
        return f"{type(self.technique).__name__}({inside}){where}{but}{part}{order}"


@dataclass(frozen=True, slots=True)
class Recipe:
    """Steps, done in order."""

    steps: tuple[Step, ...] = ()

    def __post_init__(self) -> None:
        check_settings(self)

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
    model: Any,
    recipe: Recipe,
    calibration: Any = None,
    part: str = "model",
) -> Model:
    """Do all steps for a part, in order; the model itself is not changed.

    Args:
        model: a Model, the path of an ONNX file, or an ONNX message.
        recipe: the steps.
        calibration: for techniques that read data. Rows of one array, or of an array per input name; or feeds, such
            as a list of them or a ``DataLoader``: each step sees what the graph makes of them by then. Or
            :class:`Statistics` that were collected once, on the original (:func:`requests_of`).
        part: which part of a task the model is.

    Raises:
        RecipeError: a pattern matches nothing, or a technique is impossible for the layers (the step is named).
        DataError: feeds do not fit, or can be walked through only once.
        ModelError: the file is no model, or statistics are missing that a technique needs.
    """
    expect("recipe", recipe, Recipe)
    if isinstance(calibration, Iterator):
        raise DataError("a generator can be walked through once, and each step walks through all feeds; give a list")
    graph = as_model(model)
    for number, step in enumerate(steps_for(recipe, part), 1):
        name = f"step {number}, {type(step.technique).__name__}"
        with at(name):
            layers = step.layers(graph)
            made = _apply(graph, step, layers, calibration)
            idle = not layers and _is_unchanged(graph, made)
            graph = with_shapes(made.edited(made.edit(), [Note(name, _NO_LAYERS)]) if idle else made)
    return graph


def _is_unchanged(before: Model, after: Model) -> bool:
    """Whether nodes and weights are the same ones."""
    nodes, weights = (
        [[(node.op_type, node.name) for node in one.graph] for one in (before, after)],
        [{name: id(value.const_value) for name, value in one.graph.initializers.items()} for one in (before, after)],
    )
    return nodes[0] == nodes[1] and weights[0] == weights[1]


def _apply(model: Model, step: Step, layers: tuple[Layer, ...], calibration: Any) -> Model:
    if not step.sequential:
        return step.technique.apply(model, Context(layers, _seen(model, step.technique, layers, calibration)))
    if calibration is None or isinstance(calibration, Statistics):
        raise DataError("goes from layer to layer, and needs the calibration data themselves: give rows or feeds")
    return apply_in_sequence(model, step.technique, layers, feeds_of(model.inputs, calibration))


def _seen(model: Model, technique: Technique, layers: Sequence[Layer], calibration: Any) -> Statistics:
    """What calibration tells a technique of the graph as it is now."""
    if isinstance(calibration, Statistics):
        return calibration
    requests = technique.requests(model, layers)
    if requests and calibration is None:
        raise DataError("reads what the graph computes on examples; give calibration=...")
    return collect(model, feeds_of(model.inputs, calibration), requests) if requests else Statistics()


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
    try:
        return kind(**values)
    except (TypeError, ValueError) as error:
        raise RecipeError(f"{kind.__name__} does not take {dict(settings)}: {error}") from error


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
