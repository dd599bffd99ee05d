"""One option for each of several places, so that the least harm is done within one or several limits: exactly.

| symbol | code | shape | unit | meaning |
|---|---|---|---|---|
| h_po | harms | [o] of place p | harm | of option o at place p, alone |
| c_kpo | costs | [o] of place p, kind k | of the kind | what option o at place p costs |
| B_k | limits | | of the kind | what all places together may cost |
| w_poqr | pairs | | harm | what option o at p and option r at q do together beyond their sum |
| x_po | result | | 0 or 1 | 1 for the one option that place p takes |

    minimise    sum_po h_po x_po + sum_poqr w_poqr x_po x_qr
    so that     sum_o x_po = 1 for every p,    sum_po c_kpo x_po <= B_k for every k

The multiple-choice knapsack problem with several knapsacks, as an integer programme: without pairs that of Yao et al.
2021, "HAWQ-V3: dyadic neural network quantization", and of Chen et al. 2021, "Towards mixed-precision quantization of
neural networks via constrained optimization"; with them that of Deng et al. 2023, "Mixed-precision quantization with
cross-layer dependencies". A product of two choices becomes a variable y of its own: y >= x + x' - 1, and where w < 0
makes it as large as it can be, y <= x and y <= x'.

Solvers work to tolerances, this does not: what they return is added up anew, an answer beyond a limit by rounding is
cut off and asked for again, and harms are scaled to the answer until it gets no better.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from alula.errors import DataError, RecipeError

Floats: TypeAlias = NDArray[np.float64]
Pairs: TypeAlias = Mapping[tuple[tuple[int, int], tuple[int, int]], float]
"""Harm by two choices, each a place and an option."""

_SCALE: Final = 1e3  # of the answer's harm, of which the solver tells apart 1e-6
_SAME: Final = 1e-9  # relative: harms that rounding cannot tell apart
_ROUNDING: Final = 1e-12  # of a limit
_INFEASIBLE: Final = 2  # status of scipy.optimize.milp


@dataclass(frozen=True, slots=True, eq=False)
class Options:
    """What may be done at one place: the harm of each option, infinite where it is impossible, and costs by kind."""

    harms: Floats  # [o]
    costs: Mapping[str, Floats]  # [o] each


def assign(places: Sequence[Options], limits: Mapping[str, float], pairs: Pairs | None = None) -> list[int]:
    """The option of each place with which the least harm is done within all limits; of equals, one that costs least.

    The same places give the same answer, however often they are asked.

    >>> first = Options(np.array([0.0, 1.0]), {"bytes": np.array([8.0, 4.0])})
    >>> second = Options(np.array([0.0, 5.0]), {"bytes": np.array([8.0, 4.0])})
    >>> assign([first, second], {"bytes": 12.0})
    [1, 0]

    Raises:
        RecipeError: no choice holds the limits; the message says the least that is possible.
        DataError: a harm or cost is NaN, a cost infinite, or a place has no option.
    """
    pairs = pairs or {}
    _check(places, limits, pairs)
    _check_each_limit(places, limits)
    if not places:
        return []
    programme = _Programme(places, limits, pairs)
    best = programme.least(programme.harms, programme.gains)
    if best is None:
        raise RecipeError(_not_together(places, limits))
    best = _refined(programme, best)
    return _cheapest(programme, best)


def total_harm(places: Sequence[Options], choice: Sequence[int], pairs: Pairs | None = None) -> float:
    """The harm that is expected of a choice: the sum of the harms of its options and of its pairs."""
    alone = [float(place.harms[option]) for place, option in zip(places, choice, strict=True)]
    chosen = set(enumerate(choice))
    return math.fsum([*alone, *(harm for (one, other), harm in (pairs or {}).items() if {one, other} <= chosen)])


def total_cost(places: Sequence[Options], choice: Sequence[int], kind: str) -> float:
    """What a choice costs."""
    return math.fsum(float(place.costs[kind][option]) for place, option in zip(places, choice, strict=True))


def holds(places: Sequence[Options], choice: Sequence[int], limits: Mapping[str, float]) -> bool:
    """Whether a choice costs no more than the limits allow, but for rounding."""
    return all(total_cost(places, choice, kind) <= limit + _ROUNDING * abs(limit) for kind, limit in limits.items())


@dataclass(slots=True, eq=False)
class _Programme:
    """The integer programme; its columns are all options of all places, then the products."""

    places: Sequence[Options]
    limits: Mapping[str, float]
    pairs: Pairs
    starts: list[int] = field(init=False)
    harms: Floats = field(init=False)  # [columns of options], the least of each place at 0
    gains: Floats = field(init=False)  # [columns of products]
    allowed: NDArray[np.bool_] = field(init=False)  # [columns of options]
    cuts: list[list[int]] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        sizes = [len(place.harms) for place in self.places]
        self.starts = [0, *np.cumsum(sizes).tolist()]
        lowest = [place.harms - place.harms.min() for place in self.places]
        self.harms = np.concatenate([*lowest, np.zeros(0)])
        self.allowed = np.isfinite(self.harms)
        self.harms = np.where(self.allowed, self.harms, 0.0)
        self.gains = np.array(list(self.pairs.values()), np.float64)

    def least(self, objective: Floats, gains: Floats, bound: float | None = None) -> list[int] | None:
        """The choice that makes an objective least and holds the limits, to the last digit; None if there is none.

        Args:
            objective: [columns of options].
            gains: [columns of products].
            bound: of the harm, beside the limits.
        """
        while True:
            choice = self._solve(objective, gains, bound)
            if choice is None or holds(self.places, choice, self.limits):
                return choice
            self.cuts.append(choice)  # it holds the limits to the solver's tolerance alone

    def harm(self, choice: Sequence[int]) -> float:
        """Harm beyond what is least at every place."""
        chosen = set(enumerate(choice))
        alone = [float(self.harms[start + option]) for start, option in zip(self.starts, choice, strict=False)]
        return math.fsum([*alone, *(harm for pair, harm in self.pairs.items() if set(pair) <= chosen)])

    def _solve(self, objective: Floats, gains: Floats, bound: float | None) -> list[int] | None:
        from scipy.optimize import Bounds, milp

        options, products = len(self.harms), len(self.gains)
        found = milp(
            np.concatenate([objective, gains]),
            integrality=np.concatenate([np.ones(options), np.zeros(products)]),
            bounds=Bounds(0.0, np.concatenate([self.allowed.astype(np.float64), np.ones(products)])),
            constraints=self._constraints(bound),
            options={"mip_rel_gap": 0.0},
        )
        if found.x is None:
            if found.status == _INFEASIBLE:
                return None
            raise RecipeError(f"the integer programme could not be solved: {found.message}")
        parts = zip(self.starts, self.starts[1:], strict=False)
        return [int(np.argmax(found.x[start:stop])) for start, stop in parts]

    def _constraints(self, bound: float | None) -> Any:
        from scipy.optimize import LinearConstraint
        from scipy.sparse import csr_array

        rows = [*self._one_each(), *self._within(), *self._products(), *self._without_cuts()]
        if bound is not None:
            scale = _SCALE / bound if bound > 0 else 1.0
            harms = {column: scale * harm for column, harm in enumerate(np.concatenate([self.harms, self.gains]))}
            rows.append((harms, -np.inf, scale * bound))
        entries = [(row, column, value) for row, (terms, _, _) in enumerate(rows) for column, value in terms.items()]
        lines, columns, values = zip(*entries, strict=True)
        shape = (len(rows), len(self.harms) + len(self.gains))
        matrix = csr_array((np.array(values, np.float64), (lines, columns)), shape=shape)
        return LinearConstraint(matrix, [row[1] for row in rows], [row[2] for row in rows])

    def _one_each(self) -> list[_Row]:
        return [(dict.fromkeys(range(start, stop), 1.0), 1.0, 1.0)
                for start, stop in zip(self.starts, self.starts[1:], strict=False)]  # fmt: skip

    def _within(self) -> list[_Row]:
        rows: list[_Row] = []
        for kind, limit in self.limits.items():
            costs = np.concatenate([place.costs[kind] for place in self.places])
            scale = _SCALE / max(float(np.abs(costs).max()), 1e-300)
            rows.append((dict(enumerate((scale * costs).tolist())), -np.inf, scale * limit))
        return rows

    def _products(self) -> list[_Row]:
        rows: list[_Row] = []
        for number, ((one, other), harm) in enumerate(self.pairs.items()):
            product = len(self.harms) + number
            first, second = (self.starts[place] + option for place, option in (one, other))
            if harm > 0:
                rows.append(({first: 1.0, second: 1.0, product: -1.0}, -np.inf, 1.0))
            else:
                rows += [({product: 1.0, column: -1.0}, -np.inf, 0.0) for column in (first, second)]
        return rows

    def _without_cuts(self) -> list[_Row]:
        return [
            ({self.starts[place] + option: 1.0 for place, option in enumerate(cut)}, -np.inf, len(cut) - 1.0)
            for cut in self.cuts
        ]


_Row: TypeAlias = tuple[Mapping[int, float], float, float]
"""Terms by column, and the two ends that their sum stays between."""


def _refined(programme: _Programme, best: list[int]) -> list[int]:
    """The choice of least harm, however small it is beside the largest harms."""
    gains, finest = programme.gains, _SAME * np.abs(programme.gains).max(initial=0.0)
    while (harm := programme.harm(best)) != 0:
        if not (gains < 0).any():  # what alone does more harm than all of the answer is in no better one
            programme.allowed &= programme.harms <= harm * (1 + _SAME)
            gains = np.minimum(programme.gains, 2 * harm)
        scale = _SCALE / max(abs(harm), finest)
        found = programme.least(scale * programme.harms, scale * gains)
        if found is None or programme.harm(found) >= harm - _SAME * abs(harm):
            return best if found is None or programme.harm(found) >= harm else found
        best = found
    return best


def _cheapest(programme: _Programme, best: list[int]) -> list[int]:
    """Of all choices of no more harm, one that costs least, by the sum of its shares of the limits."""
    harm = programme.harm(best)
    if not programme.limits or (programme.gains < 0).any():
        return best
    shares = np.zeros(len(programme.harms))
    for kind in programme.limits:
        costs = np.concatenate([place.costs[kind] for place in programme.places])
        shares += costs / max(float(np.abs(costs).max()), 1e-300)
    found = programme.least(_SCALE * shares, np.zeros_like(programme.gains), harm)
    equal = found is not None and programme.harm(found) <= harm + _SAME * abs(harm)
    return found if found is not None and equal else best


def _check(places: Sequence[Options], limits: Mapping[str, float], pairs: Pairs) -> None:
    for number, place in enumerate(places):
        if len(place.harms) == 0 or np.isnan(place.harms).any() or not (place.harms < np.inf).any():
            raise DataError(f"place {number} needs an option of finite harm, and none of NaN; got {place.harms}")
        if (place.harms == -np.inf).any():
            raise DataError(f"harms are finite, or infinite where an option is impossible; got {place.harms}")
        for kind in limits:
            costs = place.costs[kind]
            if costs.shape != place.harms.shape or not np.isfinite(costs).all():
                raise DataError(f"place {number} needs a finite cost in {kind} for each option, got {costs}")
    if any(math.isnan(limit) for limit in limits.values()):
        raise DataError(f"limits must be numbers, got {dict(limits)}")
    if not all(math.isfinite(harm) for harm in pairs.values()):
        raise DataError(f"harms of pairs must be finite, got {list(pairs.values())[:6]}")


def _check_each_limit(places: Sequence[Options], limits: Mapping[str, float]) -> None:
    for kind, limit in limits.items():
        cheapest = [int(np.argmin(np.where(np.isfinite(place.harms), place.costs[kind], np.inf))) for place in places]
        if not holds(places, cheapest, {kind: limit}):
            least = total_cost(places, cheapest, kind)
            raise RecipeError(f"no choice costs {limit:.6g} {kind} or less; the least that is possible is {least:.6g}")


def _not_together(places: Sequence[Options], limits: Mapping[str, float]) -> str:
    """Why limits that each can be met cannot be met at once: the least of each kind while the others hold."""
    found = []
    for kind in limits:
        others = {other: limit for other, limit in limits.items() if other != kind}
        programme = _Programme(places, others, {})
        costs = np.concatenate([place.costs[kind] for place in places])
        choice = programme.least(_SCALE * costs / max(float(np.abs(costs).max()), 1e-300), np.zeros(0))
        if choice is not None:
            found.append(f"{total_cost(places, choice, kind):.6g} {kind}")
    wanted = ", ".join(f"{limit:.6g} {kind}" for kind, limit in limits.items())
    least = f"; with the others held, the least is {' or '.join(found)}" if found else ""
    return f"each of the limits {wanted} can be met, but not all at once{least}"
