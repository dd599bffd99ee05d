"""The spam filter of examples/spam (MiniLM of six layers with a linear head) as something to prune and to train again.

Who sees which messages: the first 1,000 train, those that a search selects by are one half of the others, and the
other half is held out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import torch
from onnx_ir.passes.common import RemoveUnusedNodesPass
from torch import Tensor

from alula.graph.editing import Editor
from alula.graph.model import Model
from alula.graph.shapes import Shape, infer_shapes
from examples.spam.task import TRAINING, Example, read_examples, spam_filter, task

LAYERS = 6
PADDING, MASK = 0, 103  # tokens
FIRST_WORD = 1000  # tokens below are special
SIZES = ((2, 5), (3, 7))  # of inputs, to tell lengths that never change from those that do


@dataclass(frozen=True)
class Messages:
    """Token ids and labels, apart by what they are for."""

    training: Sequence[Example]
    selection: Sequence[Example]
    held_out: Sequence[Example]


def read_messages() -> Messages:
    """All messages; the halves are those that a search of the example's task would take."""
    selection, held_out = task().splits()
    return Messages(read_examples()[:TRAINING], list(selection), list(held_out))


def original(training: Sequence[Example]) -> Model:
    """The filter as the example ships it, with all lengths known that are the same in every run."""
    return with_known_lengths(spam_filter(training))


def with_known_lengths(model: Model) -> Model:
    """The graph with the lengths of all axes written down that do not follow from the inputs: of heads, of features.

    Shape inference loses them behind a reshape whose target is computed, and what has no known length is not pruned.
    """
    runs = [infer_shapes(model, {spec.name: size for spec in model.inputs}) for size in SIZES]
    graph = model.edit()
    for node in graph.graph:
        for value in node.outputs:
            shapes = [run.get(str(value.name)) for run in runs]
            if value.shape is not None and all(shape is not None and len(shape) == len(value.shape) for shape in shapes):
                value.shape = ir.Shape(_known(value.shape, shapes))  # type: ignore[arg-type]
    return model.edited(graph)


def _known(written: ir.Shape, shapes: Sequence[Shape]) -> list[int | ir.SymbolicDim]:
    one, other = shapes
    return [here if here == there else axis for axis, here, there in zip(written, one, other, strict=True)]


def layer_outputs(model: Model) -> dict[int, str]:
    """The tensor that each layer of the encoder gives, by the layer's number in the original; -1: the embeddings."""
    scales = {f"encoder.encoder.layer.{number}.output.LayerNorm.weight": number for number in range(LAYERS)}
    scales["encoder.embeddings.LayerNorm.weight"] = -1
    return {
        scales[str(node.inputs[1].name)]: str(node.outputs[0].name)
        for node in model.graph
        if node.op_type == "LayerNormalization" and node.inputs[1] is not None and node.inputs[1].name in scales
    }


def with_layers(model: Model, kept: Sequence[int]) -> Model:
    """The graph with these layers of the encoder alone: what read another reads what that one read."""
    editor, outputs = Editor(model.edit()), layer_outputs(model)
    before = outputs[-1]
    for number in range(LAYERS):
        if number not in kept:
            editor.value(outputs[number]).replace_all_uses_with(editor.value(before))
        else:
            before = outputs[number]
    RemoveUnusedNodesPass()(editor.model)
    return model.edited(editor.model)


class MessageBatches:
    """Messages in batches of about equal length, drawn anew each time they are walked through.

    Attributes:
        dropout: share of the words that are masked, drawn for each message between 0 and twice this.
    """

    def __init__(self, messages: Sequence[Example], batch_size: int, *, dropout: float = 0.0) -> None:
        self.messages, self.batch_size, self.dropout = messages, batch_size, dropout

    def __len__(self) -> int:
        return len(self.messages) // self.batch_size

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        lengths = torch.tensor([feeds["input_ids"].size for feeds, _ in self.messages])
        order = torch.argsort(lengths * (1 + 0.2 * torch.rand(len(lengths))))  # about equal, never the same company
        order = order[torch.randint(len(order) - len(self) * self.batch_size + 1, ()) :]
        for start in torch.randperm(len(self)).tolist():
            chosen = order[start * self.batch_size : (start + 1) * self.batch_size]
            yield self._batch([self.messages[index] for index in chosen.tolist()])

    def _batch(self, chosen: Sequence[Example]) -> dict[str, Tensor]:
        batch = pad(chosen)
        ids = batch["input_ids"]  # [n, longest]
        share = 2 * self.dropout * torch.rand(len(ids), 1)
        masked = (torch.rand(ids.shape) < share) & (ids >= FIRST_WORD)
        return batch | {"input_ids": torch.where(masked, MASK, ids)}


def pad(messages: Sequence[Example]) -> dict[str, Tensor]:
    """One batch: ids and mask [n, longest], and labels [n]."""
    rows = [torch.from_numpy(feeds["input_ids"][0]) for feeds, _ in messages]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=PADDING)
    lengths = torch.tensor([len(row) for row in rows])
    mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
    return {"input_ids": ids, "attention_mask": mask, "labels": torch.tensor([label for _, label in messages])}


def of_equal_spacing(messages: Sequence[Example], count: int) -> list[Example]:
    """So many messages, evenly spread over all of them in the order of their lengths."""
    ordered = sorted(messages, key=lambda message: message[0]["input_ids"].size)
    places = (np.arange(count) + 0.5) / count * len(ordered)
    return [ordered[int(place)] for place in places]
