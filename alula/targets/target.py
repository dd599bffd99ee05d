"""What a target is: a runtime on this machine that builds an artifact from a model and opens it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

from alula.errors import StorageError, TargetError
from alula.targets.processor import read_processor

if TYPE_CHECKING:
    import numpy as np

    from alula.graph.model import Model, TensorSpec

FEW_THREADS: Final = 8  # that any machine bears


@dataclass(frozen=True, slots=True)
class Traits:
    """What a runtime executes fast on this processor, so that the search proposes nothing else.

    ``static_int8`` and ``dynamic_int8`` name the operators that gain from int8 with ranges known beforehand, and with
    ranges found at each call; ``static_products``: products of two activations gain too. ``weight_bits_safe`` is the
    width at which int8 weights cannot saturate this processor's accumulator. ``notes`` say why, each with the trap that
    was measured.
    """

    activation_signed: bool
    static_int8: frozenset[str]
    dynamic_int8: frozenset[str]
    weight_only_bits: tuple[int, ...]
    float16_fast: bool
    weight_bits_safe: int = 8
    static_products: bool = False
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Artifact:
    """What is shipped: the file that the runtime opens, and every file that belongs to it."""

    target: str
    path: Path
    files: tuple[Path, ...]
    size_bytes: int


@dataclass(frozen=True, slots=True)
class NodeTime:
    """One operator as the runtime executed it: its name there, and the median time of a run.

    Names come from the graph, with what the runtime's fusions made of them. ``precision`` is the type it computes in
    ("int8", "float32", ...), None where the runtime does not tell; ``origins`` name the nodes that were fused into it,
    where the runtime tells.
    """

    name: str
    operator: str
    milliseconds: float
    precision: str | None = None
    origins: tuple[str, ...] = ()


class Opened(Protocol):
    """An artifact in a runtime: feeds by input name in, outputs by the model's output names out."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What the artifact wants."""
        ...

    def __call__(self, feeds: Mapping[str, np.ndarray], /) -> dict[str, np.ndarray]:
        """Run once.

        Raises:
            DataError: the feeds do not fit, or the runtime fails on them.
        """
        ...


class Target(Protocol):
    """A runtime on this machine, with its settings: a frozen dataclass."""

    @property
    def name(self) -> str:
        """The name that :func:`alula.targets.target_named` knows it by."""
        ...

    @property
    def threads(self) -> int:
        """Threads as asked for; 0 is one for each usable physical core."""
        ...

    def traits(self) -> Traits:
        """What runs fast here."""
        ...

    def build(self, model: Model, folder: Path, name: str = "model") -> Artifact:
        """Write the model in the runtime's own format; files appear whole or not at all.

        Raises:
            TargetError: the runtime refuses the model.
            StorageError: the folder cannot be written.
        """
        ...

    def open(self, artifact: Artifact) -> Opened:
        """Load an artifact, ready to run.

        Raises:
            TargetError: a file is missing or damaged, or the runtime refuses it.
        """
        ...

    def profile(self, artifact: Artifact, feeds: Mapping[str, np.ndarray], *, runs: int = 20) -> tuple[NodeTime, ...]:
        """Time each operator of an artifact by the runtime's own profiler, which slows it down a little.

        Operators that hold others (If, Loop) are left out, those inside are counted.

        Raises:
            TargetError: a file is missing or damaged, or the runtime refuses it.
            DataError: the feeds do not fit, or the runtime fails on them.
        """
        ...

    def describe(self) -> dict[str, str]:
        """Runtime, version and every setting that changes speed or numbers: what a reader needs to repeat a result."""
        ...


def count_threads(threads: int) -> int:
    """The number of threads that a setting stands for: itself, or every usable physical core for 0."""
    return threads or read_processor().cores


def check_threads(threads: int) -> None:
    """Raise TargetError unless ``threads`` is 0 or a count that this machine can bear."""
    most = max(os.cpu_count() or 1, FEW_THREADS)
    if isinstance(threads, bool) or not isinstance(threads, int) or threads < 0:
        raise TargetError(f"threads must be a whole number, 0 for all physical cores, got {threads!r}")
    if threads > most:
        raise TargetError(f"threads must be at most {most} on this machine, where more would stall; got {threads:,}")


def make_artifact(target: str, path: Path, files: tuple[Path, ...]) -> Artifact:
    """The artifact of files just written; its size is the sum of theirs."""
    return Artifact(target, path, files, sum(file.stat().st_size for file in files))


def check_artifact(target: str, artifact: Artifact) -> None:
    """Raise TargetError unless the artifact was built for ``target`` and its files are there."""
    if artifact.target != target:
        raise TargetError(
            f"{artifact.path.name} was built for {artifact.target!r} and cannot be opened by {target!r}; build it again"
        )
    missing = [file.name for file in artifact.files if not file.is_file()]
    if missing:
        raise TargetError(f"the artifact {artifact.path.name} lacks {', '.join(missing)}; build it again")


def make_folder(folder: Path) -> Path:
    """The folder, made if need be.

    Raises:
        StorageError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(
            f"cannot make the folder {folder}: {error.strerror or error}; choose another folder"
        ) from error
    return folder
