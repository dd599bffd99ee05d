"""A measured number, with everything needed to judge it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from alula.errors import DataError


@dataclass(frozen=True, slots=True)
class Measurement:
    """A value with its unit, interval, number of samples and method; ``estimated`` when it was computed, not measured.

    ``low`` and ``high`` hold the value with probability ``confidence``; where ``confidence`` is None they are the
    extremes that were seen, or the range that the source gives.

    >>> print(Measurement(3.412, "ms", 3.38, 3.46, 0.95, n=480, method="median of 480 replays"))
    3.41 ms (3.38 to 3.46)
    >>> print(Measurement(22_700_000, "bytes"))
    22.7 MB
    """

    value: float
    unit: str
    low: float | None = None
    high: float | None = None
    confidence: float | None = None
    n: int = 1
    method: str = ""
    estimated: bool = False

    def __post_init__(self) -> None:
        ends = [end for end in (self.low, self.value, self.high) if end is not None]
        if not all(math.isfinite(end) for end in ends) or ends != sorted(ends):
            raise DataError(f"a measurement must be finite with low <= value <= high, got {ends} {self.unit}")

    def __str__(self) -> str:
        text = f"{'about ' if self.estimated else ''}{_with_unit(self.value, self.unit)}"
        if self.low is None or self.high is None or self.low == self.high:
            return text
        return f"{text} ({_number(self.low, self.unit)} to {_number(self.high, self.unit)})"

    def to_json(self) -> dict[str, Any]:
        """The measurement as plain data."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Measurement:
        """A measurement out of plain data.

        Raises:
            DataError: a field is missing, unknown or of the wrong type.
        """
        try:
            fields = dict(data)
            ends = {key: fields.pop(key, None) for key in ("low", "high", "confidence")}
            numbers = {key: None if end is None else float(end) for key, end in ends.items()}
            value, unit, count = float(fields.pop("value")), str(fields.pop("unit")), int(fields.pop("n", 1))
            method, estimated = str(fields.pop("method", "")), bool(fields.pop("estimated", False))
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"a measurement must hold a value, a unit and numbers; {error!r} in {data!r}") from error
        if fields:
            raise DataError(f"a measurement has no field {', '.join(sorted(fields))}")
        return cls(value, unit, numbers["low"], numbers["high"], numbers["confidence"], count, method, estimated)


def _with_unit(value: float, unit: str) -> str:
    if unit == "x":
        return f"{_number(value, unit)}x"
    if unit == "bytes":
        return f"{_number(value, unit)}"
    return f"{_number(value, unit)} {unit}"


def _number(value: float, unit: str) -> str:
    if unit != "bytes":
        return _three_digits(value)
    for scale, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if abs(value) >= scale:
            return f"{_three_digits(value / scale)} {name}"
    return f"{value:.0f} bytes"


def _three_digits(value: float) -> str:
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.{max(0, 2 - math.floor(math.log10(abs(value))))}f}"
