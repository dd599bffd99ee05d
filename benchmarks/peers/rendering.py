"""The results of the comparison as a page of tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmarks.peers.verdicts import Comparison, Result, compare_with, fastest_within, is_measured, most_accurate
from benchmarks.peers.verdicts import our_choice as choice_of

HEADER = """\
| what | score | drop (95 %) | cosine | MB | ms, 1 thread | speed | ms, 2 threads | speed | made in |
|---|---|---|---|---|---|---|---|---|---|"""


def render(results: Mapping[str, Any]) -> str:
    """The whole page in Markdown."""
    lines = [
        "# Post-training quantization: alula and the other tools",
        "",
        INTRODUCTION,
        "",
        *_summary(results["rows"]),
    ]
    for key, row in results["rows"].items():
        lines += ["", f"## {row['title']}: {key.split(' on ')[1]}", "", *_describe_row(row)]
    return "\n".join(lines) + "\n"


INTRODUCTION = """\
Written by `benchmarks/ptq_peers.py`. All of one table were calibrated on the same inputs, scored on the same held-out
examples, which no search saw, and timed in turns in one process, one input at a time. Speed is the original's time by
the candidate's, median over rounds with a 95 % interval. Drop is paired, with a normal 95 % interval; cosine is between
all outputs on 64 inputs and the original's. `made in` is quantizing alone for the other tools, and the whole search for
alula (of its last run, where one was resumed). *Fastest within the drop* is of the other tools' results that lose at
most what alula was allowed to;
*most accurate* is of those that are faster than the original. Ahead, level or behind: scores by the paired interval,
speeds by whether the intervals touch and the medians are 2 % apart."""


def _summary(rows: Mapping[str, Any]) -> Iterator[str]:
    """One line for each table: alula's choice against the fastest of the others, and against the most accurate."""
    yield "| network | runtime | alula's choice | speed, 1 thread | against the fastest | against the most accurate |"
    yield "|---|---|---|---|---|---|"
    for key, row in rows.items():
        ours = choice_of(row["contenders"])
        if ours is not None:
            network, runtime = key.split(" on ")
            words = [_in_short(ours, peer) for peer in _best_peers(row).values()]
            speed = f"{ours['threads']['1']['latency_ratio']['value']:.2f}x"
            yield "| " + " | ".join([network, runtime, ours["name"].removeprefix("alula: "), speed, *words]) + " |"


def _best_peers(row: Mapping[str, Any]) -> dict[str, Result | None]:
    contenders = row["contenders"]
    return {
        "fastest within the drop": fastest_within(contenders, row["largest_drop"]),
        "most accurate": most_accurate(contenders),
    }


def _in_short(ours: Result, peer: Result | None) -> str:
    if peer is None:
        return "there is none"
    comparison = compare_with(ours, peer)
    speeds = " and ".join(speed.word for speed in comparison.speeds.values())
    return f"{'yes' if comparison.holds else 'no'}: score {comparison.accuracy}, speed {speeds}"


def _describe_row(row: Mapping[str, Any]) -> Iterator[str]:
    contenders = row["contenders"]
    yield HEADER
    yield from (_table_row(one) for one in contenders if is_measured(one))
    yield ""
    yield from _verdict(row)
    yield from (f"- {one['name']} gave nothing: {one['failure']}" for one in contenders if not is_measured(one))
    yield from (f"- {name}: {note}" for name, note in _notes(contenders))
    yield ""
    settings = ", ".join(f"{key}: {value}" for key, value in row["target"].items() if key != "threads")
    runs = next(one["runs_per_example"] for one in contenders if is_measured(one))
    calibrated = f"Calibrated on {row['calibration_examples']} examples; one example is {runs} run(s) of the network."
    yield f"{settings}. {calibrated} {_machine(row)}"


def _table_row(one: Result) -> str:
    mean, low, high = one["drop"]
    drop = "" if one["maker"] == "float" else f"{mean:+.4f} ({low:+.4f} to {high:+.4f})"
    times = [cell for threads in ("1", "2") for cell in _times(one["threads"][threads])]
    name = f"**{one['name']}**" if one.get("chosen") else one["name"]
    cells = [name, f"{one['score']:.4f}", drop, f"{one['cosine']:.4f}", f"{one['size_bytes'] / 1e6:.2f}", *times]
    return "| " + " | ".join([*cells, _made_in(one)]) + " |"


def _times(found: Mapping[str, Any]) -> tuple[str, str]:
    ratio = found["latency_ratio"]
    speed = f"{ratio['value']:.2f}x ({ratio['low']:.2f} to {ratio['high']:.2f})"
    return f"{found['latency_p50_ms']['value']:.3g}", speed


def _made_in(one: Result) -> str:
    seconds = one.get("search_seconds", one.get("quantizing_seconds"))
    return "" if seconds is None else f"{seconds:.0f} s"


def _verdict(row: Mapping[str, Any]) -> Iterator[str]:
    contenders = row["contenders"]
    ours = choice_of(contenders)
    if ours is None:
        yield "- alula chose nothing"
        return
    for words, peer in _best_peers(row).items():
        yield f"- {words}: " + ("no other tool's" if peer is None else _in_words(compare_with(ours, peer)))
    if ours.get("distance"):
        yield f"- alula: {ours['distance']}"


def _in_words(comparison: Comparison) -> str:
    mean, low, high = comparison.score_difference
    speeds = ", ".join(
        f"{speed.word} at {threads} thread(s) ({speed.ratio:.2f}x)" for threads, speed in comparison.speeds.items()
    )
    accuracy = f"{comparison.accuracy} in score ({mean:+.4f}, {low:+.4f} to {high:+.4f})"
    return f"{comparison.peer}. Against it, alula's choice is {accuracy}, and in speed {speeds}."


def _notes(contenders: Sequence[Result]) -> list[tuple[str, str]]:
    """Each note once, with the names that it is about."""
    names: dict[str, list[str]] = {}
    for one in contenders:
        for note in one.get("notes", ()):
            names.setdefault(note, []).append(one["name"])
    return [("; ".join(found), note) for note, found in names.items()]


def _machine(row: Mapping[str, Any]) -> str:
    machine, packages = row["machine"], dict(row["versions"])
    for one in row["contenders"]:
        packages |= {name: version for name, version in one.get("tool_versions", {}).items() if name == "nncf"}
    tools = ", ".join(f"{name} {version}" for name, version in packages.items())
    return f"{machine['processor']}, {machine['cores']} cores ({machine['features']}); {tools}; commit {row['commit']}."
