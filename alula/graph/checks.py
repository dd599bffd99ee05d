"""What is read from a model file is hostile until checked: every length, offset, shape, name and path, before use."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

import onnx
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto

from alula.errors import ModelError, at

OLDEST_OPSET = 11
STANDARD_DOMAINS = ("", "ai.onnx")

_BITS = {
    **dict.fromkeys(("FLOAT", "INT32", "UINT32"), 32),
    **dict.fromkeys(("DOUBLE", "INT64", "UINT64", "COMPLEX64"), 64),
    **dict.fromkeys(("FLOAT16", "BFLOAT16", "INT16", "UINT16"), 16),
    **dict.fromkeys(("INT8", "UINT8", "BOOL"), 8),
    **dict.fromkeys(("FLOAT8E4M3FN", "FLOAT8E4M3FNUZ", "FLOAT8E5M2", "FLOAT8E5M2FNUZ", "FLOAT8E8M0"), 8),
    **dict.fromkeys(("INT4", "UINT4", "FLOAT4E2M1"), 4),
    **dict.fromkeys(("INT2", "UINT2"), 2),
    "COMPLEX128": 128,
}


def check_proto(proto: ModelProto, folder: Path | None) -> None:
    """Raise ModelError unless the message is a well-formed ONNX model whose every reference and length holds.

    Args:
        proto: the parsed message.
        folder: where its external data lies; None when it came from memory and may have none.

    Raises:
        ModelError: says the rule, the values, the fix, and the tensor or node.
    """
    if not proto.HasField("graph") or proto.ir_version <= 0:
        raise ModelError("this is not an ONNX model: it holds no graph; give the .onnx file that the exporter wrote")
    if proto.ir_version > onnx.IR_VERSION:
        raise ModelError(
            f"ONNX file format {proto.ir_version} is newer than {onnx.IR_VERSION}, the newest known here; "
            "upgrade the package 'onnx' or export for an older one"
        )
    _check_opset(proto)
    _check_ports(proto.graph)
    for function in proto.functions:
        with at(f"function {function.name!r}"):
            _check_nodes(function.node, {*function.input}, frozenset(), folder)
    _check_graph(proto.graph, frozenset(), folder)


def _check_opset(proto: ModelProto) -> None:
    newest = onnx.defs.onnx_opset_version()
    for entry in proto.opset_import:
        if entry.domain not in STANDARD_DOMAINS:
            continue
        if entry.version < OLDEST_OPSET:
            raise ModelError(
                f"opset must be {OLDEST_OPSET} or newer, the file is written in {entry.version}; export it again "
                f"with opset_version={OLDEST_OPSET} or more, or raise it with onnx.version_converter"
            )
        if entry.version > newest:
            raise ModelError(
                f"opset {entry.version} is unknown: the newest known here is {newest}; upgrade the package 'onnx' "
                "or export with an older opset"
            )
    if not proto.opset_import:
        raise ModelError("the file names no operator set (opset_import); it is damaged or truncated, export it again")


def _check_ports(graph: GraphProto) -> None:
    """The inputs and outputs of the main graph are tensors of sane shape."""
    for kind, ports in (("input", graph.input), ("output", graph.output)):
        for port in ports:
            with at(f"graph {kind} {port.name!r}"):
                _check_port(port)
        names = [port.name for port in ports]
        _refuse_duplicates(names, f"graph {kind}s")


def _check_port(port: ValueInfoProto) -> None:
    kind = port.type.WhichOneof("value")
    if not port.name:
        raise ModelError("it has no name; export the model again")
    if kind != "tensor_type":
        raise ModelError(
            f"only tensors are taken, this is {'untyped' if kind is None else kind.removesuffix('_type')}; "
            "export the part of the model that works on tensors"
        )
    if port.type.tensor_type.elem_type not in TensorProto.DataType.values()[1:]:
        raise ModelError(f"unknown element type {port.type.tensor_type.elem_type}")
    for axis, dim in enumerate(port.type.tensor_type.shape.dim):
        if dim.HasField("dim_value") and dim.dim_value < 0:
            raise ModelError(f"axis {axis} has the negative length {dim.dim_value}")


def _check_graph(graph: GraphProto, outer: frozenset[str], folder: Path | None) -> None:
    if graph.sparse_initializer:
        raise ModelError(
            f"sparse initializers are not taken ({len(graph.sparse_initializer)} found); store the weights dense"
        )
    names = [tensor.name for tensor in graph.initializer]
    if "" in names:
        raise ModelError("an initializer has no name; the file is damaged, export it again")
    _refuse_duplicates(names, "initializers")
    for tensor in graph.initializer:
        with at(f"initializer {tensor.name!r}"):
            check_tensor(tensor, folder)
    visible = _check_nodes(graph.node, {*names, *(port.name for port in graph.input)}, outer, folder)
    for port in graph.output:
        if port.name not in visible:
            raise ModelError(f"graph output {port.name!r} is computed by no node; the file is damaged, export it again")


def _check_nodes(
    nodes: Iterable[NodeProto], known: set[str], outer: frozenset[str], folder: Path | None
) -> frozenset[str]:
    """Check names and attributes of nodes; gives the names visible in their graph, those of outer graphs included."""
    nodes = list(nodes)
    outputs = [name for node in nodes for name in node.output if name]
    _refuse_duplicates([*outputs, *known.intersection(outputs)], "tensors")
    visible = outer.union(known, outputs)
    for node in nodes:
        with at(f"node {node.name or ', '.join(node.output)!r} ({node.op_type})"):
            for name in node.input:
                if name and name not in visible:
                    raise ModelError(f"it reads {name!r}, which nothing computes; the file is damaged, export it again")
            for attribute in node.attribute:
                with at(f"attribute {attribute.name!r}"):
                    _check_attribute(attribute, visible, folder)
    return visible


def _check_attribute(attribute: AttributeProto, visible: frozenset[str], folder: Path | None) -> None:
    for tensor in (*([attribute.t] if attribute.HasField("t") else []), *attribute.tensors):
        check_tensor(tensor, folder)
    for graph in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
        _check_graph(graph, visible, folder)


def _refuse_duplicates(names: Iterable[str], what: str) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ModelError(f"the name {name!r} stands for two {what}; the file is damaged, export it again")
        seen.add(name)


def check_tensor(tensor: TensorProto, folder: Path | None) -> None:
    """Raise ModelError unless the tensor's data is exactly what its type and dimensions promise."""
    kinds = {number: name for name, number in TensorProto.DataType.items()}
    kind = kinds.get(tensor.data_type, "UNDEFINED")
    if kind == "UNDEFINED":
        raise ModelError(f"unknown element type {tensor.data_type}; the file is damaged or from a newer exporter")
    if any(dim < 0 for dim in tensor.dims):
        raise ModelError(f"lengths of axes must be 0 or more, got {list(tensor.dims)}")
    if tensor.HasField("segment"):
        raise ModelError("tensors in segments are not taken; export the model again")
    count = math.prod(tensor.dims)
    if kind == "STRING":
        _expect(len(tensor.string_data), count, "strings", tensor)
    elif kind not in _BITS:
        raise ModelError(f"elements of type {kind} are not taken")
    elif tensor.data_location == TensorProto.EXTERNAL:
        _check_external(tensor, (count * _BITS[kind] + 7) // 8, folder)
    elif tensor.HasField("raw_data"):
        _expect(len(tensor.raw_data), (count * _BITS[kind] + 7) // 8, "bytes", tensor)
    else:
        _check_typed(tensor, kind, count)


def _check_typed(tensor: TensorProto, kind: str, count: int) -> None:
    """Data in a field of its own type instead of raw bytes (onnx.proto, TensorProto)."""
    if kind in {"FLOAT", "COMPLEX64"}:
        entries, wanted = len(tensor.float_data), count * (2 if kind == "COMPLEX64" else 1)
    elif kind in {"DOUBLE", "COMPLEX128"}:
        entries, wanted = len(tensor.double_data), count * (2 if kind == "COMPLEX128" else 1)
    elif kind == "INT64":
        entries, wanted = len(tensor.int64_data), count
    elif kind in {"UINT64", "UINT32"}:
        entries, wanted = len(tensor.uint64_data), count
    else:
        per_entry = max(1, 8 // _BITS[kind])
        entries, wanted = len(tensor.int32_data), (count + per_entry - 1) // per_entry
    _expect(entries, wanted, "values", tensor)


def _expect(have: int, want: int, unit: str, tensor: TensorProto) -> None:
    if have != want:
        raise ModelError(
            f"shape {list(tensor.dims)} needs {want:,} {unit} of data, the file holds {have:,}; "
            "the file is damaged, export it again"
        )


def _check_external(tensor: TensorProto, size_bytes: int, folder: Path | None) -> None:
    if folder is None:
        raise ModelError("its data lies in another file; load the model by its path")
    entries = {entry.key: entry.value for entry in tensor.external_data}
    path = _inside(entries.get("location", ""), folder)
    offset = _whole_number("offset", entries.get("offset", "0"))
    length = _whole_number("length", entries.get("length", str(size_bytes)))
    if length != size_bytes:
        raise ModelError(
            f"shape {list(tensor.dims)} needs {size_bytes:,} bytes, its entry for {path.name!r} says {length:,}"
        )
    have = path.stat().st_size
    if offset + length > have:
        raise ModelError(
            f"{path.name!r} ends too early: bytes {offset:,} to {offset + length:,} are promised, the file holds "
            f"{have:,}; copy it again"
        )


def _inside(location: str, folder: Path) -> Path:
    """The external data file, which must be a plain file within the folder of the model."""
    if not location or "\0" in location:
        raise ModelError(f"its data lies in another file, whose name is missing or damaged: {location!r}")
    path = Path(location)
    rule = f"external data must lie in the model's own folder, {location!r}"
    if path.is_absolute() or ".." in path.parts or "\\" in location:
        raise ModelError(f"{rule} points outside of it; move the file beside the model")
    real = (folder / path).resolve()
    if not real.is_relative_to(folder.resolve()):
        raise ModelError(f"{rule} is a link to outside of it; copy the file beside the model (cp -L)")
    if not real.is_file():
        raise ModelError(f"external data file {location!r} is missing; copy it beside the model")
    if real.stat().st_nlink > 1:
        raise ModelError(f"{rule} has a second hard link elsewhere; copy the file instead of linking it")
    return folder / path


def _whole_number(key: str, text: str) -> int:
    """The number an entry of external data holds: decimal, not negative, below 2^63."""
    if not (text.isascii() and text.isdigit() and len(text) < 20 and int(text) < 2**63):
        raise ModelError(f"{key} of external data must be a whole number from 0 to 2^63, got {text[:40]!r}")
    return int(text)
