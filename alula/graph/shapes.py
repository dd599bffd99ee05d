"""Shapes of all tensors of a graph, by onnx's shape inference."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from itertools import cycle

import numpy as np
import onnx
import onnx.shape_inference
import onnx_ir as ir

from alula.errors import AlulaError, DataError, ModelError
from alula.graph.fold import Folder
from alula.graph.model import Model, TensorSpec
from alula.graph.opset import without_weights
from alula.graph.running import Runner

Shape = tuple[int, ...]
_PRIMES = ((2, 3, 5, 7), (11, 13, 17, 19), (131, 137, 139, 149), (1009, 1013, 1019, 1021))  # of the first free axes
_log = logging.getLogger(__name__)


def infer_shapes(model: Model, input_shapes: Mapping[str, Shape] | None = None) -> dict[str, Shape | None]:
    """The shape of every tensor of the main graph for inputs of the given shapes; None where it cannot be told.

    Args:
        model: the graph.
        input_shapes: by input name; free axes of inputs that are not named take the length that an axis of the same
            name has in those that are, and 1 otherwise.

    Raises:
        DataError: an input is unknown, or its shape does not fit the graph.
    """
    return _shapes_for(model.edit(), bind_shapes(model.inputs, input_shapes or {}))


def _shapes_for(model: ir.Model, given: Mapping[str, Shape]) -> dict[str, Shape | None]:
    """The shape of every tensor, for a copy of the graph that nobody else holds."""
    names = [*given, *model.graph.initializers]
    names += [str(value.name) for node in model.graph for value in node.outputs if value.name]
    for value in model.graph.inputs:
        value.shape = ir.Shape(given[str(value.name)])
    for node in model.graph:
        for value in node.outputs if node.domain == "" else ():
            value.shape = None
    folder = Folder(model)
    annotate_shapes(model, outputs=True)
    while folder.fold_small():  # shapes that the graph computes are constants now, and tell of more shapes
        annotate_shapes(model, outputs=True)
    values = ir.convenience.create_value_mapping(model.graph)
    values.update(folder.replaced)
    return {name: _static(values[name]) for name in names}


def with_shapes(model: Model) -> Model:
    """The model with types and shapes written at every tensor where they can be told; itself where none lacks any."""
    if all(value.shape is not None and value.type is not None for node in model.graph for value in node.outputs):
        return model
    graph = model.edit()
    annotate_shapes(graph)
    settle_lengths(graph)
    return model.edited(graph)


def settle_lengths(model: ir.Model) -> None:
    """Write down, in place, the lengths that no free axis of the inputs has a part in: of heads, of their features.

    Inference loses them behind a target that the graph computes. They are the ones that are equal at four sizes of the
    free axes, small and large, each with other primes: rounding up to windows or cutting off at a limit shows.
    """
    if not any(_is_lost(length) for node in model.graph for value in node.outputs for length in value.shape or ()):
        return
    if any(value.shape is None for value in model.graph.inputs):
        return
    found = [_shapes_for(model.clone(), _probed(model.graph.inputs, primes)) for primes in _PRIMES]
    for value in (value for node in model.graph for value in node.outputs):
        ours = value.shape or ()
        shapes = [shape for known in found if (shape := known.get(str(value.name))) is not None]
        if len(shapes) == len(found) and all(len(shape) == len(ours) for shape in shapes):
            value.shape = ir.Shape(_settled(length, seen) for length, *seen in zip(ours, *shapes, strict=True))


def _settled(length: int | ir.SymbolicDim, seen: Sequence[int]) -> int | ir.SymbolicDim:
    return seen[0] if _is_lost(length) and len(set(seen)) == 1 else length


def _is_lost(length: int | ir.SymbolicDim) -> bool:
    """Whether inference made up a name, or had none."""
    return isinstance(length, ir.SymbolicDim) and (length.value is None or length.value.startswith("unk__"))


def _probed(inputs: Sequence[ir.Value], primes: Sequence[int]) -> dict[str, Shape]:
    """Shapes of all inputs, where axes of one name have one length, and each other free axis its own."""
    free, lengths = cycle(primes), dict[str, int]()
    return {
        str(value.name): tuple(
            length if isinstance(length, int)
            else next(free) if length.value is None
            else lengths.setdefault(length.value, lengths.get(length.value) or next(free))
            for length in value.shape or ()
        )
        for value in inputs
    }  # fmt: skip


def observe_shapes(model: Model, feeds: Mapping[str, np.ndarray]) -> dict[str, Shape | None]:
    """The shape of every tensor of the main graph in a run on these inputs: what inference cannot tell is looked at.

    None is left to what has no shape (sequences, optional values), and to all of it where the graph does not run.

    Raises:
        DataError: an input is unknown, or its shape does not fit the graph.
    """
    shapes = infer_shapes(model, {name: array.shape for name, array in feeds.items()})
    graph = model.edit()
    for value in [value for node in graph.graph for value in node.outputs if shapes.get(str(value.name), ()) is None]:
        node = ir.node("Shape", [value], name=f"shape of {value.name}", num_outputs=1)
        node.outputs[0].name, node.outputs[0].type = f"shape of {value.name}", ir.TensorType(ir.DataType.INT64)
        graph.graph.append(node)
        graph.graph.outputs.append(node.outputs[0])
    try:
        found = Runner(model.edited(graph), optimise=False)(feeds)
    except AlulaError as error:
        _log.info("some shapes stay unknown: %s", error)
        return shapes
    return shapes | {
        name: tuple(map(int, found[key]))
        for name, shape in shapes.items()
        if shape is None and (key := f"shape of {name}") in found
    }


def bind_shapes(inputs: tuple[TensorSpec, ...], given: Mapping[str, Shape]) -> dict[str, Shape]:
    """Shapes of all inputs without free axes.

    Raises:
        DataError: an input is unknown, or its shape does not fit the graph.
    """
    unknown = set(given) - {spec.name for spec in inputs}
    if unknown:
        raise DataError(
            f"the model has no inputs named {sorted(unknown)}; it has {', '.join(spec.name for spec in inputs)}"
        )
    lengths = {
        axis: length
        for spec in inputs
        for axis, length in zip(spec.shape or (), given.get(spec.name, ()), strict=False)
        if isinstance(axis, str)
    }
    return {spec.name: _bind(spec, given.get(spec.name), lengths) for spec in inputs}


def _bind(spec: TensorSpec, given: Shape | None, lengths: Mapping[str, int]) -> Shape:
    if given is not None:
        fits = spec.shape is None or (
            len(spec.shape) == len(given)
            and all(
                want == have if isinstance(want, int) else lengths.get(str(want), have) == have
                for want, have in zip(spec.shape, given, strict=True)
            )
        )
        if not fits or any(length < 0 for length in given):
            raise DataError(f"input must be {spec}, got the shape {list(given)}")
        return tuple(given)
    if spec.shape is None:
        raise DataError(f"input {spec.name!r} is of unknown rank; give its shape")
    return tuple(axis if isinstance(axis, int) else lengths.get(str(axis), 1) for axis in spec.shape)


def annotate_shapes(model: ir.Model, *, outputs: bool = False) -> None:
    """Write what can be told of types and shapes into the main graph, in place; bodies stay as they are.

    What the graph claims of its ``outputs`` is its interface, and kept unless asked.
    """
    try:
        found = _inferred(model)
    except ModelError as error:
        _log.info("shapes stay unknown: %s", error)
        return
    for node in model.graph:
        for value in node.outputs:
            info = found.get(str(value.name))
            if info is not None and (outputs or not value.is_graph_output()):
                value.type = ir.serde.deserialize_type_proto_for_type(info.type) or value.type
                value.shape = _merged(value.shape, ir.serde.deserialize_type_proto_for_shape(info.type))


def _merged(known: ir.Shape | None, found: ir.Shape | None) -> ir.Shape | None:
    """Each axis as a number where inference found one; otherwise the name it had, which inference may have lost."""
    if known is None or found is None or len(known) != len(found):
        return found if found is not None else known
    return ir.Shape(
        [new if isinstance(new, int) or _nameless(old) else old for old, new in zip(known, found, strict=True)]
    )


def _nameless(axis: int | ir.SymbolicDim) -> bool:
    return isinstance(axis, ir.SymbolicDim) and axis.value is None


def _inferred(model: ir.Model) -> dict[str, onnx.ValueInfoProto]:
    """What onnx infers of the tensors of the main graph, the values of small constants followed through."""
    bare, _ = without_weights(model)
    message = ir.to_proto(bare)
    for node in message.graph.node:
        if node.op_type == "SimplifiedLayerNormalization":  # ONNX Runtime's own, of the same shapes
            node.op_type = "LayerNormalization"
    try:
        proto = onnx.shape_inference.infer_shapes(message, data_prop=True)
    except Exception as error:  # onnx's C++ raises what it likes
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(f"shapes cannot be inferred: {reason}") from error
    return {info.name: info for info in (*proto.graph.value_info, *proto.graph.output)}


def _static(value: ir.Value) -> Shape | None:
    if value.const_value is not None:
        return tuple(map(int, value.const_value.shape.numpy()))
    return tuple(map(int, value.shape.numpy())) if value.shape is not None and value.shape.is_static() else None
