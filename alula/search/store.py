"""The store of trials: what was measured once is never measured again.

One SQLite file per output folder. A trial is written the moment it is finished, in one transaction, so that a run
killed at any point loses at most the trial it was busy with, and the same command goes on from there.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from alula.errors import StorageError
from alula.storage import storing

_FORMAT = "1"  # raised when the tables change
_SCHEMA = """
CREATE TABLE IF NOT EXISTS about (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS trials (
    key TEXT PRIMARY KEY, kind TEXT NOT NULL, payload TEXT NOT NULL, written TEXT DEFAULT CURRENT_TIMESTAMP
);
"""


def trial_key(**facts: Any) -> str:
    """A SHA-256 over everything a trial's result depends on; equal for equal facts, in whatever order they are given.

    >>> trial_key(task="a", seed=0) == trial_key(seed=0, task="a")
    True
    """
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()


class Store:
    """Finished trials by key, in a SQLite file that belongs to one task.

    Raises:
        StorageError: the file cannot be opened, is damaged, or holds the trials of another task.
    """

    def __init__(self, path: str | Path, *, task: str = "") -> None:
        self.path = Path(path)
        self.written = 0  # how many trials this run added
        with self._storing("open"):
            self._connection = sqlite3.connect(self.path, isolation_level=None, timeout=10)
        try:
            self._prepare(task)
        except BaseException:
            self._connection.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        with self._storing("read"):
            return int(self._connection.execute("SELECT COUNT(*) FROM trials").fetchone()[0])

    def close(self) -> None:
        """Close the file; a store that was not closed loses nothing."""
        self._connection.close()

    def put(self, key: str, kind: str, payload: Mapping[str, Any]) -> None:
        """Write one finished trial, whole or not at all; an older one of the same key is replaced.

        Raises:
            StorageError: the disk is full or the file cannot be written; nothing stored before is lost.
        """
        text = json.dumps(payload, sort_keys=True, allow_nan=True)
        with self._storing("write"):
            self._connection.execute(
                "INSERT OR REPLACE INTO trials (key, kind, payload) VALUES (?, ?, ?)", (key, kind, text)
            )
        self.written += 1

    def get(self, key: str) -> dict[str, Any] | None:
        """The trial stored under a key, or None.

        Raises:
            StorageError: the file is damaged.
        """
        with self._storing("read"):
            row = self._connection.execute("SELECT payload FROM trials WHERE key = ?", (key,)).fetchone()
        if row is None:
            return None
        try:
            payload = json.loads(row[0])
        except ValueError as error:
            raise StorageError(self._damaged(f"the trial {key[:12]} is not JSON")) from error
        if not isinstance(payload, dict):
            raise StorageError(self._damaged(f"the trial {key[:12]} is not an object"))
        return payload

    def _prepare(self, task: str) -> None:
        with self._storing("open"):
            self._connection.execute("PRAGMA journal_mode=WAL")
            self._connection.execute("PRAGMA synchronous=FULL")
            state = self._connection.execute("PRAGMA quick_check(1)").fetchone()[0]
            if state != "ok":
                raise StorageError(self._damaged(str(state)))
            self._connection.executescript(_SCHEMA)
            self._claim("format", _FORMAT, "was written by another version of alula")
            self._claim("task", task, "holds the trials of another task (another model, other data or another metric)")

    def _claim(self, name: str, value: str, otherwise: str) -> None:
        """Write a fact about the whole file, or check that it is the one that stands there."""
        self._connection.execute("INSERT OR IGNORE INTO about (name, value) VALUES (?, ?)", (name, value))
        found = self._connection.execute("SELECT value FROM about WHERE name = ?", (name,)).fetchone()[0]
        if found != value:
            raise StorageError(
                f"{self.path} {otherwise}: {name} {found[:12]!r}, not {value[:12]!r}; choose another output folder"
            )

    @contextmanager
    def _storing(self, deed: str) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            raise StorageError(
                f"cannot {deed} {self.path}: {error}; free space or make the folder writable, then run the same "
                "command again: what is stored is kept"
            ) from error
        except sqlite3.DatabaseError as error:
            raise StorageError(self._damaged(str(error))) from error

    def _damaged(self, reason: str) -> str:
        backup = self.path.with_name(self.path.name + ".damaged")
        return (
            f"the store of trials {self.path} is damaged ({reason}); move it away, for example to {backup.name}, "
            "and run the same command again: the search starts anew"
        )


@contextmanager
def lock_folder(folder: str | Path) -> Iterator[Path]:
    """Hold an output folder, made if it is missing, for one run.

    The lock is the kernel's (``flock`` on ``.lock``) and goes with the process, however it ends.

    Raises:
        StorageError: another run holds the folder, it cannot be made, locked or written, or the system has no flock.
    """
    folder = Path(folder)
    path = folder / ".lock"
    with storing(f"make the folder {folder}"):
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        _lock(descriptor, folder)
        with storing(f"write {path}"):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        yield folder
    finally:
        os.close(descriptor)


def _lock(descriptor: int, folder: Path) -> None:
    try:
        import fcntl
    except ModuleNotFoundError as error:
        raise StorageError(
            f"cannot lock the folder {folder}: this system has no flock; run this on Linux, macOS or in WSL"
        ) from error
    with storing(f"lock the folder {folder}"):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StorageError(
                f"another run{_holder(descriptor)} is writing to {folder}; wait for it or choose another folder"
            ) from error


def _holder(descriptor: int) -> str:
    try:
        text = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip()
    except OSError:
        return ""
    return f" (process {text})" if text.isdigit() else ""
