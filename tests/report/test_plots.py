"""The figures: what is highlighted, joined, clipped, and where the budget stands."""

from __future__ import annotations

from dataclasses import replace

import pytest

from alula.budget import Budget
from alula.report.plots import costs_of, describe, score_floor, trade_off


def _trace(figure, name):
    return next(trace for trace in figure["data"] if trace.get("name") == name)


def test_groups(frontier):
    size, latency = costs_of(frontier)
    figure = trade_off(frontier, size)
    assert _trace(figure, "chosen")["x"] == [22.9]
    assert _trace(figure, "original")["x"] == [90.9]
    assert sorted(_trace(figure, "dominated")["x"]) == [41.7, 45.5]
    assert _trace(trade_off(frontier, latency), "chosen")["x"] == [pytest.approx(24.6 / 2.91)]


def test_error_bars_are_the_intervals(frontier):
    _, latency = costs_of(frontier)
    chosen = _trace(trade_off(frontier, latency), "chosen")
    assert chosen["error_y"]["arrayminus"] == [pytest.approx(0.006)]
    assert chosen["error_y"]["array"] == [pytest.approx(0.004)]
    ratio = frontier.candidates[0].measurements["latency_ratio"]  # each ran beside the original, at its own time
    assert chosen["x"] == [pytest.approx(24.6 / 2.91)]
    assert chosen["error_x"]["array"] == [pytest.approx(24.6 / ratio.low - 24.6 / 2.91)]
    assert chosen["error_x"]["arrayminus"] == [pytest.approx(24.6 / 2.91 - 24.6 / ratio.high)]


def test_the_line_is_the_best_score_for_each_cost(frontier):
    size, _ = costs_of(frontier)
    line = trade_off(frontier, size)["data"][0]
    points = list(zip(line["x"], line["y"], strict=True))
    assert points == sorted(points)
    candidates = [(one.size_bytes / 1e6, one.score) for one in frontier.candidates if one.score > 0.9]
    for x, y in candidates:  # nothing lies above the line
        assert max(score for cost, score in points if cost <= x) >= y


def test_a_collapsed_candidate_does_not_squash_the_others(frontier):
    size, _ = costs_of(frontier)
    front = _trace(trade_off(frontier, size), "frontier")
    arrows = [index for index, symbol in enumerate(front["marker"]["symbol"]) if symbol == "triangle-down"]
    assert len(arrows) == 1
    assert front["y"][arrows[0]] > 0.9
    assert "0.6127" in front["customdata"][arrows[0]][1]  # hovering tells the truth
    mild = tuple(one for one in frontier.candidates if one.score > 0.9)
    figure = trade_off(replace(frontier, candidates=mild, pareto=()), size)
    assert all("triangle" not in symbol for trace in figure["data"][1:] for symbol in trace["marker"]["symbol"])


def test_the_budget_line(frontier):
    assert score_floor(frontier)[0] == pytest.approx(0.9863 - 0.01)
    relative = replace(frontier, budget=Budget(max_drop=0.02, relative=True))
    assert score_floor(relative)[0] == pytest.approx(0.9863 * 0.98)
    limited = replace(frontier, budget=Budget(max_size_bytes=25_000_000, max_latency_ms=9.0))
    for cost, limit in zip(costs_of(limited), (25.0, 9.0), strict=True):
        lines = trade_off(limited, cost)["layout"]["shapes"]
        assert [line["x0"] for line in lines[1:]] == [limit]


def test_errors_where_lower_is_better(frontier):
    original = replace(frontier.original, score=0.20)
    worse = replace(frontier.candidates[0], score=0.205, drop=0.005)
    collapsed = replace(frontier.candidates[1], score=0.9, drop=0.7)
    errors = replace(frontier, original=original, candidates=(worse, collapsed), pareto=("int8-dynamic",),
                     higher_is_better=False)  # fmt: skip
    floor, direction = score_floor(errors)
    assert (floor, direction) == (pytest.approx(0.21), -1.0)
    figure = trade_off(errors, costs_of(errors)[0])
    assert _trace(figure, "dominated")["marker"]["symbol"] == ["triangle-up"]
    assert _trace(figure, "dominated")["y"][0] < 0.5


def test_without_latency_there_is_only_size(frontier):
    bare = replace(frontier, original=replace(frontier.original, measurements={}))
    assert [cost.title for cost in costs_of(bare)] == ["Size"]


def test_in_words(frontier):
    words = describe(frontier, costs_of(frontier)[0])
    assert "original: 90.9 MB, score 0.9863" in words
    assert "int8-dynamic, chosen: 22.9 MB, score 0.9842" in words
