"""The page: one self-contained file that explains a result, and works without a network."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from alula.budget import Budget
from alula.measurement.certificate import Certificate
from alula.measurement.measurement import Measurement
from alula.report.plots import costs_of, describe, trade_off
from alula.report.tables import Cell, Column, Html, element, facts, join, path, safe, table
from alula.search.result import Candidate, Finding, Frontier, LayerRow, TimeSplit
from alula.search.words import (
    SAID,
    bytes_in_words,
    change_in_words,
    count_in_words,
    score_in_words,
    size_change_in_words,
    speed_change_in_words,
    state_of,
    verdict_in_words,
)
from alula.storage import write_text

REPORT_FILE = "report.html"
TIME_ROWS = 8  # of the layers that take the longest

QUANTITIES = {
    "latency_p50_ms": "Latency, median",
    "latency_p95_ms": "Latency, 95th percentile",
    "latency_p99_ms": "Latency, 99th percentile",
    "latency_ratio": "Speed-up (original / candidate)",
    "throughput_batch1_per_s": "Throughput, batch of 1",
    "throughput_batch4_per_s": "Throughput, batch of 4",
    "throughput_batch16_per_s": "Throughput, batch of 16",
    "load_ms": "Load time",
    "memory_bytes": "Peak memory",
    "memory_increase_bytes": "Memory that the model adds",
    "energy_mj": "Energy per example",
}

STATES = {
    "certified": (
        "Certified",
        "The budget holds, and the certificate proves it on examples that the search never saw.",
    ),
    "uncertified": ("Not certified", "The budget holds on the examples seen, but there are too few to prove it."),
    "failed": ("Budget not held", "What was written is the closest that was found."),
}


def write_report(frontier: Frontier, folder: Path) -> Path:
    """Write ``folder/report.html`` and return its path; it appears whole or not at all.

    Raises:
        StorageError: the folder cannot be written.
    """
    file = folder / REPORT_FILE
    write_text(file, page(frontier))
    return file


def page(frontier: Frontier) -> str:
    """The whole page as text."""
    sections = (
        _key_figures(frontier),
        _trade_offs(frontier),
        _layers(frontier),
        findings_section(frontier.findings),
        _tried(frontier),
        _time(frontier),
        _reproduce(frontier),
        _notes(frontier),
    )
    return document(f"{frontier.task}: compressed by alula", _header(frontier), sections)


def document(title: str, header: Html, sections: Iterable[Html]) -> str:
    """A page of its own: the frame that all pages have around what each says."""
    from plotly.offline import get_plotlyjs

    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        "style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data: blob:\">\n"
        f"{element('title', title)}\n"
        '<link rel="icon" href="data:,">\n'
        f"<style>{_resource('page.css')}</style>\n</head>\n<body>\n"
        f"{header}\n<main>\n{join(sections, chr(10))}\n</main>\n"
        f"<script>{get_plotlyjs()}</script>\n<script>{_resource('page.js')}</script>\n</body>\n</html>\n"
    )


def _resource(name: str) -> str:
    return resources.files("alula.report").joinpath(name).read_text(encoding="utf-8")


def section(title: str, *content: object) -> Html:
    """A section under its heading."""
    return element("section", element("h2", title), *content)


def _header(frontier: Frontier) -> Html:
    state = state_of(frontier)
    label, meaning = STATES[state]
    if frontier.chosen is None:
        meaning += f" {frontier.best.name}: {change_in_words(frontier)}"
    proof = [] if frontier.certificate is None else [element("p", _sentence(frontier.certificate, frontier))]
    if not frontier.labelled:
        proof.append(
            element("p", "No labels were given: the score is agreement with the original model, not correctness. ",
                    "Where the original errs, so does what was made of it.", class_="warning")
        )  # fmt: skip
    return element(
        "header",
        element("p", "alula report · ", frontier.task, class_="eyebrow"),
        element("h1", verdict_in_words(frontier)),
        element("div", element("p", element("strong", label), " ", meaning), *proof, class_=f"proof {state}"),
        element("p", "Budget: ", _budget(frontier.budget, frontier.metric), ".", class_="quiet"),
    )


def _sentence(certificate: Certificate, frontier: Frontier) -> str:
    return certificate.sentence(frontier.metric, labelled=frontier.labelled)


def _budget(budget: Budget, metric: str) -> str:
    drop = (
        f"{100 * budget.max_drop:.4g} % of the original's {metric}"
        if budget.relative
        else f"{budget.max_drop:.4g} in {metric}"
    )
    limits = (
        (budget.max_size_bytes, bytes_in_words),
        (budget.max_latency_ms, lambda value: f"{value:.4g} ms"),
        (budget.max_energy_mj, lambda value: f"{value:.4g} mJ"),
        (budget.max_memory_bytes, lambda value: f"{bytes_in_words(value)} of memory"),
    )
    words = [f"lose at most {drop}, with {100 * budget.confidence:.4g} % confidence"]
    words += [f"at most {say(value)}" for value, say in limits if value is not None]
    return "; ".join([*words, f"minimise {budget.minimize}"])


def _key_figures(frontier: Frontier) -> Html:
    original, best = frontier.original, frontier.best
    columns = (Column("Quantity"), Column("Original", number=True), Column(best.name, number=True), Column("Change"),
               Column("How", wide=True))  # fmt: skip
    rows: list[Sequence[object]] = [
        ("Size", bytes_in_words(original.size_bytes), bytes_in_words(best.size_bytes),
         size_change_in_words(original, best), "all files together"),
        (f"Score: {frontier.metric}", _score(original), _score(best), _drop_with_interval(best), _score_how(best)),
    ]  # fmt: skip
    keys = [*QUANTITIES, *(key for key in best.measurements if key not in QUANTITIES and key not in SAID)]
    for key in keys:
        before, after = original.measurements.get(key), best.measurements.get(key)
        if before is not None or after is not None:
            name, how = _quantity(key, after or before)
            rows.append((name, _value(before), _value(after), _change(key, before, after), how))
    return section(
        "Key figures",
        _tiles(frontier),
        table("Original and candidate, measured interleaved in one run", columns, rows),
    )


def _tiles(frontier: Frontier) -> Html:
    original, best = frontier.original, frontier.best
    tiles = [
        ("Size", bytes_in_words(best.size_bytes), f"{size_change_in_words(original, best)}"),
        ("Score", score_in_words(best.score), _drop(best.drop)),
    ]
    if (latency := best.measurements.get("latency_p50_ms")) is not None:
        tiles.insert(1, ("Latency", f"{latency.value:.3g} ms", speed_change_in_words(best) or ""))
    if frontier.certificate is not None and state_of(frontier) == "certified":
        tiles.append(_bound(frontier.certificate))
    return element(
        "ul",
        join(
            element("li", element("span", name), element("strong", value), element("span", change))
            for name, value, change in tiles
        ),
        class_="tiles",
    )


def _bound(certificate: Certificate) -> tuple[str, str, str]:
    """The certified loss, rounded up: a rounded figure must not claim more than was shown."""
    bound = math.ceil(certificate.bound * 1e4 - 1e-7) / 1e4
    said = f"≤ {bound:.4f}" if bound >= 0 else f"a gain of {-bound:.4f}"
    return "Certified loss", said, f"{100 * certificate.confidence:.4g} % confidence, {certificate.n:,} examples"


def _drop(drop: float) -> str:
    return f"{score_in_words(drop)} lost" if drop > 0 else "no loss seen"


def _score(one: Candidate) -> Html:
    return join([score_in_words(one.score), _interval(one.measurements.get("score"))])


def _drop_with_interval(one: Candidate) -> Html:
    return join([_drop(one.drop), _interval(one.measurements.get("drop"))])


def _interval(measured: Measurement | None) -> Html:
    """The ends of the interval of a score or a drop, on a line of its own."""
    if measured is None or measured.low is None or measured.high is None:
        return Html("")
    return element("small", f"{score_in_words(measured.low)} to {score_in_words(measured.high)}")


def _score_how(one: Candidate) -> str:
    measured = one.measurements.get("score")
    how = "on the examples that the search saw"
    return how if measured is None else f"{how}; {measured.method}; n = {measured.n:,}"


def _quantity(key: str, measured: Measurement | None) -> tuple[Html, str]:
    """The name of a quantity, marked where it is an estimate, and how it was measured."""
    name = QUANTITIES.get(key) or key.replace("_", " ").capitalize()
    if measured is None:
        return safe(name), ""
    mark = element("em", " estimate", class_="estimate") if measured.estimated else ""
    return join([name, mark]), f"{measured.method}; n = {measured.n:,}".removeprefix("; ")


def _value(measured: Measurement | None) -> Html:
    """The value, and its interval on a line of its own."""
    if measured is None:
        return safe("not measured")
    value, bracket, interval = str(measured).removeprefix("about ").partition(" (")  # an estimate is marked by its name
    low, _, high = interval.removesuffix(")").partition(" to ")
    return join([value, element("small", f"{low} to {high}")]) if bracket and low != high else safe(value)


def _change(key: str, before: Measurement | None, after: Measurement | None) -> str:
    if before is None or after is None or key == "latency_ratio" or min(before.value, after.value) <= 0:
        return ""
    more_is_better = key.startswith("throughput")
    ratio = after.value / before.value if more_is_better else before.value / after.value
    return f"{ratio:.2f}x better" if ratio > 1.005 else f"{1 / ratio:.2f}x worse" if ratio < 0.995 else "the same"


def _trade_offs(frontier: Frontier) -> Html:
    figures = [
        figure(f"plot-{number}", f"{cost.title} against score", trade_off(frontier, cost), describe(frontier, cost))
        for number, cost in enumerate(costs_of(frontier))
    ]
    legend = "The line is the best score for each cost; grey candidates are beaten by another in everything."
    return section("What can be had", element("p", legend, class_="quiet"), element("div", *figures, class_="plots"))


def figure(name: str, caption: str, plot: Mapping[str, Any], words: str) -> Html:
    """A plot with its caption, and in words for those who do not see it; ``name`` is unique on the page."""
    data = json.dumps(plot).replace("<", "\\u003c")
    return element(
        "figure",
        element("figcaption", caption),
        element("div", class_="plot", id=name, role="img", aria_label=words),
        Html(f'<script type="application/json" data-plot="{name}">{data}</script>'),
        element("noscript", element("p", words)),
    )


def _layers(frontier: Frontier) -> Html:
    layers = sorted(frontier.best.layers, key=lambda row: (row.harm is None, 0.0 if row.harm is None else -row.harm))
    if not layers:
        return section("Layers", element("p", "No layers were recorded for this candidate."))
    harmed, timed = (any(getattr(row, field) is not None for row in layers) for field in ("harm", "latency_share"))
    parts = len({row.part for row in layers}) > 1
    columns = [Column("Layer"), *([Column("Part")] if parts else []), Column("Operator"), Column("Bits"),
               Column("Weights", number=True), Column("MACs", number=True)]  # fmt: skip
    columns += [Column("Harm", number=True)] if harmed else []
    columns += [Column("Time", number=True), Column("Originally", number=True)] if timed else []
    before = {(row.part, row.name): row for row in frontier.original.layers}
    rows = [
        (path(row.name), *((row.part,) if parts else ()), row.operator, row.bits,
         Cell(bytes_in_words(row.weight_bytes), row.weight_bytes), _macs(row),
         *((Cell("-" if row.harm is None else f"{row.harm:.2%}", row.harm),) if harmed else ()),
         *((_layer_time(row, frontier.best), _layer_time(before.get((row.part, row.name)), frontier.original))
           if timed else ()), row.why)
        for row in layers
    ]  # fmt: skip
    caption = f"{len(rows)} layers of {frontier.best.name}" + (", worst harm first" if harmed else "")
    legend = (
        "Harm is the relative error of the network's output when this layer alone is compressed. " if harmed else ""
    )
    legend += "Time is that of the layer in the runtime, for one example. " if timed else ""
    return section(
        "Layers",
        element("p", legend, "Press a heading to sort by it.", class_="quiet"),
        table(caption, [*columns, Column("Why", wide=True)], rows, sortable=True, tall=True),
    )


def _macs(row: LayerRow) -> Cell:
    return Cell("-" if row.macs is None else count_in_words(row.macs), row.macs)


def _layer_time(row: LayerRow | None, one: Candidate) -> Cell:
    if row is None or row.latency_share is None:
        return Cell("-", None)
    share = row.latency_share
    if one.time is None:
        return Cell(f"{share:.1%}", share)
    return Cell(f"{share * one.time.total_ms:.3g} ms", share * one.time.total_ms)


def findings_section(findings: Sequence[Finding]) -> Html:
    """Causes by name, each with its numbers and what helps."""
    if not findings:
        return section("Findings", element("p", "No layer showed a known cause of damage."))
    return section("Findings", *(_finding(finding) for finding in findings))


def _finding(finding: Finding) -> Html:
    place = finding.layer if finding.part in ("", "model") else f"{finding.part} / {finding.layer}"
    return element(
        "article",
        element("h3", finding.cause[:1].upper() + finding.cause[1:], " in ", element("code", place)),
        element("p", finding.text),
        facts((name.replace("_", " "), f"{value:.4g}") for name, value in finding.values.items()),
        element("p", element("strong", "What helps: "), finding.fix),
        class_="finding",
    )


def _tried(frontier: Frontier) -> Html:
    columns = (
        Column("Candidate"), Column("Size", number=True), Column("Speed-up", number=True),
        Column("Score", number=True), Column("Lost", number=True),
        Column("Outcome, and recipe", wide=True),
    )  # fmt: skip
    everyone = (frontier.original, *frontier.candidates)
    chosen = [index for index, one in enumerate(everyone) if one.name == frontier.chosen]
    caption = f"All {len(frontier.candidates)} candidates, and why each was or was not chosen"
    rows = [_candidate(one) for one in everyone]
    return section("What was tried", table(caption, columns, rows, sortable=True, marked=chosen))


def _candidate(one: Candidate) -> tuple[object, ...]:
    ratio = one.measurements.get("latency_ratio")
    return (
        one.name,
        Cell(bytes_in_words(one.size_bytes), one.size_bytes),
        Cell("-", None) if ratio is None else Cell(_value(ratio), ratio.value),
        Cell(score_in_words(one.score), one.score),
        Cell(join([f"{one.drop:+.4f}", _interval(one.measurements.get("drop"))]), one.drop),
        join([one.verdict, element("small", one.recipe.describe())]),
    )


def _time(frontier: Frontier) -> Html:
    """Where the time went, by the runtime's profiler; said in any case when the result is not faster."""
    best = frontier.best
    ratio = best.measurements.get("latency_ratio")
    slow = ratio is not None and (ratio.value if ratio.low is None else ratio.low) <= 1
    if best.time is None and not slow:
        return Html("")
    told = [element("p", f"{best.name} is not measurably faster than the original.")] if slow and best.verdict else []
    timed = sorted(((row.latency_share, row) for row in best.layers if row.latency_share), key=lambda pair: -pair[0])
    bars = [
        element("li", element("code", row.name), " ", element("span", f"{row.operator}, {row.bits}", class_="quiet"),
                element("span", f"{share:.1%}", class_="share"), element("meter", value=f"{share:.4f}", max="1"))
        for share, row in timed[:TIME_ROWS]
    ]  # fmt: skip
    longest = [element("h3", "The layers that take longest"), element("ol", join(bars), class_="bars")] if bars else []
    return section("Where the time went", *told, *_time_table(frontier.original, best), *longest)


def _time_table(original: Candidate, best: Candidate) -> list[Html]:
    sides = [(one.name, one.time) for one in (original, best) if one.time is not None]
    if best.time is None:
        return []
    kinds = {
        "Layers computed in int8": [split.int8 for _, split in sides],
        "Layers computed in float": [split.floating for _, split in sides],
        "Conversions of types and layouts": [split.conversions for _, split in sides],
        "Everything else": [split.other for _, split in sides],
    }
    rows: list[Sequence[object]] = [
        (title, *(_time_share(share, split) for share, (_, split) in zip(shares, sides, strict=True)))
        for title, shares in kinds.items()
    ]
    rows.append(("Number of conversions", *(f"{split.conversion_count:,}" for _, split in sides)))
    rows.append(("Number of operators", *(f"{split.node_count:,}" for _, split in sides)))
    columns = (Column("Work"), *(Column(name, number=True) for name, _ in sides))
    return [
        table(
            "Time of one example's operators, by the runtime's own profiler; what lies between them is not in it",
            columns,
            rows,
        )
    ]


def _time_share(share: float, split: TimeSplit) -> Html:
    return join([f"{share * split.total_ms:.3g} ms", element("small", f"{share:.0%}")])


def _reproduce(frontier: Frontier) -> Html:
    pairs: list[tuple[object, object]] = [
        ("seed", frontier.seed),
        ("time spent", f"{frontier.seconds:,.0f} s"),
        ("recipe", frontier.best.recipe.describe()),
        ("recipe fingerprint", element("code", frontier.best.recipe.fingerprint)),
        *((f"{name} fingerprint", element("code", value)) for name, value in frontier.fingerprints.items()),
    ]
    groups = (("Target", frontier.target), ("Machine", frontier.machine), ("Versions", frontier.versions))
    command = [element("pre", element("code", frontier.command), tabindex="0")] if frontier.command else []
    return section(
        "How to reproduce",
        *command,
        facts(pairs),
        *(join([element("h3", title), facts(values.items())]) for title, values in groups if values),
    )


def _notes(frontier: Frontier) -> Html:
    notes = [*frontier.best.notes, *(note for note in frontier.original.notes if note not in frontier.best.notes)]
    if not notes:
        return section("Notes", element("p", "Nothing was skipped, and no fallback was taken."))
    return section("Notes", element("ul", note_items((note.place, note.text) for note in notes), class_="notes"))


def note_items(notes: Iterable[tuple[str, str]]) -> Html:
    """Places and what is said of them, as items of a list."""
    return join(element("li", element("code", place), " ", text) for place, text in notes)
