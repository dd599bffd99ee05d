"""Doors of the graph take what stands for a model, and refuse the rest in words."""

from __future__ import annotations

import onnx
import pytest
import torch

from alula.errors import ModelError, RecipeError
from alula.graph.channels import find_couplings
from alula.graph.cost import measure_cost
from alula.graph.removal import remove_units
from alula.graph.trainable import restored, trainable
from alula.techniques.drop import choose_blocks
from alula.testing.models import convolution_network, random_feeds

DOORS = [trainable, measure_cost, find_couplings]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return convolution_network().save(tmp_path_factory.mktemp("model") / "model.onnx")


@pytest.mark.parametrize("door", DOORS)
def test_files_and_messages_are_taken(door, path):
    assert all(door(thing) is not None for thing in (str(path), path, onnx.load(path)))


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("thing", [None, 3, torch.nn.Linear(2, 2)])
def test_other_things_are_refused(door, thing):
    with pytest.raises(ModelError, match=r"a model is|example inputs"):
        door(thing)


def test_what_was_not_lifted_is_refused():
    for thing in (None, torch.nn.Linear(2, 2)):
        with pytest.raises(ModelError, match="was not lifted"):
            restored(thing)


@pytest.mark.parametrize("numbers", [0, [0.5], "01", [[0]]])
def test_numbers_of_units_are_whole(numbers):
    model = convolution_network()
    with pytest.raises(ModelError, match="a list of whole numbers"):
        remove_units(model, {find_couplings(model)[0].name: numbers})


@pytest.mark.parametrize("count", [2.5, -1, "2"])
def test_numbers_of_blocks_are_counts(count):
    model = convolution_network()
    with pytest.raises(RecipeError, match="count must be"):
        choose_blocks(model, count, [random_feeds(model)])
