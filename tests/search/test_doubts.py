"""What a run must not pass over in silence: scores that tell little, outputs that strayed, examples that repeat."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import numpy as np
import pytest

from alula import Budget, OnnxRuntime, Task, compress, task_from_arrays
from alula.errors import AlulaError
from alula.examples import without_repeats
from alula.search import doubts
from alula.testing.models import dense_network, model_from_text

SIZE = Budget(max_drop=0.2, minimize="size")


def notes_of(task, folder, budget=SIZE):
    frontier = compress(task, budget, OnnxRuntime(threads=1), out=folder)
    return "\n".join(map(str, frontier.original.notes)), frontier


def data(rows=600, seed=0):
    random = np.random.default_rng(seed)
    x = random.standard_normal((rows, 16)).astype(np.float32)
    return x, dense_network().run({"features": x})["scores"].argmax(-1)


def test_a_scorer_that_changes_its_mind_is_noticed(tmp_path):
    x, _ = data(60)
    calls = itertools.count()

    def scorer(run, examples):
        run({"features": np.stack(examples)})
        return np.random.default_rng(next(calls)).integers(0, 2, len(examples))

    task = Task({"model": dense_network()}, list(x[:10]), list(x[10:]), scorer)
    assert "scores the original otherwise when run again" in notes_of(task, tmp_path)[0]


def test_an_original_no_better_than_a_constant_answer_is_noticed(tmp_path):
    x, y = data()
    assert (
        "no better than always answering"
        in notes_of(task_from_arrays(dense_network(), x, (y + 1) % 4), tmp_path / "a")[0]
    )
    assert "no better than" not in notes_of(task_from_arrays(dense_network(), x, y), tmp_path / "b")[0]


TWO = "n (float[b, 16] x) => (float[b, 4] y1, float[b, 4] y2) { y1 = MatMul (x, w1) y2 = MatMul (x, w2) }"


def two_outputs(scale=1.0):
    random = np.random.default_rng(0)
    first, second = (random.standard_normal((16, 4)).astype(np.float32) for _ in range(2))
    return model_from_text(TWO, {"w1": first, "w2": second * np.float32(scale)})


def test_an_output_that_no_score_reads_is_named():
    model, (x, _) = two_outputs(), data()
    task = task_from_arrays(model, x, model.run({"x": x})["y1"].argmax(-1))
    assert str(task.notes[-1]).startswith("output 'y1': it alone is scored; of what becomes of y2 ")


def test_an_output_that_is_no_longer_like_the_originals_is_named(tmp_path, monkeypatch):
    target, x = OnnxRuntime(threads=1), data(4)[0]
    before, after = (
        {"model": target.build(model, tmp_path / name)}
        for name, model in (("before", two_outputs()), ("after", two_outputs(scale=-1)))
    )
    monkeypatch.setattr(doubts, "artifacts_of", lambda search, trial: after)
    ground = SimpleNamespace(
        task=SimpleNamespace(parts={"model": two_outputs()}),
        target=target,
        artifacts=before,
        trace=(("model", {"x": x}),),
    )
    search = SimpleNamespace(ground=ground, emit=lambda event: None)
    assert [str(note).split(";")[0] for note in doubts.strayed(search, None)] == [
        "output 'y2': it is no longer like the original's: cosine -1.00"
    ]


def test_examples_that_repeat_do_not_count_twice(tmp_path):
    x, y = data(12)
    task = task_from_arrays(dense_network(), np.tile(x, (50, 1)), np.tile(y, 50))
    notes, frontier = notes_of(task, tmp_path)
    assert "repeat others and prove nothing new" in notes
    assert frontier.certificate is None or frontier.certificate.n <= 12


def test_a_few_repeats_are_borne():
    assert without_repeats([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 10]) == ([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 10], 0)
    kept, repeated = without_repeats([3, 1, 3, 2, 1])
    assert (list(kept), repeated) == ([3, 1, 2], 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"task": "mlp.onnx"}, "compress takes a Task, got str"),
        ({"budget": 0.01}, "write Budget\\(max_drop=0.01\\)"),
        ({"target": "openvino"}, "OpenVino\\(\\)"),
        ({"seed": -1}, "seed must be a whole number"),
        ({"out": None}, "out must be the path of a folder"),
    ],
)
def test_arguments_of_the_wrong_kind_are_refused_by_name(arguments, message, tmp_path):
    x, y = data(30)
    given = {"task": task_from_arrays(dense_network(), x, y), "out": tmp_path, **arguments}
    with pytest.raises(AlulaError, match=message):
        compress(given.pop("task"), **given)


def test_threads_that_would_stall_the_machine_are_refused():
    with pytest.raises(AlulaError, match="threads must be at most"):
        OnnxRuntime(threads=100_000)
