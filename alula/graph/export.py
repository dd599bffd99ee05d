"""The door for PyTorch modules: exported once, compared with the module, and from then on a graph like any other."""

from __future__ import annotations

import contextlib
import inspect
import io
import logging
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_ir as ir

from alula.errors import AlulaError, ModelError, require
from alula.graph.load import load_model, model_from_ir, model_from_proto
from alula.graph.model import Model

if TYPE_CHECKING:
    import torch

OPSET = 21
TOLERANCE = 1e-3  # of the largest output; half precision gets ten times that

_HINT = (
    " repeated to twice the batch (if the batch is fixed pass dynamic_batch=False; if not every input has it in "
    "axis 0, pass dynamic_shapes)"
)

Example = Any  # a tensor, a tuple of tensors for the positional arguments, or a mapping for the named ones


def as_model(thing: Model | str | Path | onnx.ModelProto | torch.nn.Module, example: Example | None = None) -> Model:
    """Whatever stands for a model, as a Model: a Model, the path of an ONNX file, an ONNX message, or a module.

    Args:
        thing: what to take; an ONNX message is copied.
        example: inputs of the module (see :func:`export_module`); only modules need it.

    Raises:
        ModelError: it is none of these, a module came without an example, or its own door refuses it.
    """
    if isinstance(thing, Model):
        return thing
    if isinstance(thing, (str, Path)):
        return load_model(thing)
    if isinstance(thing, onnx.ModelProto):
        copy = onnx.ModelProto()
        copy.CopyFrom(thing)
        return model_from_proto(copy)
    if hasattr(thing, "state_dict") and hasattr(thing, "forward"):
        if example is None:
            raise ModelError(
                "a module needs example inputs to be exported: export_module(module, example) makes a Model of "
                f"{_name(thing)}, or pass example=... where it is taken"
            )
        return export_module(thing, example)
    raise ModelError(
        "a model is an alula Model, the path of an .onnx file, an onnx ModelProto or a torch.nn.Module, "
        f"got {_name(thing)}"
    )


def export_module(
    module: torch.nn.Module,
    example: Example,
    *,
    dynamic_batch: bool = True,
    dynamic_shapes: Any | None = None,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    opset: int = OPSET,
) -> Model:
    """A PyTorch module as a Model whose initializers carry the names of the state dict and share no memory with it.

    The module is exported in eval mode (and put back as it was), the graph tidied, its layers named after their
    submodules, and its outputs on the example compared with the module's own.

    Args:
        module: the module.
        example: a tensor, a tuple of tensors (positional arguments) or a mapping (named arguments).
        dynamic_batch: leave axis 0 free in the inputs where it is as long as that of the first one.
        dynamic_shapes: free axes as ``torch.export`` wants them, instead of ``dynamic_batch``.
        input_names: names of the graph's inputs; by default those of ``forward``'s arguments.
        output_names: names of the graph's outputs.
        opset: version of the ONNX operators.

    Raises:
        ModelError: torch cannot export the module (the message holds the operation and, where known, the line), or
            the graph computes something else than the module.
        AlulaError: torch or onnxscript is not installed.
    """
    torch = require("torch", "compress")
    require("onnxscript", "compress")
    args, kwargs = _arguments(example)
    examples = [(args, kwargs)]
    if dynamic_shapes is None and dynamic_batch and (length := _batch_length(examples[0])) is not None:
        examples.append(_double(examples[0], length))
        args, kwargs = examples[1]  # torch.export takes a batch of one for a constant
        dynamic_shapes = _as_signature(module, _free_batch(args, kwargs, 2 * length))
    with _evaluating(module), _silence(), torch.no_grad():
        expected = [module_outputs(module, *each, hint=hint) for each, hint in zip(examples, ("", _HINT), strict=False)]
        try:
            program = torch.onnx.export(
                module,
                args,
                kwargs=kwargs,
                dynamo=True,
                optimize=False,
                verbose=False,
                opset_version=opset,
                dynamic_shapes=dynamic_shapes,
                input_names=input_names,
            )
        except Exception as error:  # torch raises errors of many kinds, most from deep inside
            line = _line_of_missing(error, module, args, kwargs, dynamic_shapes)
            raise ModelError(f"torch cannot export {_name(module)}: {_reason(error)}{line}") from error
        _name_outputs(program.model.graph, output_names)
        model = _own(program.model, set(module.state_dict()))
    for each, outputs in zip(examples, expected, strict=True):
        _compare(model, each, outputs, _name(module))
    return model


def module_outputs(
    module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], *, hint: str = ""
) -> list[np.ndarray]:
    """What the module itself gives, flat.

    Raises:
        ModelError: the module fails on its example.
    """
    try:
        return [_numpy(tensor) for tensor in _tensors(module(*args, **kwargs))]
    except Exception as error:  # whatever the user's code raises
        raise ModelError(f"{_name(module)} fails on its example{hint}: {type(error).__name__}: {error}") from error


def _arguments(example: Example) -> tuple[tuple[Any, ...], dict[str, Any]]:
    torch = require("torch", "compress")
    if isinstance(example, Mapping):
        return (), {name: _to_tensor(value) for name, value in example.items()}
    if isinstance(example, (torch.Tensor, np.ndarray)):
        return (_to_tensor(example),), {}
    if isinstance(example, (tuple, list)):
        return tuple(_to_tensor(value) for value in example), {}
    raise ModelError(f"an example is a tensor, a tuple of tensors or a mapping by argument name, got {_name(example)}")


def _to_tensor(value: Any) -> Any:
    """The value as a tensor of its own: of one tensor given twice, torch would silently make one input."""
    torch = require("torch", "compress")
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value.copy())
    return value.clone() if isinstance(value, torch.Tensor) else value


def _tensors(tree: Any) -> list[Any]:
    torch = require("torch", "compress")
    leaves, _ = torch.utils._pytree.tree_flatten(tree)  # noqa: SLF001  (what torch.export itself flattens with)
    return [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]


def _map(function: Any, tree: Any) -> Any:
    torch = require("torch", "compress")
    return torch.utils._pytree.tree_map(function, tree)  # noqa: SLF001


def _batch_length(example: Any) -> int | None:
    """Length of axis 0 of the first tensor."""
    tensors = _tensors(example)
    return None if not tensors or tensors[0].ndim == 0 else int(tensors[0].shape[0])


def _is_batched(leaf: Any, length: int) -> bool:
    torch = require("torch", "compress")
    return isinstance(leaf, torch.Tensor) and leaf.ndim > 0 and leaf.shape[0] == length


def _double(example: Any, length: int) -> Any:
    """The example with every batch of this length twice as long."""
    torch = require("torch", "compress")
    return _map(lambda leaf: torch.cat([leaf, leaf]) if _is_batched(leaf, length) else leaf, example)


def _free_batch(args: tuple[Any, ...], kwargs: dict[str, Any], length: int) -> Any:
    """The ``dynamic_shapes`` that leave axis 0 of the inputs of this length free, structured as the arguments are."""
    torch = require("torch", "compress")
    batch = torch.export.Dim("batch")
    return _map(lambda leaf: {0: batch} if _is_batched(leaf, length) else None, kwargs or args)


def _as_signature(module: torch.nn.Module, shapes: Any) -> Any:
    """Shapes of positional arguments, those that ``*args`` takes as a tuple of their own: so torch wants them."""
    kinds = [parameter.kind for parameter in inspect.signature(module.forward).parameters.values()]
    if not isinstance(shapes, tuple) or inspect.Parameter.VAR_POSITIONAL not in kinds:
        return shapes
    named = kinds.index(inspect.Parameter.VAR_POSITIONAL)
    return (*shapes[:named], shapes[named:])


@contextlib.contextmanager
def _evaluating(module: torch.nn.Module) -> Iterator[None]:
    """Eval mode inside; each submodule as it was, after."""
    training = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, was_training in training.items():
            part.training = was_training


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """The exporter's chatter (prints, warnings, log lines) away; what matters comes as an exception."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _line_of_missing(
    error: BaseException, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], shapes: Any
) -> str:
    """Where the module asks for an operation that ONNX has not: torch's errors name the operation, not the line."""
    operation = _missing(_told(error))
    if operation is None:
        return ""
    program = require("torch", "compress").export.export(module, args, kwargs, dynamic_shapes=shapes, strict=False)
    for node in program.run_decompositions().graph.nodes:
        if str(node.target).startswith(operation):
            return _own_line(str(node.meta.get("stack_trace", "")))
    return ""


def _missing(text: str) -> str | None:
    found = re.search(r"No ONNX function found for <OpOverload\(op='([^']+)'", text)
    return None if found is None else found[1]


def _told(error: BaseException) -> str:
    """All that an error and what led to it say."""
    return "\n".join(map(str, _chain(error)))


def _chain(error: BaseException) -> list[BaseException]:
    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in chain:
        chain.append(cause)
        cause = cause.__cause__ or cause.__context__
    return chain


def _own_line(text: str) -> str:
    """The last line of the user's own code in a traceback, in words."""
    lines = re.findall(r'File "([^"]+)", line (\d+), in (\w+)', text)
    own = [line for line in lines if "site-packages" not in line[0] and "/torch/" not in line[0]]
    return f" (at {own[-1][0]}, line {own[-1][1]}, in {own[-1][2]})" if own else ""


def _reason(error: BaseException) -> str:
    """The operation that cannot be exported, torch's own words, and the user's line, as far as torch tells them."""
    text, last = _told(error), _chain(error)[-1]
    operation = _missing(text)
    if operation:
        said = f"ONNX has no operation for {operation}; replace it in the module"
    else:
        said = (str(last).strip() or type(last).__name__).splitlines()[0]
    if "dynamic_shapes" in text or "Constraints violated" in text:
        said += " (does the module fix the batch size? pass dynamic_batch=False, or dynamic_shapes)"
    return said + _own_line(text)


def _name_outputs(graph: ir.Graph, names: Sequence[str] | None) -> None:
    """Name the outputs; a tensor inside that is called so already, as torch calls them after modules, gives way."""
    if names is None:
        return
    if len(names) != len(graph.outputs) or len(set(names)) != len(names):
        raise ModelError(f"output_names must be {len(graph.outputs)} different names, got {list(names)}")
    outputs = dict(zip(graph.outputs, names, strict=True))
    for value in [value for node in graph for value in node.outputs if value.name in names and value not in outputs]:
        value.name = f"{value.name}.inside"
    for value, name in outputs.items():
        value.name = name


def _drop_zero_biases(graph: ir.Graph, known: set[str]) -> None:
    """Take out the zeros that the exporter gives convolutions whose module has no bias."""
    for node in graph:
        bias = node.inputs[2] if node.op_type in ("Conv", "ConvTranspose") and len(node.inputs) > 2 else None
        if bias is None or bias.const_value is None or bias.name in known or bias.const_value.numpy().any():
            continue
        node.resize_inputs(2)
        if not bias.uses() and not bias.is_graph_output():
            del graph.initializers[str(bias.name)]


def _own(graph: ir.Model, known: set[str]) -> Model:
    """The exporter's graph with weights of its own, without its notes on torch, and layers named like submodules."""
    for value in graph.graph.initializers.values():
        if value.const_value is not None:
            value.const_value = ir.tensor(np.array(value.const_value.numpy()), name=value.name)
    graph.metadata_props.clear()
    graph.graph.metadata_props.clear()
    for node in graph.graph.all_nodes():
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
    for value in (*graph.graph.inputs, *graph.graph.initializers.values()):
        value.metadata_props.clear()
    model = model_from_ir(graph)
    renamed = model.edit()
    _drop_zero_biases(renamed.graph, known)
    _name_layers(renamed, model)
    return model.edited(renamed)


def _name_layers(graph: ir.Model, model: Model) -> None:
    """Call a layer by the path of its submodule: the name of its weight without the last part."""
    nodes = {str(node.name): node for node in graph.graph}
    taken = set(nodes)
    for layer in model.layers():
        path, _, _ = layer.weight.partition("+")[0].removesuffix(".folded").rpartition(".")
        if not path:
            continue
        name, number = path, 0
        while name in taken:
            name, number = f"{path}.{number + 1}", number + 1
        nodes[layer.name].name = name
        taken.add(name)


def _compare(
    model: Model, example: tuple[tuple[Any, ...], dict[str, Any]], expected: list[np.ndarray], name: str
) -> None:
    """Raise ModelError unless the graph gives what the module gave."""
    inputs, kwargs = _tensors(example), example[1]
    feeds = {spec.name: _numpy(tensor) for spec, tensor in zip(model.inputs, inputs, strict=False)}
    if set(kwargs) == {spec.name for spec in model.inputs}:
        feeds = {key: _numpy(tensor) for key, tensor in kwargs.items()}
    try:
        outputs = list(model.run(feeds).values())
    except AlulaError as error:
        raise ModelError(f"the graph exported from {name} does not run on the example: {error}") from error
    if len(outputs) != len(expected):
        raise ModelError(f"{name} gives {len(expected)} tensors, the graph exported from it {len(outputs)}")
    for spec, want, have in zip(model.outputs, expected, outputs, strict=True):
        error_ = relative_error(want, have)
        limit = TOLERANCE * (10 if want.dtype.itemsize == 2 else 1)
        if not error_ <= limit:
            raise ModelError(
                f"the graph exported from {name} computes something else than the module: output {spec.name!r} differs "
                f"by {error_:.2g} of its largest value, allowed is {limit:.0e}; is there randomness in forward?"
            )


def relative_error(want: np.ndarray, have: np.ndarray) -> float:
    """The largest difference as a fraction of the largest wanted value; infinite for other shapes or misplaced NaN."""
    if want.shape != have.shape:
        return float("inf")
    if want.size == 0:
        return 0.0
    want, have = want.astype(np.float64), have.astype(np.float64)
    same = (want == have) | (np.isnan(want) & np.isnan(have))
    if same.all():
        return 0.0
    with np.errstate(invalid="ignore"):
        difference = np.abs(want - have)[~same]
    scale = np.abs(want[np.isfinite(want)]).max(initial=0.0)
    return float(difference.max() / scale) if np.isfinite(difference).all() and scale > 0 else float("inf")


def _numpy(tensor: Any) -> np.ndarray:
    """The tensor as numpy sees it (bfloat16 through ml_dtypes)."""
    torch = require("torch", "compress")
    tensor = tensor.detach().cpu().contiguous()
    if tensor.dtype == torch.bfloat16:
        import ml_dtypes

        return np.asarray(tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16))
    return np.asarray(tensor.numpy())


def _name(thing: object) -> str:
    return type(thing).__name__
