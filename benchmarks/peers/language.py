"""GPTQ of a small language model by one tool, as a child process: ``python -m benchmarks.peers.language FOLDER``.

Symmetric, 4 bits unless the order says otherwise, blocks of 64 (128 do not divide the 576 inputs of its layers), all
layers of the blocks, the head and the table in float. Each tool is at what it does by default otherwise. Runs in the
tool's own virtual environment. What is written is the float weights that the codes stand for, or the codes.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks.peers.files import Order, carry_out, read_order

BITS: Final = 4
BLOCK: Final = 64
HEAD: Final = "lm_head"

Work = Callable[[Order, np.ndarray, Path], Sequence[Path]]


def bits_of(order: Order) -> int:
    """Bits of a weight."""
    return int(order.settings.get("bits", BITS))


def by_alula(order: Order, tokens: np.ndarray, folder: Path) -> Sequence[Path]:
    """alula: one layer after another."""
    import alula

    technique = alula.QuantizeWeights(bits=bits_of(order), block=BLOCK, search=False, rounding="gptq")
    step = alula.Step(technique, exclude=("Op:Gather",), sequential=True)
    calls = [{"input_ids": row[None]} for row in tokens]
    made = alula.apply_recipe(order.model, alula.Recipe((step,)), calls)
    return [made.save(folder / "model.onnx")]


def by_gptqmodel(order: Order, tokens: np.ndarray, folder: Path) -> Sequence[Path]:
    """GPTQModel."""
    gptqmodel: Any = importlib.import_module("gptqmodel")
    settings = gptqmodel.QuantizeConfig(bits=bits_of(order), group_size=BLOCK, sym=True)
    model = gptqmodel.GPTQModel.load(order.model, settings)
    model.quantize([{"input_ids": row.tolist(), "attention_mask": [1] * len(row)} for row in tokens], batch_size=1)
    model.save(str(folder / "made"))
    return [folder / "made"]


def by_llmcompressor(order: Order, tokens: np.ndarray, folder: Path) -> Sequence[Path]:
    """llm-compressor."""
    llmcompressor: Any = importlib.import_module("llmcompressor")
    modifiers: Any = importlib.import_module("llmcompressor.modifiers.quantization")
    datasets: Any = importlib.import_module("datasets")
    transformers: Any = importlib.import_module("transformers")
    network = transformers.AutoModelForCausalLM.from_pretrained(order.model, dtype="float32")
    weights = {"num_bits": bits_of(order), "type": "int", "symmetric": True, "strategy": "group", "group_size": BLOCK}
    recipe = modifiers.GPTQModifier(
        config_groups={"all": {"targets": ["Linear"], "weights": weights}}, ignore=[HEAD], dampening_frac=0.01
    )
    rows = {"input_ids": tokens.tolist(), "attention_mask": np.ones_like(tokens).tolist()}
    llmcompressor.oneshot(
        model=network,
        dataset=datasets.Dataset.from_dict(rows),
        recipe=recipe,
        max_seq_length=tokens.shape[1],
        num_calibration_samples=len(tokens),
    )
    network.save_pretrained(folder / "made", save_compressed=False)
    return [folder / "made"]


TOOLS: Final[dict[str, tuple[Work, tuple[str, ...]]]] = {
    "alula": (by_alula, ("alula", "onnxruntime", "numpy")),
    "gptqmodel": (by_gptqmodel, ("gptqmodel", "transformers", "torch")),
    "llmcompressor": (by_llmcompressor, ("llmcompressor", "transformers", "torch")),
}
IMPORTED: Final = {
    "alula": ("alula.recipe", "alula.techniques.sequence", "onnxruntime", "scipy.linalg"),
    "gptqmodel": ("gptqmodel", "transformers"),
    "llmcompressor": ("llmcompressor", "llmcompressor.modifiers.quantization", "datasets", "transformers"),
}


def main() -> None:
    folder = Path(sys.argv[1])
    order = read_order(folder)
    work, packages = TOOLS[order.kind]
    for name in IMPORTED[order.kind]:
        importlib.import_module(name)
    tokens = np.load(order.calibration)[: order.settings["samples"]]
    carry_out(folder, order, packages, lambda: (work(order, tokens, folder), []))


if __name__ == "__main__":
    main()
