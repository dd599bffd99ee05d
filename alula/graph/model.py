"""The graph under compression.

A :class:`Model` is never changed. A technique takes ``model.edit()``, a copy that shares every weight with the
original, changes the copy, and wraps it with ``model.edited(copy, notes)``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ml_dtypes  # noqa: F401  (registers bfloat16, int4 and float8 with numpy)
import numpy as np
import onnx
import onnx_ir as ir

from alula.errors import DataError, ModelError, StorageError
from alula.storage import appearing

if TYPE_CHECKING:
    from alula.graph.layers import Layer
    from alula.graph.running import Runner

PROTOBUF_LIMIT_BYTES = 2**31 - 2**20  # protobuf refuses messages of 2 GiB; leave room for the graph itself


@dataclass(frozen=True, slots=True)
class Note:
    """Something that was done, skipped or fallen back to: where, and why."""

    place: str
    text: str

    def __str__(self) -> str:
        return f"{self.place}: {self.text}"

    def to_json(self) -> dict[str, str]:
        """The note as plain data."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Name, type and shape of a graph input or output; a free axis is a name or None."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | str | None, ...] | None

    def __str__(self) -> str:
        if self.shape is None:
            return f"{self.name}: {self.dtype} of unknown rank"
        axes = ", ".join("?" if axis is None else str(axis) for axis in self.shape)
        return f"{self.name}: {self.dtype}[{axes}]"

    def check(self, array: np.ndarray) -> None:
        """Raise DataError, saying what is wanted and what was given, unless ``array`` fits."""
        fits = array.dtype == self.dtype and (
            self.shape is None
            or (
                len(self.shape) == array.ndim
                and all(
                    not isinstance(want, int) or want == have
                    for want, have in zip(self.shape, array.shape, strict=True)
                )
            )
        )
        if not fits:
            raise DataError(f"input must be {self}, got {array.dtype}{list(array.shape)}")


class Model:
    """An ONNX graph under compression: load, save, run, layers, fingerprint. Immutable."""

    def __init__(self, graph: ir.Model, *, notes: Iterable[Note] = ()) -> None:
        self._ir = graph
        self.notes: tuple[Note, ...] = tuple(notes)

    def __repr__(self) -> str:
        inputs = "; ".join(map(str, self.inputs))
        return f"Model({self.graph.name!r}, {len(self.layers())} layers, {self.size_bytes:,} bytes; {inputs})"

    def __deepcopy__(self, memo: dict[int, Any]) -> Model:
        """The model itself: nothing ever changes it."""
        return self

    @property
    def graph(self) -> ir.Graph:
        """The main graph, to read. Change a copy: :meth:`edit`."""
        return self._ir.graph

    @property
    def opset(self) -> int:
        """Version of the standard ONNX operator set that the graph is written in."""
        return int(self._ir.opset_imports[""])

    @property
    def ir_version(self) -> int:
        """Version of the ONNX format."""
        return int(self._ir.ir_version)

    @property
    def metadata(self) -> Mapping[str, str]:
        """The model's metadata properties."""
        return self._ir.metadata_props

    def edit(self) -> ir.Model:
        """A copy of the graph to change; weights are shared until replaced."""
        return self._ir.clone()

    def edited(self, graph: ir.Model, notes: Iterable[Note] = ()) -> Model:
        """A new Model of an edited copy, carrying this one's notes and the new ones."""
        return Model(graph, notes=(*self.notes, *notes))

    @cached_property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What the graph wants."""
        return tuple(_spec(value) for value in self.graph.inputs)

    @cached_property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """What the graph gives."""
        return tuple(_spec(value) for value in self.graph.outputs)

    def layers(self) -> tuple[Layer, ...]:
        """The weight-bearing nodes, in the order of the graph."""
        return self._layers

    @cached_property
    def _layers(self) -> tuple[Layer, ...]:
        from alula.graph.layers import find_layers

        return find_layers(self.graph)

    def weight(self, name: str) -> np.ndarray:
        """The values of an initializer.

        Raises:
            ModelError: the graph has no such initializer.
        """
        value = self.graph.initializers.get(name)
        if value is None or value.const_value is None:
            raise ModelError(f"the graph has no initializer named {name!r}")
        return value.const_value.numpy()

    @cached_property
    def weight_bytes(self) -> int:
        """Bytes of all initializers."""
        tensors = (value.const_value for value in self.graph.initializers.values())
        return sum(tensor.nbytes for tensor in tensors if tensor is not None)

    def to_bytes(self) -> bytes:
        """The graph as one ONNX file.

        Raises:
            ModelError: the graph is too large for one protobuf message; :meth:`save` writes it with external data.
        """
        if self.weight_bytes > PROTOBUF_LIMIT_BYTES:
            raise ModelError(
                f"a model of {self.weight_bytes:,} weight bytes does not fit one ONNX message (2 GiB); use save()"
            )
        return bytes(ir.to_proto(_with_data_in_memory(self._ir)).SerializeToString(deterministic=True))

    @cached_property
    def size_bytes(self) -> int:
        """Bytes of the saved model: graph, weights, scales and metadata."""
        if self.weight_bytes > PROTOBUF_LIMIT_BYTES:
            return self.weight_bytes + len(self._skeleton())
        return len(self.to_bytes())

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the graph and every weight; equal for equal models, whatever file they came from."""
        digest = hashlib.sha256(self._skeleton())
        for name in sorted(self.graph.initializers):
            tensor = self.graph.initializers[name].const_value
            if tensor is not None:
                digest.update(f"{name}{tensor.dtype}{tensor.shape}".encode())
                digest.update(tensor.tobytes())
        return digest.hexdigest()

    def _skeleton(self) -> bytes:
        """The graph without its weights."""
        bare = self._ir.clone()
        bare.graph.initializers.clear()
        bare.metadata_props.clear()
        return bytes(ir.to_proto(bare).SerializeToString(deterministic=True))

    def save(self, path: str | Path) -> Path:
        """Write the model; weights beyond protobuf's 2 GiB go to ``<name>.data`` beside it.

        Each file appears whole or not at all, the weights before the graph that names them.

        Raises:
            StorageError: the disk is full, the folder cannot be written, or the model would overwrite the file that
                its own weights are read from.
        """
        path = Path(path)
        data = path.with_name(f"{path.name}.data")
        with appearing(path) as partial:
            if self.weight_bytes <= PROTOBUF_LIMIT_BYTES:
                partial.write_bytes(self.to_bytes())
                return path
            self._refuse_to_overwrite(data)
            with appearing(data) as partial_data:
                self._save_apart(partial, partial_data, data.name)
        return path

    def _save_apart(self, path: Path, data: Path, final_name: str) -> None:
        """Write the weights to ``data``, and to ``path`` a graph that looks for them under their final name."""
        ir.save(self._ir.clone(), path, format="protobuf", external_data=data.name)
        message = onnx.load(path, load_external_data=False)
        for tensor in message.graph.initializer:
            for entry in tensor.external_data:
                if entry.key == "location":
                    entry.value = final_name
        path.write_bytes(message.SerializeToString(deterministic=True))

    def _refuse_to_overwrite(self, data: Path) -> None:
        for value in self.graph.initializers.values():
            if (
                isinstance(value.const_value, ir.ExternalTensor)
                and Path(value.const_value.path).resolve() == data.resolve()
            ):
                raise StorageError(
                    f"cannot write {data}: its weights are read from {data.name}, which would be overwritten; "
                    "choose another name"
                )

    @cached_property
    def _runner(self) -> Runner:
        from alula.graph.running import Runner

        return Runner(self)

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run the graph once, by the reference runtime.

        Raises:
            DataError: an input is missing, unknown, or of another type or shape than the graph wants.
        """
        return self._runner(feeds)


def check_feeds(specs: Sequence[TensorSpec], feeds: Mapping[str, np.ndarray]) -> None:
    """Raise DataError unless ``feeds`` holds exactly what ``specs`` want."""
    wanted, given = {spec.name for spec in specs}, set(feeds)
    if wanted != given:
        raise DataError(
            f"inputs must be {sorted(wanted)}, got {sorted(given)}"
            + (f"; missing {sorted(wanted - given)}" if wanted - given else "")
            + (f"; unknown {sorted(given - wanted)}" if given - wanted else "")
        )
    for spec in specs:
        array = feeds[spec.name]
        if not isinstance(array, np.ndarray | np.generic):
            raise DataError(f"input must be {spec}, got a {type(array).__name__}; make it a numpy array")
        spec.check(np.asarray(array))


def _spec(value: ir.Value) -> TensorSpec:
    if value.dtype is None:
        raise ModelError(f"graph input or output {value.name!r} has no tensor type; sequences and maps are not taken")
    shape = None if value.shape is None else tuple(_axis(axis) for axis in value.shape)
    return TensorSpec(str(value.name), value.dtype.numpy(), shape)


def _axis(axis: int | ir.SymbolicDim) -> int | str | None:
    return axis if isinstance(axis, int) else axis.value


def _with_data_in_memory(model: ir.Model) -> ir.Model:
    """The model with external weights read in, so that it serializes as one message; itself if it has none."""
    if not any(isinstance(value.const_value, ir.ExternalTensor) for value in model.graph.initializers.values()):
        return model
    model = model.clone()
    for value in model.graph.initializers.values():
        if isinstance(value.const_value, ir.ExternalTensor):
            value.const_value = ir.tensor(np.array(value.const_value.numpy()), name=value.name)
    return model
