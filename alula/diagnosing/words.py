"""A diagnosis in words."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from alula.diagnosing.fixes import Fixed
    from alula.diagnosing.result import Diagnosis


def decibels_in_words(value: float | None) -> str:
    """A ratio of signal to noise as people say it.

    >>> decibels_in_words(21.46), decibels_in_words(math.inf), decibels_in_words(-math.inf), decibels_in_words(None)
    ('21.5', 'exact', 'no signal', '-')
    """
    if value is None:
        return "-"
    if math.isinf(value):
        return "exact" if value > 0 else "no signal"
    return f"{value:.1f}"


def error_in_words(error: float | None) -> str:
    """A relative error as people say it.

    >>> error_in_words(0.0123), error_in_words(3.2), error_in_words(math.inf), error_in_words(None)
    ('1.23%', '320%', 'not finite', '-')
    """
    if error is None:
        return "-"
    if not math.isfinite(error):
        return "not finite"
    return f"{error:.0%}" if error >= 1 else f"{error:.2%}"


def verdict_in_words(diagnosis: Diagnosis) -> str:
    """One sentence: how far the outputs are off, and whom to look at first."""
    off = f"the outputs are off by {error_in_words(diagnosis.error)} ({decibels_in_words(diagnosis.sqnr_db)} dB)"
    if diagnosis.agreement is not None:
        off += f", {diagnosis.agreement:.1%} of their rows have the same largest entry"
    if not diagnosis.findings:
        return f"{off}; no layer shows a known cause of damage"
    first = diagnosis.findings[0]
    named = len({finding.layer for finding in diagnosis.findings})
    return f"{off}; {named} of {len(diagnosis.layers)} layers show why, first {first.layer}: {first.cause}"


def diagnosis_in_words(diagnosis: Diagnosis) -> str:
    """The sentence, what was found in each layer and what helps, and what was left out."""
    lines = [verdict_in_words(diagnosis)]
    lines += [f"  {one.layer}: {one.cause}: {one.text}; what helps: {one.fix}" for one in diagnosis.findings]
    lines += [f"  {note}" for note in diagnosis.notes]
    return "\n".join(lines)


def fixed_in_words(fixed: Fixed) -> str:
    """What was changed, and how far the outputs are off before and after."""
    before, after = fixed.before, fixed.after
    off = (
        f"the outputs were off by {error_in_words(before.error)} ({decibels_in_words(before.sqnr_db)} dB), "
        f"now by {error_in_words(after.error)} ({decibels_in_words(after.sqnr_db)} dB)"
    )
    if before.agreement is not None and after.agreement is not None:
        off += f"; rows with the same largest entry: {before.agreement:.1%}, now {after.agreement:.1%}"
    lines = [off]
    lines += [f"  {words}" for words in fixed.done or ("no cause was found; quantized anew in the same form",)]
    return "\n".join(lines)
