"""Half-quadratic quantization of one row of weights, number by number in Python's own floats."""

from __future__ import annotations

from collections.abc import Sequence

from alula.numerics.grids import Grid


def p_error(row: Sequence[float], step: float, zero: int, grid: Grid, norm: float) -> float:
    """The sum of |w - s (q - z)|^p, each w on its nearest code."""
    return sum(abs(weight - step * (_code(weight, step, zero, grid) - zero)) ** norm for weight in row)


def half_quadratic(
    row: Sequence[float], grid: Grid, norm: float, penalty: float, growth: float, iterations: int
) -> tuple[float, int]:
    """Step and zero point of the least p-error among those of all rounds (Badri and Shaji 2023, whole zero points)."""
    unit, zero = _start(row, grid)
    steps = [weight / unit for weight in row]
    step, tried = 1.0, []
    for _ in range(iterations + 1):
        tried.append((p_error(steps, step, zero, grid, norm), step, zero))
        codes = [_code(weight, step, zero, grid) for weight in steps]
        target = []
        for weight, code in zip(steps, codes, strict=True):
            error = weight - step * (code - zero)
            left = abs(error) - abs(error) ** (norm - 1) / penalty if error else 0.0
            target.append(weight - (0.0 if left <= 0 else left if error > 0 else -left))
        if not grid.symmetric:
            zero = _line_zero(codes, target, step, zero, grid)
        product = sum((code - zero) * value for code, value in zip(codes, target, strict=True))
        square = sum((code - zero) ** 2 for code in codes)
        step = product / square if product > 0 and square > 0 else step
        penalty *= growth
    _, step, zero = min(tried, key=lambda one: one[0])
    return step * unit, zero


def _start(row: Sequence[float], grid: Grid) -> tuple[float, int]:
    low, high = min(0.0, *row), max(0.0, *row)
    if grid.symmetric:
        return max(high / (grid.highest - grid.middle), -low / (grid.middle - grid.lowest)) or 1.0, grid.middle
    unit = (high - low) / (grid.levels - 1) or 1.0
    return unit, round(grid.lowest - low / unit)


def _line_zero(codes: Sequence[int], target: Sequence[float], step: float, zero: int, grid: Grid) -> int:
    """Where the line that fits the target best by the codes meets 0, as a code."""
    count = len(codes)
    middle, goal = sum(codes) / count, sum(target) / count
    together = sum((code - middle) * (value - goal) for code, value in zip(codes, target, strict=True))
    square = sum((code - middle) ** 2 for code in codes)
    slope = together / square if together > 0 and square > 0 else step
    return min(max(round(middle - goal / slope), grid.lowest), grid.highest)


def _code(weight: float, step: float, zero: int, grid: Grid) -> int:
    return min(max(round(weight / step) + zero, grid.lowest), grid.highest)
