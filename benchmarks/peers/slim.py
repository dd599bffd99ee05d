"""What Torch-Pruning makes of a residual network: ``python -m benchmarks.peers.slim WEIGHTS.onnx OUT.onnx TIMES SEED``.

Runs in the virtual environment of Torch-Pruning, which holds no alula. Group Taylor importance on 512 training images,
ranked over the whole network, widths rounded to 8, in 50 steps until the multiplications are so many times fewer.
"""

from __future__ import annotations

import importlib
import re
import sys
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch.nn import functional

from benchmarks.networks.cifar import ResNet, images

STEPS = 50
ROUND_TO = 8
tp: Any = importlib.import_module("torch_pruning")


def main() -> None:
    weights, out, times, seed = sys.argv[1], sys.argv[2], float(sys.argv[3]), int(sys.argv[4])
    torch.set_num_threads(1)
    network = load(weights)
    example = torch.zeros(1, 3, 32, 32)
    before, _ = tp.utils.count_ops_and_params(network, example)
    pruner = tp.pruner.BasePruner(
        network, example, importance=tp.importance.GroupTaylorImportance(), global_pruning=True, pruning_ratio=1.0,
        max_pruning_ratio=0.9, iterative_steps=STEPS, ignored_layers=[network.linear], round_to=ROUND_TO,
    )  # fmt: skip
    for _ in range(STEPS):
        differentiate(network, seed)
        pruner.step()
        macs, _ = tp.utils.count_ops_and_params(network, example)
        if macs * times <= before:
            break
    network.zero_grad()
    print(f"Torch-Pruning: {before / macs:.2f} times fewer multiplications")
    batch = torch.export.Dim("batch")
    program = torch.onnx.export(
        network.eval(), (torch.zeros(2, 3, 32, 32),), dynamo=True, optimize=False, verbose=False, opset_version=21,
        dynamic_shapes=({0: batch},), input_names=["images"],
    )  # fmt: skip
    assert program is not None
    program.save(out)


def load(path: str) -> ResNet:
    """The network with the weights of a graph."""
    depth = 2 + 6 * max(1 + int(found[1]) for name in names(path) if (found := re.search(r"layer1\.(\d+)", name)))
    network = ResNet(depth)
    state = network.state_dict()
    for tensor in onnx.load(path).graph.initializer:
        if tensor.name in state:
            state[tensor.name] = torch.from_numpy(np.array(numpy_helper.to_array(tensor)))
    network.load_state_dict(state)
    return network.eval()


def names(path: str) -> list[str]:
    """Names of the weights of a graph."""
    return [tensor.name for tensor in onnx.load(path).graph.initializer]


def differentiate(network: ResNet, seed: int) -> None:
    """Gradients of the loss on 512 training images, which the importance reads."""
    inputs, labels = images("train")
    order = np.random.default_rng(seed).permutation(len(labels))[:512]
    network.zero_grad()
    loss = functional.cross_entropy(network(torch.from_numpy(inputs[order])), torch.from_numpy(labels[order]))
    loss.backward()  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    main()
