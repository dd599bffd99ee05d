"""The size of files, functions, signatures and class chains. Raising a limit is a line in a review."""

from __future__ import annotations

import ast
import statistics
import tomllib

import alula
from tests.architecture.source import ROOT, Function, classes, functions, length, read_package

FILE_LINES = 600
FUNCTION_LINES = 60  # without the docstring
MEDIAN_FUNCTION_LINES = 12
PARAMETERS = 8  # without self
CLASS_CHAIN = 3
PACKAGE_LINES = 45_000


def test_files_are_short() -> None:
    long = [f"{file.path.relative_to(ROOT)}: {file.lines} lines" for file in read_package() if file.lines > FILE_LINES]
    assert not long, "\n".join([f"a file has at most {FILE_LINES} lines", *long])


def test_functions_are_short() -> None:
    long = [
        f"{file.at(node)}: {node.name} has {length(node)} lines"
        for file, node in functions()
        if length(node) > FUNCTION_LINES
    ]
    assert not long, "\n".join([f"a function has at most {FUNCTION_LINES} lines beside its docstring", *long])


def test_median_function_is_short() -> None:
    median = statistics.median(length(node) for _, node in functions())
    assert median < MEDIAN_FUNCTION_LINES, f"the median function has {median} lines"


def test_signatures_are_short() -> None:
    long = [
        f"{file.at(node)}: {node.name} takes {parameters(node)} parameters"
        for file, node in functions()
        if parameters(node) > PARAMETERS and not is_command(node)
    ]
    assert not long, "\n".join([f"a function takes at most {PARAMETERS} parameters", *long])


def test_class_chains_are_short() -> None:
    bases = {node.name: [name for base in node.bases if (name := base_name(base))] for _, node in classes()}
    long = [
        f"{file.at(node)}: {node.name} is {chain(node.name, bases)} classes deep"
        for file, node in classes()
        if chain(node.name, bases) > CLASS_CHAIN
    ]
    assert not long, "\n".join([f"a chain of alula's classes has at most {CLASS_CHAIN} links", *long])


def test_package_is_small() -> None:
    assert sum(file.lines for file in read_package()) <= PACKAGE_LINES


def test_no_drawers() -> None:
    drawers = [
        str(file.path.relative_to(ROOT))
        for file in read_package()
        if {"utils", "util", "helpers", "misc", "common"} & set(file.path.with_suffix("").parts[len(ROOT.parts) :])
    ]
    assert not drawers, f"{drawers}: name a module after what it does"


def test_public_things_are_described() -> None:
    silent = [
        f"{file.at(node)}: {node.name} has no docstring"
        for file in read_package()
        for node in public(file.tree)
        if ast.get_docstring(node) is None
    ]
    assert not silent, "\n".join(silent)


def test_one_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert alula.__version__ == project["version"]


def parameters(function: Function) -> int:
    listed = function.args
    names = [argument.arg for argument in (*listed.posonlyargs, *listed.args, *listed.kwonlyargs)]
    return len([name for name in names if name not in ("self", "cls")])


def is_command(function: Function) -> bool:
    """Whether it is a command of the command line, whose parameters are the options that a user types."""
    calls = [mark.func for mark in function.decorator_list if isinstance(mark, ast.Call)]
    return any(isinstance(call, ast.Attribute) and call.attr == "command" for call in calls)


def base_name(base: ast.expr) -> str | None:
    base = base.value if isinstance(base, ast.Subscript) else base
    return base.id if isinstance(base, ast.Name) else base.attr if isinstance(base, ast.Attribute) else None


def chain(name: str, bases: dict[str, list[str]]) -> int:
    """How many of alula's own classes stand in line, from the one named up."""
    own = [base for base in bases[name] if base in bases and base != name]
    return 1 + max((chain(base, bases) for base in own), default=0)


def public(tree: ast.Module | ast.ClassDef) -> list[ast.ClassDef | Function]:
    found = []
    for node in tree.body:
        if isinstance(node, ast.ClassDef | Function) and not node.name.startswith("_") and not is_variant(node):
            found += [node, *(public(node) if isinstance(node, ast.ClassDef) else [])]
    return found


def is_variant(node: ast.ClassDef | Function) -> bool:
    """Whether it is an overload or a setter, described by its main form."""
    marks = {base_name(mark) for mark in node.decorator_list}
    return bool(marks & {"overload", "setter"})


def test_the_measures_themselves() -> None:
    function = ast.parse('def f(self, a, /, b, *, c):\n    """Say.\n\n    More.\n    """\n    return a\n').body[0]
    assert length(function) == 2
    assert parameters(function) == 3
    bases = {"A": ["Exception"], "B": ["A"], "C": ["B", "Other"]}
    assert [chain(name, bases) for name in bases] == [1, 2, 3]
