"""From a recipe to a finished trial: applied, built for the target, checked, scored, measured."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from alula.errors import AlulaError
from alula.graph.model import Note
from alula.measurement.measure import measure, measure_size
from alula.measurement.parity import check_parity
from alula.measurement.score import Scores, drop, part_named, score
from alula.measurement.score_interval import measure_drop, measure_score
from alula.measurement.throughput import measure_throughput
from alula.recipe import Recipe, apply_recipe
from alula.search.layer_rows import energy_of, layer_rows, where_the_time_goes
from alula.search.layer_times import assign, split_time, with_shares
from alula.search.result import Candidate, LayerRow
from alula.search.trial import Trial
from alula.storage import appearing

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from alula.graph.model import Model
    from alula.graph.statistics import Statistics
    from alula.measurement.measurement import Measurement
    from alula.measurement.trace import Trace
    from alula.targets import Artifact, Target
    from alula.task import Run, Task

ORIGINAL: Final = "original"
SHORT_SECONDS: Final = 0.4  # of timed work per contender, to compare candidates
LONG_SECONDS: Final = 3.0  # to state a result
PROFILED_RUNS: Final = (3, 20)  # fewest and most
PROFILED_SECONDS: Final = 0.5  # of runs, for each part

Artifacts = Mapping[str, "Artifact"]


@dataclass(frozen=True, slots=True, eq=False)
class Ground:
    """What every trial stands on: the task, where it runs, the examples to select by, and the original's numbers."""

    task: Task
    target: Target
    folder: Path
    seed: int
    selection: Sequence[object]
    trace: Trace
    macs: Mapping[str, Mapping[str, int | None]]  # by part and layer, of one run; None where it cannot be told
    artifacts: Artifacts  # the original's
    calls: Mapping[str, int]  # by part, for one example
    memory: bool  # whether a limit on peak memory makes it worth measuring for every candidate


def slug(name: str) -> str:
    """A folder name for a candidate.

    >>> slug("int8 static, mse ranges, 3 layers float")
    'int8-static-mse-ranges-3-layers-float'
    """
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def build(models: Mapping[str, Model], target: Target, folder: Path) -> dict[str, Artifact]:
    """Build every part into a folder, and keep its graph beside it where the runtime's own format is another."""
    artifacts = {}
    for part, model in models.items():
        artifacts[part] = target.build(model, folder, part)
        if artifacts[part].path.suffix != ".onnx":
            model.save(folder / f"{part}.onnx")
    return artifacts


def built(trial: Trial, target: Target, folder: Path) -> dict[str, Artifact] | None:
    """The artifacts that a trial left in the output folder; None when a file is gone or of another size."""
    from alula.targets import Artifact

    artifacts = {}
    for part, names in trial.files.items():
        files = tuple(folder / name for name in names)
        graph = folder / "trials" / slug(trial.name) / f"{part}.onnx"
        if not all(file.is_file() for file in (*files, graph)):
            return None
        size = sum(file.stat().st_size for file in files)
        artifacts[part] = Artifact(target.name, folder / trial.candidate.artifacts[part], files, size)
    complete = sum(artifact.size_bytes for artifact in artifacts.values()) == trial.candidate.size_bytes
    return artifacts if complete else None


def run_of(target: Target, artifacts: Artifacts) -> Run:
    """What a scorer calls: built parts, opened, by name."""
    opened = {part: target.open(artifact) for part, artifact in artifacts.items()}

    def run(feeds: Mapping[str, np.ndarray], part: str = "model") -> dict[str, np.ndarray]:
        return part_named(opened, part)(feeds)

    return run


def try_original(ground: Ground, on_progress: Callable[[int, int], None] | None = None) -> Trial:
    """Score and measure the original, as every candidate will be.

    Raises:
        DataError: the scorer, the data or the model's output is at fault.
        TargetError: the target refuses the model.
    """
    named = Candidate(ORIGINAL, Recipe(), 0, 0.0, 0.0, {})
    trial = _score(ground, named, ground.task.parts, ground.artifacts, on_progress)
    trial = _measured(ground, trial, {ORIGINAL: ground.artifacts})
    return _profiled(ground, trial, ground.task.parts, ground.artifacts)


def try_recipe(
    ground: Ground,
    name: str,
    recipe: Recipe,
    *,
    statistics: Mapping[str, Statistics],
    original: Trial,
    on_progress: Callable[[int, int], None] | None = None,
) -> Trial:
    """Build a candidate, check that the artifact computes what its graph says, score it, and time it by the original.

    Raises:
        AlulaError: the recipe is impossible for these graphs, or the target refuses the result.
    """
    models = apply_to_parts(ground.task.parts, recipe, statistics)
    artifacts = build(models, ground.target, ground.folder / "trials" / slug(name))
    parity = check_parity(models, ground.target, artifacts, ground.trace)
    trial = _score(ground, Candidate(name, recipe, 0, 0.0, 0.0, {}), models, artifacts, on_progress)
    scores = [Scores(one.values, one.candidate.score) for one in (original, trial)]
    lost = drop(scores[0], scores[1], ground.task)
    trial = replace(trial, candidate=replace(trial.candidate, drop=lost), distrust="" if parity.ok else parity.note)
    trial = trial.measured({"drop": measure_drop(original.values, trial.values, lost, ground.task, seed=ground.seed)})
    trial = _measured(ground, trial, {ORIGINAL: ground.artifacts, name: artifacts})
    return _profiled(ground, trial, models, artifacts)


def measure_long(ground: Ground, name: str, artifacts: Artifacts) -> dict[str, dict[str, Measurement]]:
    """The numbers to state, of the original and of a candidate, from one long interleaved run."""
    contenders = {ORIGINAL: ground.artifacts, name: artifacts}
    found = measure(ground.target, contenders, ground.trace, seconds=LONG_SECONDS, seed=ground.seed)
    rates = measure_throughput(ground.target, contenders, ground.trace, seconds=LONG_SECONDS / 6, seed=ground.seed)
    return {contender: found[contender] | rates[contender] for contender in contenders}


def apply_to_parts(
    parts: Mapping[str, Model], recipe: Recipe, statistics: Mapping[str, Statistics]
) -> dict[str, Model]:
    """The compressed graph of every part.

    Raises:
        RecipeError: the recipe is impossible for a part (named, if there are several).
    """
    models = {}
    for part, model in parts.items():
        try:
            models[part] = apply_recipe(model, recipe, statistics[part], part)
        except AlulaError as error:
            raise type(error)(f"part {part!r}: {error}" if len(parts) > 1 else str(error)) from error
    return models


def ship(artifacts: Artifacts, folder: Path) -> dict[str, Path]:
    """Copy what the runtime opens, and the graph, to the top of the output folder; each file whole or not at all."""
    shipped = {}
    for part, artifact in artifacts.items():
        graph = artifact.path.with_name(f"{part}.onnx")
        for file in dict.fromkeys((*artifact.files, graph)):
            with appearing(folder / file.name) as partial:
                shutil.copyfile(file, partial)
        shipped[part] = folder / artifact.path.name
    return shipped


def _score(
    ground: Ground,
    named: Candidate,
    models: Mapping[str, Model],
    artifacts: Artifacts,
    on_progress: Callable[[int, int], None] | None,
) -> Trial:
    """The candidate with its score, its size, what became of its layers, and where its files are."""
    scores = score(ground.task, run_of(ground.target, artifacts), ground.selection, on_progress=on_progress)
    rows: list[LayerRow] = []
    notes: list[Note] = []
    for part, model in models.items():
        found = layer_rows(part, ground.task.parts[part], model, ground.macs.get(part, {}))
        rows += found
        notes += model.notes
        if named.name != ORIGINAL:
            notes.append(where_the_time_goes(part, found, model))
    candidate = replace(
        named,
        size_bytes=int(measure_size(artifacts).value),
        score=scores.score,
        notes=tuple(notes),
        layers=tuple(rows),
        artifacts={part: _relative(artifact.path, ground) for part, artifact in artifacts.items()},
    )
    files = {part: tuple(_relative(file, ground) for file in artifact.files) for part, artifact in artifacts.items()}
    interval = measure_score(scores.values, scores.score, ground.task, seed=ground.seed)
    return Trial(candidate, np.asarray(scores.values, np.float64), files).measured({"score": interval})


def _measured(ground: Ground, trial: Trial, contenders: Mapping[str, Artifacts]) -> Trial:
    """A short measurement beside the original, with an estimate of the energy where it could not be measured."""
    found = measure(
        ground.target, contenders, ground.trace, seconds=SHORT_SECONDS, seed=ground.seed, memory=ground.memory
    )
    trial = trial.measured(found[trial.name])
    return _with_energy(note_memory(trial) if ground.memory else trial, ground.calls)


def note_memory(trial: Trial) -> Trial:
    """The trial, with a note where its peak memory is not among its measurements."""
    note = Note(trial.name, "its peak memory could not be measured; the log says why")
    if "memory_bytes" in trial.candidate.measurements or note in trial.candidate.notes:
        return trial
    return replace(trial, candidate=replace(trial.candidate, notes=(*trial.candidate.notes, note)))


def _profiled(ground: Ground, trial: Trial, models: Mapping[str, Model], artifacts: Artifacts) -> Trial:
    """The trial with what its time is spent on. Of several calls of a part, the middle one stands for all."""
    fewest, most = PROFILED_RUNS
    latency = trial.candidate.measurements["latency_p50_ms"].value / 1e3
    runs = min(most, max(fewest, round(PROFILED_SECONDS / max(latency, 1e-6))))
    shares = {}
    for part in ground.calls:
        feeds = [feeds for called, feeds in ground.trace if called == part]
        times = ground.target.profile(artifacts[part], feeds[len(feeds) // 2], runs=runs)
        shares[part] = assign(times, ground.task.parts[part], models[part])
    split = split_time(shares, ground.calls)
    rows = with_shares(trial.candidate.layers, shares, ground.calls, split.total_ms)
    return replace(trial, candidate=replace(trial.candidate, layers=rows, time=split))


def _relative(path: Path, ground: Ground) -> str:
    return path.relative_to(ground.folder).as_posix()


def _with_energy(trial: Trial, calls: Mapping[str, int]) -> Trial:
    """Add an estimate of the energy of one example, where the counters could not be read and the work is known."""
    energy = None if "energy_mj" in trial.candidate.measurements else energy_of(trial.candidate.layers, calls)
    return trial if energy is None else trial.measured({"energy_mj": energy})
