"""The loop: propose, apply, build, check, score, measure; refine what breaks; choose, certify, write.

Each stage is a function. Finished trials go to the store at once, so that the same command goes on where it was
stopped. The search sees the calibration and the selection examples; the certification examples are seen by
:mod:`alula.search.certifying` alone.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from alula.examples import without_repeats
from alula.graph.cost import measure_cost
from alula.graph.model import Note
from alula.measurement.machine import describe_machine, versions
from alula.measurement.trace import record_trace
from alula.search.building import ORIGINAL, Ground, build, ship, slug, try_original
from alula.search.certifying import Choice, choose
from alula.search.choosing import Terms, closest, non_dominated
from alula.search.doubts import doubts, strayed
from alula.search.events import Event
from alula.search.propose import propose
from alula.search.refining import refine
from alula.search.result import Frontier, write_result
from alula.search.state import Emit, Search, artifacts_of, attempt, key_of, trial_in_words
from alula.search.store import Store, lock_folder
from alula.search.trial import Trial
from alula.search.verdicts import distance_in_words, judge
from alula.storage import storing, write_text

if TYPE_CHECKING:
    from alula.budget import Budget
    from alula.measurement.trace import Trace
    from alula.search.result import Candidate
    from alula.targets import Target
    from alula.task import Task

STORE_FILE: Final = "trials.sqlite"
RECIPE_FILE: Final = "recipe.json"
SHIPPED_SUFFIXES: Final = (".onnx", ".onnx.data", ".xml", ".bin")


def compress(
    task: Task, budget: Budget, target: Target, folder: Path, *, seed: int = 0, on_event: Emit | None = None
) -> Frontier:
    """Find the best candidate that holds the budget, certify it, and write it to ``folder``.

    It always returns: when nothing holds the budget, the nearest candidate is written and ``distance`` says what is
    missing. Stopped at any point, the same call goes on from the trials that were finished.

    Args:
        task: the networks, their data and how they are scored.
        budget: what may be lost, what must be met, what to minimise.
        target: where candidates are built, run and timed.
        folder: gets the model, ``recipe.json``, ``result.json``, the store of trials and what they built.
        seed: of the split of the evaluation examples and of every drawn order.
        on_event: is told what happens.

    Raises:
        ModelError: no part has a layer that could be compressed, or a graph cannot be run.
        DataError: examples, labels or the scorer are at fault.
        BudgetError: the budget makes no sense for the original's score.
        TargetError: the target refuses the original.
        StorageError: the folder is in use, full, damaged, or holds another task's trials.
    """
    started = time.monotonic()
    emit = on_event or (lambda event: None)  # noqa: ARG005
    with lock_folder(folder) as held, Store(held / STORE_FILE, task=task.fingerprint) as store:
        search = prepare(task, budget, target, store, seed=seed, emit=emit)
        try:
            for proposal in search.proposals:
                attempt(search, proposal.name, proposal.recipe)
            refine(search)
            choice = choose(search)
        except KeyboardInterrupt:
            write_result(_interrupted(search, started), held)
            raise
        return finish(search, choice, started)


def prepare(task: Task, budget: Budget, target: Target, store: Store, *, seed: int, emit: Emit) -> Search:
    """Propose candidates; split the examples; build, score and time the original, in the folder of the store."""
    folder = store.path.parent
    proposals, notes = propose(task.parts, target, budget.minimize)
    selection, certification = task.splits(seed)
    certification, repeated = without_repeats(certification)
    emit(Event("stage", "scoring the original", total=len(selection)))
    trace = record_trace(task)
    ground = Ground(
        task=task,
        target=target,
        folder=folder,
        seed=seed,
        selection=selection,
        trace=trace,
        macs=_count_macs(task, trace),
        calls=Counter(part for part, _ in trace),
        artifacts=build(task.parts, target, folder / "trials" / ORIGINAL),
        memory=budget.max_memory_bytes is not None,
    )
    if repeated:
        text = f"{repeated:,} repeat others and prove nothing new; the certificate counts {len(certification):,}"
        notes = (*notes, Note("held-out examples", text))
    original = _recall_original(ground, store, emit)
    terms = Terms(budget, original, budget.allowed_drop(original.candidate.score, task.bounds))
    emit(Event("trial", trial_in_words(original)))
    everything = [*task.notes, *notes, *doubts(ground, original)]
    for note in everything:
        emit(Event("note", str(note)))
    return Search(ground, budget, store, emit, proposals, certification, terms, notes=everything)


def finish(search: Search, choice: Choice, started: float) -> Frontier:
    """Write the model, the recipe and the result."""
    folder, shipped = search.ground.folder, choice.shipped
    fingerprints = {"task": search.ground.task.fingerprint}
    if shipped is None:
        _remove_shipped(search.ground.task.parts, folder)
    else:
        paths = ship(artifacts_of(search, shipped), folder)
        recipe = {"name": shipped.name, **shipped.candidate.recipe.to_json()}
        write_text(folder / RECIPE_FILE, json.dumps(recipe, indent=1, ensure_ascii=False) + "\n")
        shipped = replace(shipped, candidate=_pointing_at(shipped.candidate, paths, folder))
        search.notes += strayed(search, shipped)
        fingerprints |= {path.name: _hash(path) for path in paths.values()}
        chosen = shipped if choice.chosen is not None else None
        choice = replace(choice, chosen=chosen, closest=None if chosen is not None else shipped)
    frontier = assemble(search, choice, distance_in_words(choice), started)
    frontier = replace(frontier, fingerprints=fingerprints)
    kept = {ORIGINAL, frontier.best.name, *frontier.pareto}
    frontier = replace(frontier, candidates=tuple(_forgetting(one, kept) for one in frontier.candidates))
    write_result(frontier, folder)
    _remove_all_but(folder / "trials", {slug(name) for name in kept})
    return frontier


def assemble(search: Search, choice: Choice, distance: str, started: float) -> Frontier:
    """The result of a search as it stands."""
    task, shipped = search.ground.task, choice.shipped
    trials = [shipped if shipped is not None and trial.name == shipped.name else trial for trial in search.trials]
    original = choice.terms.original.candidate
    return Frontier(
        task=task.name,
        metric=task.metric,
        labelled=task.labelled,
        original=replace(original, notes=(*original.notes, *search.notes), verdict="what the others are compared with"),
        candidates=tuple(judge(search, choice, trial) for trial in trials),
        chosen=None if choice.chosen is None else choice.chosen.name,
        closest=None if choice.closest is None else choice.closest.name,
        pareto=non_dominated(trials, choice.terms),
        certificate=choice.certificate,
        budget=search.budget,
        target={"name": search.ground.target.name, **search.ground.target.describe()},
        findings=tuple(search.findings),
        distance=distance,
        seed=search.ground.seed,
        seconds=round(time.monotonic() - started, 3),
        versions=versions(),
        machine=describe_machine(),
        higher_is_better=task.higher_is_better,
    )


def _recall_original(ground: Ground, store: Store, emit: Emit) -> Trial:
    key = key_of(ground, "original")
    known = store.get(key)
    if known is None:
        trial = try_original(ground, lambda done, total: emit(Event("progress", "scoring the original", done, total)))
        store.put(key, "original", trial.to_json())
        return trial
    return Trial.from_json(known)


def _count_macs(task: Task, trace: Trace) -> dict[str, dict[str, int | None]]:
    """Multiply-accumulates of each layer, for inputs that the scorer really feeds."""
    counted = {}
    for part, model in task.parts.items():
        feeds = next((feeds for called, feeds in trace if called == part), None)
        cost = measure_cost(model, feeds=feeds)
        counted[part] = {layer.name: layer.macs for layer in cost.layers}
    return counted


def _interrupted(search: Search, started: float) -> Frontier:
    near = closest(search.trials, search.terms)
    choice = Choice(None, near, None, search.terms)
    best = "" if near is None else f"; the best so far: {near.name}"
    text = f"interrupted after {len(search.trials)} candidates{best}; the same command goes on from there"
    return assemble(search, choice, text, started)


def _pointing_at(candidate: Candidate, paths: Mapping[str, Path], folder: Path) -> Candidate:
    return replace(candidate, artifacts={part: path.relative_to(folder).as_posix() for part, path in paths.items()})


def _forgetting(candidate: Candidate, kept: AbstractSet[str]) -> Candidate:
    """The candidate, without paths to files that are not kept."""
    return candidate if candidate.name in kept else replace(candidate, artifacts={})


def _remove_all_but(folder: Path, kept: AbstractSet[str]) -> None:
    """Remove what other candidates built; the store has their numbers, and their recipes build them again."""
    with storing(f"tidy {folder}"):
        for path in sorted(folder.iterdir()):
            if path.is_dir() and path.name not in kept:
                shutil.rmtree(path)


def _remove_shipped(parts: Iterable[str], folder: Path) -> None:
    """Remove what an earlier run wrote beside its recipe: it is not what this run found."""
    recipe = folder / RECIPE_FILE
    with storing(f"tidy {folder}"):
        if recipe.is_file():
            for part in parts:
                for suffix in SHIPPED_SUFFIXES:
                    (folder / f"{part}{suffix}").unlink(missing_ok=True)
            recipe.unlink()


def _hash(path: Path) -> str:
    with storing(f"read {path}"), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
