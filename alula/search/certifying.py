"""The only place that sees the certification examples: measure the best at length, certify it, or take the next."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from alula.measurement.certificate import Certificate
from alula.measurement.measurement import Measurement
from alula.measurement.score import score
from alula.search.building import ORIGINAL, measure_long, run_of
from alula.search.choosing import Terms, closest, rank
from alula.search.events import Event
from alula.search.refining import certificate_of, would_certify
from alula.search.state import artifacts_of

if TYPE_CHECKING:
    from alula.search.building import Artifacts
    from alula.search.state import Search
    from alula.search.trial import Trial

ATTEMPTS: Final = 3


@dataclass(frozen=True, slots=True)
class Choice:
    """What is handed back: a candidate that holds the budget, or the one nearest to it; and why not others."""

    chosen: Trial | None
    closest: Trial | None
    certificate: Certificate | None
    terms: Terms  # with the original as measured beside the candidate
    rejected: dict[str, str] = field(default_factory=dict)

    @property
    def shipped(self) -> Trial | None:
        """The candidate that is written."""
        return self.chosen or self.closest


def choose(search: Search) -> Choice:
    """Hold the best candidates against the certification examples, one after the other, until one passes.

    A candidate must first be better than the original in a long measurement; one that is not costs no attempt. Of those
    that could not be certified for want of examples, the first is chosen, and its certificate says what is missing.
    """
    rejected: dict[str, str] = {}
    undecided: Choice | None = None
    failed: Choice | None = None
    task, number = search.ground.task, 1
    for trial, terms in _measured(search, rejected):
        certificate = _certify(search, trial, number)
        choice = Choice(trial, None, certificate, terms, rejected)
        if certificate.verdict == "holds":
            return choice
        rejected[trial.name] = certificate.sentence(task.metric, labelled=task.labelled)
        if certificate.verdict == "fails":
            failed = failed or replace(choice, chosen=None, closest=trial)
        else:
            undecided = undecided or choice
        number += 1
        if number > ATTEMPTS or not _is_possible(search, number):
            break
    if undecided is not None and undecided.chosen is not None:
        rejected.pop(undecided.chosen.name, None)
        return undecided
    return failed or _nearest(search, rejected)


def _measured(search: Search, rejected: dict[str, str]) -> Iterator[tuple[Trial, Terms]]:
    """Candidates that hold the budget on the selection examples, best first, measured at length beside the original."""
    holding = [trial for trial in rank(search.trials, search.terms) if search.terms.holds(trial)]
    for trial in sorted(holding, key=lambda trial: not would_certify(search, trial)):
        terms, measured = _measure(search, trial)
        lacking = terms.lacks(measured)
        if lacking:
            rejected[trial.name] = f"in a long measurement {'; '.join(lacking)}"
        else:
            yield measured, terms


def _measure(search: Search, trial: Trial) -> tuple[Terms, Trial]:
    search.emit(Event("stage", f"measuring {trial.name}"))

    def make() -> dict[str, Any]:
        measured = measure_long(search.ground, trial.name, artifacts_of(search, trial))
        return {
            side: {key: value.to_json() for key, value in measured[name].items()}
            for side, name in (("original", ORIGINAL), ("candidate", trial.name))
        }

    found = search.recall("measurement", make, recipe=trial.candidate.recipe.fingerprint)
    sides = {
        side: {key: Measurement.from_json(value) for key, value in found[side].items()}
        for side in ("original", "candidate")
    }
    terms = replace(search.terms, original=search.terms.original.measured(sides["original"]), strict=True)
    return terms, trial.measured(sides["candidate"])


def _certify(search: Search, trial: Trial, number: int) -> Certificate:
    before = _held_out_scores(search, search.terms.original, search.ground.artifacts)
    after = _held_out_scores(search, trial, None)
    return certificate_of(search, before, after, number)


def _is_possible(search: Search, number: int) -> bool:
    """Whether a model without any loss would be certified at this attempt."""
    before = _held_out_scores(search, search.terms.original, search.ground.artifacts)
    return certificate_of(search, before, before, number).verdict == "holds"


def _held_out_scores(search: Search, trial: Trial, artifacts: Artifacts | None) -> np.ndarray:  # [n] or [n, k]
    def make() -> dict[str, Any]:
        stage = f"certifying {trial.name} on {len(search.certification):,} held-out examples"
        if trial.name == ORIGINAL:
            stage = f"scoring the original on {len(search.certification):,} held-out examples"
        search.emit(Event("stage", stage, total=len(search.certification)))
        run = run_of(search.ground.target, artifacts or artifacts_of(search, trial))
        found = score(search.ground.task, run, search.certification, on_progress=search.progress(stage))
        return {"values": found.values.tolist()}

    found = search.recall("certification", make, recipe=trial.candidate.recipe.fingerprint)
    return np.asarray(found["values"], np.float64)


def _nearest(search: Search, rejected: dict[str, str]) -> Choice:
    near = closest(search.trials, search.terms)
    if near is None:
        return Choice(None, None, None, search.terms, rejected)
    terms, measured = _measure(search, near)
    return Choice(None, measured, None, terms, rejected)
