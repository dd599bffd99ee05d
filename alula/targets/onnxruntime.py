"""ONNX Runtime, the default target: the artifact is the .onnx file itself."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from alula.errors import DataError, TargetError
from alula.graph.model import TensorSpec, check_feeds
from alula.graph.running import first_line
from alula.targets.lowering import decode_weights, join_biases, join_recurrences
from alula.targets.onnxruntime_profile import read_profile
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

# Operators with an int8 kernel, or that pass int8 through, when DequantizeLinear and QuantizeLinear stand around them.
_STATIC_INT8 = frozenset({
    "Conv", "MatMul", "Gemm", "Add", "Mul", "LeakyRelu", "Sigmoid", "Softmax", "AveragePool", "GlobalAveragePool",
    "MaxPool", "Relu", "Clip", "Concat", "Split", "Resize", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Gather",
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class OnnxRuntime:
    """ONNX Runtime with all its graph optimisations on.

    ``threads`` 0 is one thread for each usable physical core. ``blocked_accuracy_level`` 4 lets blocked 4-bit and 8-bit
    weights be multiplied in int8, which is faster than level 0 (float32); it is a session option, so whoever ships the
    file must set it too: :meth:`describe` names it.
    """

    threads: int = 0
    providers: tuple[str, ...] = ("CPUExecutionProvider",)
    blocked_accuracy_level: int = 4

    def __post_init__(self) -> None:
        check_threads(self.threads)
        available = _runtime().get_available_providers()
        unknown = [provider for provider in self.providers if provider not in available]
        if unknown or not self.providers:
            raise TargetError(
                f"this ONNX Runtime has the providers {', '.join(available)}; got {', '.join(self.providers) or 'none'}"
            )

    @property
    def name(self) -> str:
        """The target's name."""
        return "onnxruntime"

    def traits(self) -> Traits:
        """What ONNX Runtime's CPU kernels run fast on this processor."""
        return traits_on(read_processor())

    def build(self, model: Model, folder: Path, name: str = "model") -> Artifact:
        """Write ``<name>.onnx``, and ``<name>.onnx.data`` beside it when the weights exceed 2 GiB.

        Weight-only codes that this runtime would decode at every run are written so that it decodes them at load, and
        products on codes with the bias behind them as one operator, and LSTMs whose activations may be rounded as
        the operator that does so (see :mod:`alula.targets.lowering`).

        Raises:
            StorageError: the folder cannot be written.
        """
        path = join_biases(decode_weights(join_recurrences(model))).save(make_folder(Path(folder)) / f"{name}.onnx")
        data = path.with_name(f"{path.name}.data")
        external = data.exists() and path.stat().st_size < model.weight_bytes
        return make_artifact(self.name, path, (path, data) if external else (path,))

    def open(self, artifact: Artifact) -> Opened:
        """Load the file into a session.

        Raises:
            TargetError: the file is missing or damaged, or ONNX Runtime refuses it.
        """
        return _Session(self._load(artifact, self._options()))

    def profile(self, artifact: Artifact, feeds: Mapping[str, np.ndarray], *, runs: int = 20) -> tuple[NodeTime, ...]:
        """Time each operator by the session's profiler.

        Raises:
            TargetError: the file is missing or damaged, or ONNX Runtime refuses it.
            DataError: the feeds do not fit, or ONNX Runtime fails on them.
        """
        with TemporaryDirectory(prefix="alula-") as scratch:
            options = self._options()
            options.enable_profiling = True
            options.profile_file_prefix = str(Path(scratch) / "profile")
            session = self._load(artifact, options)
            opened = _Session(session)
            for _ in range(runs + 1):
                opened(feeds)
            events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
        in_integers = self.blocked_accuracy_level == 4
        return read_profile(events, runs + 1, blocked_precision="int8" if in_integers else "float32")

    def describe(self) -> dict[str, str]:
        """Runtime, version and settings."""
        return {
            "runtime": f"ONNX Runtime {_runtime().__version__}",
            "threads": str(count_threads(self.threads)),
            "providers": ", ".join(self.providers),
            "graph optimisation": "all",
            "session options": ", ".join(f"{key}={value}" for key, value in self._entries().items()),
        }

    def _load(self, artifact: Artifact, options: Any) -> Any:
        check_artifact(self.name, artifact)
        try:
            return _runtime().InferenceSession(str(artifact.path), options, providers=list(self.providers))
        except Exception as error:  # onnxruntime's exceptions share no base but Exception
            raise TargetError(f"ONNX Runtime cannot open {artifact.path.name}: {first_line(error)}") from error

    def _entries(self) -> dict[str, str]:
        return {"session.qdq_matmulnbits_accuracy_level": str(self.blocked_accuracy_level)}

    def _options(self) -> Any:
        options = _runtime().SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = count_threads(self.threads)
        options.inter_op_num_threads = 1
        options.graph_optimization_level = _runtime().GraphOptimizationLevel.ORT_ENABLE_ALL
        for key, value in self._entries().items():
            options.add_session_config_entry(key, value)
        return options


def traits_on(processor: Processor) -> Traits:
    """What ONNX Runtime's CPU kernels run fast on a processor; numbers: benchmarks/results/int8_layouts.md."""
    notes = [
        "Conv in dynamic int8 (ConvInteger) runs 4 to 12x slower than float: static int8 or none for Conv",
        "behind Relu or Clip, the zero point must be the lowest value and the range end in the clip; else 2.8x slower",
        "int8 weights alone in MatMul run 2 to 5x slower than float unless the session sets accuracy level 4",
        "LSTM and GRU have no static int8 kernel, and LSTM a dynamic one: they stay in float unless it is asked for",
        "float16 is stored but not computed with: the runtime casts to float32 around each operator",
    ]
    safe_bits = 8
    if processor.is_x86:
        notes.append(
            "uint8 activations with int8 weights: with int8 activations a tensor read twice, as in a residual block,"
            " keeps its layers in float (2.8x slower), and MatMulInteger runs 12 to 24x slower"
        )
        if not processor.has_int8_dot_product:
            safe_bits = 7
            notes.append(
                "no VNNI: two uint8 x int8 products are added in 16 bits, which saturates; weights are held to 7 bits"
            )
    return Traits(
        activation_signed=not processor.is_x86,
        static_int8=_STATIC_INT8,
        dynamic_int8=frozenset({"MatMul", "Gemm"}),
        weight_only_bits=(8, 4),
        float16_fast=False,
        weight_bits_safe=safe_bits,
        notes=tuple(notes),
    )


class _Session:
    """An opened .onnx file."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self.inputs = tuple(_spec(value) for value in session.get_inputs())
        self._outputs = [value.name for value in session.get_outputs()]

    def __call__(self, feeds: Mapping[str, np.ndarray], /) -> dict[str, np.ndarray]:
        check_feeds(self.inputs, feeds)
        try:
            outputs = self._session.run(self._outputs, feeds)
        except Exception as error:  # onnxruntime's exceptions share no base but Exception
            raise DataError(f"the model fails on these inputs in ONNX Runtime: {first_line(error)}") from error
        return dict(zip(self._outputs, outputs, strict=True))


def _spec(value: Any) -> TensorSpec:
    kind = str(value.type)
    if not kind.startswith("tensor(") or kind[7:-1] not in _TYPES:
        raise TargetError(f"input {value.name!r} must be a tensor of numbers, booleans or strings, got {kind}")
    shape = None if value.shape is None else tuple(value.shape)
    return TensorSpec(value.name, np.dtype(_TYPES[kind[7:-1]]), shape)


def _runtime() -> Any:
    import onnxruntime

    return onnxruntime


_TYPES: dict[str, str] = {
    "float": "float32", "double": "float64", "float16": "float16", "bfloat16": "bfloat16", "bool": "bool",
    "string": "object", "int4": "int4", "uint4": "uint4",
    **{f"{sign}int{bits}": f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)},
}  # fmt: skip
