"""Where accuracy breaks: find the layers that break it, and give exactly those more bits."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from alula.errors import DataError, ModelError, RecipeError
from alula.graph.model import Note
from alula.graph.statistics import Statistics
from alula.measurement.certificate import Certificate, certify, certify_corpus
from alula.recipe import apply_recipe
from alula.search.building import apply_to_parts
from alula.search.calibration import preserving_part
from alula.search.choosing import TIE, rank
from alula.search.diagnosis import diagnose, ranges_of
from alula.search.events import Event
from alula.search.propose import Proposal, keep_apart
from alula.search.result import Finding
from alula.search.sensitivity import Harm, rank_harm
from alula.search.state import attempt

if TYPE_CHECKING:
    import numpy as np

    from alula.search.state import Search
    from alula.search.trial import Trial

REFINED: Final = 2  # proposals that are refined, at most
BISECTIONS: Final = 4
log = logging.getLogger(__name__)

Key = tuple[str, str]  # part, layer


def refine(search: Search) -> None:
    """Refine the proposals that would win if they held the drop; explain the collapse of the best one in any case.

    A proposal that cannot be refined is noted, and the search goes on with what it has.
    """
    broken = [trial for trial in rank(search.trials, search.terms) if not is_accurate(search, trial)]
    names = {proposal.name: proposal for proposal in search.proposals}
    worth = _worth_refining(search, broken)
    collapsed = [trial for trial in broken if not search.terms.holds_drop(trial) and not trial.distrust]
    for trial in worth or collapsed[:1]:
        try:
            harms = _harms(search, names[trial.name])
        except (RecipeError, ModelError, DataError) as error:
            search.notes.append(Note(trial.name, f"its layers could not be ranked by harm: {error}"))
            continue
        if trial in worth:
            _keep_most_harmful(search, names[trial.name], harms)


def is_accurate(search: Search, trial: Trial) -> bool:
    """Whether a candidate's accuracy is good enough to stop refining it.

    It holds the drop on the selection examples, and would, going by these, be certified on as many examples as there
    are for that; the latter is dropped where even an unchanged model could not be certified on so few.
    """
    if trial.distrust or not search.terms.holds_drop(trial):
        return False
    return would_certify(search, trial) or not would_certify(search, search.terms.original)


def would_certify(search: Search, trial: Trial) -> bool:
    """Whether the certificate would hold if the held-out examples were like the selection examples."""
    try:
        found = certificate_of(search, search.terms.original.values, trial.values)
    except DataError as error:
        log.warning("whether %s would be certified cannot be told: %s", trial.name, error)
        return False
    if found.verdict == "holds":
        return True
    return found.examples_needed is not None and found.n + found.examples_needed <= len(search.certification)


def certificate_of(search: Search, before: np.ndarray, after: np.ndarray, number: int = 1) -> Certificate:
    """The certificate that scores (or parts) of the same examples give to attempt ``number``."""
    task, budget = search.ground.task, search.budget
    settings: dict[str, Any] = {
        "max_drop": search.terms.allowed_drop,
        "confidence": budget.confidence,
        "attempt": number,
        "higher_is_better": task.higher_is_better,
        "seed": search.ground.seed,
    }
    if task.aggregate is not None:
        return certify_corpus(before, after, task.aggregate, **settings)
    return certify(before, after, bounds=task.bounds, **settings)


def _worth_refining(search: Search, broken: Sequence[Trial]) -> list[Trial]:
    """Of the candidates that break the drop: those better than whatever holds it; of equally good ones the first."""
    terms, tie = search.terms, 1 + TIE[search.budget.minimize]
    accepted = [terms.cost(trial) for trial in search.trials if terms.holds(trial) and is_accurate(search, trial)]
    bar = min(accepted, default=math.inf)
    worth: list[Trial] = []
    for trial in broken:
        cost = terms.cost(trial)
        repeats = any(cost <= terms.cost(other) * tie for other in worth)
        if not trial.distrust and terms.is_better(trial) and cost * tie < bar and not repeats:
            worth.append(trial)
    return worth[:REFINED]


def _keep_most_harmful(search: Search, proposal: Proposal, harms: dict[Key, Harm]) -> None:
    """The fewest layers to keep apart, most harmful first, so that the rest holds: doubling, then bisection."""
    order = [key for key, harm in harms.items() if harm.error > 0]
    low, high, count = 0, 0, 1
    while count < len(order):
        trial = _keep_apart(search, proposal, order[:count], harms)
        if trial is not None and is_accurate(search, trial):
            high = count
            break
        if trial is not None and not search.terms.is_better(trial):
            break  # nothing is left to gain
        low, count = count, 2 * count
    else:
        high = len(order)
    for _ in range(BISECTIONS):
        if high - low <= 1:
            break
        middle = (low + high) // 2
        trial = _keep_apart(search, proposal, order[:middle], harms)
        low, high = (low, middle) if trial is not None and is_accurate(search, trial) else (middle, high)


def _keep_apart(search: Search, proposal: Proposal, kept: Sequence[Key], harms: dict[Key, Harm]) -> Trial | None:
    layers: dict[str, list[str]] = {}
    for part, layer in kept:
        layers.setdefault(part, []).append(layer)
    form = "float" if proposal.fallback is None else "int8"
    name = f"{proposal.name}, {len(kept)} layer{'s' if len(kept) > 1 else ''} {form}"
    search.harms[name] = harms
    return attempt(search, name, keep_apart(proposal, search.ground.task.parts, layers))


def _harms(search: Search, proposal: Proposal) -> dict[Key, Harm]:
    """Harm by part and layer, the most harmful first; what it finds about their causes is added to the search."""
    found = search.recall("harm", lambda: _measure_harms(search, proposal), recipe=proposal.recipe.fingerprint)
    known = {(finding.part, finding.layer, finding.cause) for finding in search.findings}
    findings = [Finding.from_json(item) for item in found["findings"]]
    search.findings += [one for one in findings if (one.part, one.layer, one.cause) not in known]
    harms = {(part, layer): Harm(error, agreement, n) for part, layer, error, agreement, n in found["harms"]}
    search.harms[proposal.name] = harms
    return harms


def _measure_harms(search: Search, proposal: Proposal) -> dict[str, Any]:
    ground, calibration = search.ground, search.calibration
    quantized = apply_to_parts(ground.task.parts, proposal.recipe, calibration.statistics)
    rows: list[tuple[str, str, float, float | None, int]] = []
    findings: list[Finding] = []
    for part, model in ground.task.parts.items():
        stage = f"ranking the layers of {part} by harm"
        search.emit(Event("stage", stage))
        statistics, feeds = calibration.statistics[part], calibration.feeds[part]
        harms = rank_harm(model, proposal.recipe, statistics, feeds, part, on_progress=search.progress(stage))
        rows += [(part, layer, harm.error, harm.agreement, harm.n) for layer, harm in harms.items()]
        findings += diagnose(
            apply_recipe(model, preserving_part(proposal.recipe, part), Statistics(), part),
            statistics,
            harms,
            part=part,
            ranges=ranges_of(quantized[part]),
            per_channel=True,
            vnni=ground.target.traits().weight_bits_safe >= 8,
        )
    rows.sort(key=lambda row: -row[2])
    return {"harms": rows, "findings": [finding.to_json() for finding in findings]}
