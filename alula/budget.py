"""What may be lost, what must be met, and what to minimise."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from alula.errors import BudgetError

Objective = Literal["latency", "size", "energy"]

_DROP = re.compile(
    r"(?P<before>rel(?:ative)?[:\s]\s*)?(?P<number>-?\d+(?:\.\d*)?|\.\d+)\s*(?P<percent>%)?(?P<after>\s*rel(?:ative)?)?",
    re.IGNORECASE,
)
_BYTES = re.compile(r"(?P<number>\d+(?:\.\d*)?|\.\d+)\s*(?P<prefix>[kmgt]?)(?P<binary>i?)b?", re.IGNORECASE)
_POWER = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}


@dataclass(frozen=True, slots=True)
class Budget:
    """What a compressed model may lose and must meet.

    Attributes:
        max_drop: largest loss of score allowed, in score units; positive means worse.
        relative: ``max_drop`` is a fraction of the original's score instead.
        confidence: how sure the certificate must be that the drop stays below the limit, between 0.5 and 1.
        minimize: what to make smallest among the candidates that hold the budget.
        max_size_bytes: limit of the shipped files together.
        max_latency_ms: limit of the median time of one example.
        max_energy_mj: limit of the energy of one example.
        max_memory_bytes: limit of the peak memory while running.

    Raises:
        BudgetError: a value is nonsense; the message says the rule and the fix.
    """

    max_drop: float = 0.01
    relative: bool = False
    confidence: float = 0.95
    minimize: Objective = "latency"
    max_size_bytes: int | None = None
    max_latency_ms: float | None = None
    max_energy_mj: float | None = None
    max_memory_bytes: int | None = None

    def __post_init__(self) -> None:
        _check_drop(self.max_drop, relative=self.relative)
        _check_confidence(self.confidence)
        if self.minimize not in get_args(Objective):
            raise BudgetError(f"minimize must be one of {', '.join(get_args(Objective))}; got {self.minimize!r}")
        for name in ("max_size_bytes", "max_latency_ms", "max_energy_mj", "max_memory_bytes"):
            _check_limit(name, getattr(self, name))

    def allowed_drop(self, original_score: float, bounds: tuple[float, float] | None = None) -> float:
        """The largest drop allowed, in score units, for a model whose original scores ``original_score``.

        Args:
            original_score: the original's score on the evaluation examples.
            bounds: least and greatest score possible, where known, to catch a budget that allows everything.

        Raises:
            BudgetError: the score is not finite; a fraction of a score of zero; or a drop as wide as the bounds.
        """
        if not math.isfinite(original_score):
            raise BudgetError(f"the original's score must be a finite number, got {original_score}")
        if not self.relative:
            _check_within_bounds(self.max_drop, bounds)
            return float(self.max_drop)
        if original_score == 0:
            raise BudgetError(
                "the original scores 0, and a fraction of 0 allows nothing; give the drop in score units, such as '1%'"
            )
        return float(self.max_drop * abs(original_score))

    def to_json(self) -> dict[str, Any]:
        """The budget as plain data."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Budget:
        """The budget that :meth:`to_json` wrote.

        Raises:
            BudgetError: a key is unknown or a value is nonsense.
        """
        known = [field.name for field in fields(cls)]
        unknown = sorted(set(data) - set(known))
        if unknown:
            raise BudgetError(f"a budget has no {', '.join(map(repr, unknown))}; it has {', '.join(known)}")
        return cls(**data)


def parse_drop(text: str) -> tuple[float, bool]:
    """Read a largest drop as people write it: the value, and whether it is a fraction of the original's score.

    Raises:
        BudgetError: the text is no drop; the message shows some that are.

    >>> parse_drop("1%")  # one point of a score between 0 and 1
    (0.01, False)
    >>> parse_drop("2% relative")
    (0.02, True)
    >>> parse_drop("0.3")
    (0.3, False)
    """
    match = _DROP.fullmatch(text.strip())
    if match is None or (match["before"] and match["after"]):
        raise BudgetError(
            f"cannot read {text!r} as a largest drop; write '1%' (one point of a score between 0 and 1), "
            "'0.3' (score units) or '2% relative' (of the original's score)"
        )
    value = float(match["number"]) / (100 if match["percent"] else 1)
    relative = bool(match["before"] or match["after"])
    _check_drop(value, relative=relative)
    return value, relative


def parse_bytes(text: str) -> int:
    """Read a number of bytes as people write it: kB, MB, GB count in thousands, KiB, MiB, GiB in 1024s.

    Raises:
        BudgetError: the text is no number of bytes, or less than one byte.

    >>> parse_bytes("2MB"), parse_bytes("1.5 KiB"), parse_bytes("800")
    (2000000, 1536, 800)
    """
    match = _BYTES.fullmatch(text.strip())
    if match is None or (match["binary"] and not match["prefix"]):
        raise BudgetError(f"cannot read {text!r} as a number of bytes; write '2MB', '1.5 MiB' or '800000'")
    size_bytes = float(match["number"]) * (1024 if match["binary"] else 1000) ** _POWER[match["prefix"].lower()]
    if not 1 <= size_bytes < 2**63:
        raise BudgetError(f"a number of bytes must be at least 1 and below 2^63, got {text!r}")
    return int(size_bytes)


def _check_drop(max_drop: float, *, relative: bool) -> None:
    if not _is_number(max_drop) or max_drop < 0:
        raise BudgetError(
            f"max_drop must be a finite number above 0 (positive means worse), got {max_drop!r}; "
            "read text such as '1%' with parse_drop"
        )
    if max_drop == 0:
        raise BudgetError(
            "max_drop must be above 0: no number of examples can show that nothing at all is lost; "
            "allow a little, such as '0.1%'"
        )
    if relative and max_drop >= 1:
        raise BudgetError(
            f"a relative max_drop is a fraction of the original's score and must be below 1, got {max_drop:g}; "
            "for two percent write 0.02"
        )


def _check_confidence(confidence: float) -> None:
    if not _is_number(confidence) or not 0.5 <= confidence < 1:
        hint = f"; for {confidence:g} percent write {confidence / 100:g}" if _is_percent(confidence) else ""
        raise BudgetError(f"confidence must be at least 0.5 and below 1, got {confidence!r}{hint}")


def _check_limit(name: str, limit: float | None) -> None:
    if limit is None:
        return
    if not _is_number(limit) or limit <= 0:
        raise BudgetError(f"{name} must be a finite number above 0, got {limit!r}; leave it out for no limit")
    if name.endswith("_bytes") and int(limit) != limit:
        raise BudgetError(f"{name} must be a whole number of bytes, got {limit!r}; read '2MB' with parse_bytes")


def _check_within_bounds(max_drop: float, bounds: tuple[float, float] | None) -> None:
    if bounds is not None and max_drop >= bounds[1] - bounds[0]:
        raise BudgetError(
            f"a drop of {max_drop:g} allows losing everything, for scores lie between {bounds[0]:g} and "
            f"{bounds[1]:g}; for {max_drop:g} percent write '{max_drop:g}%'"
        )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_percent(value: Any) -> bool:
    return _is_number(value) and 50 <= value < 100
