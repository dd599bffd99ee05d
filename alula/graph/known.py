"""What a graph computes from constants alone: what a runtime computes once, when it loads the file."""

from __future__ import annotations

import onnx_ir as ir


def computed_from_constants(graph: ir.Graph) -> frozenset[ir.Node]:
    """The nodes of the main graph that read nothing but initializers and what such nodes give."""
    found: set[ir.Node] = set()
    for node in graph:
        read = [value for value in node.inputs if value is not None]
        if read and all(value.is_initializer() or value.producer() in found for value in read):
            found.add(node)
    return frozenset(found)


def filling_in_zeros(graph: ir.Graph) -> frozenset[ir.Node]:
    """Those of them that give weights that ``StoreSparse`` stored: folding them would undo it.

    They are known by the triangle of ones that they sum with: what is computed with it, and what that reads.
    """
    constant = computed_from_constants(graph)
    found: set[ir.Node] = set()
    for node in graph:
        if node in constant and (node.op_type == "Trilu" or any(producer_of(value) in found for value in node.inputs)):
            found.add(node)
    for node in reversed(graph):
        if node in constant and any(use.node in found for value in node.outputs for use in value.uses()):
            found.add(node)
    return frozenset(found)


def producer_of(value: ir.Value | None) -> ir.Node | None:
    """The node that computes a tensor; None for inputs, initializers, and where there is no tensor."""
    return None if value is None else value.producer()
