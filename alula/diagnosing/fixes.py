"""What helps, done: the float original quantized anew, in the same form, with the settings that the causes ask for.

| cause | what is done (static) |
|---|---|
| outlier channel of weights, dead channel, spread of depthwise weights, coarse weights | a scale per channel |
| outlier channel of an activation | moved into the weights (MatMul, Gemm), or evened out between layers (`Equalize`) |
| spread of an activation's channels before a depthwise layer | evened out between layers (`Equalize`) |
| saturated or skewed activation, tails, coarse activations | ranges by least squared error |
| range unlike the data, other weights | calibrated and quantized anew |
| mean shift | bias correction; GPTQ where weights alone are codes |
| accumulator overflow without VNNI | weights of 7 bits |
| reused weight, dead range | the layer stays in float |

Layers that still do harm stay in float in a second attempt, which is kept if it is better.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields, replace
from typing import Any, Final

from alula.diagnosing.causes import COARSE
from alula.diagnosing.diagnosis import AnyModel, Data, diagnose, open_pair
from alula.diagnosing.matching import Match, match
from alula.diagnosing.operands import codes_behind, codes_taken, range_of
from alula.diagnosing.result import Diagnosis
from alula.errors import DataError
from alula.graph.export import as_model
from alula.graph.feeds import feeds_of
from alula.graph.model import Model
from alula.graph.statistics import Statistics, collect
from alula.numerics.ranges import MeanSquaredError
from alula.recipe import Recipe, Step, apply_recipe, requests_of
from alula.search.propose import SMOOTHING, literal
from alula.search.result import Finding
from alula.techniques import Equalize, Float32, FoldBatchNorm, Quantize, QuantizeDynamic, QuantizeWeights, Technique
from alula.techniques.float32 import in_float32

KEPT_IN_FLOAT: Final = frozenset({"reused weight", "dead range"})
_PER_CHANNEL: Final = ("a scale per channel", {"per_channel": True})
_BY_ERROR: Final = ("ranges by least squared error", {"range": MeanSquaredError()})
_SMOOTHED: Final = ("outlier channels moved into the weights", {"smoothing": SMOOTHING})
_EQUALIZED: Final = ("ranges evened out between layers", {"equalize": True})
_REMEDIES: Final[dict[str, tuple[str, dict[str, Any]]]] = {
    "accumulator overflow without VNNI": ("weights of 7 bits", {"weight_bits": 7}),
    "coarse activations": _BY_ERROR,
    "coarse weights": _PER_CHANNEL,
    "dead channel": _PER_CHANNEL,
    "layer normalisation tail": _BY_ERROR,
    "mean shift": ("bias correction", {"bias_correction": True}),
    "saturated activation": _BY_ERROR,
    "skewed distribution": _BY_ERROR,
}
_WIDER: Final = {"int16": 16, "uint16": 16}


@dataclass(frozen=True, slots=True)
class Fixed:
    """The float original quantized anew: the model, its recipe, and the diagnoses before and after."""

    model: Model
    recipe: Recipe
    before: Diagnosis
    after: Diagnosis
    done: tuple[str, ...]  # what was changed and why, in words

    def __str__(self) -> str:
        from alula.diagnosing.words import fixed_in_words

        return fixed_in_words(self)

    def to_json(self) -> dict[str, Any]:
        """All but the model, as plain data."""
        return {
            "recipe": self.recipe.to_json(),
            "done": list(self.done),
            "before": self.before.to_json(),
            "after": self.after.to_json(),
        }


def apply_fixes(
    quantized: AnyModel, original: AnyModel, data: Data, *, diagnosis: Diagnosis | None = None, **settings: Any
) -> Fixed:
    """Quantize the float original anew, in the form of the quantized model, so that the causes found are met.

    Args:
        quantized: the model that was diagnosed.
        original: the float model that it was made from.
        data: inputs as they come in use, to calibrate on and to judge by; walked through several times.
        diagnosis: of the two, where it is there already.
        settings: of :func:`diagnose`.

    Raises:
        DataError: the data can be walked through only once, or as for :func:`diagnose`.
        ModelError: as for :func:`diagnose`.
        RecipeError: the techniques are impossible for the layers.
    """
    if isinstance(data, Iterator):
        raise DataError("fixes are calibrated and judged by several walks through the data; give arrays or a list")
    before = diagnosis or diagnose(quantized, original, data, **settings)
    float_model, given = open_pair(quantized, original)
    matches = match(float_model, given).matches
    base = technique_of(matches)
    kept = [one.layer.name for one in matches if not one.quantized]
    technique, equalize, done = adapted(base, before)
    spoilt = {one.layer for one in before.findings if one.cause in KEPT_IN_FLOAT}
    if spoilt and len(kept) + len(spoilt) < len(matches):  # something has to become codes
        kept += sorted(spoilt)
        done += (f"left in float, as their weights are reused or nothing varies there: {', '.join(sorted(spoilt))}",)
    best = _attempt(original, data, _recipe(technique, kept, equalize=equalize), settings)
    still = _harmful(best[2])
    if still and len(kept) + len(still) < len(matches):
        other = _attempt(original, data, _recipe(technique, [*kept, *still], equalize=equalize), settings)
        if other[2].error < best[2].error:
            best, kept = other, [*kept, *still]
            done += (f"left in float, as they still do harm: {', '.join(still)}",)
    model, recipe, after = best
    if after.error > before.error:
        text = f"the outputs are off by {after.error:.3g} of their size, before by {before.error:.3g}"
        done += (f"nothing that was tried helps: {text}; keep the model that was given",)
    return Fixed(model, recipe, before, after, done)


def technique_of(matches: Iterable[Match]) -> Technique:
    """The technique of alula's that comes nearest to how a graph was quantized; weights by the type of their codes."""
    quantized = [one for one in matches if one.quantized]
    weights = [codes_behind(operand) for one in quantized for operand in one.operands.weights.values()]
    bits = 4 if any("int4" in kind for kind, _, _ in weights) else 8
    scales = [scale.const_value for _, scale, _ in weights if scale is not None]
    per_channel = any(scale.size > 1 for scale in scales if scale is not None)
    activations = [one.operands.activation for one in quantized if one.operands.activation is not None]
    fixed = [one for one in activations if range_of(one) is not None]
    if fixed:
        kinds = [codes_behind(one)[0] for one in fixed]
        width = max(_WIDER.get(kind) or _width(*codes_taken(one, kind)) for one, kind in zip(fixed, kinds, strict=True))
        return Quantize(weight_bits=bits, activation_bits=width, per_channel=per_channel)
    if any(one.quantizes_activations for one in quantized):
        return QuantizeDynamic(per_channel=per_channel)
    blocks = [block for one in quantized if (block := _block_of(one)) is not None]
    return QuantizeWeights(bits=bits, block=min(blocks, default=None), smallest=1)


def _width(low: int, high: int) -> int:
    """Bits that codes from the least to the greatest take, 2 at least."""
    return max(2, math.ceil(math.log2(high - low + 1)))


def _block_of(one: Match) -> int | None:
    """Weights of a layer that share a scale, where they are blocks along an axis."""
    for operand in one.operands.weights.values():
        scale = codes_behind(operand)[1]
        shape = () if scale is None or scale.const_value is None else scale.const_value.numpy().shape
        if len(shape) == len(one.layer.shape) > 1:
            blocks = {length // count for length, count in zip(one.layer.shape, shape, strict=True) if count < length}
            return max(blocks, default=None)
    return None


def adapted(base: Technique, diagnosis: Diagnosis) -> tuple[Technique, bool, tuple[str, ...]]:
    """The technique with settings that meet the causes, whether to equalize before, and what was done and why."""
    operators = {row.name: row.operator for row in diagnosis.layers}
    merged: dict[str, Any] = {}
    reasons: dict[str, list[Finding]] = {}
    for finding in diagnosis.findings:
        words, settings = _remedy(finding, base, operators[finding.layer])
        merged |= settings
        reasons.setdefault(words, []).append(finding)
    equalize = bool(merged.pop("equalize", False))
    done = tuple(f"{words}, because of {_because(found)}" for words, found in reasons.items())
    return replace(base, **merged), equalize, done  # type: ignore[type-var]


def _remedy(finding: Finding, base: Technique, operator: str) -> tuple[str, dict[str, Any]]:
    """What is done about a cause, in words, and the settings that it takes."""
    anew: tuple[str, dict[str, Any]] = ("calibrated and quantized anew", {})
    if isinstance(base, QuantizeWeights):
        return anew if finding.cause in KEPT_IN_FLOAT else ("rounded by GPTQ", {"rounding": "gptq"})
    words, settings = _REMEDIES.get(finding.cause, anew)
    if "per-channel" in finding.fix:
        words, settings = _PER_CHANNEL
    elif finding.cause in ("outlier channel", "depthwise range spread"):
        words, settings = _SMOOTHED if operator in ("MatMul", "Gemm") else _EQUALIZED
    taken = {field.name for field in fields(base)} | {"equalize"}  # type: ignore[arg-type]
    return (words, settings) if set(settings) <= taken else anew


def _because(findings: list[Finding]) -> str:
    first, more = findings[0], len(findings) - 1
    return f"{first.cause} in {first.layer}" + (f" and {more} more" if more else "")


def _recipe(technique: Technique, kept: list[str], *, equalize: bool) -> Recipe:
    steps = [Step(Float32()), Step(FoldBatchNorm()), *([Step(Equalize())] if equalize else [])]
    return Recipe((*steps, Step(technique, exclude=tuple(dict.fromkeys(map(literal, kept))))))


def _attempt(
    original: AnyModel, data: Data, recipe: Recipe, settings: dict[str, Any]
) -> tuple[Model, Recipe, Diagnosis]:  # fmt: skip
    """A recipe applied to the original, and diagnosed beside what its preserving steps make of that."""
    model = as_model(original)
    requests = requests_of(recipe, model)
    statistics = collect(in_float32(model), feeds_of(model.inputs, data), requests) if requests else Statistics()
    prepared = apply_recipe(model, Recipe(recipe.steps[:-1]), statistics)
    made = apply_recipe(model, recipe, statistics)
    return made, recipe, diagnose(made, prepared, data, **settings)


def _harmful(diagnosis: Diagnosis) -> list[str]:
    """Layers that are accused, or spoil the outputs alone."""
    accused = {finding.layer for finding in diagnosis.findings}
    return [row.name for row in diagnosis.layers if row.name in accused or (row.error or 0.0) > COARSE]
