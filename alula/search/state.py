"""What a running search holds, and how it tries a recipe only once."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from alula.errors import DataError, ModelError, RecipeError, TargetError
from alula.measurement.machine import describe_machine, versions
from alula.search.building import apply_to_parts, build, built, slug, try_recipe
from alula.search.calibration import Calibration, calibrate
from alula.search.events import Event
from alula.search.store import trial_key
from alula.search.trial import Failure, Trial
from alula.search.words import bytes_in_words, score_in_words, speed_change_in_words

if TYPE_CHECKING:
    from alula.budget import Budget
    from alula.graph.model import Note
    from alula.recipe import Recipe
    from alula.search.building import Ground
    from alula.search.choosing import Terms
    from alula.search.propose import Proposal
    from alula.search.result import Finding
    from alula.search.sensitivity import Harm
    from alula.search.store import Store
    from alula.targets import Artifact

Emit = Callable[[Event], None]
log = logging.getLogger(__name__)


@dataclass(eq=False)
class Search:
    """One run: what it stands on, and what it has found so far."""

    ground: Ground
    budget: Budget
    store: Store
    emit: Emit
    proposals: tuple[Proposal, ...]
    certification: Sequence[Any]
    terms: Terms
    notes: list[Note] = field(default_factory=list)
    trials: list[Trial] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    harms: dict[str, dict[tuple[str, str], Harm]] = field(default_factory=dict)  # by name of the candidate

    @cached_property
    def calibration(self) -> Calibration:
        """The one pass over the calibration examples, made when something first needs it."""
        count = len(self.ground.task.calibration)
        stage = f"calibrating on {count:,} examples"
        self.emit(Event("stage", stage, total=count))
        recipes = [proposal.recipe for proposal in self.proposals]
        return calibrate(self.ground.task, recipes, self.progress(stage))

    def progress(self, text: str) -> Callable[[int, int], None]:
        """What long work calls with (done, total)."""
        return lambda done, total: self.emit(Event("progress", text, done, total))

    def recall(self, kind: str, make: Callable[[], dict[str, Any]], **facts: Any) -> dict[str, Any]:
        """What the store holds for these facts, or what ``make`` gives, which is then stored."""
        key = key_of(self.ground, kind, **facts)
        known = self.store.get(key)
        if known is None:
            known = make()
            self.store.put(key, kind, known)
        return known


def key_of(ground: Ground, kind: str, **facts: Any) -> str:
    """The key of something that was found out about a task on a target of this machine."""
    return trial_key(
        kind=kind,
        task=ground.task.fingerprint,
        target={"name": ground.target.name, **ground.target.describe()},
        processor=describe_machine()["processor"],
        alula=versions().get("alula", "unknown"),
        seed=ground.seed,
        memory=ground.memory,
        **facts,
    )


def attempt(search: Search, name: str, recipe: Recipe) -> Trial | None:
    """Try a recipe, or recall it; None, with a note, where it cannot be built or run.

    Raises:
        DataError: the calibration data are at fault.
        StorageError: the trial cannot be stored.
    """
    key = key_of(search.ground, "trial", recipe=recipe.fingerprint, name=name)
    known = search.store.get(key)
    if known is None:
        statistics = search.calibration.statistics
        search.emit(Event("stage", f"trying {name}", total=len(search.ground.selection)))
        known = _tried(search, name, recipe, statistics)
        search.store.put(key, "trial", known)
    if "failure" in known:
        failure = Failure(name, str(known["failure"]))
        search.notes.append(failure.note())
        search.emit(Event("note", str(failure.note())))
        return None
    trial = Trial.from_json(known)
    search.trials.append(trial)
    search.emit(Event("trial", trial_in_words(trial), len(search.trials)))
    return trial


def artifacts_of(search: Search, trial: Trial) -> dict[str, Artifact]:
    """What a trial built; built again where the files are gone."""
    ground = search.ground
    found = built(trial, ground.target, ground.folder)
    if found is not None:
        return found
    models = apply_to_parts(ground.task.parts, trial.candidate.recipe, search.calibration.statistics)
    return build(models, ground.target, ground.folder / "trials" / slug(trial.name))


def trial_in_words(trial: Trial) -> str:
    """One line on a finished trial."""
    candidate = trial.candidate
    speed = speed_change_in_words(candidate)
    size, points = bytes_in_words(candidate.size_bytes), f"score {score_in_words(candidate.score)}"
    return f"{candidate.name}: {', '.join([size, *([speed] if speed else []), points])}"


def _tried(search: Search, name: str, recipe: Recipe, statistics: Mapping[str, Any]) -> dict[str, Any]:
    progress = search.progress(f"trying {name}")
    try:
        trial = try_recipe(
            search.ground, name, recipe, statistics=statistics, original=search.terms.original, on_progress=progress
        )
    except (RecipeError, TargetError, ModelError, DataError) as error:
        log.info("%s cannot be used: %s", name, error)
        return {"failure": str(error)}
    return trial.to_json()
