from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from alula import task_rows
from alula.errors import DataError
from alula.graph.model import Model
from alula.measurement.score import score
from alula.numerics.metrics import WORD_ERROR_RATE, Metric
from alula.task import Task, open_task, task_from_arrays
from tests.oracles.networks import accumulator, linear, sigmoid, two_inputs, weights_of


def draw(rows=40, features=4, classes=3, seed=0):
    generator = np.random.default_rng(seed)
    return generator.normal(size=(rows, features)).astype(np.float32), generator.integers(0, classes, size=rows)


def run_of(task):
    return lambda feeds, part="model": task.parts[part].run(feeds)


def plain(evaluation=range(10), **changes):
    return Task({"model": linear()}, [0], evaluation, lambda run, chunk: np.zeros(len(chunk)), **changes)


# --- Task


def test_splits_are_halves_that_share_nothing_and_follow_the_seed():
    task = plain(range(11))
    selection, certification = task.splits(3)
    assert sorted([*selection, *certification]) == list(range(11))
    assert (len(selection), len(certification)) == (6, 5)
    assert list(task.splits(3)[0]) == list(selection)
    assert list(task.splits(4)[0]) != list(selection)


def test_equal_examples_never_stand_on_both_sides():
    texts = [f"message {i % 7}" for i in range(50)]
    for seed in range(20):
        selection, certification = plain(texts).splits(seed)
        assert not set(selection) & set(certification)
        assert len(selection) + len(certification) == 50


def test_examples_that_are_all_equal_cannot_be_split():
    with pytest.raises(DataError, match="all 3 evaluation examples are the same"):
        plain([np.zeros(2)] * 3).splits()


def test_given_certification_leaves_evaluation_whole():
    task = plain([1, 2, 3], certification=[4, 5])
    assert task.splits(0) == ([1, 2, 3], [4, 5])


def test_shared_examples_are_found_by_content():
    array = np.arange(3.0)
    with pytest.raises(DataError, match="1 in both, the first being certification 1 and evaluation 0"):
        plain([(array, "a"), (array + 1, "b")], certification=[(array, "b"), (array.copy(), "a")])


def test_shared_examples_of_unknown_kind_are_found_by_identity():
    one, two, three = object(), object(), object()
    plain([one, two], certification=[three])
    with pytest.raises(DataError, match="in both"):
        plain([one, two], certification=[two])


def test_unknown_kinds_of_examples_are_told_apart():
    selection, certification = plain([object() for _ in range(6)]).splits()
    assert len(selection) == len(certification) == 3


def test_parts_cannot_be_changed_from_outside():
    parts = {"model": linear()}
    task = Task(parts, [0], [1, 2], lambda run, chunk: np.zeros(len(chunk)))
    parts["other"] = parts["model"]
    assert list(task.parts) == ["model"]
    with pytest.raises(TypeError):
        task.parts["other"] = parts["model"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"parts": {}}, "map names to models"),
        ({"parts": {"a/b": linear()}}, "becomes a file name"),
        ({"parts": {"..": linear()}}, "becomes a file name"),
        ({"parts": {"a": linear(), "A": linear()}}, "differ by more than case"),
        ({"parts": {"model": "model.onnx"}}, "must be a Model, got str"),
        ({"calibration": []}, "calibration is empty; give"),
        ({"evaluation": []}, "evaluation is empty; give"),
        ({"evaluation": [1]}, "at least two examples"),
        ({"evaluation": "examples.txt"}, "must be a list or another sequence of examples, got str"),
        ({"evaluation": (i for i in range(3))}, "got generator"),
        ({"certification": []}, "certification is empty"),
        ({"scorer": 3}, "must be a function, got int"),
        ({"bounds": (1.0, 0.0)}, "bounds must be"),
        ({"bounds": (0.0, float("inf"))}, "or None where it has no limit"),
    ],
)
def test_impossible_tasks_are_refused(changes, message):
    with pytest.raises(DataError, match=message):
        replace(plain(), **changes)


def scorer_a(run, chunk):
    return np.zeros(len(chunk))


def scorer_b(run, chunk):
    return np.ones(len(chunk))


def test_fingerprint_changes_with_all_that_matters():
    x, _ = draw()
    task = Task({"model": linear()}, [(x[0], 1)], [{"x": x, "y": 1}, {"x": x, "y": 2}], scorer_a)
    changes = [
        {},
        {"parts": {"model": linear(seed=1)}},
        {"parts": {"other": linear()}},
        {"calibration": [(x[1], 1)]},
        {"evaluation": [{"x": x, "y": 1}, {"x": x, "y": 3}]},
        {"certification": [5]},
        {"metric": "other"},
        {"higher_is_better": False},
        {"scorer": scorer_b},
        {"aggregate": scorer_b},
    ]
    prints = [replace(task, **change).fingerprint for change in changes]
    assert len(set(prints)) == len(prints)
    again = Task({"model": linear()}, [(x[0].copy(), 1)], [{"y": 1, "x": x}, {"x": x, "y": 2}], scorer_a)
    assert again.fingerprint == task.fingerprint


@dataclass
class Clip:
    samples: np.ndarray
    text: str


def test_fingerprint_is_the_same_in_another_process(tmp_path):
    (tmp_path / "job.py").write_text(
        "import numpy as np\n"
        "from pathlib import Path\n"
        "from alula.task import Task, task_from_arrays\n"
        "from tests.oracles.networks import linear\n"
        "from tests.test_task import Clip, draw\n"
        "x, y = draw()\n"
        "odd = [Clip(x[0], 'a'), {'s': {'b', 'a', 'c'}}, object(), (lambda: 3), 1j, x[:, ::2], np.array(['a', 'b'])]\n"
        "print(Task({'model': linear()}, [1], odd, lambda run, chunk: np.zeros(1)).fingerprint)\n"
        "print(task_from_arrays(linear(), x, y).fingerprint)\n"
    )
    runs = [
        subprocess.run(
            [sys.executable, str(tmp_path / "job.py")],
            capture_output=True, text=True, check=True, timeout=60, env={"PYTHONPATH": ".", "PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2")
    ]  # fmt: skip
    assert runs[0] == runs[1]
    assert len(runs[0]) == 130


# --- arrays


def test_accuracy_is_what_numpy_says():
    x, y = draw()
    task = task_from_arrays(linear(), {"x": x}, y, calibration={"x": x[:5]}, batch_size=7)
    expected = (x @ weights_of()).argmax(axis=1) == y
    scores = score(task, run_of(task), task.evaluation)
    assert (task.metric, task.labelled, task.bounds) == ("accuracy", True, (0.0, 1.0))
    assert scores.values.tolist() == expected.tolist()
    assert scores.score == expected.mean()


def test_calibration_is_taken_from_rows_that_are_then_not_scored():
    x, y = draw(rows=40)
    task = task_from_arrays(linear(), x, y)
    taken = {row.feeds["x"].tobytes() for row in task.calibration}
    left = {row.feeds["x"].tobytes() for row in task.evaluation}
    assert (len(taken), len(left)) == (10, 30)
    assert not taken & left
    assert "10 of 40 rows" in str(task.notes[0])
    many = task_from_arrays(linear(), *draw(rows=2000))
    assert (len(many.calibration), len(many.evaluation)) == (300, 1700)


def test_calibration_runs_the_model_but_compares_nothing():
    x, y = draw()
    for labels in (y, None):
        task = task_from_arrays(linear(), x, labels)
        seen = []

        def run(feeds, part="model", task=task, seen=seen):
            seen.append(len(feeds["x"]))
            return task.parts[part].run(feeds)

        assert np.isnan(task.scorer(run, task.calibration)).all()
        assert sum(seen) == len(task.calibration)


def test_without_labels_the_score_is_agreement_with_the_original(monkeypatch):
    x, _ = draw()
    model, other = linear(), linear(seed=1)
    task = task_from_arrays(model, x, calibration=x[:4], metric="agreement")
    calls = []
    monkeypatch.setattr(Model, "run", lambda self, feeds, run=Model.run: calls.append(self) or run(self, feeds))
    scores = score(task, lambda feeds, part="model": other.run(feeds), task.evaluation)
    a, b = (x @ weights_of()).argmax(axis=1), (x @ weights_of(seed=1)).argmax(axis=1)
    assert not task.labelled
    assert scores.values.tolist() == (a == b).tolist()
    originals = calls.count(model)
    assert originals > 0
    score(task, lambda feeds, part="model": other.run(feeds), task.evaluation)
    assert calls.count(model) == originals  # kept
    assert score(task, run_of(task), task.evaluation).score == 1.0


def test_large_outputs_of_the_original_are_computed_anew(monkeypatch):
    monkeypatch.setattr(task_rows, "CACHE_LIMIT_BYTES", 100)
    x, _ = draw()
    task = task_from_arrays(linear(), x)
    assert task.metric == "cosine"
    for _ in range(2):
        np.testing.assert_allclose(score(task, run_of(task), task.evaluation).values, 1.0, rtol=1e-6)
    assert task.scorer.references._kept == {}


def test_equal_rows_stay_together_without_labels_too():
    x = np.repeat(draw(rows=6)[0], 5, axis=0)
    selection, certification = task_from_arrays(linear(), x, calibration=x[:1]).splits()
    sides = [{row.feeds["x"].tobytes() for row in side} for side in (selection, certification)]
    assert not sides[0] & sides[1]
    assert len(sides[0] | sides[1]) == 6


def test_a_fixed_batch_gets_exactly_its_rows_and_the_filling_is_cut():
    x, y = draw(rows=11)
    task = task_from_arrays(linear(rows=4), x, y, calibration=x)
    seen = []

    def run(feeds, part="model"):
        seen.append(len(feeds["x"]))
        return task.parts[part].run(feeds)

    scores = score(task, run, task.evaluation, chunk=11)
    assert seen == [4, 4, 4]
    assert scores.values.tolist() == ((x @ weights_of()).argmax(axis=1) == y).tolist()


def test_another_output_can_be_scored():
    x, _ = draw()
    target = 2 * (x @ weights_of())
    task = task_from_arrays(linear(), x, target, output="doubled", metric="squared_error")
    assert not task.higher_is_better
    assert score(task, run_of(task), task.evaluation).score < 1e-10
    with pytest.raises(DataError, match="no output 'double'; it has logits, doubled"):
        task_from_arrays(linear(), x, target, output="double")


def test_a_probability_is_cut_at_one_half_and_a_logit_at_zero():
    x, _ = draw()
    labels = (x @ weights_of(classes=1) > 0)[:, 0]
    task = task_from_arrays(sigmoid(), x, labels, metric="accuracy", calibration=x)
    assert score(task, run_of(task), task.evaluation).score == 1.0
    assert "probability" in str(task.notes[0])
    task = task_from_arrays(linear(classes=1), x, labels, metric="f1", calibration=x)
    assert score(task, run_of(task), task.evaluation).score == 1.0
    assert "logit" in str(task.notes[0])


def test_inputs_are_cast_where_nothing_is_lost():
    a, b = np.ones((8, 2)), np.arange(16, dtype=np.int8).reshape(8, 2)  # float64, int8
    task = task_from_arrays(two_inputs(), {"a": a, "b": b}, a + b, metric="absolute_error")
    assert score(task, run_of(task), task.evaluation).score == 0.0
    lists = task_from_arrays(two_inputs(), {"a": a.tolist(), "b": b.tolist()}, a + b, metric="absolute_error")
    assert lists.evaluation[0].feeds["b"].dtype == np.int64


def test_my_own_metric():
    x, y = draw()
    mine = Metric("right", lambda outputs, labels: (outputs.argmax(axis=1) == labels).astype(float))
    task = task_from_arrays(linear(), x, y, metric=mine)
    assert task.metric == "right"
    assert (
        score(task, run_of(task), task.evaluation).score
        == score(task_from_arrays(linear(), x, y), run_of(task), task.evaluation).score
    )


@pytest.mark.parametrize(
    ("labels", "metric", "message"),
    [
        (None, "accuracy", "accuracy needs labels.*cosine, agreement"),
        (np.zeros(40, int), "agreement", "takes no labels"),
        (np.zeros((40, 3)), None, "say which metric compares outputs .*known are accuracy"),
        (np.zeros(40), None, "say which metric"),
        (np.zeros(39, int), "accuracy", "39 labels for 40 rows"),
        (np.full(40, 3), "accuracy", "from 0 to 2.*got 3 in row 0"),
        (np.full(40, -1), "f1_macro", "got -1 in row 0"),
        (np.full(40, 0.5), "accuracy", "got 0.5 in row 0"),
        (np.full(40, np.nan), "squared_error", "labels holds NaN or Inf"),
        (np.full(40, "cat"), "accuracy", "number the classes from 0"),
        (np.zeros((40, 3), int), "accuracy", "comparing the first rows: labels must be shaped"),
        (np.zeros((40, 2)), "squared_error", "comparing the first rows: references must be shaped"),
    ],
)
def test_labels_and_metrics_that_do_not_fit(labels, metric, message):
    with pytest.raises(DataError, match=message):
        task_from_arrays(linear(), draw()[0], labels, metric=metric)


def test_too_few_rows():
    x, y = draw(rows=2)
    with pytest.raises(DataError, match="2 rows are too few"):
        task_from_arrays(linear(), x, y)
    task = task_from_arrays(linear(), *draw(rows=3))
    assert (len(task.calibration), len(task.evaluation)) == (1, 2)


def test_a_stream_cannot_be_fed_by_rows():
    with pytest.raises(DataError, match="comparing the first rows"):
        task_from_arrays(accumulator(), {"x": np.ones(4), "state": np.ones(4)}, np.ones((4, 2)), metric="squared_error")


def test_bfloat16_inputs_count_as_floats():
    x, _ = draw()
    spoiled = x.astype(ml_dtypes.bfloat16)
    spoiled[3, 1] = np.nan
    with pytest.raises(DataError, match="row 3"):
        task_rows.check_finite(spoiled, "input 'x'")


# --- parts, streams, corpora: the user's own scorer


def test_a_decoding_loop_over_two_parts():
    def scorer(run, examples):
        found = []
        for start, wanted in examples:
            state = run({"x": start[None]}, part="encoder")["logits"]
            for _ in range(3):
                state = run({"x": state}, part="decoder")["logits"]
            found.append(float(np.allclose(state, wanted, atol=1e-3)))
        return np.array(found)

    square = linear(3, 3)
    x = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    wanted = x @ weights_of() @ weights_of(3, 3) @ weights_of(3, 3) @ weights_of(3, 3)
    task = Task({"encoder": linear(), "decoder": square}, [(x[0], None)], list(zip(x, wanted, strict=True)), scorer)
    assert score(task, run_of(task), task.evaluation).score == 1.0


def test_a_stream_keeps_its_state_in_the_scorer():
    def scorer(run, streams):
        errors = []
        for stream in streams:
            state = np.zeros(1, np.float32)
            for sample in stream:
                out = run({"x": sample[None], "state": state})
                state = out["new_state"]
            errors.append(abs(float(out["level"][0]) - float(stream.sum())))
        return np.array(errors)

    streams = np.arange(12, dtype=np.float32).reshape(4, 3)
    task = Task(
        {"model": accumulator()}, streams[:1], streams, scorer, metric="error", bounds=None, higher_is_better=False
    )
    assert score(task, run_of(task), task.evaluation).score == 0.0


def test_a_corpus_metric_of_the_users_own_decoding():
    words = ["zero", "one", "two"]

    def scorer(run, examples):
        said = [" ".join(words[k] for k in run({"x": x})["logits"].argmax(axis=1)) for x, _ in examples]
        return WORD_ERROR_RATE.per_example(said, [text for _, text in examples])

    x = np.random.default_rng(0).normal(size=(4, 5, 4)).astype(np.float32)
    text = [" ".join(words[k] for k in (row @ weights_of()).argmax(axis=1)) for row in x]
    text[0] += " one"
    task = Task(
        {"model": linear()}, [(x[0], "")], list(zip(x, text, strict=True)), scorer, metric="word error rate",
        bounds=None, higher_is_better=False, aggregate=WORD_ERROR_RATE.aggregate,
    )  # fmt: skip
    assert score(task, run_of(task), task.evaluation, chunk=3).score == pytest.approx(1 / 21)


# --- files


@pytest.fixture
def folder(tmp_path):
    linear().save(tmp_path / "model.onnx")
    x, y = draw()
    np.savez(tmp_path / "data.npz", x=x, labels=y)
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "labels.npy", y)
    (tmp_path / "arrays").mkdir()
    np.save(tmp_path / "arrays" / "x.npy", x)
    np.save(tmp_path / "arrays" / "labels.npy", y)
    return tmp_path


def test_the_same_task_from_every_kind_of_file(folder):
    model = folder / "model.onnx"
    tasks = [
        open_task(model, data=folder / "data.npz"),
        open_task(str(model), data=str(folder / "arrays")),
        open_task(model, data=[folder / "x.npy", folder / "labels.npy"]),
        open_task(model, data=folder / "x.npy", labels=folder / "labels.npy"),
        open_task(model, data=folder / "x.npy", labels=folder / "data.npz"),
    ]
    assert len({task.fingerprint for task in tasks}) == 1
    assert (tasks[0].name, tasks[0].metric) == ("model", "accuracy")
    assert not open_task(model, data=folder / "x.npy").labelled


def test_a_lone_file_may_have_any_name(folder):
    (folder / "x.npy").rename(folder / "images.npy")
    task = open_task(folder / "model.onnx", data=folder / "images.npy", calibration=folder / "images.npy")
    assert len(task.calibration) == len(task.evaluation) == 40


def test_a_task_file_may_import_its_neighbours(folder):
    (folder / "neighbour_of_task.py").write_text("ROWS = 10\n")
    (folder / "mine.py").write_text(
        "from pathlib import Path\n"
        "import numpy as np\n"
        "from neighbour_of_task import ROWS\n"
        "from alula.task import open_task\n"
        "HERE = Path(__file__).parent\n"
        "def task():\n"
        "    return open_task(HERE / 'model.onnx', data=HERE / 'data.npz', calibration=HERE / 'x.npy')\n"
    )
    before = list(sys.path)
    assert open_task(folder / "mine.py").metric == "accuracy"
    assert sys.path == before
    (folder / "constant.py").write_text("from mine import task\nTASK = task()\ndel task\n")
    assert open_task(folder / "constant.py").metric == "accuracy"


# --- the page


def test_the_examples_of_the_page_run(tmp_path, monkeypatch, capsys):
    page = (Path(__file__).parents[1] / "docs" / "tasks.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec("\n".join(blocks), {"__name__": "page"})
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["accuracy 100 300", "False"]
    assert lines[-1] == "tiny"
    assert all(0 < float(line) < 1 for line in lines[2:-1])
    assert len(lines) == 7
