"""How much harm each layer does when it alone is compressed.

| symbol | meaning |
|---|---|
| y_o | output o of the float graph over all feeds |
| y'_o | the same output when only the layers under test are compressed |
| error | sqrt(mean over outputs of sum (y'_o - y_o)^2 / sum y_o^2) |

Errors of independent layers add in quadrature, so a group of n layers that was measured as one counts error / sqrt(n)
for each of them. That is the only assumption; every other number is measured.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import numpy as np

from alula.errors import RecipeError
from alula.graph.running import Runner
from alula.recipe import Recipe, apply_recipe, steps_for
from alula.search.propose import literal, preserves_function

if TYPE_CHECKING:
    from alula.graph.model import Model
    from alula.graph.statistics import Statistics
    from alula.recipe import Step

    Feeds = Mapping[str, np.ndarray]
    Outputs = Sequence[Mapping[str, np.ndarray]]

MEASUREMENT_LIMIT: Final = 60  # graphs that one pass builds and runs, whatever the number of layers


@dataclass(frozen=True, slots=True)
class Harm:
    """What compressing one layer alone does to the outputs of its graph."""

    error: float  # relative, 0 = none; infinite when the output is not finite
    agreement: float | None  # fraction of output rows with the same largest entry; None when rows have one entry
    n: int  # feeds it was measured on


def rank_harm(
    model: Model,
    recipe: Recipe,
    statistics: Statistics,
    feeds: Sequence[Feeds],
    part: str = "model",
    *,
    limit: int = MEASUREMENT_LIMIT,
    on_progress: Callable[[int, int], None] | None = None,
) -> dict[str, Harm]:
    """The harm of every layer that ``recipe`` compresses, the most harmful first.

    Up to ``limit`` layers are measured one by one. Of more, contiguous blocks are, and the block with the largest
    error is halved until ``limit`` graphs were run.
    """
    layers = compressed_layers(model, recipe, part)
    reference = _run(model, feeds)
    measured = 0

    def measure(group: Sequence[str]) -> Harm:
        nonlocal measured
        harm = _measure(model, only(recipe, model, group, part), statistics, feeds, reference)
        measured += 1
        if on_progress is not None:
            on_progress(measured, min(len(layers), limit))
        return harm

    harms = _measure_all(layers, measure) if len(layers) <= limit else _halve_worst(layers, measure, limit)
    order = {name: index for index, name in enumerate(layers)}
    return dict(sorted(harms.items(), key=lambda item: (-item[1].error, order[item[0]])))


def compressed_layers(model: Model, recipe: Recipe, part: str = "model") -> tuple[str, ...]:
    """Names of the layers that some compressing step of ``recipe`` selects, in the order of the graph."""
    steps = [step for step in steps_for(recipe, part) if not preserves_function(step.technique)]
    names = {layer.name for step in steps for layer in step.layers(model)}
    return tuple(layer.name for layer in model.layers() if layer.name in names)


def only(recipe: Recipe, model: Model, names: Iterable[str], part: str = "model") -> Recipe:
    """The recipe for one part, with its compressing steps cut down to the layers named."""
    wanted = set(names)
    steps: list[Step] = []
    for step in steps_for(recipe, part):
        if preserves_function(step.technique):
            steps.append(step)
            continue
        kept = [layer.name for layer in step.layers(model) if layer.name in wanted]
        if kept:
            steps.append(replace(step, include=tuple(map(literal, kept)), exclude=()))
    return Recipe(tuple(steps))


def compare(reference: Outputs, candidate: Outputs) -> Harm:
    """The harm that the outputs of a candidate show, against those of the float graph on the same feeds."""
    errors, agreements = [], []
    for name in reference[0] if reference else ():
        before = [outputs[name] for outputs in reference]
        after = [outputs[name] for outputs in candidate]
        if before[0].dtype.kind != "f":
            agreements.append(_fraction_equal(before, after))
            continue
        errors.append(_relative_error(before, after))
        if before[0].ndim and before[0].shape[-1] > 1:
            agreements.append(_fraction_equal([_largest(a) for a in before], [_largest(a) for a in after]))
    agreement = float(np.mean(agreements)) if agreements else None
    if not errors:  # only whole numbers come out: how many differ is all there is
        return Harm(1.0 - (agreement if agreement is not None else 1.0), agreement, len(reference))
    return Harm(float(np.sqrt(np.mean(np.square(errors)))), agreement, len(reference))


def _measure(model: Model, recipe: Recipe, statistics: Statistics, feeds: Sequence[Feeds], reference: Outputs) -> Harm:
    """The harm of a recipe that was cut down to few layers; none where it can compress none of them."""
    try:
        candidate = apply_recipe(model, recipe, statistics)
    except RecipeError:
        return Harm(0.0, None, len(feeds))
    return compare(reference, _run(candidate, feeds))


def _measure_all(layers: Sequence[str], measure: Callable[[Sequence[str]], Harm]) -> dict[str, Harm]:
    return {name: measure([name]) for name in layers}


def _halve_worst(layers: Sequence[str], measure: Callable[[Sequence[str]], Harm], limit: int) -> dict[str, Harm]:
    """Best first: whatever group shows the largest error is halved, until ``limit`` groups were measured."""
    size = math.ceil(len(layers) / max(limit // 4, 1))
    groups = [layers[start : start + size] for start in range(0, len(layers), size)]
    measured = [(measure(group), group) for group in groups]
    spent = len(measured)
    while spent + 2 <= limit:
        worst = max(range(len(measured)), key=lambda i: (len(measured[i][1]) > 1, measured[i][0].error, -i))
        _, group = measured[worst]
        if len(group) == 1:
            break
        halves = (group[: len(group) // 2], group[len(group) // 2 :])
        measured[worst : worst + 1] = [(measure(half), half) for half in halves]
        spent += 2
    return {name: _share(harm, len(group)) for harm, group in measured for name in group}


def _share(harm: Harm, count: int) -> Harm:
    return replace(harm, error=harm.error / math.sqrt(count))


def _run(model: Model, feeds: Sequence[Feeds]) -> list[dict[str, np.ndarray]]:
    runner = Runner(model)
    return [runner(feed) for feed in feeds]


def _relative_error(before: Sequence[np.ndarray], after: Sequence[np.ndarray]) -> float:
    noise = signal = 0.0
    for y, z in zip(before, after, strict=True):
        if y.shape != z.shape or not np.isfinite(z).all():
            return math.inf
        noise += float(np.sum(np.square(z.astype(np.float64) - y)))
        signal += float(np.sum(np.square(y, dtype=np.float64)))
    if signal == 0.0:
        return 0.0 if noise == 0.0 else math.inf
    return math.sqrt(noise / signal)


def _largest(array: np.ndarray) -> np.ndarray:
    return np.asarray(np.argmax(array, axis=-1))


def _fraction_equal(before: Sequence[np.ndarray], after: Sequence[np.ndarray]) -> float:
    total = sum(a.size for a in before)
    equal = sum(int(np.sum(a == b)) if a.shape == b.shape else 0 for a, b in zip(before, after, strict=True))
    return equal / total if total else 1.0
