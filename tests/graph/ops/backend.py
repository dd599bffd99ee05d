"""The test cases that the onnx package ships, run through the lift: the oracle is ONNX's own, not ours."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import torch
from onnx import numpy_helper

from alula.errors import AlulaError
from alula.graph.lifting import to_torch
from alula.graph.model import Model
from alula.graph.tidy import tidy
from alula.graph.trainable import trainable

KINDS = ("simple", "pytorch-operator", "pytorch-converted", "light")


@dataclass(frozen=True)
class Outcome:
    """What became of a case: passed, unsupported (the reason is our error), or failed."""

    name: str
    verdict: str
    reason: str = ""


@cache
def cases() -> dict[str, Any]:
    """All node cases by name."""
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {case.name: case for case in collect_testcases(None)}


def run_case(case: Any) -> Outcome:
    """Lift the graph of a case, run it on each data set, and compare."""
    try:
        for inputs, outputs in case.data_sets:
            compare(case.model, inputs, outputs, rtol=case.rtol, atol=case.atol)
    except AlulaError as error:
        return Outcome(case.name, "unsupported", str(error))
    except Exception as error:  # noqa: BLE001  (whatever it is, it is a failure, and is told)
        return Outcome(
            case.name,
            "failed",
            f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200]}"
            if str(error)
            else type(error).__name__,
        )
    return Outcome(case.name, "passed")


def compare(proto: onnx.ModelProto, inputs: list[Any], outputs: list[Any], *, rtol: float, atol: float) -> None:
    """Raise unless the lifted module gives these outputs for these inputs."""
    weights = {tensor.name for tensor in proto.graph.initializer}
    for value in [value for value in proto.graph.input if value.name in weights]:
        proto.graph.input.remove(value)  # as loading does; it would refuse opsets as old as these
    module = trainable(tidy(Model(ir.from_proto(proto)))).eval()
    feeds = [as_tensor(value) for value in inputs]
    with torch.no_grad():
        found = module(*feeds)
    found = found if isinstance(found, tuple) else (found,)
    assert len(found) == len(outputs), f"{len(found)} outputs, not {len(outputs)}"
    for have, want in zip(found, outputs, strict=True):
        expected = numpy_helper.to_array(want) if isinstance(want, onnx.TensorProto) else np.asarray(want)
        actual = have.float().numpy() if have.dtype == torch.bfloat16 else have.numpy()
        assert actual.shape == expected.shape, f"shape {actual.shape}, not {expected.shape}"
        expected = expected.astype(np.float32) if expected.dtype.name == "bfloat16" else expected
        if expected.dtype.name in ("int4", "uint4", "int2", "uint2"):
            expected = expected.astype(np.uint8 if expected.dtype.name[0] == "u" else np.int8)
        assert actual.dtype == expected.dtype, f"type {actual.dtype}, not {expected.dtype}"
        # Half precision keeps 3 digits and bfloat16 2: sums in another order differ by more than the cases allow.
        slack = {torch.float16: 4e-3, torch.bfloat16: 3e-2}.get(have.dtype, 2e-6)
        np.testing.assert_allclose(actual, expected, rtol=max(rtol, slack), atol=max(atol, slack))


def as_tensor(value: Any) -> torch.Tensor:
    array = numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else value
    if not isinstance(array, np.ndarray | np.generic):
        raise AlulaError(f"inputs of type {type(array).__name__} are no tensors")
    array = np.asarray(array)
    if array.dtype.kind in "OUS":
        raise AlulaError("strings are no tensors")
    return to_torch(array)


def stored_cases() -> Iterator[Path]:
    """Folders of the cases that the package keeps as files: whole small networks and PyTorch's own operators."""
    root = Path(onnx.__file__).parent / "backend" / "test" / "data"
    for kind in KINDS:
        yield from sorted(path for path in (root / kind).iterdir() if (path / "model.onnx").exists())


def run_stored(folder: Path) -> Outcome:
    """As :func:`run_case`, of a case in files."""

    @dataclass(frozen=True)
    class Case:
        name: str
        model: onnx.ModelProto
        data_sets: list[Any]
        rtol: float = 1e-3
        atol: float = 1e-5

    def read(path: Path) -> onnx.TensorProto:
        tensor = onnx.TensorProto()
        tensor.ParseFromString(path.read_bytes())
        return tensor

    def numbered(data: Path, prefix: str) -> list[onnx.TensorProto]:
        return [
            read(path)
            for path in sorted(data.glob(f"{prefix}_*.pb"), key=lambda path: int(path.stem[len(prefix) + 1 :]))
        ]

    folders = sorted(folder.glob("test_data_set_*"))
    sets = [(numbered(data, "input"), numbered(data, "output")) for data in folders]
    return run_case(Case(folder.name, onnx.load(folder / "model.onnx"), sets))
