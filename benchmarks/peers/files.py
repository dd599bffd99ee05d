"""What a benchmark and its child processes hand each other: inputs and an order in, a model and a report out.

Imports numpy alone: it is read in alula's virtual environment and in that of the other tools.
"""

from __future__ import annotations

import json
import resource
import time
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, overload

import numpy as np

ORDER_FILE = "order.json"
REPORT_FILE = "report.json"

Feed = dict[str, np.ndarray]


@dataclass(frozen=True)
class Order:
    """What a child is to do: quantize ``model`` with the inputs in ``calibration``, by the method ``kind``."""

    kind: str
    settings: Mapping[str, Any]
    model: str
    calibration: str
    memory_limit_bytes: int


@dataclass(frozen=True)
class Report:
    """What came of it. Seconds and bytes are of the work alone: imports come before, ``baseline_bytes`` is after them.

    ``files`` are relative to the folder of the report; the first is what a runtime opens. ``failure`` is the reason why
    there are none.
    """

    files: tuple[str, ...] = ()
    seconds: float = 0.0
    peak_bytes: int = 0
    baseline_bytes: int = 0
    versions: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    failure: str = ""

    @property
    def increase_bytes(self) -> int:
        """What the work needed above the imported packages."""
        return max(0, self.peak_bytes - self.baseline_bytes)


def write_feeds(path: Path, feeds: Iterable[Mapping[str, np.ndarray]]) -> int:
    """Write feeds one by one to an .npz, named ``<number>/<input>``, and return their number."""
    count = 0
    partial = path.with_suffix(".part")
    with zipfile.ZipFile(partial, "w") as archive:
        for index, feed in enumerate(feeds):
            for name, array in feed.items():
                with archive.open(f"{index}/{name}.npy", "w", force_zip64=True) as file:
                    np.lib.format.write_array(file, np.asarray(array, order="C"), allow_pickle=False)
            count = index + 1
    partial.replace(path)
    return count


class Feeds(Sequence[Feed]):
    """The feeds of a file, each read when it is asked for, so that they count for nothing in peak memory."""

    def __init__(self, path: Path) -> None:
        self._archive = zipfile.ZipFile(path)
        self._names: dict[int, list[str]] = {}
        for entry in self._archive.namelist():
            index, name = entry.split("/", 1)
            self._names.setdefault(int(index), []).append(name.removesuffix(".npy"))

    def __len__(self) -> int:
        return len(self._names)

    @overload
    def __getitem__(self, index: int) -> Feed: ...
    @overload
    def __getitem__(self, index: slice) -> list[Feed]: ...
    def __getitem__(self, index: int | slice) -> Feed | list[Feed]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(index)
        feed = {}
        for name in self._names[index]:
            with self._archive.open(f"{index}/{name}.npy") as file:
                feed[name] = np.lib.format.read_array(file, allow_pickle=False)
        return feed


def write_json(path: Path, data: Any) -> None:
    """Write JSON; the file appears whole or not at all."""
    partial = path.with_name(f".{path.name}.part")
    partial.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    partial.replace(path)


def read_report(folder: Path) -> Report | None:
    """The report in a folder, if there is one."""
    path = folder / REPORT_FILE
    if not path.is_file():
        return None
    data = json.loads(path.read_text(encoding="utf-8"))
    return Report(**{**data, "files": tuple(data["files"]), "notes": tuple(data["notes"])})


def write_report(folder: Path, report: Report) -> None:
    """Write the report of a folder."""
    write_json(folder / REPORT_FILE, asdict(report))


def read_order(folder: Path) -> Order:
    """The order in a folder."""
    return Order(**json.loads((folder / ORDER_FILE).read_text(encoding="utf-8")))


def carry_out(
    folder: Path, order: Order, packages: Sequence[str], work: Callable[[], tuple[Sequence[Path], Sequence[str]]]
) -> None:
    """In a child, with its packages imported: do the work, which gives files and notes, and write the report."""
    resource.setrlimit(resource.RLIMIT_DATA, (order.memory_limit_bytes, order.memory_limit_bytes))
    baseline = read_memory("VmRSS")
    start = time.perf_counter()
    files, notes = work()
    report = Report(
        files=tuple(file.name for file in files),
        seconds=round(time.perf_counter() - start, 3),
        peak_bytes=read_memory("VmHWM"),
        baseline_bytes=baseline,
        versions={package: version(package) for package in packages},
        notes=tuple(notes),
    )
    write_report(folder, report)


def read_memory(key: str) -> int:
    """Bytes of this process: VmRSS now, VmHWM at its peak. ``ru_maxrss`` would hold the parent's too."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    line = next(line for line in lines if line.startswith(f"{key}:"))
    return int(line.split()[1]) * 1024
