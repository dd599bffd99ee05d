"""Training data as batches: rows of arrays in an order that the seed alone decides, or the user's own loader."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np
import torch
from torch import Tensor

from alula.errors import DataError, at
from alula.examples import hash_all
from alula.graph.model import Model, TensorSpec
from alula.task_rows import as_array, check_finite, fit_inputs, fixed_batch
from alula.training.training import Augment

Inputs: TypeAlias = dict[str, Tensor]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Batch:
    """Inputs by name, and labels where there are any.

    Attributes:
        rows: numbers of the rows, where they stay the same every epoch.
        draw: what decides the batch beside the data: the epoch, its number in it, and which of how many shares of it.
    """

    inputs: Inputs
    labels: Tensor | None
    rows: np.ndarray | None = None
    draw: tuple[int, int, int, int] | None = None

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values())))


class Batches(Protocol):
    """What gives the batches of an epoch, the same ones whenever it is asked."""

    def __len__(self) -> int: ...

    def identity(self) -> str:
        """Fingerprint of the data and of how they are drawn."""
        ...

    def epoch(self, number: int, *, start: int = 0, share: tuple[int, int] = (0, 1)) -> Iterator[Batch]:
        """The batches of an epoch from number ``start`` on; of each, one of so many equal shares."""
        ...


class RowBatches:
    """Batches of rows of arrays, shuffled anew each epoch; what is left over of an epoch is dropped.

    Attributes:
        augments: whether inputs differ from epoch to epoch.
    """

    def __init__(
        self,
        arrays: Mapping[str, np.ndarray],
        labels: np.ndarray | None,
        batch_size: int,
        *,
        seed: int = 0,
        augment: Augment | None = None,
    ) -> None:
        self.arrays, self.labels = dict(arrays), labels
        self.rows = len(next(iter(self.arrays.values())))
        self.batch_size = min(batch_size, self.rows)
        self.augments = augment is not None
        self._seed, self._augment = seed, augment

    def __len__(self) -> int:
        return self.rows // self.batch_size

    def epoch(self, number: int, *, start: int = 0, share: tuple[int, int] = (0, 1)) -> Iterator[Batch]:
        """The batches of an epoch.

        Args:
            number: of the epoch.
            start: batches to leave out at its beginning.
            share: which of how many equal shares of each batch to give: one for each process.
        """
        order = np.random.default_rng([self._seed, number]).permutation(self.rows)
        mine, shares = share
        for index in range(start, len(self)):
            rows = order[index * self.batch_size : (index + 1) * self.batch_size]
            rows = rows[: len(rows) // shares * shares]  # each process the same number
            yield self._batch(np.sort(rows[mine::shares]), (number, index, mine, shares))

    def identity(self) -> str:
        """Fingerprint of the data and of how they are drawn."""
        return hash_all([self.arrays, self.labels, self.batch_size, self._seed, self._augment])

    def _batch(self, rows: np.ndarray, draw: tuple[int, int, int, int]) -> Batch:
        inputs = {name: torch.from_numpy(array[rows]) for name, array in self.arrays.items()}
        if self._augment is not None:
            generator = torch.Generator()
            generator.manual_seed(_mixed(self._seed, *draw[:3]))
            try:
                inputs = _augmented(self._augment, inputs, generator)
            except Exception as error:
                error.add_note(f"in augment, batch {draw[1]} of epoch {draw[0]}")
                raise
        labels = None if self.labels is None else torch.from_numpy(self.labels[rows])
        return Batch(inputs, labels, None if self.augments else rows, draw)


class LoaderBatches:
    """Batches of the user's own: anything that can be walked through once an epoch, such as a ``DataLoader``."""

    augments = True  # nothing is known of what it does to its rows

    def __init__(self, loader: Iterable[Any], specs: Sequence[TensorSpec], *, seed: int = 0) -> None:
        if not isinstance(loader, Iterable) or isinstance(loader, str | bytes):
            raise DataError(f"data are arrays, or an iterable of batches; got {type(loader).__name__}")
        with torch.random.fork_rng():  # a DataLoader draws when it is asked for its rows
            walked_once = iter(loader) is loader
        if walked_once:
            raise DataError("a generator can be walked through once, training does it every epoch; give a list of "
                            "batches, a DataLoader, or arrays")  # fmt: skip
        self._loader, self._specs, self._seed = loader, tuple(specs), seed

    def __len__(self) -> int:
        try:
            length = len(self._loader)  # type: ignore[arg-type]
        except TypeError:
            raise DataError("the loader tells no length, which the learning rate needs; give it a __len__") from None
        if length < 1:
            raise DataError(f"the loader tells a length of {length} batches; it must be the number that it gives")
        return length

    def identity(self) -> str:
        """Fingerprint of what is known of the data: how many batches there are, and the first."""
        with torch.random.fork_rng():
            first = next(self.epoch(0), None)
        content = [] if first is None else [*first.inputs.values(), *([] if first.labels is None else [first.labels])]
        return hash_all([len(self), self._seed, [tensor.numpy() for tensor in content]])

    def epoch(self, number: int, *, start: int = 0, share: tuple[int, int] = (0, 1)) -> Iterator[Batch]:
        """The batches of an epoch; those before ``start`` are drawn and left out, so that the others stay the same."""
        torch.manual_seed(_mixed(self._seed, number))
        set_epoch = getattr(getattr(self._loader, "sampler", None), "set_epoch", None)
        if set_epoch is not None:
            set_epoch(number)
        drawn = iter(self._loader)
        for index in itertools.count():
            torch.manual_seed(_mixed(self._seed, number, index))  # of datasets that draw as they give their rows
            try:
                item = next(drawn)
            except StopIteration:
                return
            if index >= start:
                with at(f"batch {index} of epoch {number}"):
                    yield _shared(_batch_of(item, self._specs), share)


def batches_of(
    model: Model,
    data: Any,
    labels: Any = None,
    *,
    batch_size: int = 64,
    seed: int = 0,
    augment: Augment | None = None,
) -> Batches:
    """Training data for a model.

    Args:
        model: what is trained; its inputs name what the data must hold.
        data: rows of one array, or of an array for each input; or an iterable of batches (a ``DataLoader``), each a
            mapping from input names to tensors, with ``labels`` among them if there are any, or a pair of inputs and
            labels, or one tensor.
        labels: one per row, where the data are arrays.
        batch_size: rows of a step; a graph of fixed batch takes its own.
        seed: of the order.
        augment: changes the inputs of each batch at random.

    Raises:
        DataError: the data do not fit the model, hold NaN or infinity, or are empty.
    """
    if data is None:
        raise DataError("there are no data; give rows as arrays, or an iterable of batches")
    if not _is_arrays(data):
        if labels is not None or augment is not None:
            raise DataError(
                f"data is a {type(data).__name__}, so an iterable of batches: labels and augmentation are its own; "
                "give rows as arrays"
            )
        return LoaderBatches(data, model.inputs, seed=seed)
    with at("training data"):
        arrays = fit_inputs(model, data)
        for name, given in arrays.items():
            if given.dtype.kind not in "iubf":
                raise DataError(f"input {name!r} is of {given.dtype}; turn text into numbers")
    rows = len(next(iter(arrays.values())))
    array = None
    if labels is not None:
        array = as_array(labels, "labels")
        if len(array) != rows:
            raise DataError(f"there must be one label per row, got {len(array)} labels for {rows} rows")
        if array.dtype.kind not in "iubf":
            raise DataError(
                f"labels must be numbers, got {array.ravel().tolist()[0]!r}; give the number of each class, from 0 on"
            )
        check_finite(array, "labels")
        array = array.astype(np.int64) if array.dtype.kind in "iub" else array.astype(np.float32)
    fixed = fixed_batch(model)
    if fixed is not None and fixed != batch_size:
        _log.warning("the graph takes %d rows in every call, so that is the batch size, not %d", fixed, batch_size)
    if fixed is not None and rows < fixed:
        raise DataError(f"the graph takes {fixed} rows in every call, the data has {rows}; give more")
    return RowBatches(arrays, array, fixed or batch_size, seed=seed, augment=augment)


def _mixed(*numbers: int) -> int:
    """A seed that all of some numbers decide."""
    return int(np.random.default_rng(numbers).integers(2**62))


def _is_arrays(data: Any) -> bool:
    if isinstance(data, Mapping):
        return True
    return hasattr(data, "__array__") or hasattr(data, "__array_interface__")


def _batch_of(item: Any, specs: Sequence[TensorSpec]) -> Batch:
    labels, names = None, [spec.name for spec in specs]
    if isinstance(item, Mapping):
        inputs = {str(name): value for name, value in item.items() if name != "labels"}
        labels = item.get("labels")
    elif isinstance(item, tuple | list) and len(item) == 2 and isinstance(item[0], Mapping):
        inputs, labels = dict(item[0]), item[1]
    elif isinstance(item, tuple | list) and len(item) == 2 and len(names) == 1:
        inputs, labels = {names[0]: item[0]}, item[1]
    elif isinstance(item, tuple | list) and len(item) == 2 and isinstance(item[0], tuple | list):
        inputs, labels = dict(zip(names, item[0], strict=False)), item[1]
    elif len(names) == 1 and not isinstance(item, tuple | list):
        inputs = {names[0]: item}
    else:
        raise DataError(f"a batch is a mapping of {list(names)} and labels, or (inputs, labels); got {_kind(item)}")
    if set(inputs) != set(names):
        raise DataError(f"a batch must hold the inputs {sorted(names)}, got {sorted(inputs)}")
    made = Batch({spec.name: _fitting(_as_tensor(inputs[spec.name], spec), spec) for spec in specs},
                 None if labels is None else labels_tensor(labels))  # fmt: skip
    for name, tensor in made.inputs.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise DataError(f"input {name!r} holds NaN or infinity; remove or repair these rows")
    return made


def _as_tensor(values: Any, spec: TensorSpec) -> Tensor:
    try:
        return torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError):
        raise DataError(f"the model wants {spec}, got {_kind(values)}; give numbers") from None


def labels_tensor(labels: Any) -> Tensor:
    """The labels of a batch.

    Raises:
        DataError: they are no numbers.
    """
    try:
        found = torch.as_tensor(labels)
        return found if found.is_floating_point() else found.long()
    except (TypeError, ValueError, RuntimeError):
        first = next(iter(labels), labels) if isinstance(labels, Iterable) else labels
        raise DataError(f"labels must be numbers, got {first!r}; give the number of each class, from 0 on") from None


def _fitting(tensor: Tensor, spec: TensorSpec) -> Tensor:
    """A tensor in the type that the graph wants, if that is a matter of precision only.

    Raises:
        DataError: its type or shape is another, or it has no rows.
    """
    wanted = torch.from_numpy(np.empty(0, spec.dtype)).dtype if spec.dtype.name != "bfloat16" else torch.bfloat16
    if tensor.is_floating_point() == wanted.is_floating_point and tensor.dtype != torch.bool:
        tensor = tensor.to(wanted)
    lengths = spec.shape or tensor.shape
    fits = len(lengths) == tensor.ndim and all(
        not isinstance(want, int) or want == have for want, have in zip(lengths, tensor.shape, strict=True)
    )
    if tensor.dtype != wanted or not fits or 0 in tensor.shape[:1]:
        kind = str(tensor.dtype).removeprefix("torch.")
        raise DataError(f"the model wants {spec}, with one row at least; got {kind}{list(tensor.shape)}")
    return tensor


def _shared(batch: Batch, share: tuple[int, int]) -> Batch:
    mine, shares = share
    if shares == 1:
        return batch
    kept = len(batch) // shares * shares
    inputs = {name: tensor[mine:kept:shares] for name, tensor in batch.inputs.items()}
    return Batch(inputs, None if batch.labels is None else batch.labels[mine:kept:shares])


def _augmented(augment: Augment, inputs: Inputs, generator: torch.Generator) -> Inputs:
    changed = augment(inputs, generator)
    if not isinstance(changed, Mapping) or set(changed) != set(inputs):
        raise DataError(f"augment must give the inputs {sorted(inputs)} back, got {_kind(changed)}")
    for name, tensor in changed.items():
        if not isinstance(tensor, Tensor) or tensor.shape != inputs[name].shape or tensor.dtype != inputs[name].dtype:
            raise DataError(f"augment must keep shape and type of {name!r}, got {_kind(tensor)}")
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise DataError(f"augment gave NaN or infinity in {name!r}")
    return dict(changed)


def _kind(thing: Any) -> str:
    if isinstance(thing, Mapping):
        return f"a mapping of {sorted(map(str, thing))}"
    if isinstance(thing, Tensor):
        return f"{str(thing.dtype).removeprefix('torch.')}{list(thing.shape)}"
    if isinstance(thing, tuple | list):
        return f"{type(thing).__name__} of {len(thing)}"
    return type(thing).__name__
