"""Why each candidate was or was not chosen, in words."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from alula.search.choosing import runs_alike
from alula.search.words import time_in_words

if TYPE_CHECKING:
    from alula.search.certifying import Choice
    from alula.search.result import Candidate, LayerRow
    from alula.search.state import Search
    from alula.search.trial import Trial

_BEST: Final = {"latency": "fastest", "size": "smallest", "energy": "most frugal"}


def judge(search: Search, choice: Choice, trial: Trial) -> Candidate:
    """The candidate with its verdict, and what is known of each layer's harm."""
    return replace(trial.candidate, verdict=_verdict(search, choice, trial), layers=_explained(search, trial))


def _verdict(search: Search, choice: Choice, trial: Trial) -> str:
    """Why a candidate was or was not chosen."""
    if choice.chosen is not None and trial.name == choice.chosen.name:
        certified = choice.certificate is not None and choice.certificate.verdict == "holds"
        best = _BEST[search.budget.minimize]
        return f"chosen: the {best} that holds the budget" + ("" if certified else ", though it is not certified")
    if trial.distrust:
        return f"not trusted: {trial.distrust}"
    nearest = "nearest to the budget, but " if choice.closest and trial.name == choice.closest.name else ""
    lacking = search.terms.lacks(trial)
    if lacking and trial.name not in choice.rejected:
        slow = "" if search.terms.is_better(trial) else _where_time_goes(trial)
        return f"{nearest}{'; '.join(lacking)}{slow}"
    if trial.name in choice.rejected:
        return f"{nearest or 'not chosen: '}{choice.rejected[trial.name]}"
    return _beaten(search, choice.chosen, trial)


def _beaten(search: Search, winner: Trial | None, trial: Trial) -> str:
    if winner is None:
        return "holds the budget on the selection examples, but was not held against the held-out ones"
    if runs_alike(trial, winner):
        return f"holds the budget on the selection examples; runs like {winner.name}, which surely loses less"
    if search.terms.cost(trial) < search.terms.cost(winner):
        return f"holds the budget on the selection examples, but less surely than {winner.name}"
    goal = search.budget.minimize
    return f"holds the budget on the selection examples; {winner.name} is better on {goal}, or as good and loses less"


def _where_time_goes(trial: Trial) -> str:
    return "" if trial.candidate.time is None else f"; its time goes to {time_in_words(trial.candidate.time)}"


def _explained(search: Search, trial: Trial) -> tuple[LayerRow, ...]:
    harms = search.harms.get(trial.name, {})
    order = {key: number for number, key in enumerate(harms, 1)}
    rows = []
    for row in trial.candidate.layers:
        harm = harms.get((row.part, row.name))
        if harm is None:
            rows.append(row)
            continue
        rank = order[row.part, row.name]
        why = f"number {rank} of {len(order)} by harm: alone it changes the output by {harm.error:.2%}"
        rows.append(replace(row, harm=harm.error, why=f"{why}; {row.why}" if row.why else why))
    return tuple(rows)


def distance_in_words(choice: Choice) -> str:
    """What is missing to the budget, in words; nothing when a candidate was chosen."""
    if choice.chosen is not None:
        return ""
    if choice.closest is None:
        return "no candidate could be built and trusted; the notes say why"
    near = choice.closest
    lacking = [*choice.terms.lacks(near)]
    if near.name in choice.rejected:
        lacking.append(choice.rejected[near.name])
    return f"the best reached: {near.name}; {'; '.join(lacking) or 'it was not certified'}"
