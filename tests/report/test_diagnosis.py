"""The page of a diagnosis: whole, in order, safe against names that are markup."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest

from alula.diagnosing.fixes import Fixed
from alula.diagnosing.result import Diagnosis, Distribution, LayerNoise
from alula.errors import StorageError
from alula.graph.model import Note
from alula.recipe import Recipe, Step
from alula.report.diagnosis import channels_figure, diagnosis_page, reads_figure, write_diagnosis
from alula.search.result import Finding
from alula.techniques import Quantize
from alula.testing import dense_network

NASTY = "conv<script>alert(1)</script>"
SHOWN = Distribution(NASTY, "x", (0.0, 1.0, 2.0), (5.0, 7.0), -1.0, 1.5, (0.5, 3.0))
FOUND = Diagnosis(
    layers=(
        LayerNoise(
            NASTY, "Conv", "int8 x uint8", 12.5, 13.5, 14.5, float("inf"), 0.25, 0.125, 0.5, "dead channel", "x"
        ),
        LayerNoise("quiet", "Gemm", "float32", 40.0),
    ),
    findings=(Finding("model", NASTY, "dead channel", "it is dead", {"channels": 3.0}, "per-channel weights"),),
    notes=(Note("lost", "not matched: it is gone"),),
    error=0.25,
    sqnr_db=12.04,
    agreement=0.75,
    runs=4,
    distributions=(SHOWN,),
)


def test_the_page_holds_everything_in_order_and_no_markup_from_names() -> None:
    page = diagnosis_page(FOUND, title=NASTY)
    assert re.findall(r"<h2>(.*?)</h2>", page) == ["Layers", "Findings", "The worst layers", "Notes"]
    assert "<script>alert(1)" not in page
    for words in (
        "12.5",
        "13.5",
        "14.5",
        "exact",
        "12.50%",
        "not matched: it is gone",
        "The outputs are off by 25.00%",
    ):
        assert words in page
    plots = re.findall(r'<script type="application/json" data-plot="(.*?)">(.*?)</script>', page)
    assert [name for name, _ in plots] == ["reads-0", "channels-0"]
    assert all(json.loads(plot)["data"] for _, plot in plots)


def test_a_page_without_findings_says_so() -> None:
    page = diagnosis_page(replace(FOUND, findings=(), notes=(), distributions=()))
    for words in ("No layer showed a known cause", "Every layer of the original was found", "Nothing was watched"):
        assert words in page


def test_what_the_fixes_gave_comes_first() -> None:
    after = replace(FOUND, error=0.01, sqnr_db=40.0, agreement=1.0)
    fixed = Fixed(dense_network(), Recipe((Step(Quantize()),)), FOUND, after, ("a scale per channel, because of x",))
    page = diagnosis_page(FOUND, fixed=fixed)
    assert re.findall(r"<h2>(.*?)</h2>", page)[0] == "What the fixes gave"
    for words in ("25.00%", "1.00%", "75.0%", "a scale per channel, because of x", "Quantize()"):
        assert words in page


def test_figures_show_what_is_known() -> None:
    figure = reads_figure(SHOWN)
    assert figure["data"][0]["x"] == [0.5, 1.5]
    assert [shape["x0"] for shape in figure["layout"]["shapes"]] == [-1.0, 1.5]
    assert reads_figure(replace(SHOWN, low=None, high=None))["layout"]["shapes"] == []
    assert channels_figure(SHOWN)["data"][0]["y"] == [3.0, 0.5]


def test_it_is_written_whole_or_not_at_all(tmp_path) -> None:
    assert write_diagnosis(FOUND, tmp_path).read_text(encoding="utf-8").startswith("<!doctype html>")
    with pytest.raises(StorageError):
        write_diagnosis(FOUND, tmp_path / "nowhere")
