"""The reference runtime: one ONNX Runtime session over a graph, to find out what the graph computes."""

from __future__ import annotations

import math
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from alula.errors import DataError, ModelError
from alula.graph.model import PROTOBUF_LIMIT_BYTES, check_feeds

if TYPE_CHECKING:
    from alula.graph.model import Model


def open_session(model: Model, *, threads: int = 0, optimise: bool = True, spin: bool = True) -> Any:
    """An ONNX Runtime CPU session over the graph; ``threads`` 0 lets the runtime choose.

    With ``spin`` its threads wait for more work by asking for it all the time, which takes the cores from whatever else
    computes between two runs.

    Raises:
        ModelError: ONNX Runtime refuses the graph; the message holds its reason.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    if not spin:
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if not optimise:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        if model.weight_bytes <= PROTOBUF_LIMIT_BYTES:
            return onnxruntime.InferenceSession(model.to_bytes(), options, providers=["CPUExecutionProvider"])
        with tempfile.TemporaryDirectory() as folder:
            path = model.save(Path(folder) / "model.onnx")
            return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions share no base but Exception
        raise ModelError(f"ONNX Runtime refuses the graph: {first_line(error)}") from error


def first_line(error: BaseException) -> str:
    """The first line of another library's message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


class Runner:
    """A callable that runs one graph: feeds by input name in, outputs by name out."""

    def __init__(self, model: Model, *, threads: int = 0, optimise: bool = True, spin: bool = True) -> None:
        self._session = open_session(model, threads=threads, optimise=optimise, spin=spin)
        self._inputs = model.inputs
        self._output_names = [spec.name for spec in model.outputs]

    def __call__(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run once.

        Raises:
            DataError: the feeds do not fit, or the graph fails on them.
        """
        check_feeds(self._inputs, feeds)
        try:
            outputs = self._session.run(self._output_names, dict(feeds))
        except Exception as error:  # onnxruntime's exceptions share no base but Exception
            raise DataError(f"the graph fails on these inputs: {first_line(error)}") from error
        return dict(zip(self._output_names, outputs, strict=True))


def relative_change(before: Runner, after: Runner, feeds: Iterable[Mapping[str, np.ndarray]]) -> float:
    """How far outputs y move: the largest |y' - y| / |y|, over all feeds; infinite where one is no longer finite.

    Outputs are not kept, so both graphs run on each feed.

    Raises:
        DataError: an output is not finite to begin with.
    """
    moved, sizes = defaultdict[str, float](float), defaultdict[str, float](float)
    for feed in feeds:
        found = after(feed)
        for name, output in before(feed).items():
            wanted = output.astype(np.float64)
            if not np.isfinite(wanted).all():
                raise DataError("the outputs hold NaN or infinity; how much they change cannot be told")
            change = float(np.linalg.norm(found[name] - wanted))
            moved[name] += change**2 if np.isfinite(change) else np.inf
            sizes[name] += float(np.linalg.norm(wanted)) ** 2
    least = float(np.finfo(np.float64).tiny)
    return max(math.sqrt(moved[name]) / max(math.sqrt(sizes[name]), least) for name in moved)
