"""Which int8 layout runs fast on this processor: MatMul, Conv and residual block, in float and in forms of int8.

    python benchmarks/int8_layouts.py [--seconds 2] [--threads 1]

Writes results/int8_layouts.json and .md: for each runtime, how many times faster than float each form is. The traits of
the targets cite these numbers.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx import NodeProto, TensorProto, helper, numpy_helper

from alula.errors import TargetError
from alula.graph.model import Model
from alula.measurement import Measurement, describe_machine, measure, versions
from alula.targets import OnnxRuntime, OpenVino, Target

log = logging.getLogger(__name__)
RESULTS = Path(__file__).parent / "results"
ROWS, DEPTH, COLUMNS = 128, 768, 768
CHANNELS, SIZE = 64, 28
OPSET = 21
Inits = list[TensorProto]
Nodes = list[NodeProto]


def make_model(nodes: Sequence[NodeProto], inits: Inits, shape: Sequence[int]) -> Model:
    graph = helper.make_graph(
        nodes,
        "layer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        inits,
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
    return Model(ir.from_proto(proto))


def constant(name: str, values: object, dtype: str) -> TensorProto:
    return numpy_helper.from_array(np.asarray(values, dtype=dtype), name)


def activation_grid(*, signed: bool) -> Inits:
    return [constant("xs", 0.03, "float32"), constant("xz", 0 if signed else 128, "int8" if signed else "uint8")]


def float_layer(operator: str, weight: np.ndarray) -> Model:
    node = helper.make_node(operator, ["x", "w"], ["y"], **layout(operator))
    return make_model([node], [numpy_helper.from_array(weight, "w")], input_shape(operator))


def static_layer(operator: str, weight: np.ndarray, *, signed: bool) -> Model:
    """QuantizeLinear and DequantizeLinear around the layer: on its input, weight and output."""
    axis = 0 if operator == "Conv" else 1
    quantized, scales = round_weight(weight, axis)
    grid = [*activation_grid(signed=signed), constant("ys", 1.0, "float32")]
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "xs", "xz"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "xs", "xz"], ["xd"]),
        helper.make_node("DequantizeLinear", ["wq", "ws"], ["wd"], axis=axis),
        helper.make_node(operator, ["xd", "wd"], ["z"], **layout(operator)),
        helper.make_node("QuantizeLinear", ["z", "ys", "xz"], ["zq"]),
        helper.make_node("DequantizeLinear", ["zq", "ys", "xz"], ["y"]),
    ]
    return make_model(nodes, [*grid, quantized, scales], input_shape(operator))


def dynamic_layer(operator: str, weight: np.ndarray) -> Model:
    """DynamicQuantizeLinear, then MatMulInteger or ConvInteger, then the scale."""
    quantized, _ = round_weight(weight, None)
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["xq", "xs", "xz"]),
        helper.make_node(f"{operator}Integer", ["xq", "wq", "xz"], ["z"], **layout(operator)),
        helper.make_node("Cast", ["z"], ["zf"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["xs", "ws"], ["s"]),
        helper.make_node("Mul", ["zf", "s"], ["y"]),
    ]
    return make_model(nodes, [quantized, constant("ws", 0.01, "float32")], input_shape(operator))


def integer_matmul(weight: np.ndarray) -> Model:
    """MatMulInteger of int8 by int8: the kernel that is left where a runtime cannot turn activations to uint8."""
    quantized, _ = round_weight(weight, None)
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "xs", "xz"], ["xq"]),
        helper.make_node("MatMulInteger", ["xq", "wq"], ["z"]),
        helper.make_node("Cast", ["z"], ["y"], to=TensorProto.FLOAT),
    ]
    return make_model(nodes, [*activation_grid(signed=True), quantized], input_shape("MatMul"))


def residual_block(weight: np.ndarray, zero: int | None, *, signed: bool = False) -> Model:
    """The block x + Conv(Relu(Conv(x))): in float for ``zero`` None, else int8 with that zero point behind Relu."""
    if zero is None:
        nodes = [
            helper.make_node("Conv", ["x", "w"], ["a"], **layout("Conv")),
            helper.make_node("Relu", ["a"], ["b"]),
            helper.make_node("Conv", ["b", "w"], ["c"], **layout("Conv")),
            helper.make_node("Add", ["x", "c"], ["y"]),
        ]
        return make_model(nodes, [numpy_helper.from_array(weight, "w")], input_shape("Conv"))
    quantized, scales = round_weight(weight, 0)
    grid = [*activation_grid(signed=signed), constant("bz", zero, "int8" if signed else "uint8")]
    nodes = [
        *round_trip("x", "xz"),
        helper.make_node("DequantizeLinear", ["wq", "ws"], ["w1"], axis=0),
        helper.make_node("Conv", ["x_d", "w1"], ["a"], **layout("Conv")),
        helper.make_node("Relu", ["a"], ["b"]),
        *round_trip("b", "bz"),
        helper.make_node("DequantizeLinear", ["wq", "ws"], ["w2"], axis=0),
        helper.make_node("Conv", ["b_d", "w2"], ["c"], **layout("Conv")),
        *round_trip("c", "xz"),
        helper.make_node("Add", ["x_d", "c_d"], ["d"]),
        *round_trip("d", "xz"),
        helper.make_node("Identity", ["d_d"], ["y"]),
    ]
    return make_model(nodes, [*grid, quantized, scales], input_shape("Conv"))


def round_trip(tensor: str, zero: str) -> Nodes:
    return [
        helper.make_node("QuantizeLinear", [tensor, "xs", zero], [f"{tensor}_q"]),
        helper.make_node("DequantizeLinear", [f"{tensor}_q", "xs", zero], [f"{tensor}_d"]),
    ]


def weight_only_layer(weight: np.ndarray, bits: int) -> Model:
    """MatMul with int8 weights per channel, or int4 weights in blocks of 32."""
    if bits == 8:
        quantized, scales = round_weight(weight, 1)
        node = helper.make_node("DequantizeLinear", ["wq", "ws"], ["wd"], axis=1)
    else:
        values = np.clip(np.rint(weight * 4), -8, 7).astype(np.int64).ravel().tolist()
        quantized = helper.make_tensor("wq", TensorProto.INT4, weight.shape, values)
        scales = constant("ws", np.full((DEPTH // 32, COLUMNS), 0.25), "float32")
        node = helper.make_node("DequantizeLinear", ["wq", "ws"], ["wd"], axis=0, block_size=32)
    return make_model(
        [node, helper.make_node("MatMul", ["x", "wd"], ["y"])], [quantized, scales], input_shape("MatMul")
    )


def round_weight(weight: np.ndarray, axis: int | None) -> tuple[TensorProto, TensorProto]:
    axes = tuple(index for index in range(weight.ndim) if index != axis) if axis is not None else None
    scales = np.abs(weight).max(axis=axes, keepdims=True) / 127
    values = np.clip(np.rint(weight / scales), -127, 127)
    return constant("wq", values, "int8"), constant("ws", scales.ravel(), "float32")


def input_shape(layer: str) -> list[int]:
    return [ROWS, DEPTH] if layer == "MatMul" else [1, CHANNELS, SIZE, SIZE]


def layout(operator: str) -> dict[str, Any]:
    return {"pads": [1, 1, 1, 1]} if operator == "Conv" else {}


def list_forms(layer: str) -> dict[str, Model]:
    generator = np.random.default_rng(0)
    shape = (DEPTH, COLUMNS) if layer == "MatMul" else (CHANNELS, CHANNELS, 3, 3)
    weight = generator.standard_normal(shape).astype(np.float32)
    if layer == "residual block":
        return {
            "float32": residual_block(weight, None),
            "static, uint8, zero point 0 behind Relu": residual_block(weight, 0),
            "static, uint8, zero point 128 behind Relu": residual_block(weight, 128),
            "static, int8, zero point -128 behind Relu": residual_block(weight, -128, signed=True),
        }
    forms = {
        "float32": float_layer(layer, weight),
        "static, uint8 x int8": static_layer(layer, weight, signed=False),
        "static, int8 x int8": static_layer(layer, weight, signed=True),
        "dynamic, uint8 x int8": dynamic_layer(layer, weight),
    }
    if layer == "MatMul":
        forms["integer kernel, int8 x int8"] = integer_matmul(weight)
        forms |= {f"weights only, int{bits}": weight_only_layer(weight, bits) for bits in (8, 4)}
    return forms


def measure_forms(target: Target, layer: str, seconds: float) -> dict[str, Measurement]:
    """How many times faster than float each form is; a form that the runtime refuses is logged and left out."""
    generator = np.random.default_rng(1)
    feeds = {"x": generator.standard_normal(input_shape(layer)).astype(np.float32)}
    with TemporaryDirectory() as folder:
        contenders = {}
        for index, (form, model) in enumerate(list_forms(layer).items()):
            try:
                artifact = target.build(model, Path(folder), f"form{index}")
                target.open(artifact)
            except TargetError as error:
                log.warning("%s: %s", form, error)
                continue
            contenders[form] = {"model": artifact}
        measured = measure(target, contenders, (("model", feeds),), seconds=seconds, memory=False)
    return {form: values["latency_ratio"] for form, values in measured.items()}


def list_targets(threads: int) -> dict[str, Target]:
    openvino = OpenVino(threads=threads)
    return {
        "ONNX Runtime": OnnxRuntime(threads=threads),
        "ONNX Runtime, blocked accuracy level 0": OnnxRuntime(threads=threads, blocked_accuracy_level=0),
        "OpenVINO": openvino,
        "OpenVINO, dynamic quantization 32": replace(openvino, dynamic_quantization_group=32),
    }


Ratios = dict[str, dict[str, dict[str, Measurement]]]  # by target, layer and form


def write_results(rows: Ratios, threads: int) -> None:
    data = {
        "threads": threads,
        "machine": describe_machine(),
        "versions": versions(),
        "ratios": [
            {"target": target, "layer": layer, "form": form, "ratio": ratio.to_json()}
            for target, table in rows.items()
            for layer, forms in table.items()
            for form, ratio in forms.items()
        ],
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "int8_layouts.json").write_text(json.dumps(data, indent=1) + "\n")
    (RESULTS / "int8_layouts.md").write_text(describe(rows, threads))


def describe(rows: Ratios, threads: int) -> str:
    machine, installed = describe_machine(), versions()
    lines = [
        "# Int8 layouts: times faster than float32 on the same runtime",
        "",
        f"{machine['processor']}, {threads} thread(s), {machine['features']};",
        f"onnxruntime {installed['onnxruntime']}, openvino {installed['openvino']}.",
        f"MatMul {ROWS}x{DEPTH} by {DEPTH}x{COLUMNS}; Conv 3x3, {CHANNELS} to {CHANNELS} channels on {SIZE}x{SIZE};",
        "residual block x + Conv(Relu(Conv(x))). Medians of interleaved rounds, 95 % intervals.",
        "Written by `benchmarks/int8_layouts.py`.",
        "",
        "| runtime | layer | form | ratio |",
        "|---|---|---|---|",
    ]
    for target, table in rows.items():
        for layer, forms in table.items():
            lines += [
                f"| {target} | {layer} | {form} | {ratio} |" for form, ratio in forms.items() if form != "float32"
            ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=2.0, help="of timed work for each form")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    rows = {
        name: {layer: measure_forms(target, layer, options.seconds) for layer in ("MatMul", "Conv", "residual block")}
        for name, target in list_targets(options.threads).items()
    }
    write_results(rows, options.threads)
    print((RESULTS / "int8_layouts.md").read_text())


if __name__ == "__main__":
    main()
