"""The spam filter of examples/spam (MiniLM of six layers with a linear head) as something to prune and to train again.

Who sees which messages: the first 1,000 train; of the others, a search selects by one half, and the other is held out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from alula.graph.model import Model
from alula.task import Task
from examples.spam.task import Example

LAYERS = 6
PADDING, MASK = 0, 103  # tokens
FIRST_WORD = 1000  # tokens below are special
SPREAD = 0.2  # how much longer or shorter than it is a message may seem when batches are made


@dataclass(frozen=True)
class Messages:
    """Token ids and labels, apart by what they are for."""

    training: Sequence[Example]
    selection: Sequence[Example]
    held_out: Sequence[Example]

    @classmethod
    def of(cls, task: Task, training: Sequence[Example]) -> Messages:
        """The halves are those that a search of the task takes."""
        selection, held_out = task.splits()
        return cls(training, list(selection), list(held_out))


def layer_block(number: int) -> str:
    """The name of a layer of the encoder among the blocks of the graph."""
    layer = f"encoder.encoder.layer.{number}"
    return f"{layer}.attention.self.query..{layer}.output.dense"


def layer_outputs(model: Model) -> dict[int, str]:
    """The tensor that each layer of the encoder gives, by the layer's number in the original."""
    scales = {f"encoder.encoder.layer.{number}.output.LayerNorm.weight": number for number in range(LAYERS)}
    return {
        scales[str(node.inputs[1].name)]: str(node.outputs[0].name)
        for node in model.graph
        if node.op_type == "LayerNormalization" and node.inputs[1] is not None and node.inputs[1].name in scales
    }


def pairs_of(student: Model, teacher: Model) -> tuple[tuple[str, str], ...]:
    """What each layer of the student is to give: what the teacher's layer gives before the student's next one.

    So a layer does its own work and that of those dropped behind it, and the next one reads what it is used to.
    """
    ours, theirs = layer_outputs(student), layer_outputs(teacher)
    return tuple((ours[kept], theirs[last]) for kept, last in last_before_next(sorted(ours)).items())


def last_before_next(kept: Sequence[int]) -> dict[int, int]:
    """Of each layer that is kept, the last one of those that it stands for.

    >>> last_before_next([0, 3, 5])
    {0: 2, 3: 4, 5: 5}
    """
    following = [*kept[1:], LAYERS]
    return {layer: after - 1 for layer, after in zip(kept, following, strict=True)}


class MessageBatches:
    """Messages in batches of about equal length, drawn anew each time they are walked through.

    Attributes:
        dropout: share of the words that are masked: of each message another one, drawn from 0 to twice this.
    """

    def __init__(self, messages: Sequence[Example], batch_size: int, *, dropout: float = 0.0) -> None:
        self.messages, self.batch_size, self.dropout = messages, batch_size, dropout

    def __len__(self) -> int:
        return len(self.messages) // self.batch_size

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        lengths = torch.tensor([feeds["input_ids"].size for feeds, _ in self.messages])  # [n]
        order = torch.argsort(lengths * (1 + SPREAD * torch.rand(len(lengths))))
        left_over = len(order) - len(self) * self.batch_size
        order = order[int(torch.randint(left_over + 1, ())) :]
        for number in torch.randperm(len(self)).tolist():
            chosen = order[number * self.batch_size : (number + 1) * self.batch_size]
            yield self._masked(padded([self.messages[index] for index in chosen.tolist()]))

    def _masked(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        ids = batch["input_ids"]  # [n, longest]
        share = 2 * self.dropout * torch.rand(len(ids), 1)
        gone = (torch.rand(ids.shape) < share) & (ids >= FIRST_WORD)
        return {**batch, "input_ids": torch.where(gone, MASK, ids)}


def padded(messages: Sequence[Example]) -> dict[str, Tensor]:
    """One batch: ids and attention mask [n, longest], and labels [n]."""
    rows = [torch.from_numpy(feeds["input_ids"][0]) for feeds, _ in messages]
    ids = pad_sequence(rows, batch_first=True, padding_value=PADDING)
    lengths = torch.tensor([len(row) for row in rows])
    return {
        "input_ids": ids,
        "attention_mask": (torch.arange(ids.shape[1]) < lengths[:, None]).long(),
        "labels": torch.tensor([label for _, label in messages]),
    }


def spread_by_length(messages: Sequence[Example], count: int) -> list[Example]:
    """So many messages, evenly spread over all of them in the order of their lengths."""
    ordered = sorted(messages, key=lambda message: message[0]["input_ids"].size)
    places = (np.arange(count) + 0.5) / count * len(ordered)
    return [ordered[int(place)] for place in places]


def mean_length(messages: Sequence[Example]) -> int:
    """The mean number of tokens, as a whole number."""
    return round(float(np.mean([feeds["input_ids"].size for feeds, _ in messages])))
