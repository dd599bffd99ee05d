"""Each example is compressed from end to end, on a part of its data, as its README says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import onnxruntime
import pytest

from alula import Budget, OnnxRuntime, compress, open_task
from alula.search.result import read_result

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.mark.parametrize(
    ("name", "calibration", "evaluation", "smaller"),
    [("spam", 24, 80, 3.5), ("vision", 16, 60, 3.3), ("voice", 4, 24, 1.5)],
)
def test_example_becomes_smaller_and_says_what_was_lost(name, calibration, evaluation, smaller, tmp_path):
    whole = open_task(EXAMPLES / name / "task.py")
    task = replace(whole, calibration=whole.calibration[:calibration], evaluation=whole.evaluation[:evaluation])
    frontier = compress(task, Budget(max_drop=0.3, minimize="size"), OnnxRuntime(threads=1), out=tmp_path)
    assert frontier.chosen is not None
    chosen = frontier.candidate(frontier.chosen)
    assert frontier.original.size_bytes / chosen.size_bytes > smaller
    assert chosen.size_bytes == (tmp_path / "model.onnx").stat().st_size
    assert frontier.certificate is not None
    assert frontier.certificate.n + len(task.splits(0)[0]) == evaluation
    assert read_result(tmp_path) == frontier
    assert (tmp_path / "report.html").stat().st_size > 1_000_000
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    assert [value.name for value in session.get_inputs()] == [spec.name for spec in task.parts["model"].inputs]
