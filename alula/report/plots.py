"""The trade-off plots: what a candidate costs against what it scores.

A figure is plain plotly JSON. Colours are names of the page's CSS variables ("var(--accent)"), which page.js replaces
by their values, so that one figure serves the light and the dark page.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from alula.search.result import Candidate, Frontier
from alula.search.words import bytes_in_words, score_in_words

CLIP = 6.0  # a candidate whose loss exceeds this many times the range of interest is drawn at the edge


@dataclass(frozen=True, slots=True)
class Cost:
    """An axis of cost: how to read it from a candidate (value, low, high), and its limit in the budget."""

    title: str
    unit: str
    read: Callable[[Candidate], tuple[float, float, float] | None]
    limit: float | None


@dataclass(frozen=True, slots=True)
class Marker:
    """How a group of candidates is drawn; groups differ in shape and size, not in colour alone."""

    title: str
    symbol: str
    size: int
    colour: str


DOMINATED = Marker("dominated", "circle-open", 9, "var(--faint)")
FRONT = Marker("frontier", "circle", 9, "var(--accent)")
ORIGINAL = Marker("original", "square", 11, "var(--ink)")
CHOSEN = Marker("chosen", "diamond", 15, "var(--accent)")


def costs_of(frontier: Frontier) -> tuple[Cost, ...]:
    """The axes that were measured: size always, latency where there is one."""
    sizes = (("GB", 1e9), ("MB", 1e6), ("kB", 1e3), ("bytes", 1.0))
    unit, scale = next((pair for pair in sizes if frontier.original.size_bytes >= pair[1]), sizes[-1])
    limit = frontier.budget.max_size_bytes
    size = Cost("Size", unit, lambda one: (one.size_bytes / scale,) * 3, None if limit is None else limit / scale)
    latency = Cost("Latency (median)", "ms", partial(_latency, frontier.original), frontier.budget.max_latency_ms)
    return (size, latency) if latency.read(frontier.original) is not None else (size,)


def score_floor(frontier: Frontier) -> tuple[float, float]:
    """The worst score that the budget allows, and the direction of better (+1 higher, -1 lower)."""
    original = frontier.original.score
    direction = 1.0 if frontier.higher_is_better else -1.0
    allowed = frontier.budget.max_drop * (abs(original) if frontier.budget.relative else 1.0)
    return original - direction * allowed, direction


def trade_off(frontier: Frontier, cost: Cost) -> dict[str, Any]:
    """The figure of score against ``cost``: dominated points grey, the frontier joined, the chosen one highlighted."""

    def measured(group: Sequence[Candidate]) -> list[Candidate]:
        return [one for one in group if cost.read(one) is not None]

    floor, direction = score_floor(frontier)
    edge = _edge(frontier, floor, direction)
    others = [one for one in frontier.candidates if one.name != frontier.chosen]
    groups = (
        (DOMINATED, [one for one in others if one.name not in frontier.pareto]),
        (FRONT, [one for one in others if one.name in frontier.pareto]),
        (ORIGINAL, [frontier.original]),
        (CHOSEN, [one for one in frontier.candidates if one.name == frontier.chosen]),
    )
    traces = [_line((frontier.original, *frontier.candidates), cost, edge, direction)]
    traces += [_points(marker, known, cost, edge, direction) for marker, group in groups if (known := measured(group))]
    return {"data": traces, "layout": _layout(frontier, cost, floor, edge)}


def describe(frontier: Frontier, cost: Cost) -> str:
    """The figure in words, for those who do not see it."""
    points = []
    for one in (frontier.original, *frontier.candidates):
        if (value := cost.read(one)) is not None:
            mark = ", chosen" if one.name == frontier.chosen else ""
            points.append(f"{one.name}{mark}: {value[0]:.3g} {cost.unit}, score {score_in_words(one.score)}")
    return f"{cost.title} against {frontier.metric}. " + "; ".join(points) + "."


def _latency(original: Candidate, candidate: Candidate) -> tuple[float, float, float] | None:
    """The original's latency over the speed-up: each ran beside the original, but not all of them at one time."""
    measured = original.measurements.get("latency_p50_ms")
    ratio = candidate.measurements.get("latency_ratio")
    if measured is None:
        return None
    if candidate.name == original.name:
        low, high = measured.low, measured.high
        return measured.value, measured.value if low is None else low, measured.value if high is None else high
    if ratio is None or ratio.value <= 0:
        return None
    slowest, fastest = ratio.low or ratio.value, ratio.high or ratio.value
    return measured.value / ratio.value, measured.value / fastest, measured.value / slowest


def _score_interval(candidate: Candidate) -> tuple[float, float]:
    """How far the score's interval reaches below and above it; 0 where no interval was measured."""
    measured = candidate.measurements.get("score")
    if measured is None or measured.low is None or measured.high is None:
        return 0.0, 0.0
    return max(candidate.score - measured.low, 0.0), max(measured.high - candidate.score, 0.0)


def _edge(frontier: Frontier, floor: float, direction: float) -> float | None:
    """The score at which collapsed candidates are drawn instead of theirs, so that the others stay distinguishable."""
    original = frontier.original.score
    drops = [(original - one.score) * direction for one in frontier.candidates]
    reach = max(abs(original - floor), 0.02 * abs(original))
    reach = max([reach, *(drop for drop in drops if drop < CLIP * reach)])
    return original - direction * 1.2 * reach if any(drop > 2 * reach for drop in drops) else None


def _clipped(candidate: Candidate, edge: float | None, direction: float) -> bool:
    return edge is not None and (candidate.score - edge) * direction < 0


def _shown(candidate: Candidate, edge: float | None, direction: float) -> float:
    return edge if edge is not None and _clipped(candidate, edge, direction) else candidate.score


def _line(everyone: Sequence[Candidate], cost: Cost, edge: float | None, direction: float) -> dict[str, Any]:
    """The best score for at most each cost, as steps; collapsed candidates are no part of it."""
    inside = [one for one in everyone if not _clipped(one, edge, direction)]
    points: list[tuple[float, float]] = []
    for x, y in sorted((read[0], -direction * one.score) for one in inside if (read := cost.read(one)) is not None):
        if not points or y < points[-1][1]:
            points.append((x, y))
    return {
        "type": "scatter",
        "mode": "lines",
        "x": [x for x, _ in points],
        "y": [-direction * y for _, y in points],
        "line": {"color": "var(--accent)", "width": 1.5, "shape": "hv"},
        "hoverinfo": "skip",
        "showlegend": False,
    }


def _points(
    marker: Marker, members: Sequence[Candidate], cost: Cost, edge: float | None, direction: float
) -> dict[str, Any]:
    """One group of candidates as markers with error bars; those beyond the edge become arrows that point to it."""
    members = sorted(members, key=lambda one: _clipped(one, edge, direction))  # the legend shows the first one's shape
    known = [(one, value) for one in members if (value := cost.read(one)) is not None]
    arrow = "triangle-down" if direction > 0 else "triangle-up"
    clipped = [_clipped(one, edge, direction) for one, _ in known]
    intervals = [(0.0, 0.0) if out else _score_interval(one) for (one, _), out in zip(known, clipped, strict=True)]
    bars = {"color": marker.colour, "thickness": 1.2, "width": 4}
    return {
        "type": "scatter",
        "mode": "markers",
        "name": marker.title,
        "x": [value[0] for _, value in known],
        "y": [_shown(one, edge, direction) for one, _ in known],
        "error_x": _bars([(value[0] - value[1], value[2] - value[0]) for _, value in known]) | bars,
        "error_y": _bars(intervals) | bars,
        "marker": {
            "symbol": [arrow if out else marker.symbol for out in clipped],
            "size": marker.size,
            "color": marker.colour,
            "line": {"color": marker.colour, "width": 1.5},
        },
        "customdata": [[plain(one.name), plain(_hover(one))] for one, _ in known],
        "hovertemplate": "<b>%{customdata[0]}</b><br>%{customdata[1]}<extra></extra>",
    }


def _bars(reach: Sequence[tuple[float, float]]) -> dict[str, Any]:
    return {
        "type": "data",
        "symmetric": False,
        "arrayminus": [low for low, _ in reach],
        "array": [high for _, high in reach],
        "visible": any(low or high for low, high in reach),
    }


def _hover(candidate: Candidate) -> str:
    words = [f"score {score_in_words(candidate.score)}", bytes_in_words(candidate.size_bytes)]
    if "latency_p50_ms" in candidate.measurements:
        words.append(f"{candidate.measurements['latency_p50_ms'].value:.3g} ms")
    return ", ".join(words)


def plain(text: str) -> str:
    """Text for plotly, which reads a few tags in its labels: shortened, and without any."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")[:80]


def axis_of(title: str) -> dict[str, Any]:
    """An axis with its title, in the page's colours."""
    lines = {"gridcolor": "var(--line)", "zeroline": False, "linecolor": "var(--line)", "automargin": True}
    return lines | {"title": {"text": title}}


def frame(height: int) -> dict[str, Any]:
    """What the layouts of all figures share."""
    return {
        "margin": {"l": 8, "r": 8, "t": 8, "b": 8},
        "height": height,
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"color": "var(--ink)", "size": 13, "family": "var(--font)"},
        "hoverlabel": {"bgcolor": "var(--paper)", "bordercolor": "var(--line)", "font": {"color": "var(--ink)"}},
        "dragmode": False,
    }


def limit(place: dict[str, Any]) -> dict[str, Any]:
    """A dashed line at a limit."""
    return {"type": "line", "line": {"color": "var(--warn)", "width": 1.5, "dash": "dash"}, **place}


def _layout(frontier: Frontier, cost: Cost, floor: float, edge: float | None) -> dict[str, Any]:
    label = {"showarrow": False, "font": {"color": "var(--warn)", "size": 12}}
    lines = [limit({"xref": "paper", "x0": 0, "x1": 1, "y0": floor, "y1": floor})]
    notes = [label | {"xref": "paper", "x": 0, "y": floor, "xanchor": "left", "yanchor": "top", "text": "budget"}]
    if cost.limit is not None:
        lines.append(limit({"yref": "paper", "y0": 0, "y1": 1, "x0": cost.limit, "x1": cost.limit}))
        notes.append(label | {"yref": "paper", "y": 0, "x": cost.limit, "xanchor": "left", "yanchor": "bottom",
                              "text": f"at most {cost.limit:.3g} {cost.unit}"})  # fmt: skip
    title = plain(frontier.metric) + ("" if edge is None else " (arrows: off this scale)")
    return {
        "xaxis": axis_of(f"{cost.title}, {cost.unit}") | {"rangemode": "tozero"},
        "yaxis": axis_of(title),
        "shapes": lines,
        "annotations": notes,
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        **frame(380),
    }
