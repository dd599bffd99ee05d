"""The other tools, each at its best settings: ``python -m benchmarks.peers.tools FOLDER ...`` carries out their orders.

Runs in the virtual environment of the other tools, which holds neither alula nor torch.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.peers.files import Feed, Feeds, carry_out, read_order, read_report, write_report

log = logging.getLogger(__name__)
LONGEST_CHUNK = 50
WHOLE_BYTES = 32_000_000  # of inputs, up to which all are calibrated with at once

Made = tuple[Sequence[Path], Sequence[str]]


class Reader:
    """Feeds as ONNX Runtime's calibration reads them."""

    def __init__(self, feeds: Sequence[Feed]) -> None:
        self._feeds = feeds
        self.set_range(0, len(feeds))

    def __len__(self) -> int:
        return len(self._feeds)

    def __iter__(self) -> Iterator[Feed]:
        return iter(self._feeds)

    def set_range(self, start_index: int, end_index: int) -> None:
        """Go on with this range."""
        self._pending = iter(range(start_index, end_index))

    def get_next(self) -> Feed | None:
        """The next feed, or None at the end."""
        index = next(self._pending, None)
        return None if index is None else self._feeds[index]


def quantize_static(model: Path, feeds: Feeds, folder: Path, settings: Mapping[str, Any]) -> Made:
    """ONNX Runtime, QDQ, per channel, uint8 activations by int8 weights, after its own pre-processing.

    Settings: ``method`` of calibration, ``operators`` (None: its default), and ``chunk`` (None: all): the histogram
    methods hold all activations of all samples at once unless the option for strided min-max is set.
    """
    from onnxruntime import quantization

    prepared, notes = prepare(model, folder)
    # Percentile ranges are symmetric unless told, which wastes half of uint8, and fails where a tensor hardly varies.
    options: dict[str, Any] = {
        "ActivationSymmetric": False,
        "WeightSymmetric": True,
        "CalibTensorRangeSymmetric": False,
    }
    if settings.get("operators"):
        options["MatMulConstBOnly"] = True
    if settings["chunk"] and settings["method"] != "MinMax":
        options["CalibStridedMinMax"] = settings["chunk"]
    output = folder / "model.onnx"
    quantization.quantize_static(
        str(prepared),
        str(output),
        Reader(feeds),
        quant_format=quantization.QuantFormat.QDQ,
        op_types_to_quantize=settings.get("operators"),
        per_channel=True,
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
        calibrate_method=getattr(quantization.CalibrationMethod, settings["method"]),
        extra_options=options,
    )
    return [output], notes


def quantize_dynamic(model: Path, feeds: Feeds, folder: Path, settings: Mapping[str, Any]) -> Made:  # noqa: ARG001
    """ONNX Runtime, dynamic, per channel, after its own pre-processing."""
    from onnxruntime import quantization

    prepared, notes = prepare(model, folder)
    output = folder / "model.onnx"
    quantization.quantize_dynamic(
        str(prepared),
        str(output),
        op_types_to_quantize=settings.get("operators"),
        per_channel=True,
        weight_type=quantization.QuantType.QInt8,
    )
    return [output], notes


def quantize_nncf_onnx(model: Path, feeds: Feeds, folder: Path, settings: Mapping[str, Any]) -> Made:
    """NNCF on the ONNX graph, after ONNX Runtime's pre-processing, which folds batch normalisation."""
    import onnx

    prepared, notes = prepare(model, folder)
    quantized = quantize_with_nncf(onnx.load(prepared), feeds, settings)
    output = folder / "model.onnx"
    onnx.save(quantized, output)
    return [output], notes


def make_openable(path: Path) -> list[str]:
    """Declare a graph that ONNX Runtime refuses at opset 21 as opset 20, where it is valid as that; and say so.

    ONNX Runtime 1.32 may give QuantizeLinear a type at opset 21 that contradicts NNCF's signed or unsigned zero point.
    """
    import onnx

    graph = onnx.load(path)
    if can_open(path) or not lower_opset(graph):
        return []
    onnx.save(graph, path)
    return ["declared as opset 20, for at 21 ONNX Runtime refuses the graph"]


def can_open(path: Path) -> bool:
    """Whether ONNX Runtime opens a graph with its optimisations on."""
    import onnxruntime

    try:
        onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except Exception as error:  # noqa: BLE001  (its exceptions share no base but Exception)
        log.warning("ONNX Runtime refuses %s: %s", path.name, error)
        return False
    return True


def lower_opset(graph: Any) -> bool:
    """Declare a graph of opset 21 as 20; whether it was 21, and is valid as 20."""
    import onnx

    declared = next(opset for opset in graph.opset_import if opset.domain in ("", "ai.onnx"))
    if declared.version != 21:
        return False
    declared.version = 20
    try:
        onnx.checker.check_model(graph)
    except onnx.checker.ValidationError:
        declared.version = 21
    return bool(declared.version == 20)


def quantize_nncf_openvino(model: Path, feeds: Feeds, folder: Path, settings: Mapping[str, Any]) -> Made:
    """NNCF on OpenVINO's graph."""
    import openvino

    quantized = quantize_with_nncf(openvino.convert_model(model), feeds, settings)
    output = folder / "model.xml"
    openvino.save_model(quantized, output, compress_to_fp16=False)
    return [output, output.with_suffix(".bin")], []


def quantize_with_nncf(graph: Any, feeds: Feeds, settings: Mapping[str, Any]) -> Any:
    """Post-training quantization on all feeds. Settings: ``preset``, and ``transformer`` for that model type."""
    import nncf

    return nncf.quantize(
        graph,
        nncf.Dataset(feeds),
        preset=nncf.QuantizationPreset(settings["preset"]),
        subset_size=len(feeds),
        fast_bias_correction=True,
        model_type=nncf.ModelType.TRANSFORMER if settings.get("transformer") else None,
    )


def prepare(model: Path, folder: Path) -> tuple[Path, list[str]]:
    """ONNX Runtime's own pre-processing; without its symbolic shape inference where that fails."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared = folder / "prepared.onnx"
    try:
        quant_pre_process(str(model), str(prepared))
    except Exception as error:  # noqa: BLE001  (it raises plain Exception)
        log.warning("symbolic shape inference failed: %s", error)
        quant_pre_process(str(model), str(prepared), skip_symbolic_shape=True)
        return prepared, [f"symbolic shape inference left out, for it failed: {str(error).splitlines()[0]}"]
    return prepared, []


def chunk_length(feeds: Feeds, *, whole_bytes: int = WHOLE_BYTES) -> int | None:
    """Feeds to make histograms of at a time: None for all, a divisor of their number, or one where shapes differ.

    A histogram is begun with bins for the first chunk, and its bins keep their width: where a network's first inputs
    are nearly zero, a later chunk needs billions of bins, and the tool fails. So small inputs go in whole. Large ones
    do not fit in memory whole, and activations of different shapes cannot be stacked.
    """
    shapes = {tuple((name, array.shape) for name, array in sorted(feed.items())) for feed in feeds}
    if len(shapes) > 1:
        return 1
    if len(feeds) * sum(array.nbytes for array in feeds[0].values()) <= whole_bytes:
        return None
    return largest_divisor(len(feeds), LONGEST_CHUNK)


def largest_divisor(number: int, limit: int) -> int:
    """The largest divisor of a number that is at most ``limit``.

    >>> largest_divisor(300, 64)
    60
    """
    return next(divisor for divisor in range(min(limit, number), 0, -1) if number % divisor == 0)


TOOLS: dict[str, tuple[Callable[[Path, Feeds, Path, Mapping[str, Any]], Made], tuple[str, ...]]] = {
    "onnxruntime static": (quantize_static, ("onnxruntime", "onnx", "numpy")),
    "onnxruntime dynamic": (quantize_dynamic, ("onnxruntime", "onnx", "numpy")),
    "nncf onnx": (quantize_nncf_onnx, ("nncf", "onnx", "onnxruntime", "numpy")),
    "nncf openvino": (quantize_nncf_openvino, ("nncf", "openvino", "numpy")),
}


def import_packages(kind: str) -> None:
    """Everything that the work imports, so that it counts neither as time nor as memory."""
    for module in ("onnxruntime.quantization", "onnxruntime.quantization.shape_inference"):
        import_module(module)

    if kind.startswith("nncf"):
        import_module("openvino")
        import_module("nncf").set_log_level(logging.WARNING)


def main() -> None:
    for folder in map(Path, sys.argv[1:]):
        follow(folder)


def follow(folder: Path) -> None:
    """Carry out the order in a folder."""
    order = read_order(folder)
    work, packages = TOOLS[order.kind]
    import_packages(order.kind)
    feeds = Feeds(Path(order.calibration))
    settings = {"chunk": chunk_length(feeds), **order.settings}
    carry_out(folder, order, packages, lambda: work(Path(order.model), feeds, folder, settings))
    report = read_report(folder)
    if order.kind == "nncf onnx" and report is not None:
        notes = make_openable(folder / report.files[0])
        write_report(folder, replace(report, notes=(*report.notes, *notes)))


if __name__ == "__main__":
    main()
