"""Why a layer suffers from quantization, by name, with the numbers that show it and what helps.

| symbol | shape | meaning |
|---|---|---|
| m_c | [C] | largest magnitude seen in channel c |
| M | | largest magnitude seen in the tensor |
| q(p) | | the magnitude that the fraction p of all values does not exceed |
| w_k | [K] | one output channel's integer weights, in the order in which they are summed |

An 8-bit grid has 256 steps over the whole tensor. A cause below is a way in which few values take most of the steps:
one channel (m_c / median m), few values anywhere (M / q(0.999)), or channels of very different width
(q95(m) / q5(m)). The thresholds are where the rest is left with 8 bits less log2(ratio), below 5 bits.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from alula.search.result import Finding

if TYPE_CHECKING:
    import onnx_ir as ir
    from numpy.typing import NDArray

    from alula.graph.layers import Layer
    from alula.graph.model import Model
    from alula.graph.statistics import Statistics, TensorStatistics
    from alula.search.sensitivity import Harm

OUTLIER_RATIO: Final = 8.0  # a channel this many times wider than the median one
TAIL_RATIO: Final = 10.0  # maximum this many times beyond the 99.9 percentile
NORMALISED_TAIL_RATIO: Final = 6.0  # after a normalisation everything has one scale, so less is conspicuous
SKEWNESS: Final = 4.0  # third standardised moment; an exponential has 2, a rectified Gaussian 1.6
SPREAD_RATIO: Final = 30.0  # widest to narrowest channel of a depthwise convolution
CLIPPED_FRACTION: Final = 0.01
OVERFLOW_SUM: Final = 128  # 255 * 128.5 exceeds int16, where two products meet without VNNI
HARM_FLOOR: Final = 0.01  # relative output error below which a layer is not looked at


@dataclass(frozen=True, slots=True)
class _Seen:
    """One layer with what is known about it."""

    model: Model
    layer: Layer
    part: str
    input: TensorStatistics | None
    output: TensorStatistics | None
    clip: tuple[float, float] | None

    def found(self, cause: str, text: str, fix: str, **values: float) -> Finding:
        return Finding(self.part, self.layer.name, cause, text, {k: float(v) for k, v in values.items()}, fix)


def diagnose(
    model: Model,
    statistics: Statistics,
    harms: Mapping[str, Harm] | None = None,
    *,
    part: str = "model",
    ranges: Mapping[str, tuple[float, float]] | None = None,
    per_channel: bool = False,
    vnni: bool = True,
) -> tuple[Finding, ...]:
    """Named causes of harm in the layers of a float model, the most harmful layer first.

    Args:
        model: the float graph.
        statistics: what calibration saw of it; a cause whose tensor was not watched is not looked for.
        harms: harm by layer name; only layers with an error above 1 % are looked at. None looks at all.
        part: name of the graph in its task, for the findings.
        ranges: the (low, high) that a quantized candidate represents, by tensor (see :func:`ranges_of`); where given,
            causes that lie in the range of an activation are looked for in these tensors only.
        per_channel: the candidate's weights have a scale per channel: a wide channel among them does no harm.
        vnni: whether this CPU sums 8-bit products in 32 bits; False looks for 16-bit overflow.
    """
    layers = model.layers()
    if harms is not None:
        layers = tuple(layer for layer in layers if layer.name in harms and harms[layer.name].error > HARM_FLOOR)
        layers = tuple(sorted(layers, key=lambda layer: -harms[layer.name].error))
    findings: list[Finding] = []
    for layer in layers:
        watched = ranges is None or layer.input in ranges
        seen = _Seen(
            model=model,
            layer=layer,
            part=part,
            input=statistics.get(layer.input),
            output=statistics.get(layer.output),
            clip=(ranges or {}).get(layer.input),
        )
        findings.extend(_causes(seen, watched=watched, per_channel=per_channel, vnni=vnni))
    return tuple(findings)


def ranges_of(model: Model) -> dict[str, tuple[float, float]]:
    """The (low, high) that each statically quantized activation of a QDQ graph can represent, per tensor."""
    ranges: dict[str, tuple[float, float]] = {}
    for node in model.graph:
        source = node.inputs[0] if node.inputs else None
        if node.op_type != "QuantizeLinear" or source is None or source.is_initializer():
            continue
        scale, zero = _constant(node, 1), _constant(node, 2)
        if scale is None or scale.size != 1 or zero is None or zero.dtype.kind not in "iu":
            continue
        limits = np.iinfo(str(zero.dtype))
        step, offset = float(scale.reshape(())), int(zero.reshape(()))
        ranges[str(source.name)] = ((limits.min - offset) * step, (limits.max - offset) * step)
    return ranges


def _causes(seen: _Seen, *, watched: bool, per_channel: bool, vnni: bool) -> Iterator[Finding]:
    dead = list(_dead(seen))
    yield from dead
    if dead:
        return
    if not per_channel:
        yield from _outlier_weight(seen)
    yield from _outlier_activation(seen)
    if watched:
        yield from _range_causes(seen)
    if not vnni:
        yield from _overflow(seen)


def _range_causes(seen: _Seen) -> Iterator[Finding]:
    """Causes that lie in the one range that all channels of an activation share."""
    tail = [*_tail(seen), *_clipped(seen)]
    yield from tail[:1]  # both are the same event seen from two sides
    if not tail:
        yield from _skewed(seen)
    yield from _spread(seen)


def _dead(seen: _Seen) -> Iterator[Finding]:
    """A tensor that never varies: nothing to represent, and a range of width zero."""
    for side, statistics in (("input", seen.input), ("output", seen.output)):
        if statistics is not None and statistics.count > 1 and statistics.minimum == statistics.maximum:
            yield seen.found(
                "dead range",
                f"its {side} is {statistics.minimum:g} for all of {statistics.count:,} calibration values",
                "check that the calibration data is like the real data; keep it in float",
                value=statistics.minimum,
                count=statistics.count,
            )
            return


def _outlier_weight(seen: _Seen) -> Iterator[Finding]:
    if seen.layer.operator in ("LSTM", "GRU", "RNN", "Gather"):
        return
    widths = _channel_widths(seen.model.weight(seen.layer.weight), seen.layer.output_axis)
    yield from _outlier(seen, widths, "weight", "per-channel weights")


def _outlier_activation(seen: _Seen) -> Iterator[Finding]:
    widths = _activation_widths(seen.input, channel_axis(seen.layer))
    if widths is not None and not seen.layer.depthwise:
        yield from _outlier(seen, widths, "activation", "keep in float, or 16-bit activations")


def _outlier(seen: _Seen, widths: NDArray[np.float64], side: str, fix: str) -> Iterator[Finding]:  # widths [C]
    alive = widths[widths > 0]
    if len(alive) < 4:  # a median of fewer says nothing
        return
    channel, median = int(np.argmax(widths)), float(np.median(alive))
    ratio = float(widths[channel]) / median
    if ratio > OUTLIER_RATIO:
        count = int(np.sum(widths > OUTLIER_RATIO * median))
        yield seen.found(
            "outlier channel",
            f"{side} channel {channel} reaches {widths[channel]:.3g}, {ratio:.0f}x the median channel "
            f"({median:.3g}); {count} of {len(widths)} channels are beyond {OUTLIER_RATIO:.0f}x",
            fix,
            ratio=ratio,
            channel=channel,
            largest=float(widths[channel]),
            median=median,
            channels=count,
        )


def _tail(seen: _Seen) -> Iterator[Finding]:
    """Few values far beyond all others; named after the normalisation or residual sum that makes them."""
    if seen.input is None or seen.input.histogram is None:
        return
    largest = max(abs(seen.input.minimum), abs(seen.input.maximum))
    bulk = _magnitude_quantile(seen.input, 0.999)
    ratio = largest / bulk if bulk > 0 else np.inf if largest > 0 else 0.0
    source = _source_of(seen.model, seen.layer.input)
    if source and ratio > NORMALISED_TAIL_RATIO:
        yield seen.found(
            "layer normalisation tail",
            f"its input comes from a {source} and reaches {largest:.3g}, {ratio:.0f}x what 99.9 % of the values stay "
            f"below ({bulk:.3g})",
            "keep in float, or 16-bit activations, or smooth the normalisation into the weights",
            ratio=ratio,
            largest=largest,
            bulk=bulk,
        )
    elif ratio > TAIL_RATIO:
        yield seen.found(
            "saturated activation",
            f"its input reaches {largest:.3g}, {ratio:.0f}x what 99.9 % of the values stay below ({bulk:.3g}): a range "
            "that holds all values leaves few steps for most of them, a narrower one saturates",
            "percentile or mean-squared-error range, or keep in float",
            ratio=ratio,
            largest=largest,
            bulk=bulk,
        )


def _clipped(seen: _Seen) -> Iterator[Finding]:
    if seen.clip is None or seen.input is None or seen.input.histogram is None:
        return
    low, high = seen.clip
    margin = (high - low) / 255  # half a step rounds to the last one anyway, and bins are centred within 2^-8
    values, counts = seen.input.sample()
    fraction = float(counts[(values < low - margin) | (values > high + margin)].sum() / max(counts.sum(), 1))
    if fraction > CLIPPED_FRACTION:
        yield seen.found(
            "saturated activation",
            f"{fraction:.1%} of its input is clipped: the range is {low:.3g} to {high:.3g}, values reach from "
            f"{seen.input.minimum:.3g} to {seen.input.maximum:.3g}",
            "min-max or mean-squared-error range, or keep in float",
            clipped=fraction,
            low=low,
            high=high,
        )


def _skewed(seen: _Seen) -> Iterator[Finding]:
    if seen.input is None or seen.input.histogram is None:
        return
    skewness = _skewness(*seen.input.sample())
    if abs(skewness) > SKEWNESS:
        yield seen.found(
            "skewed distribution",
            f"its input is lopsided (skewness {skewness:.1f}): most values lie near one end of "
            f"{seen.input.minimum:.3g} to {seen.input.maximum:.3g}",
            "asymmetric activations with a mean-squared-error range",
            skewness=skewness,
        )


def _spread(seen: _Seen) -> Iterator[Finding]:
    if not seen.layer.depthwise:
        return
    widths = _activation_widths(seen.input, channel_axis(seen.layer))
    if widths is None:
        return
    alive = widths[widths > 0]
    if len(alive) < 4:
        return
    narrow, wide = np.quantile(alive, (0.05, 0.95))
    if wide > SPREAD_RATIO * narrow:
        yield seen.found(
            "depthwise range spread",
            f"its channels are filtered apart but share one activation range, and their widths differ "
            f"{wide / narrow:.0f}x ({narrow:.3g} to {wide:.3g}, 5 to 95 percentile)",
            "cross-layer equalisation, 16-bit activations, or keep in float",
            ratio=wide / narrow,
            narrow=narrow,
            wide=wide,
        )


def _overflow(seen: _Seen) -> Iterator[Finding]:
    """Two neighbouring products are summed in 16 bits, saturating, by ``vpmaddubsw``."""
    if seen.layer.operator not in ("Conv", "Gemm", "MatMul"):
        return
    weight = seen.model.weight(seen.layer.weight).astype(np.float64)
    rows = np.moveaxis(weight, seen.layer.output_axis, 0).reshape(weight.shape[seen.layer.output_axis], -1)  # [C, K]
    scale = np.abs(rows).max(axis=1, keepdims=True) / 127  # [C, 1]
    integers = np.abs(np.rint(rows / np.where(scale > 0, scale, 1)))
    pairs = integers[:, : rows.shape[1] // 2 * 2].reshape(len(rows), -1, 2).sum(axis=2)  # [C, K/2]
    fraction = float(np.mean(pairs > OVERFLOW_SUM)) if pairs.size else 0.0
    if fraction > CLIPPED_FRACTION:
        yield seen.found(
            "accumulator overflow without VNNI",
            f"{fraction:.1%} of neighbouring 8-bit weight pairs sum beyond {OVERFLOW_SUM}: with activations near 255 "
            "their products exceed the 16-bit accumulator of this CPU and saturate",
            "7-bit weights (reduced range)",
            fraction=fraction,
        )


def _source_of(model: Model, tensor: str) -> str | None:
    """What produces the tensor, in words, when it is a layer normalisation or a residual sum."""
    node = _producer(model, tensor)
    for _ in range(4):  # an affine tail after a decomposed normalisation is at most Mul, Add, and a Cast or Reshape
        if node is None:
            return None
        if node.op_type in ("LayerNormalization", "SkipLayerNormalization", "RMSNormalization"):
            return "layer normalisation"
        if node.op_type == "Div" and _is_root(node.inputs[1]):
            return "layer normalisation"
        moving = [value for value in node.inputs if value is not None and not _fixed(value)]
        if node.op_type == "Add" and len(moving) == 2:
            return "residual sum"
        if node.op_type not in ("Add", "Mul", "Cast", "Reshape", "Identity") or len(moving) != 1:
            return None
        node = moving[0].producer()
    return None


def _producer(model: Model, tensor: str) -> ir.Node | None:
    for node in model.graph:
        if any(value.name == tensor for value in node.outputs):
            return node
    return None


def _is_root(value: ir.Value | None) -> bool:
    producer = None if value is None else value.producer()
    return producer is not None and producer.op_type == "Sqrt"


def _fixed(value: ir.Value) -> bool:
    producer = value.producer()
    return value.is_initializer() or (producer is not None and producer.op_type == "Constant")


def _constant(node: ir.Node, index: int) -> NDArray[np.generic] | None:
    value = node.inputs[index] if index < len(node.inputs) else None
    return None if value is None or value.const_value is None else value.const_value.numpy()


def _channel_widths(weight: NDArray[np.generic], axis: int) -> NDArray[np.float64]:  # -> [C]
    others = tuple(index for index in range(weight.ndim) if index != axis % weight.ndim)
    return np.asarray(np.abs(weight.astype(np.float64)).max(axis=others))


def channel_axis(layer: Layer) -> int:
    """The axis of a layer's input that runs over its channels."""
    return 1 if "Conv" in layer.operator else -1


def _activation_widths(statistics: TensorStatistics | None, axis: int) -> NDArray[np.float64] | None:  # -> [C]
    seen = None if statistics is None else statistics.channels.get(axis)
    return None if seen is None else np.asarray(np.maximum(np.abs(seen.minimum), np.abs(seen.maximum)), np.float64)


def _magnitude_quantile(statistics: TensorStatistics, fraction: float) -> float:
    """q(p): the smallest magnitude that at least the fraction p of all finite values does not exceed."""
    values, counts = statistics.sample()
    order = np.argsort(np.abs(values), kind="stable")
    cumulated = np.cumsum(counts[order])
    if not len(cumulated):
        return 0.0
    index = int(np.searchsorted(cumulated, fraction * cumulated[-1]))
    return float(np.abs(values[order[index]]))


def _skewness(values: NDArray[np.float32], counts: NDArray[np.int64]) -> float:
    """E[(x - mean)^3] / std^3 over a histogram: values [n], counts [n]."""
    total = counts.sum()
    if total == 0:
        return 0.0
    x, weights = values.astype(np.float64), counts / total
    centred = x - np.sum(weights * x)
    variance = np.sum(weights * centred**2)
    return float(np.sum(weights * centred**3) / variance**1.5) if variance > 0 else 0.0
