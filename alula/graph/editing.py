"""Small steps for changing a copy of a graph: new initializers, new nodes in place, other inputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from alula.errors import ModelError


class Editor:
    """A graph being edited: ``Editor(model.edit())``; look things up by name, insert, replace."""

    def __init__(self, model: ir.Model) -> None:
        self.model = model
        self.graph = model.graph
        self._nodes = {str(node.name): node for node in self.graph}
        self._values = {str(value.name): value for value in self.graph.inputs}
        self._values.update({str(value.name): value for value in self.graph.initializers.values()})
        self._values.update({str(value.name): value for node in self.graph for value in node.outputs})
        self._inner = {str(name) for body in self.graph.subgraphs() for name in _names(body)}
        self._claimed: set[str] = set()

    def node(self, name: str) -> ir.Node:
        """The node of this name."""
        return self._nodes[name]

    def value(self, name: str) -> ir.Value:
        """The tensor of this name.

        Raises:
            ModelError: there is none.
        """
        if name not in self._values:
            raise ModelError(f"the graph has no tensor named {name!r}")
        return self._values[name]

    def array(self, name: str) -> np.ndarray:
        """The values of an initializer."""
        tensor = self.graph.initializers[name].const_value
        assert tensor is not None
        return tensor.numpy()

    def fresh(self, name: str) -> str:
        """The name itself, or with a number if it is taken."""
        taken, number = name, 1
        while taken in self._values or taken in self._nodes or taken in self._inner or taken in self._claimed:
            number += 1
            taken = f"{name}_{number}"
        return taken

    def claim(self, name: str) -> str:
        """A free name like this one, which is never given again."""
        self._claimed.add(taken := self.fresh(name))
        return taken

    def constant(self, name: str, array: np.ndarray) -> ir.Value:
        """An initializer of this name and content: the one that is there already, or a new one."""
        known = self.graph.initializers.get(name)
        if known is not None and _holds(known.const_value, array):
            return known
        name = self.fresh(name)
        tensor = ir.tensor(array, name=name)
        value = ir.Value(
            name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(list(array.shape)), const_value=tensor
        )
        self.graph.register_initializer(value)
        self._values[name] = value
        return value

    def replace_constant(self, name: str, array: np.ndarray) -> None:
        """Give an initializer other values, and their shape and type."""
        value = self.graph.initializers[name]
        value.const_value = ir.tensor(array, name=name)
        value.shape = ir.Shape(list(array.shape))
        value.type = ir.TensorType(value.const_value.dtype)  # a clone shares types with its original

    def shared(self, name: str) -> bool:
        """Whether more than one reader, or one and the graph's outputs, depend on a tensor."""
        value = self.value(name)
        return len(value.uses()) > 1 or bool(value.is_graph_output())

    def drop_constant(self, name: str) -> bool:
        """Remove an initializer that nothing uses any more; tells whether it went and its name became free."""
        value = self.graph.initializers[name]
        if value.uses() or value.is_graph_output():
            return False
        del self.graph.initializers[name]
        del self._values[name]
        return True

    def insert(
        self,
        operator: str,
        inputs: Sequence[ir.Value | None],
        output: str,
        *,
        after: ir.Node | None = None,
        before: ir.Node | None = None,
        attributes: Mapping[str, Any] | None = None,
        outputs: int = 1,
    ) -> ir.Node:
        """A new node, after one node, or before one, or (neither given) at the start of the graph."""
        names = [self.fresh(output if index == 0 else f"{output}.{index}") for index in range(outputs)]
        values = [ir.Value(name=name) for name in names]
        node = ir.node(
            operator, list(inputs), attributes or {}, outputs=values, name=self.fresh(f"{output}/{operator}")
        )
        if after is not None:
            self.graph.insert_after(after, node)
        elif before is not None or len(self.graph):
            self.graph.insert_before(before if before is not None else self.graph[0], node)
        else:
            self.graph.append(node)
        self._nodes[str(node.name)] = node
        self._values.update(zip(names, values, strict=True))
        return node

    def append(
        self,
        operator: str,
        inputs: Sequence[ir.Value | None],
        output: str,
        attributes: Mapping[str, Any] | None = None,
    ) -> ir.Value:
        """What a new node at the end of the graph gives; its names are never given again."""
        value = ir.Value(name=self.claim(output))
        name = self.claim(f"{output}/{operator}")
        self.graph.append(ir.node(operator, list(inputs), attributes or {}, outputs=[value], name=name))
        return value

    def rename(self, value: ir.Value, name: str) -> None:
        """Give a tensor another name."""
        del self._values[str(value.name)]
        value.name = self.fresh(name)
        self._values[str(value.name)] = value

    def remove(self, node: ir.Node) -> None:
        """Take out a node whose outputs nothing uses."""
        for value in node.outputs:
            self._values.pop(str(value.name), None)
        self._nodes.pop(str(node.name), None)
        self.graph.remove(node, safe=True)


def _names(body: ir.Graph) -> Iterator[str | None]:
    """Names of tensors and nodes of the body of an If, Loop or Scan: they must not be given again outside."""
    yield from body.initializers
    yield from (value.name for value in body.inputs)
    for node in body:
        yield node.name
        yield from (value.name for value in node.outputs)


def _holds(tensor: ir.TensorProtocol | None, array: np.ndarray) -> bool:
    if tensor is None or tensor.dtype.numpy() != array.dtype or tuple(tensor.shape) != array.shape:
        return False
    return bool(np.array_equal(tensor.numpy(), array))


def like(value: ir.Value, other: ir.Value) -> None:
    """Give a tensor the shape and type of another."""
    value.shape, value.type = other.shape, other.type


def set_input(node: ir.Node, old: ir.Value, new: ir.Value) -> None:
    """Make the node read ``new`` wherever it read ``old``."""
    for index, value in enumerate(node.inputs):
        if value is old:
            node.replace_input_with(index, new)
