"""OpenVINO on the CPU (extra ``openvino``): the artifact is OpenVINO's own .xml with its weights in a .bin."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from alula.errors import DataError, StorageError, TargetError, require
from alula.graph.model import TensorSpec, check_feeds
from alula.targets.processor import Processor, read_processor
from alula.targets.target import (
    Artifact,
    NodeTime,
    Opened,
    Traits,
    check_artifact,
    check_threads,
    count_threads,
    make_artifact,
    make_folder,
)  # fmt: skip

if TYPE_CHECKING:
    from alula.graph.model import Model

_STATIC_INT8 = frozenset({
    "Conv", "ConvTranspose", "MatMul", "Gemm", "Add", "Mul", "AveragePool", "GlobalAveragePool", "MaxPool", "Relu",
    "Clip", "PRelu", "LeakyRelu", "Concat", "Split", "Resize", "Reshape", "Transpose", "Squeeze", "Unsqueeze",
})  # fmt: skip

_HOLDERS = frozenset({"If", "Loop", "TensorIterator"})  # their time is that of the operators inside
_PRECISIONS = {"i8": "int8", "u8": "int8", "f32": "float32", "f16": "float16", "bf16": "bfloat16"}


@dataclass(frozen=True, slots=True)
class OpenVino:
    """OpenVINO's CPU device, set for the shortest latency of one request: one stream, threads as asked.

    ``precision`` is float32 unless told: left alone, OpenVINO computes a float32 model in bfloat16 where the processor
    can. ``dynamic_quantization_group`` above 0 lets it round the activations of weight-only int8 and int4 layers to
    int8, in groups of that size; off unless told, for the graph does not say so.
    """

    threads: int = 0
    precision: Literal["f32", "bf16", "f16"] = "f32"
    dynamic_quantization_group: int = 0

    def __post_init__(self) -> None:
        check_threads(self.threads)
        if self.precision not in {"f32", "bf16", "f16"}:
            raise TargetError(f"precision must be 'f32', 'bf16' or 'f16', got {self.precision!r}")
        if self.dynamic_quantization_group < 0:
            raise TargetError(f"dynamic_quantization_group must be 0 or above, got {self.dynamic_quantization_group}")
        _runtime()

    @property
    def name(self) -> str:
        """The target's name."""
        return "openvino"

    def traits(self) -> Traits:
        """What OpenVINO's CPU plugin runs fast on this processor."""
        return traits_on(read_processor())

    def build(self, model: Model, folder: Path, name: str = "model") -> Artifact:
        """Convert the graph and write ``<name>.xml`` and ``<name>.bin``; the same graph gives the same bytes.

        Raises:
            TargetError: OpenVINO cannot convert the graph.
            StorageError: the folder cannot be written.
        """
        folder = make_folder(Path(folder))
        files = (folder / f"{name}.xml", folder / f"{name}.bin")
        try:
            with TemporaryDirectory(prefix=f".{name}.", dir=folder) as scratch:
                written = _convert(model, Path(scratch), name)
                for source, destination in zip(written, files, strict=True):
                    source.replace(destination)
        except OSError as error:
            raise StorageError(
                f"cannot write {files[0]}: {error.strerror or error}; free space or choose another folder"
            ) from error
        return make_artifact(self.name, files[0], files)

    def open(self, artifact: Artifact) -> Opened:
        """Compile the artifact for this CPU.

        Raises:
            TargetError: a file is missing or damaged, or OpenVINO refuses it.
        """
        return self._compile(artifact, self._settings())

    def profile(self, artifact: Artifact, feeds: Mapping[str, np.ndarray], *, runs: int = 20) -> tuple[NodeTime, ...]:
        """Time each operator by OpenVINO's counters; those that were folded or merged away took no time.

        Raises:
            TargetError: a file is missing or damaged, or OpenVINO refuses it.
            DataError: the feeds do not fit, or OpenVINO fails on them.
        """
        compiled = self._compile(artifact, self._settings() | {"PERF_COUNT": True})
        compiled(feeds)  # warms up
        taken: dict[tuple[str, str, str], list[float]] = {}
        for _ in range(runs):
            compiled(feeds)
            for node in compiled.counters():
                key = (node.node_name, node.node_type, node.exec_type)
                taken.setdefault(key, []).append(1e3 * node.real_time.total_seconds())
        origins = compiled.origins()
        return tuple(
            NodeTime(name, operator, float(np.median(times)), _precision(kernel), origins.get(name, ()))
            for (name, operator, kernel), times in taken.items()
            if operator not in _HOLDERS
        )

    def describe(self) -> dict[str, str]:
        """Runtime, version and settings."""
        return {
            "runtime": f"OpenVINO {_runtime().__version__}",
            "threads": str(count_threads(self.threads)),
            "settings": ", ".join(f"{key}={value}" for key, value in self._settings().items()),
        }

    def _compile(self, artifact: Artifact, settings: Mapping[str, Any]) -> _Compiled:
        check_artifact(self.name, artifact)
        core = _runtime().Core()
        try:
            compiled = core.compile_model(core.read_model(artifact.path), "CPU", dict(settings))
        except Exception as error:  # OpenVINO raises RuntimeError, and ValueError for damaged files
            raise TargetError(f"OpenVINO cannot open {artifact.path.name}: {_reason(error)}") from error
        return _Compiled(compiled)

    def _settings(self) -> dict[str, Any]:
        return {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            "INFERENCE_NUM_THREADS": count_threads(self.threads),
            "INFERENCE_PRECISION_HINT": self.precision,
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": self.dynamic_quantization_group,
            # Pinned threads of several opened models would share the same cores and spoil each other's timing.
            "ENABLE_CPU_PINNING": False,
        }


def traits_on(processor: Processor) -> Traits:
    """What OpenVINO's CPU plugin runs fast on a processor; the numbers are of benchmarks/results/int8_layouts.md."""
    notes = [
        "MatMulInteger and ConvInteger are computed in float, 1.05 to 1.1x slower than a float graph",
        "left alone, OpenVINO computes in bfloat16 where it can; alula asks for float32",
        "int8 or int4 weights alone save bytes, not time; with rounded activations (dynamic_quantization_group) 2.3x",
        "float16 is a storage format here: computing stays in float32",
    ]
    safe_bits = 8
    if processor.is_x86 and not processor.has_int8_dot_product:
        safe_bits = 7
        notes.append(
            "no VNNI: two uint8 x int8 products are added in 16 bits, which saturates; weights are held to 7 bits"
        )
    return Traits(
        activation_signed=False,
        static_int8=_STATIC_INT8,
        dynamic_int8=frozenset(),
        weight_only_bits=(8, 4),
        float16_fast=False,
        weight_bits_safe=safe_bits,
        static_products=True,
        notes=tuple(notes),
    )


class _Compiled:
    """A compiled OpenVINO model."""

    def __init__(self, compiled: Any) -> None:
        self._compiled = compiled
        self._request = compiled.create_infer_request()
        self.inputs = tuple(_spec(port) for port in compiled.inputs)
        # Several output names may stand for one tensor: each of them is an output of the model.
        self._outputs = [(name, index) for index, port in enumerate(compiled.outputs) for name in sorted(port.names)]

    def __call__(self, feeds: Mapping[str, np.ndarray], /) -> dict[str, np.ndarray]:
        check_feeds(self.inputs, feeds)
        try:
            outputs = self._request.infer(dict(feeds), share_inputs=True)
        except Exception as error:  # OpenVINO raises RuntimeError and its kin
            raise DataError(f"the model fails on these inputs in OpenVINO: {_reason(error)}") from error
        return {name: outputs[index] for name, index in self._outputs}

    def counters(self) -> list[Any]:
        """What the last run executed, node by node; to be asked for when it is compiled."""
        nodes = self._request.get_profiling_info()
        return [node for node in nodes if node.status == node.Status.EXECUTED]

    def origins(self) -> dict[str, tuple[str, ...]]:
        """By name of an executed node, the names of those that were fused into it."""
        nodes = self._compiled.get_runtime_model().get_ordered_ops()
        told = {node.get_friendly_name(): node.get_rt_info() for node in nodes}
        return {
            name: tuple(filter(None, info["originalLayersNames"].astype(str).split(",")))
            for name, info in told.items()
            if "originalLayersNames" in info
        }


def _convert(model: Model, scratch: Path, name: str) -> tuple[Path, Path]:
    """Write .xml and .bin into an empty folder. ``Core.read_model`` and not ``convert_model``, which calls home."""
    openvino = _runtime()
    source = model.save(scratch / f"{name}.onnx")
    try:
        converted = openvino.Core().read_model(source)
        _number_names(converted)
        openvino.save_model(converted, scratch / f"{name}.xml", compress_to_fp16=False)
    except OSError:
        raise
    except Exception as error:  # OpenVINO raises RuntimeError and its kin
        raise TargetError(f"OpenVINO cannot convert {name}: {_reason(error)}") from error
    return scratch / f"{name}.xml", scratch / f"{name}.bin"


def _number_names(converted: Any) -> None:
    """Rename nodes called ``Constant_10811`` after a counter of the process, so that equal graphs give equal bytes."""
    for index, node in enumerate(converted.get_ordered_ops()):
        if re.fullmatch(rf"{node.get_type_name()}_\d+", node.get_friendly_name()):
            node.set_friendly_name(f"{node.get_type_name()}.{index}")


def _spec(port: Any) -> TensorSpec:
    shape = port.get_partial_shape()
    axes = None if shape.rank.is_dynamic else tuple(None if axis.is_dynamic else axis.get_length() for axis in shape)
    return TensorSpec(port.get_any_name(), np.dtype(port.get_element_type().to_dtype()), axes)


def _precision(kernel: str) -> str | None:
    """The type that a kernel computes in, which ends its name: "brgemm_avx512_I8"."""
    return _PRECISIONS.get(kernel.rpartition("_")[2].lower())


def _reason(error: Exception) -> str:
    """The first line of OpenVINO's message that says something: not where in its source it was raised."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    noise = re.compile(r"Exception from |Check '.*' failed at|FrontEnd API failed")
    telling = [line for line in lines if not noise.match(line)]
    return (telling or lines or [type(error).__name__])[0]


def _runtime() -> Any:
    return require("openvino", "openvino")
