from __future__ import annotations

import errno
import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from alula.errors import StorageError
from alula.search.store import Store, lock_folder, trial_key
from alula.storage import storing, write_text


def test_what_was_put_is_got_by_another_process_of_the_same_task(tmp_path: Path) -> None:
    path = tmp_path / "trials.sqlite"
    with Store(path, task="t") as store:
        store.put("k", "trial", {"score": 0.1, "names": ["é", "b"]})
        assert len(store) == 1
        assert store.written == 1
    with Store(path, task="t") as store:
        assert store.get("k") == {"score": 0.1, "names": ["é", "b"]}
        assert store.get("other") is None
        assert store.written == 0


def test_a_float_comes_back_bit_for_bit(tmp_path: Path) -> None:
    values = [0.1, 1 / 3, 5e-324, 1e308]
    with Store(tmp_path / "s") as store:
        store.put("k", "trial", {"v": values})
        got = store.get("k")
    assert got is not None
    assert got["v"] == values


def test_the_key_depends_on_every_fact_and_not_on_their_order() -> None:
    facts = {"task": "a", "recipe": "b", "target": {"name": "t", "threads": 1}, "version": "1", "seed": 0}
    key = trial_key(**facts)
    assert key == trial_key(**dict(reversed(list(facts.items()))))
    for name in facts:
        assert trial_key(**{**facts, name: "changed"}) != key


def test_a_store_of_another_task_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "trials.sqlite"
    Store(path, task="one").close()
    with pytest.raises(StorageError, match=r"another task.*choose another output folder"):
        Store(path, task="two")


@pytest.mark.parametrize("damage", [b"this is no database at all" * 50, b"SQLite format 3\x00" + bytes(2000)])
def test_a_damaged_store_says_what_to_do(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "trials.sqlite"
    path.write_bytes(damage)
    with pytest.raises(StorageError, match=r"damaged.*trials\.sqlite\.damaged.*starts anew"):
        Store(path, task="t")


def test_a_store_damaged_in_its_pages_is_found_out(tmp_path: Path) -> None:
    path = tmp_path / "trials.sqlite"
    with Store(path, task="t") as store:
        for index in range(200):
            store.put(str(index), "trial", {"text": "x" * 500})
    data = bytearray(path.read_bytes())
    data[4096:-4096] = os.urandom(len(data) - 8192)
    path.write_bytes(bytes(data))
    with pytest.raises(StorageError, match="damaged"):
        Store(path, task="t")


def test_a_payload_that_is_not_json_is_damage(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with Store(path) as store:
        store.put("k", "trial", {})
        with sqlite3.connect(path) as other:
            other.execute("UPDATE trials SET payload = '{'")
        other.close()
        with pytest.raises(StorageError, match="not JSON"):
            store.get("k")


def test_a_full_disk_is_said_and_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with Store(path) as store:
        store.put("first", "trial", {"kept": True})
        pages = store._connection.execute("PRAGMA page_count").fetchone()[0]
        store._connection.execute(f"PRAGMA max_page_count = {pages}")  # sqlite's own way to a full disk
        with pytest.raises(StorageError, match=r"disk is full.*free space"):
            store.put("second", "trial", {"text": "x" * 100_000})
    with Store(path) as store:
        assert store.get("first") == {"kept": True}
        assert store.get("second") is None


def test_running_out_of_space_in_a_file_is_a_storage_error() -> None:
    with pytest.raises(StorageError, match=r"No space left.*free space"), storing("write x"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_text_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    write_text(tmp_path / "a.json", "{}")
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
    with pytest.raises(StorageError, match="missing"):
        write_text(tmp_path / "missing" / "a.json", "{}")


def test_a_folder_is_held_by_one_run(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "out"
    with lock_folder(folder) as held:
        assert held == folder
        with pytest.raises(StorageError, match=f"another run \\(process {os.getpid()}\\)"), lock_folder(folder):
            pass
    with lock_folder(folder):  # free again
        pass


def test_a_system_without_locks_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fcntl", None)  # as on Windows
    with pytest.raises(StorageError, match=r"cannot lock the folder .*no flock.*WSL"), lock_folder(tmp_path / "out"):
        pass


def test_a_folder_that_cannot_be_locked_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fcntl

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(StorageError, match=r"cannot lock the folder .*No locks available"), lock_folder(tmp_path):
        pass


def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot make the folder"), lock_folder(tmp_path / "file" / "out"):
        pass


KILLED = """
    import os, signal, sys
    from pathlib import Path
    from alula.search.store import Store, lock_folder
    folder = Path(sys.argv[1])
    with lock_folder(folder), Store(folder / "trials.sqlite", task="t") as store:
        for index in range(20):
            store.put(str(index), "trial", {"index": index})
        store._connection.execute("BEGIN")
        store._connection.execute("INSERT INTO trials (key, kind, payload) VALUES ('half', 'trial', '{}')")
        os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_run_loses_only_the_trial_it_was_busy_with_and_frees_the_folder(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(KILLED), str(tmp_path)], timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL
    with lock_folder(tmp_path), Store(tmp_path / "trials.sqlite", task="t") as store:
        assert len(store) == 20
        assert store.get("19") == {"index": 19}
        assert store.get("half") is None
