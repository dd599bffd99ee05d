"""From the choice that is expected to do least harm to the one that is measured to: exchanges between places.

| symbol | code | meaning |
|---|---|---|
| H(x) | measure | harm of a choice x, measured; known choices are measured once |
| c | centre | the best choice within the limits so far |
| d_po | moves | H(c with p at o) - H(c): measured; where it is not, what it was beside another c, or alone |
| w | pairs | H(c with two moves) - H(c) - d - d' |

Harms that were measured one place at a time, beside float, mislead where errors meet or cancel. So the sum is taken
again around c: each place is moved one option up and down from c, and measured there. Then the integer programme
proposes the best exchange of a few places by d and w, which is measured, corrects d or w, and becomes c if it is
better; until no exchange is expected to be.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias

import numpy as np

from alula.numerics.assignment import Options, Pairs, assign, holds, total_harm

Choice: TypeAlias = tuple[int, ...]
"""The option of each place."""

CHANGES: Final = (3, 2)  # places that one exchange moves, at most; fewer where such exchanges are known
MOVES: Final = 0.5  # share of the evaluations for single moves
_FAR: Final = 1e3  # harms of the centre: what stands for an infinite harm of a pair


@dataclass(slots=True, eq=False)
class Exchanges:
    """A search for the choice of least measured harm.

    Attributes:
        places: options with their harms alone and their costs.
        limits: of the costs, by kind.
        measure: the harm of a choice.
        evaluations: choices that are measured, at most.
        known: the measured harms.
    """

    places: Sequence[Options]
    limits: Mapping[str, float]
    measure: Callable[[Choice], float]
    evaluations: int
    known: dict[Choice, float] = field(default_factory=dict)
    _moves: dict[tuple[int, int, int], float] = field(init=False, default_factory=dict)  # place, from, to

    def best_from(self, starts: Sequence[Choice]) -> Choice:
        """The best choice that is found, beginning at some that hold the limits, of which the first is measured anyway.

        Raises:
            RecipeError: the programme of an exchange cannot be solved.
        """
        for start in starts[: self.evaluations]:
            self._evaluate(start)
        self._move(self._centre())
        while len(self.known) < self.evaluations and math.isfinite(self.known[centre := self._centre()]):
            proposal = self._proposal(centre)
            if proposal is None:
                break
            self._evaluate(proposal)
        return self._centre()

    def _centre(self) -> Choice:
        within = [choice for choice in self.known if holds(self.places, choice, self.limits)]
        return min(within, key=lambda choice: self.known[choice])

    def _evaluate(self, choice: Choice) -> None:
        if choice in self.known:
            return
        harm = self.measure(choice)
        for other, known in self.known.items():
            moved = _differing(choice, other)
            if len(moved) == 1 and math.isfinite(harm) and math.isfinite(known):
                (place,) = moved
                self._moves[place, other[place], choice[place]] = harm - known
        self.known[choice] = harm

    def _move(self, centre: Choice) -> None:
        """Measure the moves of each place to its next options around a choice, the most harmful places first."""
        order = sorted(range(len(centre)), key=lambda place: -self.places[place].harms[centre[place]])
        for moved in (moved for place in order for moved in _neighbours(self.places[place], centre, place)):
            if len(self.known) >= MOVES * self.evaluations:
                break
            self._evaluate(moved)

    def _proposal(self, centre: Choice) -> Choice | None:
        """The exchange that is expected to gain most; None where none that is not known is expected to gain."""
        around = [self._around(centre, place) for place in range(len(centre))]
        pairs = self._pairs(centre, around)
        for changes in CHANGES:
            found = tuple(assign(around, {**self.limits, "changes": changes}, pairs))
            if found not in self.known and total_harm(around, found, pairs) < 0:
                return found
        return None

    def _around(self, centre: Choice, place: int) -> Options:
        """The options of a place by what moving there from the centre does."""
        alone, now = self.places[place], centre[place]
        expected = total_harm(self.places, centre)
        scale = self.known[centre] / expected if expected > 0 else 1.0
        harms = scale * (alone.harms - alone.harms[now])
        for option in range(len(harms)):
            if option != now and math.isfinite(harms[option]):
                harms[option] = self._moved(centre, place, option, float(harms[option]))
        changes = (np.arange(len(harms)) != now).astype(np.float64)
        return Options(harms, {**alone.costs, "changes": changes})

    def _moved(self, centre: Choice, place: int, option: int, expected: float) -> float:
        moved = self.known.get((*centre[:place], option, *centre[place + 1 :]))
        if moved is not None:
            return moved - self.known[centre]
        there = self._moves.get((place, centre[place], option))
        back = self._moves.get((place, option, centre[place]))
        return there if there is not None else -back if back is not None else expected

    def _pairs(self, centre: Choice, around: Sequence[Options]) -> Pairs:
        found = {}
        for choice, harm in self.known.items():
            moved = _differing(choice, centre)
            if len(moved) == 2:
                one, other = ((place, choice[place]) for place in moved)
                alone = sum(float(around[place].harms[option]) for place, option in (one, other))
                extra = min(harm, _FAR * self.known[centre]) - self.known[centre] - alone
                if math.isfinite(extra):
                    found[one, other] = extra
        return found


def _differing(one: Choice, other: Choice) -> list[int]:
    return [place for place, (a, b) in enumerate(zip(one, other, strict=True)) if a != b]


def _neighbours(options: Options, centre: Choice, place: int) -> Iterator[Choice]:
    """The choices with one place at the next option that harms less, and at the next that harms more."""
    order = [int(option) for option in np.argsort(options.harms, kind="stable") if math.isfinite(options.harms[option])]
    rank = order.index(centre[place])
    for other in (rank - 1, rank + 1):
        if 0 <= other < len(order):
            yield (*centre[:place], order[other], *centre[place + 1 :])
