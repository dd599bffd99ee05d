"""Causes that show only beside the quantized graph: what its codes really are, and the noise that they make.

:mod:`alula.search.diagnosis` finds causes in a float graph and its data; here stand the others.

| symbol | shape | meaning |
|---|---|---|
| W, W^ | [..., C, ...] | weights, and what the codes stand for |
| l, h | | the range that an activation's codes stand for |
| m_c, M | [C] | largest magnitude of each channel of W, and of all |
| a, b | | the least and largest number that the data show there, 0 among them |

    reused weight         several layers read W, and W^ is further from it than rounding explains
    dead channel          W^_c = 0, though W_c is not, or as good as
    one scale             C M^2 / sum m_c^2 > 4: a step for each channel would spare a bit
    other weights         |W^ - W| > 0.7 |W|
    range unlike the data (h - l) / (b - a) > 4: two bits are never used
    mean shift            more than half of the noise that a layer adds is one constant per channel
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import numpy as np
import onnx_ir as ir

from alula.diagnosing.operands import codes_behind, range_of
from alula.diagnosing.twin import Kind
from alula.graph.editing import Editor
from alula.graph.model import Model
from alula.graph.running import Runner
from alula.graph.slices import Copier
from alula.graph.statistics import Statistics
from alula.numerics.noise import decibels
from alula.search.diagnosis import CLIPPED_FRACTION, HARM_FLOOR, OVERFLOW_SUM, SPREAD_RATIO, diagnose
from alula.search.result import Finding
from alula.search.sensitivity import Harm

if TYPE_CHECKING:
    from collections.abc import Mapping

    from alula.diagnosing.matching import Match
    from alula.diagnosing.twin import Noise

UNUSED_RATIO: Final = 4.0  # a range this many times wider than the data: two bits of eight
A_BIT_DB: Final = 6.02
SHIFT_SHARE: Final = 0.5
OTHER_WEIGHTS: Final = 0.7  # of the weights' norm: 2-bit codes of normal weights stay below
EMPTY: Final = 1e-4  # of the widest channel: one that is narrower was as good as 0 before
MISROUNDED: Final = 0.75  # of a step; rounding moves a number by half of one
SIDE: Final = 0.1  # of the noise that a layer adds: a side with less is not looked at
SIDES: Final[tuple[Kind, ...]] = ("weights", "activations")
COARSE: Final = 0.1  # relative error above which a layer is named although no cause is known


@dataclass(frozen=True, slots=True)
class Evidence:
    """All that is known about one layer."""

    model: Model
    match: Match
    statistics: Statistics
    noise: Mapping[Kind, Noise]
    harm: Harm
    held: Mapping[str, np.ndarray] = field(default_factory=dict)  # what the codes of its weights stand for
    vnni: bool = True

    def found(self, cause: str, text: str, fix: str, **values: float) -> Finding:
        """A finding in this layer."""
        numbers = {key: float(one) for key, one in values.items()}
        return Finding("model", self.match.layer.name, cause, text, numbers, fix)

    def matters(self, side: Kind) -> bool:
        """Whether a side makes a notable share of the noise that the layer adds; where shares are unknown, both do."""
        seen = {kind: self.noise[kind].noise for kind in SIDES if kind in self.noise}
        if len(seen) < 2:
            return side == "weights" or self.match.quantizes_activations
        return seen[side] >= SIDE * (sum(seen.values()) or np.inf)

    @property
    def range(self) -> tuple[float, float] | None:
        """What the codes of its activation can stand for."""
        operand = self.match.operands.activation
        return None if operand is None else range_of(operand)

    @property
    def per_channel(self) -> bool:
        """Whether its weights have more than one scale; so too where that cannot be told."""
        operand = self.match.operands.weights.get(self.match.layer.weight)
        scale = None if operand is None else codes_behind(operand)[1]
        return scale is None or scale.const_value is None or scale.const_value.numpy().size > 1

    @property
    def weights(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Weights, and what their codes stand for, by output channel: [C, n] each."""
        layer = self.match.layer
        held = self.held.get(layer.weight)
        if held is None or not layer.input_axes:
            return None
        weight = self.model.weight(layer.weight)
        if weight.shape != held.shape:
            return None
        rows = (np.moveaxis(one, layer.output_axis, 0).reshape(weight.shape[layer.output_axis], -1)
                for one in (weight.astype(np.float64), held.astype(np.float64)))  # fmt: skip
        first, second = rows
        return first, second


def causes_of(seen: Evidence) -> tuple[Finding, ...]:
    """Named causes of the noise of one layer, the surest first; none where it does no harm to the outputs."""
    if seen.harm.error <= HARM_FLOOR or not seen.match.quantized:
        return ()
    found = list(_sure(seen))
    found += [one for one in _by_data(seen) if not found or one.cause != "skewed distribution"]
    if seen.matters("weights") and not any("per-channel" in one.fix for one in found):
        found += _one_scale(seen)
    found += _shifted(seen)
    if not found and seen.harm.error > COARSE:
        found += _coarse(seen)
    return tuple(found)


def held_weights(match: Match) -> dict[str, np.ndarray]:
    """What the codes of a layer's weights stand for, by initializer of the float layer, where that can be told."""
    if not match.operands.weights:
        return {}
    empty = ir.Model(
        ir.Graph([], [], nodes=[], opset_imports={"com.microsoft": 1, **_opsets(match)}, name="weights"), ir_version=10
    )
    editor = Editor(empty)
    copier = Copier(editor, "")
    moving = set(match.part.moving)
    known = copier.copy([node for node in match.part.nodes if node not in moving], {})
    names = {}
    for name, operand in match.operands.weights.items():
        value = operand.dequantized(editor, copier, known, transposed=match.operands.transposed)
        if value.is_initializer():  # in float
            continue
        value.type = ir.TensorType(ir.DataType.FLOAT)
        editor.graph.outputs.append(value)
        names[name] = str(value.name)
    outputs = Runner(Model(empty))({}) if names else {}
    return {name: outputs[output] for name, output in names.items()}


def _opsets(match: Match) -> dict[str, int]:
    graph = match.part.nodes[0].graph
    return {"": 21} if graph is None else dict(graph.opset_imports)


def _by_data(seen: Evidence) -> Iterator[Finding]:
    """What the float graph and its data show; of a side that makes noise only."""
    layer = seen.match.layer
    tensors = {name: seen.statistics[name] for name in (layer.input, layer.output) if name in seen.statistics}
    read = tensors.get(layer.input)
    if read is not None and read.minimum < read.maximum and not seen.matters("activations"):
        del tensors[layer.input]
    ranges = {} if seen.range is None else {layer.input: seen.range}
    if seen.range is None and layer.input in tensors:  # found anew in each run: as wide as the data
        ranges = {layer.input: (tensors[layer.input].minimum, tensors[layer.input].maximum)}
    yield from diagnose(
        seen.model,
        Statistics(tensors),
        {layer.name: seen.harm},
        ranges=ranges,
        per_channel=seen.per_channel or not seen.matters("weights"),
        vnni=seen.vnni or not _wide_codes(seen),
    )


def _sure(seen: Evidence) -> Iterator[Finding]:
    """What the codes themselves show."""
    if seen.matters("weights"):
        reused = list(_reused(seen))
        yield from reused or _other_weights(seen)
        yield from _dead_channels(seen)
        yield from _weight_spread(seen)
    if seen.matters("activations"):
        yield from _unused(seen)


def _reused(seen: Evidence) -> Iterator[Finding]:
    """Constants that several layers read: what was done to them for one (a scale, a correction) is done to all."""
    layer = seen.match.layer
    for name in (*layer.weights, *([layer.bias] if layer.bias else [])):
        readers = sorted({str(use.node.name) for use in seen.model.graph.initializers[name].uses()})
        if len(readers) > 1 and _misrounded(seen, name):
            others = ", ".join(reader for reader in readers if reader != layer.name)
            yield seen.found(
                "reused weight",
                f"{name!r} is read by {others} too: one set of codes, one scale and every correction of it serve all "
                "its readers, which read different numbers",
                "give each reader a copy of its own before quantizing, or keep in float",
                readers=len(readers),
            )


def _misrounded(seen: Evidence, name: str) -> bool:
    """Whether codes of a constant are further from it than rounding explains."""
    held, operand = seen.held.get(name), seen.match.operands.weights.get(name)
    scale = None if operand is None else codes_behind(operand)[1]
    wanted = seen.model.weight(name)
    if held is None or scale is None or scale.const_value is None or held.shape != wanted.shape:
        return False  # it cannot be told
    steps = np.abs(scale.const_value.numpy().astype(np.float64)).ravel()
    axis = seen.match.layer.output_axis if wanted.ndim > 1 else 0
    if steps.size not in (1, wanted.shape[axis]):  # of blocks: one step for all, the widest
        steps = steps.max(keepdims=True)
    apart = np.abs(held.astype(np.float64) - wanted)
    return (
        float(np.mean(apart > MISROUNDED * np.expand_dims(steps, tuple(range(1, wanted.ndim - axis)))))
        > CLIPPED_FRACTION
    )


def _other_weights(seen: Evidence) -> Iterator[Finding]:
    if seen.weights is None:
        return
    weight, held = seen.weights
    apart = float(np.linalg.norm(held - weight) / max(np.linalg.norm(weight), np.finfo(np.float64).tiny))
    if apart > OTHER_WEIGHTS:
        yield seen.found(
            "other weights",
            f"its codes stand for numbers that differ from the float weights by {apart:.0%} of their norm: they are "
            "clipped far too early, or come from another checkpoint",
            "quantize this float model again, with min-max or mean-squared-error ranges of the weights",
            apart=apart,
        )


def _dead_channels(seen: Evidence) -> Iterator[Finding]:
    if seen.weights is None:
        return
    weight, held = seen.weights
    widths = np.abs(weight).max(axis=1)  # [C]
    dead = np.flatnonzero((np.abs(held).max(axis=1) == 0) & (widths > EMPTY * widths.max(initial=0.0)))
    if len(dead):
        yield seen.found(
            "dead channel",
            f"{len(dead)} of {len(weight)} output channels became 0, the first is channel {dead[0]}: their weights are "
            "smaller than half a step",
            "per-channel weights",
            channel=float(dead[0]),
            channels=len(dead),
        )


def _weight_spread(seen: Evidence) -> Iterator[Finding]:
    if seen.weights is None or seen.per_channel or not seen.match.layer.depthwise:
        return
    widths = np.abs(seen.weights[0]).max(axis=1)  # [C]
    alive = widths[widths > EMPTY * widths.max(initial=0.0)]
    if len(alive) < 4:
        return
    narrow, wide = np.quantile(alive, (0.05, 0.95))
    if wide > SPREAD_RATIO * narrow:
        yield seen.found(
            "depthwise range spread",
            f"its filters share one scale, and their widths differ {wide / narrow:.0f}x ({narrow:.3g} to {wide:.3g}, "
            "5 to 95 percentile)",
            "per-channel weights, or cross-layer equalisation",
            ratio=wide / narrow,
            narrow=narrow,
            wide=wide,
        )


def _one_scale(seen: Evidence) -> Iterator[Finding]:
    """No channel stands out, and all together still lose a bit: a step per channel has C M^2 / sum m_c^2 less noise."""
    if seen.weights is None or seen.per_channel:
        return
    widths = np.abs(seen.weights[0]).max(axis=1)  # [C]
    gain = decibels(len(widths) * float(widths.max(initial=0.0)) ** 2, float(np.sum(widths**2)))
    if np.isfinite(gain) and gain > A_BIT_DB:
        yield seen.found(
            "one scale for all channels",
            f"its weights share one scale, and most channels are much narrower than the widest: with a scale for each "
            f"their noise would be about {gain:.1f} dB lower",
            "per-channel weights",
            gain_db=gain,
        )


def _unused(seen: Evidence) -> Iterator[Finding]:
    """A range that was calibrated on other data, or by a guess: most of its codes are never used."""
    statistics = seen.statistics.get(seen.match.layer.input)
    if seen.range is None or statistics is None:
        return
    low, high = seen.range
    least, largest = min(statistics.minimum, 0.0), max(statistics.maximum, 0.0)
    if largest > least and high - low > UNUSED_RATIO * (largest - least):
        ratio = (high - low) / (largest - least)
        yield seen.found(
            "range unlike the data",
            f"the range of its input is {low:.3g} to {high:.3g}, and these data reach from {statistics.minimum:.3g} to "
            f"{statistics.maximum:.3g} only: {np.log2(ratio):.1f} bits are never used",
            "calibrate again on data like these",
            ratio=ratio,
            low=low,
            high=high,
            minimum=statistics.minimum,
            maximum=statistics.maximum,
        )


def _shifted(seen: Evidence) -> Iterator[Finding]:
    added = seen.noise.get("added")
    if added is None or added.shift <= SHIFT_SHARE:
        return
    left = decibels(added.signal, added.noise * (1 - added.shift))
    yield seen.found(
        "mean shift",
        f"{added.shift:.0%} of the noise that it adds is one constant per output channel, as from a bias or a "
        f"normalisation that drifted: without it the ratio of signal to noise is {left:.1f} instead of "
        f"{added.sqnr_db:.1f} dB",
        "bias correction",
        share=added.shift,
    )


def _coarse(seen: Evidence) -> Iterator[Finding]:
    """No cause is known, and the layer does harm all the same: which side to give more bits."""
    noise = {side: seen.noise[side].noise for side in SIDES if side in seen.noise}
    side = max(noise, key=lambda one: noise[one], default="weights")
    added = seen.noise.get("added")
    ratio = f", at {added.sqnr_db:.1f} dB" if added is not None else ""
    fix = (
        "per-channel or per-block weights, GPTQ, more bits, or keep in float"
        if side == "weights"
        else "mean-squared-error range, 16-bit activations, or keep in float"
    )
    yield seen.found(f"coarse {side}", f"its {side} make most of the noise that it adds{ratio}", fix)


def _wide_codes(seen: Evidence) -> bool:
    """Whether codes of its weights take more than 7 bits."""
    operand = seen.match.operands.weights.get(seen.match.layer.weight)
    scale = None if operand is None else codes_behind(operand)[1]
    if seen.weights is None or scale is None or scale.const_value is None:
        return False
    held, steps = seen.weights[1], np.abs(scale.const_value.numpy().astype(np.float64)).ravel()
    if steps.size not in (1, len(held)):
        return False
    codes = np.abs(held) / np.where(steps > 0, steps, 1.0)[:, None]  # [C, n]
    return bool(codes.max(initial=0.0) > OVERFLOW_SUM / 2)
