"""Data as they should not be: each is refused with one line that says what is wanted."""

from __future__ import annotations

import io
import pickle
import zipfile

import numpy as np
import pytest

from alula.errors import AlulaError, BudgetError, DataError
from alula.measurement.score import score
from alula.task import Task, open_task, task_from_arrays
from tests.oracles.networks import linear, make_model, two_inputs

X = np.random.default_rng(0).normal(size=(12, 4)).astype(np.float32)


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("pickled code was run",))


def spoiled(value):
    x = X.copy()
    x[5, 2] = x[7, 0] = value
    return x


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"y": X}, r"wants the inputs \['x'\], got \['y'\]"),
        ({"x": X, "z": X}, r"got \['x', 'z'\]"),
        (X[:, :3], r"wants x: float32\[rows, 4\].*got float32\[12, 3\]"),
        (X[0], r"got float32\[4\]"),
        (X.astype(int), r"wants x: float32.*got int64"),
        (X.astype(complex), "got complex128"),
        (X.astype(str), "got <U"),
        (X.astype(object), "Python objects"),
        ([[1, 2], [3]], "cannot be made an array"),
        (3.0, "one row per example"),
        (X[:0], "no rows"),
        (spoiled(np.nan), "'x' holds NaN or Inf: 2 values in 2 of 12 rows, first in row 5"),
        (spoiled(-np.inf), "first in row 5"),
        (np.full((12, 4), 1e300), "do not fit float32"),
    ],
)
def test_inputs_that_do_not_fit(inputs, message):
    with pytest.raises(DataError, match=message):
        task_from_arrays(linear(), inputs)


def test_spoiled_calibration_is_named():
    with pytest.raises(DataError, match="calibration: input 'x' holds NaN or Inf"):
        task_from_arrays(linear(), X, calibration=spoiled(np.nan))
    with pytest.raises(DataError, match="calibration: the inputs hold no rows"):
        task_from_arrays(linear(), X, calibration=X[:0])


def test_two_inputs_want_names_equal_rows_and_whole_numbers():
    a, b = np.ones((6, 2)), np.ones((6, 2), int)
    with pytest.raises(DataError, match=r"2 inputs; give a mapping from \['a', 'b'\]"):
        task_from_arrays(two_inputs(), a)
    with pytest.raises(DataError, match=r"same number of rows.*'a': 6, 'b': 5"):
        task_from_arrays(two_inputs(), {"a": a, "b": b[:5]})
    with pytest.raises(DataError, match=r"wants b: int64.*got float64"):
        task_from_arrays(two_inputs(), {"a": a, "b": a})
    with pytest.raises(DataError, match="do not fit int64"):
        task_from_arrays(two_inputs(), {"a": a, "b": np.full((6, 2), 2**63, np.uint64)})


def test_inputs_without_a_row_axis_need_a_scorer():
    from onnx import TensorProto, helper

    scalar = make_model(
        [helper.make_node("Mul", ["x", "rate"], ["y"])],
        [("x", TensorProto.FLOAT, ["rows", 2]), ("rate", TensorProto.FLOAT, [])],
        [("y", TensorProto.FLOAT, ["rows", 2])],
    )
    with pytest.raises(DataError, match="has no row axis; write a Task"):
        task_from_arrays(scalar, {"x": np.ones((4, 2)), "rate": np.ones(4)})
    summed = make_model(
        [helper.make_node("ReduceSum", ["x"], ["y"], keepdims=0)],
        [("x", TensorProto.FLOAT, ["rows", 2])],
        [("y", TensorProto.FLOAT, [])],
    )
    with pytest.raises(DataError, match="one entry per row"):
        task_from_arrays(summed, np.ones((4, 2)))


@pytest.mark.parametrize("batch_size", [0, -1, 2.5])
def test_impossible_batches(batch_size):
    with pytest.raises(DataError, match="batch_size"):
        task_from_arrays(linear(), X, batch_size=batch_size)


def test_a_model_that_is_none():
    with pytest.raises(DataError, match="Model or the path"):
        task_from_arrays(None, X)


@pytest.fixture
def folder(tmp_path):
    linear().save(tmp_path / "model.onnx")
    return tmp_path


def npz_bytes(**arrays):
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def npy_bytes(array, **options):
    buffer = io.BytesIO()
    np.save(buffer, array, **options)
    return buffer.getvalue()


def archive(**members):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name, data in members.items():
            file.writestr(name.replace("__", "."), data)
    return buffer.getvalue()


def header(shape):
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return buffer.getvalue()


HUGE = header((10**12, 4)) + X.tobytes()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("empty.npz", b""),
        ("garbage.npz", b"garbage" * 100),
        ("cut.npz", npz_bytes(x=X)[:200]),
        ("flipped.npz", npz_bytes(x=X).replace(X.tobytes()[:8], b"\0" * 8)),
        ("text.npz", archive(readme__txt=b"hello")),
        ("member.npz", archive(x__npy=b"not an array")),
        ("huge.npz", archive(x__npy=HUGE)),
        ("empty.npy", b""),
        ("garbage.npy", b"garbage" * 100),
        ("cut.npy", npy_bytes(X)[:150]),
        ("longer.npy", npy_bytes(X) + b"more"),
        ("negative.npy", header((-12, -4)) + X.tobytes()),
        ("huge.npy", HUGE),
        ("header.npy", npy_bytes(X).replace(b"'descr': '<f4'", b"'descr': open()")),
        ("archive.npy", npz_bytes(x=X)),
        ("pickle.npy", pickle.dumps([1, 2, 3])),
        ("data.csv", b"1,2,3"),
    ],
)
def test_damaged_files(folder, name, content):
    (folder / name).write_bytes(content)
    with pytest.raises(DataError, match=name):
        open_task(folder / "model.onnx", data=folder / name)


def test_pickled_arrays_are_refused_and_never_run(folder):
    bomb = np.array([Bomb()], dtype=object)
    (folder / "bomb.npy").write_bytes(npy_bytes(bomb, allow_pickle=True))
    np.savez(folder / "bomb.npz", x=bomb)
    for name in ("bomb.npy", "bomb.npz"):
        with pytest.raises(DataError, match="pickled Python objects could run any code"):
            open_task(folder / "model.onnx", data=folder / name)
    (folder / "raw.npy").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(DataError, match=r"raw\.npy is damaged or no file of plain arrays"):
        open_task(folder / "model.onnx", data=folder / "raw.npy")


def test_missing_files_and_arrays(folder):
    model = folder / "model.onnx"
    with pytest.raises(DataError, match=r"nowhere\.npz does not exist"):
        open_task(model, data=folder / "nowhere.npz")
    with pytest.raises(DataError, match=r"nowhere\.onnx does not exist"):
        open_task(folder / "nowhere.onnx")
    with pytest.raises(DataError, match="needs data"):
        open_task(model)
    np.savez(folder / "data.npz", images=X, labels=np.zeros(12, int))
    with pytest.raises(DataError, match=r"wants the inputs \['x'\], got \['images'\]"):
        open_task(model, data=folder / "data.npz")
    (folder / "none").mkdir()
    with pytest.raises(DataError, match=r"holds no \.npy files"):
        open_task(model, data=folder / "none")
    np.savez(folder / "good.npz", x=X, labels=np.zeros(12, int))
    with pytest.raises(DataError, match="labels are given twice"):
        open_task(model, data=folder / "good.npz", labels=np.zeros(12, int))
    np.savez(folder / "many.npz", a=X, b=X)
    np.savez(folder / "inputs.npz", x=X)
    with pytest.raises(DataError, match="one array, or one named labels"):
        open_task(model, data=folder / "inputs.npz", labels=folder / "many.npz")
    with pytest.raises(DataError, match="there is an array named 'x' already"):
        open_task(model, data=[folder / "good.npz", folder / "good.npz"])


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("def task(:\n", r"mine\.py:1: SyntaxError"),
        ("import numpy\n\nraise ValueError('no data today')\n", r"mine\.py:3: ValueError: no data today"),
        ("def task():\n    return helper()\ndef helper():\n    return 1 / 0\n", r"mine\.py:4: ZeroDivisionError"),
        ("import numpy as np\ndef task():\n    return np.load('/nowhere.npy')\n", r"mine\.py:3: FileNotFoundError"),
        ("import sys\nsys.exit(3)\n", r"mine\.py:2: SystemExit: 3"),
        ("import not_installed_anywhere\n", r"mine\.py:1: ModuleNotFoundError"),
        ("x = 3\n", r"must define a function task\(\)"),
        ("def task():\n    return 3\n", r"must return a Task, got int"),
        ("def task():\n    pass\n", r"must return a Task, got NoneType"),
        ("TASK = 3\n", r"must return a Task, got int"),
        ("def task(n):\n    pass\n", "TypeError"),
    ],
)
def test_task_files_that_fail(tmp_path, code, message):
    (tmp_path / "mine.py").write_text(code)
    with pytest.raises(DataError, match=message):
        open_task(tmp_path / "mine.py")


def test_our_errors_in_a_task_file_keep_their_kind_and_get_its_line(tmp_path):
    code = "from alula.budget import Budget\ndef task():\n    return Budget(max_drop=-1)\n"
    (tmp_path / "mine.py").write_text(code)
    with pytest.raises(BudgetError, match=r"mine\.py:3: max_drop must be"):
        open_task(tmp_path / "mine.py")


def test_keyboard_interrupt_in_a_task_file_passes_through(tmp_path):
    (tmp_path / "mine.py").write_text("raise KeyboardInterrupt\n")
    with pytest.raises(KeyboardInterrupt):
        open_task(tmp_path / "mine.py")


def test_a_task_file_takes_no_data_options(tmp_path):
    (tmp_path / "mine.py").write_text("")
    with pytest.raises(DataError, match="brings its own data"):
        open_task(tmp_path / "mine.py", data=tmp_path / "x.npz")


class Broken(list):
    def __getitem__(self, index):
        if index == 2:
            raise OSError("disk gone")
        return super().__getitem__(index)


def test_examples_that_cannot_be_read():
    task = Task({"model": linear()}, [0], Broken(range(5)), lambda run, chunk: np.zeros(len(chunk)))
    with pytest.raises(DataError, match=r"evaluation: example 2 .*OSError: disk gone"):
        task.splits()
    with pytest.raises(DataError, match=r"example 2 .*OSError: disk gone"):
        score(task, task.parts["model"].run, task.evaluation)


def test_examples_that_hold_themselves_do_not_hang():
    loop = []
    loop.append(loop)
    task = Task({"model": linear()}, [loop], [loop, 3], lambda run, chunk: np.zeros(len(chunk)))
    assert len(task.fingerprint) == 64


def test_a_candidate_of_nan_outputs_is_no_score():
    task = task_from_arrays(linear(), X, np.zeros(12, int))
    with pytest.raises(AlulaError, match="gave nan for example 0"):
        score(task, lambda feeds, part="model": {"logits": np.full((len(feeds["x"]), 3), np.nan)}, task.evaluation)
