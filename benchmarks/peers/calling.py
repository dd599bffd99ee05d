"""Calling a method of quantization in a process of its own, once: its report is kept beside what it made."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.peers.files import ORDER_FILE, Order, Report, read_report, write_json, write_report

ROOT = Path(__file__).resolve().parents[2]
PEERS_PYTHON = ROOT / ".venv-peers" / "bin" / "python"
MEMORY_LIMIT_BYTES = 18 * 2**30
TIMEOUT_SECONDS = 1200


@dataclass(frozen=True)
class Method:
    """A way to quantize: who does it, how, and on which runtimes the result is to be tried."""

    name: str
    kind: str  # a key of benchmarks.peers.tools.TOOLS, or "alula"
    settings: Mapping[str, Any] = field(default_factory=dict)
    runtimes: tuple[str, ...] = ("onnxruntime", "openvino")
    module: str = "benchmarks.peers.tools"
    environment: str = ".venv-peers"  # where it runs, unless it is alula

    @property
    def command(self) -> list[str]:
        """The child that carries it out."""
        if self.kind == "alula":
            return [sys.executable, "-m", "benchmarks.peers.ours"]
        return [str(ROOT / self.environment / "bin" / "python"), "-m", self.module]


def require_peers() -> None:
    """Exit with the command that makes the other tools' virtual environment, where there is none."""
    if not PEERS_PYTHON.is_file():
        sys.exit(
            "the other tools are not installed: python3 -m venv .venv-peers && "
            ".venv-peers/bin/pip install -r benchmarks/peers/requirements.txt"
        )


def call(
    method: Method,
    model: Path,
    calibration: Path,
    folder: Path,
    *,
    memory_limit_bytes: int = MEMORY_LIMIT_BYTES,
    timeout_seconds: int = TIMEOUT_SECONDS,
) -> Report:
    """Have a method quantize a model into a folder, or recall its report; a failure is reported, not raised."""
    known = read_report(folder)
    if known is not None:
        return known
    _place_order(method, model, calibration, folder, memory_limit_bytes)
    failure = _run(method, [folder], timeout_seconds)
    if failure and ran_out_of_memory((folder / "log.txt").read_text(errors="replace")):
        failure = f"asked for more than the {memory_limit_bytes / 2**30:.3g} GiB that it was allowed"
    report = read_report(folder)
    if failure or report is None:
        report = Report(failure=failure or "the tool ended without a result")
        write_report(folder, report)
    return report


def call_all(method: Method, model: Path, calibrations: Mapping[Path, Path]) -> list[Report]:
    """:func:`call` by each calibration, by the folder of what it makes, in one process, which spares its start.

    Where that process fails, the orders that are left are tried in one of their own each.
    """
    pending = [folder for folder in calibrations if read_report(folder) is None]
    for folder in pending:
        _place_order(method, model, calibrations[folder], folder, MEMORY_LIMIT_BYTES)
    if len(pending) > 1 and method.kind != "alula":
        _run(method, pending, TIMEOUT_SECONDS * len(pending))
    return [call(method, model, calibration, folder) for folder, calibration in calibrations.items()]


def _place_order(method: Method, model: Path, calibration: Path, folder: Path, memory_limit_bytes: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    order = Order(method.kind, method.settings, str(model), str(calibration), memory_limit_bytes)
    write_json(folder / ORDER_FILE, asdict(order))


def _run(method: Method, folders: Sequence[Path], timeout_seconds: int) -> str:
    """Run the child, with its output in the first folder's log.txt; the reason why it failed, or nothing."""
    folder = folders[0]
    quiet = {"CI": "true", "NNCF_CI": "1"}  # OpenVINO and NNCF send usage statistics unless they run in CI
    environment = os.environ | quiet | {"PYTHONPATH": str(ROOT)}  # ONNX Runtime's tools drop files where they run
    with (folder / "log.txt").open("w") as output:
        try:
            done = subprocess.run(
                [*method.command, *(str(one.resolve()) for one in folders)],
                cwd=folder,
                env=environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                timeout=timeout_seconds,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return f"took over {timeout_seconds} s and was stopped"
    if done.returncode < 0:
        return f"killed by signal {-done.returncode}"
    return last_line((folder / "log.txt").read_text(errors="replace")) if done.returncode else ""


def ran_out_of_memory(text: str) -> bool:
    """Whether the end of a log says that memory was refused.

    >>> ran_out_of_memory("numpy._core._exceptions._ArrayMemoryError: Unable to allocate 5.11 GiB")
    True
    """
    return re.search(r"MemoryError|bad_alloc|Failed to allocate|Cannot allocate", text[-2000:]) is not None


def last_line(text: str, *, longest: int = 200) -> str:
    r"""The last line of a log that says something, shortened.

    >>> last_line("Traceback\n  File ...\nMemoryError: bad allocation\n\n")
    'MemoryError: bad allocation'
    """
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:longest] if lines else "no message"
