"""Residual blocks: what lies between a tensor and the sum in which all that is made of it comes together.

The tensor is made by the immediate dominator of the sum: the last node that all paths from the inputs pass through. So
a block has one way in, and what goes around its layers may be a layer too, where their output has another shape than
their input (He et al. 2016, section 3.3). Unlike those of :mod:`alula.graph.blocks` it need not be one that a graph can
do without.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from alula.graph.blocks import Block
from alula.graph.model import Model
from alula.graph.naming import told_apart

_INPUTS = -1  # the number that stands for all inputs of a graph


def residual_blocks(model: Model) -> tuple[Block, ...]:
    """All residual blocks of two layers and more, in the order of their sums; those that hold others too."""
    nodes = list(model.graph)
    order = [layer.name for layer in model.layers()]
    dominators = _dominators(nodes)
    found = []
    for number, node in enumerate(nodes):
        first = dominators.get(number, _INPUTS)
        if node.op_type not in {"Add", "Sum"} or first == _INPUTS or len(nodes[first].outputs) > 1:
            continue
        inside = {str(nodes[one].name) for one in _between(nodes, first, number)}
        layers = tuple(name for name in order if name in inside)
        if len(_computed(node, dominators, nodes)) > 1 and len(layers) > 1:
            name = f"{layers[0]}..{layers[-1]}"
            found.append(Block(name, str(nodes[first].outputs[0].name), str(node.outputs[0].name), layers))
    return told_apart(found)


def _dominators(nodes: list[ir.Node]) -> dict[int, int]:
    """The immediate dominator of each node that depends on the graph's inputs, by number.

    As the nearest common ancestor of what a node reads in the tree made so far (Cooper, Harvey and Kennedy 2001).
    """
    numbers = {node: number for number, node in enumerate(nodes)}
    found: dict[int, int] = {}
    for number, node in enumerate(nodes):
        for value in node.inputs:
            producer = None if value is None else value.producer()
            if value is None or value.is_initializer() or value.const_value is not None:
                continue
            before = _INPUTS if producer is None else numbers.get(producer, _INPUTS)
            if before == _INPUTS or before in found:  # else it is computed from constants
                found[number] = _common(found, found[number], before) if number in found else before
    return found


def _common(before: dict[int, int], left: int, right: int) -> int:
    """Where the ways back from two nodes meet; numbers fall along them."""
    while left != right:
        if left > right:
            left = before[left]
        else:
            right = before[right]
    return left


def _computed(node: ir.Node, dominators: dict[int, int], nodes: list[ir.Node]) -> set[ir.Value]:
    """What a node reads that depends on the graph's inputs."""
    known = {value for number in dominators for value in nodes[number].outputs}
    return {value for value in node.inputs if value is not None and (value in known or value.is_graph_input())}


def _between(nodes: list[ir.Node], first: int, last: int) -> Iterator[int]:
    """Numbers of the nodes that depend on one and lead to another, which is among them."""
    reached, needed = set(nodes[first].outputs), set(nodes[last].inputs)
    inside = []
    for number in range(first + 1, last + 1):
        if any(value in reached for value in nodes[number].inputs):
            reached.update(nodes[number].outputs)
            inside.append(number)
    for number in reversed(inside):
        if number == last or any(value in needed for value in nodes[number].outputs):
            needed.update(nodes[number].inputs)
            yield number
