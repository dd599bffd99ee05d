"""Layers whose second moments would not fit into memory do not make up for what went, and a note says so."""

from __future__ import annotations

import numpy as np
import pytest

import alula
from alula import Goal, Prune, Pruning, Recipe, Step, apply_recipe
from alula.graph.statistics import collect
from alula.recipe import requests_of
from alula.techniques import compensation
from alula.testing import convolution_network, random_feeds


def test_layers_that_read_too_much_are_left_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    model = convolution_network()
    monkeypatch.setattr(compensation, "LARGEST", 4)
    for technique in (Prune(0.3, "brain surgeon"), Prune(0.3, compensate=True)):
        recipe = Recipe((Step(technique),))
        statistics = collect(model, [random_feeds(model, batch=8)], requests_of(recipe, model))
        smaller = apply_recipe(model, recipe, statistics)
        assert any("more than 4" in note.text for note in smaller.notes)
    images = np.random.default_rng(0).random((32, 3, 8, 8), np.float32)
    assert alula.prune(model, images, goal=Goal(parameters=1.1), pruning=Pruning(multiple=1)) is not model
