"""What a comparison says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from benchmarks.peers.rendering import render
from benchmarks.peers.scoring import cosine_of, mean_with_interval
from benchmarks.peers.verdicts import Speed, compare_with, fastest_within, most_accurate, our_choice, peers_of


def result(name: str, maker: str, **changes: Any) -> dict[str, Any]:
    """A result of score 0.9, drop 0.01, and 10 ms, twice as fast as the original, at both numbers of threads."""
    made: dict[str, Any] = {
        "name": name, "maker": maker, "score": 0.9, "drop": (0.01, 0.0, 0.02), "cosine": 0.99, "size_bytes": 10**6,
        "runs_per_example": 1,
        "below_ours": (0.0, -0.01, 0.01), "ms": 10.0, "ratio": (2.0, 1.9, 2.1),
    }  # fmt: skip
    made |= changes
    value, low, high = made.pop("ratio")
    times = {
        "latency_p50_ms": {"value": made.pop("ms")},
        "latency_ratio": {"value": value, "low": low, "high": high},
    }
    return made | {"threads": {"1": times, "2": times}}


FLOAT = result("float", "float", ms=20.0, ratio=(1.0, 1.0, 1.0), drop=(0.0, 0.0, 0.0))
OURS = result("alula: ours", "alula", chosen=True)
FAILED = {"name": "broken", "maker": "nncf", "failure": "it broke"}


def test_our_choice_is_the_chosen_one() -> None:
    other = result("alula, not chosen", "alula")
    assert our_choice([FLOAT, other, OURS]) is OURS
    assert our_choice([FLOAT, other]) is None
    assert our_choice([FLOAT, {**FAILED, "chosen": True}]) is None


def test_peers_are_neither_float_nor_ours_nor_failed() -> None:
    peer = result("peer", "nncf")
    assert peers_of([FLOAT, OURS, FAILED, peer]) == [peer]


def test_fastest_within_the_drop_leaves_out_what_loses_more() -> None:
    fast_and_bad = result("bad", "nncf", ms=1.0, drop=(0.0101, 0.0, 0.1))
    slow, quick = result("slow", "nncf", ms=12.0), result("quick", "nncf", ms=8.0)
    assert fastest_within([FLOAT, OURS, fast_and_bad, slow, quick], 0.01) is quick
    assert fastest_within([FLOAT, OURS, fast_and_bad], 0.01) is None


def test_most_accurate_leaves_out_what_is_slower_than_the_original() -> None:
    exact_and_slow = result("exact", "onnxruntime", score=0.99, ratio=(0.3, 0.2, 0.4))
    good, same = result("good", "nncf", score=0.95, ms=9.0), result("same", "nncf", score=0.95, ms=8.0)
    assert most_accurate([FLOAT, exact_and_slow, good, same]) is same
    assert most_accurate([FLOAT, exact_and_slow]) is None


@pytest.mark.parametrize(
    ("below_ours", "word"),
    [((0.02, 0.01, 0.03), "ahead"), ((0.0, -0.01, 0.01), "level"), ((-0.02, -0.03, -0.01), "behind")],
)
def test_accuracy_goes_by_the_paired_interval(below_ours: tuple[float, float, float], word: str) -> None:
    assert compare_with(OURS, result("peer", "nncf", below_ours=below_ours)).accuracy == word


@pytest.mark.parametrize(
    ("ms", "ratio", "word"),
    [
        (8.0, (2.5, 2.4, 2.6), "behind"),  # theirs takes 8 ms of our 10
        (12.5, (1.6, 1.5, 1.7), "ahead"),
        (8.0, (2.5, 2.05, 2.9), "level"),  # its interval touches ours, 1.9 to 2.1
        (9.9, (2.12, 2.11, 2.13), "level"),  # sure, and a trifle
    ],
)
def test_speed_goes_by_intervals_and_size(ms: float, ratio: tuple[float, float, float], word: str) -> None:
    comparison = compare_with(OURS, result("peer", "nncf", ms=ms, ratio=ratio))
    assert [speed.word for speed in comparison.speeds.values()] == [word, word]
    assert comparison.speeds["1"].ratio == pytest.approx(ms / 10)
    assert comparison.holds == (word != "behind")


def test_behind_in_accuracy_alone_does_not_hold() -> None:
    assert not compare_with(OURS, result("peer", "nncf", below_ours=(-0.02, -0.03, -0.01))).holds


def test_speed_word_at_the_limit() -> None:
    assert Speed(1.019, sure=True).word == "level"
    assert Speed(1.021, sure=True).word == "ahead"


def test_mean_with_interval_is_the_textbook_one() -> None:
    differences = np.array([0.0, 1.0, 0.0, 1.0])
    mean, low, high = mean_with_interval(differences)
    error = np.sqrt(((differences - 0.5) ** 2).sum() / 3 / 4)
    assert (mean, low, high) == pytest.approx((0.5, 0.5 - 1.96 * error, 0.5 + 1.96 * error))
    assert mean_with_interval(np.array([0.25])) == (0.25, 0.25, 0.25)


def test_cosine_of_vectors() -> None:
    vector = np.array([1.0, -2.0, 3.0])
    assert cosine_of(vector, 5 * vector) == pytest.approx(1.0)
    assert cosine_of(vector, -vector) == pytest.approx(-1.0)
    assert cosine_of(vector, np.zeros(3)) == 0.0


def page(*contenders: dict[str, Any]) -> str:
    row = {
        "title": "A network", "largest_drop": 0.01, "contenders": list(contenders), "target": {"runtime": "R 1"},
        "calibration_examples": 5, "versions": {"numpy": "2"}, "commit": "abc",
        "machine": {"processor": "P", "cores": "2", "features": "none"},
    }  # fmt: skip
    return render({"rows": {"net on onnxruntime": row}})


def test_page_names_everything() -> None:
    text = page(FLOAT, OURS, result("a peer", "nncf", tool_versions={"nncf": "3.4.0"}), FAILED)
    for words in ("## A network: onnxruntime", "**alula: ours**", "| a peer |", "broken gave nothing: it broke"):
        assert words in text
    assert "nncf 3.4.0" in text
    assert "| net | onnxruntime | ours | 2.00x | yes: score level, speed level and level |" in text


def test_a_note_is_said_once_for_all_that_it_is_about() -> None:
    text = page(FLOAT, OURS, *(result(name, "nncf", notes=["odd"]) for name in ("one", "two")))
    assert "- one; two: odd\n" in text


def test_page_without_a_choice_says_so() -> None:
    assert "alula chose nothing" in page(FLOAT, result("a peer", "nncf"))


def test_tables_have_as_many_cells_as_columns() -> None:
    lines = [line for line in page(FLOAT, OURS, result("a peer", "nncf")).splitlines() if line.startswith("|")]
    assert {line.count("|") for line in lines} == {7, 11}
