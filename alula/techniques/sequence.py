"""Layers quantized one after another, each by what the graph computes whose layers before are quantized already.

    X~_l = what layer l reads in the graph with layers 1 .. l-1 quantized,      H_l = E[X~_l X~_l^T]

So the errors of layers before are in the statistics of those behind, instead of being unknown to them (Frantar et al.
2023, section 4, "one transformer block at a time", here one tensor at a time: query, key and value together, then what
comes of attention). Each layer's statistics are those of a tensor that was just reached, so that one pass over the data
does for all layers.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence

from alula.errors import DataError, RecipeError
from alula.graph.cutting import substitute
from alula.graph.feeds import Feeds
from alula.graph.layers import Layer
from alula.graph.model import Model
from alula.graph.statistics import MomentRequest, Request, Statistics, collect, summarise_tensor
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
        RecipeError: another technique, or one that corrects biases by normalisations.
        DataError: there are no feeds, they do not fit, or lead to NaN or infinity.
        ModelError: the graph has bodies of If, Loop or Scan.
    """
    if not isinstance(technique, QuantizeWeights):
        raise RecipeError(f"sequential=True is for QuantizeWeights, which treats each layer by itself, not for "
                          f"{type(technique).__name__}; leave it out")  # fmt: skip
    if technique.bias_correction == "normalisations":
        raise RecipeError('sequential=True takes layers apart from the normalisations before them; correct biases by '
                          '"data", or not at all')  # fmt: skip
    feeds = list(feeds)
    if not feeds:
        raise DataError("calibration data is empty; give at least one example")
    groups = _groups(model, technique, layers)
    others = tuple(layer for layer in layers if layer not in {one for group in groups for one in group})
    if others:
        requests = technique.requests(model, others)
        model = technique.apply(model, Context(others, collect(model, feeds, requests) if requests else Statistics()))
    walk, pieces = Walk(model, feeds), dict[str, Model]()
    for number, group in enumerate(groups, 1):
        piece = walk.piece(group)
        layers = piece.layers()
        arrays = list(walk.reach(group[0].input))  # all run first: two thread pools would fight for the cores
        seen = summarise_tensor(piece, arrays, technique.requests(piece, layers))
        rounded = technique.apply(piece, Context(layers, seen))
        walk.replace(group, rounded)
        pieces |= dict.fromkeys((layer.name for layer in group), rounded)
        _log.info("%d of %d: %s", number, len(groups), ", ".join(layer.name for layer in group))
    return substitute(model, pieces)


def _groups(model: Model, technique: QuantizeWeights, layers: Sequence[Layer]) -> list[list[Layer]]:
    """Layers of whose input something is used and whose weights are theirs alone, by the one tensor that they read."""
    requests = technique.requests(model, layers)
    wanted = {one.layer for one in requests if isinstance(one, MomentRequest)}
    read = {one.tensor for one in requests if isinstance(one, Request)}
    nodes = {str(node.name): node for node in model.graph}
    found: dict[tuple[str, str], list[Layer]] = {}
    for layer in layers:
        alone = all(len(model.graph.initializers[name].uses()) == 1 for name in layer.weights)
        if alone and (layer.name in wanted or layer.input in read):
            given = [value for value in nodes[layer.name].inputs if value is not None and not value.is_initializer()]
            found.setdefault((layer.input, "" if len(given) == 1 else layer.name), []).append(layer)
    return list(found.values())
