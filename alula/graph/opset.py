"""Raise the opset of a graph with onnx's converter, without carrying its weights through it."""

from __future__ import annotations

import logging

import onnx_ir as ir

from alula.graph.model import Note

MINIMUM_OPSET = 21  # the first with blocked and 4-bit DequantizeLinear
IR_VERSION = 10  # the file format that came with opset 21
SMALL_BYTES = 1024  # the converter reads small constants (axes, scales); larger ones are weights

_PLAIN = frozenset({ir.DataType.FLOAT, ir.DataType.INT32, ir.DataType.INT64, ir.DataType.BOOL})
_log = logging.getLogger(__name__)


def raise_opset(model: ir.Model, minimum: int = MINIMUM_OPSET) -> tuple[ir.Model, Note | None]:
    """The model written in at least opset ``minimum``; or the model itself and a note why that did not work."""
    import onnx.checker
    import onnx.version_converter

    before = model.opset_imports.get("", minimum)
    if before >= minimum:
        return model, None
    bare, weights = without_weights(model)
    try:
        proto = onnx.version_converter.convert_version(ir.to_proto(bare), minimum)
        proto.ir_version = max(proto.ir_version, IR_VERSION)
        onnx.checker.check_model(proto)
        raised = ir.from_proto(proto)
        _give_back(raised, weights)
        _drop_shapes_in_bodies(raised)
    except Exception as error:  # noqa: BLE001  (the converter is C++ and raises what it likes)
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        _log.info("opset %d kept: %s", before, reason)
        return model, Note("opset", f"kept at {before}: onnx's converter to {minimum} fails ({reason})")
    raised.metadata_props.update(model.metadata_props)
    for domain, version in model.opset_imports.items():
        raised.opset_imports.setdefault(domain, version)
    return raised, None


def without_weights(model: ir.Model) -> tuple[ir.Model, dict[str, ir.TensorProtocol]]:
    """A copy whose larger initializers are graph inputs instead, and their tensors by name.

    onnx's C++ functions take one serialized message: this keeps it small, and weights on disk stay there.
    """
    bare = model.clone()
    weights: dict[str, ir.TensorProtocol] = {}
    for name, value in list(bare.graph.initializers.items()):
        tensor = value.const_value
        if tensor is None or (tensor.nbytes <= SMALL_BYTES and tensor.dtype in _PLAIN):
            continue
        weights[name] = tensor
        value.type = ir.TensorType(tensor.dtype)
        value.shape = ir.Shape(tensor.shape.numpy())
        del bare.graph.initializers[name]
        value.const_value = None
        bare.graph.inputs.append(value)
    return bare, weights


def _give_back(model: ir.Model, weights: dict[str, ir.TensorProtocol]) -> None:
    inputs = [value for value in model.graph.inputs if value.name not in weights]
    values = [value for value in model.graph.inputs if value.name in weights]
    if len(values) != len(weights):
        raise ValueError(f"{len(weights) - len(values)} weights went missing")
    model.graph.inputs.clear()
    model.graph.inputs.extend(inputs)
    for value in values:
        value.const_value = weights[str(value.name)]
        model.graph.register_initializer(value)


def _drop_shapes_in_bodies(model: ir.Model) -> None:
    """Take back the shapes that the converter wrote into bodies of control flow: they only make the file larger."""
    for body in model.graph.subgraphs():
        for node in body:
            for value in node.outputs if node.domain == "" else ():
                if not value.is_graph_output():
                    value.shape = value.type = None
