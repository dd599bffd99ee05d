"""The only place that sees the certification examples: measure the best at length, certify it, or take the next."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from alula.errors import DataError, ModelError, RecipeError, TargetError
from alula.graph.model import Note
from alula.measurement.certificate import Certificate
from alula.measurement.measurement import Measurement
from alula.measurement.score import score
from alula.search.building import ORIGINAL, measure_long, note_memory, run_of
from alula.search.choosing import Terms, closest, rank
from alula.search.events import Event
from alula.search.refining import certificate_of, would_certify
from alula.search.state import artifacts_of
from alula.search.words import score_in_words

if TYPE_CHECKING:
    from alula.search.building import Artifacts
    from alula.search.state import Search
    from alula.search.trial import Trial

ATTEMPTS: Final = 3
FAULTS: Final = (DataError, ModelError, RecipeError, TargetError)  # what a candidate may raise


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
    that could not be certified for want of examples, the first is chosen, and its certificate says what is missing. One
    that fails to run is rejected, and trusted no more.

    Raises:
        DataError: the original cannot be scored on the certification examples.
        TargetError: the original cannot be run on them.
    """
    rejected: dict[str, str] = {}
    undecided: Choice | None = None
    failed: Choice | None = None
    number = 1
    for trial, terms in _measured(search, rejected):
        certificate = _certify(search, trial, number, rejected)
        choice = Choice(trial, None, certificate, terms, rejected)
        if certificate is not None:
            if certificate.verdict == "holds":
                return choice
            rejected[trial.name] = _shortfall(certificate)
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


def _shortfall(certificate: Certificate) -> str:
    """Why a candidate was not certified, in few words; the certificate says all of it."""
    place = f"on {certificate.n:,} held-out example{'' if certificate.n == 1 else 's'}"
    allowed = f"{certificate.max_drop:.4g} may be lost"
    if certificate.verdict == "fails":
        return f"{place} its drop is {score_in_words(certificate.drop)}, and at most {allowed}"
    return f"{place} it cannot be certified: at most {allowed}, and they are too few to tell"


def _distrust(search: Search, trial: Trial, reason: str, rejected: dict[str, str]) -> None:
    """A candidate that failed stays in the result and is never chosen."""
    rejected[trial.name] = reason
    search.emit(Event("note", str(Note(trial.name, reason))))
    search.trials = [replace(one, distrust=reason) if one.name == trial.name else one for one in search.trials]


def _measured(search: Search, rejected: dict[str, str]) -> Iterator[tuple[Trial, Terms]]:
    """Candidates that hold the budget on the selection examples, best first, measured at length beside the original."""
    holding = [trial for trial in rank(search.trials, search.terms) if search.terms.holds(trial)]
    for trial in sorted(holding, key=lambda trial: not would_certify(search, trial)):
        found = _measure(search, trial, rejected)
        if found is None:
            continue
        terms, measured = found
        if lacking := terms.lacks(measured):
            rejected[trial.name] = f"in a long measurement {'; '.join(lacking)}"
        else:
            yield measured, terms


def _measure(search: Search, trial: Trial, rejected: dict[str, str]) -> tuple[Terms, Trial] | None:
    """The original and a candidate, measured at length; None where the candidate failed (the original ran before)."""
    search.emit(Event("stage", f"measuring {trial.name}"))

    def make() -> dict[str, Any]:
        measured = measure_long(search.ground, trial.name, artifacts_of(search, trial))
        return {
            side: {key: value.to_json() for key, value in measured[name].items()}
            for side, name in (("original", ORIGINAL), ("candidate", trial.name))
        }

    try:
        found = search.recall("measurement", make, recipe=trial.candidate.recipe.fingerprint)
    except FAULTS as error:
        _distrust(search, trial, f"it fails in a long measurement: {error}", rejected)
        return None
    sides = {
        side: {key: Measurement.from_json(value) for key, value in found[side].items()}
        for side in ("original", "candidate")
    }
    terms = replace(search.terms, original=search.terms.original.measured(sides["original"]), strict=True)
    return terms, note_memory(trial.measured(sides["candidate"]))


def _certify(search: Search, trial: Trial, number: int, rejected: dict[str, str]) -> Certificate | None:
    """The certificate of a candidate; None where it failed on the held-out examples."""
    before = _held_out_scores(search, search.terms.original, search.ground.artifacts)
    try:
        after = _held_out_scores(search, trial, None)
    except FAULTS as error:
        _distrust(search, trial, f"it fails on the held-out examples: {error}", rejected)
        return None
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
    while (near := closest(search.trials, search.terms)) is not None:
        found = _measure(search, near, rejected)
        if found is not None:  # else it is trusted no more, and another is the closest
            terms, measured = found
            return Choice(None, measured, None, terms, rejected)
    return Choice(None, None, None, search.terms, rejected)
