"""From a graph to a module, node by node: what :func:`alula.graph.trainable.trainable` does."""

from __future__ import annotations

import inspect
import keyword
import operator
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, Final

import numpy as np
import onnx
import onnx_ir as ir
import torch
from torch import Tensor, fx, nn

from alula.errors import ModelError, at
from alula.graph.model import Model
from alula.graph.module_paths import free_path, hold
from alula.graph.ops import host
from alula.graph.ops.operators import OPERATORS, STATISTICS
from alula.graph.ops.quantization import LIMITS, cast_codes, code_limits, dequantize, fake_quantize

MODEL: Final = "alula.model"  # what a lifted module's ``meta`` holds: the graph,
NAMES: Final = "alula.names"  # the initializer by path of its parameter or buffer,
CODES: Final = "alula.codes"  # the DequantizeLinear by path of the float weight behind it,
SCALES: Final = "alula.scales"  # the paths of parameters that are scales of quantized tensors,
ALSO: Final = "alula.also"  # and the tensors inside that are given out too
NODE: Final = "alula.node"  # what a node of the module holds in its ``meta``: the name of the graph's own
_GIVING_CODES: Final = frozenset(
    {"QuantizeLinear", "DynamicQuantizeLinear", "MatMulInteger", "ConvInteger", "QLinearMatMul", "QLinearConv"}
)
_CODES: Final = {
    "INT2": torch.int8, "INT4": torch.int8, "INT8": torch.int8, "INT16": torch.int16, "INT32": torch.int32,
    "UINT2": torch.uint8, "UINT4": torch.uint8, "UINT8": torch.uint8,
}  # fmt: skip
_NARROW: Final = {"int4": np.int8, "int2": np.int8, "uint4": np.uint8, "uint2": np.uint8}
_EIGHT_BITS: Final = {"float8_e4m3fn": torch.float8_e4m3fn, "float8_e5m2": torch.float8_e5m2}
_NOT_IN_TORCH: Final = frozenset({"UINT16", "UINT32", "UINT64", "STRING"})


class LiftedGraph(fx.GraphModule):
    """A graph as a module; it keeps the graph that it was lifted from."""

    @property
    def initializer_names(self) -> dict[str, str]:
        """The initializer that each parameter and buffer came from, by path."""
        codes = {path: str(path) for path in self.meta[CODES]}
        return {**self.meta[NAMES], **codes}

    @property
    def scales(self) -> frozenset[str]:
        """The paths of the parameters that are scales of quantized tensors."""
        return frozenset(self.meta[SCALES])

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled as the graph and the weights, and lifted again: generated code is not traced a second time."""
        return _lift_again, (self.meta[MODEL].to_bytes(), self.meta[ALSO], self.state_dict(), self.training)


def _lift_again(
    graph: bytes,
    also: tuple[str, ...],
    state: dict[str, Tensor],
    training: bool,  # noqa: FBT001
) -> LiftedGraph:
    module = Lift(Model(ir.from_proto(onnx.load_model_from_string(graph))), also).module()
    module.load_state_dict(state)
    return module.train(training)


def to_torch(array: np.ndarray) -> Tensor:
    """An array as a tensor of its own; whole numbers of 2 and 4 bits, which torch has not, as those of 8.

    Raises:
        ModelError: torch has no such type.
    """
    name = array.dtype.name
    if name == "bfloat16":
        return torch.from_numpy(array.astype(np.float32)).to(torch.bfloat16)
    if name in _NARROW:
        return torch.from_numpy(array.astype(_NARROW[name]))
    if name in _EIGHT_BITS:
        return torch.from_numpy(np.array(array).view(np.uint8)).view(_EIGHT_BITS[name])
    try:
        return torch.from_numpy(np.array(array))
    except TypeError as error:
        raise ModelError(f"PyTorch does not compute with values of type {name}") from error


class Mode(nn.Module):
    """Tells generated code whether the module trains."""

    def forward(self) -> bool:
        """Whether it does."""
        return self.training


class Lift:
    """One graph becoming a module, node by node."""

    def __init__(self, model: Model, also: tuple[str, ...] = ()) -> None:
        self._model, self._also = model, also
        self._root = nn.Module()
        self._graph = fx.Graph()
        self._env: dict[ir.Value, Any] = {}  # fx node, or host value, of what was computed so far
        self._host: set[ir.Value] = set()  # values held as lengths
        self._names: dict[str, str] = {}
        self._codes: dict[str, str] = {}
        self._constants: dict[ir.Value, fx.Node] = {}
        self._statistics = {*_statistics(model.graph), *_dynamic_scales(model.graph)}
        self._scales = set(_scales(model.graph)) - self._statistics
        self._scale_paths: list[str] = []

    def module(self) -> LiftedGraph:
        """The module."""
        for value in self._model.graph.inputs:
            self._env[value] = self._graph.placeholder(self._argument_name(str(value.name)))
        self._root.register_buffer("_anchor", torch.zeros(0), persistent=False)
        self._root.add_module("_mode", Mode())
        for node in self._model.graph:
            with at(f"{node.op_type} {node.name!r}"):
                self._add(node)
        outputs = [self._output(value) for value in self._model.graph.outputs]
        outputs += [self._inside(name) for name in self._also]
        self._graph.output(outputs[0] if len(outputs) == 1 else tuple(outputs))
        module = LiftedGraph(self._root, self._graph)
        module.meta.update({MODEL: self._model, NAMES: self._names, CODES: self._codes, ALSO: self._also})
        module.meta[SCALES] = tuple(self._scale_paths)
        module.graph.eliminate_dead_code()
        module.recompile()
        return module

    def _argument_name(self, name: str) -> str:
        """What an input is called in the generated code, by which it may be given too."""
        taken = {node.target for node in self._graph.nodes} | {"self", "torch"}
        text = _identifier(name)
        while text in taken or keyword.iskeyword(text):
            text += "_"
        return text

    def _output(self, value: ir.Value) -> fx.Node:
        """An output of the graph; codes leave it as the whole numbers that they are."""
        tensor = self._tensor(value)
        producer = value.producer()
        if producer is None or value.dtype is None or producer.op_type not in _GIVING_CODES:
            return tensor
        dtype = _CODES.get(value.dtype.name)
        return tensor if dtype is None else self._graph.call_function(cast_codes, (tensor, dtype))

    def _inside(self, name: str) -> fx.Node:
        """A tensor of the graph that is no output of it."""
        found = next((value for value in self._env if value.name == name), None)
        if found is None:
            raise ModelError(f"no node of the graph computes {name!r}; look for the names in model.graph")
        return self._tensor(found)

    def _add(self, node: ir.Node) -> None:
        if self._add_on_host(node):
            return
        function = OPERATORS.get(node.op_type) if node.domain == "" else None
        _refuse_types(node)
        if function is None:
            domain = f" of domain {node.domain!r}" if node.domain else ""
            raise ModelError(f"the operator{domain} has no gradient in alula; leave it out of what is trained")
        if node.op_type == "DequantizeLinear" and node.inputs[0] is not None and node.inputs[0].const_value is not None:
            self._env[node.outputs[0]] = self._fake_quantize(node, node.inputs[0])
            return
        made = self._graph.call_function(function, self._arguments(function, node), self._keywords(function, node))
        made.meta[NODE] = str(node.name)
        if not _returns_tuple(function):
            self._env[node.outputs[0]] = made
            return
        for index, value in enumerate(node.outputs):
            if value.name:
                self._env[value] = self._graph.call_function(operator.getitem, (made, index))

    def _fake_quantize(self, node: ir.Node, codes: ir.Value) -> fx.Node:
        """The float weight that a constant's codes stand for, as a parameter behind fake quantization.

        Its codes are computed again from its values and come out as they were.
        """
        if codes.dtype is None or codes.dtype.name not in LIMITS:
            raise ModelError(f"codes of type {codes.dtype} are not differentiated")
        attributes = attributes_of(node)
        values = [
            to_torch(value.const_value.numpy()) for value in node.inputs if value is not None and value.const_value
        ]
        if len(values) != len([value for value in node.inputs if value is not None]):
            raise ModelError("its scale or zero point is computed, which is not differentiated")
        name = str(codes.name)
        path = free_path(self._root, name.removesuffix(".codes"))
        hold(self._root, path, dequantize(*values, **attributes), train=True)
        self._codes[path] = str(node.name)
        scale, *zero_point = self._arguments(dequantize, node)[1:]
        return self._graph.call_function(
            fake_quantize,
            (self._graph.get_attr(path), scale, *zero_point),
            {**attributes, "limits": code_limits(values[0], codes.dtype.name)},
        )

    def _add_on_host(self, node: ir.Node) -> bool:
        """Compute a node with lengths, if all that it reads are lengths; whether it did."""
        function = host.OPERATORS.get(node.op_type) if node.domain == "" else None
        if function is None or not _gives_ints(node):
            return False
        of_shape = node.op_type in ("Shape", "Size")
        if not of_shape and not any(value in self._host for value in node.inputs if value is not None):
            return False
        if not of_shape and not all(self._is_host(value) for value in node.inputs if value is not None):
            return False
        inputs = [self._lengths(value) for value in node.inputs]
        arguments = [self._argument(node.inputs[0], "Tensor")] if of_shape else inputs
        attributes = {} if node.op_type == "Cast" else attributes_of(node)
        self._env[node.outputs[0]] = self._graph.call_function(function, tuple(arguments), attributes)
        self._host.add(node.outputs[0])
        return True

    def _is_host(self, value: ir.Value) -> bool:
        return value in self._host or _lengths_of(value) is not None

    def _lengths(self, value: ir.Value | None) -> Any:
        if value is None:
            return None
        return self._env[value] if value in self._host else _lengths_of(value)

    def _arguments(self, function: Callable[..., Any], node: ir.Node) -> tuple[Any, ...]:
        kinds = _kinds(function)
        inputs = list(node.inputs)
        while inputs and inputs[-1] is None:
            inputs.pop()
        if len(inputs) > len(kinds) and not _is_variadic(function):
            raise ModelError(f"takes at most {len(kinds)} inputs here, the node has {len(inputs)}")
        return tuple(
            self._argument(value, kinds[min(index, len(kinds) - 1)] if kinds else "Tensor")
            for index, value in enumerate(inputs)
        )

    def _argument(self, value: ir.Value | None, kind: str) -> Any:
        if value is None:
            return None
        if kind in ("Ints", "Int"):
            known = self._lengths(value) if self._is_host(value) else None
            return known if known is not None else self._tensor(value)
        if kind == "Floats" and value.const_value is not None:
            return value.const_value.numpy().reshape(-1).tolist()
        if kind == "Number" and value.const_value is not None and value.const_value.size == 1:
            return value.const_value.numpy().item()
        return self._tensor(value)

    def _keywords(self, function: Callable[..., Any], node: ir.Node) -> dict[str, Any]:
        parameters = _signature(function).parameters
        given = {name: self._attribute(name, value) for name, value in attributes_of(node).items()}
        takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
        for name in given:
            if name not in parameters and not takes_all:
                raise ModelError(f"its attribute {name!r} has no gradient in alula")
        provided: dict[str, Callable[[], Any]] = {
            "opset": lambda: self._model.opset,
            "outputs": lambda: len(node.outputs),
            "anchor": lambda: self._graph.get_attr("_anchor"),
            "training": lambda: self._graph.call_module("_mode"),
            "limits": lambda: _limits(node),
        }
        given.update({name: provide() for name, provide in provided.items() if name in parameters})
        return given

    def _attribute(self, name: str, value: Any) -> Any:
        if isinstance(value, ir.Graph):
            raise ModelError(f"its attribute {name!r} is a graph, which is not differentiated")
        if isinstance(value, ir.TensorProtocol):
            return self._hold(f"attribute_{name}", to_torch(value.numpy()), train=False, kept=False)
        return value

    def _tensor(self, value: ir.Value) -> fx.Node:
        """A value as a tensor: computed, or held as a parameter or buffer."""
        if value in self._host:
            return self._graph.call_function(host.to_tensor, (self._env[value], self._graph.get_attr("_anchor")))
        if value in self._env:
            node: fx.Node = self._env[value]
            return node
        if value.const_value is None:
            raise ModelError(f"reads {value.name!r}, which nothing computes")
        if value not in self._constants:
            name, tensor = str(value.name), to_torch(value.const_value.numpy())
            train = _is_real(tensor) and tensor.numel() > 1 and value not in self._statistics
            is_scale = tensor.dtype == torch.float32 and value in self._scales
            self._constants[value] = self._hold(name, tensor, train=train or is_scale)
            if is_scale:
                self._scale_paths.append(str(self._constants[value].target))
        return self._constants[value]

    def _hold(self, name: str, tensor: Tensor, *, train: bool, kept: bool = True) -> fx.Node:
        """Make a tensor a parameter or buffer of the module, under its own name where that is possible."""
        path = free_path(self._root, name)
        hold(self._root, path, tensor, train=train, persistent=kept)
        if kept and _is_real(tensor):
            self._names[path] = name
        return self._graph.get_attr(path)


def _is_real(tensor: Tensor) -> bool:
    """Whether a tensor holds numbers that can be trained; floats of 8 bits are codes, which stay."""
    return tensor.is_floating_point() and tensor.dtype not in _EIGHT_BITS.values()


def _statistics(graph: ir.Graph) -> Iterator[ir.Value]:
    """Initializers that operators keep as statistics, not as weights."""
    for node in graph:
        for index in STATISTICS.get(node.op_type, ()):
            value = node.inputs[index] if index < len(node.inputs) else None
            if value is not None:
                yield value


def _dynamic_scales(graph: ir.Graph) -> Iterator[ir.Value]:
    """Scales of weights that are codes beside inputs quantized at run time: without the codes, they are not trained."""
    for node in graph:
        if node.op_type == "DynamicQuantizeLinear":
            for use in node.outputs[1].uses():
                yield from (value for value in use.node.inputs if value is not None and value.const_value is not None)


def _scales(graph: ir.Graph) -> Iterator[ir.Value]:
    """Scales of quantized tensors, but for those of biases: these follow from the scales of what is multiplied."""
    for node in graph:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear") and node.domain == "":
            scale = node.inputs[1]
            if scale is not None and not is_bias(node):
                yield scale


def is_bias(node: ir.Node) -> bool:
    """Whether this is a DequantizeLinear of 32-bit codes that stand in the graph."""
    codes = node.inputs[0]
    return node.op_type == "DequantizeLinear" and codes is not None and codes.dtype == ir.DataType.INT32


def _limits(node: ir.Node) -> tuple[int, int]:
    """Least and greatest code of what a QuantizeLinear gives: by its zero point, by its attribute, else uint8."""
    place = {"QuantizeLinear": 2}.get(node.op_type, 7)  # where the zero point of the result stands
    zero_point = node.inputs[place] if len(node.inputs) > place else None
    named = zero_point.dtype if zero_point is not None else None
    wanted = node.attributes.get("output_dtype")
    if named is None and wanted is not None and wanted.as_int():
        named = ir.DataType(wanted.as_int())
    name = "UINT8" if named is None else named.name
    if name not in LIMITS:
        raise ModelError(f"codes of type {name} are not differentiated")
    return LIMITS[name]


def _refuse_types(node: ir.Node) -> None:
    for value in (*node.inputs, *node.outputs):
        if value is not None and value.dtype is not None and value.dtype.name in _NOT_IN_TORCH:
            raise ModelError(f"{value.name!r} is of type {value.dtype.name}, which PyTorch does not compute with")


def _gives_ints(node: ir.Node) -> bool:
    if node.op_type == "Cast":
        return node.attributes.get_int("to") in (ir.DataType.INT64, ir.DataType.INT32)
    return True


def _lengths_of(value: ir.Value) -> host.Host | None:
    """A constant as lengths: whole numbers of at most one axis."""
    tensor = value.const_value
    if tensor is None or tensor.dtype not in (ir.DataType.INT64, ir.DataType.INT32):
        return None
    if len(tensor.shape) > 1 or tensor.size > host.LIMIT:
        return None
    array = tensor.numpy()
    return int(array) if array.ndim == 0 else tuple(map(int, array))


def attributes_of(node: ir.Node) -> dict[str, Any]:
    """A node's attributes as plain values."""
    return {name: _plain(attribute) for name, attribute in node.attributes.items()}


def _plain(attribute: ir.Attr) -> Any:
    value = attribute.value
    return list(value) if isinstance(value, tuple) else value


def _identifier(name: str) -> str:
    text = "".join(letter if letter.isalnum() and letter.isascii() else "_" for letter in name)
    return text if text.isidentifier() else f"input_{text}"


_OF_TENSORS: Final = inspect.Signature(
    [inspect.Parameter("operands", inspect.Parameter.VAR_POSITIONAL, annotation="Tensor")], return_annotation="Tensor"
)  # what torch's own functions are taken for: they tell no signature


@cache
def _signature(function: Callable[..., Any]) -> inspect.Signature:
    return _OF_TENSORS if inspect.isbuiltin(function) else inspect.signature(function)


@cache
def _kinds(function: Callable[..., Any]) -> tuple[str, ...]:
    """What each positional parameter is annotated with, in words."""
    positional = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    return tuple(
        str(parameter.annotation).removesuffix(" | None")
        for parameter in _signature(function).parameters.values()
        if parameter.kind in positional
    )


def _is_variadic(function: Callable[..., Any]) -> bool:
    return any(parameter.kind is parameter.VAR_POSITIONAL for parameter in _signature(function).parameters.values())


@cache
def _returns_tuple(function: Callable[..., Any]) -> bool:
    return str(_signature(function).return_annotation).startswith("tuple[")
