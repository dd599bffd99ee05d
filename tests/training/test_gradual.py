"""The cubic schedule: when zeros are chosen, how many, and which."""

from __future__ import annotations

import numpy as np
import pytest

from alula.errors import RecipeError
from alula.training.gradual import Gradual

WEIGHTS = {"a": np.arange(1, 101, dtype=np.float32).reshape(10, 10), "b": np.full((5, 20), 1000.0, np.float32),
           "bias": np.zeros(10, np.float32)}  # fmt: skip


@pytest.mark.parametrize("step", [0, 5, 10, 40, 60, 61, 100])
def test_the_share_follows_the_cube(step: int) -> None:
    """Zhu & Gupta 2018, equation 1, spelled out."""
    gradual = Gradual(0.8, begin=0.1, end=0.6, scope="uniform")
    masks = gradual.masks(WEIGHTS, step, 100)
    done = min(max((step - 10) / 50, 0.0), 1.0)
    share = 0.8 + (0.0 - 0.8) * (1 - done) ** 3
    assert (~masks["a"]).sum() == pytest.approx(share * 100, abs=1)
    assert "bias" not in masks


def test_the_smallest_of_all_go_first() -> None:
    masks = Gradual(0.4, scope="global").masks(WEIGHTS, 100, 100)
    assert (~masks["a"]).sum() == 80
    assert not (~masks["b"]).any()
    assert not masks["a"].ravel()[:80].any()


def test_zeros_are_chosen_between_begin_and_end() -> None:
    gradual = Gradual(0.5, begin=0.2, end=0.5, every=4)
    assert [step for step in range(60) if gradual.chooses_at(step, 50)] == [14, 18, 22, 25]


@pytest.mark.parametrize("settings", [
    {"amount": 1.0}, {"amount": 0.5, "begin": 0.6}, {"amount": 0.5, "end": 1.1}, {"amount": 0.5, "every": 0},
    {"amount": 0.5, "scope": "layer"},
])  # fmt: skip
def test_impossible_settings_are_refused(settings: dict) -> None:
    with pytest.raises(RecipeError):
        Gradual(**settings)


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 7])
def test_however_short_a_run_the_amount_is_reached(steps: int) -> None:
    gradual = Gradual(0.5, begin=0.5, end=0.6)
    chosen = [step for step in range(1, steps + 1) if gradual.chooses_at(step, steps)]
    assert chosen
    assert gradual.is_reached(chosen[-1], steps)
    assert (~gradual.masks(WEIGHTS, chosen[-1], steps)["a"]).sum() == 100 - 1  # one weight of a layer stays at least


def test_what_is_excluded_must_be_there() -> None:
    with pytest.raises(RecipeError, match="'nowhere' matches none of a, b"):
        Gradual(0.5, exclude=("nowhere",)).check(WEIGHTS)


def test_nothing_to_make_sparse_is_refused() -> None:
    with pytest.raises(RecipeError, match="no weight is left"):
        Gradual(0.5, exclude=("*",)).masks(WEIGHTS, 1, 1)
