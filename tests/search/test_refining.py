"""How many layers are kept apart, and what counts as accurate enough."""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from alula.budget import Budget
from alula.recipe import Recipe
from alula.search import refining
from alula.search.choosing import Terms
from alula.search.refining import certificate_of, is_accurate, would_certify
from alula.search.result import Candidate
from alula.search.sensitivity import Harm
from alula.search.trial import Trial


def trial(name, values, drop=0.0) -> Trial:
    return Trial(Candidate(name, Recipe(), 50, 0.9 - drop, drop, {}), np.asarray(values, np.float64), {})


def searching(values, aggregate=None, bounds=None) -> SimpleNamespace:
    """A search whose original has these scores of the selection examples."""
    task = SimpleNamespace(aggregate=aggregate, bounds=bounds, higher_is_better=True)
    budget = Budget(max_drop=0.05)
    return SimpleNamespace(
        ground=SimpleNamespace(task=task, seed=0),
        budget=budget,
        terms=Terms(budget, trial("original", values), 0.05),
        certification=range(len(values)),
    )


def kept_counts(monkeypatch, layers, needed, gains=math.inf) -> list[int]:
    """How many layers were kept apart, try by try; ``needed`` hold the drop, up to ``gains`` gain something."""
    tried = []

    def keep_apart(search, proposal, kept, harms):
        tried.append(len(kept))
        return len(kept)

    monkeypatch.setattr(refining, "_keep_apart", keep_apart)
    monkeypatch.setattr(refining, "is_accurate", lambda _, count: count >= needed)
    search = SimpleNamespace(terms=SimpleNamespace(is_better=lambda count: count <= gains))
    harms = {("model", str(number)): Harm(1.0, None, 1) for number in range(layers)}
    refining._keep_most_harmful(search, None, harms)
    return tried


@pytest.mark.parametrize(
    ("layers", "needed", "tried"),
    [
        (60, 40, [1, 2, 4, 8, 16, 32, 46, 39, 42, 40]),
        (60, 60, [1, 2, 4, 8, 16, 32, 46, 53, 56, 58]),
        (60, 5, [1, 2, 4, 8, 6, 5]),
        (60, 1, [1]),
        (3, 3, [1, 2]),
        (1, 1, []),
    ],
)
def test_the_number_of_layers_doubles_and_is_bisected(monkeypatch, layers, needed, tried) -> None:
    assert kept_counts(monkeypatch, layers, needed) == tried


def test_it_stops_when_nothing_is_left_to_gain(monkeypatch) -> None:
    assert kept_counts(monkeypatch, 60, 40, gains=3) == [1, 2, 4]


def share_of_positives(parts) -> float:
    return float(parts.mean()) if parts.any() else math.nan


@pytest.mark.parametrize("drop", [0.0, 0.06])
def test_a_score_that_samples_may_lack_is_judged_by_its_drop(drop) -> None:
    values = np.zeros((200, 1))
    values[0] = 1  # a third of all samples has no positive
    search = searching(values, share_of_positives)
    found = certificate_of(search, values, values)
    assert (found.verdict, found.bound) == ("not enough examples", math.inf)
    assert not would_certify(search, search.terms.original)
    assert is_accurate(search, trial("a", values, drop)) is (drop == 0.0)


def test_what_cannot_be_certified_at_all_is_said_and_judged_by_its_drop(caplog) -> None:
    search = searching(np.ones(50), bounds=(0.0, 0.5))  # scores outside their bounds
    with caplog.at_level(logging.WARNING):
        assert not would_certify(search, search.terms.original)
    assert "whether original would be certified cannot be told" in caplog.text
    assert is_accurate(search, trial("a", np.ones(50)))


def test_scores_as_good_as_the_original_would_be_certified() -> None:
    values = np.ones(400)
    search = searching(values)
    assert would_certify(search, search.terms.original)
    assert is_accurate(search, trial("a", values))
    worse = replace(trial("b", np.r_[np.zeros(60), np.ones(340)]))
    assert not would_certify(search, worse)
    assert not is_accurate(search, worse)
