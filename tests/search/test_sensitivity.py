from __future__ import annotations

import math

import numpy as np
import pytest

from alula.graph.statistics import collect
from alula.numerics.ranges import MinMax
from alula.recipe import Recipe, Step, apply_recipe
from alula.search import sensitivity
from alula.search.calibration import calibrate
from alula.search.sensitivity import Harm, compare, compressed_layers, only, rank_harm
from alula.techniques import Quantize, QuantizeDynamic, QuantizeWeights
from tests.oracles.tasks import classification, network

RECIPE = Recipe((Step(Quantize(range=MinMax())),))


def feeds(n=16, seed=3):
    return [{"x": np.random.default_rng(seed).normal(size=(n, 32)).astype(np.float32)}]


def statistics_for(task, recipe=RECIPE):
    return calibrate(task, [recipe]).statistics["model"]


def test_the_planted_layer_is_the_most_harmful_by_far() -> None:
    task = classification(outlier=300.0)
    harms = rank_harm(task.parts["model"], RECIPE, statistics_for(task), feeds())
    assert next(iter(harms)) == "second"
    errors = [harm.error for harm in harms.values()]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 5 * errors[1]


def test_harm_is_what_the_slow_way_gives() -> None:
    task = classification(outlier=30.0)
    model, statistics = task.parts["model"], statistics_for(task)
    harms = rank_harm(model, RECIPE, statistics, feeds())
    y = model.run(feeds()[0])["logits"].astype(np.float64)
    for name in ("first", "second", "last"):
        alone = apply_recipe(model, Recipe((Step(Quantize(), include=(name,)),)), statistics)
        z = alone.run(feeds()[0])["logits"]
        assert harms[name].error == pytest.approx(np.linalg.norm(z - y) / np.linalg.norm(y), rel=1e-6)
        assert harms[name].agreement == np.mean(np.argmax(y, -1) == np.argmax(z, -1))
        assert harms[name].n == 1


def test_the_model_is_not_changed() -> None:
    task = classification()
    before = task.parts["model"].fingerprint
    rank_harm(task.parts["model"], RECIPE, statistics_for(task), feeds())
    assert task.parts["model"].fingerprint == before


def test_more_bits_do_less_harm() -> None:
    model = network()
    recipes = [Recipe((Step(QuantizeWeights(bits=bits, smallest=0)),)) for bits in (3, 4, 6, 8)]
    errors = [rank_harm(model, recipe, collect(model, [], []), feeds())["second"].error for recipe in recipes]
    assert errors == sorted(errors, reverse=True)


def test_a_layer_that_cannot_be_compressed_alone_does_no_harm() -> None:
    from onnx import TensorProto, helper

    from tests.oracles.networks import make_model

    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="product"),
        helper.make_node("Gemm", ["h", "v"], ["y"], name="scaled", alpha=0.5),
    ]
    weights = {name: rng.normal(size=(32, 32)).astype(np.float32) for name in "wv"}
    model = make_model(nodes, [("x", TensorProto.FLOAT, ["n", 32])], [("y", TensorProto.FLOAT, ["n", 32])], weights)
    harms = rank_harm(model, Recipe((Step(QuantizeDynamic()),)), collect(model, [], []), feeds())
    assert harms["scaled"] == Harm(0.0, None, 1)
    assert harms["product"].error > 0


def test_many_layers_are_measured_in_blocks_within_the_limit(monkeypatch) -> None:
    layers = tuple(f"layer{i}" for i in range(200))
    true = dict.fromkeys(layers, 0.0001) | {"layer77": 0.5, "layer150": 0.2}
    calls = []

    def measure(model, recipe, *_):
        calls.append(recipe)
        return Harm(math.sqrt(sum(true[name] ** 2 for name in recipe)), 1.0, 1)

    monkeypatch.setattr(sensitivity, "compressed_layers", lambda *_: layers)
    monkeypatch.setattr(sensitivity, "only", lambda recipe, model, names, part: tuple(names))
    monkeypatch.setattr(sensitivity, "_measure", measure)
    monkeypatch.setattr(sensitivity, "_run", lambda *_: [])
    harms = rank_harm(network(), RECIPE, None, [], limit=60)
    assert len(calls) <= 60
    assert set(harms) == set(layers)
    assert list(harms)[:2] == ["layer77", "layer150"]
    assert harms["layer77"].error == pytest.approx(0.5, rel=1e-3)
    total = math.sqrt(sum(harm.error**2 for harm in harms.values()))
    assert total == pytest.approx(math.sqrt(sum(error**2 for error in true.values())), rel=1e-6)


def test_compare_knows_its_limit_cases() -> None:
    y = {"y": np.array([[1.0, 2.0], [4.0, 3.0]])}
    assert compare([y], [y]) == Harm(0.0, 1.0, 1)
    assert compare([y], [{"y": 0 * y["y"]}]).error == pytest.approx(1.0)
    assert compare([y], [{"y": np.full((2, 2), np.nan)}]).error == math.inf
    assert compare([y], [{"y": y["y"][:, ::-1]}]).agreement == 0.0
    whole = {"ids": np.array([1, 2, 3, 4])}
    assert compare([whole], [{"ids": np.array([1, 2, 3, 5])}]) == Harm(0.25, 0.75, 1)
    silent = {"y": np.zeros((2, 2))}
    assert compare([silent], [silent]).error == 0.0
    assert compare([silent], [y]).error == math.inf


def test_a_recipe_is_cut_down_to_the_named_layers() -> None:
    model = network()
    both = Recipe((Step(Quantize(), include=("first",)), Step(QuantizeDynamic(), include=("second", "last"))))
    assert compressed_layers(model, both) == ("first", "second", "last")
    cut = only(both, model, ["last"])
    assert [type(step.technique) for step in cut.steps] == [QuantizeDynamic]
    assert compressed_layers(model, cut) == ("last",)
