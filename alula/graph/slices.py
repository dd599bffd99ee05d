"""Parts of one graph, put into another: what leads to a tensor is copied, a whole graph is moved in."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import onnx_ir as ir

from alula.graph.editing import Editor
from alula.graph.model import Model


@dataclass(frozen=True, slots=True)
class Slice:
    """What leads to a tensor from others: the nodes in the order of the graph, and the tensors where it begins."""

    end: ir.Value
    nodes: tuple[ir.Node, ...]
    begins: tuple[ir.Value, ...]

    @property
    def moving(self) -> tuple[ir.Node, ...]:
        """The nodes that depend on where the slice begins; the others compute constants."""
        reached, nodes = set(self.begins), []
        for node in self.nodes:
            if any(value in reached for value in node.inputs if value is not None):
                reached.update(node.outputs)
                nodes.append(node)
        return tuple(nodes)

    @property
    def closed(self) -> bool:
        """Whether no node has a body of its own, which might read more."""
        return not any(attribute.type in _BODIES for node in self.nodes for attribute in node.attributes.values())


def slice_back(graph: ir.Graph, end: ir.Value, stops: Collection[str]) -> Slice:
    """What computes a tensor, back to the graph's inputs and to the tensors named in ``stops``, but for itself."""
    needed: set[ir.Node] = set()
    begins: dict[ir.Value, None] = {}
    waiting = [node] if (node := end.producer()) is not None else []
    while waiting:
        node = waiting.pop()
        if node in needed:
            continue
        needed.add(node)
        for value in node.inputs:
            if value is None or value.is_initializer():
                continue
            producer = value.producer()
            if producer is None or value.name in stops:
                begins[value] = None
            else:
                waiting.append(producer)
    return Slice(end, tuple(node for node in graph if node in needed), tuple(begins))


class Copier:
    """Copies nodes of one graph into another that is being edited; initializers are shared, and come once.

    New nodes stand at the end: sort the graph when all is there.
    """

    def __init__(self, editor: Editor, prefix: str) -> None:
        self._editor, self._prefix = editor, prefix
        self._constants: dict[ir.Value, ir.Value] = {}

    def copy(self, nodes: Iterable[ir.Node], known: Mapping[ir.Value, ir.Value]) -> dict[ir.Value, ir.Value]:
        """Copy nodes, in their order; ``known`` says what stands for tensors. What stands for all of them then."""
        found = dict(known)
        for node in nodes:
            inputs = [None if value is None else self._input(value, found) for value in node.inputs]
            outputs = [ir.Value(name=self._name(value.name), type=value.type, shape=value.shape) if value.name else
                       ir.Value(name="") for value in node.outputs]  # fmt: skip
            copied = ir.Node(
                node.domain, node.op_type, inputs, list(node.attributes.values()), outputs=outputs,
                name=self._name(node.name),
            )  # fmt: skip
            self._editor.graph.append(copied)
            found.update(zip(node.outputs, outputs, strict=True))
        return found

    def constant(self, value: ir.Value) -> ir.Value:
        """An initializer of the one graph in the other."""
        if value not in self._constants:
            copied = ir.Value(
                name=self._name(value.name), type=value.type, shape=value.shape, const_value=value.const_value
            )
            self._editor.graph.register_initializer(copied)
            self._constants[value] = copied
        return self._constants[value]

    def _input(self, value: ir.Value, found: Mapping[ir.Value, ir.Value]) -> ir.Value:
        return found[value] if value in found else self.constant(value)

    def _name(self, name: str | None) -> str:
        return self._editor.claim(f"{self._prefix}{name}")


def move_in(editor: Editor, model: Model, prefix: str) -> dict[str, ir.Value]:
    """Put a whole graph into another that is being edited; both read the same inputs. Its tensors, by their names."""
    other = model.edit()
    found: dict[str, ir.Value] = {}
    for value in list(other.graph.inputs):
        found[str(value.name)] = editor.value(str(value.name))
        value.replace_all_uses_with(found[str(value.name)])
    other.graph.outputs.clear()
    for name, value in list(other.graph.initializers.items()):
        del other.graph.initializers[name]
        value.name = editor.claim(f"{prefix}{name}")
        editor.graph.register_initializer(value)
        found[name] = value
    for node in list(other.graph):
        other.graph.remove(node)
        node.name = editor.claim(f"{prefix}{node.name}")
        for value in node.outputs:
            if value.name:
                found[value.name] = value
                value.name = editor.claim(f"{prefix}{value.name}")
        editor.graph.append(node)
    editor.model.opset_imports.update(other.opset_imports)
    return found


_BODIES = frozenset({ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS})
