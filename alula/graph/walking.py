"""Going through a graph tensor by tensor, over all calibration data at once, while its layers are replaced.

Each node runs once on each feed. What is needed further on is kept, and nothing else: at most the activations of all
feeds that are alive between two tensors.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from alula.errors import DataError, ModelError
from alula.graph.coded import coded
from alula.graph.cutting import copy_out
from alula.graph.editing import Editor
from alula.graph.model import Model
from alula.graph.running import Runner
from alula.graph.slices import slice_back

if TYPE_CHECKING:
    import onnx_ir as ir

    from alula.graph.feeds import Feeds
    from alula.graph.layers import Layer


class Walk:
    """What a graph computes over some feeds, as far as it was gone through.

    Raises:
        ModelError: the graph has bodies of If, Loop or Scan, which may read anything (the node is named).
    """

    def __init__(self, model: Model, feeds: Sequence[Feeds]) -> None:
        for node in model.graph:
            if has_body(node):
                raise ModelError(f"{node.op_type} {node.name!r} has a body, which may read anything; the graph is gone "
                                 "through as a whole only: do without sequential=True")  # fmt: skip
        self.go_on(model)
        self._held = [dict(feed) for feed in feeds]
        self._known = {spec.name for spec in model.inputs}
        self._done: set[str] = set()
        self._waiting: list[Model] = []

    def go_on(self, model: Model) -> None:
        """Take another graph from here on, which differs in weights alone, and in none of a node that has run."""
        self._model = model
        self._nodes = {str(node.name): node for node in model.graph}
        self._values = {str(value.name): value for node in model.graph for value in node.outputs}

    def has_run(self, layers: Collection[str]) -> bool:
        """Whether any of some layers, by their names, has run or was replaced."""
        return not self._done.isdisjoint(layers)

    def piece(self, layers: Sequence[Layer]) -> Model:
        """Some layers alone, as a graph of what they read and give; none reads what another gives."""
        nodes = [self._nodes[layer.name] for layer in layers]
        read = {value: None for node in nodes for value in node.inputs
                if value is not None and not value.is_initializer()}  # fmt: skip
        return copy_out(self._model, nodes, read, [value for node in nodes for value in node.outputs if value.name])

    def replace(self, layers: Sequence[Layer], piece: Model) -> None:
        """Let another graph stand for some layers, from here on."""
        self._waiting.append(_decoded(piece))
        self._done |= {layer.name for layer in layers}
        self._known |= {spec.name for spec in piece.outputs}

    def reach(self, tensor: str, later: Collection[str] = ()) -> Iterator[np.ndarray]:
        """A tensor for one feed after another, computed by what stands in the graph now.

        Args:
            tensor: its name.
            later: names of tensors that will be asked for, and so are held when they are met on the way.

        Raises:
            DataError: it holds NaN or infinity on these data.
        """
        if tensor in self._held[0] and not self._waiting:
            yield from (held[tensor] for held in self._held)
            return
        parts = [*self._waiting, *self._segment({tensor, *later}, tensor)]
        self._waiting = []
        needed = {str(value.name) for node in self._model.graph if node.name not in self._done for value in node.inputs
                  if value is not None} | {tensor, *later}  # fmt: skip
        runners = [(part, Runner(part, optimise=False, spin=False)) for part in parts]
        for held in self._held:
            for part, run in runners:
                held.update(run({spec.name: held[spec.name] for spec in part.inputs}))
            for name in held.keys() - needed:
                del held[name]
            if not np.isfinite(held[tensor]).all():
                raise DataError(f"the graph gives NaN or infinity at {tensor!r} on these data; remove such rows")
            yield held[tensor]

    def _segment(self, kept: Collection[str], tensor: str) -> list[Model]:
        """What leads from all that is known to a tensor; nothing where it is known itself."""
        if tensor in self._known:
            return []
        part = slice_back(self._model.graph, self._values[tensor], self._known)
        self._done |= {str(node.name) for node in part.nodes}
        made = [value for node in part.nodes for value in node.outputs if value.name]
        outputs = [value for value in made if value.name in kept or self._is_read(value)]
        self._known |= {str(value.name) for value in outputs}
        return [copy_out(self._model, part.nodes, part.begins, outputs)]

    def _is_read(self, value: ir.Value) -> bool:
        """Whether what has not been computed yet reads a tensor."""
        return any(use.node.name not in self._done for use in value.uses())


def has_body(node: ir.Node) -> bool:
    """Whether a node holds a graph of its own: If, Loop, Scan."""
    return any(attribute.type.name.startswith("GRAPH") for attribute in node.attributes.values())


def _decoded(piece: Model) -> Model:
    """A piece with the numbers that its codes stand for as weights: a runtime would decode them at each run."""
    editor = Editor(piece.edit())
    for node in list(editor.graph):
        held = coded(node.outputs[0])
        if held is not None:
            number = editor.constant(f"{node.outputs[0].name}.decoded", held.values(editor))
            node.outputs[0].replace_all_uses_with(number)
            editor.remove(node)
    return Model(editor.model)
