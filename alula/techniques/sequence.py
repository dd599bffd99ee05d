"""Layers quantized one after another, each by what the graph computes whose layers before are quantized already.

    X~_l = what layer l reads in the graph with layers 1 .. l-1 quantized,      H_l = E[X~_l X~_l^T]

So the errors of layers before are in the statistics of those behind, instead of being unknown to them (Frantar et al.
2023, section 4, "one transformer block at a time", here one tensor at a time: query, key and value together, then what
comes of attention). Each layer's statistics are those of a tensor that was just reached, so that one pass over the data
does for all layers.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence

from alula.errors import DataError, RecipeError, at
from alula.graph.cutting import substitute
from alula.graph.feeds import Feeds
from alula.graph.layers import Layer
from alula.graph.model import Model
from alula.graph.moments import MomentSum, SecondMoments, reading_of
from alula.graph.statistics import MomentRequest, Statistics, collect
from alula.graph.walking import Walk
from alula.techniques.technique import Context, Technique
from alula.techniques.weights import QuantizeWeights

_log = logging.getLogger(__name__)


def apply_in_sequence(model: Model, technique: Technique, layers: Sequence[Layer], feeds: Iterable[Feeds]) -> Model:
    """Do a technique to one layer after another, in the order in which they are computed.

    Layers that it does by their weights alone, or whose weight another layer reads too, come first.

    Args:
        model: the graph.
        technique: one that treats each layer by itself: ``QuantizeWeights``.
        layers: of the graph.
        feeds: calibration data, all of which are kept.

    Raises:
        RecipeError: another technique, or one that corrects biases.
        DataError: there are no feeds, they do not fit, or lead to NaN or infinity.
        ModelError: the graph has bodies of If, Loop or Scan.
    """
    if not isinstance(technique, QuantizeWeights):
        raise RecipeError(f"sequential=True is for QuantizeWeights, which treats each layer by itself, not for "
                          f"{type(technique).__name__}; leave it out")  # fmt: skip
    if technique.bias_correction is not None:
        raise RecipeError("sequential=True sees second moments alone, not what biases are corrected by; leave one out")
    feeds = list(feeds)
    if not feeds:
        raise DataError("calibration data is empty; give at least one example")
    by_input = _by_input(model, technique, layers)
    others = tuple(layer for layer in layers if layer not in {one for group in by_input.values() for one in group})
    if others:
        requests = technique.requests(model, others)
        model = technique.apply(model, Context(others, collect(model, feeds, requests) if requests else Statistics()))
    walk, pieces = Walk(model, feeds), dict[str, Model]()
    for number, (tensor, group) in enumerate(by_input.items(), 1):
        moments = _moments(model, walk, tensor, group)
        for layer in group:
            with at(f"layer {layer.name!r}"):
                piece = walk.piece(layer)
                (alone,) = piece.layers()  # named otherwise where the layer is called as a tensor is
                seen = Statistics(moments={alone.name: moments[layer.name]})
                pieces[layer.name] = technique.apply(piece, Context((alone,), seen))
                walk.replace(layer, pieces[layer.name])
        _log.info("%d of %d: %s", number, len(by_input), ", ".join(layer.name for layer in group))
    return substitute(model, pieces)


def _by_input(model: Model, technique: QuantizeWeights, layers: Sequence[Layer]) -> dict[str, list[Layer]]:
    """Layers whose second moments the technique reads and whose weights are theirs alone, by the tensor they read."""
    wanted = {one.layer for one in technique.requests(model, layers) if isinstance(one, MomentRequest)}
    found: dict[str, list[Layer]] = {}
    for layer in layers:
        alone = all(len(model.graph.initializers[name].uses()) == 1 for name in layer.weights)
        if layer.name in wanted and alone:
            found.setdefault(layer.input, []).append(layer)
    return found


def _moments(model: Model, walk: Walk, tensor: str, group: Sequence[Layer]) -> Mapping[str, SecondMoments]:
    """The second moments of what some layers read of one tensor, by the layer's name."""
    nodes = {str(node.name): node for node in model.graph}
    readings = {layer.name: reading_of(layer, nodes[layer.name]) for layer in group}
    sums = {reading: MomentSum(reading) for reading in readings.values()}
    for array in walk.reach(tensor):
        for one in sums.values():
            one.add(array)
    frozen = {reading: one.freeze() for reading, one in sums.items()}
    return {name: frozen[reading] for name, reading in readings.items()}
