"""A task: what is compressed, on which data, and how it is scored."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np

from alula.errors import DataError, at
from alula.examples import Subset, hash_all, hash_code, keys_of
from alula.graph.model import Model, Note
from alula.numerics.metrics import AGREEMENT, COSINE, METRICS, Metric, metric_named
from alula.task_files import Source, read_arrays, run_task_file
from alula.task_rows import (
    OriginalOutputs,
    RowPredictor,
    Rows,
    RowScorer,
    as_array,
    class_count,
    fit_inputs,
    fit_labels,
    fixed_batch,
    is_probability,
    logger,
)

CALIBRATION_ROWS = 300  # taken from the evaluation data where no calibration data are given; at most a quarter of it
WITHOUT_LABELS = ("cosine", "agreement", "squared_error", "absolute_error")

_PART_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")  # becomes a file name


class Run(Protocol):
    """Runs one part of the candidate: feeds by input name in, outputs by name out."""

    def __call__(self, feeds: Mapping[str, np.ndarray], part: str = "model") -> dict[str, np.ndarray]:
        """Run once."""


Scorer = Callable[[Run, Sequence[Any]], np.ndarray]


@dataclass(frozen=True, eq=False)
class Task:
    """One network, or several named ones that ship together, their data, and how they are scored.

    Attributes:
        parts: graphs by name; one plain network is ``{"model": model}``.
        calibration: examples to calibrate with: the scorer is run on them, and what goes through each part is watched.
        evaluation: examples to score, split by seed into one half for selection and one for certification.
        scorer: from ``run`` and a list of examples to one score per example [n], or to parts [n, k].
        certification: examples kept for the certificate alone; then ``evaluation`` serves selection alone.
        name: what reports call the task.
        metric: what reports call the score.
        bounds: least and greatest score possible; None where it has no limit.
        higher_is_better: False for errors.
        aggregate: corpus metric from parts [n, k]; None: the score is the mean over examples.
        labelled: False where the score is agreement with the original; every result then says so.
        notes: what was decided for the user on the way.

    Raises:
        DataError: a part is no Model, data are empty or no sequence, or certification shares examples with evaluation.
    """

    parts: Mapping[str, Model]
    calibration: Sequence[Any]
    evaluation: Sequence[Any]
    scorer: Scorer
    certification: Sequence[Any] | None = None
    name: str = "task"
    metric: str = "score"
    bounds: tuple[float, float] | None = (0.0, 1.0)
    higher_is_better: bool = True
    aggregate: Callable[[np.ndarray], float] | None = None
    labelled: bool = True
    notes: tuple[Note, ...] = ()

    def __post_init__(self) -> None:
        _check_parts(self.parts)
        object.__setattr__(self, "parts", MappingProxyType(dict(self.parts)))
        _check_examples(self.calibration, "calibration", "a few hundred typical inputs")
        _check_examples(self.evaluation, "evaluation", "examples to score")
        _check_callable(self.scorer, "scorer(run, examples)")
        if self.aggregate is not None:
            _check_callable(self.aggregate, "aggregate(parts)")
        _check_bounds(self.bounds)
        if self.certification is not None:
            _check_examples(self.certification, "certification", "examples that the search never sees")
            self._check_disjoint()
        elif len(self.evaluation) < 2:
            raise DataError("evaluation needs at least two examples, one to select by and one to certify by; got 1")

    def splits(self, seed: int = 0) -> tuple[Sequence[Any], Sequence[Any]]:
        """Examples for selection and for certification; never an example of the same content in both.

        Raises:
            DataError: all evaluation examples are the same.
        """
        if self.certification is not None:
            return self.evaluation, self.certification
        contents = list(dict.fromkeys(self._evaluation_keys))
        if len(contents) < 2:
            raise DataError(f"all {len(self.evaluation)} evaluation examples are the same; give different ones")
        order = np.random.default_rng(seed).permutation(len(contents))
        kept = {contents[index] for index in order[: len(contents) // 2]}
        sides: tuple[list[int], list[int]] = ([], [])
        for index, key in enumerate(self._evaluation_keys):
            sides[key in kept].append(index)
        return Subset(self.evaluation, sides[False]), Subset(self.evaluation, sides[True])

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the graphs, the content of all examples, the metric, and the scorer's and aggregate's own code."""
        digest = hashlib.sha256()
        for name in sorted(self.parts):
            digest.update(f"{name}:{self.parts[name].fingerprint}\n".encode())
        for keys in (keys_of(self.calibration), self._evaluation_keys, self._certification_keys):
            digest.update(hash_all([_stable(key) for key in keys]).encode())
        digest.update(repr((self.metric, self.bounds, self.higher_is_better, self.labelled)).encode())
        digest.update(f"{hash_code(self.scorer)}{hash_code(self.aggregate)}".encode())
        return digest.hexdigest()

    @cached_property
    def _evaluation_keys(self) -> tuple[str, ...]:
        with at("evaluation"):
            return keys_of(self.evaluation)

    @cached_property
    def _certification_keys(self) -> tuple[str, ...]:
        with at("certification"):
            return keys_of(self.certification or ())

    def _check_disjoint(self) -> None:
        seen = {key: index for index, key in enumerate(self._evaluation_keys) if "#" not in key}
        shared = [(index, seen[key]) for index, key in enumerate(self._certification_keys) if key in seen]
        if shared:
            raise DataError(
                f"certification must share no example with evaluation, or it proves nothing; {len(shared)} "
                f"in both, the first being certification {shared[0][0]} and evaluation {shared[0][1]}; remove them"
            )


def task_from_arrays(
    model: Model | str | Path,
    inputs: Mapping[str, Any] | Any,
    labels: Any = None,
    *,
    metric: str | Metric | None = None,
    calibration: Mapping[str, Any] | Any = None,
    output: str | None = None,
    batch_size: int = 32,
    name: str = "task",
) -> Task:
    """The task of a plain network: every row of the arrays is an example.

    Args:
        model: the network, or the path of its file.
        inputs: one array [rows, ...] by input name, or the array itself for a single input. Whole numbers are cast to
            the model's integer type where every value survives, floats to its float type.
        labels: what the output is compared with [rows, ...]; without, agreement with the original is the score.
        metric: name or Metric; the default is accuracy for whole labels and outputs [rows, classes], and cosine
            without labels.
        calibration: inputs to calibrate with; the default takes up to 300 rows (at most a quarter) out of ``inputs``.
        output: name of the output to score; the default is the first.
        batch_size: rows per call, where the graph leaves that free.
        name: what reports call the task.

    Raises:
        DataError: names, types, shapes or numbers of rows do not fit, values are not finite, labels are of no class,
            or no metric is given and none is obvious.
    """
    model = _opened(model)
    arrays = fit_inputs(model, inputs)
    predictor = _predictor(model, output, batch_size)
    labels = None if labels is None else as_array(labels, "labels")
    with at("trying the first rows"):
        probe = predictor(model.run, Rows(arrays)[: predictor.batch_size])
    metric = _choose_metric(metric, labels, probe.shape)
    predictor, rows = _fit_scoring(model, predictor, metric, Rows(arrays, labels, indexed=labels is None), probe)
    calibration_rows, evaluation_rows = _calibration_and_evaluation(model, rows, calibration)
    return Task(
        parts={"model": model},
        calibration=calibration_rows,
        evaluation=evaluation_rows,
        scorer=RowScorer(predictor, metric, OriginalOutputs(model, predictor, rows) if labels is None else None),
        name=name,
        metric=metric.name,
        bounds=metric.bounds,
        higher_is_better=metric.higher_is_better,
        aggregate=metric.aggregate,
        labelled=labels is not None,
        notes=_notes_on(model, predictor, len(rows) if calibration is None else 0, len(calibration_rows)),
    )


def open_task(
    path: str | Path,
    *,
    data: Source | None = None,
    labels: Any = None,
    metric: str | Metric | None = None,
    calibration: Source | None = None,
    output: str | None = None,
    batch_size: int = 32,
) -> Task:
    """Open a Python file with a function ``task()``, or an ``.onnx`` file with files of arrays.

    Args:
        path: the Python file or the model.
        data: ``.npz``, ``.npy``, a folder of ``.npy``, or several files; arrays named as the inputs, and ``labels``.
        labels: a file of labels, or the labels, where ``data`` holds none.
        metric: as in :func:`task_from_arrays`, and so are ``output`` and ``batch_size``.
        calibration: files of inputs to calibrate with.
        output: name of the output to score.
        batch_size: rows per call.

    Raises:
        DataError: a file is missing, damaged, pickled or does not fit, or the user's Python raises (it says where).
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path} does not exist; give a task file (.py), or a model (.onnx) with data")
    if path.suffix == ".py":
        if any(value is not None for value in (data, labels, metric, calibration, output)):
            raise DataError(f"{path} brings its own data, labels and metric; leave these options out")
        return _checked(run_task_file(path.resolve()), path)
    if data is None:
        raise DataError(f"{path} needs data to be scored on; give an .npz with the arrays of its inputs, and labels")
    model = _opened(path)
    arrays, found_labels = _arrays_for(model, data)
    if labels is not None and found_labels is not None:
        raise DataError("labels are given twice, in the data and beside them; leave one out")
    return task_from_arrays(
        model,
        arrays,
        _read_labels(labels) if found_labels is None else found_labels,
        metric=metric,
        calibration=None if calibration is None else _arrays_for(model, calibration)[0],
        output=output,
        batch_size=batch_size,
        name=path.stem,
    )


def _opened(model: Model | str | Path) -> Model:
    if isinstance(model, Model):
        return model
    if not isinstance(model, str | Path):
        raise DataError(
            f"model must be a Model or the path of an .onnx file, got {type(model).__name__}; "
            "export_module(module, example) makes a Model of a PyTorch module"
        )
    from alula.graph.load import load_model

    return load_model(Path(model))


def _checked(task: Any, path: Path) -> Task:
    if not isinstance(task, Task):
        raise DataError(f"task() in {path} must return a Task, got {type(task).__name__}")
    return task


def _arrays_for(model: Model, source: Source) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
    """Inputs, and labels if there are any; a lone array is the input of a model that has one, whatever its name."""
    arrays = read_arrays(source)
    wanted = [spec.name for spec in model.inputs]
    labels = None if "labels" in wanted else arrays.pop("labels", None)
    lone_file = len(wanted) == len(arrays) == 1 and not str(source).endswith(".npz")
    return (dict(zip(wanted, arrays.values(), strict=True)) if lone_file else arrays), labels


def _read_labels(labels: Any) -> Any:
    if not isinstance(labels, str | Path):
        return labels
    arrays = read_arrays(labels)
    if len(arrays) != 1 and "labels" not in arrays:
        raise DataError(f"{labels} must hold one array, or one named labels; got {sorted(arrays)}")
    return arrays["labels"] if "labels" in arrays else next(iter(arrays.values()))


def _predictor(model: Model, output: str | None, batch_size: int) -> RowPredictor:
    names = [spec.name for spec in model.outputs]
    if output is not None and output not in names:
        raise DataError(f"the model has no output {output!r}; it has {', '.join(names)}")
    if not isinstance(batch_size, int) or batch_size < 1:
        raise DataError(f"batch_size must be a whole number of at least 1, got {batch_size!r}")
    fixed = fixed_batch(model)
    return RowPredictor(output or names[0], fixed or batch_size, fixed=fixed is not None)


def _choose_metric(metric: str | Metric | None, labels: np.ndarray | None, shape: tuple[int, ...]) -> Metric:
    metric = metric_named(metric) if isinstance(metric, str) else metric
    if labels is None:
        if metric is not None and METRICS.get(metric.name) is metric and metric.name not in WITHOUT_LABELS:
            raise DataError(
                f"{metric.name} needs labels; without, the score is agreement with the original, by "
                f"{', '.join(WITHOUT_LABELS)}"
            )
        return metric or COSINE
    if metric is AGREEMENT:
        raise DataError("agreement compares with the original and takes no labels; leave them out, or use accuracy")
    if metric is not None:
        return metric
    if labels.dtype.kind in "iub" and labels.ndim == 1 and len(shape) == 2 and shape[1] > 1:
        return METRICS["accuracy"]
    raise DataError(
        f"say which metric compares outputs {['rows', *shape[1:]]} with labels {labels.dtype}{list(labels.shape)}; "
        f"known are {', '.join(METRICS)}"
    )


def _fit_scoring(
    model: Model, predictor: RowPredictor, metric: Metric, rows: Rows, probe: np.ndarray
) -> tuple[RowPredictor, Rows]:
    """The predictor with its threshold, if one column is to be read as a class, and the rows with checked labels."""
    labels = rows.labels
    classes = class_count(metric, probe.shape, 1 if labels is None else labels.ndim)
    by_class = metric.class_axis is not None or (metric is AGREEMENT and 1 in (probe.ndim, probe.shape[-1]))
    if by_class and classes == 1:
        predictor = replace(predictor, threshold=0.5 if is_probability(model, predictor.output) else 0.0)
    if labels is not None:
        labels = fit_labels(labels, len(rows), metric, max(classes, 2))
        rows = Rows(rows.arrays, labels)
        with at("comparing the first rows"):  # shapes that do not fit are said here, not in the search
            metric.per_example(probe, labels[: len(probe)])
    return predictor, rows


def _notes_on(model: Model, predictor: RowPredictor, shared_rows: int, calibration_rows: int) -> tuple[Note, ...]:
    notes = []
    if predictor.threshold is not None:
        kind = "a probability" if predictor.threshold else "a logit"
        text = f"one column, read as {kind}: class 1 where it is above {predictor.threshold:g}"
        notes.append(Note(f"output {predictor.output!r}", text))
    if shared_rows:
        text = f"no calibration data given: {calibration_rows} of {shared_rows} rows serve it and are not scored"
        notes.append(Note("calibration", text))
    others = [spec.name for spec in model.outputs if spec.name != predictor.output]
    if others:
        text = f"it alone is scored; of what becomes of {', '.join(others)} the score and the certificate tell nothing"
        notes.append(Note(f"output {predictor.output!r}", text))
    for note in notes:
        logger.info("%s", note)
    return tuple(notes)


def _calibration_and_evaluation(model: Model, rows: Rows, calibration: Any) -> tuple[Sequence[Any], Sequence[Any]]:
    """Calibration rows carry no labels: nothing is compared while ranges are watched."""
    if calibration is not None:
        with at("calibration"):
            return Rows(fit_inputs(model, calibration)), rows
    if len(rows) < 3:
        raise DataError(f"{len(rows)} rows are too few to calibrate, select and certify by; give at least 3")
    count = max(1, min(CALIBRATION_ROWS, len(rows) // 4))
    order = np.random.default_rng(0).permutation(len(rows))
    unlabelled = Rows(rows.arrays)
    return Subset(unlabelled, np.sort(order[:count]).tolist()), Subset(rows, np.sort(order[count:]).tolist())


def _stable(key: str) -> str:
    """A key without what holds in one process only."""
    return key.partition("@")[0].partition("#")[0]


def _check_parts(parts: Any) -> None:
    if not isinstance(parts, Mapping) or not parts:
        raise DataError('parts must map names to models, such as {"model": model}')
    for name, model in parts.items():
        if not isinstance(name, str) or not _PART_NAME.fullmatch(name):
            raise DataError(f"a part's name becomes a file name: letters, digits, '_', '-' and '.'; got {name!r}")
        if not isinstance(model, Model):
            raise DataError(f"part {name!r} must be a Model, got {type(model).__name__}; open a file with load_model")
    if len({name.lower() for name in parts}) < len(parts):
        raise DataError(f"names of parts must differ by more than case, got {sorted(parts)}")


def _check_examples(examples: Any, what: str, give: str) -> None:
    if isinstance(examples, str | bytes | Mapping) or not (
        hasattr(examples, "__len__") and hasattr(examples, "__getitem__")
    ):
        raise DataError(f"{what} must be a list or another sequence of examples, got {type(examples).__name__}")
    if len(examples) == 0:
        raise DataError(f"{what} is empty; give {give}")


def _check_callable(function: Any, what: str) -> None:
    if not callable(function):
        raise DataError(f"{what} must be a function, got {type(function).__name__}")


def _check_bounds(bounds: Any) -> None:
    if bounds is None:
        return
    fits = isinstance(bounds, tuple | list) and len(bounds) == 2 and all(math.isfinite(bound) for bound in bounds)
    if not fits or not bounds[0] < bounds[1]:
        raise DataError(f"bounds must be (least, greatest) score, or None where it has no limit; got {bounds!r}")
