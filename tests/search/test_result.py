"""A result survives the file, and a damaged file is named as such, field by field."""

from __future__ import annotations

import json
import runpy
from dataclasses import FrozenInstanceError, replace
from pathlib import Path

import pytest

from alula.errors import StorageError
from alula.search.result import Candidate, Finding, Frontier, LayerRow, read_result, write_result
from alula.search.words import bytes_in_words, speed_change_in_words, state_of, summary_in_html, verdict_in_words

EXAMPLE = runpy.run_path(str(Path(__file__).parents[1] / "report" / "example.py"))


@pytest.fixture
def frontier() -> Frontier:
    return EXAMPLE["example_frontier"]()


@pytest.mark.parametrize("kind", ["example_frontier", "failed_frontier", "hostile_frontier"])
def test_round_trip_through_the_file(kind, tmp_path):
    frontier = EXAMPLE[kind]()
    write_result(frontier, tmp_path)
    assert read_result(tmp_path) == frontier
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]


def test_the_file_is_strict_json_even_with_numbers_that_json_lacks(frontier, tmp_path):
    finding = Finding("model", "a", "collapse", "", {"ratio": float("inf"), "cosine": float("nan")}, "")
    path = write_result(replace(frontier, findings=(finding,)), tmp_path)
    json.loads(path.read_text(), parse_constant=lambda text: pytest.fail(f"{text} is not JSON"))
    values = read_result(tmp_path).findings[0].values
    assert values["ratio"] == float("inf")
    assert values["cosine"] != values["cosine"]


def test_records_are_frozen(frontier):
    with pytest.raises(FrozenInstanceError):
        frontier.chosen = None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data.pop("task"), "task"),
        (lambda data: data.update(surprise=1), "surprise"),
        (lambda data: data.update(seed="7"), r"frontier\.seed must be a whole number, got '7'"),
        (lambda data: data.update(seed=True), r"frontier\.seed"),
        (lambda data: data.update(seconds=None), r"frontier\.seconds must be a number"),
        (lambda data: data.update(labelled="yes"), r"frontier\.labelled must be true or false"),
        (lambda data: data.update(candidates={}), r"frontier\.candidates must be a list"),
        (lambda data: data["candidates"].append(3), r"frontier\.candidates\[6\] must be an object"),
        (lambda data: data["candidates"][0].update(score="high"), r"frontier\.candidates\[0\]\.score"),
        (lambda data: data["candidates"][0]["layers"][2].update(macs=1.5), r"candidates\[0\]\.layers\[2\]\.macs"),
        (lambda data: data["candidates"][0]["layers"][2].pop("bits"), r"candidates\[0\]\.layers\[2\]"),
        (lambda data: data["candidates"][1]["measurements"]["load_ms"].pop("value"), r"measurements\.load_ms"),
        (lambda data: data["candidates"][1]["recipe"].update(steps=[{"technique": "rm -rf"}]), r"\.recipe must be"),
        (lambda data: data["certificate"].update(verdict="sure"), r"frontier\.certificate"),
        (lambda data: data["budget"].update(max_drop=-1), r"frontier\.budget"),
        (lambda data: data.update(chosen="nobody"), "nobody"),
        (lambda data: data.update(closest="nobody"), "nobody"),
        (lambda data: data.update(pareto=["int8-dynamic", "nobody"]), "nobody"),
        (lambda data: data["candidates"].append(data["candidates"][0]), "more than once"),
        (lambda data: data.update(format=99), "format 1"),
        (lambda data: data.pop("format"), "format 1"),
    ],
)
def test_damage_is_named(frontier, tmp_path, change, message):
    path = write_result(frontier, tmp_path)
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))
    with pytest.raises(StorageError, match=message):
        read_result(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000])
def test_what_is_no_result_is_refused(tmp_path, content):
    (tmp_path / "result.json").write_bytes(content)
    with pytest.raises(StorageError, match=r"result\.json"):
        read_result(tmp_path)


def test_a_folder_without_a_result_says_what_to_give(tmp_path):
    with pytest.raises(StorageError, match="alula compress --out"):
        read_result(tmp_path)


def test_a_folder_that_cannot_be_written(frontier, tmp_path):
    with pytest.raises(StorageError, match="cannot write"):
        write_result(frontier, tmp_path / "missing")


def test_best_is_what_was_written(frontier):
    assert frontier.best.name == "int8-dynamic"
    failed = EXAMPLE["failed_frontier"]()
    assert failed.best.name == "int8-weights"
    unwritten = replace(failed, closest=None)
    assert unwritten.best is unwritten.original
    nothing = replace(failed, closest=None, candidates=(), pareto=())
    assert nothing.best is nothing.original


def test_the_verdict_says_what_was_gained_and_lost(frontier):
    held_out = frontier.certificate
    assert verdict_in_words(frontier) == (
        "90.9 MB became 22.9 MB (3.97x smaller), 2.91x faster (2.79-3.03x); "
        f"accuracy went from {held_out.original_score:.4f} to {held_out.candidate_score:.4f} on held-out examples, "
        f"a loss of {held_out.drop:.4f}."
    )
    uncertified = replace(frontier, certificate=None)
    assert verdict_in_words(uncertified).endswith("; accuracy went from 0.9863 to 0.9842, a loss of 0.0021.")
    assert str(frontier) == verdict_in_words(frontier)
    better = replace(frontier.candidates[0], score=0.9871, drop=-0.0008)
    assert "no loss was seen" in verdict_in_words(replace(uncertified, candidates=(better,), pareto=()))
    frugal = verdict_in_words(replace(frontier, budget=replace(frontier.budget, minimize="energy")))
    assert "x less, an estimate)" in frugal
    stopped = replace(uncertified, chosen=None, distance="interrupted after 3 candidates")
    assert verdict_in_words(stopped) == "The run was interrupted after 3 candidates."
    assert "agreement with the original" in verdict_in_words(replace(frontier, labelled=False))


def test_a_failure_is_never_told_as_a_success():
    failed = EXAMPLE["failed_frontier"]()
    assert verdict_in_words(failed).startswith("No candidate held the budget: ")
    assert state_of(failed) == "failed"


def test_the_state_follows_the_certificate(frontier):
    assert state_of(frontier) == "certified"
    assert state_of(replace(frontier, certificate=None)) == "uncertified"
    for verdict, state in (("not enough examples", "uncertified"), ("fails", "failed")):
        assert state_of(replace(frontier, certificate=replace(frontier.certificate, verdict=verdict))) == state


@pytest.mark.parametrize(
    ("value", "low", "high", "words"),
    [
        (2.0, 1.9, 2.1, "2.00x faster (1.90-2.10x)"),
        (0.5, 0.4, 0.8, "2.00x slower (1.25-2.50x)"),
        (1.02, 0.97, 1.05, "no measurable change of speed (0.97-1.05x)"),
        (0.997, 0.995, 0.998, "the same speed to within 1%"),
        (0.5, None, None, "2.00x slower"),
        (1.5, None, None, "1.50x faster"),
    ],
)
def test_speed_in_words(frontier, value, low, high, words):
    one = frontier.candidates[0]
    ratio = replace(one.measurements["latency_ratio"], value=value, low=low, high=high)
    assert speed_change_in_words(replace(one, measurements={"latency_ratio": ratio})) == words
    assert speed_change_in_words(replace(one, measurements={})) is None
    assert speed_change_in_words(frontier.original) is None


@pytest.mark.parametrize(
    ("size_bytes", "words"),
    [(0, "0 bytes"), (999, "999 bytes"), (1_000, "1 kB"), (22_713_000, "22.7 MB"), (1_234e9, "1,234 GB")],
)
def test_bytes_in_words(size_bytes, words):
    assert bytes_in_words(size_bytes) == words


def test_a_notebook_shows_the_result_and_escapes_it(frontier):
    html = frontier._repr_html_()
    assert "22.9 MB" in html
    assert frontier.certificate.sentence("accuracy") in html
    assert "<script" not in summary_in_html(EXAMPLE["hostile_frontier"]())


def test_single_records_round_trip(frontier):
    one = frontier.candidates[0]
    assert Candidate.from_json(json.loads(json.dumps(one.to_json()))) == one
    assert LayerRow.from_json(one.layers[0].to_json()) == one.layers[0]
    assert Finding.from_json(frontier.findings[0].to_json()) == frontier.findings[0]
