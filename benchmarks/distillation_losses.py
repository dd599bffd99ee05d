"""Each loss of distillation beside cross-entropy alone and beside plain soft labels, all with the same number of steps.

    python benchmarks/distillation_losses.py [--networks mnist spoken cifar] [--methods ...] [--seeds 5] [--again]

For each network a teacher is trained once on all training data, and a student a fifth of its size by each method: from
the same first weights, on the same rows in the same order. The teacher of CIFAR-10 is what cifar_reference.py
--depths 56 writes. Nothing is selected: what the last step leaves is scored once, on the test data. A row that is
done is kept and not done again. Writes results/distillation_losses_<network>.json and distillation_losses.md.

Weights, where a method has several losses, are those of its source: soft labels Tian et al. 2020, "Contrastive
representation distillation", section 5 (0.1 and 0.9); standardised Sun et al. 2024, section 5 (0.1 and 9, temperature
2); hints Romero et al. 2015, section 3 (hidden values first, soft labels then); attention maps Zagoruyko & Komodakis
2017, section 4.1.1 (half of 1,000 over the places of a map); the others leave cross-entropy as it is.
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
import torch
from scipy import stats
from torch import nn

import alula
from alula.graph.shapes import infer_shapes
from alula.measurement import describe_machine, versions
from alula.training.losses import CrossEntropy, Decoupled, Loss, Mix, SoftLabels, SquaredError
from alula.training.relations import AttentionMaps, Hidden, Relational
from alula.training.training import Augment
from benchmarks.networks import cifar, mnist, spoken
from benchmarks.peers.commit import read_commit

RESULTS = Path(__file__).parent / "results"
WORK = Path("out/benchmarks/distillation")
CONFIDENCE: Final = 0.95
log = logging.getLogger("benchmarks.distillation_losses")

Row: TypeAlias = dict[str, Any]
Shares: TypeAlias = tuple[tuple[float, Loss], ...]
"""Losses one after another, each with its share of the steps."""


@dataclass(frozen=True)
class Case:
    """Two networks, what they learn from, and for how long.

    Attributes:
        title: as the page calls it.
        student: makes the small network with new weights.
        teacher: makes the large one; None: it is in the results of cifar_reference.py.
        data: inputs and labels of ``train`` and ``test``.
        rows: of the training data that the student sees.
        augment: of the inputs of both.
        learning: of the student.
        teaching: of the teacher.
        seeds: how many at most.
    """

    title: str
    student: Callable[[], nn.Module]
    teacher: Callable[[], nn.Module] | None
    data: Callable[[str], tuple[np.ndarray, np.ndarray]]
    rows: int
    augment: Augment
    learning: alula.Training
    teaching: alula.Training
    seeds: int = 5


ADAM: Final = alula.Training(batch_size=64, learning_rate=0.01, precision="float32")
SGD: Final = alula.Training(
    batch_size=128, optimiser="sgd", learning_rate=0.1, weight_decay=5e-4, precision="float32", epochs=10
)
CASES: Final = {
    "mnist": Case(
        "MNIST, 1,000 labels", mnist.student, mnist.teacher, mnist.images, 1_000, mnist.shift,
        learning=replace(ADAM, epochs=40), teaching=replace(ADAM, epochs=4, batch_size=128),
    ),
    "spoken": Case(
        "spoken digits", spoken.student, spoken.network, spoken.clips, 2_000, spoken.shift_and_mask,
        learning=replace(ADAM, epochs=20), teaching=replace(ADAM, epochs=40),
    ),
    "cifar": Case(
        "CIFAR-10, JPEG", partial(cifar.ResNet, 8), None, cifar.images, 50_000, cifar.shift_and_flip,
        learning=SGD, teaching=SGD, seeds=1,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Places:
    """Tensors that are compared, as pairs of a name in the student and one in the teacher.

    Attributes:
        maps: the last rectified maps of each size, the largest first.
        sizes: places (height times width) of the maps of each pair.
        features: what the last layer reads.
    """

    maps: tuple[tuple[str, str], ...]
    sizes: tuple[int, ...]
    features: tuple[str, str]


def _with_labels(loss: Loss) -> Loss:
    return Mix(((1, CrossEntropy()), (1, loss)))


def _attention(places: Places) -> Loss:
    pairs = zip(places.maps, places.sizes, strict=True)
    return Mix(((1, CrossEntropy()), *((500 / size, AttentionMaps((pair,))) for pair, size in pairs)))


SOFT: Final = Mix(((0.1, CrossEntropy()), (0.9, SoftLabels(temperature=4))))
STANDARDISED: Final = Mix(((0.1, CrossEntropy()), (9, SoftLabels(temperature=2, standardise=True))))
ALONE, PLAIN = "cross-entropy", "soft labels, cross-entropy"  # what the others are compared with
METHODS: Final[dict[str, Callable[[Places], Shares]]] = {
    ALONE: lambda _: ((1, CrossEntropy()),),
    PLAIN: lambda _: ((1, SOFT),),
    "soft labels": lambda _: ((1, SoftLabels(temperature=4)),),
    "standardised, cross-entropy": lambda _: ((1, STANDARDISED),),
    "decoupled, cross-entropy": lambda _: ((1, _with_labels(Decoupled(alpha=1, beta=8, temperature=4))),),
    "squared error of logits": lambda _: ((1, SquaredError(against="teacher")),),
    "hints, then soft labels": lambda places: ((0.25, Hidden((places.maps[len(places.maps) // 2],))), (0.75, SOFT)),
    "attention maps, cross-entropy": lambda places: ((1, _attention(places)),),
    "relational, cross-entropy": lambda places: ((1, _with_labels(Relational((places.features,)))),),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=float, help="of the students and the teachers: for a smoke run")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--again", action="store_true", help="do rows anew that are done")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--work", type=Path, default=WORK, help="where the state of trainings is kept")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    logging.getLogger("alula").setLevel(logging.WARNING)
    torch.set_num_threads(arguments.threads)
    commit_at_start()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name in arguments.networks:
        case = CASES[name] if arguments.epochs is None else _shortened(CASES[name], arguments.epochs)
        work = arguments.work / name
        path = arguments.out / f"distillation_losses_{name}.json"
        kept = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        wanted = [(method, seed) for seed in range(min(arguments.seeds, case.seeds)) for method in arguments.methods]
        if arguments.again:
            kept["rows"] = without_rows(kept, wanted)
        for result in measure(case, work, kept, wanted):
            path.write_text(json.dumps({**result, **_origin(arguments.threads)}, indent=1) + "\n", encoding="utf-8")
            write_page(arguments.out)


def _shortened(case: Case, epochs: float) -> Case:
    return replace(case, learning=replace(case.learning, epochs=epochs), teaching=replace(case.teaching, epochs=epochs))


def _origin(threads: int) -> dict[str, Any]:
    return {"threads": threads, "machine": describe_machine(), "versions": versions()}


def without_rows(result: Row, wanted: Sequence[tuple[str, int]]) -> dict[str, Row]:
    """The rows of a result that are not to be done anew."""
    anew = {row_key(*one) for one in wanted}
    return {key: row for key, row in result.get("rows", {}).items() if key not in anew}


def row_key(method: str, seed: int) -> str:
    """A row's name in the results."""
    return f"{method} / {seed}"


def measure(case: Case, work: Path, kept: Row, wanted: Sequence[tuple[str, int]]) -> Iterator[Row]:
    """The results of a case, after the teacher and after each student that was not among what is kept."""
    result: Row = {
        "title": case.title,
        "learning": _settings(case.learning),
        "rows_seen": case.rows,
        "rows": {},
        **kept,
    }
    teacher = teacher_of(case, work)
    if "teacher" not in result:
        inputs, labels = case.data("test")
        result["teacher"] = {**_size(teacher), **scored(teacher, case)}
        result["student"] = _size(alula.export_module(case.student(), torch.from_numpy(inputs[:2])))
        result["test_examples"] = len(labels)
        yield result
    for method, seed in wanted:
        key = row_key(method, seed)
        if key not in result["rows"]:
            result["rows"][key] = train_student(case, teacher, method, seed, work / f"{method}-{seed}")
            log.info("%s, %s: %.4f", case.title, key, result["rows"][key]["score"])
            yield result


def teacher_of(case: Case, work: Path) -> alula.Model:
    """The teacher, from its file if there is one."""
    if case.teacher is None:
        path = RESULTS / "models" / "resnet56-cifar10-jpeg.onnx"
        if not path.is_file():
            raise SystemExit(f"no {path}: run benchmarks/cifar_reference.py --depths 56 first")
        return alula.load_model(path)
    path = work / "teacher.onnx"
    if not path.is_file():
        torch.manual_seed(0)
        inputs, labels = case.data("train")
        first = alula.export_module(case.teacher(), torch.from_numpy(inputs[:2]))
        settings = replace(case.teaching, augment=case.augment)
        trained = alula.finetune(first, inputs, labels, training=settings, out=work / "teacher")
        trained.save(path)
    return alula.load_model(path)


def train_student(case: Case, teacher: alula.Model, method: str, seed: int, folder: Path) -> Row:
    """A row: one student, trained by one method."""
    started = time.monotonic()
    inputs, labels = (array[: case.rows] for array in case.data("train"))
    torch.manual_seed(seed)
    student = alula.export_module(case.student(), torch.from_numpy(inputs[:2]))
    settings = replace(case.learning, augment=case.augment, seed=seed)
    stages = [
        alula.Stage(loss, replace(settings, epochs=settings.epochs * share))
        for share, loss in METHODS[method](places_of(student, teacher))
    ]
    if method == ALONE:
        student = alula.finetune(student, inputs, labels, training=stages, out=folder)
    else:
        student = alula.distill(student, teacher, inputs, labels, training=stages, out=folder)
    shutil.rmtree(folder)  # the state of a row that is done
    return {**scored(student, case), "seconds": round(time.monotonic() - started), "commit": commit_at_start()}


def places_of(student: alula.Model, teacher: alula.Model) -> Places:
    """What is compared inside two networks of one kind."""
    ours, theirs = maps_by_size(student), maps_by_size(teacher)
    sizes = [size for size in ours if size in theirs]
    return Places(
        maps=tuple((ours[size], theirs[size]) for size in sizes),
        sizes=tuple(height * width for height, width in sizes),
        features=(student.layers()[-1].input, teacher.layers()[-1].input),
    )


def maps_by_size(model: alula.Model) -> dict[tuple[int, int], str]:
    """The last rectified maps of each height and width, by name, in the order of the graph."""
    shapes = infer_shapes(model)
    found: dict[tuple[int, int], str] = {}
    for node in model.graph:
        name = str(node.outputs[0].name)
        shape = shapes[name]
        if node.op_type == "Relu" and shape is not None and len(shape) == 4:
            found[shape[2], shape[3]] = name
    return found


def scored(model: alula.Model, case: Case) -> Row:
    """The share of test examples that a network has right; which it has wrong, where one seed must do."""
    inputs, labels = case.data("test")
    (spec,) = model.inputs
    answers = [next(iter(model.run({spec.name: part}).values())).argmax(-1) for part in _chunks(inputs)]
    right = np.concatenate(answers) == labels
    return {"score": float(right.mean()), **({"wrong": np.flatnonzero(~right).tolist()} if case.seeds == 1 else {})}


@cache
def commit_at_start() -> str:
    """The commit of the code that runs, which is that of when it was loaded."""
    return read_commit()


def _chunks(inputs: np.ndarray, rows: int = 500) -> Iterator[np.ndarray]:
    return (inputs[start : start + rows] for start in range(0, len(inputs), rows))


def _size(model: alula.Model) -> Row:
    cost = alula.measure_cost(model)
    return {"parameters": cost.parameters, "macs": cost.macs}


def _settings(training: alula.Training) -> Row:
    names = ("epochs", "batch_size", "optimiser", "learning_rate", "weight_decay", "schedule", "precision")
    return {name: getattr(training, name) for name in names}


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean, and the ends of its t-interval; infinite ends for a single value.

    >>> tuple(round(end, 3) for end in interval([1, 2, 3]))
    (2.0, -0.484, 4.484)
    """
    mean = float(np.mean(values))
    if len(values) < 2:
        return mean, -np.inf, np.inf
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1) * stats.sem(values))
    return mean, mean - half, mean + half


def differences(result: Row, method: str, base: str) -> list[float]:
    """How much better a method is than another: by seed, or by test example where a row tells which are wrong."""
    rows = result["rows"]
    keys = [(row_key(method, seed), row_key(base, seed)) for seed in range(len(rows))]
    pairs = [(rows[ours], rows[theirs]) for ours, theirs in keys if ours in rows and theirs in rows]
    if not all("wrong" in row for pair in pairs for row in pair):
        return [ours["score"] - theirs["score"] for ours, theirs in pairs]
    gains = np.zeros((len(pairs), result["test_examples"]))
    for gain, (ours, theirs) in zip(gains, pairs, strict=True):
        gain[theirs["wrong"]] += 1
        gain[ours["wrong"]] -= 1
    return [float(one) for one in gains.ravel()]


HEAD: Final = """# What each distillation loss gives

Written by `benchmarks/distillation_losses.py`: students trained from the same first weights on the same rows in the
same order, with the same number of steps. The score is the share of test examples that are right after the last step,
in points of a hundred, with 95 % t-intervals over the seeds. Differences are paired: over the seeds, or over the test
examples where there is one seed. Teachers are trained on all training data.
"""


def write_page(folder: Path) -> None:
    """The page of all results in a folder."""
    found = [folder / f"distillation_losses_{name}.json" for name in CASES]
    results = [json.loads(path.read_text(encoding="utf-8")) for path in found if path.is_file()]
    (folder / "distillation_losses.md").write_text(render(results), encoding="utf-8")


def render(results: Sequence[Row]) -> str:
    """The page of results."""
    return "\n".join([HEAD, *map(_table, results)])


def _table(result: Row) -> str:
    teacher, student, commits = result["teacher"], result["student"], {row["commit"] for row in result["rows"].values()}
    settings = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in result["learning"].items())
    known = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    lines = [line for method in METHODS for line in _line(result, method)]
    return f"""## {result["title"]}

Teacher: {100 * teacher["score"]:.2f} points, {teacher["parameters"]:,} parameters, {teacher["macs"]:,} MACs.
Student: {student["parameters"]:,} parameters, {student["macs"]:,} MACs; trained on {result["rows_seen"]:,} rows.
Settings of the student: {settings}.
Scored on {result["test_examples"]:,} examples.

| method | seeds | score | against {ALONE} | against {PLAIN} |
|---|---|---|---|---|
{chr(10).join(lines)}

{result["machine"].get("processor", "")}, {result["threads"]} threads; {known}; commit {", ".join(sorted(commits))}.
"""


def _line(result: Row, method: str) -> Iterator[str]:
    scores = [row["score"] for key, row in result["rows"].items() if key.rpartition(" / ")[0] == method]
    if scores:
        compared = ("" if method == base else _points(differences(result, method, base)) for base in (ALONE, PLAIN))
        yield f"| {method} | {len(scores)} | {_points(scores)} | {' | '.join(compared)} |"


def _points(values: Sequence[float]) -> str:
    """Mean and interval in points of a hundred."""
    if not values:
        return ""
    mean, low, high = (100 * end for end in interval(values))
    return f"{mean:.2f}" + (f" ({low:.2f} to {high:.2f})" if np.isfinite(low) else "")


if __name__ == "__main__":
    main()
