"""What Torch-Pruning takes out of networks: ``python -m benchmarks.peers.pruning REPORT NETWORK ...``.

Runs in the virtual environment of Torch-Pruning, which holds no alula. For each network: its pruner builds the
dependency graph and proposes groups; each group is taken out of a fresh network, which must run, keep the shape of its
outputs, and give what the network gives with zeros in all weights of the group.
"""

from __future__ import annotations

import copy
import importlib
import json
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

SHARE = 0.25  # of the channels of each group
TOLERANCE = 1e-3  # relative to the largest output

tp: Any = importlib.import_module("torch_pruning")


def main() -> None:
    torch.set_num_threads(1)
    rows = {name: examine(name) for name in sys.argv[2:]}
    packages = {package: version(package) for package in ("torch-pruning", "torch")}
    Path(sys.argv[1]).write_text(json.dumps({"rows": rows, "versions": packages}, indent=1), encoding="utf-8")


def examine(name: str) -> dict[str, Any]:
    """How many groups there are, how many of them are right, and why others are not."""
    try:
        count = len(list(groups(*network(name))))
    except Exception as error:  # noqa: BLE001  (whatever the tool raises is its answer)
        return {"groups": 0, "right": 0, "failures": [f"no groups: {first_line(error)}"]}
    verdicts = [try_group(name, number) for number in range(count)]
    told = [verdict for verdict in verdicts if verdict != "changes the output"]
    return {
        "groups": len(told),
        "right": told.count("right"),
        "failures": sorted({verdict for verdict in told if verdict != "right"}),
    }


def network(name: str) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """A network with drawn weights, and an example for it."""
    torch.manual_seed(0)
    module, example = importlib.import_module("tests.graph.architectures").ARCHITECTURES[name]()
    return module.eval(), example if isinstance(example, tuple) else (example,)


def groups(module: nn.Module, example: tuple[Tensor, ...]) -> Iterator[Any]:
    """The groups that its pruner proposes, one by one; nothing is taken out unless the caller does."""
    pruner = tp.pruner.BasePruner(
        module,
        example,
        importance=tp.importance.MagnitudeImportance(p=2),
        pruning_ratio=SHARE,
    )
    yield from pruner.step(interactive=True)


def try_group(name: str, number: int) -> str:
    """Take one group out of a fresh network; ``right``, or what is wrong."""
    module, example = network(name)
    with torch.no_grad():
        before = first(module(*example))
    group = next(group for index, group in enumerate(groups(module, example)) if index == number)
    original = copy.deepcopy(module)
    names = {part: name for name, part in module.named_modules()}
    members = [(names.get(dependency.target.module), dependency, places) for dependency, places in group]
    parameters = {id(value): name for name, value in module.named_parameters()}
    try:
        group.prune()
        with torch.no_grad():
            found = first(module(*example))
    except Exception as error:  # noqa: BLE001
        return f"does not run: {first_line(error)}"
    if found.shape != before.shape:
        return "changes the output"
    wanted = zeroed(original, members, parameters, example)
    close = torch.allclose(found, wanted, atol=TOLERANCE * float(before.abs().max()))
    return "right" if close else "gives other outputs than zeroing"


def zeroed(
    module: nn.Module, members: list[tuple[str | None, Any, list[int]]], parameters: dict[int, str],
    example: tuple[Tensor, ...],
) -> Tensor:  # fmt: skip
    """What the network gives with zeros in all weights of a group: parts by name, or parameters, and their channels."""
    with torch.no_grad():
        for name, dependency, places in members:
            target = dependency.target.module
            if isinstance(target, nn.Parameter) and id(target) in parameters:
                value = dict(module.named_parameters())[parameters[id(target)]]
                value.index_fill_(dependency.target.pruning_dim, torch.tensor(places), 0)
            elif name is not None:
                zero_part(module.get_submodule(name), dependency, places)
        return first(module(*example))


def zero_part(part: nn.Module, dependency: Any, places: list[int]) -> None:
    """Zeros in what a layer computes for these channels, or reads of them."""
    index = torch.tensor(places)
    weight: Any = getattr(part, "weight", None)
    bias: Any = getattr(part, "bias", None)
    if isinstance(part, nn.Embedding):
        weight.index_fill_(1, index, 0)
        return
    gives = tp.prune_conv_out_channels, tp.prune_linear_out_channels, tp.prune_depthwise_conv_out_channels
    outwards = dependency.handler in gives or (isinstance(weight, Tensor) and weight.dim() == 1)
    grouped = getattr(part, "groups", 1) > 1
    if not isinstance(weight, Tensor) or (grouped and not outwards):
        return  # what reads or computes these channels beside it is zero already
    transposed = isinstance(part, nn.ConvTranspose1d | nn.ConvTranspose2d)
    weight.index_fill_(int(outwards == transposed) if weight.dim() > 1 else 0, index, 0)
    if outwards and isinstance(bias, Tensor):
        bias.index_fill_(0, index, 0)


def first(output: Any) -> Tensor:
    """The first tensor that a network gives."""
    return output if isinstance(output, Tensor) else first(output[0])


def first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:120]


if __name__ == "__main__":
    main()
