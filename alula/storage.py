"""Files that appear whole or not at all, and the system's refusals to write them as errors with a fix."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from alula.errors import StorageError


@contextmanager
def appearing(path: Path) -> Iterator[Path]:
    """A path to write to; when the block ends well, what stands there takes the place of ``path``.

    Raises:
        StorageError: the disk is full, or the folder cannot be written. What was there before stays.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with storing(f"write {path}"):
            yield partial
            partial.replace(path)
    finally:
        with suppress(OSError):  # a file system that is read-only refuses even to remove what is not there
            partial.unlink(missing_ok=True)


@contextmanager
def storing(deed: str) -> Iterator[None]:
    """Turn the system's refusals to write into StorageError with the fix."""
    try:
        yield
    except OSError as error:
        fix = "free space" if error.errno == errno.ENOSPC else "check the path and its permissions"
        raise StorageError(f"cannot {deed}: {error.strerror or error}; {fix}, or choose another folder") from error


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all.

    Raises:
        StorageError: the disk is full or the folder cannot be written.
    """
    with appearing(path) as partial:
        partial.write_text(text, encoding="utf-8")
