"""What the scripts that draw curves share: amounts that give a wanted cost, means over seeds, and a picture as SVG.

| symbol | code | meaning |
|---|---|---|
| n | | seeds |
| m, s | mean | mean and standard deviation (n - 1) of the values of n seeds |
| h | half | half the width of the interval: t(n - 1, 97.5 %) s / sqrt(n); not known for n < 2 |
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from scipy import stats

STEPS = 256  # amounts are told apart this finely
CLOSE = 0.03  # of the wanted ratio
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c564b", "#4b4bb5", "#7f7f7f", "#000000")
DASHES = ("", "7 3", "2 3")
WIDTH, HEIGHT, LEFT, TOP, GAP = 400, 260, 52, 34, 96  # of a panel and around it, pixels
COLUMN, LINE = 165, 18  # of the legend


@dataclass(frozen=True)
class Mean:
    """A mean over seeds and half the width of its 95 % interval, None where one seed alone was run."""

    value: float
    half: float | None

    @property
    def bounds(self) -> tuple[float, float]:
        """The ends of the interval."""
        return self.value - (self.half or 0), self.value + (self.half or 0)


@dataclass(frozen=True)
class Curve:
    """One line with its band; points in any order."""

    name: str
    x: tuple[float, ...]
    y: tuple[Mean, ...]


@dataclass(frozen=True)
class Panel:
    """One plot: its curves, what its axes show, and a level to compare with."""

    title: str
    x_title: str
    curves: tuple[Curve, ...]
    level: float | None = None


def mean_of(values: Sequence[float]) -> Mean:
    """Mean and t-interval over seeds.

    >>> mean_of([1.0, 2.0, 3.0]).value, round(mean_of([1.0, 2.0, 3.0]).half, 2), mean_of([1.0]).half
    (2.0, 2.48, None)
    """
    array = np.asarray(values, np.float64)
    if len(array) < 2:
        return Mean(float(array.mean()), None)
    half = stats.t.ppf(0.975, len(array) - 1) * array.std(ddof=1) / math.sqrt(len(array))
    return Mean(float(array.mean()), float(half))


def amount_for(ratio: Callable[[float], float], wanted: float) -> float:
    """An amount, a multiple of 1 / 256 below 1, at which a ratio that falls with it is close to the wanted one.

    Close is within 3 % of it, or as close as there is. Costs are about the square of the widths, so the root of the
    ratio is almost a line in the amount: what it tells and halving take turns, and three or four tries are enough.

    >>> amount_for(lambda amount: (1 - amount) ** 2, 0.25)
    0.5
    """
    low, high = 0, STEPS - 1
    while high - low > 1:
        roots = [math.sqrt(ratio(step / STEPS)) for step in (low, high)]
        guess = round(low + (high - low) * (roots[0] - math.sqrt(wanted)) / max(roots[0] - roots[1], 1e-9))
        for tried in (guess, (low + high) // 2):
            step = min(max(tried, low + 1), high - 1)
            found = ratio(step / STEPS)
            if abs(found - wanted) <= CLOSE * wanted:
                return step / STEPS
            low, high = (low, step) if found < wanted else (step, high)
            if high - low <= 1:
                break
    return min((low / STEPS, high / STEPS), key=lambda amount: abs(ratio(amount) - wanted))


def draw(panels: Sequence[Panel], columns: int = 2) -> str:
    """The panels side by side as one SVG, with one legend for all; a name has one colour in every panel."""
    names = list(dict.fromkeys(curve.name for panel in panels for curve in panel.curves))
    styles = {name: (COLOURS[index % len(COLOURS)], DASHES[index % len(DASHES)]) for index, name in enumerate(names)}
    wide, rows = min(columns, len(panels)), math.ceil(len(panels) / columns)
    width, plots = LEFT + wide * (WIDTH + GAP) - GAP + 20, rows * (HEIGHT + GAP)
    in_line = max(1, width // COLUMN)
    height = plots + math.ceil(len(names) / in_line) * LINE + 20
    view = f'viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12"'
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" {view}><rect width="{width}" height="{height}" fill="white"/>']
    for index, panel in enumerate(panels):
        row, column = divmod(index, columns)
        place = f"{LEFT + column * (WIDTH + GAP)} {TOP + row * (HEIGHT + GAP)}"
        parts += [f'<g transform="translate({place})">', *_panel(panel, styles), "</g>"]
    for index, name in enumerate(names):
        row, column = divmod(index, in_line)
        parts.append(_legend(name, styles[name], LEFT + column * COLUMN, plots + row * LINE + 8))
    return "\n".join([*parts, "</svg>", ""])


def _panel(panel: Panel, styles: dict[str, tuple[str, str]]) -> list[str]:
    x, y = _scales(panel)
    parts = [f'<text x="0" y="-14" font-weight="bold">{escape(panel.title)}</text>']
    for tick in _ticks(*y.range):
        at = y(tick)
        parts.append(f'<path d="M0 {at:.1f}H{WIDTH}" stroke="#ddd"/>')
        parts.append(f'<text x="-6" y="{at + 4:.1f}" text-anchor="end">{tick:.4g}</text>')
    for tick in _ticks(*x.range):
        parts.append(f'<path d="M{x(tick):.1f} {HEIGHT}v5" stroke="#666"/>')
        parts.append(f'<text x="{x(tick):.1f}" y="{HEIGHT + 18}" text-anchor="middle">{tick:.4g}</text>')
    middle = f'x="{WIDTH / 2}" y="{HEIGHT + 36}" text-anchor="middle"'
    parts.append(f"<text {middle}>{escape(panel.x_title)}</text>")
    if panel.level is not None:
        parts.append(f'<path d="M0 {y(panel.level):.1f}H{WIDTH}" stroke="#666" stroke-dasharray="1 3"/>')
    for curve in panel.curves:
        parts += _curve(curve, styles[curve.name], x, y)
    return parts


def _curve(curve: Curve, style: tuple[str, str], x: _Scale, y: _Scale) -> list[str]:
    colour, dash = style
    points = sorted(zip(curve.x, curve.y, strict=True), key=lambda point: point[0])
    line = " ".join(f"{x(at):.1f},{y(mean.value):.1f}" for at, mean in points)
    upper = [f"{x(at):.1f},{y(mean.bounds[1]):.1f}" for at, mean in points]
    lower = [f"{x(at):.1f},{y(mean.bounds[0]):.1f}" for at, mean in reversed(points)]
    return [
        f'<polygon points="{" ".join(upper + lower)}" fill="{colour}" fill-opacity="0.08"/>',
        f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="1.8" stroke-dasharray="{dash}"/>',
    ]


def _legend(name: str, style: tuple[str, str], x: float, y: float) -> str:
    colour, dash = style
    return (
        f'<path d="M{x} {y}h28" stroke="{colour}" stroke-width="2.5" stroke-dasharray="{dash}"/>'
        f'<text x="{x + 34}" y="{y + 4}">{escape(name)}</text>'
    )


@dataclass(frozen=True)
class _Scale:
    """Values to pixels; what lies outside is drawn at the edge."""

    range: tuple[float, float]
    pixels: tuple[float, float]

    def __call__(self, value: float) -> float:
        return float(np.interp(value, self.range, self.pixels))


def _scales(panel: Panel) -> tuple[_Scale, _Scale]:
    across = [value for curve in panel.curves for value in curve.x]
    means = [mean.value for curve in panel.curves for mean in curve.y]
    means += [] if panel.level is None else [panel.level]
    low, high = min(means), max(means)
    spare = 0.05 * (high - low) or 0.01
    return (
        _Scale((0.0, max(*across, 1e-9)), (0.0, WIDTH)),
        _Scale((low - spare, high + spare), (HEIGHT, 0.0)),
    )


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers between two others, about five.

    >>> _ticks(0.0, 1.0)
    [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    """
    exact = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(exact))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= exact * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]
