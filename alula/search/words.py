"""A result in words: the sentence that opens a report, and the summary that a notebook shows."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from alula.search.result import Candidate, Frontier, TimeSplit

SAID = ("size_bytes", "score", "drop")  # measurements that are said from the candidate itself
SAME_SPEED = 0.01  # what a change of latency must exceed to be called one


def bytes_in_words(size_bytes: float) -> str:
    """A size as people say it, in decimal units.

    >>> bytes_in_words(22_713_000), bytes_in_words(980)
    ('22.7 MB', '980 bytes')
    """
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if abs(size_bytes) >= scale:
            return f"{_three_digits(size_bytes / scale)} {unit}"
    return f"{size_bytes:,.0f} bytes"


def count_in_words(count: float) -> str:
    """A large count, shortened.

    >>> count_in_words(1_810_000), count_in_words(12)
    ('1.81 M', '12')
    """
    for unit, scale in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(count) >= scale:
            return f"{_three_digits(count / scale)} {unit}"
    return f"{count:,.0f}"


def score_in_words(score: float) -> str:
    """A score with as many digits as differ between candidates.

    >>> score_in_words(0.98412), score_in_words(31.25)
    ('0.9841', '31.25')
    """
    return f"{score:.4f}" if abs(score) < 10 else f"{score:.2f}"


def size_change_in_words(original: Candidate, candidate: Candidate) -> str:
    """How the size changed: "3.8x smaller", "the same size", "1.1x larger"."""
    ratio = original.size_bytes / max(candidate.size_bytes, 1)
    if abs(ratio - 1) < 0.005:
        return "the same size"
    return f"{ratio:.2f}x smaller" if ratio > 1 else f"{1 / max(ratio, 1e-12):.2f}x larger"


def speed_change_in_words(candidate: Candidate) -> str | None:
    """How the latency changed, with its interval; None when it was not measured, or is the original's own."""
    ratio = candidate.measurements.get("latency_ratio")
    if ratio is None or ratio.value <= 0 or ratio.low == ratio.high == 1:
        return None
    low, high = ratio.low, ratio.high
    if abs(ratio.value - 1) < SAME_SPEED:
        return f"the same speed to within {SAME_SPEED:.0%}"
    if low is None or high is None:
        return f"{ratio.value:.2f}x faster" if ratio.value > 1 else f"{1 / ratio.value:.2f}x slower"
    if low <= 1 <= high:
        return f"no measurable change of speed ({low:.2f}-{high:.2f}x)"
    if ratio.value > 1:
        return f"{ratio.value:.2f}x faster ({low:.2f}-{high:.2f}x)"
    return f"{1 / ratio.value:.2f}x slower ({1 / high:.2f}-{1 / low:.2f}x)"


def time_in_words(split: TimeSplit) -> str:
    """Where the time goes: shares of layers in integers and in float, of conversions, of the rest."""
    conversions = f"{split.conversion_count} conversion{'' if split.conversion_count == 1 else 's'}"
    each = split.total_ms / max(split.node_count, 1)
    return (
        f"int8 layers {split.int8:.0%}, float layers {split.floating:.0%}, {conversions} {split.conversions:.0%}, "
        f"other operators {split.other:.0%} ({split.node_count:,} operators, {each:.3g} ms each on average)"
    )


def score_change_in_words(frontier: Frontier, candidate: Candidate) -> str:
    """What was lost: of what is handed back, on the held-out examples, which did not pick it."""
    scores, drop, where = (frontier.original.score, candidate.score), candidate.drop, ""
    if (held_out := frontier.certificate) is not None and candidate.name == frontier.best.name:
        scores, drop = (held_out.original_score, held_out.candidate_score), held_out.drop
        where = " on held-out examples"
    before, after = map(score_in_words, scores)
    if not frontier.labelled:
        return f"its agreement with the original ({frontier.metric}) is {after}{where}"
    if drop <= 0:
        return f"no loss was seen{where}: {frontier.metric} {before} before, {after} after"
    return f"{frontier.metric} went from {before} to {after}{where}, a loss of {score_in_words(drop)}"


def change_in_words(frontier: Frontier) -> str:
    """What was made of the original: how much smaller and faster it is, and what was lost."""
    original, best = frontier.original, frontier.best
    size = f"{bytes_in_words(original.size_bytes)} became {bytes_in_words(best.size_bytes)}"
    speed = speed_change_in_words(best)
    made = f"{size} ({size_change_in_words(original, best)})" + (f", {speed}" if speed else "")
    if frontier.budget.minimize == "energy":
        made += f", {energy_change_in_words(original, best)}"
    return f"{made}; {score_change_in_words(frontier, best)}."


def energy_change_in_words(original: Candidate, candidate: Candidate) -> str:
    """How the energy of one example changed; nothing where it is not known."""
    before, after = original.measurements.get("energy_mj"), candidate.measurements.get("energy_mj")
    if before is None or after is None or after.value <= 0:
        return "its energy is not known"
    ratio, kind = before.value / after.value, ", an estimate" if after.estimated else ""
    change = f"{ratio:.2f}x less" if ratio >= 1 else f"{1 / ratio:.2f}x more"
    return f"{before.value:.3g} mJ an example became {after.value:.3g} mJ ({change}{kind})"


def verdict_in_words(frontier: Frontier) -> str:
    """One sentence: what was made and what was lost, or that nothing held the budget and by how much."""
    if frontier.chosen is not None:
        return change_in_words(frontier)
    if frontier.distance.startswith("interrupted"):
        return f"The run was {frontier.distance}."
    distance = frontier.distance.strip().rstrip(".")
    return f"No candidate held the budget{f': {distance}' if distance else ''}."


def state_of(frontier: Frontier) -> Literal["certified", "uncertified", "failed"]:
    """The outcome: certified to hold the budget, held but not to be certified with so few examples, or not held."""
    if frontier.chosen is None or frontier.certificate is None:
        return "failed" if frontier.chosen is None else "uncertified"
    states: dict[str, Literal["certified", "uncertified", "failed"]] = {
        "holds": "certified",
        "not enough examples": "uncertified",
    }
    return states.get(frontier.certificate.verdict, "failed")


def summary_in_html(frontier: Frontier) -> str:
    """A compact table of original and best candidate, for a notebook; styled by the notebook itself."""
    original, best = frontier.original, frontier.best
    keys = [key for key in original.measurements if key in best.measurements]
    rows = [
        ("size", bytes_in_words(original.size_bytes), bytes_in_words(best.size_bytes)),
        (frontier.metric, score_in_words(original.score), score_in_words(best.score)),
        *((key, str(original.measurements[key]), str(best.measurements[key])) for key in keys if key not in SAID),
    ]
    body = "".join(f"<tr><th>{escape(a)}</th><td>{escape(b)}</td><td>{escape(c)}</td></tr>" for a, b, c in rows)
    proof = frontier.certificate
    said = "" if proof is None else escape(proof.sentence(frontier.metric, labelled=frontier.labelled))
    certificate = f"<p>{said}</p>" if said else ""
    return (
        f"<p><strong>{escape(verdict_in_words(frontier))}</strong></p>{certificate}"
        f"<table><thead><tr><th></th><th>{escape(original.name)}</th><th>{escape(best.name)}</th></tr></thead>"
        f"<tbody>{body}</tbody></table>"
    )


def _three_digits(value: float) -> str:
    """Three significant digits, never with an exponent."""
    return f"{value:.3g}" if abs(value) < 999.5 else f"{value:,.0f}"
