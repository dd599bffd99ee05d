"""The examples' tasks open, hold what their pages say, and their networks score as well as published."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from alula.graph.running import Runner
from alula.task import Task, open_task

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def open_example(name: str) -> Task:
    return open_task(EXAMPLES / name / "task.py")


def score_some(task: Task, count: int) -> np.ndarray:
    """The scores of the unchanged network on the first evaluation examples."""
    runner = Runner(task.parts["model"], threads=1)
    return task.scorer(lambda feeds, part="model": runner(feeds), task.evaluation[:count])


@pytest.mark.parametrize(
    ("name", "calibration", "evaluation", "layers", "least"),
    [("spam", 300, 3357, 40, 0.95), ("vision", 200, 800, 50, 0.60), ("voice", 64, 2500, 7, 0.94)],
)
def test_example(name: str, calibration: int, evaluation: int, layers: int, least: float) -> None:
    task = open_example(name)
    assert (len(task.calibration), len(task.evaluation)) == (calibration, evaluation)
    assert len(task.parts["model"].layers()) == layers
    scores = score_some(task, 60)
    assert scores.shape == (60,)
    assert least <= scores.mean() <= 1


def test_an_example_is_the_same_every_time() -> None:
    assert open_example("voice").fingerprint == open_example("voice").fingerprint


def test_missing_data_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from examples.data import data_file

    monkeypatch.setenv("ALULA_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"spoken-digits\.npz is not in .*Jakobovski.*ALULA_DATA"):
        data_file("spoken-digits.npz")


def test_cache_follows_the_files_of_the_example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from examples.data import cache_folder

    monkeypatch.setenv("ALULA_CACHE", str(tmp_path / "cache"))
    home = tmp_path / "toy"
    home.mkdir()
    task_file = home / "task.py"
    task_file.write_text("a = 1")
    first = cache_folder(task_file, "numpy")
    assert cache_folder(task_file, "numpy") == first
    assert first.parent == tmp_path / "cache"
    (home / "network.py").write_text("b = 1")
    assert cache_folder(task_file, "numpy") != first
    assert cache_folder(task_file, "numpy", "onnx") != cache_folder(task_file, "numpy")


def test_repeated_messages_are_left_out() -> None:
    from examples.spam.task import distinct

    first = ("You won 1000 pounds! Call 0800 1234 now to claim it", 1)
    again = ("you WON 500 pounds!! call 0845 99 now to claim it", 1)
    other = ("Are you coming home for dinner", 0)
    assert distinct([first, other, again, ("", 0), other]) == [first, other, ("", 0)]


def test_digits_stand_between_labelled_pauses() -> None:
    from examples.voice.task import FRAME, PAUSE, at_twice_the_rate, balanced, between_pauses

    clip = at_twice_the_rate(np.sin(np.arange(1000) * 0.3))
    np.testing.assert_allclose(clip[400:1600], np.sin(np.arange(400, 1600) * 0.15), atol=0.01)
    sound, labels = between_pauses(clip, np.random.default_rng(0))
    pause, frames = PAUSE // FRAME, 4  # 2,000 samples: three frames full of it and a part of a fourth
    assert sound.shape == (2 * pause + frames, FRAME)
    assert labels.tolist() == [0] * pause + [1, 1, 1, -1] + [0] * pause
    assert balanced(labels == 1, labels) == 1
    assert balanced(np.ones(len(labels), bool), labels) == 0.5


def test_photos_are_cropped_around_the_middle() -> None:
    import io

    from PIL import Image

    from examples.vision.task import decode

    picture = Image.new("RGB", (600, 300), "red")
    picture.paste((0, 0, 255), (270, 120, 330, 180))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=95)
    photo = decode(buffer.getvalue())
    assert photo.shape == (3, 224, 224)
    assert photo[2, 112, 112] > 200 > 60 > photo[0, 112, 112]
    assert photo[0, 5, 5] > 200 > 60 > photo[2, 5, 5]
