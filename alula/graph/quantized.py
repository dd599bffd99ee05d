"""Recognise graphs that were quantized before they came here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

import onnx_ir as ir

STANDARD = frozenset(
    {
        "QuantizeLinear",
        "DequantizeLinear",
        "DynamicQuantizeLinear",
        "QLinearConv",
        "QLinearMatMul",
        "ConvInteger",
        "MatMulInteger",
    }
)
CONTRIBUTED = frozenset(
    {
        "MatMulNBits",
        "MatMulBnb4",
        "MatMulFpQ4",
        "MatMulIntegerToFloat",
        "DynamicQuantizeMatMul",
        "DynamicQuantizeLSTM",
        "GatherBlockQuantized",
        "QMoE",
    }
)


def quantized_operators(nodes: Iterable[ir.Node]) -> Mapping[str, int]:
    """How often each operator of a quantized graph occurs, most frequent first; empty for a float graph.

    Args:
        nodes: the nodes of the graph, those of control-flow bodies included.
    """
    counts = Counter(_title(node) for node in nodes if _is_quantized(node))
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _is_quantized(node: ir.Node) -> bool:
    if node.domain in ("", "ai.onnx"):
        return node.op_type in STANDARD
    # com.microsoft names its integer kernels QLinear..., Q... (QAttention, QGemm) and by the list above
    quantized_name = len(node.op_type) > 1 and node.op_type[0] == "Q" and node.op_type[1].isupper()
    return (
        node.op_type in STANDARD
        or node.op_type in CONTRIBUTED
        or node.op_type.startswith("QLinear")
        or (node.domain == "com.microsoft" and quantized_name)
    )


def _title(node: ir.Node) -> str:
    return node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}.{node.op_type}"
