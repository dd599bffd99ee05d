"""The page of ``benchmarks/calibration_luck.py``: what a method scores over draws of its calibration data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final, TypeAlias

import numpy as np
from scipy.stats import chi2

from benchmarks.peers.scoring import mean_with_interval

Row: TypeAlias = dict[str, Any]

HEAD: Final = """\
# The luck of the calibration draw

Written by `benchmarks/calibration_luck.py`. **Spread is the standard deviation of a network's score over draws of its
calibration data, all else being the same**; worst and best are of the same draws. Every method had the same draws, and
was scored on the same examples, which none was calibrated by.

Weights and activations of 8 bits, or of those named. *alula* is `alula.quantize(model, data)`; the lines behind it have
another range of activations, or weights of 4 bits. ORT is ONNX Runtime's static quantization after its own
pre-processing: QDQ, per channel, uint8 activations by int8 weights; of a transformer MatMul alone, which serves it
best. NNCF: ONNX back end, preset mixed, its model type for transformers. Scores, drops and spreads are in points of a
hundred. Drop: from the float network, mean over draws, with a normal 95 % interval over examples, paired. Spread:
with the 95 % interval of a normal sample's deviation. Behind alula: what alula has more, paired likewise. Error: that
of the logits, squared, in per cent of their square, mean over draws, and the worst.
"""
COLUMNS: Final = ("method", "mean", "drop (95 %)", "spread (95 %)", "worst", "best", "behind alula (95 %)", "error")


def render(results: Mapping[str, Any]) -> str:
    """The whole page."""
    lines = [HEAD]
    for name, original in results["float"].items():
        lines += [f"## {original['title']}", "", *_network(results["rows"], name, original["right"])]
    known = ", ".join(f"{package} {version}" for package, version in results["versions"].items())
    commits = sorted({row["commit"] for row in results["rows"].values()})
    lines.append(f"{results['machine'].get('processor', '')}; {known}; commit {', '.join(commits)}.")
    return "\n".join(lines) + "\n"


def _network(rows: Mapping[str, Row], name: str, original: str) -> Iterator[str]:
    """A table for each size of draws."""
    right = counts(original)
    yield f"In float {100 * right.mean():.2f}, on {len(right):,} examples."
    yield ""
    for size in sorted({int(key.split(" / ")[1]) for key in rows if key.startswith(f"{name} / ")}):
        methods = {key.split(" / ")[2]: row for key, row in rows.items() if key.startswith(f"{name} / {size} / ")}
        draws = max(len(row["scores"]) for row in methods.values())
        yield f"### {draws} draws of {size}"
        yield ""
        yield f"| {' | '.join(COLUMNS)} |"
        yield "|" + "---|" * len(COLUMNS)
        ours = methods.get("alula")
        yield from (_line(method, row, right, ours) for method, row in methods.items() if row["scores"])
        yield ""
        for method, row in methods.items():
            yield from (
                f"- {method} gave nothing by {len(row['failures'])} draws: {one}" for one in row["failures"][:1]
            )
        yield ""


def _line(method: str, row: Row, original: np.ndarray, ours: Row | None) -> str:
    scores, errors = 100 * np.array(row["scores"]), 100 * np.array(row["errors"])
    drop = mean_with_interval(original - shares(row))
    behind = "" if ours is None or ours is row else _interval(*mean_with_interval(shares(ours) - shares(row)))
    spread = f"{scores.std(ddof=1):.2f} ({' to '.join(f'{end:.2f}' for end in deviation_interval(scores))})"
    cells = [method, f"{scores.mean():.2f}", _interval(*drop), spread, f"{scores.min():.2f}", f"{scores.max():.2f}"]
    return f"| {' | '.join([*cells, behind, f'{errors.mean():.2g}, {errors.max():.2g}'])} |"


def _interval(mean: float, low: float, high: float) -> str:
    return f"{100 * mean:+.2f} ({100 * low:+.2f} to {100 * high:+.2f})"


def deviation_interval(sample: np.ndarray) -> tuple[float, float]:
    """The 95 % interval of the standard deviation that a normal sample [n] comes of.

    >>> [round(end, 3) for end in deviation_interval(np.array([-1.0, 0.0, 1.0]))]
    [0.521, 6.285]
    """
    freedom = len(sample) - 1
    squares = freedom * float(sample.var(ddof=1))
    low, high = (float(np.sqrt(squares / chi2.ppf(share, freedom))) for share in (0.975, 0.025))
    return low, high


def shares(row: Row) -> np.ndarray:  # [n]
    """The share of draws in which each example was right."""
    return counts(row["right"]) / len(row["scores"])


def counts(digits: str) -> np.ndarray:  # [n]
    """Numbers of one letter each, 0 to 9 and then a to z.

    >>> counts("09a")
    array([ 0,  9, 10])
    """
    return np.array([int(digit, 36) for digit in digits])
