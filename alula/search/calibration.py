"""One pass over the calibration examples: the statistics that all proposals need, and a few recorded inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

import numpy as np

from alula.errors import at
from alula.examples import read_example
from alula.graph.statistics import AnyRequest, Collector, Request, Statistics
from alula.measurement.score import call_scorer, part_named
from alula.recipe import Recipe, Step, apply_recipe, requests_of, steps_for
from alula.search.diagnosis import channel_axis
from alula.search.propose import preserves_function
from alula.search.sensitivity import compressed_layers, only
from alula.techniques.float32 import in_float32

if TYPE_CHECKING:
    from alula.graph.model import Model
    from alula.task import Task

    Progress = Callable[[int, int], None]

CHUNK: Final = 16  # examples that go through the graphs together, as many as a graph of fixed batch size takes
RECORDED_CHUNKS: Final = 1
RECORDED_CALLS: Final = 32  # per part


@dataclass(frozen=True, slots=True)
class Calibration:
    """What calibration saw: statistics by part, and recorded feeds by part."""

    statistics: Mapping[str, Statistics]
    feeds: Mapping[str, tuple[Mapping[str, np.ndarray], ...]]


def calibrate(task: Task, recipes: Iterable[Recipe], on_progress: Progress | None = None) -> Calibration:
    """Run the task's scorer once over its calibration examples, watching what any of the recipes asks for.

    Raises:
        DataError: a value is NaN or infinite (the tensor is named), the scorer fails, or a part is never run.
    """
    recipes = tuple(recipes)
    requests = {part: _requests(model, recipes, part) for part, model in task.parts.items()}
    collectors = {part: Collector(in_float32(model), requests[part]) for part, model in task.parts.items()}
    recordings = {part: Recording() for part in task.parts}
    recording = True

    def run(feeds: Mapping[str, np.ndarray], part: str = "model") -> dict[str, np.ndarray]:
        collector = part_named(collectors, part)
        if recording:
            recordings[part].add(feeds)
        with at(f"part {part!r}") if len(collectors) > 1 else nullcontext():
            return collector(feeds)

    for start in range(0, len(task.calibration), CHUNK):
        recording = start < RECORDED_CHUNKS * CHUNK
        end = min(start + CHUNK, len(task.calibration))
        examples = [read_example(task.calibration, index) for index in range(start, end)]
        call_scorer(task.scorer, run, examples, f"calibration examples {start}..{end - 1}")  # its scores do not matter
        if on_progress is not None:
            on_progress(end, len(task.calibration))
    feeds = {part: tuple(recorded.calls) for part, recorded in recordings.items()}
    return Calibration({part: _statistics(part, collector) for part, collector in collectors.items()}, feeds)


def preserving_part(recipe: Recipe, part: str) -> Recipe:
    """The steps of a recipe that leave what the graph of a part computes as it is."""
    return Recipe(tuple(step for step in steps_for(recipe, part) if preserves_function(step.technique)))


def _requests(model: Model, recipes: tuple[Recipe, ...], part: str) -> frozenset[AnyRequest]:
    """What the recipes need whole, layer by layer (a layer alone has its own borders), and what diagnosis reads."""
    wanted: set[AnyRequest] = set()
    covered: set[frozenset[str]] = set()  # recipes that differ in their range method alone watch the same tensors
    for recipe in recipes:
        whole: frozenset[AnyRequest] = requests_of(recipe, model, part)
        tensors = frozenset(request.tensor for request in whole if isinstance(request, Request))
        if tensors and tensors not in covered:
            wanted |= _single_requests(model, recipe, part)
            covered.add(tensors)
        wanted |= whole
    if wanted:
        folded = apply_recipe(model, preserving_part(recipes[0], part), Statistics(), part)
        wanted |= _diagnosis_requests(folded)
    return frozenset(wanted)


def _single_requests(model: Model, recipe: Recipe, part: str) -> set[Request]:
    """As if each layer were quantized alone."""
    steps: tuple[Step, ...] = preserving_part(recipe, part).steps
    folded = apply_recipe(model, Recipe(steps), Statistics(), part)
    bare = Recipe(tuple(step for step in steps_for(recipe, part) if step not in steps))
    found: set[AnyRequest] = set()
    for name in compressed_layers(folded, bare, part):
        for step in only(bare, folded, [name], part).steps:
            found |= step.technique.requests(folded, step.layers(folded))
    return {replace(request, histogram=True) for request in found if isinstance(request, Request)}


def _diagnosis_requests(model: Model) -> set[Request]:
    """A histogram, and the channels' ranges, of each layer's input."""
    layers = [layer for layer in model.layers() if layer.operator in ("Conv", "ConvTranspose", "Gemm", "MatMul")]
    return {Request(layer.input, histogram=True, channel_axis=channel_axis(layer)) for layer in layers}


def _statistics(part: str, collector: Collector) -> Statistics:
    with at(f"part {part!r}"):
        return collector.statistics()


@dataclass(slots=True)
class Recording:
    """Copies of some of the feeds that went by: every one, then every second, every fourth, ..., to stay bounded."""

    limit: int = RECORDED_CALLS
    calls: list[Mapping[str, np.ndarray]] = field(default_factory=list)
    seen: int = 0
    stride: int = 1

    def add(self, feeds: Mapping[str, np.ndarray]) -> None:
        """Copy these feeds, if it is their turn."""
        if self.seen % self.stride == 0:
            if len(self.calls) == self.limit:
                self.calls, self.stride = self.calls[::2], 2 * self.stride
            if self.seen % self.stride == 0:
                self.calls.append({name: np.array(array) for name, array in feeds.items()})
        self.seen += 1
