"""What the spam filter's pruning is prepared with, and its page."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from alula.graph.model import Model
from alula.testing.models import model_from_text
from benchmarks.minilm_pruning import DROPPED, file_name, lost, makers, read_rows, render, right_of, t_interval
from benchmarks.networks.spam import (
    LAYERS,
    MASK,
    MessageBatches,
    last_before_next,
    layer_outputs,
    mean_length,
    padded,
    pairs_of,
    spread_by_length,
)


def message(length: int, label: int = 0, first: int = 2000) -> tuple[dict[str, np.ndarray], int]:
    ids = np.array([[101, *range(first, first + length - 2), 102]], np.int64)
    return {"input_ids": ids, "attention_mask": np.ones_like(ids)}, label


MESSAGES = [message(3 + index, index % 2, 2000 + 100 * index) for index in range(23)]


def walk(batches: MessageBatches, seed: int = 0) -> list[dict[str, torch.Tensor]]:
    torch.manual_seed(seed)
    return list(batches)


def test_padding_is_masked_and_nothing_else_is() -> None:
    batch = padded([message(3, 1), message(5)])
    assert batch["input_ids"].tolist() == [[101, 2000, 102, 0, 0], [101, 2000, 2001, 2002, 102]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]
    assert batch["labels"].tolist() == [1, 0]


def test_batches_hold_messages_of_about_equal_length_with_their_labels() -> None:
    batches = MessageBatches(MESSAGES, 4)
    found = walk(batches)
    assert len(batches) == len(found) == 5
    firsts = []
    for batch in found:
        lengths = batch["attention_mask"].sum(1)
        assert int(lengths.max() - lengths.min()) <= 3 + 0.2 * int(lengths.max())
        for ids, label in zip(batch["input_ids"], batch["labels"], strict=True):
            index = (int(ids[1]) - 2000) // 100
            firsts.append(index)
            assert int(label) == index % 2
            assert int((ids != 0).sum()) == 3 + index
    assert len(set(firsts)) == 20  # none twice
    assert {index % 2 for index in firsts} == {0, 1}


def test_batches_follow_the_seed_and_differ_from_walk_to_walk() -> None:
    batches = MessageBatches(MESSAGES, 4, dropout=0.3)
    same, again, other = walk(batches), walk(batches), walk(batches, seed=1)
    assert all(torch.equal(a["input_ids"], b["input_ids"]) for a, b in zip(same, again, strict=True))
    shapes = [[tuple(batch["input_ids"].shape) for batch in found] for found in (same, other)]
    assert shapes[0] != shapes[1] or any(
        not torch.equal(a["input_ids"], b["input_ids"]) for a, b in zip(same, other, strict=True)
    )


def test_words_alone_are_masked_at_the_rate_asked_for() -> None:
    long = [message(400, first=2000) for _ in range(64)]
    ids = torch.cat([batch["input_ids"] for batch in walk(MessageBatches(long, 8, dropout=0.2))])
    assert (ids[:, 0] == 101).all()
    assert (ids[:, -1] == 102).all()
    shares = (ids == MASK).double().mean(1)
    assert shares.mean().item() == pytest.approx(0.2, abs=0.04)
    assert shares.max() <= 0.45
    assert shares.std() > 0.05  # drawn for each message
    untouched = torch.cat([batch["input_ids"] for batch in walk(MessageBatches(long, 8))])
    assert not (untouched == MASK).any()


def test_messages_spread_over_all_lengths() -> None:
    found = [feeds["input_ids"].size for feeds, _ in spread_by_length(MESSAGES[::-1], 4)]
    assert found == [5, 11, 17, 23]
    assert mean_length(MESSAGES) == 14


def test_a_layer_stands_for_those_dropped_behind_it() -> None:
    assert last_before_next([0, 3, 5]) == {0: 2, 3: 4, 5: 5}
    assert last_before_next(list(range(LAYERS))) == {number: number for number in range(LAYERS)}
    assert last_before_next([1]) == {1: 5}


def encoder(kept: list[int]) -> Model:
    """The normalisations at the ends of some layers, and nothing else."""
    lines, weights, x = [], {}, "x"
    for number in kept:
        name = f"encoder.encoder.layer.{number}.output.LayerNorm.weight"
        lines.append(f't{number} = LayerNormalization ({x}, "{name}")')
        weights[name], x = np.ones(4, np.float32), f"t{number}"
    body = "\n".join(lines)
    return model_from_text(f"net (float[n, 4] x) => (float[n, 4] t{kept[-1]}) {{ {body} }}", weights)


def test_pairs_of_layers() -> None:
    student, teacher = encoder([0, 3, 5]), encoder(list(range(LAYERS)))
    assert layer_outputs(teacher) == {number: f"t{number}" for number in range(LAYERS)}
    assert pairs_of(student, teacher) == (("t0", "t2"), ("t3", "t4"), ("t5", "t5"))


def test_right_of() -> None:
    assert right_of([0, 2], 4).tolist() == [0, 1, 0, 1]
    assert right_of([], 2).tolist() == [1, 1]
    assert file_name("distilled, seed 0") == "distilled-seed-0"


def row(macs: float, drop: float | None) -> dict[str, Any]:
    found: dict[str, Any] = {"macs": macs, "bytes": 2e6, "selection": 0.975, "held_out": 0.98, "commit": "abc"}
    if drop is not None:
        found |= {"ratio": 4.0, "drop": {"value": drop, "low": drop - 0.01, "high": drop + 0.01}}
    return found


ROWS = {
    "original": row(8e6, None),
    "distilled, seed 0": row(2e6, 0.002),
    "distilled, seed 1": row(2e6, 0.004),
    "time, 1 threads": {
        "milliseconds": {"original": 4.0, "distilled, seed 0": 1.0},
        "times as fast": {"distilled, seed 0": {"value": 4.0, "low": 3.9, "high": 4.1}},
        "commit": "abc",
    },
}


def test_page() -> None:
    text = render({
        "rows": ROWS, "messages": {"training": 1000, "selection": 20, "held_out": 30}, "tokens": 24, "timed": 16,
        "epochs": 2.0, "machine": {"processor": "P"}, "versions": {"numpy": "2"},
    })  # fmt: skip
    assert "| original | 8.0 |  | 2.0 | 98.00% |  | 97.50% |" in text
    assert "| distilled, seed 0 | 2.0 | 4.00 | 2.0 | 98.00% | 0.20 (-0.80 to 1.20) | 97.50% |" in text
    assert "Distilled: 0.30 ± 1.27 points lost (95 % t-interval over 2 seeds, on these messages), at most 0.40." in text
    assert "Labels alone" not in text
    assert "| distilled, seed 0 | 1 | 1.00 | 4.00 (3.90 to 4.10) |" in text
    assert text.count("commit abc.") == 1
    assert lost(ROWS["original"]) == ""


def test_rows_that_are_there_are_kept_unless_asked(tmp_path: Any) -> None:
    assert read_rows(tmp_path, again=None) == {}
    (tmp_path / "minilm_pruning.json").write_text('{"rows": {"original": {"macs": 1}, "time, 1 threads": {}}}')
    assert set(read_rows(tmp_path, again=None)) == {"original", "time, 1 threads"}
    assert read_rows(tmp_path, again="time") == {"original": {"macs": 1}}
    assert read_rows(tmp_path, again="") == {}


def test_t_interval() -> None:
    assert t_interval([1.0, 2.0, 3.0]) == pytest.approx(4.303 / np.sqrt(3), rel=1e-3)


def test_the_original_comes_first_and_times_after_what_they_time() -> None:
    names = list(makers(None, [3, 4]))  # type: ignore[arg-type]  # nothing is made yet
    assert names[0] == "original"
    assert names.index("time, 1 threads") > names.index("distilled, seed 3")
    assert len(set(names)) == len(names) == 10
    assert set(DROPPED) < set(range(LAYERS))
