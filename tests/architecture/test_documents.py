"""Every Python example in the documents runs.

The fenced ``python`` blocks of one document run in order, as one program, in an empty folder. What they take as given
(a model file, a task) stands before them in a comment that the reader does not see: ``<!-- given``, lines of Python,
``-->``. A block that cannot run (it takes minutes, say) stands after ``<!-- not run: REASON -->``.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.architecture.source import ROOT

DOCUMENTS = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.md")])
BLOCK = re.compile(
    r"^(<!-- not run: \S.*? -->\n+)?(?:<!-- given|```python)\n(.*?)^(?:-->|```)$", re.MULTILINE | re.DOTALL
)


def blocks(text: str) -> list[tuple[int, str]]:
    """Lines before, and code, of the blocks that run."""
    return [(text.count("\n", 0, match.start(2)), match[2]) for match in BLOCK.finditer(text) if match[1] is None]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_examples_run(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "__main__"}
    for line, code in blocks(path.read_text(encoding="utf-8")):
        exec(compile("\n" * line + code, str(path), "exec"), names)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    targets = re.findall(r"\]\(([^)#\s]+)", text)
    dead = [link for link in targets if "://" not in link and not (path.parent / link).exists()]
    assert not dead, f"{path.relative_to(ROOT)}: {dead} do not exist"


def test_blocks_are_found() -> None:
    text = (
        "a\n```python\nx = 1\n```\n\n<!-- not run: slow -->\n```python\ny = 1\n```\n"
        "<!-- given\nz = 1\n-->\n```\nno = 1\n```\n```python\nw = 1\n```\n"
    )
    assert blocks(text) == [(2, "x = 1\n"), (10, "z = 1\n"), (16, "w = 1\n")]
