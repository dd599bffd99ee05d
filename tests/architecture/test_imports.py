"""Imports point one way, and `import alula` stays lean."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.architecture.source import PACKAGE, ROOT, File, read_package

# Each may import what stands before it, and itself. New top-level modules find their place here.
ORDER = (
    "errors", "settings", "storage", "numerics", "graph", "techniques", "recipe", "budget", "examples", "task_files",
    "task_rows", "task", "training", "targets", "measurement", "quantization", "pruning", "search", "diagnosing",
    "comparison", "pack", "report", "compression",
    "serving", "cli",
)  # fmt: skip
OUTSIDE = ("__init__", "__main__", "testing")  # these may import anything, and nothing in ORDER imports them
HEAVY = ("torch", "scipy", "plotly", "typer", "rich", "openvino", "transformers", "onnxscript", "psutil")
LIMIT_SECONDS = 0.5

PROBE = f"""
import sys, time
start = time.perf_counter()
import alula
seconds = time.perf_counter() - start
import json
print(json.dumps([seconds, [name for name in {HEAVY!r} if name in sys.modules]]))
"""


def place(file: File) -> str:
    """The top-level module or package of alula that a file belongs to."""
    return file.path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(file: File) -> Iterator[tuple[ast.stmt, str]]:
    """Every import of alula's own, wherever it stands (in functions and for type checkers too), by top-level name."""
    for node in ast.walk(file.tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file.at(node)}: imports are absolute"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            top, _, rest = name.partition(".")
            if top == "alula":
                yield node, rest.partition(".")[0] or "__init__"


def is_allowed(importer: str, target: str) -> bool:
    if importer in OUTSIDE or importer == target:
        return True
    if target not in ORDER:
        return target.startswith("__") and target != "__init__"  # `from alula import __version__`
    return ORDER.index(target) < ORDER.index(importer)


def test_every_module_has_a_place() -> None:
    lost = {place(file) for file in read_package()} - set(ORDER) - set(OUTSIDE)
    assert not lost, f"{sorted(lost)} have no place in the order of imports; give them one in {__file__}"


def test_imports_point_one_way() -> None:
    wrong = [
        f"{file.at(node)}: {place(file)} may not import {target}"
        for file in read_package()
        for node, target in imported(file)
        if not is_allowed(place(file), target)
    ]
    assert not wrong, "\n".join([f"the order is {' -> '.join(ORDER)}", *wrong])


@pytest.mark.parametrize(
    ("importer", "target", "allowed"),
    [
        ("search", "measurement", True),
        ("measurement", "search", False),
        ("numerics", "errors", True),
        ("numerics", "graph", False),
        ("graph", "graph", True),
        ("graph", "__init__", False),
        ("cli", "__version__", True),
        ("__init__", "cli", True),
    ],
)
def test_the_rule_itself(importer: str, target: str, allowed: bool) -> None:
    assert is_allowed(importer, target) is allowed


def test_import_is_lean() -> None:
    runs = [
        json.loads(subprocess.run([sys.executable, "-c", PROBE], check=True, capture_output=True, cwd=ROOT).stdout)
        for _ in range(3)
    ]
    heavy = runs[0][1]
    assert not heavy, f"`import alula` pulls in {heavy}; import them inside the functions that use them"
    seconds = min(run[0] for run in runs)
    assert seconds < LIMIT_SECONDS, f"`import alula` takes {seconds:.2f} s (best of 3), allowed are {LIMIT_SECONDS} s"
