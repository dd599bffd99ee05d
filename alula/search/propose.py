"""The first candidates: what is worth building for this runtime, this objective and these graphs, and why.

Nothing here is tried blindly. What the runtime runs slower than float is left out, and said.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Final

from alula.errors import ModelError
from alula.graph.cost import measure_cost
from alula.graph.layers import RECURRENT
from alula.graph.model import Note
from alula.numerics.ranges import Entropy, MeanSquaredError, MinMax, Percentile, RangeMethod
from alula.recipe import Recipe, Step
from alula.techniques import Float16, Float32, FoldBatchNorm, Quantize, QuantizeDynamic, QuantizeWeights, Technique
from alula.techniques.float32 import computes_in_float16

if TYPE_CHECKING:
    from alula.budget import Objective
    from alula.graph.model import Model
    from alula.targets import Target, Traits

STATIC_OPERATORS: Final = frozenset({"Conv", "Gemm", "MatMul"})
PRODUCTS: Final = frozenset({"Gemm", "MatMul"})
WORTHWHILE: Final = 0.1  # of all multiply-accumulates: below, what is done to these layers changes no latency
SMOOTHING: Final = 0.8  # between an even split and moving everything, where MiniLM lost least
BLOCK: Final = 32  # weights that share a scale in int4; both runtimes have kernels for it
_PRESERVING: Final = (Float32, FoldBatchNorm)  # techniques that leave what a graph computes as it is
_RANGES: Final[tuple[tuple[str, RangeMethod, str], ...]] = (
    ("min-max ranges", MinMax(), "the whole range seen: nothing saturates"),
    ("percentile ranges", Percentile(), "rare values saturate, so that all others get finer steps"),
    ("mse ranges", MeanSquaredError(), "the range with the least squared error"),
    ("entropy ranges", Entropy(), "the range that keeps the distribution"),
)

_TOO_SMALL: Final = Note(
    "matrix products", "not tried: dynamic int8 and int4 weights; they are under 10 % of the multiply-accumulates"
)

Parts = Mapping[str, "Model"]


@dataclass(frozen=True, slots=True)
class Proposal:
    """A recipe worth trying; ``fallback`` is what the layers that suffer get instead (None: they stay in float)."""

    name: str
    recipe: Recipe
    reason: str
    fallback: Technique | None = None


def propose(parts: Parts, target: Target, objective: Objective) -> tuple[tuple[Proposal, ...], tuple[Note, ...]]:
    """The proposals, in the order in which to try them, and notes on what was left out.

    Raises:
        ModelError: no part has a layer that could be compressed; the message says what the graphs hold.
    """
    if not any(model.layers() for model in parts.values()):
        raise ModelError(_nothing_to_compress(parts))
    traits = target.traits()
    busy = _share_of_macs(parts, PRODUCTS) >= WORTHWHILE
    matter = objective == "size" or busy
    proposals = _static(parts, traits, smoothing=busy)
    if matter:
        proposals += _dynamic(parts, traits)
    proposals += _weight_only(parts, traits, objective, products=matter)
    if objective == "size" or traits.float16_fast:
        proposals.append(_everywhere("float16", parts, Float16(), "half the bytes, and hardly any error"))
    if not proposals:
        proposals.append(_everywhere("int8 weights", parts, QuantizeWeights(), "the runtime gains from nothing else"))
    return tuple(proposals), (*_left_out(parts, traits, objective), *([] if matter else [_TOO_SMALL]))


def keep_apart(proposal: Proposal, parts: Parts, layers: Mapping[str, Iterable[str]]) -> Recipe:
    """The proposal's recipe with some layers of each part excluded from compression, or given its fallback.

    Args:
        proposal: what is refined.
        parts: the graphs.
        layers: names of the layers to keep apart, by part.

    Raises:
        RecipeError: a layer does not exist.
    """
    steps: list[Step] = []
    for step in proposal.recipe.steps:
        if preserves_function(step.technique):
            steps.append(step)
            continue
        for part in (name for name in parts if fnmatchcase(name, step.part)):
            chosen = {layer.name for layer in step.layers(parts[part])}
            apart = [name for name in layers.get(part, ()) if name in chosen]
            if len(apart) < len(chosen):
                exclude = (*step.exclude, *map(literal, apart))
                steps.append(replace(step, part=literal(part), exclude=exclude))
    if proposal.fallback is not None:
        kept = {part: tuple(map(literal, names)) for part, names in layers.items()}
        steps += [Step(proposal.fallback, include=names, part=literal(part)) for part, names in kept.items() if names]
    return Recipe(tuple(steps))


def preserves_function(technique: Technique) -> bool:
    """Whether a technique leaves what the graph computes as it is."""
    return isinstance(technique, _PRESERVING)


def literal(name: str) -> str:
    """A pattern that matches this name and no other, whatever characters it holds."""
    return re.sub(r"([*?[])", r"[\1]", name)


def _static(parts: Parts, traits: Traits, *, smoothing: bool) -> list[Proposal]:
    operators = STATIC_OPERATORS & traits.static_int8
    if not _holding(parts, operators):
        return []
    base = Quantize(weight_bits=min(8, traits.weight_bits_safe), activation_signed=traits.activation_signed)
    variants = [(f"int8 static, {name}", replace(base, range=method), reason) for name, method, reason in _RANGES]
    if smoothing and _holding(parts, PRODUCTS & operators):
        smoothed = replace(base, smoothing=SMOOTHING)
        variants.append(("int8 static, smoothed", smoothed, "outlier channels of activations moved into the weights"))
        if traits.static_products and any(map(_has_attention, parts.values())):
            attention = replace(smoothed, range=MeanSquaredError(), products=True, outputs=False)
            variants.append(("int8 static with attention, smoothed", attention, "products of activations in int8 too"))
    return [
        Proposal(name, _recipe(parts, (technique, operators), *_tables(parts)), why)
        for name, technique, why in variants
    ]


def _tables(parts: Parts) -> list[tuple[Technique, frozenset[str]]]:
    """Tables that are looked up, in int8 by row: a quarter of the bytes, and a look-up is no slower for it."""
    return [(QuantizeWeights(bits=8), frozenset({"Gather"}))] if _holding(parts, frozenset({"Gather"})) else []


def _dynamic(parts: Parts, traits: Traits) -> list[Proposal]:
    operators = PRODUCTS & traits.dynamic_int8
    if not _holding(parts, operators):
        return []
    dynamic = QuantizeDynamic(weight_bits=min(8, traits.weight_bits_safe))
    why = "ranges found at each run: slower than static, and safe where activations have outliers"
    proposals = [Proposal("int8 dynamic", _recipe(parts, (dynamic, operators), *_tables(parts)), why)]
    convolutions = frozenset({"Conv"}) & traits.static_int8
    if _holding(parts, convolutions):
        static = Quantize(
            weight_bits=min(8, traits.weight_bits_safe),
            activation_signed=traits.activation_signed,
            range=MeanSquaredError(),
        )
        mixed = _recipe(parts, (static, convolutions), (dynamic, operators), *_tables(parts))
        why = "convolutions and matrix products each in the form that runs fast"
        proposals.append(Proposal("int8 static convolutions, dynamic products", mixed, why))
    return proposals


def _weight_only(parts: Parts, traits: Traits, objective: Objective, *, products: bool) -> list[Proposal]:
    proposals = []
    everything = frozenset(_operators(parts))
    if 8 in traits.weight_only_bits and (objective == "size" or not traits.dynamic_int8):
        recipe = _recipe(parts, (QuantizeWeights(bits=8), everything))
        proposals.append(Proposal("int8 weights", recipe, "a quarter of the bytes; computing stays in float"))
    blocked = everything & PRODUCTS if products else frozenset()
    if 4 in traits.weight_only_bits and blocked:
        steps = [(QuantizeWeights(bits=4, block=BLOCK), blocked)]
        if objective == "size" and everything - blocked:
            steps.append((QuantizeWeights(bits=8), everything - blocked))
        why = "an eighth of the bytes, and less memory to read per run"
        proposals.append(Proposal("int4 weights", _recipe(parts, *steps), why, fallback=QuantizeWeights(bits=8)))
    elif 4 in traits.weight_only_bits and objective == "size":
        recipe = _recipe(parts, (QuantizeWeights(bits=4), everything))
        proposals.append(Proposal("int4 weights", recipe, "an eighth of the bytes", fallback=QuantizeWeights(bits=8)))
    return proposals


def _everywhere(name: str, parts: Parts, technique: Technique, reason: str) -> Proposal:
    return Proposal(name, _recipe(parts, (technique, frozenset(_operators(parts)))), reason)


def _recipe(parts: Parts, *treatments: tuple[Technique, frozenset[str]]) -> Recipe:
    """Float16 computed in float32, batch normalisation folded, then each technique where its layers are."""
    steps: list[Step] = [Step(Float32())] if any(map(computes_in_float16, parts.values())) else []
    if any(node.op_type == "BatchNormalization" for model in parts.values() for node in model.graph):
        steps.append(Step(FoldBatchNorm()))
    for technique, operators in treatments:
        held = {name: _present(model) for name, model in parts.items()}
        if all(set(found) <= operators for found in held.values() if found) and all(held.values()):
            steps.append(Step(technique))
            continue
        for part, found in held.items():
            include = tuple(f"Op:{operator}" for operator in sorted(operators & set(found)))
            if include:
                steps.append(Step(technique, include=include, part=literal(part) if len(parts) > 1 else "*"))
    return Recipe(tuple(steps))


def _present(model: Model) -> Counter[str]:
    return Counter(layer.operator for layer in model.layers())


def _operators(parts: Parts) -> Counter[str]:
    return sum((_present(model) for model in parts.values()), Counter())


def _holding(parts: Parts, operators: frozenset[str]) -> bool:
    return bool(operators & set(_operators(parts)))


def _share_of_macs(parts: Parts, operators: frozenset[str]) -> float:
    """Fraction of the multiply-accumulates of one run that layers of these operators do; 1 where it cannot be told."""
    layers = [layer for model in parts.values() for layer in measure_cost(model).layers]
    if any(layer.macs is None for layer in layers if layer.operator in operators | {"Conv"}):
        return 1.0
    total = sum(layer.macs or 0 for layer in layers)
    return sum(layer.macs or 0 for layer in layers if layer.operator in operators) / total if total else 1.0


def _has_attention(model: Model) -> bool:
    """Whether some MatMul multiplies two activations."""
    products = [node for node in model.graph if node.op_type == "MatMul"]
    return any(not any(value is not None and value.is_initializer() for value in node.inputs) for node in products)


def _left_out(parts: Parts, traits: Traits, objective: Objective) -> tuple[Note, ...]:
    held = _operators(parts)
    notes = []
    for operator in sorted(held):
        for form, fast in (("static", traits.static_int8), ("dynamic", traits.dynamic_int8)):
            if operator in STATIC_OPERATORS | RECURRENT and operator not in fast:
                layers = f"{held[operator]} layer{'' if held[operator] == 1 else 's'}"
                text = f"not tried: {form} int8 on {layers}; {_why(traits, operator)}"
                notes.append(Note(operator, text))
    if objective != "size" and not traits.float16_fast:
        notes.append(Note("float16", f"not tried: {_why(traits, 'float16')}"))
    return tuple(notes)


def _why(traits: Traits, subject: str) -> str:
    """What the target says about an operator or format."""
    told = [note for note in traits.notes if re.search(rf"\b{re.escape(subject)}\b", note)]
    return told[0] if told else "this runtime gains nothing from it"


def _nothing_to_compress(parts: Parts) -> str:
    """What the graphs hold in place of layers."""
    words = []
    for name, model in parts.items():
        counts = Counter(node.op_type for node in model.graph).most_common(5)
        words.append(f"part {name!r} holds " + (", ".join(f"{count} {kind}" for kind, count in counts) or "no nodes"))
    bodies = any(node.op_type in ("If", "Loop", "Scan") for model in parts.values() for node in model.graph)
    hint = "; the bodies of If and Loop are left as they are: export the branch that runs as a graph of its own"
    return (
        "there is nothing to compress: no Conv, Gemm, MatMul, Gather or recurrent layer with constant weights in the "
        f"main graph ({'; '.join(words)})" + (hint if bodies else "")
    )
