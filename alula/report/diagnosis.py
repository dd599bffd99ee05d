"""The page of a diagnosis: the noise of each layer, causes by name, and what the worst layers read and hold."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from alula.diagnosing.fixes import Fixed
from alula.diagnosing.result import Diagnosis, Distribution, LayerNoise
from alula.diagnosing.words import decibels_in_words, error_in_words, verdict_in_words
from alula.report.page import document, figure, findings_section, note_items, section
from alula.report.plots import axis_of, frame, limit
from alula.report.tables import Cell, Column, Html, element, path, table
from alula.storage import write_text

DIAGNOSIS_FILE = "diagnosis.html"
LEGEND = (
    "Ratios of signal to noise are in decibels: 20 dB are an error of 10 %, 40 dB of 1 %; 6 dB are one bit. At its "
    "output: in the running quantized network. Added: by this layer alone, on float inputs; by its weights, by its "
    "activation. Error at the end: of the network's outputs, when this layer alone is quantized. Press a heading to "
    "sort by it."
)


def write_diagnosis(diagnosis: Diagnosis, folder: Path, *, title: str = "", fixed: Fixed | None = None) -> Path:
    """Write ``folder/diagnosis.html`` and return its path; it appears whole or not at all.

    Raises:
        StorageError: the folder cannot be written.
    """
    file = folder / DIAGNOSIS_FILE
    write_text(file, diagnosis_page(diagnosis, title=title, fixed=fixed))
    return file


def diagnosis_page(diagnosis: Diagnosis, *, title: str = "", fixed: Fixed | None = None) -> str:
    """The whole page as text."""
    name = title or "quantized model"
    sections = [
        *([_fixed(fixed)] if fixed is not None else []),
        _layers(diagnosis.layers),
        findings_section(diagnosis.findings),
        _distributions(diagnosis.distributions),
        _notes(diagnosis),
    ]
    return document(f"{name}: diagnosed by alula", _header(diagnosis, name), sections)


def _header(diagnosis: Diagnosis, name: str) -> Html:
    words = verdict_in_words(diagnosis)
    return element(
        "header",
        element("p", "alula diagnosis · ", name, class_="eyebrow"),
        element("h1", f"{words[0].upper()}{words[1:]}."),
        element("p", f"Over {diagnosis.runs:,} runs, beside the float original.", class_="quiet"),
    )


def _fixed(fixed: Fixed) -> Html:
    columns = (Column("Outputs"), Column("Before", number=True), Column("After", number=True))
    before, after = fixed.before, fixed.after
    rows: list[Sequence[object]] = [
        ("Relative error", error_in_words(before.error), error_in_words(after.error)),
        ("Signal to noise, dB", decibels_in_words(before.sqnr_db), decibels_in_words(after.sqnr_db)),
    ]
    if before.agreement is not None and after.agreement is not None:
        rows.append(("Same largest entry", f"{before.agreement:.1%}", f"{after.agreement:.1%}"))
    done = fixed.done or ("no cause was found; quantized anew in the same form",)
    return section(
        "What the fixes gave",
        table("The float original quantized anew", columns, rows),
        element("ul", *(element("li", words) for words in done)),
        element("p", "Recipe: ", fixed.recipe.describe(), class_="quiet"),
    )


def _layers(layers: Sequence[LayerNoise]) -> Html:
    columns = (
        Column("Layer"), Column("Operator"), Column("Bits"), Column("Error at the end", number=True),
        Column("At its output, dB", number=True), Column("Added, dB", number=True), Column("By weights", number=True),
        Column("By activation", number=True), Column("Cause", wide=True),
    )  # fmt: skip
    rows = [
        (path(row.name), row.operator, row.bits, Cell(error_in_words(row.error), row.error),
         *(_ratio(value) for value in (row.sqnr_db, row.added_db, row.weights_db, row.activations_db)),
         f"{row.cause}: {row.fix}" if row.cause else "")
        for row in layers
    ]  # fmt: skip
    caption = f"{len(rows)} layers, the most harmful first"
    return section(
        "Layers", element("p", LEGEND, class_="quiet"), table(caption, columns, rows, sortable=True, tall=True)
    )


def _ratio(value: float | None) -> Cell:
    return Cell(decibels_in_words(value), value)


def _distributions(shown: Sequence[Distribution]) -> Html:
    figures = []
    for number, one in enumerate(shown):
        if one.counts:
            title = f"What {one.layer} reads"
            figures.append(figure(f"reads-{number}", title, reads_figure(one), _reads_in_words(one)))
        if one.channels:
            title = f"Channels of {one.layer}'s weights"
            figures.append(figure(f"channels-{number}", title, channels_figure(one), _channels_in_words(one)))
    if not figures:
        return section("The worst layers", element("p", "Nothing was watched of them."))
    legend = "Dashed lines are the ends of the range that codes stand for; beyond them values saturate."
    return section("The worst layers", element("p", legend, class_="quiet"), element("div", *figures, class_="plots"))


def reads_figure(one: Distribution) -> dict[str, Any]:
    """The histogram of what a layer reads, on a logarithmic scale, with the ends of the range of its codes."""
    centres = [(low + high) / 2 for low, high in zip(one.edges, one.edges[1:], strict=False)]
    bars = {"type": "bar", "x": centres, "y": list(one.counts), "marker": {"color": "var(--accent)"}, "name": "values"}
    ends = [end for end in (one.low, one.high) if end is not None]
    layout = {
        "xaxis": axis_of("value"),
        "yaxis": axis_of("count") | {"type": "log"},
        "bargap": 0,
        "shapes": [limit({"yref": "paper", "y0": 0, "y1": 1, "x0": end, "x1": end}) for end in ends],
        **frame(380),
    }
    return {"data": [bars], "layout": layout}


def channels_figure(one: Distribution) -> dict[str, Any]:
    """The largest weight of each output channel, the widest first."""
    widths = sorted(one.channels, reverse=True)
    bars = {"type": "bar", "x": list(range(len(widths))), "y": widths, "marker": {"color": "var(--accent)"}}
    layout = {
        "xaxis": axis_of("channels, the widest first"), "yaxis": axis_of("largest weight"), "bargap": 0, **frame(380),
    }  # fmt: skip
    return {"data": [bars], "layout": layout}


def _reads_in_words(one: Distribution) -> str:
    reach = f"{one.layer} reads values from {one.edges[0]:.3g} to {one.edges[-1]:.3g}"
    return reach if one.low is None else f"{reach}; its codes stand for {one.low:.3g} to {one.high:.3g}"


def _channels_in_words(one: Distribution) -> str:
    widest, narrowest = max(one.channels), min(one.channels)
    return f"The largest weights of {len(one.channels)} channels reach from {narrowest:.3g} to {widest:.3g}"


def _notes(diagnosis: Diagnosis) -> Html:
    if not diagnosis.notes:
        return section("Notes", element("p", "Every layer of the original was found, and looked at."))
    return section(
        "Notes", element("ul", note_items((note.place, note.text) for note in diagnosis.notes), class_="notes")
    )
