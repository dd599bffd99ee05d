"""The errors alula raises.

Every message states the rule, the values that broke it, the fix, and the name of the layer, tensor or file.
Inner code raises the bare fact; the code that knows the name adds it once, with :func:`at`.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType


class AlulaError(Exception):
    """Base of everything alula raises on purpose."""


class ModelError(AlulaError):
    """The model file or graph is missing, damaged, hostile, or of a kind that alula does not take."""


class DataError(AlulaError):
    """Calibration or evaluation data, labels, or a scorer's result do not fit the task."""


class RecipeError(AlulaError):
    """A technique, pattern or setting is impossible for this model."""


class TargetError(AlulaError):
    """A runtime is missing, refuses the model, or computes something else than the graph."""


class BudgetError(AlulaError):
    """The budget contradicts itself."""


class StorageError(AlulaError):
    """A folder or file cannot be written, or is in use by another run."""


@contextmanager
def at(place: str) -> Iterator[None]:
    """Prefix the message of an AlulaError raised inside with the place it happened at.

    >>> with at("layer 'conv1'"):
    ...     raise ModelError("weights must be finite, got 3 NaN")
    Traceback (most recent call last):
    alula.errors.ModelError: layer 'conv1': weights must be finite, got 3 NaN
    """
    try:
        yield
    except AlulaError as error:
        raise type(error)(f"{place}: {error}") from error


def require(module: str, extra: str) -> ModuleType:
    """Import an optional dependency, or say how to install it.

    Raises:
        AlulaError: the module is not installed; the message holds the install command.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not module.startswith(error.name):
            raise
        raise AlulaError(
            f"this needs the package '{error.name}', which is not installed; run: pip install 'alula[{extra}]'"
        ) from error
