"""Examples, whatever the user made them of: parts of a sequence, and fingerprints to tell them apart."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import types
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any, overload

import numpy as np

from alula.errors import DataError
from alula.graph.model import Model

REPEATS_BORNE = 0.1  # share of examples that may repeat others: real messages and measurements do, a little
_DEEPEST = 16  # levels of nesting that are looked into


class Subset(Sequence[Any]):
    """Some examples of a sequence, read when asked for."""

    def __init__(self, examples: Sequence[Any], indices: Sequence[int]) -> None:
        self._examples = examples
        self.indices = tuple(int(index) for index in indices)

    def __repr__(self) -> str:
        return f"Subset({len(self.indices)} of {len(self._examples)} examples)"

    def __len__(self) -> int:
        return len(self.indices)

    @overload
    def __getitem__(self, index: int) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> Subset: ...
    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return Subset(self._examples, self.indices[index])
        return self._examples[self.indices[index]]


def without_repeats(examples: Sequence[Any]) -> tuple[Sequence[Any], int]:
    """The examples, each content once, and how many repeated another; all of them where hardly any did.

    A statement about a population takes examples for independent draws. A message that was sent twice is two draws; a
    file that holds the same rows a hundred times is no hundred times as many.
    """
    first = {key: index for index, key in reversed(list(enumerate(keys_of(examples))))}
    repeated = len(examples) - len(first)
    if repeated <= REPEATS_BORNE * len(examples):
        return examples, 0
    return Subset(examples, sorted(first.values())), repeated


def keys_of(examples: Sequence[Any]) -> tuple[str, ...]:
    """One key per example, equal for examples of equal content.

    Examples of kinds that cannot be looked into count as equal only where they are one and the same object.
    """
    keys = []
    for index in range(len(examples)):
        example = read_example(examples, index)
        content = Content()
        content.add(example)
        key = content.hexdigest()
        if not content.complete:
            key += f"@{id(example)}" if isinstance(examples, list | tuple) else f"#{index}"
        keys.append(key)
    return tuple(keys)


def hash_all(values: Sequence[Any]) -> str:
    """Fingerprint of the content of all values, the same in every process."""
    content = Content()
    content.add([fingerprint(value) for value in values])
    return content.hexdigest()


def fingerprint(value: Any) -> str:
    """Fingerprint of the content of one value: arrays, numbers, text, containers and dataclasses of them, functions."""
    content = Content()
    content.add(value)
    return content.hexdigest()


def read_example(examples: Sequence[Any], index: int) -> Any:
    """One example.

    Raises:
        DataError: the user's sequence fails to give it.
    """
    try:
        return examples[index]
    except Exception as error:  # the sequence may be any code of the user's
        raise DataError(
            f"example {index} of {len(examples)} cannot be read: {type(error).__name__}: {error}"
        ) from error


class Content:
    """A hash over nested plain data.

    ``complete`` turns False where something of unknown kind stood, of which only the type was hashed.
    """

    def __init__(self) -> None:
        self._digest = hashlib.blake2b(digest_size=16)
        self.complete = True

    def hexdigest(self) -> str:
        """The hash so far."""
        return self._digest.hexdigest()

    def add(self, value: Any, depth: int = 0) -> None:
        """Hash one value, containers by what they hold."""
        if depth > _DEEPEST:
            self._add_unknown(value)
        elif value is None or isinstance(value, bool | int | float | complex | str | bytes):
            self._tag(type(value).__name__, repr(value).encode())
        elif isinstance(value, np.ndarray | np.generic):
            self._add_array(np.asarray(value), depth)
        elif isinstance(value, Mapping):
            self._tag("mapping", str(len(value)).encode())
            for key in sorted(value, key=repr):
                self.add((key, value[key]), depth + 1)
        elif isinstance(value, list | tuple | range):
            self._tag("sequence", str(len(value)).encode())
            for item in value:
                self.add(item, depth + 1)
        elif isinstance(value, AbstractSet):
            self._tag("set", repr(sorted(fingerprint(item) for item in value)).encode())
        else:
            self._add_object(value, depth)

    def _add_object(self, value: Any, depth: int) -> None:
        if isinstance(value, Path):
            state = value.stat() if value.is_file() else None
            self._tag("path", repr((str(value), state and (state.st_size, state.st_mtime_ns))).encode())
        elif isinstance(value, Model):
            self._tag("model", value.fingerprint.encode())
        elif isinstance(value, types.FunctionType | types.MethodType | functools.partial):
            self.add(_code_of(value), depth + 1)
        elif isinstance(value, types.CodeType):
            self.add((value.co_name, value.co_code, value.co_consts, value.co_names), depth + 1)
        elif hasattr(value, "__array__") or hasattr(value, "__array_interface__"):
            self._add_array(_plain_array(value), depth)
        elif dataclasses.is_dataclass(value) and not isinstance(value, type):
            self._tag("dataclass", type(value).__qualname__.encode())
            for field in dataclasses.fields(value):
                if field.compare:  # fields that equality ignores are no content
                    self.add((field.name, getattr(value, field.name)), depth + 1)
        elif vars(value) if hasattr(value, "__dict__") and not isinstance(value, type) else False:
            self._tag("object", type(value).__qualname__.encode())
            self.add(vars(value), depth + 1)
        else:
            self._add_unknown(value)

    def _add_array(self, array: np.ndarray | None, depth: int) -> None:
        if array is None:
            self._add_unknown(array)
        elif array.dtype.kind == "O":
            self._tag("objects", repr(array.shape).encode())
            self.add(array.ravel().tolist(), depth + 1)
        else:
            self._tag("array", f"{array.dtype}{array.shape}".encode())
            self._digest.update(np.ascontiguousarray(array).tobytes())

    def _add_unknown(self, value: Any) -> None:
        self.complete = False
        self._tag("unknown", f"{type(value).__module__}.{type(value).__qualname__}".encode())

    def _tag(self, kind: str, data: bytes) -> None:
        self._digest.update(f"{kind}:{len(data)}:".encode() + data)


def hash_code(function: Any) -> str:
    """Fingerprint of what a callable does, as far as its own code and plain settings tell; it is not called.

    What it closes over, and the functions it calls, are not looked into.
    """
    if isinstance(function, types.FunctionType | types.MethodType | functools.partial):
        return fingerprint(function)
    settings = {}
    if dataclasses.is_dataclass(function) and not isinstance(function, type):
        values = {field.name: getattr(function, field.name) for field in dataclasses.fields(function) if field.compare}
        settings = {name: value for name, value in values.items() if isinstance(value, str | int | float | tuple)}
    call = vars(type(function)).get("__call__")
    return fingerprint((type(function).__qualname__, call, settings))


def _plain_array(value: Any) -> np.ndarray | None:
    """The array that an image or tensor holds; None where it does not give it."""
    value = value.detach() if hasattr(value, "detach") else value
    try:
        return np.asarray(value)
    except (TypeError, ValueError, RuntimeError):  # a tensor on another device
        return None


def _code_of(function: Any) -> Any:
    if isinstance(function, functools.partial):
        return ("partial", function.func, function.args, function.keywords)
    function = getattr(function, "__func__", function)
    return (function.__qualname__, function.__code__, function.__defaults__, function.__kwdefaults__)
