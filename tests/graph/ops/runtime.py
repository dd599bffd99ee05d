"""One-node graphs, run by onnxruntime and through the lift."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper

from alula.graph.model import Model
from alula.graph.tidy import tidy
from alula.graph.trainable import trainable


def assert_alike(
    op: str, inputs: list[np.ndarray | None], attributes: dict[str, Any], *, opset: int = 22, outputs: int = 1
) -> None:
    """The first input and what else has axes enough is fed, the others are constants; None is absent."""
    names = ["" if value is None else f"input_{index}" for index, value in enumerate(inputs)]
    given = {name: value for name, value in zip(names, inputs, strict=True) if value is not None}
    feeds = {name: value for name, value in given.items() if name == "input_0" or value.ndim > 1}
    held = [numpy_helper.from_array(value, name) for name, value in given.items() if name not in feeds]
    kinds = {name: helper.np_dtype_to_tensor_dtype(value.dtype) for name, value in feeds.items()}
    results = [f"output_{index}" for index in range(outputs)]
    graph = helper.make_graph(
        [helper.make_node(op, names, results, name="node", **attributes)],
        "graph",
        [helper.make_tensor_value_info(name, kinds[name], value.shape) for name, value in feeds.items()],
        [
            helper.make_tensor_value_info(name, TensorProto.INT64 if index else kinds["input_0"], None)
            for index, name in enumerate(results)
        ],
        held,
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    wanted = session.run(None, feeds)
    found = trainable(tidy(Model(ir.from_proto(proto)))).eval()(*map(torch.from_numpy, feeds.values()))
    for have, want in zip(found if isinstance(found, tuple) else (found,), wanted, strict=True):
        assert have.detach().numpy().dtype == want.dtype
        np.testing.assert_allclose(have.detach().numpy(), want, rtol=1e-4, atol=1e-4)
