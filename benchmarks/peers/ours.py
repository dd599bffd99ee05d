"""alula's plain post-training quantization, as a child process: ``python -m benchmarks.peers.ours FOLDER``.

One of the recipes that ``alula compress`` proposes, without its search: load, calibrate, quantize, write.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import onnxruntime

from alula.graph.load import load_model
from alula.graph.statistics import collect
from alula.recipe import apply_recipe, requests_of
from alula.search.propose import propose
from alula.targets import target_named
from benchmarks.peers.files import Feeds, Order, carry_out, read_order


def quantize(order: Order, feeds: Feeds, folder: Path) -> tuple[Sequence[Path], Sequence[str]]:
    """Quantize by the proposal of a name. Settings: ``target`` and ``proposal``."""
    target = target_named(order.settings["target"])
    model = load_model(Path(order.model))
    proposals, _ = propose({"model": model}, target, "latency")
    recipe = next(one.recipe for one in proposals if one.name == order.settings["proposal"])
    statistics = collect(model, feeds, requests_of(recipe, model))
    artifact = target.build(apply_recipe(model, recipe, statistics), folder)
    return artifact.files, [recipe.describe()]


def main() -> None:
    folder = Path(sys.argv[1])
    order = read_order(folder)
    target_named(order.settings["target"]).describe()  # imports the runtime
    assert onnxruntime.__version__  # what calibration runs on, whatever the target
    packages = ("alula", "onnxruntime", "numpy", *({"openvino"} & {order.settings["target"]}))
    feeds = Feeds(Path(order.calibration))
    carry_out(folder, order, packages, lambda: quantize(order, feeds, folder))


if __name__ == "__main__":
    main()
