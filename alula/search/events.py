"""What a search says while it works."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened.

    A "stage" opens a part of the work (``total`` steps, 0 when unknown), "progress" says how far it is (``done`` of
    ``total``), a "trial" is one finished candidate, a "note" is something the user must not miss.
    """

    kind: Literal["stage", "progress", "trial", "note"]
    text: str
    done: int = 0
    total: int = 0
