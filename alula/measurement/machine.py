"""The machine and the runtimes that a result came from, without names or paths that would give its owner away."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version

from alula.targets.processor import read_processor

_PACKAGES = ("alula", "numpy", "onnx", "onnx-ir", "onnxruntime", "openvino", "torch", "scipy")


def describe_machine() -> dict[str, str]:
    """Processor, usable cores, the instructions that matter, memory and operating system."""
    processor = read_processor()
    return {
        "processor": processor.name,
        "architecture": processor.architecture,
        "cores": str(processor.cores),
        "features": ", ".join(sorted(processor.features)) or "unknown",
        "memory": _describe_memory(),
        "system": f"{platform.system()} {platform.release().split('-')[0]}",
        "python": platform.python_version(),
    }


def versions() -> dict[str, str]:
    """Versions of the installed packages that compute or run a model."""
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _describe_memory() -> str:
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # Windows
        return "unknown"
    return f"{total / 2**30:.1f} GiB"
