"""Models measured against each other: interleaved in one run, and their outputs compared."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import onnx

from alula.errors import DataError, at
from alula.graph.cost import measure_cost
from alula.graph.load import load_model
from alula.graph.quantized import quantized_operators
from alula.measurement import measure, measure_throughput
from alula.measurement.parity import compare
from alula.search.layer_rows import energy_of, layer_rows
from alula.targets.target import make_artifact
from alula.task_files import read_arrays
from alula.task_rows import fit_inputs, fixed_batch

if TYPE_CHECKING:
    from alula.graph.model import Model, TensorSpec
    from alula.measurement.measurement import Measurement
    from alula.targets import Artifact, Opened, Target

FREE_AXIS: Final = 16  # length of an axis that the graph leaves free, for random inputs
COMPARED: Final = 32  # examples whose outputs are compared


def compare_models(
    paths: Sequence[Path], runtime: Target, *, data: Path | None = None, seconds: float = 3.0, seed: int = 0
) -> tuple[dict[str, dict[str, Measurement]], list[str]]:
    """Measure models of the same inputs in one run, in turns, and compare their outputs with those of the first.

    Args:
        paths: ONNX files, the original first.
        runtime: where they run.
        data: arrays named as the inputs (.npz, .npy or a folder); without them inputs are random.
        seconds: of timing for each model; throughput adds half.
        seed: of the order of turns, and of random inputs.

    Returns:
        Measurements by path and name, and what there is to say of inputs and outputs.

    Raises:
        ModelError: a file is no model, or refused.
        DataError: fewer than two models, or the data or outputs do not fit them.
        TargetError: the target refuses a model.
    """
    if len(paths) < 2 or len(set(paths)) < len(paths):
        raise DataError(f"measure compares at least two different models, got {', '.join(map(str, paths))}")
    models = {str(path): load_model(path, allow_quantized=True) for path in paths}  # refuses what is hostile
    first, *others = models
    original = models[first]
    feeds = [_random_feed(original.inputs, seed)] if data is None else list(_feeds(original, data, COMPARED))
    with tempfile.TemporaryDirectory() as folder:
        contenders = {
            name: {"model": _artifact(name, model, runtime, Path(folder) / str(index))}
            for index, (name, model) in enumerate(models.items())
        }
        wanted = _outputs(runtime.open(contenders[first]["model"]), feeds)
        notes = [_compare(one, wanted, runtime.open(contenders[one]["model"]), feeds) for one in others]
        trace = (("model", feeds[0]),)
        found = measure(runtime, contenders, trace, seconds=seconds, seed=seed)
        rates = measure_throughput(runtime, contenders, trace, seconds=seconds / 6, seed=seed)
    notes += ["inputs are random; give --data for real ones"] if data is None else []
    for name, model in models.items() if "energy_mj" not in found[first] else ():
        energy = _estimate_energy(original, model, feeds[0])
        if energy is None:
            notes.append(f"{name}: no energy, for it could not be measured, and what its layers do is not known")
        else:
            found[name]["energy_mj"] = energy
    return {name: found[name] | rates[name] for name in models}, notes


def _feeds(model: Model, data: Path, examples: int) -> Iterator[dict[str, np.ndarray]]:
    """The first examples of the data, one after another, or as many at once as the graph takes."""
    batch = fixed_batch(model) or 1
    limit = max(1, examples // batch) * batch
    inputs = {name: array[:limit] if array.ndim else array for name, array in read_inputs(model, data).items()}
    arrays = fit_inputs(model, inputs)
    rows = min(map(len, arrays.values()))
    if rows < batch:
        raise DataError(f"{data} must hold at least {batch} rows, which the model takes at once; got {rows}")
    for start in range(0, rows - batch + 1, batch):
        yield {name: array[start : start + batch] for name, array in arrays.items()}


def read_inputs(model: Model, data: Path) -> dict[str, np.ndarray]:
    """The arrays [rows, ...] that a file or folder holds for the model's inputs, as they are there."""
    arrays = read_arrays(data)
    names = [spec.name for spec in model.inputs]
    if len(names) == len(arrays) == 1 and data.suffix == ".npy":
        arrays = {names[0]: next(iter(arrays.values()))}
    missing = [name for name in names if name not in arrays]
    if missing:
        raise DataError(f"{data} must hold {', '.join(names)}; missing {', '.join(missing)}, it has {sorted(arrays)}")
    return {name: arrays[name] for name in names}


def _random_feed(specs: Sequence[TensorSpec], seed: int) -> dict[str, np.ndarray]:
    """Random inputs of one example: floats from a normal distribution, whole numbers 0 and 1, free axes of 16."""
    generator, feed = np.random.default_rng(seed), {}
    for spec in specs:
        axes = enumerate(spec.shape or ())
        shape = [axis if isinstance(axis, int) else (1 if index == 0 else FREE_AXIS) for index, axis in axes]
        floating = np.issubdtype(spec.dtype, np.floating)
        drawn = generator.standard_normal(shape) if floating else generator.integers(0, 2, shape)
        feed[spec.name] = np.asarray(drawn).astype(spec.dtype)
    return feed


def _outputs(opened: Opened, feeds: Sequence[dict[str, np.ndarray]]) -> dict[str, list[np.ndarray]]:
    """What a model gives for each feed, by output."""
    given = [opened(feed) for feed in feeds]
    return {name: [one[name] for one in given] for name in given[0]}


def _estimate_energy(original: Model, model: Model, feed: Mapping[str, np.ndarray]) -> Measurement | None:
    """Energy of one run; None unless every layer of a float original is found again, by the names that alula gives."""
    costs = [measure_cost(one, feeds=feed) for one in (original, model)]  # a float layer counts as it now is
    rows = layer_rows("model", original, model, {layer.name: layer.macs for cost in costs for layer in cost.layers})
    if not rows or any(not row.weight_bytes for row in rows) or quantized_operators(original.graph.all_nodes()):
        return None
    return energy_of(rows, {"model": 1})


def _artifact(path: str, model: Model, runtime: Target, folder: Path) -> Artifact:
    """ONNX Runtime opens the file as it is; another runtime gets what it makes of it."""
    if runtime.name != "onnxruntime":
        return runtime.build(model, folder)
    return make_artifact(runtime.name, Path(path), files_of(Path(path)))


def files_of(path: Path) -> tuple[Path, ...]:
    """An ONNX file and the files of its external data."""
    tensors = onnx.load(path, load_external_data=False).graph.initializer
    beside = {entry.value for tensor in tensors for entry in tensor.external_data if entry.key == "location"}
    return path, *(path.parent / name for name in sorted(beside))


def _compare(
    name: str, wanted: Mapping[str, list[np.ndarray]], opened: Opened, feeds: Sequence[dict[str, np.ndarray]]
) -> str:
    """How far the outputs of two models are apart, in words."""
    with at(name):
        given = _outputs(opened, feeds)
    if set(wanted) != set(given):
        raise DataError(f"{name} must have the outputs {sorted(wanted)}, got {sorted(given)}")
    apart = {output: compare(wanted[output], list(given[output])) for output in wanted}
    unlike = [output for output, (error, _) in apart.items() if error == float("inf")]
    if unlike:
        return f"{name}: output {unlike[0]!r} has another shape than the original's, or NaN, Inf or numbers elsewhere"
    errors, cosines = zip(*apart.values(), strict=True)
    runs = len(next(iter(given.values())))
    return (
        f"{name}: outputs differ from the original's by at most {max(errors):.2g} of their largest value, least cosine "
        f"{min(cosines):.5f}, over {runs} run{'s' if runs > 1 else ''}"
    )
