"""The loop, end to end with real graphs, a real runtime and real scores; only the clock is replaced where it must not
decide (``fake_measure``: the smaller the file, the faster)."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from alula.budget import Budget
from alula.errors import BudgetError, DataError, ModelError, StorageError
from alula.measurement.measurement import Measurement
from alula.recipe import Recipe
from alula.search import building
from alula.search.explore import compress
from alula.search.result import read_result
from alula.search.store import lock_folder
from alula.targets import OnnxRuntime, OpenVino
from alula.task import Task
from tests.oracles.tasks import classification, fake_measure, network

TARGET = OnnxRuntime(threads=1)
SIZE = Budget(max_drop=0.03, minimize="size")
SPEED = Budget(max_drop=0.03, minimize="latency")


@pytest.fixture
def quick(monkeypatch):
    """Time is the size of the file."""
    monkeypatch.setattr(building, "measure", fake_measure)
    monkeypatch.setattr(
        building, "measure_throughput", lambda _target, contenders, *_, **__: {name: {} for name in contenders}
    )


class Watcher:
    """Keeps events; with ``stop_at``, presses Ctrl-C when that many candidates were tried."""

    def __init__(self, stop_at=None):
        self.events, self.stop_at = [], stop_at

    def __call__(self, event):
        self.events.append(event)
        if self.stop_at is not None and len(self.tried) == self.stop_at + 1:
            raise KeyboardInterrupt

    @property
    def tried(self):
        return [event.text for event in self.events if event.kind == "stage" and event.text.startswith("trying ")]

    @property
    def stages(self):
        return [event.text for event in self.events if event.kind == "stage"]


def model_bytes(folder: Path) -> bytes:
    return (folder / "model.onnx").read_bytes()


def test_with_a_real_clock_the_smallest_that_holds_is_chosen_certified_and_written(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(building, "SHORT_SECONDS", 0.02)
    monkeypatch.setattr(building, "LONG_SECONDS", 0.05)
    frontier = compress(classification(), SIZE, TARGET, tmp_path)
    best = frontier.best
    assert best.name == frontier.chosen
    assert best.verdict.startswith("chosen: the smallest")
    assert frontier.certificate is not None
    assert frontier.certificate.verdict == "holds"
    assert frontier.certificate.n == 225
    assert best.size_bytes == (tmp_path / "model.onnx").stat().st_size < frontier.original.size_bytes / 2
    assert best.artifacts == {"model": "model.onnx"}
    wanted = {"latency_p50_ms", "latency_ratio", "load_ms", "memory_bytes", "energy_mj", "throughput_batch4_per_s"}
    assert wanted <= set(best.measurements) & set(frontier.original.measurements)
    assert Recipe.from_json({"steps": json.loads((tmp_path / "recipe.json").read_text())["steps"]}) == best.recipe
    assert read_result(tmp_path) == frontier
    holding = [one for one in frontier.candidates if one.drop <= 0.03]
    assert best.size_bytes <= 1.01 * min(one.size_bytes for one in holding)
    assert all(one.verdict for one in frontier.candidates)
    assert frontier.distance == ""


def test_what_is_written_scores_what_is_reported(tmp_path, quick) -> None:
    import onnxruntime

    from alula.measurement.score import score

    task = classification()
    best = compress(task, SIZE, TARGET, tmp_path).best
    session = onnxruntime.InferenceSession(model_bytes(tmp_path), providers=["CPUExecutionProvider"])
    found = score(task, lambda feeds, part="model": {"logits": session.run(["logits"], feeds)[0]}, task.splits(0)[0])
    assert found.score == best.score


def test_layers_that_break_the_score_are_found_kept_apart_and_explained(tmp_path, quick) -> None:
    watcher = Watcher()
    frontier = compress(classification(outlier=300.0), SPEED, TARGET, tmp_path, on_event=watcher)
    assert any("ranking the layers" in stage for stage in watcher.stages)
    best = frontier.best
    assert best.name == frontier.chosen
    assert "1 layer float" in best.name
    kept = {row.name: row for row in best.layers}["second"]
    assert kept.bits == "float32"
    assert kept.harm is not None
    assert kept.why.startswith("number 1 of 3 by harm")
    cause = next(finding for finding in frontier.findings if finding.layer == "second")
    assert cause.cause == "outlier channel"
    assert cause.values["channel"] == 5
    marks = [(finding.part, finding.layer, finding.cause) for finding in frontier.findings]
    assert len(marks) == len(set(marks))
    broken = frontier.candidate("int8 dynamic")
    assert broken.drop > 0.1
    assert "above the 0.03 allowed" in broken.verdict


def test_every_candidate_says_where_its_time_goes_and_how_sure_its_score_is(tmp_path, quick) -> None:
    frontier = compress(classification(), SIZE, TARGET, tmp_path)
    for one in (frontier.original, *frontier.candidates):
        assert one.time is not None
        assert one.time.int8 + one.time.floating + one.time.conversions + one.time.other == pytest.approx(1)
        assert all(row.latency_share is not None for row in one.layers)
        assert one.measurements["score"].low <= one.score <= one.measurements["score"].high
    assert all(one.measurements["drop"].low <= one.drop <= one.measurements["drop"].high for one in frontier.candidates)
    assert frontier.original.time.int8 == 0
    assert frontier.candidate("int8 dynamic").time.int8 > 0


def test_what_is_slower_says_where_the_time_went(tmp_path, quick, monkeypatch) -> None:
    def slower(target, contenders, trace, **settings):
        found = fake_measure(target, contenders, trace, **settings)
        return {
            name: one if name == "original" else one | {"latency_ratio": Measurement(0.5, "x", 0.4, 0.6)}
            for name, one in found.items()
        }

    monkeypatch.setattr(building, "measure", slower)
    verdict = compress(classification(), SPEED, TARGET, tmp_path).candidate("int8 dynamic").verdict
    assert "its time goes to int8 layers" in verdict
    assert "conversion" in verdict


def test_what_lost_is_removed_and_built_again_when_needed(tmp_path, quick) -> None:
    frontier = compress(classification(), SIZE, TARGET, tmp_path)
    kept = {"original", frontier.chosen, *frontier.pareto}
    names = {one.name for one in (frontier.original, *frontier.candidates)}
    assert {path.name for path in (tmp_path / "trials").iterdir()} == {building.slug(name) for name in kept & names}
    assert kept < names, "something was removed"
    for one in frontier.candidates:
        assert bool(one.artifacts) == (one.name in kept)
        assert all((tmp_path / file).is_file() for file in one.artifacts.values())
    again = compress(classification(), SPEED, TARGET, tmp_path)
    assert again.chosen is not None
    assert model_bytes(tmp_path)
    assert (tmp_path / again.best.artifacts["model"]).stat().st_size == again.best.size_bytes


def test_a_healthy_network_needs_no_refinement(tmp_path, quick) -> None:
    budget = Budget(max_drop=0.05, minimize="latency")
    frontier = compress(classification(noise=0.0), budget, TARGET, tmp_path)
    assert frontier.chosen == "int8 dynamic"
    assert not any("float" in one.name for one in frontier.candidates)
    broken = {one.name for one in frontier.candidates if one.drop > 0.05}
    assert broken <= {"int4 weights", "int4 weights, 1 layer int8"}


def test_the_same_seed_gives_the_same_bytes_in_another_folder(tmp_path, quick) -> None:
    task = classification(outlier=300.0)
    found = [compress(task, SPEED, TARGET, tmp_path / name) for name in ("a", "b")]
    assert found[0].chosen == found[1].chosen
    assert model_bytes(tmp_path / "a") == model_bytes(tmp_path / "b")
    assert (tmp_path / "a" / "recipe.json").read_bytes() == (tmp_path / "b" / "recipe.json").read_bytes()
    assert [one.name for one in found[0].candidates] == [one.name for one in found[1].candidates]


def test_a_second_run_tries_nothing_again(tmp_path, quick) -> None:
    task = classification(outlier=300.0)
    first = compress(task, SPEED, TARGET, tmp_path)
    watcher = Watcher()
    second = compress(task, SPEED, TARGET, tmp_path, on_event=watcher)
    assert watcher.tried == []
    assert not any("calibrating" in stage or "certifying" in stage for stage in watcher.stages)
    assert replace(second, seconds=first.seconds) == first


def test_another_budget_uses_what_was_tried(tmp_path, quick) -> None:
    task = classification()
    compress(task, SIZE, TARGET, tmp_path)
    watcher = Watcher()
    looser = compress(task, replace(SIZE, max_drop=0.2), TARGET, tmp_path, on_event=watcher)
    assert looser.chosen == "int4 weights"
    assert watcher.tried == []


def test_files_that_were_deleted_are_built_again(tmp_path, quick) -> None:
    task = classification()
    compress(task, SIZE, TARGET, tmp_path)
    before = model_bytes(tmp_path)
    for file in tmp_path.rglob("*.onnx"):
        file.unlink()
    compress(task, SIZE, TARGET, tmp_path)
    assert model_bytes(tmp_path) == before


def test_interrupted_it_leaves_the_best_so_far_and_goes_on(tmp_path, quick) -> None:
    task = classification(outlier=300.0)
    with pytest.raises(KeyboardInterrupt):
        compress(task, SPEED, TARGET, tmp_path / "a", on_event=Watcher(stop_at=3))
    partial = read_result(tmp_path / "a")
    assert len(partial.candidates) == 3
    assert partial.chosen is None
    assert partial.closest is not None
    assert "interrupted after 3 candidates" in partial.distance
    watcher = Watcher()
    frontier = compress(task, SPEED, TARGET, tmp_path / "a", on_event=watcher)
    assert len(watcher.tried) == len(frontier.candidates) - 3
    whole = compress(task, SPEED, TARGET, tmp_path / "b")
    assert frontier.chosen == whole.chosen
    assert model_bytes(tmp_path / "a") == model_bytes(tmp_path / "b")


SCRIPT = """
    import sys
    from pathlib import Path
    from alula.budget import Budget
    from alula.search import building
    from alula.search.explore import compress
    from alula.targets import OnnxRuntime
    from tests.oracles.tasks import classification, fake_measure
    building.measure = fake_measure
    def say(event):
        print(event.kind, event.text, flush=True)
    budget = Budget(max_drop=0.03, minimize="latency")
    compress(classification(outlier=300.0), budget, OnnxRuntime(threads=1), Path(sys.argv[1]), on_event=say)
"""


def start(folder: Path) -> subprocess.Popen:
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    command = [sys.executable, "-c", textwrap.dedent(SCRIPT), str(folder)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, cwd=root)


def lines_of(process: subprocess.Popen) -> list[str]:
    with process:
        assert process.stdout is not None
        lines = process.stdout.read().splitlines()
    assert process.returncode == 0
    return lines


def test_killed_at_any_point_the_same_command_gives_the_same_bytes(tmp_path) -> None:
    process = start(tmp_path / "killed")
    assert process.stdout is not None
    trials = 0
    for line in process.stdout:
        trials += line.startswith("trial ")
        if trials == 4:  # the original and three candidates are finished, the next is under way
            time.sleep(0.05)
            process.send_signal(signal.SIGKILL)
            break
    process.stdout.close()
    assert process.wait(timeout=30) == -signal.SIGKILL
    resumed = lines_of(start(tmp_path / "killed"))
    whole = lines_of(start(tmp_path / "whole"))
    tried = [[line for line in lines if line.startswith("stage trying")] for lines in (resumed, whole)]
    assert 0 < len(tried[0]) <= len(tried[1]) - 3
    assert model_bytes(tmp_path / "killed") == model_bytes(tmp_path / "whole")
    assert read_result(tmp_path / "killed").chosen == read_result(tmp_path / "whole").chosen


def test_an_impossible_budget_still_returns_the_best_and_its_distance(tmp_path, quick) -> None:
    budget = Budget(max_drop=0.03, minimize="size", max_size_bytes=1000)
    frontier = compress(classification(), budget, TARGET, tmp_path)
    assert frontier.chosen is None
    assert frontier.closest is not None
    assert frontier.certificate is None
    assert frontier.best.drop <= 0.03
    assert frontier.distance.startswith(f"the best reached: {frontier.closest}; its size is")
    assert "above the 1 kB allowed" in frontier.distance
    assert model_bytes(tmp_path)
    assert read_result(tmp_path) == frontier


def test_nothing_faster_is_no_success(tmp_path, monkeypatch) -> None:
    def slower(target, contenders, trace, **settings):
        found = fake_measure(target, contenders, trace, **settings)
        for name, one in found.items():
            if name != "original":
                one["latency_ratio"] = Measurement(0.7, "x", 0.6, 0.8)
        return found

    monkeypatch.setattr(building, "measure", slower)
    frontier = compress(classification(), SPEED, TARGET, tmp_path)
    assert frontier.chosen is None
    assert "not faster than the original: 1.43x slower (1.25-1.67x)" in frontier.distance
    assert all("its time goes to int8 layers" in one.verdict for one in frontier.candidates)


def test_too_few_examples_choose_but_do_not_certify(tmp_path, quick) -> None:
    frontier = compress(classification(n=60, noise=0.0), Budget(max_drop=0.1, minimize="size"), TARGET, tmp_path)
    assert frontier.chosen is not None
    assert frontier.certificate is not None
    assert frontier.certificate.verdict == "not enough examples"
    assert "not certified" in frontier.candidate(frontier.chosen).verdict


def test_the_search_never_scores_the_certification_examples_before_it_certifies(tmp_path, quick) -> None:
    base = classification()
    seen: dict[str, set[float]] = {"search": set(), "certify": set()}
    mode = ["search"]

    def scorer(run, examples):
        seen[mode[0]].update(float(one.feeds["x"][0]) for one in examples)
        return base.scorer(run, examples)

    def switch(event):
        if event.kind == "stage":
            mode[0] = "certify" if "held-out" in event.text else "search"

    frontier = compress(replace(base, scorer=scorer), SIZE, TARGET, tmp_path, on_event=switch)
    assert frontier.certificate is not None
    assert len(seen["certify"]) == 225
    assert not seen["certify"] & seen["search"]


def test_a_candidate_that_fails_on_held_out_examples_is_followed_by_the_next(tmp_path, quick) -> None:
    """The scorer turns against all but float16 on the examples kept for the certificate."""
    base = classification(noise=0.0)
    reference = base.parts["model"]
    held = {float(base.splits(0)[1][i].feeds["x"][0]) for i in range(len(base.splits(0)[1]))}

    def scorer(run, examples):
        x = np.stack([one.feeds["x"] for one in examples])
        exact = np.abs(run({"x": x})["logits"] - reference.run({"x": x})["logits"]).max(axis=1) < 5e-3
        easy = np.array([float(row[0]) not in held for row in x])
        return (exact | easy).astype(float)

    frontier = compress(replace(base, scorer=scorer), SIZE, TARGET, tmp_path)
    failed = [one for one in frontier.candidates if "held-out examples its drop is" in one.verdict]
    assert failed
    assert all("at most 0.03 may be lost" in one.verdict for one in failed)
    assert not any("No certificate" in text for text in (frontier.distance, *(one.verdict for one in failed)))
    assert frontier.certificate is not None
    assert frontier.certificate.attempt > 1 or frontier.chosen is None


def test_a_run_that_finds_nothing_removes_what_an_earlier_one_wrote(tmp_path, quick, monkeypatch) -> None:
    from alula.measurement.parity import Parity

    task = classification()
    compress(task, SIZE, TARGET, tmp_path)
    (tmp_path / "notes.txt").write_text("the user's")
    assert (tmp_path / "recipe.json").is_file()
    assert model_bytes(tmp_path)
    (tmp_path / "trials.sqlite").unlink()
    monkeypatch.setattr(building, "check_parity", lambda *_: Parity(1.0, 0.0, False, "nothing agrees"))
    frontier = compress(task, SIZE, TARGET, tmp_path)
    assert frontier.chosen is None
    assert frontier.closest is None
    assert frontier.best is frontier.original
    assert not list(tmp_path.glob("model.*"))
    assert not (tmp_path / "recipe.json").exists()
    assert (tmp_path / "notes.txt").is_file()


def test_without_an_earlier_run_nothing_is_removed(tmp_path, quick, monkeypatch) -> None:
    from alula.measurement.parity import Parity

    (tmp_path / "model.onnx").write_text("the user's")
    monkeypatch.setattr(building, "check_parity", lambda *_: Parity(1.0, 0.0, False, "nothing agrees"))
    assert compress(classification(n=80), SIZE, TARGET, tmp_path).closest is None
    assert model_bytes(tmp_path) == b"the user's"


def test_two_parts_are_compressed_together_and_ranked_together(tmp_path, quick) -> None:
    encoder, decoder = network(0, outlier=300.0), network(1)
    rng = np.random.default_rng(5)
    x = rng.normal(size=(400, 32)).astype(np.float32)

    def both(run, rows):
        first = run({"x": rows}, part="encoder")["logits"]
        return run({"x": np.tile(first, (1, 4))}, part="decoder")["logits"]

    parts = {"encoder": encoder, "decoder": decoder}
    labels = np.argmax(both(lambda feeds, part: parts[part].run(feeds), x), axis=1)

    def scorer(run, examples):
        return (np.argmax(both(run, x[list(examples)]), axis=1) == labels[list(examples)]).astype(float)

    task = Task(parts=parts, calibration=range(50), evaluation=range(50, 400), scorer=scorer)
    frontier = compress(task, Budget(max_drop=0.1, minimize="latency"), TARGET, tmp_path)
    best = frontier.best
    assert best.name == frontier.chosen
    assert {row.part for row in best.layers} == {"encoder", "decoder"}
    assert "1 layer float" in best.name
    assert [(row.part, row.name) for row in best.layers if row.bits == "float32"] == [("encoder", "second")]
    assert (tmp_path / "encoder.onnx").is_file()
    assert (tmp_path / "decoder.onnx").is_file()
    assert best.size_bytes == sum((tmp_path / f"{part}.onnx").stat().st_size for part in parts)


def test_openvino_gets_its_own_files_and_the_graph(tmp_path, quick) -> None:
    pytest.importorskip("openvino")
    frontier = compress(classification(n=200), replace(SIZE, max_drop=0.1), OpenVino(threads=1), tmp_path)
    assert frontier.chosen is not None
    assert {"model.xml", "model.bin", "model.onnx"} <= {file.name for file in tmp_path.iterdir()}
    assert frontier.best.artifacts == {"model": "model.xml"}
    assert not any("dynamic" in one.name for one in frontier.candidates)


def test_a_folder_in_use_is_refused_at_once(tmp_path, quick) -> None:
    with lock_folder(tmp_path), pytest.raises(StorageError, match="another run"):
        compress(classification(n=40), SIZE, TARGET, tmp_path)


def test_a_folder_of_another_task_is_refused(tmp_path, quick) -> None:
    compress(classification(n=80), SIZE, TARGET, tmp_path)
    with pytest.raises(StorageError, match="another task"):
        compress(classification(n=90), SIZE, TARGET, tmp_path)


def test_a_full_disk_keeps_what_was_stored(tmp_path, quick, monkeypatch) -> None:
    task, built = classification(), building.build

    def full(models, target, folder):
        if "dynamic" in folder.name:
            raise StorageError("cannot write: No space left on device")
        return built(models, target, folder)

    monkeypatch.setattr(building, "build", full)
    with pytest.raises(StorageError, match="No space left"):
        compress(task, SIZE, TARGET, tmp_path)
    monkeypatch.setattr(building, "build", built)
    watcher = Watcher()
    compress(task, SIZE, TARGET, tmp_path, on_event=watcher)
    assert watcher.tried[0] == "trying int8 dynamic"


def test_a_candidate_that_cannot_be_built_is_noted_and_the_search_goes_on(tmp_path, quick, monkeypatch) -> None:
    from alula.errors import TargetError

    built = building.build

    def picky(models, target, folder):
        if "dynamic" in folder.name:
            raise TargetError("this runtime knows no DynamicQuantizeLinear")
        return built(models, target, folder)

    monkeypatch.setattr(building, "build", picky)
    frontier = compress(classification(), SIZE, TARGET, tmp_path)
    assert frontier.chosen is not None
    assert any("int8 dynamic" in str(note) and "DynamicQuantizeLinear" in str(note) for note in frontier.original.notes)
    assert "int8 dynamic" not in [one.name for one in frontier.candidates]


def test_bad_calibration_data_are_refused_before_anything_is_tried(tmp_path, quick) -> None:
    base = classification(n=80)
    bad = [replace(base.calibration[0], feeds={"x": np.full(32, np.nan, np.float32)})] * 4
    with pytest.raises(DataError, match="NaN"):
        compress(replace(base, calibration=bad), SIZE, TARGET, tmp_path)


def test_a_budget_that_allows_everything_and_a_graph_without_layers_are_refused(tmp_path, quick) -> None:
    with pytest.raises(BudgetError, match="allows losing everything"):
        compress(classification(n=40), Budget(max_drop=1.0), TARGET, tmp_path / "a")
    from onnx import TensorProto, helper

    from tests.oracles.networks import make_model

    model = make_model(
        [helper.make_node("Relu", ["x"], ["y"], name="relu")],
        [("x", TensorProto.FLOAT, ["n", 2])],
        [("y", TensorProto.FLOAT, ["n", 2])],
    )
    task = Task({"model": model}, range(3), range(3), lambda run, examples: np.ones(len(examples)))
    with pytest.raises(ModelError, match="nothing to compress"):
        compress(task, SIZE, TARGET, tmp_path / "b")
