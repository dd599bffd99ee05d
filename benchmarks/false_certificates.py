"""How often a certificate is false, when a search picked the candidate.

20 candidates, whose errors are correlated, all lose slightly more than max_drop in truth, so every certificate is a
false one. Each run draws new examples, takes the candidates in order of their measured score on the selection half, and
certifies them on the held-out half. The naive practice, certifying on the examples that chose, is run beside it. A last
row has a candidate that loses nothing, to show that the test does certify what deserves it.

Run: python benchmarks/false_certificates.py (1 to 2 minutes); writes results/false_certificates.json and .md beside it.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import time
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import scipy
from scipy.special import ndtr

from alula.measurement.certificate import attempt_alpha
from alula.numerics.bounds import betting_upper_bound, clopper_pearson_interval, exact_paired_upper_bound

if TYPE_CHECKING:
    from collections.abc import Callable

Floats = npt.NDArray[np.float32]

RUNS = 2000
CANDIDATES = 20
EXAMPLES = 1000  # in each half
ALPHA = 0.05
EXCESS = 1.01  # true drop / max_drop
ATTEMPTS = 3


@dataclass(frozen=True)
class Row:
    """One way of certifying, and how often it certified."""

    scores: str
    practice: str
    true_drop: float
    max_drop: float
    promised: float | None  # false certificates at most; None where certificates are true or nothing is promised
    certified: int
    runs: int
    low: float  # Clopper-Pearson, 95 %
    high: float


def main() -> None:
    begin = time.perf_counter()
    rows = [*run_paired(), *run_bounded()]
    table = "| scores | practice | true drop | max drop | promised | certified | rate (95 % interval) |"
    table += "\n|---|---|---|---|---|---|---|\n" + "\n".join(map(format_row, rows)) + "\n"
    print(table)
    about = describe_machine() | {"seconds": round(time.perf_counter() - begin, 1)}
    write_results(rows, table, about)


def run_paired() -> list[Row]:
    """Right/wrong scores, accuracy 0.77, 5 % of the answers change."""
    max_drop = 0.01

    @cache
    def bound(lost: int, gained: int, alpha: float) -> float:
        return exact_paired_upper_bound(lost, gained, EXAMPLES, alpha)

    def certify(differences: Floats, alpha: float) -> bool:
        lost, gained = int((differences > 0).sum()), int((differences < 0).sum())
        return lost - gained < max_drop * EXAMPLES and bound(lost, gained, alpha) <= max_drop

    def draw(lost_rate: float, gained_rate: float) -> Callable[[np.random.Generator], Floats]:
        return lambda random: draw_paired(random, lost_rate, gained_rate)

    name = "0 or 1, exact paired"
    gained_rate = 0.02
    false = count(name, draw(gained_rate + EXCESS * max_drop, gained_rate), certify, max_drop, EXCESS * max_drop)
    return [*false, count_true(name, draw(0.01, 0.01), certify, max_drop)]


def run_bounded() -> list[Row]:
    """Scores in [0, 1] of mean 0.8; few examples lose, or gain, up to 60 % of what they have, or lack."""
    max_drop = 0.005

    def certify(differences: Floats, alpha: float) -> bool:
        mean = float(differences.mean())
        return mean < max_drop and betting_upper_bound(differences, -1, 1, alpha) <= max_drop

    def draw(lost_rate: float, gained_rate: float) -> Callable[[np.random.Generator], Floats]:
        return lambda random: draw_bounded(random, lost_rate, gained_rate)

    name = "in [0, 1], betting"
    gained_rate = 0.05
    lost_rate = (EXCESS * max_drop / 0.3 + 0.2 * gained_rate) / 0.8  # drop = 0.3 (0.8 lost - 0.2 gained)
    false = count(name, draw(lost_rate, gained_rate), certify, max_drop, EXCESS * max_drop)
    return [*false, count_true(name, draw(0.001, 0.004), certify, max_drop)]


def draw_events(random: np.random.Generator) -> Floats:
    """Uniform numbers, correlated between candidates by a shared difficulty of each example: (candidates, 2 n)."""
    shared = random.standard_normal(2 * EXAMPLES, dtype=np.float32)
    own = random.standard_normal((CANDIDATES, 2 * EXAMPLES), dtype=np.float32)
    return np.asarray(ndtr(np.sqrt(np.float32(0.5)) * (shared + own)), dtype=np.float32)


def draw_paired(random: np.random.Generator, lost_rate: float, gained_rate: float) -> Floats:
    events, right = draw_events(random), random.random(2 * EXAMPLES) < 0.77
    lost = right & (events < lost_rate / 0.77)
    gained = ~right & (events > 1 - gained_rate / 0.23)
    return lost.astype(np.float32) - gained.astype(np.float32)


def draw_bounded(random: np.random.Generator, lost_rate: float, gained_rate: float) -> Floats:
    events, score = draw_events(random), random.beta(8, 2, 2 * EXAMPLES).astype(np.float32)
    share = random.uniform(0, 0.6, events.shape).astype(np.float32)
    return np.where(events < lost_rate, score * share, 0) - np.where(events > 1 - gained_rate, (1 - score) * share, 0)


def count(
    scores: str,
    draw: Callable[[np.random.Generator], Floats],
    certify: Callable[[Floats, float], bool],
    max_drop: float,
    true_drop: float,
) -> list[Row]:
    """Count false certificates of each practice over the same runs."""
    practices: dict[str, float | None] = {
        "held out, the winner": ALPHA,
        f"held out, up to {ATTEMPTS} attempts": ALPHA,
        "naive: same bound, on the examples that chose": None,
        "naive: measured drop on the examples that chose": None,
    }
    certified = np.zeros(len(practices), dtype=int)
    random = np.random.default_rng(1)
    for _ in range(RUNS):
        differences = draw(random)  # (candidates, 2 n)
        chosen, held_out = differences[:, :EXAMPLES], differences[:, EXAMPLES:]
        order = np.argsort(chosen.mean(axis=1), kind="stable")
        alphas = [attempt_alpha(ALPHA, attempt) for attempt in range(1, ATTEMPTS + 1)]
        certified += [
            certify(held_out[order[0]], ALPHA),
            any(certify(held_out[k], alpha) for k, alpha in zip(order, alphas, strict=False)),
            certify(chosen[order[0]], ALPHA),
            float(chosen[order[0]].mean()) <= max_drop,
        ]
    return [
        Row(scores, practice, true_drop, max_drop, promised, k, RUNS, *clopper_pearson_interval(k, RUNS, 0.05))
        for (practice, promised), k in zip(practices.items(), certified.tolist(), strict=True)
    ]


def count_true(
    scores: str,
    draw: Callable[[np.random.Generator], Floats],
    certify: Callable[[Floats, float], bool],
    max_drop: float,
) -> Row:
    """Count certificates of candidates that lose nothing, fewer runs: it is only to show that the test has power."""
    runs, random = RUNS // 10, np.random.default_rng(2)
    certified = sum(certify(draw(random)[0, EXAMPLES:], ALPHA) for _ in range(runs))
    practice = "held out, a candidate that loses nothing"
    return Row(scores, practice, 0.0, max_drop, None, certified, runs, *clopper_pearson_interval(certified, runs, 0.05))


def format_row(row: Row) -> str:
    promised = "-" if row.promised is None else f"<= {100 * row.promised:g} %"
    rate = f"{100 * row.certified / row.runs:.2f} % ({100 * row.low:.2f} to {100 * row.high:.2f})"
    return (
        f"| {row.scores} | {row.practice} | {row.true_drop:.5f} | {row.max_drop:.3f} "
        f"| {promised} | {row.certified} of {row.runs} | {rate} |"
    )


def describe_machine() -> dict[str, object]:
    cpu = Path("/proc/cpuinfo")
    models = [line.split(":", 1)[1].strip() for line in cpu.read_text().splitlines() if "model name" in line]
    return {
        "commit": find_commit(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "scipy": scipy.__version__,
        "system": platform.system(),
        "cpu": models[0] if models else platform.machine(),
        "cores": os.cpu_count(),
    }


def find_commit() -> str:
    """The commit of this file, with a plus where the code differs from it."""

    def git(*words: str) -> str:
        done = subprocess.run(
            ["git", *words], check=False, capture_output=True, text=True, cwd=Path(__file__).parents[1]
        )
        return done.stdout.strip()

    commit = git("rev-parse", "--verify", "--quiet", "HEAD") or "none yet"
    return commit + ("+" if git("status", "--porcelain", "--", "alula/numerics", "benchmarks/*.py") else "")


def write_results(rows: list[Row], table: str, about: dict[str, object]) -> None:
    folder = Path(__file__).parent / "results"
    folder.mkdir(exist_ok=True)
    data = {"about": about, "rows": [asdict(row) for row in rows]}
    (folder / "false_certificates.json").write_text(json.dumps(data, indent=1) + "\n")
    note = (
        f"# False certificates\n\n{CANDIDATES} candidates, {EXAMPLES} examples in each half. In every row but the last "
        f"of each kind all candidates lose {EXCESS} times max drop in truth, so each certificate is a false one. That "
        "last row's candidate changes 2 % (exact paired) and 0.5 % (betting) of the scores.\n\n"
    )
    facts = ", ".join(f"{key} {value}" for key, value in about.items())
    (folder / "false_certificates.md").write_text(f"{note}{table}\n{facts}\n")


if __name__ == "__main__":
    main()
