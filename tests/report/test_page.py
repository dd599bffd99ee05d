"""What the page says, and that nothing a user names can become markup."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html import escape
from html.parser import HTMLParser

import pytest

from alula.errors import StorageError
from alula.report import write_report
from alula.report.page import page

VOID = {"meta", "link", "br", "img", "wbr", "input", "hr"}


class Document(HTMLParser):
    """Elements, text and attributes of a page; fails on tags that do not match."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.headings: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)
        if tag in ("h1", "h2"):
            self.headings.append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not {"script", "style"} & set(self.open):
            self.words.append(data)
        if self.headings and {"h1", "h2"} & set(self.open):
            self.headings[-1] += data

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


def test_sections_stand_in_order(frontier):
    document = Document(page(frontier))
    assert document.headings[1:] == [
        "Key figures", "What can be had", "Layers", "Findings", "What was tried", "Where the time went",
        "How to reproduce", "Notes",
    ]  # fmt: skip
    assert document.headings[0] == str(frontier)


def test_the_certificate_and_the_reproduction_are_there(frontier):
    text = Document(page(frontier)).text
    assert frontier.certificate.sentence("accuracy") in text
    assert frontier.command in text
    assert "Certified" in text
    assert "6f1d" * 16 in text
    assert frontier.candidates[0].recipe.fingerprint in text
    for said in (*frontier.target.values(), *frontier.machine.values(), *frontier.versions.values()):
        assert said in text


def test_original_and_candidate_stand_side_by_side(frontier):
    text = Document(page(frontier)).text
    for said in ("90.9 MB", "22.9 MB", "24.6 ms", "8.45 ms", "2.91x", "2.79 to 3.03", "Peak memory", "Load time"):
        assert said in text
    assert "Energy per example estimate" in text  # the mark stands at the quantity


def test_every_candidate_says_why_it_won_or_lost(frontier):
    text = Document(page(frontier)).text
    for candidate in frontier.candidates:
        assert candidate.verdict in text
        assert candidate.recipe.describe() in text


def test_layers_come_worst_harm_first_and_unmeasured_last(frontier):
    text = page(frontier)
    rows = re.findall(r'data-order="([^"]+)">[\d.]+%</td>', text[text.index("worst harm first") :])
    harms = [float(row) for row in rows[:37]]
    assert len(harms) == 37
    assert harms == sorted((row.harm for row in frontier.candidates[0].layers if row.harm is not None), reverse=True)


def test_without_labels_the_page_says_what_the_score_is(frontier):
    assert "agreement with the original model" not in Document(page(frontier)).text
    text = Document(page(replace(frontier, labelled=False))).text
    assert "agreement with the original model" in text
    assert "answers differently" in text
    assert "got wrong" not in text


def test_a_failure_says_so_and_gives_the_distance(failed):
    document = Document(page(failed))
    assert document.headings[0].startswith("No candidate held the budget: int8-weights loses 0.0005")
    assert "Budget not held" in document.text
    assert "Certified loss" not in document.text


def test_few_examples_are_not_sold_as_a_certificate(frontier):
    certificate = replace(frontier.certificate, verdict="not enough examples", bound=0.03, examples_needed=2_000)
    text = Document(page(replace(frontier, certificate=certificate))).text
    assert "Not certified" in text
    assert "about 2,000 more held-out examples would do" in text
    assert "Certified loss" not in text


def test_where_the_time_went_stands_beside_the_original(frontier):
    text = Document(page(frontier)).text
    part = text[text.index("Where the time went") :]
    for said in ("Layers computed in int8", "5.33 ms 62%", "20.1 ms 80%", "0.946 ms 11%", "257", "269"):
        assert said in part, said
    assert "not measurably faster" not in part


def test_layers_show_their_time_and_the_original_s(frontier):
    text = page(frontier)
    row = text[text.index("embeddings/<wbr>word") if "<wbr>" in text else text.index("embeddings/word") :]
    assert "0.0344 ms" in row[: row.index("</tr>")]
    assert "0.1 ms" in row[: row.index("</tr>")]


def test_columns_without_values_are_left_out(frontier):
    bare = tuple(replace(row, harm=None, latency_share=None) for row in frontier.candidates[0].layers)
    candidates = (replace(frontier.candidates[0], layers=bare), *frontier.candidates[1:])
    text = Document(page(replace(frontier, candidates=candidates))).text
    assert "Harm" not in text
    assert "Originally" not in text


def test_a_result_that_is_no_faster_says_so(failed):
    document = Document(page(failed))
    assert "Where the time went" in document.headings
    assert f"{failed.best.name} is not measurably faster than the original" in document.text


def test_scores_and_drops_have_their_intervals(frontier):
    text = Document(page(frontier)).text
    assert "0.9842 0.9782 to 0.9882" in text
    assert "0.0021 lost -0.0019 to 0.0061" in text


def test_nothing_is_fetched(frontier):
    text = page(frontier)
    document = Document(text)
    policy = document.all("meta")[3]["content"]
    assert policy.startswith("default-src 'none'")
    assert "http" not in policy
    for tag, attributes in document.elements:
        for name in ("src", "href"):
            assert (attributes.get(name) or "data:").startswith("data:"), (tag, attributes)


def test_names_cannot_become_markup(frontier, hostile):
    good, bad = Document(page(frontier)), Document(page(hostile))
    tags = {"script", "img", "iframe", "object", "link"}
    kinds = [sorted(tag for tag, _ in document.elements if tag in tags) for document in (good, bad)]
    assert kinds[0] == kinds[1]
    assert not [tag for tag, attributes in bad.elements if any(name.startswith("on") for name in attributes)]
    assert "<script>document.title" in bad.text  # shown, as text


def test_figures_are_data_that_cannot_end_their_script(hostile):
    text = page(hostile)
    figures = re.findall(r'<script type="application/json" data-plot="[^"]+">(.*?)</script>', text, re.DOTALL)
    assert len(figures) == 2
    for figure in figures:
        assert "<" not in figure
        json.loads(figure)


def test_accessible_names(frontier):
    document = Document(page(frontier))
    plots = [attributes for attributes in document.all("div") if attributes.get("role") == "img"]
    assert len(plots) == 2
    for plot in plots:
        assert "int8-dynamic, chosen" in plot["aria-label"]
    assert len(document.all("caption")) == len(document.all("table")) == 4
    assert document.all("html") == [{"lang": "en"}]
    assert all(heading.get("scope") in ("col", "row") for heading in document.all("th"))


def test_a_bare_result_has_a_page(failed):
    bare = replace(failed, candidates=(), pareto=(), closest=None, findings=(), target={}, machine={}, versions={},
                   command="", fingerprints={},
                   original=replace(failed.original, measurements={}, layers=(), time=None))  # fmt: skip
    document = Document(page(bare))
    assert "No candidate held the budget" in document.headings[0]
    assert "No layers were recorded" in document.text
    assert len([one for one in document.all("div") if one.get("role") == "img"]) == 1  # no latency, no latency plot


def test_written_whole_or_not_at_all(frontier, tmp_path):
    path = write_report(frontier, tmp_path)
    assert path == tmp_path / "report.html"
    assert path.read_text(encoding="utf-8").endswith("</html>\n")
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]
    with pytest.raises(StorageError, match="cannot write"):
        write_report(frontier, tmp_path / "missing")


def test_parts_are_named_when_there_are_several(frontier):
    one = frontier.candidates[0]
    layers = (replace(one.layers[0], part="encoder"), replace(one.layers[1], part="decoder & head"))
    text = page(replace(frontier, candidates=(replace(one, layers=layers), *frontier.candidates[1:])))
    assert escape("decoder & head") in text
