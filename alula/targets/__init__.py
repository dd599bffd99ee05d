"""Where a model runs: one file per runtime, all with the same interface."""

from __future__ import annotations

from alula.errors import TargetError
from alula.targets.onnxruntime import OnnxRuntime
from alula.targets.openvino import OpenVino
from alula.targets.target import Artifact, NodeTime, Opened, Target, Traits

__all__ = ["Artifact", "NodeTime", "OnnxRuntime", "OpenVino", "Opened", "Target", "Traits", "target_named"]


def target_named(name: str, threads: int = 0) -> Target:
    """The target of a name, with its default settings.

    Raises:
        TargetError: no target has that name, or ``threads`` is negative.
        AlulaError: the runtime is not installed; the message holds the install command.
    """
    kinds: dict[str, type[OnnxRuntime | OpenVino]] = {"onnxruntime": OnnxRuntime, "openvino": OpenVino}
    if name not in kinds:
        raise TargetError(f"target must be one of {', '.join(sorted(kinds))}, got {name!r}")
    return kinds[name](threads=threads)
