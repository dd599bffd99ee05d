"""Whatever stands for calibration data, as feeds: arrays by input name, one call after another."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from alula.errors import DataError
from alula.graph.model import TensorSpec

Feeds: TypeAlias = Mapping[str, np.ndarray]

ROWS = 16  # of arrays at a time, where the batch is free
_log = logging.getLogger(__name__)


def feeds_of(specs: Sequence[TensorSpec], data: Any) -> Iterator[Feeds]:
    """Feeds for a graph, one after another.

    Args:
        specs: the inputs of the graph.
        data: the rows of one array (graphs of one input), or of an array per input name; or an iterable of feeds, of
            arrays, or of pairs of either and labels, which are left out (a ``DataLoader``).

    Raises:
        DataError: it is none of these, or rows are missing.
    """
    if _is_array(data):
        data = {_only(specs): data}
    if isinstance(data, Mapping):
        yield from _rows(specs, data)
        return
    if isinstance(data, str | bytes | Path) or not isinstance(data, Iterable):
        raise DataError(f"calibration data is arrays, or an iterable of feeds by input name, got {type(data).__name__}")
    for item in data:
        yield _feed(specs, item)


def _feed(specs: Sequence[TensorSpec], item: Any) -> Feeds:
    if isinstance(item, tuple | list) and len(item) == 2 and (isinstance(item[0], Mapping) or _is_array(item[0])):
        item = item[0]  # and labels
    if isinstance(item, tuple | list) and len(item) == 1 and (isinstance(item[0], Mapping) or _is_array(item[0])):
        (item,) = item
    if _is_array(item):
        item = {_only(specs): item}
    if not isinstance(item, Mapping):
        raise DataError(f"a feed is a mapping from input names to arrays, got {type(item).__name__}")
    return _finite(_named(specs, item))


def _named(specs: Sequence[TensorSpec], arrays: Mapping[str, Any]) -> Feeds:
    """The arrays without labels that stand beside them."""
    names = {spec.name for spec in specs}
    return {name: _as_array(array, name) for name, array in arrays.items() if name in names or name != "labels"}


def _as_array(thing: Any, name: str) -> np.ndarray:
    thing = thing.detach() if hasattr(thing, "detach") else thing
    try:
        return np.asarray(thing)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"input {name!r} cannot be made an array: {error}") from error


def _finite(feed: Feeds) -> Feeds:
    """The feed itself, if all its numbers are finite."""
    for name, array in feed.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise DataError(f"calibration data must be finite, input {name!r} holds NaN or infinity; remove these rows")
    return feed


def _is_array(thing: Any) -> bool:
    return hasattr(thing, "__array__") or hasattr(thing, "__array_interface__")


def _only(specs: Sequence[TensorSpec]) -> str:
    if len(specs) != 1:
        raise DataError(f"one array is for models of one input, this has {', '.join(spec.name for spec in specs)}")
    return specs[0].name


def _rows(specs: Sequence[TensorSpec], arrays: Mapping[str, Any]) -> Iterator[Feeds]:
    """Slices along axis 0, as long as the graph wants them; what is left over is dropped, and the log says so."""
    arrays = _named(specs, arrays)
    lengths = {name: array.shape[0] if np.ndim(array) else 0 for name, array in arrays.items()}
    count = min(lengths.values(), default=0)
    if len(set(lengths.values())) > 1:
        raise DataError(f"calibration arrays must have the same number of rows, got {lengths}")
    wanted = [spec.shape[0] for spec in specs if spec.shape and isinstance(spec.shape[0], int)]
    size = wanted[0] if wanted else min(ROWS, count)
    if count == 0 or count < size:
        raise DataError(f"calibration data has {count} rows, the model takes {max(size, 1)} at a time; give more")
    if wanted and count % size:
        _log.warning("calibration: %d rows left over, the model takes %d at a time", count % size, size)
    for start in range(0, count - (size - 1 if wanted else 0), size):
        yield _finite({name: array[start : start + size] for name, array in arrays.items()})
