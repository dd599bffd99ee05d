"""Files appear whole or not at all, and a refusal of the system is an error with a fix."""

from __future__ import annotations

import pytest

from alula.errors import StorageError
from alula.storage import appearing, write_text


def test_what_was_there_stays_when_writing_fails(tmp_path):
    path = tmp_path / "file"
    path.write_text("before")

    def write_half() -> None:
        with appearing(path) as partial:
            partial.write_text("half")
            raise ValueError

    with pytest.raises(ValueError):  # noqa: PT011
        write_half()
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_a_missing_folder_is_an_error_with_a_fix(tmp_path):
    with pytest.raises(StorageError, match=r"cannot write .*missing.*No such file.*check the path"):
        write_text(tmp_path / "missing" / "file", "text")


def test_a_file_system_that_refuses_even_to_remove_is_one_error(tmp_path, monkeypatch):
    def refuse(*_args, **_kwargs):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("pathlib.Path.write_text", refuse)
    monkeypatch.setattr("pathlib.Path.unlink", refuse)
    with pytest.raises(StorageError, match="Read-only file system"):
        write_text(tmp_path / "file", "text")
