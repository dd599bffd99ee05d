"""What the processor of this machine is, how many cores may be used, and which fast instructions it has."""

from __future__ import annotations

import math
import os
import platform
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

# Instructions that decide which number formats run fast here (names as in Linux's /proc/cpuinfo).
FEATURES = (
    "avx2", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_int8", "amx_bf16",
    "asimd", "asimddp", "i8mm", "bf16", "asimdhp", "sve",
)  # fmt: skip
_INT8_DOT_PRODUCT = frozenset({"avx_vnni", "avx512_vnni", "amx_int8", "asimddp", "i8mm"})


@dataclass(frozen=True, slots=True)
class Processor:
    """Model name, architecture, usable physical cores, and the fast instructions among :data:`FEATURES`."""

    name: str
    architecture: str
    cores: int
    features: frozenset[str]

    @property
    def is_x86(self) -> bool:
        """Whether this is an Intel or AMD processor."""
        return self.architecture in {"x86_64", "AMD64", "i386", "i686"}

    @property
    def has_int8_dot_product(self) -> bool:
        """Whether one instruction multiplies int8 numbers and adds them up in 32 bits."""
        return bool(self.features & _INT8_DOT_PRODUCT)


@lru_cache(maxsize=1)
def read_processor() -> Processor:
    """The processor of this machine; where it cannot be asked, a name from Python and no fast instructions."""
    path = Path("/proc/cpuinfo")
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    return parse_processor(text, platform.machine(), count_usable_cores())


def parse_processor(cpuinfo: str, architecture: str, cores: int) -> Processor:
    """A processor out of the text of Linux's /proc/cpuinfo."""
    name = re.search(r"^(?:model name|Model|Hardware)\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    flags = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    features = frozenset(flags.group(1).split() if flags else ()) & frozenset(FEATURES)
    if not cpuinfo and architecture == "arm64":  # every Apple processor since 2020 has these
        features = frozenset({"asimd", "asimddp", "asimdhp"})
    model = name.group(1).strip() if name else platform.processor() or architecture
    return Processor(model, architecture, cores, features)


def count_usable_cores() -> int:
    """Physical cores that this process may use: its affinity, without hyper-threads, within its container's quota."""
    allowed = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    cores = len({_physical_core(cpu) for cpu in allowed})
    return max(1, min(cores, _quota_of_cores(Path("/sys/fs/cgroup/cpu.max"))))


def _physical_core(cpu: int) -> tuple[str, str]:
    folder = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology")
    try:
        return (folder / "physical_package_id").read_text().strip(), (folder / "core_id").read_text().strip()
    except OSError:
        return "", str(cpu)


def _quota_of_cores(path: Path) -> int:
    try:
        quota, period = path.read_text().split()
        return math.ceil(int(quota) / int(period))
    except (OSError, ValueError):  # no control group, or "max"
        return 1 << 16
