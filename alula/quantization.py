"""One technique, no search: the shortest way from a float model to a quantized one."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from alula.errors import DataError, RecipeError
from alula.graph.coded import coded
from alula.graph.feeds import Feeds, feeds_of
from alula.graph.load import load_model
from alula.graph.model import Model, Note
from alula.graph.quantized import quantized_operators
from alula.graph.remembered import remembered, why_nothing_can_be_made
from alula.graph.statistics import Statistics, collect
from alula.recipe import Recipe, Step, apply_recipe, requests_of
from alula.settings import Patterns, expect
from alula.techniques import Float32, FoldBatchNorm, Quantize, QuantizeDynamic, QuantizeWeights, Technique
from alula.techniques.float32 import in_float32

if TYPE_CHECKING:
    import onnx_ir as ir
    import torch

Data: TypeAlias = np.ndarray | Mapping[str, np.ndarray] | Iterable[Any]

_QUANTIZING = (Quantize, QuantizeDynamic, QuantizeWeights)
_log = logging.getLogger(__name__)


def quantize(
    model: Model | str | Path | torch.nn.Module,
    data: Data | None = None,
    *,
    technique: Technique | None = None,
    example: Any | None = None,
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
    sequential: bool = False,
) -> Model:
    """A quantized copy of a model. Batch normalisations are folded first; nothing is measured or certified.

    Left to itself, the technique is static int8 where there is calibration data; without data, dynamic int8 where
    the layers have a MatMul or Gemm, and int8 weights alone otherwise. A note on the result says which and why.

    >>> from alula.testing import dense_network
    >>> print(quantize(dense_network()).notes[-1])
    quantize: QuantizeDynamic, because there is no calibration data and the layers have a MatMul or Gemm

    Args:
        model: a Model, the path of an ONNX file, or a module (with ``example``).
        data: calibration inputs: the rows of one array (models of one input), or of an array per input name; or feeds
            or batches, one after another, which may come from a generator. Where there are none,
            :func:`alula.synthesise` makes some from what batch normalisations remember.
        technique: what to do instead.
        example: inputs to export the module with (see :func:`alula.graph.export.as_model`).
        include: patterns of the layers to treat, over names, or ``Op:Conv`` by operator.
        exclude: patterns of the layers to keep in float.
        sequential: ``QuantizeWeights`` goes from layer to layer, and sees what the layers before it give as they are by
            then. All data are kept.

    Raises:
        ModelError: the model is damaged, or cannot be exported.
        DataError: the data does not fit the model, is not finite, or is missing though the technique needs it.
        RecipeError: a pattern matches nothing, or the technique is impossible for the layers.
    """
    expect("include", include, Patterns)
    expect("exclude", exclude, Patterns)
    original = _entered(model, example)
    chosen = Step(FoldBatchNorm(), tuple(include), tuple(exclude)).layers(original)
    reason = "it was asked for"
    if technique is None:
        technique, reason = _default({layer.operator for layer in chosen}, data)
    recipe = _recipe(Step(technique, tuple(include), tuple(exclude), sequential=sequential))
    result = apply_recipe(original, recipe, _calibration(original, recipe, data, type(technique).__name__))
    notes = []
    if isinstance(technique, _QUANTIZING) and not quantized_operators(result.graph.all_nodes()):
        notes.append(Note("quantize", "nothing was quantized: no layer is fit for it, or all chosen ones are kept"))
    notes.append(Note("quantize", f"{type(technique).__name__}, because {reason}"))
    for note in notes:
        _log.info("%s", note)
    return result.edited(result.edit(), notes)


def _entered(model: Model | str | Path | torch.nn.Module, example: Any | None) -> Model:
    """The model; where layers are quantized already, a note names each, and some must be left.

    Raises:
        RecipeError: all of them are.
    """
    from alula.graph.export import as_model

    known = load_model(model, allow_quantized=True) if isinstance(model, str | Path) else model
    original = as_model(known, example)
    held = [str(node.name) for node in original.graph if _is_quantized(node)]
    if held and not original.layers():
        more = ", ..." if len(held) > 3 else ""
        raise RecipeError(
            f"all {len(held)} layers are quantized already ({', '.join(held[:3])}{more}); give the float model"
        )
    notes = [Note(name, "left alone: it is quantized already") for name in held]
    return original.edited(original.edit(), notes) if notes else original


def _is_quantized(node: ir.Node) -> bool:
    """Whether a node is a layer whose weight is codes, or that computes with such."""
    moves = node.op_type.endswith(("QuantizeLinear", "DequantizeLinear"))
    computes = not moves and bool(quantized_operators([node]))
    return computes or any(coded(value) is not None for value in node.inputs[1:2])


def _recipe(step: Step) -> Recipe:
    """The technique behind what prepares a graph for it; before folding, where it reads batch normalisations."""
    reads = isinstance(step.technique, QuantizeWeights) and step.technique.bias_correction == "normalisations"
    fold = Step(FoldBatchNorm())
    return Recipe((Step(Float32()), *((step, fold) if reads else (fold, step))))


def _calibration(model: Model, recipe: Recipe, data: Data | None, name: str) -> Statistics | list[Feeds]:
    """What a recipe reads: the data themselves where a step goes from layer to layer."""
    requests, sequential = requests_of(recipe, model), any(step.sequential for step in recipe.steps)
    if data is None:
        if requests or sequential:
            raise DataError(f"{name} needs calibration data; pass data=..., {_without_data(model)}")
        return Statistics()
    feeds = feeds_of(model.inputs, data)
    if sequential:
        return list(feeds)
    return collect(in_float32(model), feeds, requests) if requests else Statistics()


def _without_data(model: Model) -> str:
    """The way out of missing calibration data, in words."""
    reason = why_nothing_can_be_made(model)
    if reason is not None:
        return f"since none can be made up: {reason}"
    count = len(remembered(model))
    return f"or data=alula.synthesise(model, 256), made up from what its {count} batch normalisations remember"


def _default(operators: set[str], data: Data | None) -> tuple[Technique, str]:
    """The technique for layers of these operators, and why."""
    if data is not None:
        from alula.targets import OnnxRuntime

        bits = min(8, OnnxRuntime().traits().weight_bits_safe)
        why = "there is calibration data"
        return Quantize(weight_bits=bits), why if bits == 8 else f"{why}; sums of 8-bit weights saturate here"
    if operators & {"MatMul", "Gemm"}:
        return QuantizeDynamic(), "there is no calibration data and the layers have a MatMul or Gemm"
    return QuantizeWeights(), "there is no calibration data and no layer is a MatMul or Gemm"
