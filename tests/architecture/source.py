"""What the architecture tests read: the package's files as syntax trees."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "alula"

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class File:
    path: Path
    text: str
    tree: ast.Module

    @property
    def lines(self) -> int:
        return len(self.text.splitlines())

    def at(self, node: ast.AST) -> str:
        """file:line of a node, for messages."""
        return f"{self.path.relative_to(ROOT)}:{node.lineno}"


@cache
def read_package() -> tuple[File, ...]:
    paths = sorted(PACKAGE.rglob("*.py"))
    assert paths, f"no Python files under {PACKAGE}"
    return tuple(File(path, text := path.read_text(encoding="utf-8"), ast.parse(text)) for path in paths)


def functions() -> Iterator[tuple[File, Function]]:
    for file in read_package():
        for node in ast.walk(file.tree):
            if isinstance(node, Function):
                yield file, node


def classes() -> Iterator[tuple[File, ast.ClassDef]]:
    for file in read_package():
        for node in ast.walk(file.tree):
            if isinstance(node, ast.ClassDef):
                yield file, node


def length(function: Function) -> int:
    """Lines of a function from ``def`` to its end, without the docstring."""
    lines = function.end_lineno - function.lineno + 1
    if ast.get_docstring(function) is not None:
        docstring = function.body[0]
        lines -= docstring.end_lineno - docstring.lineno + 1
    return lines
