"""Every test case that the onnx package ships passes through the lift or is refused by name; none fails."""

from __future__ import annotations

import re
import sys
from collections import Counter

import pytest
import torch

from tests.architecture.source import ROOT
from tests.graph.ops.backend import cases, run_case, run_stored, stored_cases

DOCUMENT = ROOT / "docs" / "training.md"


def counts_in_document(kind: str) -> dict[str, int]:
    row = re.search(rf"^\| {kind} \| ([\d,]+) \| ([\d,]+) \| ([\d,]+) \|$", DOCUMENT.read_text(), re.MULTILINE)
    assert row, f"{DOCUMENT} has no row of counts for {kind}"
    numbers = [int(text.replace(",", "")) for text in row.groups()]
    return dict(zip(("passed", "unsupported", "failed"), numbers, strict=True))


@pytest.mark.parametrize("kind", ["operators", "networks"])
@pytest.mark.filterwarnings("ignore")
def test_no_case_of_onnx_fails(kind, capsys):
    torch.set_num_threads(1)
    every = cases().values() if kind == "operators" else stored_cases()
    outcomes = [run_case(case) if kind == "operators" else run_stored(case) for case in every]
    counts = Counter(outcome.verdict for outcome in outcomes)
    with capsys.disabled():
        sys.stdout.write(f"\n{kind} of onnx through the lift: {dict(counts)}\n")
    assert [f"{outcome.name}: {outcome.reason}" for outcome in outcomes if outcome.verdict == "failed"] == []
    assert {"failed": 0, **counts} == counts_in_document(kind)
