"""The state of a run on disk: one safetensors file, which holds numbers and text and nothing that is executed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, TypeAlias

import torch
from torch import Tensor

from alula.errors import StorageError, require
from alula.storage import appearing, storing

FILE: Final = "training.safetensors"
_SEPARATOR: Final = "\n"  # stands in no name of a parameter

Tree: TypeAlias = Mapping[Any, Any]
"""Nested mappings whose leaves are tensors."""


def save_state(folder: Path, tensors: Tree, facts: Mapping[str, Any]) -> None:
    """Write tensors and plain facts; the file appears whole or not at all.

    Raises:
        StorageError: the disk is full, or the folder cannot be written.
    """
    save = require("safetensors.torch", "compress").save
    flat = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in _flatten(tensors)}
    with storing(f"make {folder}"):
        folder.mkdir(parents=True, exist_ok=True)
    with appearing(folder / FILE) as partial:
        partial.write_bytes(save(flat, metadata={"alula": json.dumps(facts), "content": content_of(flat)}))


def load_state(folder: Path) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """What :func:`save_state` wrote, or None where nothing was.

    Raises:
        StorageError: the file is damaged, or is no state of a training run.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    safe_open = require("safetensors", "compress").safe_open
    try:
        with safe_open(path, framework="pt") as file:
            facts = json.loads(file.metadata()["alula"])
            flat = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no mapping)
            if file.metadata().get("content") != content_of(flat):
                raise ValueError("its numbers are not those that were written")
    except Exception as error:  # damaged in any way
        raise StorageError(
            f"{path} cannot be read as the state of a training run ({error}); remove it, or choose another folder"
        ) from error
    return _unflatten(flat), facts


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors with a checksum; the file appears whole or not at all."""
    save = require("safetensors.torch", "compress").save_file
    with appearing(path) as partial:
        save(dict(tensors), partial, metadata={"content": content_of(tensors)})


def load_tensors(path: Path) -> dict[str, Tensor]:
    """What :func:`save_tensors` wrote.

    Raises:
        StorageError: the file is damaged.
    """
    safe_open = require("safetensors", "compress").safe_open
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no mapping)
            is_whole = (file.metadata() or {}).get("content") == content_of(tensors)
    except Exception as error:  # damaged in any way
        raise StorageError(f"it is damaged ({error})") from error
    if not is_whole:
        raise StorageError("it is damaged: its numbers are not those that were written")
    return tensors


def content_of(tensors: Mapping[str, Tensor]) -> str:
    """A checksum of tensors and their names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}{tensor.dtype}{list(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _flatten(tree: Tree, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Tensor]]:
    for key, value in tree.items():
        if isinstance(value, Tensor):
            yield _SEPARATOR.join((*path, str(key))), value
        elif isinstance(value, Mapping):
            yield from _flatten(value, (*path, str(key)))


def _unflatten(flat: Mapping[str, Tensor]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for name, tensor in flat.items():
        *folders, leaf = name.split(_SEPARATOR)
        place = tree
        for folder in folders:
            place = place.setdefault(folder, {})
        place[leaf] = tensor
    return tree


def optimiser_state(optimiser: torch.optim.Optimizer) -> dict[str, dict[str, Tensor]]:
    """The tensors that an optimiser keeps, by number of the parameter."""
    state = optimiser.state_dict()["state"]
    return {str(number): {name: value for name, value in kept.items() if isinstance(value, Tensor)}
            for number, kept in state.items()}  # fmt: skip


def restore_optimiser(optimiser: torch.optim.Optimizer, state: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Give an optimiser the tensors back that :func:`optimiser_state` took."""
    groups = optimiser.state_dict()["param_groups"]
    kept = {int(number): dict(tensors) for number, tensors in state.items()}
    optimiser.load_state_dict({"state": kept, "param_groups": groups})
