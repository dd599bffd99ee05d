from __future__ import annotations

import pytest

from alula.numerics.ranges import MinMax
from alula.recipe import Recipe, Step, apply_recipe
from alula.search.calibration import calibrate
from alula.search.layer_rows import computes_in_float, layer_rows, operand_bits, where_the_time_goes
from alula.techniques import Float16, Quantize, QuantizeDynamic, QuantizeWeights
from tests.oracles.tasks import classification

CASES = [
    (Quantize(range=MinMax()), "int8 x uint8", 8),
    (Quantize(range=MinMax(), activation_signed=True), "int8 x int8", 8),
    (Quantize(range=MinMax(), activation_bits=16), "int8 x uint16", 16),
    (QuantizeDynamic(), "int8 x uint8, dynamic", 8),
    (QuantizeWeights(), "int8", 32),
    (QuantizeWeights(bits=4, block=32), "int4/32", 32),
    (Float16(), "float16", 32),
]


def rows_for(technique, include=("*",), macs=None):
    task, recipe = classification(n=40), Recipe((Step(technique, include=include),))
    model = task.parts["model"]
    candidate = apply_recipe(model, recipe, calibrate(task, [recipe]).statistics["model"])
    return layer_rows("model", model, candidate, macs or {"second": 4096, "first": 2048, "last": 0}), candidate


@pytest.mark.parametrize(("technique", "bits", "operands"), CASES, ids=lambda value: str(value)[:30])
def test_a_layer_is_described_as_it_stands_in_the_graph(technique, bits, operands) -> None:
    rows, candidate = rows_for(technique)
    second = {row.name: row for row in rows}["second"]
    assert second.bits == bits
    stored = {name: value for name, value in candidate.graph.initializers.items() if name.startswith("w2")}
    assert second.weight_bytes == sum(value.const_value.nbytes for value in stored.values()) < 64 * 64 * 4
    assert operand_bits(second) == operands
    assert computes_in_float(second) is (operands == 32)
    assert second.macs == 4096


def test_a_layer_left_alone_is_float32_with_its_own_bytes() -> None:
    rows, candidate = rows_for(Quantize(range=MinMax()), include=("first",))
    assert [(row.name, row.bits) for row in rows] == [
        ("first", "int8 x uint8"),
        ("second", "float32"),
        ("last", "float32"),
    ]
    assert rows[1].weight_bytes == 64 * 64 * 4
    note = where_the_time_goes("model", rows, candidate)
    assert "2 of 3 layers compute in float (1 MatMul, 1 Gemm), 67% of the multiply-accumulates" in note.text
    assert "1 activation is converted" in note.text


def test_a_skipped_layer_says_why() -> None:
    rows, _ = rows_for(QuantizeWeights(smallest=1000))
    assert {row.name: row.why for row in rows}["last"] == "stays in float: only 512 weights"


def test_unknown_work_is_not_taken_for_none() -> None:
    rows, candidate = rows_for(Quantize(range=MinMax()), include=("first",), macs={"first": 2048})
    assert [row.macs for row in rows] == [2048, None, None]
    assert "multiply-accumulates" not in where_the_time_goes("model", rows, candidate).text
