"""Techniques on what real files and data hold at their worst: taken names, ranges without width, hash seeds."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

from alula.errors import AlulaError, DataError
from alula.graph.statistics import Statistics, TensorStatistics, collect
from alula.numerics.ranges import Entropy, MeanSquaredError, MinMax, Percentile
from alula.techniques import Context, Float16, FoldBatchNorm, Quantize, QuantizeDynamic, QuantizeWeights
from alula.testing.conformance import attempt, check_valid, relative_error
from alula.testing.models import dense_network, model_from_text, random_feeds

TECHNIQUES = [
    FoldBatchNorm(),
    Quantize(),
    Quantize(outputs=False, products=True, weight_search=True),
    QuantizeDynamic(),
    QuantizeWeights(smallest=1),
    QuantizeWeights(bits=4, block=4, smallest=1, symmetric=False),
    Float16(),
    Float16(compute=True),
]
EVERY_TECHNIQUE = pytest.mark.parametrize("technique", TECHNIQUES, ids=str)


def conv(weight, bias=None):
    weights = {"w": np.asarray(weight, np.float32)} | ({} if bias is None else {"b": np.asarray(bias, np.float32)})
    inputs = "x, w" if bias is None else "x, w, b"
    return model_from_text(f"net (float[n, 2, 4, 4] x) => (float[n, 3, 4, 4] y) {{ y = Conv ({inputs}) }}", weights)


@EVERY_TECHNIQUE
def test_names_that_techniques_would_give_are_taken_already(technique):
    names = ("a.codes", "a.scale", "a.zero_point", "a.dequantized", "y.float", "y.sums", "y.cast", "w.codes", "w.scale",
             "w.cast", "w.float16", "x.dynamic", "y.scale", "y.product", "x.codes")  # fmt: skip
    weights = {"w": np.eye(4, dtype=np.float32), "v": np.ones((4, 4), np.float32)}
    text, last = "net (float[n, 4] x) => (float[n, 4] y) { t0 = MatMul (x, w) a = Relu (t0)", "a"
    for number, _ in enumerate(names):
        text += f" name{number} = Tanh ({last})"
        last = f"name{number}"
    model = model_from_text(f"{text} y = MatMul ({last}, v) }}", weights)
    graph = model.edit()
    values = {str(value.name): value for node in graph.graph for value in node.outputs}
    for number, name in enumerate(names):
        values[f"name{number}"].name = name
    model = model.edited(graph)
    feeds = random_feeds(model)
    result = attempt(technique, model, feeds)
    assert not isinstance(result, AlulaError), result
    check_valid(result)
    assert relative_error(model.run(feeds), result.run(feeds)) < 0.1


@EVERY_TECHNIQUE
def test_names_with_every_kind_of_character(technique):
    model = dense_network()
    graph = model.edit()
    for number, node in enumerate(graph.graph):
        node.name = f"/läyer [{number}]*?: 'quoted' \n"
        for value in node.outputs:
            if not value.is_graph_output():
                value.name = f"tensor {number}/\\ü;"
    for number, value in enumerate(list(graph.graph.initializers.values())):
        value.name = f"w::{number} .weight"
    model = model.edited(graph)
    feeds = random_feeds(model)
    result = attempt(technique, model, feeds)
    assert not isinstance(result, AlulaError), result
    check_valid(result)
    assert relative_error(model.run(feeds), result.run(feeds)) < 0.1


@pytest.mark.parametrize("method", [MinMax(), Percentile(), MeanSquaredError(), Entropy()], ids=str)
@pytest.mark.parametrize("value", [0.0, 1.0, -3.0, 1e-39, 1e-30, 1e30, 3e37])
def test_calibration_data_without_any_spread(method, value):
    """One value everywhere: all zero, constant, subnormal, near the end of float32."""
    model = conv(np.full((3, 2, 1, 1), 0.5), np.zeros(3))
    feeds = {"x": np.full((1, 2, 4, 4), value, np.float32)}
    result = attempt(Quantize(range=method), model, feeds)
    assert not isinstance(result, AlulaError), result
    expected, output = model.run(feeds)["y"], result.run(feeds)["y"]
    assert np.isfinite(output).all()
    np.testing.assert_allclose(output, expected, rtol=0.02, atol=1e-37)


def test_one_outlier_does_not_break_a_range():
    feeds = {"x": np.random.default_rng(0).standard_normal((64, 2, 4, 4)).astype(np.float32)}
    feeds["x"][0, 0, 0, 0] = 1e6
    for method in (MinMax(), Percentile(99.0), MeanSquaredError(), Entropy()):
        result = attempt(Quantize(range=method), conv(np.ones((3, 2, 1, 1))), feeds)
        assert not isinstance(result, AlulaError), result
        assert np.isfinite(result.run(feeds)["y"]).all()
    clipped = attempt(Quantize(range=Percentile(99.0)), conv(np.ones((3, 2, 1, 1))), feeds)
    assert clipped.weight("x.scale") < 1, "the outlier is cut off"


def test_statistics_of_another_model_are_refused_by_name():
    model = conv(np.ones((3, 2, 1, 1)))
    broken = Statistics({"x": TensorStatistics(1, np.nan, np.nan, np.nan), "y": TensorStatistics(1, 0.0, 1.0, 0.5)})
    with pytest.raises(DataError, match="tensor 'x'"):
        Quantize().apply(model, Context(model.layers(), broken))


@EVERY_TECHNIQUE
def test_a_technique_may_be_applied_to_its_own_result(technique):
    """Nothing is left to do, or what is left is done; the outputs stay."""
    model = dense_network()
    feeds = random_feeds(model)
    once = attempt(technique, model, feeds)
    twice = attempt(technique, once, feeds)
    if isinstance(twice, AlulaError):
        assert "none of the 0 layers" in str(twice) or "cannot be converted" in str(twice)
        return
    check_valid(twice)
    assert relative_error(once.run(feeds), twice.run(feeds)) < 0.1


@EVERY_TECHNIQUE
def test_no_layers_to_treat(technique):
    model = dense_network()
    try:
        result = technique.apply(model, Context(()))
    except AlulaError as error:
        assert "none of the 0 layers" in str(error)  # noqa: PT017
        return
    feeds = random_feeds(model)
    assert relative_error(model.run(feeds), result.run(feeds)) < 1e-2


def test_very_many_channels_of_one_weight_each():
    model = model_from_text(
        "net (float[n, 5000, 1, 1] x) => (float[n, 5000, 1, 1] y) { y = Conv <group = 5000> (x, w) }",
        {"w": np.random.default_rng(0).standard_normal((5000, 1, 1, 1)).astype(np.float32)},
    )
    feeds = random_feeds(model)
    for technique in TECHNIQUES:
        result = attempt(technique, model, feeds)
        if not isinstance(result, AlulaError):
            assert relative_error(model.run(feeds), result.run(feeds)) < 0.05, technique


SCRIPT = """
from alula.testing.conformance import USUAL, attempt, known_run
from tests.hostile.test_techniques import TECHNIQUES
for name in ("convolution network", "attention network"):
    for technique in TECHNIQUES:
        result = attempt(technique, USUAL[name](), known_run(name)[0])
        print(name, technique, getattr(result, "fingerprint", result))
"""


def test_bytes_do_not_depend_on_the_hash_seed():
    seen = {
        subprocess.run(
            [sys.executable, "-c", SCRIPT], check=True, capture_output=True, env={**os.environ, "PYTHONHASHSEED": seed}
        ).stdout
        for seed in ("1", "2")
    }
    assert len(seen) == 1
    assert seen.pop().count(b"network") == 2 * len(TECHNIQUES)


def test_an_activation_that_is_never_reached_is_refused_by_name():
    model = conv(np.ones((3, 2, 1, 1)))
    technique = Quantize()
    with pytest.raises(DataError, match=r"tensor '[xy]'"):
        collect(model, [{"x": np.zeros((0, 2, 4, 4), np.float32)}], technique.requests(model, model.layers()))
