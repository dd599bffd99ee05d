"""The trainer: the same steps as a plain loop, the same result after a kill, and clear ends where it cannot go on."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from alula import Model, Training, restored, trainable
from alula.errors import DataError, ModelError, RecipeError, StorageError
from alula.training.batches import batches_of
from alula.training.gradual import Gradual
from alula.training.losses import CrossEntropy, SoftLabels
from alula.training.trainer import Around, Progress, TrainingError, train
from alula.training.training import learning_rate_at
from tests.training.networks import rows, small

PLAIN = Training(epochs=3, batch_size=16, learning_rate=0.05, optimiser="sgd", precision="float32", weight_decay=1e-3)


class Killed(BaseException):
    """Stands for a kill that the process notices."""


def stop_at(step: int):
    def report(progress: Progress) -> None:
        if progress.step == step:
            raise Killed

    return report


def data(model: Model, settings: Training = PLAIN):
    return batches_of(model, *rows(), batch_size=settings.batch_size, seed=settings.seed)


def weights(model: Model) -> dict[str, np.ndarray]:
    return {
        name: value.const_value.numpy()
        for name, value in model.graph.initializers.items()
        if value.const_value.dtype.is_floating_point()
    }


def distance(one: Model, other: Model) -> float:
    theirs = weights(other)
    return max(float(np.abs(array - theirs[name]).max()) for name, array in weights(one).items())


def plain_loop(model: Model, settings: Training) -> Model:
    """The textbook: the same batches, one by one, by torch alone."""
    module = trainable(model).train()
    decaying = [one for one in module.parameters() if one.ndim >= 2]
    others = [one for one in module.parameters() if one.ndim < 2]
    optimiser = torch.optim.SGD(
        [{"params": decaying, "weight_decay": settings.weight_decay}, {"params": others}], 0.1, 0.9, nesterov=True
    )
    images, labels = rows()
    steps, step = int(settings.epochs * (96 // settings.batch_size)), 0
    for epoch in range(int(settings.epochs)):
        order = np.random.default_rng([settings.seed, epoch]).permutation(96)
        for start in range(0, 96, settings.batch_size):
            picked = np.sort(order[start : start + settings.batch_size])
            for group in optimiser.param_groups:
                group["lr"] = learning_rate_at(step, steps, settings)
            optimiser.zero_grad()
            logits = module(torch.from_numpy(images[picked]))
            torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels[picked])).backward()
            optimiser.step()
            step += 1
    return restored(module)


def test_it_does_what_a_plain_loop_does() -> None:
    model = small()
    trained = train(model, data(model), CrossEntropy(), PLAIN)
    assert distance(trained.model, plain_loop(model, PLAIN)) < 1e-4  # memory layouts differ in their sums
    assert distance(trained.model, model) > 0.01
    assert trained.history[-1].loss < trained.history[0].loss
    assert [epoch.number for epoch in trained.history] == [1, 2, 3]


@pytest.mark.parametrize("settings", [
    PLAIN,
    Training(epochs=3, batch_size=16, averaging=0.9, precision="bfloat16", clip=1.0, accumulate=2, patience=5),
    Training(epochs=3, batch_size=16, gradual=Gradual(0.8, every=2, end=0.7)),
], ids=["sgd", "adamw", "gradual"])  # fmt: skip
@pytest.mark.parametrize("step", [1, 7, 12])
def test_a_killed_run_goes_on_to_the_same_result(tmp_path: Path, settings: Training, step: int) -> None:
    model = small()
    score = lambda candidate: -distance(candidate, model)  # noqa: E731
    whole = train(model, data(model), CrossEntropy(), settings, around=Around(score=score))
    with pytest.raises(Killed):
        train(model, data(model), CrossEntropy(), settings, around=Around(score, tmp_path, stop_at(step)))
    resumed = train(model, data(model), CrossEntropy(), settings, around=Around(score, tmp_path))
    assert resumed.model.fingerprint == whole.model.fingerprint
    assert resumed.history == whole.history


def test_a_finished_run_is_not_done_again(tmp_path: Path) -> None:
    model = small()
    first = train(model, data(model), CrossEntropy(), PLAIN, around=Around(folder=tmp_path))
    again = train(model, data(model), CrossEntropy(), PLAIN, around=Around(None, tmp_path, stop_at(1)))
    assert again.model.fingerprint == first.model.fingerprint


def test_a_killed_process_loses_nothing(tmp_path: Path) -> None:
    script = tmp_path / "run.py"
    script.write_text(
        textwrap.dedent(f"""
        import sys, time
        sys.path.insert(0, {str(Path(__file__).parents[2])!r})
        import alula.training.trainer as trainer
        trainer.SAVE_SECONDS = 0.0
        from pathlib import Path
        from tests.training.test_trainer import *
        def report(progress):
            if "slow" in sys.argv:
                print(progress.step, flush=True)
                time.sleep(0.2)
        torch.set_num_threads(1)
        model = small()
        trained = train(model, data(model), CrossEntropy(), PLAIN, around=Around(None, Path({str(tmp_path)!r}), report))
        print(trained.model.fingerprint, flush=True)
    """)
    )
    process = subprocess.Popen([sys.executable, script, "slow"], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    while process.stdout.readline().strip() != "8":
        assert process.poll() is None
    time.sleep(0.1)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    resumed = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True).stdout.split()[-1]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    model = small()
    assert train(model, data(model), CrossEntropy(), PLAIN).model.fingerprint == resumed
    torch.set_num_threads(threads)


def test_two_processes_do_what_one_does(tmp_path: Path) -> None:
    script = tmp_path / "run.py"
    script.write_text(
        textwrap.dedent(f"""
        import sys
        sys.path.insert(0, {str(Path(__file__).parents[2])!r})
        from tests.training.test_trainer import *
        torch.set_num_threads(1)
        model = small(norm=False)
        scores = []
        def score(candidate):
            scores.append(1.0)
            return 1.0
        trained = train(model, data(model), CrossEntropy(), PLAIN, around=Around(score=score))
        trained.model.save({str(tmp_path)!r} + "/" + sys.argv[1] + ".onnx")
        print(len(scores), len(trained.history))
        import torch.distributed
        torch.distributed.destroy_process_group()
    """)
    )
    environment = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29517",
                   "ACCELERATE_USE_CPU": "true", "LOCAL_WORLD_SIZE": "2"}  # fmt: skip
    both = [
        subprocess.Popen([sys.executable, "-W", "ignore", script, str(rank)], stdout=subprocess.PIPE, text=True,
                         env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(2)
    ]  # fmt: skip
    counts = [process.communicate(timeout=100)[0].split() for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert counts == [["3", "3"], ["0", "3"]]  # the first scores, the other is told
    from alula import load_model

    first, second = (load_model(tmp_path / f"{rank}.onnx") for rank in range(2))
    assert first.fingerprint == second.fingerprint
    model = small(norm=False)
    alone = train(model, data(model), CrossEntropy(), PLAIN, around=Around(score=lambda _: 1.0))
    assert distance(first, alone.model) < 1e-4


def test_a_loss_that_is_not_finite_stops_with_the_step_the_layer_and_the_last_good_state() -> None:
    model = small(norm=False)
    wild = Training(epochs=4, batch_size=16, learning_rate=1e25, optimiser="sgd", warm_up=0.0, precision="float32")
    said = r"stopped at step \d+ of 24: the loss is (nan|inf), first in layer 'head'"
    with pytest.raises(TrainingError, match=said) as caught:
        train(model, data(model), CrossEntropy(), wild)
    assert caught.value.trained is not None
    assert all(np.isfinite(array).all() for array in weights(caught.value.trained.model).values())


def test_the_best_epoch_is_returned_and_patience_ends_training() -> None:
    model = small()
    scores = iter([0.3, 0.9, 0.5, 0.4, 0.8])
    seen = []

    def score(candidate: Model) -> float:
        seen.append(candidate.fingerprint)
        return next(scores)

    settings = Training(epochs=5, batch_size=16, patience=2)
    trained = train(model, data(model), CrossEntropy(), settings, around=Around(score=score))
    assert trained.model.fingerprint == seen[1]
    assert len(trained.history) == 4
    assert "no better score in 2 epochs" in str(trained.model.notes[-1])


def test_a_score_that_is_no_number_is_refused() -> None:
    model = small()
    with pytest.raises(DataError, match="must give a number"):
        train(model, data(model), CrossEntropy(), PLAIN, around=Around(score=lambda _: float("nan")))


def test_accumulated_parts_give_the_gradient_of_the_whole() -> None:
    model = small(norm=False)
    whole, parts = (
        train(model, data(model), CrossEntropy(), Training(epochs=2, batch_size=16, accumulate=count,
                                                          optimiser="sgd", precision="float32")).model
        for count in (1, 3)
    )  # fmt: skip
    assert 0 < distance(whole, parts) < 1e-5


def test_a_teacher_is_learned_from_without_labels() -> None:
    teacher, student = small(seed=1), small(4, seed=2)
    images, _ = rows()
    batches = batches_of(student, images, batch_size=16)
    trained = train(student, batches, SoftLabels(), Training(epochs=8, batch_size=16, learning_rate=0.03),
                    teachers=[teacher])  # fmt: skip
    name = [model.outputs[0].name for model in (teacher, student)]
    want = teacher.run({"images": images})[name[0]]
    before, after = (model.run({"images": images})[name[1]] for model in (student, trained.model))
    assert np.abs(softmax(after) - softmax(want)).mean() < 0.5 * np.abs(softmax(before) - softmax(want)).mean()


def softmax(logits: np.ndarray) -> np.ndarray:
    e = np.exp(logits - logits.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def test_teachers_that_do_not_fit_are_refused_before_training() -> None:
    model = small()
    torch.manual_seed(0)
    from alula import export_module

    other = export_module(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 5)), torch.zeros(2, 3, 8, 8))
    with pytest.raises(ModelError, match="the teacher reads the inputs"):
        train(model, data(model), SoftLabels(), PLAIN, teachers=[other])
    named = export_module(
        torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 5)), torch.zeros(2, 3, 8, 8),
        input_names=["images"],
    )  # fmt: skip
    with pytest.raises(RecipeError, match=r"must give the same shape, got \[16, 2\] and \[16, 5\]"):
        train(model, data(model), SoftLabels(), PLAIN, teachers=[named])


def test_data_that_end_early_are_said_and_what_was_trained_is_kept(tmp_path: Path) -> None:
    model = small()
    images, labels = rows()

    class Liar(list):
        def __len__(self) -> int:
            return 9

    loader = Liar([(images[i : i + 16], labels[i : i + 16]) for i in range(0, 96, 16)])
    with pytest.raises(DataError, match=r"ended after 6 of 9 batches of epoch 1"):
        train(model, batches_of(model, loader), CrossEntropy(), PLAIN, around=Around(folder=tmp_path))
    assert (tmp_path / "training.safetensors").is_file()


def test_a_folder_of_another_run_is_refused(tmp_path: Path) -> None:
    model = small()
    train(model, data(model), CrossEntropy(), PLAIN, around=Around(folder=tmp_path))
    with pytest.raises(StorageError, match="holds a run of another model"):
        train(small(seed=5), data(model), CrossEntropy(), PLAIN, around=Around(folder=tmp_path))


@pytest.mark.parametrize("damage", [b"", b"no state", b"\xff" * 64])
def test_a_damaged_state_is_refused_by_its_name(tmp_path: Path, damage: bytes) -> None:
    model = small()
    (tmp_path / "training.safetensors").write_bytes(damage)
    with pytest.raises(StorageError, match=r"training\.safetensors cannot be read as the state of a training run"):
        train(model, data(model), CrossEntropy(), PLAIN, around=Around(folder=tmp_path))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_full_disk_is_an_error_with_the_fix(tmp_path: Path) -> None:
    model = small()
    (tmp_path / f".training.safetensors.{os.getpid()}.part").symlink_to("/dev/full")
    with pytest.raises(StorageError, match="free space"):
        train(model, data(model), CrossEntropy(), PLAIN, around=Around(folder=tmp_path))


def test_zeros_stay_zero_and_frozen_weights_stay(caplog: pytest.LogCaptureFixture) -> None:
    from alula.graph.editing import Editor

    model = small()
    editor, weight = Editor(model.edit()), model.weight("conv.weight").copy()
    weight[::2] = 0
    editor.replace_constant("conv.weight", weight)
    pruned = model.edited(editor.model)
    with caplog.at_level(logging.INFO):
        trained = train(pruned, data(pruned), CrossEntropy(), Training(epochs=1, batch_size=16, freeze=("head.*",)))
    after = trained.model.weight("conv.weight")
    assert not after[::2].any()
    assert np.abs(after[1::2] - weight[1::2]).max() > 0
    np.testing.assert_array_equal(trained.model.weight("head.weight"), model.weight("head.weight"))
    free = train(pruned, data(pruned), CrossEntropy(), Training(epochs=1, batch_size=16, keep_zeros=False))
    assert free.model.weight("conv.weight")[::2].any()


@pytest.mark.parametrize("scope", ["global", "uniform", "erk"])
def test_weights_become_zero_little_by_little(scope: str) -> None:
    model, shares = small(), []

    def look(candidate: Model) -> float:
        zeros = [(candidate.weight(name) == 0) for name in ("conv.weight", "head.weight")]
        shares.append(sum(int(one.sum()) for one in zeros) / sum(one.size for one in zeros))
        return float(len(shares))

    settings = Training(epochs=5, batch_size=16, gradual=Gradual(0.75, every=3, end=0.6, scope=scope))
    train(model, data(model), CrossEntropy(), settings, around=Around(score=look))
    assert 0.3 < shares[0] < shares[1] < shares[2] + 1e-9
    assert shares[2:] == pytest.approx([0.75] * 3, abs=0.01)  # reached at 18 of 30 steps, and kept


def zeros_of(model: Model) -> float:
    found = [model.weight(name) == 0 for name in ("conv.weight", "head.weight")]
    return sum(int(one.sum()) for one in found) / sum(one.size for one in found)


def test_what_is_not_sparse_yet_is_not_the_best() -> None:
    model, scores = small(), iter([0.9, 0.8, 0.7, 0.6, 0.65])
    settings = Training(epochs=5, batch_size=16, patience=2, gradual=Gradual(0.75, every=3, end=0.6))
    trained = train(model, data(model), CrossEntropy(), settings, around=Around(score=lambda _: next(scores)))
    assert zeros_of(trained.model) == pytest.approx(0.75, abs=0.01)
    assert len(trained.history) == 5  # patience counts from the third epoch on
    assert "weights of epoch 3" in str(trained.model.notes[-1])


def test_the_average_is_sparse_too_and_old_zeros_stay() -> None:
    from alula.graph.editing import Editor

    model = small()
    editor, weight = Editor(model.edit()), model.weight("conv.weight").copy()
    weight[::2] = 0
    editor.replace_constant("conv.weight", weight)
    settings = Training(epochs=2, batch_size=16, averaging=0.9, gradual=Gradual(0.3, every=2, scope="uniform"))
    trained = train(model.edited(editor.model), data(model), CrossEntropy(), settings).model
    assert not trained.weight("conv.weight")[::2].any()
    assert (trained.weight("head.weight") == 0).mean() == pytest.approx(0.3, abs=0.1)


def test_a_step_that_was_interrupted_half_way_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from alula.training.learner import Learner

    model = small()
    whole = train(model, data(model), CrossEntropy(), PLAIN)
    backward = Learner._backward

    def interrupt(self, *given):
        value = backward(self, *given)
        if len(calls) == 8:
            raise KeyboardInterrupt
        calls.append(value)
        return value

    calls: list[float] = []
    monkeypatch.setattr(Learner, "_backward", interrupt)
    with pytest.raises(KeyboardInterrupt):
        train(model, data(model), CrossEntropy(), PLAIN, around=Around(folder=tmp_path))
    monkeypatch.setattr(Learner, "_backward", backward)
    resumed = train(model, data(model), CrossEntropy(), PLAIN, around=Around(folder=tmp_path))
    assert resumed.model.fingerprint == whole.model.fingerprint


def test_training_leaves_the_users_own_draws_alone() -> None:
    torch.manual_seed(5)
    want = torch.rand(3)
    model = small()
    torch.manual_seed(5)
    train(model, data(model), CrossEntropy(), Training(epochs=1, batch_size=32))
    assert torch.equal(torch.rand(3), want)


def test_batch_statistics_move_or_stay() -> None:
    model = small()
    moved, kept = (
        train(model, data(model), CrossEntropy(), Training(epochs=1, batch_size=16, batch_statistics=batch)).model
        for batch in (True, False)
    )
    assert np.abs(moved.weight("norm.running_mean") - model.weight("norm.running_mean")).max() > 0
    np.testing.assert_array_equal(kept.weight("norm.running_mean"), model.weight("norm.running_mean"))


def test_nothing_left_to_train_is_refused() -> None:
    model = small()
    with pytest.raises(RecipeError, match="nothing is left to train"):
        train(model, data(model), CrossEntropy(), Training(freeze=("*",)))
    with pytest.raises(RecipeError, match="freeze pattern 'nowhere' matches none of"):
        train(model, data(model), CrossEntropy(), Training(freeze=("nowhere",)))


def test_an_output_that_no_weight_reaches_is_said() -> None:
    class Argmax(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = torch.nn.Linear(192, 2)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.head(images.flatten(1)).argmax(1).float().unsqueeze(1)

    from alula import export_module

    torch.manual_seed(0)
    model = export_module(Argmax(), torch.zeros(2, 3, 8, 8))
    with pytest.raises(ModelError, match="no gradient reaches any layer: ArgMax"):
        train(model, data(model), CrossEntropy(), PLAIN)
