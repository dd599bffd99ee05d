"""Graphs as modules on a device: lifted, fed and read by the names of the graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from alula.graph.lifting import NODE, LiftedGraph
from alula.graph.model import Model
from alula.graph.trainable import trainable
from alula.training.training import Precision


def lifted(model: Model, also: Sequence[str] = ()) -> LiftedGraph:
    """A graph as a module, in the memory layout that convolutions are fastest in."""
    module = trainable(model, also)
    module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack this form
    return module


def feeds_of(model: Model, inputs: Mapping[str, Tensor], device: torch.device) -> list[Tensor]:
    """Inputs in the graph's order, on the device, images in the layout of :func:`lifted`."""
    return [_placed(inputs[spec.name], device) for spec in model.inputs]


def named_outputs(model: Model, also: Sequence[str], outputs: Any) -> dict[str, Tensor]:
    """What a lifted module gave, by the names of the graph."""
    names = (*(spec.name for spec in model.outputs), *also)
    return dict(zip(names, outputs if isinstance(outputs, tuple) else (outputs,), strict=True))


def inside(model: Model, tensors: Sequence[str]) -> tuple[str, ...]:
    """Those of some tensors that are neither input nor output of the graph."""
    outside = {spec.name for spec in (*model.inputs, *model.outputs)}
    return tuple(name for name in tensors if name not in outside)


def in_bfloat16(precision: Precision, device: torch.device) -> bool:
    """Whether products are to be computed in bfloat16."""
    return precision == "bfloat16" or (precision == "auto" and computes_in_bfloat16(device))


def computes_in_bfloat16(device: torch.device) -> bool:
    """Whether the device has instructions that multiply bfloat16."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type != "cpu":
        return False
    probes = (getattr(torch.cpu, name, bool) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return any(probe() for probe in probes)


def find_nonfinite(module: LiftedGraph, feeds: Sequence[Tensor]) -> str:
    """The first node of the graph that gives NaN or infinity, in words; run anew, node by node."""
    for path, tensor in (*module.named_parameters(), *module.named_buffers()):
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            return f"the weight {module.initializer_names.get(path, path)!r}"
    watch = _Watch(module)
    with torch.no_grad():
        watch.run(*feeds)
    return watch.place or "the loss itself: all tensors of the graph are finite"


class _Watch(fx.Interpreter):
    """Runs a module and remembers where values stopped being finite."""

    place = ""

    def run_node(self, n: fx.Node) -> Any:
        """Run one node, and look at what it gives."""
        made = super().run_node(n)
        if not self.place and isinstance(made, Tensor) and made.is_floating_point() and not torch.isfinite(made).all():
            self.place = f"layer {n.meta[NODE]!r}" if NODE in n.meta else f"input {n.name!r}"
        return made


def _placed(tensor: Tensor, device: torch.device) -> Tensor:
    tensor = tensor.to(device, non_blocking=True)
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor
