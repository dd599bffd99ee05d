"""Reading what a task is made of: Python files that define one, and files of arrays. Nothing here runs pickled code."""

from __future__ import annotations

import importlib.util
import math
import sys
import traceback
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import IO, Any

import numpy as np

from alula.errors import AlulaError, DataError, at

Source = str | Path | Sequence[str | Path]


def run_task_file(path: Path) -> Any:
    """What ``task()``, or else ``TASK``, of a Python file gives. The file's folder is on sys.path meanwhile.

    Raises:
        DataError: the file cannot be run, raises, or defines neither; the message holds the file and line.
    """
    with _folder_on_path(path.parent), _blaming(path):
        module = _import_file(path)
        if callable(getattr(module, "task", None)):
            return module.task()
        if hasattr(module, "TASK"):
            return module.TASK
    raise DataError(f"{path} must define a function task() that returns a Task")


def read_arrays(source: Source) -> dict[str, np.ndarray]:
    """Arrays by name from an ``.npz``, a folder of ``.npy`` files, or one or several files; pickled arrays are refused.

    Raises:
        DataError: a file is missing, damaged, of another kind or pickled, or a name comes twice.
    """
    if isinstance(source, str | Path):
        return _read_path(Path(source))
    arrays: dict[str, np.ndarray] = {}
    for path in source:
        for name, array in _read_path(Path(path)).items():
            if name in arrays:
                raise DataError(f"{path}: there is an array named {name!r} already; rename one of them")
            arrays[name] = array
    return arrays


def raised_at(error: BaseException, path: Path) -> str:
    """``file:line`` where an exception was raised, in the file or else in its folder; "" if in neither."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if Path(frame.filename) == path]
    near = own or [frame for frame in frames if path.parent in Path(frame.filename).parents]
    return f"{near[-1].filename}:{near[-1].lineno}" if near else ""


def _read_path(path: Path) -> dict[str, np.ndarray]:
    if path.is_dir():
        files = sorted(path.glob("*.npy"))
        if not files:
            raise DataError(f"the folder {path} holds no .npy files; name them after the inputs, and labels.npy")
        return {file.stem: _read_npy(file) for file in files}
    if not path.is_file():
        raise DataError(f"{path} does not exist; give an .npz or .npy file, or a folder of .npy files")
    if path.suffix == ".npz":
        return _read_npz(path)
    if path.suffix == ".npy":
        return {path.stem: _read_npy(path)}
    raise DataError(f"{path} must be an .npz or .npy file, or a folder of .npy files")


def _read_npy(path: Path) -> np.ndarray:
    with _refusing_damage(path), path.open("rb") as file:
        return _read_array(file, path.stat().st_size)


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    arrays = {}
    with _refusing_damage(path), zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            if not member.filename.endswith(".npy"):
                raise ValueError(f"it holds {member.filename!r}, which is no array; write it with numpy.savez")
            with archive.open(member) as file:
                arrays[member.filename.removesuffix(".npy")] = _read_array(file, member.file_size)
    return arrays


def _read_array(file: IO[bytes], size_bytes: int) -> np.ndarray:
    """One array in NumPy's format; its header is checked against the file's size before memory is taken."""
    version = np.lib.format.read_magic(file)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read_header(file)
    if dtype.hasobject:
        raise ValueError("pickled Python objects could run any code and are refused; save numbers or text")
    promised, held = math.prod(shape) * dtype.itemsize, size_bytes - file.tell()
    if promised != held:
        raise ValueError(f"its header promises {promised:,} bytes of {dtype}{list(shape)}, and it holds {held:,}")
    file.seek(0)
    array: np.ndarray = np.lib.format.read_array(file, allow_pickle=False)
    return array


@contextmanager
def _refusing_damage(path: Path) -> Iterator[None]:
    try:
        yield
    except (
        OSError,
        ValueError,
        EOFError,
        KeyError,
        MemoryError,
        RuntimeError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        reason = str(error) or type(error).__name__
        raise DataError(f"{path} is damaged or no file of plain arrays: {reason}") from error


@contextmanager
def _folder_on_path(folder: Path) -> Iterator[None]:
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        if str(folder) in sys.path:
            sys.path.remove(str(folder))


@contextmanager
def _blaming(path: Path) -> Iterator[None]:
    """Turn whatever the user's file raises into one line with the place in that file."""
    try:
        yield
    except AlulaError as error:
        with at(raised_at(error, path) or str(path)):
            raise
    except (Exception, SystemExit) as error:  # the file may be any code of the user's
        reason = error.msg if isinstance(error, SyntaxError) else error
        place = raised_at(error, path) or path
        raise DataError(f"the task file failed at {place}: {type(error).__name__}: {reason}") from error


def _import_file(path: Path) -> ModuleType:
    name = f"alula_task_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise DataError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up there
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
