from __future__ import annotations

import runpy
from pathlib import Path

import pytest

_EXAMPLE = runpy.run_path(str(Path(__file__).with_name("example.py")))


@pytest.fixture
def frontier():
    return _EXAMPLE["example_frontier"]()


@pytest.fixture
def failed():
    return _EXAMPLE["failed_frontier"]()


@pytest.fixture
def hostile():
    return _EXAMPLE["hostile_frontier"]()
