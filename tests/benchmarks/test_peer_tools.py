"""How the other tools are fed. The tools themselves are not installed here."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from benchmarks.peers.calling import Method, last_line
from benchmarks.peers.files import Feeds, write_feeds
from benchmarks.peers.tools import TOOLS, Reader, chunk_length, largest_divisor, lower_opset, make_openable


def feeds_of(folder: Path, shapes: list[tuple[int, ...]]) -> Feeds:
    write_feeds(folder / "feeds.npz", ({"x": np.full(shape, index)} for index, shape in enumerate(shapes)))
    return Feeds(folder / "feeds.npz")


def read_all(reader: Reader) -> list[float]:
    return [float(feed["x"].flat[0]) for feed in iter(reader.get_next, None)]


def test_reader_gives_all_once(tmp_path: Path) -> None:
    reader = Reader(feeds_of(tmp_path, [(1,)] * 4))
    assert len(reader) == 4
    assert read_all(reader) == [0, 1, 2, 3]
    assert reader.get_next() is None


def test_reader_gives_a_range(tmp_path: Path) -> None:
    reader = Reader(feeds_of(tmp_path, [(1,)] * 6))
    reader.set_range(start_index=2, end_index=4)
    assert read_all(reader) == [2, 3]


@pytest.mark.parametrize(("number", "limit"), [(300, 50), (200, 50), (7, 3), (1, 50), (97, 50), (97, 97)])
def test_largest_divisor_is_the_largest(number: int, limit: int) -> None:
    divisors = [divisor for divisor in range(1, limit + 1) if number % divisor == 0]
    assert largest_divisor(number, limit) == max(divisors)


def test_small_inputs_go_in_whole_and_large_ones_in_chunks(tmp_path: Path) -> None:
    feeds = feeds_of(tmp_path, [(1, 10)] * 100)  # 8,000 bytes
    assert chunk_length(feeds, whole_bytes=8000) is None
    assert chunk_length(feeds, whole_bytes=7999) == 50


def test_inputs_of_different_shapes_go_in_one_by_one(tmp_path: Path) -> None:
    assert chunk_length(feeds_of(tmp_path, [(1, 10), (1, 11)])) == 1


def graph_at(opset: int, operator: str = "Relu") -> onnx.ModelProto:
    value = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [2]) for name in "xy"]
    node = onnx.helper.make_node(operator, ["x"], ["y"])
    graph = onnx.helper.make_graph([node], "g", value[:1], value[1:])
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)], ir_version=10)


def test_opset_21_is_declared_as_20() -> None:
    graph = graph_at(21)
    assert lower_opset(graph)
    assert graph.opset_import[0].version == 20


def test_other_opsets_stay() -> None:
    graph = graph_at(17)
    assert not lower_opset(graph)
    assert graph.opset_import[0].version == 17


def test_opset_stays_where_the_graph_is_not_valid_below() -> None:
    graph = graph_at(21, "NotAnOperator")
    assert not lower_opset(graph)
    assert graph.opset_import[0].version == 21


def test_what_opens_is_left_alone(tmp_path: Path) -> None:
    onnx.save(graph_at(21), tmp_path / "model.onnx")
    assert make_openable(tmp_path / "model.onnx") == []
    assert onnx.load(tmp_path / "model.onnx").opset_import[0].version == 21


def test_what_opens_at_no_opset_is_left_alone(tmp_path: Path) -> None:
    onnx.save(graph_at(21, "NotAnOperator"), tmp_path / "model.onnx")
    assert make_openable(tmp_path / "model.onnx") == []


def test_what_is_refused_is_declared_lower(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.peers.tools.can_open", lambda path: False)
    onnx.save(graph_at(21), tmp_path / "model.onnx")
    assert "opset 20" in make_openable(tmp_path / "model.onnx")[0]
    assert onnx.load(tmp_path / "model.onnx").opset_import[0].version == 20


def test_last_line_is_the_reason() -> None:
    assert last_line("Traceback\n\n  ValueError: too many bins\n\n") == "ValueError: too many bins"
    assert last_line("\n") == "no message"
    assert len(last_line("x" * 999)) == 200


def test_methods_name_tools_that_exist() -> None:
    from benchmarks.peers.rows import methods_for

    methods: list[Method] = [*methods_for(), *methods_for(transformer=True)]
    assert {method.kind for method in methods} == set(TOOLS)
    for transformer in (False, True):
        names = [method.name for method in methods_for(transformer=transformer)]
        assert len(names) == len(set(names))
