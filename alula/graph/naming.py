"""Names of the parts of a graph that have none of their own: couplings and blocks are called after their layers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from alula.errors import ModelError

if TYPE_CHECKING:
    from alula.graph.blocks import Block
    from alula.graph.channels import Coupling

Part = TypeVar("Part", "Coupling", "Block")


def called(parts: Sequence[Part], name: str, kind: str) -> Part:
    """The part of this name; ``kind`` says what parts are, in the plural.

    Raises:
        ModelError: there is none; the message lists those that are there.
    """
    found = next((part for part in parts if part.name == name), None)
    if found is None:
        known = ", ".join(part.name for part in parts[:8])
        raise ModelError(f"no {kind} are called {name!r}; the graph has {known or 'none that can go'}")
    return found


def told_apart(parts: Sequence[Part]) -> tuple[Part, ...]:
    """Each with a name of its own: what is called after the same layer is numbered from the second on."""
    met: Counter[str] = Counter()
    named = []
    for part in parts:
        met[part.name] += 1
        named.append(part if met[part.name] == 1 else replace(part, name=f"{part.name}#{met[part.name]}"))
    return tuple(named)
