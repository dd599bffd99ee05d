"""A candidate that fails when it is measured at length, or on held-out examples, never ends the run."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from alula.budget import Budget
from alula.errors import DataError, TargetError
from alula.measurement.certificate import certify
from alula.search import building, certifying
from alula.search.certifying import _shortfall
from alula.search.explore import compress
from alula.targets import OnnxRuntime
from tests.oracles.tasks import classification, fake_measure

TARGET = OnnxRuntime(threads=1)
SIZE = Budget(max_drop=0.06, minimize="size")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(building, "measure", fake_measure)
    monkeypatch.setattr(
        building, "measure_throughput", lambda _target, contenders, *_, **__: {name: {} for name in contenders}
    )


def overflowing(exact_only: bool):
    """A task whose scores are NaN on one held-out example, for whatever is not the original (or for all)."""
    base = classification(noise=0.0)
    held = float(base.splits(0)[1][7].feeds["x"][0])
    reference = base.parts["model"]

    def scorer(run, examples):
        x = np.stack([one.feeds["x"] for one in examples])
        found = run({"x": x})["logits"]
        exact = np.abs(found - reference.run({"x": x})["logits"]).max() < 1e-4
        scores = np.asarray(base.scorer(run, examples), np.float64)
        return scores if exact and exact_only else np.where(x[:, 0] == held, np.nan, scores)

    return replace(base, scorer=scorer)


def test_a_candidate_that_overflows_on_a_held_out_example_is_trusted_no_more(tmp_path) -> None:
    said = []
    frontier = compress(overflowing(exact_only=True), SIZE, TARGET, tmp_path, on_event=said.append)
    failed = [one for one in frontier.candidates if "fails on the held-out examples" in one.verdict]
    assert 0 < len(failed) <= certifying.ATTEMPTS
    assert all(one.verdict.startswith("not trusted: ") and "scores must be finite" in one.verdict for one in failed)
    assert frontier.chosen is None
    assert frontier.closest not in {None, *(one.name for one in failed)}
    assert not {one.name for one in failed} & set(frontier.pareto)
    assert any(event.kind == "note" and "held-out" in event.text for event in said)


def test_the_attempt_of_a_candidate_that_overflows_is_spent(tmp_path, monkeypatch) -> None:
    score, broken = certifying.score, []

    def failing_once(task, run, examples, **settings):
        if settings["on_progress"] is not None and broken == ["original"]:
            broken.append("first")
            raise DataError("scores must be finite")
        broken.append("original")
        return score(task, run, examples, **settings)

    monkeypatch.setattr(certifying, "score", failing_once)
    frontier = compress(classification(noise=0.0), SIZE, TARGET, tmp_path)
    assert frontier.certificate is not None
    assert frontier.certificate.attempt == 2
    assert sum("scores must be finite" in one.verdict for one in frontier.candidates) == 1


def test_the_original_s_own_failure_is_not_hidden(tmp_path) -> None:
    with pytest.raises(DataError, match="scores must be finite"):
        compress(overflowing(exact_only=False), SIZE, TARGET, tmp_path)


@pytest.mark.parametrize("survivors", [True, False])
def test_a_candidate_that_fails_in_the_long_measurement_is_followed_by_the_next(tmp_path, monkeypatch, survivors):
    failed = []

    def failing(ground, name, artifacts):
        if not failed or not survivors:
            failed.append(name)
            raise TargetError("the runtime ran out of memory")
        return measure_long(ground, name, artifacts)

    measure_long = certifying.measure_long
    monkeypatch.setattr(certifying, "measure_long", failing)
    frontier = compress(classification(noise=0.0), SIZE, TARGET, tmp_path)
    words = "not trusted: it fails in a long measurement: the runtime ran out of memory"
    assert {one.name for one in frontier.candidates if one.verdict == words} == set(failed)
    if survivors:
        assert frontier.chosen not in {None, *failed}
        assert frontier.certificate is not None
        assert frontier.certificate.attempt == 1
    else:
        assert len(failed) == len(frontier.candidates)
        assert frontier.best is frontier.original
        assert not (tmp_path / "model.onnx").exists()


def test_memory_that_could_not_be_measured_is_a_note_once(tmp_path, monkeypatch) -> None:
    def without_memory(target, contenders, trace, **settings):
        found = fake_measure(target, contenders, trace, **settings)
        return {name: {key: one for key, one in all_.items() if key != "memory_bytes"} for name, all_ in found.items()}

    monkeypatch.setattr(building, "measure", without_memory)
    best = compress(classification(noise=0.0), SIZE, TARGET, tmp_path).best
    assert sum("peak memory could not be measured" in note.text for note in best.notes) == 1
    limited = replace(SIZE, max_memory_bytes=10**9)
    other = compress(classification(noise=0.0), limited, TARGET, tmp_path / "limited")
    assert "its peak memory was not measured" in other.distance
    assert sum("peak memory could not be measured" in note.text for note in other.best.notes) == 1


def test_a_shortfall_reads_well_within_a_sentence() -> None:
    before, after = np.ones(400), np.r_[np.zeros(40), np.ones(360)]
    words = _shortfall(certify(before, after, max_drop=0.05, bounds=(0, 1)))
    assert words == "on 400 held-out examples its drop is 0.1000, and at most 0.05 may be lost"
    words = _shortfall(certify(before[:9], before[:9], max_drop=0.05, bounds=(0, 1)))
    assert (
        words == "on 9 held-out examples it cannot be certified: at most 0.05 may be lost, and they are too few to tell"
    )
