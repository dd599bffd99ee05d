"""Rows of arrays as examples, and the scorer of a plain network: rows in, outputs out, compared with labels."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, overload

import numpy as np

from alula.errors import DataError
from alula.graph.ending import ending_of
from alula.graph.model import Model, TensorSpec
from alula.numerics.metrics import Metric

logger = logging.getLogger(__name__)

CACHE_LIMIT_BYTES = 256 * 2**20  # of the original's outputs, kept to compare candidates with
RunPart = Callable[..., dict[str, np.ndarray]]


@dataclass(frozen=True, slots=True)
class Row:
    """One example of a plain network: its row of every input, and what its output is compared with."""

    feeds: Mapping[str, np.ndarray]
    label: Any = None
    index: int = field(default=-1, compare=False)  # where the original's output for it is kept; -1: nowhere


class Rows(Sequence[Row]):
    """Rows of arrays with one first axis, made when asked for and sharing the arrays' memory."""

    def __init__(
        self, arrays: Mapping[str, np.ndarray], labels: np.ndarray | None = None, *, indexed: bool = False
    ) -> None:
        self.arrays = dict(arrays)
        self.labels = labels
        self._indexed = indexed

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values())))

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> list[Row]: ...
    def __getitem__(self, index: int | slice) -> Row | list[Row]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        feeds = {name: array[index] for name, array in self.arrays.items()}
        return Row(feeds, None if self.labels is None else self.labels[index], index if self._indexed else -1)


@dataclass(frozen=True)
class RowPredictor:
    """Runs rows through one part in batches and gives one output [rows, ...].

    Attributes:
        output: name of the output to take.
        batch_size: rows per call.
        fixed: the graph takes exactly ``batch_size`` rows; a short batch is filled up by repeating its last row.
        threshold: taken off the output, where it is one column that is to be read as class 1 above this value.
    """

    output: str
    batch_size: int
    fixed: bool = False
    threshold: float | None = None

    def __call__(self, run: RunPart, rows: Sequence[Row]) -> np.ndarray:
        """The output of all rows.

        Raises:
            DataError: the output has no row axis, or batches give outputs of different shapes.
        """
        batches = [self._predict(run, rows[i : i + self.batch_size]) for i in range(0, len(rows), self.batch_size)]
        shapes = {batch.shape[1:] for batch in batches}
        if len(shapes) > 1:
            raise DataError(f"output {self.output!r} changes its shape from batch to batch: {sorted(shapes)}")
        return np.concatenate(batches)

    def _predict(self, run: RunPart, rows: Sequence[Row]) -> np.ndarray:
        filled = [*rows, *[rows[-1]] * (self.batch_size - len(rows))] if self.fixed else rows
        feeds = {name: np.stack([row.feeds[name] for row in filled]) for name in filled[0].feeds}
        output = run(feeds)[self.output]
        if output.ndim == 0 or len(output) != len(filled):
            raise DataError(
                f"output {self.output!r} must have one entry per row along its first axis, got "
                f"{list(output.shape)} for {len(filled)} rows; choose another output, or write a Task with a scorer"
            )
        return output[: len(rows)] - output.dtype.type(self.threshold) if self.threshold else output[: len(rows)]


class OriginalOutputs:
    """The original's outputs for rows of the evaluation data, to compare candidates with.

    Each is computed once and kept, while all together stay under 256 MB; otherwise they are computed anew each time.
    """

    def __init__(self, model: Model, predictor: RowPredictor, rows: Sequence[Row]) -> None:
        self._model, self._predictor, self._rows = model, predictor, rows
        self._kept: dict[int, np.ndarray] = {}
        self._keep: bool | None = None

    def of(self, indices: Sequence[int]) -> np.ndarray:
        """The outputs [len(indices), ...] of the rows at ``indices``."""
        missing = [index for index in dict.fromkeys(indices) if index not in self._kept]
        computed = self._compute(missing) if missing else {}
        return np.stack([computed[index] if index in computed else self._kept[index] for index in indices])

    def _compute(self, indices: Sequence[int]) -> dict[int, np.ndarray]:
        outputs = self._predictor(self._run, [self._rows[index] for index in indices])
        computed = dict(zip(indices, outputs, strict=True))
        if self._keep is None:
            self._keep = outputs[0].nbytes * len(self._rows) <= CACHE_LIMIT_BYTES
            if not self._keep:
                logger.info("the original's outputs need over 256 MB: they are computed anew for every candidate")
        if self._keep:
            self._kept.update((index, output.copy()) for index, output in computed.items())
        return computed

    def _run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return self._model.run(feeds)


@dataclass(frozen=True)
class RowScorer:
    """The scorer of a plain network.

    Rows of calibration data have nothing to be compared with; they score NaN.
    """

    predictor: RowPredictor
    metric: Metric
    references: OriginalOutputs | None = field(default=None, compare=False)

    def __call__(self, run: RunPart, rows: Sequence[Row]) -> np.ndarray:
        """Scores [n] or parts [n, k] of the rows."""
        outputs = self.predictor(run, rows)
        if any(row.label is None and (self.references is None or row.index < 0) for row in rows):
            return np.full(len(rows), np.nan)
        if self.references is not None:
            return self.metric.per_example(outputs, self.references.of([row.index for row in rows]))
        return self.metric.per_example(outputs, np.stack([row.label for row in rows]))


def fit_inputs(model: Model, inputs: Any) -> dict[str, np.ndarray]:
    """Arrays by input name, of the types that the model wants, rows along the first axis.

    Whole numbers are cast between integer types where every value survives, and floats to the model's precision.

    Raises:
        DataError: a name, type, shape or number of rows does not fit; NaN or Inf; no rows at all.
    """
    specs = {spec.name: spec for spec in model.inputs}
    if not isinstance(inputs, Mapping):
        if len(specs) != 1:
            raise DataError(f"the model has {len(specs)} inputs; give a mapping from {sorted(specs)} to arrays")
        inputs = {next(iter(specs)): inputs}
    if set(inputs) != set(specs):
        hint = "; labels are taken from an array named labels" if set(inputs) > set(specs) else ""
        raise DataError(f"the model wants the inputs {sorted(specs)}, got {sorted(map(str, inputs))}{hint}")
    arrays = {name: _fit(spec, inputs[name]) for name, spec in specs.items()}
    counts = {name: len(array) for name, array in arrays.items()}
    if len(set(counts.values())) > 1:
        raise DataError(f"all inputs must have the same number of rows, got {counts}")
    if 0 in counts.values():
        raise DataError("the inputs hold no rows; give at least one example")
    for name, array in arrays.items():
        check_finite(array, f"input {name!r}")
    return arrays


def fixed_batch(model: Model) -> int | None:
    """Rows that the graph takes in every call; None where that is free.

    Raises:
        DataError: the inputs fix different numbers of rows.
    """
    sizes = {spec.name: spec.shape[0] for spec in model.inputs if spec.shape and isinstance(spec.shape[0], int)}
    if len(set(sizes.values())) > 1:
        raise DataError(
            f"the inputs take different numbers of rows in every call, {sizes}; their first axes are not all examples: "
            "write a Task with your own scorer"
        )
    return next(iter(sizes.values()), None)


def check_finite(array: np.ndarray, what: str) -> None:
    """Raise DataError, with how many there are and the first row, where a float array holds NaN or Inf."""
    if array.dtype.kind != "f" and array.dtype.name != "bfloat16":
        return
    broken = ~np.isfinite(array).reshape(len(array), -1).all(axis=1)  # [rows]
    if broken.any():
        first = int(np.argmax(broken))
        values = int((~np.isfinite(array[broken])).sum())
        raise DataError(
            f"{what} holds NaN or Inf: {values} values in {int(broken.sum())} of {len(array)} rows, first in row "
            f"{first}; remove or repair these rows"
        )


def as_array(values: Any, what: str) -> np.ndarray:
    """``values`` as an array with a first axis.

    Raises:
        DataError: they are ragged, of Python objects, or a single number.
    """
    try:
        array = np.asarray(values)
    except (ValueError, TypeError, RuntimeError) as error:
        raise DataError(f"{what} cannot be made an array: {error}") from error
    if array.dtype.kind == "O" and not all(isinstance(item, str) for item in array.flat):
        raise DataError(f"{what} holds Python objects; give numbers or text")
    if array.ndim == 0:
        raise DataError(f"{what} must have one row per example along its first axis, got a single value")
    return array


def _fit(spec: TensorSpec, values: Any) -> np.ndarray:
    array = as_array(values, f"input {spec.name!r}")
    if spec.shape is not None:
        if not spec.shape:
            raise DataError(f"input {spec} has no row axis; write a Task with your own scorer that feeds it")
        fits = len(spec.shape) == array.ndim and all(
            not isinstance(want, int) or want == have
            for want, have in zip(spec.shape[1:], array.shape[1:], strict=True)
        )
        if not fits:
            raise DataError(f"the model wants {spec}, the first axis being rows; got {array.dtype}{list(array.shape)}")
    return _cast(array, spec)


def _cast(array: np.ndarray, spec: TensorSpec) -> np.ndarray:
    """The array in the model's type, where nothing but float precision is lost."""
    if array.dtype == spec.dtype:
        return array
    floats = array.dtype.kind == "f" and (spec.dtype.kind == "f" or spec.dtype.name == "bfloat16")
    whole = array.dtype.kind in "iub" and spec.dtype.kind in "iu"
    text = array.dtype.kind in "UO" and spec.dtype.kind == "O"
    if not (floats or whole or text):
        raise DataError(f"the model wants {spec}, got {array.dtype}; convert it as the model was trained to be fed")
    with np.errstate(over="ignore"):
        cast = array.astype(spec.dtype)
    if (whole and not np.array_equal(cast, array)) or (floats and np.isinf(cast).sum() != np.isinf(array).sum()):
        raise DataError(f"the model wants {spec}, and some values of the {array.dtype} array do not fit {spec.dtype}")
    return cast


def fit_labels(labels: Any, rows: int, metric: Metric, classes: int) -> np.ndarray:
    """Labels as an array [rows, ...]; whole class numbers below ``classes`` where the metric wants them.

    Raises:
        DataError: there are more or fewer labels than rows, they are no finite numbers, or no class has their number.
    """
    array = as_array(labels, "labels")
    if array.dtype.kind not in "iubf":
        raise DataError(f"labels must be numbers, got {array.dtype}; number the classes from 0")
    if len(array) != rows:
        raise DataError(f"there must be one label per row, got {len(array)} labels for {rows} rows")
    check_finite(array, "labels")
    if metric.class_axis is None:
        return array
    numbers = array.astype(np.int64)
    outside = ((numbers < 0) | (numbers >= classes) | (numbers != array)).reshape(rows, -1)
    if outside.any():
        row = int(np.argmax(outside.any(axis=1)))
        value = array.reshape(rows, -1)[row, int(np.argmax(outside[row]))]
        raise DataError(
            f"{metric.name} needs labels that are class numbers from 0 to {classes - 1}, as many as the output has; "
            f"got {value} in row {row}"
        )
    return numbers


def class_count(metric: Metric, shape: Sequence[int], label_axes: int) -> int:
    """Classes that outputs of this shape [rows, ...] tell apart; 1 where they are a single logit, or no classes."""
    if metric.class_axis is None or len(shape) < 2 or (metric.class_axis == 1 and len(shape) == label_axes):
        return 1
    return shape[metric.class_axis]


def is_probability(model: Model, output: str) -> bool:
    """Whether the output comes out of a Sigmoid, possibly reshaped or cast after it."""
    return ending_of(model, output) == "Sigmoid"
