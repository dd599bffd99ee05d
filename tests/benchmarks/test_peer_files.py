"""What a benchmark and its children hand each other."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from benchmarks.peers.files import (
    ORDER_FILE,
    Feeds,
    Order,
    Report,
    read_memory,
    read_order,
    read_report,
    write_feeds,
    write_json,
    write_report,
)  # fmt: skip

FEEDS = [
    {"ids": np.arange(3)[None], "mask/a": np.ones((1, 3), np.int64)},
    {"ids": np.arange(5)[None], "mask/a": np.zeros((1, 5), np.int64)},
    {"ids": np.array(7), "mask/a": np.arange(6, dtype=np.float32).reshape(2, 3).T},
]


def test_feeds_come_back_one_by_one(tmp_path: Path) -> None:
    assert write_feeds(tmp_path / "feeds.npz", iter(FEEDS)) == 3
    feeds = Feeds(tmp_path / "feeds.npz")
    assert len(feeds) == 3
    for found, written in zip(feeds, FEEDS, strict=True):
        assert list(found) == list(written)
        for name, array in written.items():
            assert found[name].dtype == array.dtype
            assert found[name].shape == array.shape
            np.testing.assert_array_equal(found[name], array)
    assert len(feeds[1:]) == 2
    with pytest.raises(IndexError):
        feeds[3]


def test_more_than_ten_feeds_keep_their_order(tmp_path: Path) -> None:
    write_feeds(tmp_path / "feeds.npz", ({"x": np.array([index])} for index in range(12)))
    assert [int(feed["x"][0]) for feed in Feeds(tmp_path / "feeds.npz")] == list(range(12))


def test_an_unfinished_file_of_feeds_is_not_there(tmp_path: Path) -> None:
    def broken():
        yield {"x": np.zeros(1)}
        raise RuntimeError

    with pytest.raises(RuntimeError):
        write_feeds(tmp_path / "feeds.npz", broken())
    assert not (tmp_path / "feeds.npz").exists()


def test_feeds_are_a_plain_npz(tmp_path: Path) -> None:
    write_feeds(tmp_path / "feeds.npz", FEEDS)
    assert zipfile.ZipFile(tmp_path / "feeds.npz").testzip() is None
    with np.load(tmp_path / "feeds.npz") as arrays:
        np.testing.assert_array_equal(arrays["1/ids"], [[0, 1, 2, 3, 4]])


def test_report_round_trip(tmp_path: Path) -> None:
    assert read_report(tmp_path) is None
    report = Report(("model.xml", "model.bin"), 1.5, 300, 100, {"nncf": "1"}, ("a note",), "")
    write_report(tmp_path, report)
    assert read_report(tmp_path) == report
    assert report.increase_bytes == 200
    assert Report(peak_bytes=1, baseline_bytes=2).increase_bytes == 0


def test_order_round_trip(tmp_path: Path) -> None:
    order = Order("alula", {"target": "onnxruntime"}, "model.onnx", "feeds.npz", 10**9)
    write_json(tmp_path / ORDER_FILE, asdict(order))
    assert read_order(tmp_path) == order


def test_peak_is_of_the_work_and_not_of_the_parent(tmp_path: Path) -> None:
    """A child that fills 64 MiB more than it started with says so, however large its parent is."""
    ballast = np.ones(32 * 2**20, np.float64)  # 256 MiB here
    code = f"""
import numpy as np
from pathlib import Path
from benchmarks.peers.files import Order, carry_out
work = lambda: ([Path("model.onnx")], [str(np.ones(8 * 2**20).sum())])
carry_out(Path({str(tmp_path)!r}), Order("x", {{}}, "", "", 2**34), ["numpy"], work)
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
    report = read_report(tmp_path)
    assert 63 * 2**20 < report.increase_bytes < 80 * 2**20  # the system counts in batches of pages
    assert report.peak_bytes < ballast.nbytes
    assert report.files == ("model.onnx",)


def test_memory_is_refused_above_the_limit(tmp_path: Path) -> None:
    code = f"""
import numpy as np
from pathlib import Path
from benchmarks.peers.files import Order, carry_out
carry_out(Path({str(tmp_path)!r}), Order("x", {{}}, "", "", 2**29), ["numpy"], lambda: np.ones(2**27))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], check=False, cwd=Path(__file__).parents[2], capture_output=True, text=True
    )
    assert "MemoryError" in done.stderr
    assert read_report(tmp_path) is None


def test_read_memory_knows_now_from_peak() -> None:
    assert 0 < read_memory("VmRSS") <= read_memory("VmHWM")
