"""The command line: what it prints where, its exit codes, and that no fault is lost."""

from __future__ import annotations

import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner

import alula
from alula.cli import LOG_FILE, app
from alula.comparison import _feeds
from alula.errors import StorageError
from alula.graph.load import load_model
from alula.search.events import Event
from alula.search.result import read_result, write_result

EXAMPLE = runpy.run_path(str(Path(__file__).parent / "report" / "example.py"))
COMMANDS = ("compress", "analyze", "quantize", "diagnose", "measure", "report")


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def model(tmp_path) -> Path:
    """A small classifier: x [batch, 16] -> y [batch, 4]."""
    generator = np.random.default_rng(0)
    weights = {"a": (16, 64), "b": (64, 4)}
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "a"], ["h"], name="first"),
            helper.make_node("Relu", ["h"], ["r"], name="relu"),
            helper.make_node("MatMul", ["r", "b"], ["y"], name="second"),
        ],
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4])],
        [numpy_helper.from_array(generator.standard_normal(shape, np.float32), n) for n, shape in weights.items()],
    )
    path = tmp_path / "tiny.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
    return path


@pytest.fixture
def data(model, tmp_path) -> Path:
    x = np.random.default_rng(1).standard_normal((240, 16), np.float32)
    labels = load_model(model).run({"x": x})["y"].argmax(1)
    path = tmp_path / "data.npz"
    np.savez(path, x=x, labels=labels)
    return path


@pytest.fixture
def searched(monkeypatch):
    """Replace the search by a function of the test's own; the task is not opened either."""

    def replaced(search):
        monkeypatch.setattr("alula.search.explore.compress", search)
        monkeypatch.setattr("alula.task.open_task", lambda *_, **__: None)

    return replaced


def _finding(frontier):
    def search(task, budget, target, folder, *, seed, on_event):
        folder.mkdir(exist_ok=True)
        on_event(Event("stage", "trying [bold]int8", total=4))
        on_event(Event("progress", "", 2, 4))
        on_event(Event("trial", "int8-dynamic: 2.91x faster"))
        on_event(Event("note", "embeddings: left in float"))
        return replace(frontier, budget=budget, seed=seed)

    return search


@pytest.mark.parametrize("command", [None, *COMMANDS])
def test_help_has_an_example_and_compress_the_exit_codes(command):
    shown = run(*([command] if command else []), "--help")
    assert shown.exit_code == 0
    words = " ".join(shown.output.split())
    if command:
        assert f"Example: alula {command} " in words
    if command in (None, "compress"):
        for code in (0, 1, 2, 3, 4, 70, 130):
            assert f" {code} " in words[words.index("Exit codes:") :]


def test_help_starts_fast_and_light():
    taken = []
    for _ in range(3):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "alula.cli", "--help"], check=True, capture_output=True)
        taken.append(time.perf_counter() - start)
    assert min(taken) < 1
    heavy = "torch scipy plotly onnx onnxruntime openvino numpy"
    code = f"import sys, alula.cli; print([name for name in {heavy!r}.split() if name in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert shown.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("kind", "code"), [("example_frontier", 0), ("failed_frontier", 3), ("uncertified", 4), ("refuted", 3)]
)
def test_exit_codes_of_compress(searched, tmp_path, kind, code):
    frontier = EXAMPLE.get(kind, EXAMPLE["example_frontier"])()
    verdict = {"uncertified": "not enough examples", "refuted": "fails"}.get(kind)
    if verdict:
        frontier = replace(frontier, certificate=replace(frontier.certificate, verdict=verdict))
    searched(_finding(frontier))
    assert run("compress", "task.py", "--out", tmp_path / "out").exit_code == code


def test_compress_writes_the_page_and_the_command(searched, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["alula", "compress", "my task.py", "--seed", "3"])
    searched(_finding(EXAMPLE["example_frontier"]()))
    shown = run("compress", "my task.py", "--seed", 3, "--max-drop", "2% relative", "--out", tmp_path)
    assert shown.exit_code == 0, shown.output
    assert (tmp_path / "report.html").is_file()
    written = read_result(tmp_path)
    assert written.command == "alula compress 'my task.py' --seed 3"
    assert (written.seed, written.budget.max_drop, written.budget.relative) == (3, 0.02, True)
    assert "90.9 MB became 22.9 MB" in shown.stdout
    assert "With 95 % confidence" in shown.stdout
    assert "trying [bold]int8" in shown.stderr  # progress stands on standard error, brackets and all
    assert "trying" not in shown.stdout


def test_every_option_reaches_the_budget_and_the_target(monkeypatch, tmp_path):
    seen = {}

    def search(task, budget, target, folder, **_):
        seen.update(task=task, budget=budget, target=target)
        raise StorageError("enough")

    monkeypatch.setattr("alula.search.explore.compress", search)
    monkeypatch.setattr("alula.task.open_task", lambda path, **options: (path, options))
    given = "--max-drop 0.3 --minimize size --data d.npz --labels l.npy --metric cosine --target openvino --threads 2"
    limits = "--confidence 99% --max-size 2MB --max-latency-ms 5"
    run("compress", "m.onnx", "--out", tmp_path, *given.split(), *limits.split())
    budget = seen["budget"]
    assert (budget.max_drop, budget.minimize, budget.confidence) == (0.3, "size", 0.99)
    assert (budget.max_size_bytes, budget.max_latency_ms) == (2_000_000, 5.0)
    assert (seen["target"].name, seen["target"].threads) == ("openvino", 2)
    options = {"data": Path("d.npz"), "labels": Path("l.npy"), "metric": "cosine"}
    assert seen["task"] == (Path("m.onnx"), options)


def test_json_is_one_document_and_nothing_else(searched, tmp_path):
    searched(_finding(EXAMPLE["failed_frontier"]()))
    shown = run("compress", "task.py", "--out", tmp_path, "--json")
    assert shown.exit_code == 3
    assert json.loads(shown.stdout)["closest"] == "int8-weights"
    again = run("report", tmp_path, "--json")
    assert again.exit_code == 0
    assert json.loads(again.stdout) == json.loads(shown.stdout)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--max-drop", "lots"], "'lots'"),
        (["--confidence", "very"], "'very'"),
        (["--confidence", "95%%"], "confidence"),
        (["--confidence", "1.5"], "confidence"),
        (["--max-size", "2 elephants"], "elephants"),
        ([], "does not exist"),
    ],
)
def test_mistakes_are_one_clear_line(tmp_path, arguments, message):
    shown = run("compress", tmp_path / "task.py", "--out", tmp_path / "out", *arguments)
    assert shown.exit_code == 1
    assert shown.stdout == ""
    assert shown.stderr.startswith("alula: ")
    assert message in shown.stderr
    assert "Traceback" not in shown.stderr


@pytest.mark.parametrize(
    "arguments", [["compress"], ["compress", "a", "--out", "b", "--minimize", "beauty"], ["nothing"], ["measure"]]
)
def test_wrong_usage_is_2(arguments):
    assert run(*arguments).exit_code == 2


def test_a_fault_is_named_and_its_traceback_kept(searched, tmp_path):
    def search(*_, **__):
        raise ZeroDivisionError("scale [0]\nsecond line")

    searched(search)
    out = tmp_path / "new" / "out"
    shown = run("compress", "task.py", "--out", out)
    assert shown.exit_code == 70
    assert shown.stderr.count("\n") == 1
    assert "unexpected ZeroDivisionError: scale [0]; this is a fault of alula, please report it" in shown.stderr
    assert str(out / LOG_FILE) in shown.stderr
    assert "raise ZeroDivisionError" in (out / LOG_FILE).read_text()
    assert "raise ZeroDivisionError" in run("compress", "task.py", "--out", out, "--debug").stderr


def test_a_fault_is_kept_even_where_the_folder_cannot_be_made(searched, tmp_path):
    def search(*_, **__):
        raise ZeroDivisionError

    searched(search)
    (tmp_path / "file").write_text("")
    shown = run("compress", "task.py", "--out", tmp_path / "file" / "out")
    log = Path(shown.stderr.split()[-1])
    assert "ZeroDivisionError" in log.read_text()
    log.unlink()


def test_an_interruption_says_how_to_go_on(searched, tmp_path, monkeypatch):
    def search(*_, **__):
        raise KeyboardInterrupt

    searched(search)
    monkeypatch.setattr(sys, "argv", ["alula", "compress", "task.py", "--out", "o"])
    shown = run("compress", "task.py", "--out", tmp_path)
    assert shown.exit_code == 130
    assert "go on with: alula compress task.py --out o" in shown.stderr


def test_a_real_interrupt_signal_ends_with_130(model, data, tmp_path):
    # A shell starts what runs in its background with the signal ignored; what is tested is a command that hears it.
    script = (
        "import runpy, signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "runpy.run_module('alula.cli', run_name='__main__')"
    )
    command = [sys.executable, "-c", script, "compress", str(model), "--data", str(data), "--out", str(tmp_path / "o")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        while "trying" not in (line := process.stderr.readline()):
            assert line, "the search never began"
        os.kill(process.pid, signal.SIGINT)
        _, shown = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "interrupted" in shown
    assert "Traceback" not in shown


def test_a_reader_that_goes_away_is_no_fault(model):
    script = f"{sys.executable} -m alula.cli analyze {model} --json | true; exit ${{PIPESTATUS[0]}}"
    shown = subprocess.run(["bash", "-c", script], check=False, capture_output=True, text=True)
    assert shown.returncode == 1  # what was asked for did not arrive
    assert shown.stderr == ""


def test_report_writes_the_page_again(tmp_path):
    write_result(EXAMPLE["example_frontier"](), tmp_path)
    shown = run("report", tmp_path)
    assert shown.exit_code == 0
    assert (tmp_path / "report.html").is_file()
    assert "int8-dynamic" in shown.stdout
    assert run("report", tmp_path / "nowhere").exit_code == 1


def test_analyze(model):
    shown = run("analyze", model)
    assert shown.exit_code == 0, shown.stderr
    for said in ("first", "MatMul", "x: float32[batch, 16]", "can be done"):
        assert said in shown.stdout
    found = json.loads(run("analyze", model, "--json").stdout)
    assert [layer["name"] for layer in found["layers"]] == ["first", "second"]
    assert [layer["macs"] for layer in found["layers"]] == [16 * 64, 64 * 4]
    assert found["macs"] == 16 * 64 + 64 * 4
    assert found["options"]


def test_analyze_what_is_no_model(tmp_path):
    path = tmp_path / "bad.onnx"
    path.write_bytes(b"garbage")
    shown = run("analyze", path)
    assert shown.exit_code == 1
    assert "bad.onnx" in shown.stderr


@pytest.mark.parametrize(
    ("arguments", "operator"),
    [
        (["--method", "static"], "QuantizeLinear"),
        (["--method", "dynamic"], "DynamicQuantizeLinear"),
        (["--method", "weights", "--bits", 4, "--block", 16], "DequantizeLinear"),
        (["--method", "float16"], "Cast"),
    ],
)
def test_quantize(model, data, tmp_path, arguments, operator):
    small = tmp_path / "small.onnx"
    needed = ["--data", data] if "static" in arguments else []
    shown = run("quantize", model, "-o", small, *arguments, *needed, "--json")
    assert shown.exit_code == 0, shown.stderr
    assert operator in {node.op_type for node in onnx.load(small).graph.node}
    said = json.loads(shown.stdout)
    assert (said["size_bytes"], said["original_bytes"]) == (small.stat().st_size, model.stat().st_size)


def test_quantize_leaves_what_is_excluded(model, tmp_path):
    small = tmp_path / "small.onnx"
    assert run("quantize", model, "-o", small, "--exclude", "second").exit_code == 0
    shapes = {tensor.name: tensor.data_type for tensor in onnx.load(small).graph.initializer}
    assert shapes["b"] == TensorProto.FLOAT
    shown = run("quantize", model, "-o", small, "--exclude", "nothing*")
    assert shown.exit_code == 1
    assert "nothing*" in shown.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--method", "static"], "needs --data"),
        (["--block", 8], "--block is for --method weights, got no --method"),
        (["--block", 8, "--method", "static", "--data", "data.npz"], "--block is for --method weights"),
        (["--bits", 4], "--bits is for --method static, dynamic or weights, got no --method"),
        (["--bits", 4, "--method", "float16"], "--bits is for --method static, dynamic or weights"),
        *((["--data", "data.npz", "--method", one], "--data is for") for one in ("dynamic", "weights", "float16")),
        (["--method", "static", "--data", "missing.npz"], "does not exist"),
    ],
)
def test_quantize_mistakes(model, tmp_path, arguments, message):
    shown = run("quantize", model, "-o", tmp_path / "small.onnx", *arguments)
    assert shown.exit_code == 1
    assert message in shown.stderr
    assert not (tmp_path / "small.onnx").exists()


@pytest.mark.parametrize("given", [True, False])
def test_quantize_is_the_function_of_that_name(model, data, tmp_path, given):
    small = tmp_path / "small.onnx"
    assert run("quantize", model, "-o", small, *(["--data", data] if given else [])).exit_code == 0
    arrays = {"x": np.load(data)["x"]} if given else None
    assert small.read_bytes() == alula.quantize(model, arrays).to_bytes()


def test_quantize_folds_batch_normalisation(tmp_path):
    constants = {"w": np.ones((4, 3, 3, 3)), **{name: np.ones(4) for name in "sbmv"}}
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "w"], ["c"], name="conv"),
            helper.make_node("BatchNormalization", ["c", *"sbmv"], ["y"], name="norm"),
        ],
        "normalised",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4, 6, 6])],
        [numpy_helper.from_array(array.astype(np.float32), name) for name, array in constants.items()],
    )
    path, images = tmp_path / "normalised.onnx", tmp_path / "x.npy"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
    np.save(images, np.ones((4, 3, 8, 8)))  # float64 fits a float32 input
    small = tmp_path / "small.onnx"
    assert run("quantize", path, "-o", small, "--data", images).exit_code == 0
    operators = {node.op_type for node in onnx.load(small).graph.node}
    assert "QuantizeLinear" in operators
    assert "BatchNormalization" not in operators


@pytest.mark.parametrize("alias", ["tiny.onnx", "sub/../tiny.onnx", "link.onnx"])
def test_quantize_does_not_overwrite_its_input(model, tmp_path, alias):
    (tmp_path / "sub").mkdir()
    (tmp_path / "link.onnx").symlink_to(model)
    before = model.read_bytes()
    shown = run("quantize", model, "-o", tmp_path / alias)
    assert shown.exit_code == 1
    assert "overwrite" in shown.stderr
    assert model.read_bytes() == before


def test_pixels_do_not_go_into_a_float_network(model, tmp_path):
    np.savez(tmp_path / "pixels.npz", x=np.full((40, 16), 255, np.uint8))
    small = tmp_path / "small.onnx"
    assert run("quantize", model, "-o", small).exit_code == 0
    for arguments in (["quantize", model, "-o", tmp_path / "other.onnx"], ["measure", model, small]):
        shown = run(*arguments, "--data", tmp_path / "pixels.npz")
        assert shown.exit_code == 1
        assert "wants x: float32[batch, 16], got uint8" in shown.stderr


def test_diagnose(model, data, tmp_path):
    small, out = tmp_path / "small.onnx", tmp_path / "out"
    assert run("quantize", model, "-o", small, "--data", data).exit_code == 0
    shown = run("diagnose", small, model, "--data", data, "--json")
    found = json.loads(shown.stdout)
    assert [row["bits"] for row in found["layers"]] == ["int8 x uint8"] * len(load_model(model).layers())
    assert found["findings"] == []
    shown = run("diagnose", small, model, "--data", data, "--fix", "--out", out)
    assert shown.exit_code == 0
    assert "the outputs are off by" in shown.stdout
    assert "the outputs were off by" in shown.stdout
    assert sorted(path.name for path in out.iterdir()) == ["diagnosis.html", "fixed.onnx"]


def test_diagnose_mistakes(model, data, tmp_path):
    assert "nothing to diagnose" in run("diagnose", model, model, "--data", data).stderr
    assert run("diagnose", model, model).exit_code == 2
    small = tmp_path / "small.onnx"
    assert run("quantize", model, "-o", small, "--data", data).exit_code == 0
    assert "quantized already" in run("diagnose", small, small, "--data", data).stderr
    blocked = run("diagnose", small, model, "--data", data, "--out", small)
    assert (blocked.exit_code, "cannot make the folder" in blocked.stderr) == (1, True)


def test_measure(model, data, tmp_path):
    small = tmp_path / "small.onnx"
    assert run("quantize", model, "-o", small).exit_code == 0
    shown = run("measure", model, small, "--data", data, "--seconds", 0.1, "--json")
    assert shown.exit_code == 0, shown.stderr
    found = json.loads(shown.stdout)
    assert list(found["measurements"]) == [str(model), str(small)]
    assert found["measurements"][str(small)]["size_bytes"]["value"] == small.stat().st_size
    assert "least cosine 0.99" in found["notes"][0]
    assert "over 32 runs" in found["notes"][0]
    for row in found["measurements"].values():
        assert {f"throughput_batch{size}_per_s" for size in (1, 4, 16)} < set(row)
    shown = run("measure", model, small, "--seconds", 0.1)
    assert "inputs are random" in shown.stdout
    assert "latency p50" in shown.stdout
    assert "throughput batch16" in shown.stdout
    assert "energy" in shown.stdout


def test_measure_estimates_energy_without_counters(model, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.import_module("alula.measurement.measure"), "find_meter", lambda: None)
    small = tmp_path / "small.onnx"
    assert run("quantize", model, "-o", small).exit_code == 0
    stranger, proto = tmp_path / "stranger.onnx", onnx.load(small)
    for tensor in proto.graph.initializer:
        for node in proto.graph.node:
            node.input[:] = [f"{one}_q" if one == tensor.name else one for one in node.input]
        tensor.name += "_q"
    onnx.save(proto, stranger)
    shown = run("measure", model, small, stranger, "--seconds", 0.1, "--json")
    assert shown.exit_code == 0, shown.stderr
    found = json.loads(shown.stdout)
    energies = [row.get("energy_mj") for row in found["measurements"].values()]
    macs, words = 16 * 64 + 64 * 4, 16 * 64 + 64 * 4
    assert energies[0]["value"] == pytest.approx(1e-9 * (macs * 4.6 + 4 * words * 243.75))
    scales = 4 * (64 + 4)
    assert energies[1]["value"] == pytest.approx(1e-9 * (macs * 0.3 + (words + scales) * 243.75))
    assert energies[1]["estimated"]
    assert energies[2] is None  # its weights bear names that alula does not know
    assert f"{stranger}: no energy" in found["notes"][-1]


@pytest.mark.parametrize(("spoilt", "said"), [(True, "or NaN, Inf"), (False, "by at most 0 of")])
def test_measure_does_not_take_nan_for_equality(model, tmp_path, spoilt, said):
    proto = onnx.load(model)
    if spoilt:  # y becomes sqrt(-1 - |y|), which is NaN everywhere
        proto.graph.node[-1].output[0] = "before"
        proto.graph.initializer.append(numpy_helper.from_array(np.float32(-1), "minus"))
        chain = (("Abs", ["before"], "size"), ("Sub", ["minus", "size"], "below"), ("Sqrt", ["below"], "y"))
        proto.graph.node.extend(helper.make_node(operator, given, [made]) for operator, given, made in chain)
    other = tmp_path / "other.onnx"
    onnx.save(proto, other)
    shown = run("measure", model, other, "--seconds", 0.1, "--json")
    assert shown.exit_code == 0, shown.stderr
    assert said in json.loads(shown.stdout)["notes"][0]


def test_feeds_come_one_after_another_and_only_as_many_as_asked_for(model, data):
    feeds = _feeds(load_model(model), data, 5)
    assert isinstance(feeds, Iterator)
    assert [feed["x"].shape for feed in feeds] == [(1, 16)] * 5


def test_measure_mistakes(model, tmp_path):
    assert "at least two" in run("measure", model).stderr
    assert "at least two" in run("measure", model, model).stderr
    np.savez(tmp_path / "wrong.npz", z=np.zeros((4, 16), np.float32))
    small = tmp_path / "small.onnx"
    assert run("quantize", model, "-o", small).exit_code == 0
    shown = run("measure", model, small, "--data", tmp_path / "wrong.npz")
    assert shown.exit_code == 1
    assert "missing x" in shown.stderr


def test_compress_for_real(model, data, tmp_path):
    out = tmp_path / "out"
    shown = run("compress", model, "--data", data, "--out", out, "--minimize", "size", "--max-drop", "20%", "--json")
    assert shown.exit_code in (0, 4), shown.stderr
    frontier = read_result(out)
    assert json.loads(shown.stdout) == frontier.to_json()
    assert frontier.best.size_bytes < frontier.original.size_bytes
    assert (out / "report.html").is_file()
    assert load_model(out / "model.onnx", allow_quantized=True).inputs[0].name == "x"
