"""The door for ONNX files: what real files are like goes in, what is damaged or hostile is refused with its reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

from alula.errors import AlulaError, ModelError, at
from alula.graph.checks import check_proto
from alula.graph.layers import Layer
from alula.graph.model import PROTOBUF_LIMIT_BYTES, Model, Note
from alula.graph.opset import IR_VERSION, MINIMUM_OPSET, raise_opset
from alula.graph.quantized import quantized_operators
from alula.graph.tidy import lift_constants, tidy_graph

# ONNX Runtime's own operators that its optimiser writes into the standard domain
_RUNTIME_OPERATORS = frozenset({"LayerNormalization", "SimplifiedLayerNormalization"})
# These read weights; elsewhere an infinity may be meant (attention masks, limits of Clip)
_WEIGHT_READERS = frozenset(
    [
        "BatchNormalization",
        "Conv",
        "ConvTranspose",
        "GRU",
        "Gather",
        "Gemm",
        "GroupNormalization",
        "InstanceNormalization",
        "LSTM",
        "LayerNormalization",
        "MatMul",
        "PRelu",
        "RNN",
    ]
)
_CHUNK = 1 << 22


def load_model(path: str | Path, *, allow_quantized: bool = False) -> Model:
    """Open an ONNX file as a Model.

    Weights may lie in the file or beside it; they are read when used. The opset (11 or newer) is raised to 21 where
    onnx's converter can; initializers listed as inputs too, Constant nodes, local functions and nodes without names are
    straightened; the graph is tidied (see :func:`alula.graph.tidy.tidy`). What was left as it is stands in the model's
    notes.

    Args:
        path: the ``.onnx`` file.
        allow_quantized: take a graph that is quantized already.

    Raises:
        ModelError: the file is missing, damaged, hostile, of an unknown version, has NaN in its weights, or is
            quantized already; the message names the tensor or node and the fix.
    """
    if not isinstance(path, str | Path):
        raise ModelError(
            f"load_model opens the path of an .onnx file, got {type(path).__name__}; all that takes a model takes an "
            "onnx ModelProto too, and a torch.nn.Module goes through export_module(module, example)"
        )
    path = Path(path)
    with at(str(path)):
        return model_from_proto(_parse(_read(path)), folder=path.parent, allow_quantized=allow_quantized)


def model_from_proto(proto: onnx.ModelProto, *, folder: Path | None = None, allow_quantized: bool = False) -> Model:
    """A parsed ONNX message as a Model; the message now belongs to it. See :func:`load_model`.

    Args:
        proto: the message.
        folder: where its external data lies, if it has any.
        allow_quantized: take a graph that is quantized already.

    Raises:
        ModelError: as for :func:`load_model`.
    """
    try:
        check_proto(proto, folder)
        graph = ir.from_proto(proto)
        _set_folder(graph, folder)
        for node in graph.graph:
            _forget_shapes(node)
        return model_from_ir(graph, folder=folder, allow_quantized=allow_quantized)
    except AlulaError:
        raise
    except Exception as error:  # the libraries below raise what they like on a damaged graph
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(f"the graph cannot be read ({reason}); the file is damaged, export it again") from error


def _read(path: Path) -> bytes:
    if path.is_dir():
        found = ", ".join(sorted(file.name for file in path.glob("*.onnx"))[:5])
        raise ModelError(f"this is a folder; give the .onnx file{f' in it ({found})' if found else ''}")
    if not path.exists():
        raise ModelError("there is no such file; check the path")
    try:
        size = path.stat().st_size
        if size > PROTOBUF_LIMIT_BYTES:
            raise ModelError(f"an ONNX file may have 2 GiB, this has {size:,} bytes; save the weights as external data")
        return path.read_bytes()
    except OSError as error:
        raise ModelError(f"it cannot be read: {error.strerror or error}") from error


def _parse(data: bytes) -> onnx.ModelProto:
    if not data:
        raise ModelError("the file is empty; export or download it again")
    if data[:2] == b"PK":
        raise ModelError("this is a zip archive (a PyTorch checkpoint?), not ONNX; load its module and pass that")
    if data[4:8] == b"ORTM":
        raise ModelError("this is ONNX Runtime's own .ort format; give the .onnx file it was made from")
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(data)
    except Exception as error:  # protobuf's DecodeError, which has no type stubs
        raise ModelError(
            f"this is not an ONNX file, or it is cut short ({len(data):,} bytes); export or download it again"
        ) from error
    return proto


def model_from_ir(graph: ir.Model, *, folder: Path | None = None, allow_quantized: bool = False) -> Model:
    """A well-formed onnx-ir graph as a Model, straightened and tidied; the graph now belongs to it.

    Args:
        graph: the graph; the shapes it claims are believed.
        folder: where its external data lies, if it has any.
        allow_quantized: take a graph that is quantized already.

    Raises:
        ModelError: as for :func:`load_model`, but for what concerns files.
    """
    _straighten(graph)
    notes = [*_check_operators(graph), *_check_quantized(graph, allow_quantized=allow_quantized)]
    graph, kept = raise_opset(graph)
    _set_folder(graph, folder)
    _name_nodes(graph.graph)
    tidy_graph(graph)
    model = Model(graph, notes=[*notes, *([kept] if kept else []), *_bodies(graph.graph)])
    _check_weights(model)
    return model


def _set_folder(model: ir.Model, folder: Path | None) -> None:
    """Tell external tensors where they lie; those in bodies of control flow are read in."""
    if folder is None:
        return
    ir.external_data.set_base_dir(model.graph, str(folder))
    for graph in model.graphs():
        for value in graph.initializers.values() if graph is not model.graph else ():
            if isinstance(value.const_value, ir.ExternalTensor):
                value.const_value = _in_memory(value.const_value)
        for node in graph:
            for attribute in list(node.attributes.values()):
                if isinstance(attribute.value, ir.ExternalTensor):
                    node.attributes.add(ir.AttrTensor(attribute.name, _in_memory(attribute.value)))


def _in_memory(tensor: ir.ExternalTensor) -> ir.TensorProtocol:
    return ir.tensor(np.array(tensor.numpy()), name=tensor.name)


def _straighten(model: ir.Model) -> None:
    """Functions inlined, nodes in order, initializers no longer inputs, Constant nodes made initializers."""
    version = model.opset_imports.pop("ai.onnx", None)
    model.opset_imports.setdefault("", version or MINIMUM_OPSET)
    for node in model.graph.all_nodes():
        node.domain = "" if node.domain == "ai.onnx" else node.domain
    if model.functions:
        InlinePass()(model)
        model.functions.clear()
    model.ir_version = max(model.ir_version, IR_VERSION)
    try:
        model.graph.sort()
    except ValueError as error:
        raise ModelError("the graph has a cycle: a node reads what is computed from its own output") from error
    inputs = [value for value in model.graph.inputs if not value.is_initializer()]
    model.graph.inputs.clear()
    model.graph.inputs.extend(inputs)
    lift_constants(model.graph)


def _forget_shapes(node: ir.Node) -> None:
    """Drop what the file claims of intermediate tensors; inference finds the truth."""
    for value in node.outputs if node.domain == "" else ():
        if not value.is_graph_output():
            value.shape = value.type = None


def _name_nodes(graph: ir.Graph) -> None:
    """Give every node of the main graph a name of its own, the same each time."""
    given = Counter(node.name for node in graph if node.name)
    taken = {name for name, count in given.items() if count == 1}
    for node in graph:
        if node.name and given[node.name] == 1:
            continue
        base, number = node.name or node.op_type, 0
        while (name := f"{base}_{number}") in taken:
            number += 1
        node.name = name
        taken.add(name)


def _check_operators(model: ir.Model) -> Iterator[Note]:
    """Refuse unknown standard operators; tell of those that are not ONNX's own."""
    opset, foreign = model.opset_imports[""], Counter[str]()
    for node in model.graph.all_nodes():
        if node.domain:
            foreign[f"{node.domain}.{node.op_type}"] += 1
        elif not _is_known(node.op_type, opset):
            raise ModelError(
                f"node {node.name or node.outputs[0].name!r}: opset {opset} has no operator {node.op_type!r}; "
                "export with a newer opset, or give the operator its own domain"
            )
    for name, count in foreign.items():
        yield Note(name, f"{count} nodes are not standard ONNX operators; they are left as they are")


def _is_known(operator: str, opset: int) -> bool:
    if operator in _RUNTIME_OPERATORS:
        return True
    try:
        return not onnx.defs.get_schema(operator, opset, "").deprecated
    except onnx.defs.SchemaError:
        return False


def _check_quantized(model: ir.Model, *, allow_quantized: bool) -> Iterator[Note]:
    counts = quantized_operators(model.graph.all_nodes())
    if not counts:
        return
    words = ", ".join(f"{count} {name}" for name, count in counts.items())
    if not allow_quantized:
        raise ModelError(
            f"the graph is quantized already ({words}); give the float model it was made from, "
            "or, to look at it all the same, call load_model(..., allow_quantized=True) or "
            "alula analyze"
        )
    yield Note("graph", f"quantized already: {words}")


def _bodies(graph: ir.Graph) -> Iterator[Note]:
    for node in graph:
        bodies = [body for attribute in node.attributes.values() for body in _graphs_in(attribute)]
        if bodies:
            count = sum(1 for body in bodies for _ in body.all_nodes())
            yield Note(str(node.name), f"the bodies of this {node.op_type} ({count} nodes) are left as they are")
        if node.op_type in {"BatchNormalization", "Dropout"} and _trains(node):
            yield Note(str(node.name), f"{node.op_type} runs in training mode; export the model again after .eval()")


def _graphs_in(attribute: ir.Attr) -> list[ir.Graph]:
    if attribute.type == ir.AttributeType.GRAPH:
        return [attribute.as_graph()]
    return list(attribute.as_graphs()) if attribute.type == ir.AttributeType.GRAPHS else []


def _trains(node: ir.Node) -> bool:
    if node.op_type == "BatchNormalization":
        return bool(node.attributes.get_int("training_mode", 0))
    return len(node.inputs) > 2 and node.inputs[2] is not None


def _check_weights(model: Model) -> None:
    """Refuse NaN anywhere, infinity in weights, layers without elements; touch what would fail late otherwise."""
    for layer in model.layers():
        _check_layer(model, layer)
    for graph in (model.graph, *model.graph.subgraphs()):
        for name, value in graph.initializers.items():
            with at(f"initializer {name!r}"):
                _check_finite(value)
    _ = model.inputs, model.outputs


def _check_layer(model: Model, layer: Layer) -> None:
    for name in layer.weights:
        if model.weight(name).size == 0:
            raise ModelError(f"layer {layer.name!r}: its weight {name!r} has no elements: {list(layer.shape)}")


def _check_finite(value: ir.Value) -> None:
    tensor = value.const_value
    if tensor is None or not tensor.dtype.is_floating_point() or tensor.dtype.bitwidth < 16:
        return
    flat = tensor.numpy().reshape(-1)
    read_as_weight = any(use.node.op_type in _WEIGHT_READERS for use in value.uses())
    nan = infinite = 0
    for start in range(0, flat.size, _CHUNK):  # in pieces: weights may be larger than memory
        piece = flat[start : start + _CHUNK]
        if not np.isfinite(piece).all():
            nan += int(np.isnan(piece).sum())
            infinite += int(np.isinf(piece).sum())
    if nan or (infinite and read_as_weight):
        raise ModelError(
            f"weights must be finite, got {nan:,} NaN and {infinite:,} infinite of {flat.size:,}; "
            "the model is broken, train or export it again"
        )
