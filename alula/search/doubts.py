"""What to doubt of a run: an original computed otherwise, scores that tell little, outputs that strayed."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

import numpy as np

from alula.examples import Subset
from alula.graph.model import Note
from alula.measurement.parity import agree, check_parity
from alula.measurement.score import score
from alula.search.building import ORIGINAL, run_of
from alula.search.events import Event
from alula.search.state import artifacts_of
from alula.task_rows import RowScorer

if TYPE_CHECKING:
    from alula.search.building import Ground
    from alula.search.state import Search
    from alula.search.trial import Trial

FEW: Final = 32  # examples that are scored a second time
STRAYED: Final = 0.9  # cosine to the original's output below which a note says so


def doubts(ground: Ground, original: Trial) -> list[Note]:
    """Notes where the target computes other than the original's graph says, work is unknown, or scores tell little."""
    parity = check_parity(ground.task.parts, ground.target, ground.artifacts, ground.trace)
    notes = [] if parity.ok else [Note(ORIGINAL, f"the target does not compute what the graph says: {parity.note}")]
    unknown = [layer for counts in ground.macs.values() for layer, count in counts.items() if count is None]
    if unknown:
        text = f"the multiply-accumulates of {len(unknown)} layers are not known before running, nor is their energy"
        notes.append(Note(unknown[0], f"{text}: shapes depend on values"))
    return [*notes, *_fickle(ground, original), *_clueless(ground, original)]


def _fickle(ground: Ground, original: Trial) -> list[Note]:
    """A note where the scorer gives the original other scores the second time."""
    few = Subset(ground.selection, range(min(FEW, len(ground.selection))))
    again = score(ground.task, run_of(ground.target, ground.artifacts), few).values
    if np.allclose(again, original.values[: len(few)], rtol=1e-3, atol=1e-3, equal_nan=True):
        return []
    return [Note("scorer", "it scores the original otherwise when run again; nothing that follows can be relied on")]


def _clueless(ground: Ground, original: Trial) -> list[Note]:
    """A note where the original is no better than one constant answer."""
    if ground.task.metric != "accuracy" or not isinstance(ground.task.scorer, RowScorer):
        return []
    labels = [getattr(example, "label", None) for example in ground.selection]
    if any(label is None or np.ndim(label) for label in labels):
        return []
    label, count = Counter(np.asarray(labels).tolist()).most_common(1)[0]
    share = count / len(labels)
    if original.candidate.score > share:
        return []
    text = f"its accuracy is no better than always answering {label!r} would be ({share:.4f})"
    return [Note(ORIGINAL, f"{text}; do labels, outputs and inputs belong together?")]


def strayed(search: Search, shipped: Trial) -> list[Note]:
    """Notes on outputs of networks with several that are no longer like the original's: no score may read them."""
    ground = search.ground
    several = {part for part, model in ground.task.parts.items() if len(model.outputs) > 1}
    cosines = agree(ground.target, ground.artifacts, artifacts_of(search, shipped), ground.trace) if several else {}
    notes = []
    for (part, output), cosine in cosines.items():
        if part in several and cosine < STRAYED:
            place = f"output {output!r}" + (f" of part {part!r}" if len(ground.task.parts) > 1 else "")
            text = f"it is no longer like the original's: cosine {cosine:.2f}; if it matters, let the score read it"
            notes.append(Note(place, text))
            search.emit(Event("note", str(notes[-1])))
    return notes
