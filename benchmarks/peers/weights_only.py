"""Codes of a few bits by other tools: ``python -m benchmarks.peers.weights_only FOLDER`` carries out FOLDER's order.

Runs in ``.venv-fewbits``, which holds no alula. Some tools take the graph; those that act on weights alone take
matrices [out, in] in an .npz, and give the numbers that their codes stand for. Settings everywhere: ``bits``, and
``block``, weights of an input's axis that share a scale (None: a whole row does).
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks.peers.files import Feeds, carry_out, read_order
from benchmarks.peers.tools import Reader

CALIBRATION_FILE: Final = "calibration.npz"
Settings = Mapping[str, Any]
Work = Callable[[Path, Path, Path, Settings], Sequence[Path]]


def by_onnxruntime(model: Path, calibration: Path, folder: Path, settings: Settings) -> Sequence[Path]:
    """ONNX Runtime's MatMulNBits: ``algorithm`` nearest, hqq or gptq. It takes MatMul, and no other operator."""
    tool: Any = import_module("onnxruntime.quantization.matmul_nbits_quantizer")
    bits, block = settings["bits"], settings["block"]
    feeds = list(Feeds(calibration))  # GPTQ copies its reader, which no open file can be
    configurations = {
        "nearest": lambda: tool.DefaultWeightOnlyQuantConfig(block_size=block, is_symmetric=False, bits=bits),
        "hqq": lambda: tool.HQQWeightOnlyQuantConfig(block_size=block, bits=bits),
        "gptq": lambda: tool.GPTQWeightOnlyQuantConfig(Reader(feeds), block_size=block, actorder=True),
    }
    quantizer = tool.MatMulNBitsQuantizer(
        str(model), bits=bits, block_size=block, is_symmetric=False,
        algo_config=configurations[settings["algorithm"]](),
    )  # fmt: skip
    quantizer.process()
    quantizer.model.save_model_to_file(str(folder / "model.onnx"), False)
    return [folder / "model.onnx"]


def by_nncf(model: Path, calibration: Path, folder: Path, settings: Settings) -> Sequence[Path]:
    """NNCF's ``compress_weights`` on the ONNX graph; ``mode``, ``awq``, ``scale_estimation``, layers to ``ignore``."""
    import onnx

    nncf: Any = import_module("nncf")
    mode = nncf.CompressWeightsMode(settings["mode"])
    feeds = Feeds(calibration)
    few: dict[str, Any] = {}
    if settings["bits"] < 8:
        chosen = {name: True for name in ("awq", "scale_estimation") if settings.get(name)}
        few = {"group_size": settings["block"] or -1, "all_layers": True, **chosen}
        if chosen:
            few |= {"dataset": nncf.Dataset(feeds), "subset_size": len(feeds)}
    ignored = nncf.IgnoredScope(types=settings["ignored_types"], validate=False)
    made = nncf.compress_weights(onnx.load(model), mode=mode, ignored_scope=ignored, **few)
    onnx.save(made, folder / "model.onnx")
    return [folder / "model.onnx"]


def by_hqq(matrices: Path, calibration: Path, folder: Path, settings: Settings) -> Sequence[Path]:  # noqa: ARG001
    """HQQ's own package, its defaults for inputs: axis 1, zero points in float."""
    import torch

    quantizer: Any = import_module("hqq.core.quantize").Quantizer

    def numbers(matrix: np.ndarray) -> np.ndarray:
        codes, meta = quantizer.quantize(
            torch.from_numpy(matrix), nbits=settings["bits"], group_size=group_of(matrix, settings["block"]), axis=1,
            compute_dtype=torch.float32, device="cpu", bitpack=False,  # packing wants a multiple of 4 rows
        )  # fmt: skip
        return np.asarray(quantizer.dequantize(codes, meta).float().numpy())

    return _each(matrices, folder, numbers)


def by_quanto(matrices: Path, calibration: Path, folder: Path, settings: Settings) -> Sequence[Path]:  # noqa: ARG001
    """optimum-quanto with its default optimiser; shifts in float below 8 bits."""
    import torch

    quanto: Any = import_module("optimum.quanto")
    bits = settings["bits"]

    def numbers(matrix: np.ndarray) -> np.ndarray:
        weight, kind = torch.from_numpy(matrix), getattr(quanto, f"qint{bits}")
        if bits == 8:
            scale = quanto.AbsmaxOptimizer()(weight, kind, 0)
            return np.asarray(quanto.quantize_weight(weight, kind, 0, scale).dequantize().numpy())
        group = group_of(matrix, settings["block"])
        scale, shift = quanto.MaxOptimizer()(weight, kind, 0, group)
        made = quanto.quantize_weight(weight, kind, 0, scale, shift, group, optimized=False)
        return np.asarray(made.dequantize().numpy())

    return _each(matrices, folder, numbers)


def group_of(matrix: np.ndarray, block: int | None) -> int | None:
    """Weights that share a scale: a row where no block is asked for, or it does not divide the row."""
    columns = matrix.shape[1]
    return columns if block is None or columns % block else block


def _each(matrices: Path, folder: Path, numbers: Callable[[np.ndarray], np.ndarray]) -> Sequence[Path]:
    """Every matrix of a file as what its codes stand for."""
    with np.load(matrices) as file:
        made: dict[str, Any] = {name: numbers(file[name]) for name in file.files}
        np.savez(folder / "weights.npz", **made)
    return [folder / "weights.npz"]


TOOLS: Final[dict[str, tuple[Work, tuple[str, ...], tuple[str, ...]]]] = {
    "onnxruntime": (by_onnxruntime, ("onnxruntime",), ("onnxruntime.quantization.matmul_nbits_quantizer",)),
    "nncf": (by_nncf, ("nncf", "onnx"), ("nncf", "onnx")),
    "hqq": (by_hqq, ("hqq", "torch"), ("hqq.core.quantize",)),
    "quanto": (by_quanto, ("optimum-quanto", "torch"), ("optimum.quanto",)),
}


def main() -> None:
    folder = Path(sys.argv[1])
    order = read_order(folder)
    work, packages, modules = TOOLS[order.kind]
    for module in modules:
        import_module(module)
    logging.getLogger().setLevel(logging.WARNING)
    model, calibration = Path(order.model), Path(order.calibration)
    carry_out(folder, order, packages, lambda: (work(model, calibration, folder, order.settings), []))


if __name__ == "__main__":
    main()
