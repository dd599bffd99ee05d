"""Settings are of the kinds that they are annotated with, and whoever gives another is told so in words."""

from __future__ import annotations

import collections.abc
import dataclasses
import numbers
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeAlias, Union, get_args, get_origin, get_type_hints

import numpy as np

from alula.errors import RecipeError

Patterns: TypeAlias = tuple[str, ...] | list[str]
"""What patterns of names are given as; one name by itself would be read letter by letter."""

_WORDS = {
    bool: "True or False", int: "a whole number", float: "a number", str: "text", NoneType: "None", Path: "a path",
    collections.abc.Callable: "a function",
}  # fmt: skip


def check_settings(settings: Any) -> None:
    """Check each field of a dataclass against its annotation; a list that stands for a tuple becomes one.

    A number of NumPy's becomes one of Python's, which can be written down.

    Raises:
        RecipeError: a value is of another kind, or none of the words that the setting takes.
    """
    owner: Any = type(settings)
    for name, hint in _hints(owner).items():
        value = getattr(settings, name)
        if isinstance(value, list) and _takes_tuple(hint):
            value = tuple(value)
            object.__setattr__(settings, name, value)
        if isinstance(value, np.number | np.bool_):
            value = value.item()
            object.__setattr__(settings, name, value)
        if not fits(value, hint):
            raise RecipeError(f"{owner.__name__}: {name} must be {in_words(hint)}, got {shown(value)}")


def check_rules(settings: Any, rules: Iterable[tuple[str, str, bool]]) -> None:
    """Check what annotations cannot say: the name of a setting, the rule in words, and whether it holds.

    Raises:
        RecipeError: a rule does not hold.
    """
    for name, rule, holds in rules:
        if not holds:
            raise RecipeError(f"{name} must be {rule}, got {getattr(settings, name)!r}")


def expect(name: str, value: Any, hint: Any) -> None:
    """Check an argument against what it should be.

    >>> expect("goal", 2.0, Path | None)
    Traceback (most recent call last):
    alula.errors.RecipeError: goal must be a path or None, got 2.0

    Raises:
        RecipeError: it is of another kind.
    """
    if not fits(value, hint):
        raise RecipeError(f"{name} must be {in_words(hint)}, got {shown(value)}")


def fits(value: Any, hint: Any) -> bool:
    """Whether a value is of the annotated kind; whole numbers are numbers too, and True is none.

    >>> [fits(value, int | None) for value in (3, np.int64(3), None, 3.0, True)]
    [True, True, True, False, False]
    >>> [fits(value, tuple[str, ...]) for value in (("a", "b"), (), ("a", 1), "ab")]
    [True, True, False, False]
    """
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return any(fits(value, part) for part in parts)
    if origin is Literal:
        return any(type(value) is type(part) and value == part for part in parts)
    if origin is tuple:
        return isinstance(value, tuple) and _all_fit(value, parts)
    return hint is Any or _is_of(value, origin or hint)


def _is_of(value: Any, kind: Any) -> bool:
    if kind in (int, float):
        number = numbers.Integral if kind is int else numbers.Real
        return isinstance(value, number) and not isinstance(value, bool | np.bool_)
    if kind is collections.abc.Callable:
        return callable(value)
    if getattr(kind, "_is_protocol", False):
        return not isinstance(value, type) and all(hasattr(value, name) for name in _members(kind))
    return isinstance(value, kind) if isinstance(kind, type) else True


def in_words(hint: Any) -> str:
    """An annotation as a reader would say it.

    >>> in_words(Literal["cosine", "linear"] | None), in_words(tuple[str, ...])
    ("'cosine', 'linear' or None", 'a tuple of text')
    """
    said = list(dict.fromkeys(_said(hint)))
    return " or ".join([", ".join(said[:-1]), said[-1]] if len(said) > 1 else said)


def shown(value: Any) -> str:
    """A value, short enough for a message."""
    text = f"the class {value.__name__}" if isinstance(value, type) else repr(value)
    return text if len(text) <= 80 and "\n" not in text else f"a {type(value).__name__}"


def _said(hint: Any) -> list[str]:
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return [words for part in parts for words in _said(part)]
    if origin is Literal:
        return [repr(part) for part in parts]
    if origin is tuple:
        return [
            f"a tuple of {_bare(parts[0])}"
            if parts[1:] == (...,)
            else "a tuple of " + " and ".join(map(in_words, parts))
        ]
    kind = origin or hint
    name = getattr(kind, "__name__", str(kind))
    return [_WORDS.get(kind, f"{'an' if name[0] in 'AEIOU' else 'a'} {name}")]


def _bare(hint: Any) -> str:
    return in_words(hint).removeprefix("a ").removeprefix("an ")


def _all_fit(values: tuple[Any, ...], parts: tuple[Any, ...]) -> bool:
    if parts[1:] == (...,):
        return all(fits(value, parts[0]) for value in values)
    return len(values) == len(parts) and all(map(fits, values, parts))


def _takes_tuple(hint: Any) -> bool:
    return get_origin(hint) is tuple or any(get_origin(part) is tuple for part in get_args(hint))


@cache
def _hints(owner: type[Any]) -> dict[str, Any]:
    hints = get_type_hints(owner)
    return {field.name: hints[field.name] for field in dataclasses.fields(owner)}


@cache
def _members(protocol: type[Any]) -> tuple[str, ...]:
    return tuple(name for name, member in vars(protocol).items() if callable(member) and not name.startswith("_"))
