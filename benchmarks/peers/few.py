"""Networks at a few bits: what is quantized, with which data, who does it, and how many bits a weight then takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
import onnxruntime

import alula
from alula.examples import Subset
from alula.graph.editing import Editor
from alula.graph.layers import Layer, select
from alula.graph.model import Model
from alula.measurement.score import Scores, score
from alula.task import Run, Task
from benchmarks.peers.calling import Method, call
from benchmarks.peers.files import Report, write_feeds

Feed: TypeAlias = Mapping[str, np.ndarray]
CALIBRATION: Final = 128  # examples
CHUNK: Final = 32  # of them that the scorer sees together
CALLS: Final = 256  # of a part that are calibrated with at most, evenly spread
SCALE_BITS: Final = 16  # whatever a tool writes


@dataclass(frozen=True, slots=True)
class Network:
    """A task, and what of it is quantized.

    Attributes:
        task: makes it.
        block: weights of an input's axis that share a scale; None: a whole output channel does.
        exclude: patterns of layers that stay in float for everyone.
        halves: whether only the examples are scored that certify; else all.
        most: of them that are scored.
        compared: examples whose outputs are compared with those of the float network.
        kind: ``transformer``, ``convolutions`` or ``recurrent``: which recipes are tried beside the fixed one.
    """

    task: Callable[[], Task]
    block: int | None
    exclude: tuple[str, ...] = ()
    halves: bool = True
    most: int = 4_000
    compared: int = 96
    kind: str = "transformer"


class Bench:
    """A network with everything that contenders need, written where children find it."""

    def __init__(self, network: Network, folder: Path) -> None:
        self.network, self.folder, self.task = network, folder, network.task()
        folder.mkdir(parents=True, exist_ok=True)
        fold = alula.Recipe((alula.Step(alula.FoldBatchNorm()),))
        self.parts = {name: alula.apply_recipe(part, fold) for name, part in self.task.parts.items()}
        self.files = {name: part.save(folder / f"{name}.onnx") for name, part in self.parts.items()}
        self.run = opened(self.files)

    def excluded(self, part: str) -> tuple[str, ...]:
        """Patterns of layers of a part that stay in float for everyone."""
        operators = {f"Op:{layer.operator}" for layer in self.parts[part].layers()}
        return tuple(one for one in self.network.exclude if not one.startswith("Op:") or one in operators)

    def layers(self, part: str) -> tuple[Layer, ...]:
        """The layers of a part that everyone quantizes."""
        return select(self.parts[part].layers(), ("*",), self.excluded(part))

    @cached_property
    def examples(self) -> Sequence[Any]:
        """What is scored."""
        every = self.task.splits()[1] if self.network.halves else self.task.evaluation
        return Subset(every, range(min(self.network.most, len(every))))

    @cached_property
    def original(self) -> Scores:
        """What the float network scores."""
        return score(self.task, self.run, self.examples)

    @cached_property
    def calibration(self) -> dict[str, list[Feed]]:
        """Feeds by part: what the scorer gives the float network on the first calibration examples."""
        seen, watching = watched(self.run)
        for start in range(0, min(CALIBRATION, len(self.task.calibration)), CHUNK):
            indices = range(start, min(start + CHUNK, len(self.task.calibration)))
            self.task.scorer(watching, [self.task.calibration[index] for index in indices])
        feeds = {part: _spread([feed for feed, _ in calls], CALLS) for part, calls in seen.items()}
        for part, kept in feeds.items():
            write_feeds(self.folder / f"{part}-calibration.npz", kept)
        return feeds

    @cached_property
    def compared(self) -> dict[str, list[tuple[Feed, Feed]]]:
        """Feeds and outputs of the float network on some of the examples that are scored."""
        seen, watching = watched(self.run)
        self.task.scorer(
            watching, [self.examples[index] for index in range(min(self.network.compared, len(self.examples)))]
        )
        return {part: _spread(calls, CALLS) for part, calls in seen.items()}

    def errors(self, run: Run) -> np.ndarray:
        """|y' - y|^2 by row of all float outputs, fed what the float network is fed; over all |y|^2."""
        moved: list[np.ndarray] = []
        size = 0.0
        for part, calls in self.compared.items():
            for feed, outputs in calls:
                for name, found in run(feed, part).items():
                    if found.dtype.kind == "f":
                        wanted = outputs[name].astype(np.float64)
                        moved.append(((found - wanted) ** 2).reshape(len(found), -1).sum(1))
                        size += float((wanted**2).sum())
        return np.concatenate(moved) / size

    def rows(self, part: str) -> Any:
        """Calibration data of a part: arrays of rows where the calls differ in nothing but their number, else calls."""
        feeds = self.calibration[part]
        shapes = {tuple((name, array.shape[1:]) for name, array in feed.items()) for feed in feeds}
        free = all(not spec.shape or isinstance(spec.shape[0], str | None) for spec in self.parts[part].inputs)
        if len(shapes) > 1 or not free:
            return feeds
        return {name: np.concatenate([feed[name] for feed in feeds]) for name in feeds[0]}

    def bits_per_weight(self, bits: int, zero_bits: int) -> float:
        """What a weight takes: its code, and its share of a scale of 16 bits and of a zero point."""
        taken = weights = 0
        block = self.network.block
        for rows, columns in self.shapes:
            groups = rows * (columns // block if block and columns % block == 0 else 1)
            taken += rows * columns * bits + groups * (SCALE_BITS + zero_bits)
            weights += rows * columns
        return taken / weights

    @cached_property
    def shapes(self) -> list[tuple[int, int]]:
        """Rows and columns of everything that is quantized."""
        return [(len(matrix), matrix.shape[1]) for part in self.parts for matrix in self.matrices(part).values()]

    def matrices(self, part: str) -> dict[str, np.ndarray]:
        """The weights of the layers that are quantized as matrices [out, in], by name."""
        weight = self.parts[part].weight
        return {name: rows_of(weight(name), layer) for layer in self.layers(part) for name in layer.weights}


def rows_of(weight: np.ndarray, layer: Layer) -> np.ndarray:  # -> [out, in]
    """A weight with a row for each output."""
    return np.ascontiguousarray(np.moveaxis(weight, layer.output_axis, 0).reshape(weight.shape[layer.output_axis], -1))


def in_shape(rows: np.ndarray, weight: np.ndarray, layer: Layer) -> np.ndarray:
    """Rows [out, in] as the weight that they were made of."""
    moved = np.moveaxis(weight, layer.output_axis, 0).shape
    return np.ascontiguousarray(np.moveaxis(rows.reshape(moved), 0, layer.output_axis), np.float32)


def opened(files: Mapping[str, Path]) -> Run:
    """Runs files with one thread; products of weights and codes are computed in float, whoever made the codes."""
    sessions = {}
    for part, path in files.items():
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = 1, 4
        options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
        sessions[part] = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = {part: [output.name for output in session.get_outputs()] for part, session in sessions.items()}

    def run(feeds: Feed, part: str = "model") -> dict[str, np.ndarray]:
        return dict(zip(names[part], sessions[part].run(None, dict(feeds)), strict=True))

    return run


def watched(run: Run) -> tuple[dict[str, list[tuple[Feed, Feed]]], Run]:
    """What goes in and comes out, by part, and the ``run`` that it is seen through."""
    seen: dict[str, list[tuple[Feed, Feed]]] = {}

    def watching(feeds: Feed, part: str = "model") -> dict[str, np.ndarray]:
        outputs = run(feeds, part)
        seen.setdefault(part, []).append(({name: np.array(array) for name, array in feeds.items()}, outputs))
        return outputs

    return seen, watching


def _spread(calls: list[Any], most: int) -> list[Any]:
    """At most so many of them, evenly spread."""
    return [calls[index] for index in np.linspace(0, len(calls) - 1, min(most, len(calls))).round().astype(int)]


Make: TypeAlias = Callable[[Bench, str, int], Model]


def weights(*, sequential: bool = False, learned: int = 0, **settings: Any) -> Make:
    """``QuantizeWeights`` with these settings, one layer after another or not; then so many learned steps a block."""

    def make(bench: Bench, part: str, bits: int) -> Model:
        technique = alula.QuantizeWeights(bits=bits, block=bench.network.block, smallest=1, **settings)
        model, data = bench.parts[part], bench.rows(part)
        reads = sequential or settings.get("rounding") == "gptq" or settings.get("bias_correction") == "data"
        made = alula.quantize(model, data if reads else None, technique=technique, exclude=bench.excluded(part),
                              sequential=sequential)  # fmt: skip
        if not learned:
            return made
        return alula.reconstruct(made, model, data, settings=alula.Reconstruction(steps=learned))

    return make


def aware(**settings: Any) -> Make:
    """``ActivationAware`` before ``QuantizeWeights``."""

    def make(bench: Bench, part: str, bits: int) -> Model:
        form = {"bits": bits, "block": bench.network.block, "symmetric": settings.get("symmetric", True)}
        scaled = alula.ActivationAware(**form)
        rounded = alula.QuantizeWeights(**form, smallest=1, rounding="gptq")
        exclude = bench.excluded(part)
        steps = (alula.Step(scaled, exclude=exclude), alula.Step(rounded, exclude=exclude, sequential=True))
        return alula.apply_recipe(bench.parts[part], alula.Recipe(steps), bench.rows(part))

    return make


@dataclass(frozen=True, slots=True)
class Contender:
    """Who quantizes, and how: a tool of ``weights_only.py``, or a function of alula.

    Attributes:
        make: of alula.
        tool: of another tool.
        settings: of another tool, beside bits and block.
        bits: widths that it can do.
        zero_point: bits of a zero point; None: as many as a code has.
        kinds: of networks that it can do, or is worth trying on.
        matrices: the other tool acts on weights alone.
    """

    make: Make | None = None
    tool: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    bits: tuple[int, ...] = (8, 4, 3, 2)
    zero_point: int | None = 0
    kinds: tuple[str, ...] = ("transformer", "convolutions", "recurrent")
    matrices: bool = False

    def files(self, bench: Bench, bits: int, folder: Path) -> tuple[dict[str, Path], list[Report]]:
        """A file of each part at a width, and the tool's reports."""
        folder.mkdir(parents=True, exist_ok=True)
        if self.make is not None:
            return {part: self.make(bench, part, bits).save(folder / f"{part}.onnx") for part in bench.parts}, []
        reports = {part: self._called(bench, part, bits, folder / part) for part in bench.parts}
        failed = next((report.failure for report in reports.values() if report.failure), "")
        if failed:
            raise RuntimeError(failed)
        files = {part: self._file(bench, part, folder / part) for part in bench.parts}
        return files, list(reports.values())

    def _called(self, bench: Bench, part: str, bits: int, folder: Path) -> Report:
        model, calibration = bench.files[part], bench.folder / f"{part}-calibration.npz"
        if self.matrices:
            model = bench.folder / f"{part}-matrices.npz"
            matrices: dict[str, Any] = dict(bench.matrices(part))
            np.savez(model, **matrices)
        settings = {"bits": bits, "block": bench.network.block, **self.settings}
        settings["mode"] = str(settings.get("mode", "")).format(bits=bits)
        settings["ignored_types"] = [one.removeprefix("Op:") for one in bench.excluded(part) if one.startswith("Op:")]
        method = Method(self.tool, self.tool, settings, module="benchmarks.peers.weights_only",
                        environment=".venv-fewbits")  # fmt: skip
        assert bench.calibration  # which is written where children find it
        return call(method, model.resolve(), calibration.resolve(), folder)

    def _file(self, bench: Bench, part: str, folder: Path) -> Path:
        """What a tool made, as a graph; of weights alone, the float graph with the numbers that codes stand for."""
        if not self.matrices:
            return folder / "model.onnx"
        model = bench.parts[part]
        editor = Editor(model.edit())
        with np.load(folder / "weights.npz") as file:
            for layer in bench.layers(part):
                for name in layer.weights:
                    editor.replace_constant(name, in_shape(file[name], model.weight(name), layer))
        return model.edited(editor.model).save(folder / "model.onnx")
