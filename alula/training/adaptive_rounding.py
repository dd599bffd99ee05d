"""The rounding of one part of a graph, learned from what it reads and what it is to give."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, fx, nn

from alula.graph.lifting import CODES, LiftedGraph, to_torch
from alula.graph.model import Model
from alula.graph.ops.quantization import dequantize, fake_quantize, quantize
from alula.graph.trainable import restored
from alula.training.modules import feeds_of, lifted
from alula.training.parts import Part
from alula.training.scales import ScaleSteps
from alula.training.soft_rounding import Dropping, SoftRounding, beta_at, regulariser

if TYPE_CHECKING:
    from alula.training.reconstruction import Reconstruction

_LARGEST_HALF = float(np.finfo(np.float16).max)


@dataclass(frozen=True, slots=True)
class Kept:
    """What a part reads, by name, and what it is to give, call by call."""

    inputs: tuple[dict[str, Tensor], ...]
    targets: tuple[Tensor, ...]
    device: torch.device

    def given(self, piece: Model, call: int) -> list[Tensor]:
        """What a part is fed in a call, on the device."""
        inputs = {name: _whole(tensor) for name, tensor in self.inputs[call].items()}
        return feeds_of(piece, inputs, self.device)

    def wanted(self, call: int) -> Tensor:
        """What the float graph gives in a call, on the device."""
        return _whole(self.targets[call]).to(self.device)

    def size(self) -> float:
        """Mean square of what is wanted."""
        return _mean([float(one.double().square().sum()) for one in self.targets], self.targets)


def keep(array: np.ndarray, *, half: bool) -> Tensor:
    """An array as a tensor to be kept; as float16 where that is asked for and it fits in."""
    tensor = to_torch(array)
    fits = half and tensor.dtype == torch.float32 and float(tensor.abs().max()) < _LARGEST_HALF
    return tensor.half() if fits else tensor


def error_of(piece: Model, kept: Kept) -> float:
    """Mean squared difference between what a part gives and what it is to give."""
    module = lifted(piece).eval().to(kept.device)
    sums = []
    with torch.no_grad():
        for call in range(len(kept.targets)):
            difference = module(*kept.given(piece, call)) - kept.wanted(call)
            sums.append(float(difference.double().square().sum()))
    return _mean(sums, kept.targets)


def learn_rounding(
    piece: Model,
    part: Part,
    weights: Mapping[str, np.ndarray],
    kept: Kept,
    settings: Reconstruction,
    *,
    error: float,
    seed: int,
    on_step: Callable[[int], None],
) -> Model:
    """A part with its codes rounded as was learned.

    Args:
        piece: the part as a graph.
        part: which of its scales are learned too.
        weights: float weights by name of the DequantizeLinear of their codes.
        kept: what the part reads, and is to give.
        settings: how.
        error: of the part as it is; the loss is a share of it.
        seed: of the order of calls and of what is left unquantized.
        on_step: is told how many steps are done.
    """
    module = lifted(piece).eval().to(kept.device).requires_grad_(requires_grad=False)
    roundings = soften(module, weights)
    drop_quantization(module, settings.drop, torch.Generator(kept.device).manual_seed(seed))
    optimiser = torch.optim.Adam([rounding.variable for rounding in roundings.values()], lr=settings.learning_rate)
    by_scale = ScaleSteps(_learned_scales(module, part.scales if settings.scale_rate else ()), settings.scale_rate)
    order = np.random.default_rng(seed)
    for step in range(settings.steps):
        optimiser.zero_grad()
        by_scale.zero_grad()
        calls = order.choice(len(kept.targets), min(settings.calls, len(kept.targets)), replace=False)
        for call in calls:
            difference = module(*kept.given(piece, call)) - kept.wanted(call)
            (difference.square().mean() / (error * len(calls))).backward()
        beta = beta_at(step, settings.steps, warm_up=settings.warm_up, ends=settings.betas)
        if beta is not None and settings.regularisation:
            share = torch.cat([rounding.share().flatten() for rounding in roundings.values()])
            (settings.regularisation * regulariser(share, beta)).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        by_scale.step()
        on_step(step + 1)
    with torch.no_grad():
        for path, rounding in roundings.items():
            module.get_parameter(path).copy_(rounding.rounded())
    return restored(module)


def _learned_scales(module: LiftedGraph, names: Sequence[str]) -> list[nn.Parameter]:
    """The parameters that are scales of these names, from now on with a gradient."""
    paths = [path for path in module.scales if module.initializer_names[path] in names]
    scales = [module.get_parameter(path) for path in sorted(paths)]
    for scale in scales:
        scale.requires_grad_()
    return scales


def soften(module: LiftedGraph, weights: Mapping[str, np.ndarray]) -> dict[str, SoftRounding]:
    """Put soft rounding in the place of fake quantization of some weights; by path of the weight.

    Args:
        module: a lifted graph, which is changed.
        weights: float weights by name of the DequantizeLinear of their codes.
    """
    names: dict[str, str] = module.meta[CODES]
    found: dict[str, SoftRounding] = {}
    for node in list(module.graph.nodes):
        path = node.args[0].target if node.target is fake_quantize else None
        if path is None or names[path] not in weights:
            continue
        scale, *zero_point = (operator.attrgetter(one.target)(module) for one in node.args[1:])
        weight = to_torch(weights[names[path]].astype(np.float32)).to(scale.device)
        found[path] = SoftRounding(weight, scale, *zero_point, **node.kwargs)
        module.add_submodule(f"rounding_{len(found)}", found[path])
        with module.graph.inserting_before(node):
            node.replace_all_uses_with(module.graph.call_module(f"rounding_{len(found)}"))
        module.graph.erase_node(node)
    module.recompile()
    return found


def drop_quantization(module: LiftedGraph, probability: float, generator: torch.Generator) -> None:
    """Let elements of all activations that are put on a grid be left as they are at random.

    Args:
        module: a lifted graph, which is changed.
        probability: that an element is left.
        generator: of which.
    """
    module.add_submodule("dropping", Dropping(probability, generator))
    for node in list(module.graph.nodes):
        source = _quantized(node) if probability and node.target is dequantize else None
        if source is not None:
            with module.graph.inserting_after(node):
                made = module.graph.call_module("dropping", (source, node))
            node.replace_all_uses_with(made, delete_user_cb=lambda user, made=made: user is not made)
    module.recompile()


def _quantized(node: fx.Node) -> fx.Node | None:
    """What was quantized into the codes that a node reads, possibly clipped in between; None: these are constants."""
    for _ in range(2):
        source = node.args[0]
        if not isinstance(source, fx.Node) or source.op != "call_function":
            return None
        if source.target is quantize:
            return source.args[0] if isinstance(source.args[0], fx.Node) else None
        node = source
    return None


def _whole(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype == torch.float16 else tensor


def _mean(sums: Sequence[float], tensors: Sequence[Tensor]) -> float:
    return sum(sums) / max(sum(tensor.numel() for tensor in tensors), 1)
