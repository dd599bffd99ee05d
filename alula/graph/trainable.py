"""The lift: a graph as a differentiable module, and its trained weights back in the graph.

The module is generated: straight-line Python over torch's own operators (a ``torch.fx.GraphModule``), which compiles,
replicates and pickles as any module does. Its parameters carry the names of the graph's initializers.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import torch
from torch import Tensor, nn

from alula.errors import ModelError, at
from alula.graph.editing import Editor
from alula.graph.export import as_model
from alula.graph.lifting import CODES, MODEL, NAMES, Lift, LiftedGraph, attributes_of, is_bias, to_torch
from alula.graph.model import Model
from alula.graph.ops.quantization import code_limits, quantize
from alula.numerics.grids import bias_scale


def trainable(model: Model | str | Path | onnx.ModelProto, also: Sequence[str] = ()) -> LiftedGraph:
    """The graph as a module: inputs in the graph's order to its output, or the tuple of its outputs.

    Floating-point initializers of more than one element are parameters, running statistics of batch normalisations
    are buffers; ``module.initializer_names`` tells which initializer each came from, where a name could not be kept.
    In ``train()`` batch normalisations use and update batch statistics; in ``eval()`` the module computes what the
    graph computes. Weights held as int8 or int4 codes are float parameters behind fake quantization. Scales of
    quantized tensors are parameters too, listed in ``module.scales``; their gradient is that of learned step sizes
    (Esser et al. 2020, "Learned step size quantization", equation 3).

    Args:
        model: the graph, or the path of its file, or an ONNX message.
        also: names of tensors inside the graph that the module gives after the outputs.

    Raises:
        ModelError: an operator, or an attribute of it, has no gradient here (named, with its node), or nothing
            computes a tensor of ``also``.
    """
    return Lift(as_model(model), tuple(also)).module()


def restored(module: nn.Module) -> Model:
    """The graph that a module was lifted from, with the weights and running statistics that it has now.

    Initializers that did not change are shared with that graph. Wrapped modules (compiled, replicated) work too.

    Raises:
        ModelError: the module was not lifted from a graph, or a weight is not finite (named).
    """
    lifted = _lifted(module)
    model: Model = lifted.meta[MODEL]
    state = {key: value.detach().cpu() for key, value in lifted.state_dict().items()}  # wrappers share these tensors
    editor = Editor(model.edit())
    for path, name in lifted.meta[NAMES].items():
        with at(name):
            _write(editor, name, _to_numpy(state[path]))
    if lifted.scales:
        _tie_biases(editor, Editor(model.edit()))
    for path, name in lifted.meta[CODES].items():
        with at(path):
            _write_codes(editor, editor.node(name), state[path])
    return model.edited(editor.model)


def _lifted(module: nn.Module) -> LiftedGraph:
    """The lifted module inside of what may have been wrapped around it."""
    parts = module.modules() if isinstance(module, nn.Module) else ()
    found = next((part for part in parts if isinstance(part, LiftedGraph)), None)
    if found is None:
        raise ModelError(f"{type(module).__name__} was not lifted from a graph; use trainable(model)")
    return found


def _write(editor: Editor, name: str, after: np.ndarray) -> None:
    """Write an array into the initializer it came from, if it changed."""
    before = editor.array(name)
    after = after.astype(before.dtype)
    if before.shape != after.shape:
        raise ModelError(f"has shape {list(after.shape)} in the module, {list(before.shape)} in the graph")
    if not np.isfinite(after.astype(np.float32)).all():
        raise ModelError("holds NaN or infinity after training; lower the learning rate")
    if before.tobytes() != after.tobytes():
        editor.replace_constant(name, after)


def _write_codes(editor: Editor, node: ir.Node, weight: Tensor) -> None:
    """Quantize a trained weight into the codes that a DequantizeLinear reads."""
    codes, *grid = (value for value in node.inputs if value is not None)
    assert codes.dtype is not None
    values = [to_torch(editor.array(str(value.name))) for value in grid]
    attributes = attributes_of(node)
    if not torch.isfinite(weight).all():
        raise ModelError("holds NaN or infinity after training; lower the learning rate")
    limits = code_limits(to_torch(editor.array(str(codes.name))), codes.dtype.name)
    made = quantize(weight, *values, **attributes, limits=limits)
    _write(editor, str(codes.name), made.numpy())


def _tie_biases(editor: Editor, old: Editor) -> None:
    """Let the scale of a bias of codes be the product of those of input and weight again: kernels take it for that."""
    for node in editor.graph:
        names = _scale_names(node)
        if names is None:
            continue
        *factors, bias = names
        if np.array_equal(old.array(bias), bias_scale(*map(old.array, factors))):
            _write(editor, bias, bias_scale(*map(editor.array, factors)))


def _scale_names(node: ir.Node) -> tuple[str, str, str] | None:
    """The scales of input, weight and bias of a node that reads codes of all three, or None."""
    sources = [None if value is None else value.producer() for value in node.inputs]
    made = [source for source in sources if source is not None and source.op_type == "DequantizeLinear"]
    scales = [source.inputs[1] for source in made]
    if len(sources) != 3 or len(made) != 3 or not is_bias(made[2]):
        return None
    if any(scale is None or not scale.is_initializer() for scale in scales):
        return None
    first, second, third = (str(scale.name) for scale in scales)  # type: ignore[union-attr]
    return first, second, third


def _to_numpy(tensor: Tensor) -> np.ndarray:
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).contiguous().numpy()
