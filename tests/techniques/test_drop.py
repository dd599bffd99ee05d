"""Dropping whole blocks: by name, the least harmful first."""

from __future__ import annotations

import numpy as np
import pytest

from alula.errors import DataError, ModelError, RecipeError
from alula.graph.blocks import find_blocks, without_blocks
from alula.graph.tidy import tidy
from alula.techniques.drop import Drop, choose_blocks, measure_block_harm
from alula.techniques.technique import Context
from alula.testing.conformance import TechniqueConformance, with_weight
from alula.testing.models import model_from_text


def stream(scales=(1.0, 1.0, 1.0, 1.0)):
    """Residual blocks s + relu(s W): the size of each W is given."""
    random = np.random.default_rng(0)
    weights = {"w": random.standard_normal((4, 4)).astype(np.float32)}
    text = "e = MatMul (x, w) r = Relu (e) s0 = Add (e, r)"
    for number, scale in enumerate(scales):
        weights[f"w{number}"] = scale * random.standard_normal((4, 4)).astype(np.float32)
        after = "y" if number == len(scales) - 1 else f"s{number + 1}"
        text += f" a{number} = MatMul (s{number}, w{number}) b{number} = Relu (a{number})"
        text += f" {after} = Add (s{number}, b{number})"
    return tidy(model_from_text(f"n (float[b, 4] x) => (float[b, 4] y) {{ {text} }}", weights))


def feeds(count=2):
    random = np.random.default_rng(1)
    return [{"x": random.standard_normal((5, 4)).astype(np.float32)} for _ in range(count)]


def names_of(model):
    return [block.name for block in find_blocks(model)]


def apply(technique, model, layers=None):
    chosen = tuple(layer for layer in model.layers() if layers is None or layer.name in layers)
    return technique.apply(model, Context(chosen))


class TestDrop(TechniqueConformance):
    tolerance = 10.0  # what a network loses that nothing heals, random as these are

    @pytest.fixture
    def technique(self):
        return Drop(("*",))


def test_the_harm_is_the_relative_change_of_the_outputs():
    model, data = stream((0.01, 1.0, 0.3, 0.1)), feeds(3)
    harms = measure_block_harm(model, names_of(model), data)
    assert list(harms) == names_of(model)
    for name, harm in harms.items():
        smaller = without_blocks(model, [name])
        before, after = (
            np.concatenate([network.run(feed)["y"] for feed in data]).astype(np.float64) for network in (model, smaller)
        )
        assert harm == pytest.approx(np.sqrt(((after - before) ** 2).sum() / (before**2).sum()), rel=1e-9)


def test_a_block_that_adds_nothing_does_no_harm():
    model = stream((1.0, 0.0, 1.0))
    harms = list(measure_block_harm(model, names_of(model), feeds()).values())
    assert harms[1] == 0 < min(harms[0], harms[2])


def test_the_least_harmful_go_first_each_measured_beside_those_before():
    model, data = stream((1.0, 0.02, 0.3, 0.0)), feeds()
    names = names_of(model)
    assert choose_blocks(model, 2, data) == (names[3], names[1])
    chosen = choose_blocks(model, 3, data)
    beside = {
        name: measure_block_harm(model, [name], data, beside=chosen[:2])[name]
        for name in names
        if name not in chosen[:2]
    }
    assert chosen[2] == min(beside, key=lambda name: beside[name])


def test_of_two_blocks_that_do_the_same_one_stays():
    """s + relu(c - s) is max(s, c), twice: either does no harm alone, without the first the second does."""
    random = np.random.default_rng(0)
    text = "e = MatMul (x, w) r = Relu (e) s0 = Add (e, r)"
    for number in range(2):
        text += f" a{number} = MatMul (s{number}, turned) m{number} = Add (a{number}, c) b{number} = Relu (m{number})"
        text += f" s{number + 1} = Add (s{number}, b{number})"
    weights = {
        "w": random.standard_normal((4, 4)).astype(np.float32),
        "turned": -np.eye(4, dtype=np.float32),
        "c": np.full(4, 2.0, np.float32),
        "small": 0.02 * random.standard_normal((4, 4)).astype(np.float32),
    }
    text += " p = MatMul (s2, small) q = Relu (p) y = Add (s2, q)"
    model = tidy(model_from_text(f"n (float[b, 4] x) => (float[b, 4] y) {{ {text} }}", weights))
    first, second, small = names_of(model)[:3]
    alone = measure_block_harm(model, (first, second), feeds())
    assert max(alone.values()) < 1e-6
    assert measure_block_harm(model, [second], feeds(), beside=[first])[second] > 0.1
    chosen = choose_blocks(model, 2, feeds())
    assert chosen[0] in (first, second)
    assert chosen[1] == small


def test_only_blocks_whose_layers_are_all_treated_go():
    model = stream()
    blocks = find_blocks(model)
    smaller = apply(Drop(("*",)), model, layers=blocks[1].layers)
    assert {layer.name for layer in smaller.layers()} == {layer.name for layer in model.layers()} - set(
        blocks[1].layers
    )
    stays = [note.place for note in smaller.notes if "stays" in note.text]
    assert stays == [block.name for block in blocks if block != blocks[1]]
    with pytest.raises(RecipeError, match="none of the 4 blocks"):
        apply(Drop(("*",)), model, layers=())


def test_bad_settings_and_data_are_refused():
    model = stream()
    for blocks in ("*", (), (1,)):
        with pytest.raises(RecipeError, match="blocks must be"):
            Drop(blocks)
    with pytest.raises(RecipeError, match="'nothing' matches none of 4 blocks; there are"):
        apply(Drop(("nothing",)), model)
    with pytest.raises(RecipeError, match="has only 4"):
        choose_blocks(model, 5, feeds())
    with pytest.raises(DataError, match="empty"):
        measure_block_harm(model, names_of(model), [])
    with pytest.raises(DataError, match="inputs must be"):
        measure_block_harm(model, names_of(model), [{"other": np.zeros((1, 4), np.float32)}])
    with pytest.raises(DataError, match="NaN"):
        measure_block_harm(model, names_of(model), [{"x": np.full((1, 4), np.nan, np.float32)}])


def test_broken_weights_are_not_dropped_in_silence():
    model = stream()
    block = find_blocks(model)[2]
    broken = with_weight(model, "w2", lambda weight: np.full_like(weight, np.nan))
    with pytest.raises(ModelError, match=block.layers[0]):
        apply(Drop((block.name,)), broken)
