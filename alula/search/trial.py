"""One finished trial: what was built, what it scored, and how it stands against the budget. Plain values, no files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from alula.graph.model import Note
from alula.search.result import Candidate

if TYPE_CHECKING:
    from alula.measurement.measurement import Measurement


@dataclass(frozen=True, slots=True, eq=False)
class Trial:
    """A candidate with its score of each selection example; ``distrust`` says why it may not be chosen, if so.

    ``files`` are those of each part's artifact, relative to the output folder.
    """

    candidate: Candidate
    values: np.ndarray  # [n] scores, or [n, k] parts
    files: Mapping[str, tuple[str, ...]]
    distrust: str = ""

    @property
    def name(self) -> str:
        """The candidate's name."""
        return self.candidate.name

    def measured(self, measurements: Mapping[str, Measurement]) -> Self:
        """The same trial with other measurements added, or put in place of older ones."""
        merged = {**self.candidate.measurements, **measurements}
        return replace(self, candidate=replace(self.candidate, measurements=merged))

    def to_json(self) -> dict[str, Any]:
        """The trial as plain data."""
        return {
            "candidate": self.candidate.to_json(),
            "values": self.values.tolist(),
            "files": {part: list(files) for part, files in self.files.items()},
            "distrust": self.distrust,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Read what :meth:`to_json` wrote."""
        values = np.asarray(data["values"], np.float64)
        files = {part: tuple(names) for part, names in data["files"].items()}
        return cls(Candidate.from_json(data["candidate"]), values, files, str(data["distrust"]))


@dataclass(frozen=True, slots=True)
class Failure:
    """A recipe that could not be built or run, and why."""

    name: str
    reason: str

    def note(self) -> Note:
        """The failure as a note on the result."""
        return Note(self.name, f"could not be tried: {self.reason}")
