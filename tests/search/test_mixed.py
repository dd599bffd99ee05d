"""Mixed precision, against every mix of a small network."""

from __future__ import annotations

import importlib
import itertools
import json
import time

import numpy as np
import pytest

from alula.errors import DataError, RecipeError, StorageError
from alula.graph.model import Model
from alula.graph.statistics import collect
from alula.pruning.ladders import measured_harms
from alula.recipe import Recipe, Step, apply_recipe, requests_of
from alula.search import mixes as mixes_module
from alula.search.mixed import Limit, Mix, Mixing, mix
from alula.search.mixes import Mixes
from alula.techniques import Float16, Quantize, QuantizeDynamic, QuantizeWeights
from alula.testing.models import (
    attention_network,
    convolution_network,
    dense_network,
    model_from_text,
    recurrent_network,
)

BITS, FEW = (8, 4, 3, 2), (8, 4, 2)
CODES = tuple(QuantizeWeights(bits=bits, smallest=1) for bits in BITS)
LAYERS = ("first", "second", "third", "last")


def chain(seed: int = 0) -> Model:
    """Four products in a row; of what the second gives, the third reads differences that are small beside it."""
    text = """chain (float[n, 16] x) => (float[n, 4] y) {
        [first] a = MatMul (x, w1)  b = Relu (a)
        [second] c = MatMul (b, w2)
        [third] d = MatMul (c, w3)  e = Relu (d)
        [last] y = MatMul (e, w4)
    }"""
    random = np.random.default_rng(seed)
    shapes = {"w1": (16, 24), "w2": (24, 12), "w3": (12, 48), "w4": (48, 4)}
    weights = {name: random.standard_normal(shape) / np.sqrt(shape[0]) for name, shape in shapes.items()}
    weights["w2"] = 0.05 * weights["w2"] + weights["w2"][:, :1]
    weights["w3"] -= weights["w3"].mean(0)
    return model_from_text(text, {name: array.astype(np.float32) for name, array in weights.items()})


def inputs(seed: int = 1, rows: int = 64) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, 16)).astype(np.float32)


def true_harm(model: Model, recipe: Recipe, data: np.ndarray) -> float:
    return float(measured_harms(model, [apply_recipe(model, recipe)], [{"x": data}])[0])


def recipe_of(bits: tuple[int, ...]) -> Recipe:
    return Recipe(tuple(Step(CODES[BITS.index(one)], include=(name,)) for name, one in zip(LAYERS, bits, strict=True)))


def bits_of(found: Mix) -> dict[str, float]:
    return {share.layer: share.bits for share in found.layers}


@pytest.mark.parametrize("seed", [0, 2])
def test_of_all_mixes_the_best_is_nearly_found(seed: int) -> None:
    model, data = chain(seed), inputs()
    options = [CODES[BITS.index(one)] for one in FEW]
    found = mix(model, data, limit=Limit(weight_bits=4), options=options, mixing=Mixing(evaluations=30))
    bits = tuple(int(one) for one in bits_of(found).values())
    sizes = np.array([int(np.prod(layer.shape)) for layer in model.layers()])
    within = [bits for bits in itertools.product(FEW, repeat=4) if sizes @ bits <= 4 * sizes.sum()]
    harms = {bits: true_harm(model, recipe_of(bits), data) for bits in within}
    best, uniform = min(harms.values()), harms[4, 4, 4, 4]
    assert found.harm == pytest.approx(true_harm(model, found.recipe, data), rel=1e-4)
    assert found.harm == pytest.approx(harms[bits], rel=1e-4)
    assert found.harm <= 1.1 * best
    assert found.uniform_harm == pytest.approx(uniform, rel=1e-4)
    assert best < 0.8 * uniform or seed != 0  # a mix is worth something here
    assert bits_of(found)["second"] == max(bits)
    assert found.costs["weight_bits"] <= 4


def test_bytes_are_those_of_the_file() -> None:
    model, data = chain(), inputs()
    float_size = apply_recipe(model, Recipe()).size_bytes
    for share in (0.6, 0.45):
        limit = int(share * float_size)
        found = mix(model, data, limit=Limit(size_bytes=limit), mixing=Mixing(evaluations=10))
        notes = len(found.model.to_bytes())
        assert notes == found.costs["size_bytes"] <= limit
        assert not {2, 3} & set(bits_of(found).values())  # they take 4 bits in the file, and save nothing
    with pytest.raises(RecipeError, match="least that is possible"):
        mix(model, data, limit=Limit(size_bytes=100))


def test_the_recipe_makes_the_same_model() -> None:
    model = convolution_network()
    data = np.random.default_rng(0).standard_normal((16, 3, 8, 8)).astype(np.float32)
    options = (None, Quantize(), Quantize(weight_bits=4), QuantizeWeights(bits=4, smallest=1))
    found = mix(model, data, limit=Limit(weight_bits=6), options=options, mixing=Mixing(evaluations=12))
    statistics = collect(model, [{"image": data}], requests_of(found.recipe, model))
    for calibration, tolerance in ((statistics, 1e-5), (data, 0.05)):  # data: each step sees what the one before makes
        made = apply_recipe(model, found.recipe, calibration)
        for name, array in found.model.run({"image": data}).items():
            np.testing.assert_allclose(made.run({"image": data})[name], array, atol=tolerance)
    assert Recipe.from_json(json.loads(json.dumps(found.recipe.to_json()))) == found.recipe
    assert found.costs["weight_bits"] <= 6
    assert "expected from the layers alone" in found.model.notes[-1].text or "codes" in found.model.notes[-1].text


def test_everything_fits_a_wide_limit_and_nothing_is_done() -> None:
    found = mix(chain(), inputs(), limit=Limit(weight_bits=32))
    assert found.harm == 0
    assert {share.technique for share in found.layers} == {None}


def test_divergence_of_classes() -> None:
    model, data = chain(), inputs()
    options = {"options": CODES, "mixing": Mixing(harm="divergence", evaluations=10)}
    found = mix(model, data, limit=Limit(weight_bits=4), **options)
    y, z = (one.run({"x": data})["y"].astype(np.float64) for one in (model, found.model))
    p, q = (np.exp(one) / np.exp(one).sum(-1, keepdims=True) for one in (y, z))
    assert found.harm == pytest.approx((p * np.log(p / q)).sum(-1).mean(), rel=1e-3)
    single = model_from_text("net (float[n, 4] x) => (float[n, 1] y) { y = MatMul (x, w) }",
                             {"w": np.ones((4, 1), np.float32)})  # fmt: skip
    with pytest.raises(RecipeError, match="compares classes"):
        mix(single, inputs()[:, :4], limit=Limit(weight_bits=4), **options)


def test_latency_holds_on_the_whole(tmp_path) -> None:
    settings = {"options": (None, CODES[0]), "mixing": Mixing(evaluations=2), "include": ("first",), "out": tmp_path}
    found = mix(chain(), inputs(), limit=Limit(latency_ms=1000.0), **settings)
    assert 0 < found.costs["latency_ms"] < 1000
    with pytest.raises(RecipeError, match="latency_ms or less; the least that is possible is"):
        mix(chain(), inputs(), limit=Limit(latency_ms=1e-6), **settings)


def test_energy_holds_on_the_whole(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A meter of ten watts: millijoules are ten times the milliseconds."""
    module = importlib.import_module("alula.search.stopwatch")
    monkeypatch.setattr(module, "find_meter", lambda: lambda: 10 * time.perf_counter())
    settings = {"options": (None, CODES[0]), "mixing": Mixing(evaluations=2), "include": ("first",), "out": tmp_path}
    found = mix(chain(), inputs(), limit=Limit(latency_ms=1000.0, energy_mj=1e5), **settings)
    assert 2 < found.costs["energy_mj"] / found.costs["latency_ms"] < 50
    assert " mJ; harm" in " ".join(note.text for note in found.model.notes)
    with pytest.raises(RecipeError, match="energy_mj or less; the least that is possible is"):
        mix(chain(), inputs(), limit=Limit(energy_mj=1e-6), **settings)


def test_energy_without_a_meter_is_refused_before_anything_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.import_module("alula.search.stopwatch"), "find_meter", lambda: None)
    monkeypatch.setattr(Mixes, "row", lambda *_: pytest.fail("measured"))
    with pytest.raises(RecipeError, match=r"no meter that may be read: Linux shows .*RAPL.* or limit latency_ms"):
        mix(chain(), inputs(), limit=Limit(energy_mj=1.0))


def test_a_call_goes_on_where_it_was_stopped(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"limit": Limit(weight_bits=4), "options": CODES, "mixing": Mixing(evaluations=10), "out": tmp_path}
    counted, whole = [], Mixes._measured

    def measured(self: Mixes, choice: tuple[int, ...]) -> mixes_module.Row:
        if len(counted) == 9:
            raise KeyboardInterrupt
        counted.append(choice)
        return whole(self, choice)

    monkeypatch.setattr(Mixes, "_measured", measured)
    with pytest.raises(KeyboardInterrupt):
        mix(chain(), inputs(), **settings)
    first, counted[:] = list(counted), []
    monkeypatch.setattr(Mixes, "_measured", lambda self, choice: (counted.append(choice), whole(self, choice))[1])
    resumed = mix(chain(), inputs(), **settings)
    assert not set(first) & set(counted)
    afresh = mix(chain(), inputs(), **{**settings, "out": None})
    assert resumed.recipe == afresh.recipe
    assert resumed.harm == afresh.harm
    counted.clear()
    mix(chain(), inputs(), **settings)
    assert not counted
    mix(chain(), inputs(seed=2), **settings)  # other data: nothing of it holds
    assert counted
    for path in tmp_path.glob("mixed-*.json"):
        path.write_text("{", encoding="utf-8")
    with pytest.raises(StorageError, match="damaged"):
        mix(chain(), inputs(), **settings)


def test_layers_that_share_a_weight_are_one_place() -> None:
    text = """shared (float[n, 16] x) => (float[n, 16] y) {
        [one] a = MatMul (x, w)  b = Relu (a)
        [two] y = MatMul (b, w)
    }"""
    model = model_from_text(text, {"w": np.random.default_rng(0).standard_normal((16, 16)).astype(np.float32)})
    found = mix(model, inputs(), limit=Limit(weight_bits=8), options=CODES)
    assert bits_of(found) == {"one": 8, "two": 8}


def test_what_a_technique_cannot_do_is_left() -> None:
    model = recurrent_network()
    feeds = [{"frames": np.ones((6, 2, 8), np.float32), "h": np.zeros((1, 2, 12), np.float32),
              "c": np.zeros((1, 2, 12), np.float32)}]  # fmt: skip
    found = mix(model, feeds, limit=Limit(weight_bits=31.5), options=(None, QuantizeDynamic()))
    assert [share.technique for share in found.layers] == [None, QuantizeDynamic()]
    with pytest.raises(RecipeError, match="changes none of the chosen layers"):
        mix(model, feeds, limit=Limit(weight_bits=8), options=(None, QuantizeWeights()))
    with pytest.raises(RecipeError, match="no option fits layer"):
        mix(model, feeds, limit=Limit(weight_bits=8), options=(QuantizeDynamic(),))


@pytest.mark.parametrize("network", [dense_network, attention_network])
def test_other_techniques_and_networks(network) -> None:
    model = network()
    (spec,) = model.inputs
    shape = [4 if not isinstance(axis, int) else axis for axis in spec.shape]
    data = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    options = (Float16(), QuantizeWeights(bits=4, block=4, smallest=1, rounding="gptq"), CODES[0])
    found = mix(model, [data, data], limit=Limit(weight_bits=8.5), options=options, mixing=Mixing(evaluations=8))
    assert found.costs["weight_bits"] <= 8.5
    assert found.harm < 0.05


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"limit": 4}, "limit must be a Limit"),
        ({"options": ()}, "options must be techniques"),
        ({"options": (8, 4)}, "one is 8"),
        ({"options": "float"}, "options must be techniques"),
        ({"options": (None, None)}, "twice"),
        ({"mixing": {}}, "mixing must be a Mixing"),
        ({"out": 3}, "out must be"),
        ({"include": ("nothing",)}, "matches none"),
        ({"exclude": ("*",)}, "no layer"),
        ({"limit": Limit(weight_bits=1)}, "the least that is possible is 2"),
    ],
)
def test_mistakes_are_told_in_words(settings: dict, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        mix(chain(), inputs(), **{"limit": Limit(weight_bits=4), **settings})


@pytest.mark.parametrize("values", [{}, {"weight_bits": 0}, {"weight_bits": float("nan")}, {"size_bytes": -1},
                                    {"size_bytes": 1.5}, {"latency_ms": float("inf")}])  # fmt: skip
def test_limits_that_are_none_are_refused(values: dict) -> None:
    with pytest.raises(RecipeError):
        Limit(**values)
    with pytest.raises(RecipeError, match="evaluations"):
        Mixing(evaluations=0)


def test_data_that_are_none_are_refused() -> None:
    with pytest.raises(DataError, match="NaN"):
        mix(chain(), np.full((4, 16), np.nan, np.float32), limit=Limit(weight_bits=4))
    with pytest.raises(DataError, match="at least one feed"):
        mix(chain(), [], limit=Limit(weight_bits=4))
    with pytest.raises(DataError):
        mix(chain(), np.zeros((0, 16), np.float32), limit=Limit(weight_bits=4))


def test_what_places_share_in_the_file_is_not_counted_at_each_of_them() -> None:
    """The table of codes of ternary weights is there once: the file of all of them is a limit that can be met."""
    import alula

    random = np.random.default_rng(0)
    weights = {f"w{number}": random.standard_normal((64, 64)).astype(np.float32) for number in range(4)}
    body = " ".join(f"h{number + 1} = MatMul (h{number}, w{number})" for number in range(4))
    text = f"net (float[n, 64] h0) => (float[n, 64] h4) {{ {body} }}"
    model = alula.testing.model_from_text(text, weights)
    rows = random.standard_normal((16, 64)).astype(np.float32)
    whole = alula.apply_recipe(model, alula.Recipe((alula.Step(alula.Recode("ternary")),)))
    limit = alula.Limit(size_bytes=whole.size_bytes + 50)
    found = alula.mix(model, rows, limit=limit, options=(None, alula.Recode("ternary")))
    assert found.model.size_bytes <= whole.size_bytes + 50
