"""Tensors in a module under the names of initializers, where a module can hold such a name."""

from __future__ import annotations

from torch import Tensor, nn


def free_path(root: nn.Module, name: str) -> str:
    """A path that the module can hold: the name, with no part empty, and marked where it is taken.

    >>> free_path(nn.Module(), "layer1.0.weight"), free_path(nn.Module(), "a..forward")
    ('layer1.0.weight', 'a._.forward_')
    """
    parts = [part or "_" for part in name.split(".")]
    for index in range(len(parts)):
        last = index == len(parts) - 1
        while not _is_free(root, parts[: index + 1], last=last):
            parts[index] += "_"
    return ".".join(parts)


def _is_free(root: nn.Module, parts: list[str], *, last: bool) -> bool:
    """Whether a tensor (at the end of a path) or a module (on its way) can stand there."""
    owner = root
    for part in parts[:-1]:
        children = dict(owner.named_children())
        owner = children.get(part, nn.Module())
    known = dict(owner.named_children())
    return not last if parts[-1] in known else not hasattr(owner, parts[-1])


def hold(root: nn.Module, path: str, tensor: Tensor, *, train: bool, persistent: bool = True) -> None:
    """Make a tensor a parameter or a buffer of the module, at a free path."""
    *folders, leaf = path.split(".")
    owner = root
    for folder in folders:
        if folder not in dict(owner.named_children()):
            owner.add_module(folder, nn.Module())
        owner = owner.get_submodule(folder)
    if train:
        owner.register_parameter(leaf, nn.Parameter(tensor))
    else:
        owner.register_buffer(leaf, tensor, persistent=persistent)
