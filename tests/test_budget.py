from __future__ import annotations

import json

import pytest

from alula.budget import Budget, parse_bytes, parse_drop
from alula.errors import BudgetError


@pytest.mark.parametrize(
    ("text", "value", "relative"),
    [
        ("1%", 0.01, False),
        (" 0.5 % ", 0.005, False),
        ("0.3", 0.3, False),
        (".3", 0.3, False),
        ("2% relative", 0.02, True),
        ("rel:2%", 0.02, True),
        ("relative 2%", 0.02, True),
        ("0.02 REL", 0.02, True),
    ],
)
def test_drops_as_people_write_them(text, value, relative):
    assert parse_drop(text) == (pytest.approx(value), relative)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "%",
        "0",
        "-1%",
        "one",
        "1,5%",
        "nan",
        "inf",
        "1e400",
        "rel:2% relative",
        "2%%",
        "1_0%",
        "120% relative",
        "rel",
    ],
)
def test_nonsense_drops_are_refused(text):
    with pytest.raises(BudgetError):
        parse_drop(text)


def test_a_refused_drop_shows_how_to_write_one():
    with pytest.raises(BudgetError, match=r"'1%'.*'0.3'.*'2% relative'"):
        parse_drop("a little")


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("800", 800),
        ("2MB", 2_000_000),
        ("2 mb", 2_000_000),
        ("2M", 2_000_000),
        ("1.5KiB", 1536),
        ("1 GiB", 2**30),
        ("1k", 1000),
    ],
)
def test_bytes_as_people_write_them(text, size_bytes):
    assert parse_bytes(text) == size_bytes


@pytest.mark.parametrize("text", ["", "MB", "-2MB", "2 XB", "0", "0.5", "2iB", "nan", "99999999999999999999"])
def test_nonsense_bytes_are_refused(text):
    with pytest.raises(BudgetError):
        parse_bytes(text)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_drop": -0.1}, "above 0"),
        ({"max_drop": 0}, "no number of examples can show"),
        ({"max_drop": float("nan")}, "finite"),
        ({"max_drop": "1%"}, "parse_drop"),
        ({"max_drop": True}, "max_drop"),
        ({"max_drop": 2, "relative": True}, "for two percent write 0.02"),
        ({"confidence": 95}, "for 95 percent write 0.95"),
        ({"confidence": 1.0}, "below 1"),
        ({"confidence": 0.2}, "at least 0.5"),
        ({"minimize": "speed"}, "latency, size, energy"),
        ({"max_size_bytes": 0}, "above 0"),
        ({"max_size_bytes": 0.5}, "whole number"),
        ({"max_latency_ms": -1}, "above 0"),
        ({"max_energy_mj": float("inf")}, "finite"),
        ({"max_memory_bytes": "2MB"}, "max_memory_bytes"),
    ],
)
def test_nonsense_budgets_are_refused(settings, message):
    with pytest.raises(BudgetError, match=message):
        Budget(**settings)


def test_allowed_drop_in_score_units():
    assert Budget(max_drop=0.02).allowed_drop(0.8) == 0.02
    assert Budget(max_drop=0.02, relative=True).allowed_drop(0.8) == pytest.approx(0.016)
    assert Budget(max_drop=0.5, relative=True).allowed_drop(-3.0) == 1.5


def test_a_drop_that_allows_everything_is_caught_where_bounds_are_known():
    with pytest.raises(BudgetError, match="write '5%'"):
        Budget(max_drop=5).allowed_drop(0.8, (0.0, 1.0))
    assert Budget(max_drop=5).allowed_drop(80.0) == 5


def test_a_fraction_of_nothing_is_refused():
    with pytest.raises(BudgetError, match="score units"):
        Budget(max_drop=0.1, relative=True).allowed_drop(0.0)
    with pytest.raises(BudgetError, match="finite"):
        Budget().allowed_drop(float("nan"))


def test_json_round_trip():
    budget = Budget(max_drop=0.02, relative=True, minimize="size", max_size_bytes=1000, max_latency_ms=2.5)
    assert Budget.from_json(json.loads(json.dumps(budget.to_json()))) == budget
    with pytest.raises(BudgetError, match="no 'max_dorp'; it has max_drop"):
        Budget.from_json({"max_dorp": 0.1})
