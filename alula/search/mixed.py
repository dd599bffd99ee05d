"""Mixed precision: each layer gets the technique with which all together do the least harm within a limit."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from alula.errors import DataError, RecipeError
from alula.graph.export import as_model
from alula.graph.feeds import feeds_of
from alula.graph.layers import select
from alula.graph.model import Model, Note
from alula.numerics.assignment import Options, assign, holds, total_cost, total_harm
from alula.recipe import Recipe, Step, apply_recipe
from alula.search.exchanges import Choice, Exchanges
from alula.search.mixes import AS_IT_IS, Feeds, Kind, Mixes, Place, Row, places_of
from alula.search.stopwatch import KINDS, MeasuredCosts
from alula.settings import Patterns, check_settings, expect, fits, shown
from alula.targets import OnnxRuntime, Target
from alula.techniques import Float32, FoldBatchNorm, QuantizeWeights, Technique
from alula.training.progress import counting

OPTIONS: Final[tuple[Technique | None, ...]] = (
    None,
    QuantizeWeights(bits=8, smallest=1),
    *(QuantizeWeights(bits=bits, block=32, smallest=1) for bits in (4, 3, 2)),
)
ROUNDING: Final = 1e-9  # of a limit
ATTEMPTS: Final = 4  # to hold a limit of which the layers told less than the whole
PREPARED: Final = (Step(Float32()), Step(FoldBatchNorm()))
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Limit:
    """What a mix may cost; one of the four is given, or several that must all hold.

    Attributes:
        size_bytes: of the file.
        weight_bits: average width of the codes of a weight, over the weights of all chosen layers; 32 where a layer
            stays in float. Steps are not counted, and codes of 2 and 3 bits take 4 in the file: this is the size where
            codes are packed.
        latency_ms: of one example, measured on the target.
        energy_mj: of one example, measured on the target, where the machine has a meter (RAPL).
        target: where latency and energy are measured; ONNX Runtime on one thread if nothing else is said.
    """

    size_bytes: int | None = None
    weight_bits: float | None = None
    latency_ms: float | None = None
    energy_mj: float | None = None
    target: Target = field(default_factory=lambda: OnnxRuntime(threads=1))

    def __post_init__(self) -> None:
        check_settings(self)
        if not self.wanted():
            raise RecipeError("a limit is size_bytes, weight_bits, latency_ms or energy_mj, or several; got none")
        for kind, value in self.wanted().items():
            if not 0 < value < math.inf:
                raise RecipeError(f"{kind} must be more than 0 and finite, got {value!r}")

    def wanted(self) -> dict[str, float]:
        """The limits that are given, by kind."""
        given = {kind: getattr(self, kind) for kind in ("size_bytes", "weight_bits", *KINDS)}
        return {kind: float(value) for kind, value in given.items() if value is not None}


@dataclass(frozen=True, slots=True)
class Mixing:
    """How a mix is looked for.

    Attributes:
        harm: ``error``: mean over outputs y of |y' - y|^2 / |y|^2; ``divergence``: of the classes that the first output
            tells (mean Kullback-Leibler divergence in nats).
        evaluations: mixes that are built and measured after each layer alone and all layers alike, at most.
    """

    harm: Kind = "error"
    evaluations: int = 100

    def __post_init__(self) -> None:
        check_settings(self)
        if self.evaluations < 1:
            raise RecipeError(f"evaluations must be at least 1, got {self.evaluations}")


@dataclass(frozen=True, slots=True)
class Share:
    """What a layer got in a mix: the technique, None where it stays; its harm alone; bits of its codes."""

    layer: str
    technique: Technique | None
    harm: float
    bits: float


@dataclass(frozen=True, slots=True, eq=False)
class Mix:
    """The mix that was found.

    Attributes:
        recipe: what makes it of the original: ``alula.apply_recipe(model, recipe, data)``.
        model: the graph that it makes.
        layers: what each layer got.
        expected_harm: the sum of the harms that the layers do alone.
        harm: what the mix does, measured.
        costs: what it costs, by kind; latency and energy are measured on the whole.
        uniform_harm: of the best option that holds the limits on all layers; None where none does.
    """

    recipe: Recipe
    model: Model
    layers: tuple[Share, ...]
    expected_harm: float
    harm: float
    costs: Mapping[str, float]
    uniform_harm: float | None


def mix(
    model: Any,
    data: Any,
    *,
    limit: Limit,
    options: Sequence[Technique | None] = OPTIONS,
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
    mixing: Mixing | None = None,
    out: str | Path | None = None,
) -> Mix:
    """Choose a technique for each layer so that the whole moves its outputs least within a limit.

    Each layer is measured at each option by itself; an integer programme chooses the mix of the least summed harm, and
    exchanges between layers then lessen the harm that is measured of whole mixes.

    Args:
        model: a Model, the path of an ONNX file, or an ONNX message.
        data: calibration inputs, as for :func:`alula.quantize`; harm is measured on them too.
        limit: what the mix may cost.
        options: techniques to choose from for each layer; None leaves a layer as it is.
        include: patterns of the layers to choose for, over names, or ``Op:Conv`` by operator.
        exclude: patterns of the layers to leave as they are.
        mixing: how it is looked for.
        out: folder where what was measured is kept, so that the same call goes on after a kill.

    Raises:
        RecipeError: no mix holds the limits (the message says the least that is possible), or no option fits any layer.
        DataError: the data does not fit the model, or is not finite.
        StorageError: the folder cannot be written, or what it holds is damaged.
    """
    expect("limit", limit, Limit)
    expect("mixing", mixing, Mixing | None)
    expect("out", out, str | Path | None)
    mixing, chosen = mixing or Mixing(), _checked(options)
    prepared = apply_recipe(as_model(model), Recipe(PREPARED))
    feeds = list(feeds_of(prepared.inputs, data))
    if not feeds:
        raise DataError("there are no calibration data; give at least one feed")
    expect("include", include, Patterns)
    expect("exclude", exclude, Patterns)
    places = places_of(prepared, select(prepared.layers(), include, exclude))
    if not places:
        raise RecipeError("no layer has weights to choose for; include other layers")
    mixes = Mixes(prepared, places, chosen, feeds, kind=mixing.harm, out=None if out is None else Path(out))
    return _Mixer(mixes, limit, mixing, feeds[0]).mix()


def _checked(options: Sequence[Technique | None]) -> tuple[Technique | None, ...]:
    if isinstance(options, str) or not isinstance(options, Sequence) or not options:
        raise RecipeError(f"options must be techniques, and None for a layer as it is; got {shown(options)}")
    for option in options:
        if not fits(option, Technique | None):
            raise RecipeError(f"options must be techniques, and None for a layer as it is; one is {shown(option)}")
    if any(option in options[:number] for number, option in enumerate(options)):
        raise RecipeError("options must differ from each other; one stands there twice")
    return tuple(options)


class _Mixer:
    """One call: what each place costs and harms, the choice, and what is said of it."""

    def __init__(self, mixes: Mixes, limit: Limit, mixing: Mixing, feed: Feeds) -> None:
        self._mixes, self._limit, self._mixing = mixes, limit, mixing
        wanted = limit.wanted()
        self._measured = {kind: MeasuredCosts(mixes, limit.target, feed, kind) for kind in KINDS if kind in wanted}
        self._total = sum(place.weights for place in mixes.places)

    def mix(self) -> Mix:
        """The choice, and what is known of it."""
        rows = self._alone()
        options = self._options(rows)
        choice, uniform = self._chosen(options)
        return self._described(choice, uniform, options)

    def _alone(self) -> list[list[Row]]:
        """What each place does alone at each option: [places][options]."""
        mixes = self._mixes
        mixes.calibrate()
        found: list[list[Row]] = []
        with counting("each layer alone") as show:
            for place in range(len(mixes.places)):
                found.append([mixes.row(mixes.alone(place, option)) for option in range(len(mixes.options))])
                show(place + 1, len(mixes.places))
        for number, option in enumerate(mixes.options):
            if option is not None and not any(rows[number].changed for rows in found):
                raise RecipeError(f"{Step(option).describe()} changes none of the chosen layers; leave this option out")
        return found

    def _options(self, rows: Sequence[Sequence[Row]]) -> list[Options]:
        """Harms and costs of each place. What all else costs is charged to the first."""
        size = self._mixes.model.size_bytes
        options = []
        for number, place in enumerate(self._mixes.places):
            pairs = list(zip(rows[number], self._mixes.options, strict=True))
            harms = np.array([self._harm(row, option) for row, option in pairs])
            if not np.isfinite(harms).any():
                raise RecipeError(f"no option fits layer {place.name!r}; give None as one, or exclude the layer")
            sizes = np.array([float(row.size_bytes - size) for row in rows[number]])
            bits = np.array([self._bits(place, row, option) for row, option in pairs])
            costs = {"size_bytes": sizes, "weight_bits": bits * place.weights / self._total, "bits": bits}
            costs |= {kind: one.of(number, np.isfinite(harms)) for kind, one in self._measured.items()}
            options.append(Options(harms, costs))
        options[0].costs["size_bytes"][:] += size
        for kind, one in self._measured.items():
            options[0].costs[kind][:] += one.original
        return options

    def _harm(self, row: Row, option: Technique | None) -> float:
        """Infinite where a technique does nothing and leaving the place as it is is an option of its own."""
        idle = option is not None and not row.changed and (None in self._mixes.options or row.size_bytes == 0)
        return math.inf if idle else row.harm

    def _bits(self, place: Place, row: Row, option: Technique | None) -> float:
        """Width of the codes of a place's weights: as the technique says, else by what it takes off the file."""
        if option is None or not row.changed:
            return float(place.bits)
        said = getattr(option, "bits", getattr(option, "weight_bits", None))
        stored = place.bits - 8 * (self._mixes.model.size_bytes - row.size_bytes) / place.weights
        return float(said) if isinstance(said, int | float) else max(stored, 0.0)

    def _chosen(self, options: Sequence[Options]) -> tuple[Choice, Choice | None]:
        """The choice of least harm that really holds the limits, and the best uniform one.

        What the costs of places alone leave out (shared constants, noise of timing) is taken off the limits.
        """
        wanted = self._limit.wanted()
        limits, known = dict(wanted), dict[Choice, float]()
        if "size_bytes" in limits:
            limits["size_bytes"] += self._shared_bytes(options)
        real: Mapping[str, float] = {}
        for attempt in range(ATTEMPTS):
            uniform = self._uniform(options, limits)
            try:
                starts = [tuple(assign(options, limits)), *([] if uniform is None else [uniform])]
            except RecipeError as error:
                if attempt == 0:
                    raise RecipeError(f"the limits {wanted} cannot be held: {error}") from error
                break
            choice = self._searched(options, limits, known, starts)
            real = self._costs(choice, options)
            beyond = {kind: real[kind] - wanted[kind] for kind in wanted if real[kind] > wanted[kind] * (1 + ROUNDING)}
            if not beyond:
                return choice, uniform
            limits |= {kind: total_cost(options, choice, kind) - excess for kind, excess in beyond.items()}
        raise RecipeError(f"no mix was found that holds the limits {wanted}; the last one costs {real}")

    def _searched(self, options: Sequence[Options], limits: Mapping[str, float], known: dict[Choice, float],
                  starts: Sequence[Choice]) -> Choice:  # fmt: skip
        """The choice of least measured harm; what is measured is added to what is known."""
        most = self._mixing.evaluations
        with counting("whole mixes") as show:

            def measure(choice: Choice) -> float:
                show(len(known) + 1, most)
                return self._mixes.row(choice).harm

            choice = Exchanges(options, limits, measure, most, known).best_from(starts)
        if math.isinf(known[choice]):
            raise RecipeError("no mix that was tried gives finite outputs; give options that do less harm")
        return choice

    def _uniform(self, options: Sequence[Options], limits: Mapping[str, float]) -> Choice | None:
        """The option that is expected to do least harm if all places have it, and holds the limits."""
        rest = self._mixes.untouched
        every = [tuple(number if math.isfinite(one.harms[number]) else rest for one in options)
                 for number in range(len(self._mixes.options))]  # fmt: skip
        every = [one for one in every if AS_IT_IS not in one]
        most = self._limit.size_bytes or math.inf
        within = [one for one in every if math.isfinite(total_harm(options, one)) and holds(options, one, limits)
                  and self._mixes.row(one).size_bytes <= most]  # fmt: skip
        return min(within, key=lambda one: total_harm(options, one), default=None)

    def _shared_bytes(self, options: Sequence[Options]) -> float:
        """What places that have one option share in the file, at most: counted at each of them, written once."""
        shared = 0.0
        for number in range(len(self._mixes.options)):
            choice = (number,) * len(options)
            if all(math.isfinite(one.harms[number]) for one in options):
                shared = max(shared, total_cost(options, choice, "size_bytes") - self._mixes.row(choice).size_bytes)
        return shared

    def _costs(self, choice: Choice, options: Sequence[Options]) -> dict[str, float]:
        """What a mix really costs, of each kind that is limited."""
        found = {kind: total_cost(options, choice, kind) for kind in self._limit.wanted()}
        if "size_bytes" in found:
            found["size_bytes"] = float(self._mixes.row(choice).size_bytes)
        return found | {kind: one.whole(choice) for kind, one in self._measured.items()}

    def _described(self, choice: Choice, uniform: Choice | None, options: Sequence[Options]) -> Mix:
        mixes, harm = self._mixes, self._mixes.row(choice).harm
        shares = tuple(
            Share(layer.name, mixes.options[option], float(one.harms[option]), float(one.costs["bits"][option]))
            for option, place, one in zip(choice, mixes.places, options, strict=True) for layer in place.layers
        )  # fmt: skip
        costs = {"size_bytes": float(mixes.row(choice).size_bytes),
                 "weight_bits": total_cost(options, choice, "weight_bits"), **self._costs(choice, options)}  # fmt: skip
        recipe = Recipe((*PREPARED, *mixes.recipe(choice).steps))
        beside = None if uniform is None else mixes.row(uniform).harm
        built = mixes.build(choice)
        found = Mix(recipe, built, shares, total_harm(options, choice), harm, costs, beside)
        for note in (notes := _notes(found)):
            _log.info("%s", note)
        return replace(found, model=built.edited(built.edit(), notes))


def _notes(mix: Mix) -> list[Note]:
    """What a mix came to, in words."""
    costs = f"{mix.costs['size_bytes']:,.0f} bytes, {mix.costs['weight_bits']:.2f} bits a weight"
    for kind, unit in (("latency_ms", "ms"), ("energy_mj", "mJ")):
        costs += f", {mix.costs[kind]:.3g} {unit}" if kind in mix.costs else ""
    text = f"{costs}; harm {mix.harm:.3g}, expected from the layers alone {mix.expected_harm:.3g}"
    if mix.uniform_harm is not None:
        text += f"; one option for all does {mix.uniform_harm:.3g} at best"
    notes = [Note("mix", text)]
    widths = {share.bits for share in mix.layers if share.technique is not None}
    for narrow, stored in (((2, 3), 4), ((5, 6, 7), 8)):
        if found := sorted(widths.intersection(narrow)):
            said = " and ".join(f"{width:.0f}" for width in found)
            notes.append(
                Note("mix", f"codes of {said} bits take {stored} in the file; weight_bits counts them as packed")
            )
    return notes
