"""One form for what can be written in several: the one that runtimes have integer kernels for."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir


def join_pads(graph: ir.Graph) -> None:
    """Give zeros that a Pad puts around an image to the convolutions behind it, which pad by themselves.

    Between quantized tensors a Pad of its own keeps its convolution in float.
    """
    for node in list(graph):
        pads = _spatial_zeros(node)
        readers = [use.node for use in node.outputs[0].uses()] if pads is not None else []
        output = node.outputs[0] if node.outputs else None
        if pads is None or output is None or output.is_graph_output() or not readers:
            continue
        if not all(_takes_pads(reader, output, len(pads)) for reader in readers):
            continue
        for reader in readers:
            own = np.array(reader.attributes.get_ints("pads", [0] * len(pads)))
            reader.attributes["pads"] = ir.AttrInt64s("pads", [int(axis) for axis in own + pads])
            reader.attributes["auto_pad"] = ir.AttrString("auto_pad", "NOTSET")
            reader.replace_input_with(0, node.inputs[0])


def _spatial_zeros(node: ir.Node) -> np.ndarray | None:
    """What a Pad adds before and behind each spatial axis, if it adds zeros there and nothing else; [2 * axes]."""
    mode = node.attributes.get_string("mode", "constant")
    if node.op_type != "Pad" or node.domain != "" or mode != "constant" or len(node.inputs) < 2:
        return None
    amounts, value, axes = (_constant(node, index) for index in (1, 2, 3))
    source = node.inputs[0]
    given = [value_ for value_ in node.inputs[2:] if value_ is not None]
    if amounts is None or source is None or source.shape is None or (amounts < 0).any():
        return None
    if len(given) != sum(array is not None for array in (value, axes)) or (value is not None and value.any()):
        return None
    rank = len(source.shape)
    whole = np.zeros((2, rank), np.int64)
    whole[:, range(rank) if axes is None else axes % rank] = amounts.reshape(2, -1)
    return None if rank < 3 or whole[:, :2].any() else whole[:, 2:].reshape(-1)


def _takes_pads(node: ir.Node, padded: ir.Value, count: int) -> bool:
    """Whether this is a convolution of the padded tensor that says its own padding in numbers."""
    explicit = node.attributes.get_string("auto_pad", "NOTSET") in {"NOTSET", "VALID"}
    image = node.op_type == "Conv" and node.domain == "" and list(node.inputs).index(padded) == 0
    own = node.attributes.get_ints("pads", [0] * count)
    return image and explicit and list(node.inputs).count(padded) == 1 and len(own) == count


def _constant(node: ir.Node, index: int) -> np.ndarray | None:
    value = node.inputs[index] if index < len(node.inputs) else None
    tensor = None if value is None else ir.convenience.get_const_tensor(value)
    return None if tensor is None else tensor.numpy()


def pool_means(graph: ir.Graph) -> None:
    """Call a mean over all spatial axes what it is, GlobalAveragePool: runtimes have integer kernels for that."""
    for node in list(graph):
        if not _is_global_mean(node):
            continue
        source, output = node.inputs[0], node.outputs[0]
        keeps = int(node.attributes.get_int("keepdims", 1)) == 1
        pool = ir.node("GlobalAveragePool", [source], num_outputs=1, name=node.name)
        made = [pool] if keeps else [pool, ir.node("Flatten", pool.outputs, num_outputs=1, name=f"{node.name}.flatten")]
        if not keeps:
            pool.outputs[0].name = f"{output.name}.pooled"
            pool.outputs[0].type = output.type
        ir.convenience.replace_nodes_and_values(graph, node, [node], made, [output], [made[-1].outputs[0]])


def _is_global_mean(node: ir.Node) -> bool:
    source = node.inputs[0] if node.inputs else None
    if node.op_type != "ReduceMean" or node.domain != "" or source is None or source.shape is None:
        return False
    rank = len(source.shape)
    constant = node.inputs[1] if len(node.inputs) > 1 else None
    axes = None if constant is None else ir.convenience.get_const_tensor(constant)
    if rank < 3 or axes is None or source.dtype != ir.DataType.FLOAT:
        return False
    return sorted(int(axis) % rank for axis in axes.numpy().reshape(-1)) == list(range(2, rank))
