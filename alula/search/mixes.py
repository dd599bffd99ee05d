"""Mixes of one graph, an option for each place: built, measured once, and remembered in a file."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

import numpy as np

from alula.errors import DataError, RecipeError, StorageError
from alula.examples import hash_all
from alula.graph.ending import ending_of
from alula.graph.running import Runner
from alula.graph.statistics import AnyRequest, Statistics, collect
from alula.numerics.metrics import class_divergence
from alula.recipe import Recipe, Step, apply_recipe, requests_of
from alula.search.exchanges import Choice
from alula.search.propose import literal
from alula.search.sensitivity import compare
from alula.storage import storing, write_text

if TYPE_CHECKING:
    from alula.graph.layers import Layer
    from alula.graph.model import Model
    from alula.techniques import Technique

log = logging.getLogger(__name__)

AS_IT_IS: Final = -1  # of places to which nothing is done, where that is no option
Kind: TypeAlias = Literal["error", "divergence"]
Feeds: TypeAlias = Mapping[str, np.ndarray]


@dataclass(frozen=True, slots=True)
class Place:
    """Layers that share their weights, most often one, and how many weights they have."""

    layers: tuple[Layer, ...]
    weights: int
    bits: int  # of a weight, as it is

    @property
    def name(self) -> str:
        """The name of the first layer."""
        return self.layers[0].name


@dataclass(frozen=True, slots=True)
class Row:
    """What a mix is: its harm, infinite where it cannot be built, and the bytes of its file."""

    harm: float
    size_bytes: int
    changed: bool = True  # False where the techniques leave all weights as they are


def places_of(model: Model, layers: Sequence[Layer]) -> list[Place]:
    """The places of the chosen layers, in the order of the graph."""
    groups: list[list[Layer]] = []
    for layer in layers:
        sharing = [group for group in groups if any(set(one.weights) & set(layer.weights) for one in group)]
        groups = [group for group in groups if group not in sharing]
        groups.append([*(one for group in sharing for one in group), layer])
    order = {layer.name: number for number, layer in enumerate(layers)}
    groups.sort(key=lambda group: order[group[0].name])
    return [_place(model, group) for group in groups]


def _place(model: Model, group: Sequence[Layer]) -> Place:
    arrays = {name: model.weight(name) for layer in group for name in layer.weights}
    weights = sum(array.size for array in arrays.values())
    return Place(tuple(group), weights, 8 * model.weight(group[0].weight).itemsize)


class Yardstick:
    """How far the outputs of a graph move from those of another."""

    def __init__(self, model: Model, feeds: Sequence[Feeds], kind: Kind) -> None:
        self._feeds, self._kind = feeds, kind
        self._reference = self._outputs(model)
        if not all(np.isfinite(array).all() for outputs in self._reference for array in outputs.values()):
            raise DataError("the outputs hold NaN or infinity on these data; how far they move cannot be told")
        if kind == "divergence":
            self._output = _of_classes(model, self._reference[0])
            self._probabilities = ending_of(model, self._output) == "Softmax"

    def __call__(self, model: Model) -> float:
        """The harm: mean over outputs y of |y' - y|^2 / |y|^2, or the mean divergence of classes, in nats."""
        outputs = self._outputs(model)
        if self._kind == "error":
            return compare(self._reference, outputs).error ** 2
        before, after = ([one[self._output] for one in found] for found in (self._reference, outputs))
        if not all(np.isfinite(array).all() for array in after):
            return math.inf
        values = [class_divergence(found, wanted, probabilities=self._probabilities)
                  for found, wanted in zip(after, before, strict=True)]  # fmt: skip
        return max(float(np.concatenate(values).mean()), 0.0)

    def _outputs(self, model: Model) -> list[dict[str, np.ndarray]]:
        runner = Runner(model)
        return [runner(feed) for feed in self._feeds]


def _of_classes(model: Model, outputs: Feeds) -> str:
    """The first output that tells classes apart."""
    for spec in model.outputs:
        classes = outputs[spec.name].ndim > 1 and outputs[spec.name].shape[-1] > 1
        if np.issubdtype(spec.dtype, np.floating) and classes and ending_of(model, spec.name) != "Sigmoid":
            return spec.name
    names = ", ".join(map(str, model.outputs))
    raise RecipeError(f"harm='divergence' compares classes, no output has them ({names}); use harm='error'")


class Mixes:
    """Every mix of one graph that was asked for, each built and measured once.

    Attributes:
        model: the graph.
        places: where options are chosen.
        options: techniques; None leaves a place as it is.
    """

    def __init__(
        self,
        model: Model,
        places: Sequence[Place],
        options: Sequence[Technique | None],
        feeds: Sequence[Feeds],
        *,
        kind: Kind = "error",
        out: Path | None = None,
    ) -> None:
        self.model, self.places, self.options = model, places, options
        self._feeds, self._yardstick = feeds, Yardstick(model, feeds, kind)
        self._requests: frozenset[AnyRequest] = frozenset()
        self._statistics = Statistics()
        self._store = _Store(None if out is None else out / f"mixed-{self._key(kind)}.json")

    def _key(self, kind: Kind) -> str:
        steps = [None if option is None else Step(option).to_json() for option in self.options]
        layers = [layer.name for place in self.places for layer in place.layers]
        return hash_all([self.model, layers, json.dumps(steps), list(self._feeds), kind])[:12]

    @property
    def untouched(self) -> int:
        """The option that leaves a place as it is."""
        return self.options.index(None) if None in self.options else AS_IT_IS

    def alone(self, place: int, option: int) -> Choice:
        """The mix that changes one place."""
        return tuple(option if number == place else self.untouched for number in range(len(self.places)))

    def recipe(self, choice: Choice) -> Recipe:
        """One step for each technique that a mix uses."""
        steps = []
        for number, option in enumerate(self.options):
            pairs = zip(choice, self.places, strict=True)
            names = [literal(layer.name) for chosen, place in pairs if chosen == number for layer in place.layers]
            if option is not None and names:
                steps.append(Step(option, include=tuple(names)))
        return Recipe(tuple(steps))

    def calibrate(self) -> None:
        """One pass over the data for what any place at any option asks for, alone or with all others."""
        alone = [self.alone(place, option) for place in range(len(self.places)) for option in range(len(self.options))]
        whole = [(option,) * len(self.places) for option in range(len(self.options))]
        self._collect([self.recipe(choice) for choice in (*alone, *whole)])

    def build(self, choice: Choice) -> Model:
        """The graph of a mix; :meth:`calibrate` comes first.

        Raises:
            RecipeError: a technique is impossible for a layer.
        """
        recipe = self.recipe(choice)
        if self._requests:  # borders between integers and floats lie elsewhere in each mix
            self._collect([recipe])
        return apply_recipe(self.model, recipe, self._statistics)

    def row(self, choice: Choice) -> Row:
        """What a mix is."""
        row = self._store.read(choice)
        if row is None:
            row = self._measured(choice)
            self._store.keep(choice, row)
        return row

    def kept(self, name: str, measure: Callable[[], float]) -> float:
        """Another number that is measured once, by name."""
        return self._store.kept(name, measure)

    def _measured(self, choice: Choice) -> Row:
        try:
            built = self.build(choice)
        except RecipeError as error:
            log.info("%s cannot be built: %s", self.recipe(choice).describe(), error)
            return Row(math.inf, 0, changed=False)
        changed = any(_is_changed(self.model, built, layer) for place in self.places for layer in place.layers)
        return Row(self._yardstick(built), built.size_bytes, changed)

    def _collect(self, recipes: Sequence[Recipe]) -> None:
        wanted: frozenset[AnyRequest] = frozenset()
        for recipe in recipes:
            try:
                wanted |= requests_of(recipe, self.model)
            except RecipeError as error:  # said where the mix is built
                log.debug("%s asks for nothing: %s", recipe.describe(), error)
        if wanted - self._requests:
            self._requests |= wanted
            self._statistics = collect(self.model, self._feeds, self._requests)


def _is_changed(before: Model, after: Model, layer: Layer) -> bool:
    """Whether a layer no longer reads its weights as they were."""
    kept = next((one for one in after.layers() if one.name == layer.name), None)
    if kept is None or kept.weights != layer.weights:
        return True
    return any(not np.array_equal(before.weight(name), after.weight(name)) for name in layer.weights)


class _Store:
    """Numbers by name in a file that is written anew with each; in memory alone where there is no file."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._numbers: dict[str, list[float]] = {}
        if path is not None:
            with storing(f"make {path.parent}"):
                path.parent.mkdir(parents=True, exist_ok=True)
            if path.is_file():
                self._numbers = _read(path)

    def read(self, choice: Choice) -> Row | None:
        """What is known of a mix."""
        row = self._numbers.get(_named(choice))
        if row is None:
            return None
        harm, size, changed = row
        return Row(math.inf if harm < 0 else harm, int(size), bool(changed))

    def keep(self, choice: Choice, row: Row) -> None:
        """Remember a mix."""
        harm = row.harm if math.isfinite(row.harm) else -1.0  # JSON has no infinity
        self._put(_named(choice), [harm, row.size_bytes, int(row.changed)])

    def kept(self, name: str, measure: Callable[[], float]) -> float:
        """A number, measured where it is not known."""
        if name not in self._numbers:
            self._put(name, [measure()])
        return self._numbers[name][0]

    def _put(self, name: str, numbers: list[float]) -> None:
        self._numbers[name] = numbers
        if self._path is not None:
            write_text(self._path, json.dumps(self._numbers, indent=0) + "\n")


def _named(choice: Choice) -> str:
    return " ".join(map(str, choice))


def _read(path: Path) -> dict[str, list[float]]:
    damaged = StorageError(f"{path} is damaged; remove it, and the same call measures anew")
    try:
        numbers = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise damaged from error
    if not isinstance(numbers, dict):
        raise damaged
    for name, row in numbers.items():
        length = 3 if name.replace("-", "").replace(" ", "").isdigit() else 1
        if not isinstance(row, list) or len(row) != length or not all(isinstance(one, int | float) for one in row):
            raise damaged
    return numbers
