from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from alula.errors import DataError
from alula.graph.statistics import Request, collect
from alula.numerics.ranges import MinMax, Percentile
from alula.recipe import Recipe, Step, apply_recipe
from alula.search.calibration import CHUNK, RECORDED_CALLS, calibrate
from alula.search.sensitivity import only
from alula.task import Task
from alula.techniques import Quantize, QuantizeDynamic
from tests.oracles.tasks import classification, network

STATIC = Recipe((Step(Quantize(range=MinMax())),))


def looping(calls, n=8, **changes) -> Task:
    """A task whose scorer runs the model ``calls`` times per example, feeding it 1, 2, 3, ..."""

    def scorer(run, examples):
        for example in examples:
            for step in range(calls):
                run({"x": np.full((1, 32), step + 100 * example, np.float32)})
        return np.ones(len(examples))

    plain = {"parts": {"model": network()}, "calibration": range(n), "evaluation": range(4), "scorer": scorer}
    return Task(**{**plain, **changes})


def test_statistics_are_those_of_all_examples() -> None:
    task = classification()
    found = calibrate(task, [STATIC]).statistics["model"]
    x = np.stack([task.calibration[i].feeds["x"] for i in range(len(task.calibration))])
    oracle = collect(task.parts["model"], [{"x": x}], [Request("x"), Request("r1", histogram=True)])
    assert found["x"].minimum == oracle["x"].minimum
    assert found["r1"].maximum == pytest.approx(oracle["r1"].maximum, rel=1e-5)
    assert found["r1"].mean == pytest.approx(oracle["r1"].mean, rel=1e-5)


def test_one_pass_serves_every_recipe_and_every_choice_of_layers() -> None:
    task = classification()
    recipes = [STATIC, Recipe((Step(Quantize(range=Percentile())),)), Recipe((Step(QuantizeDynamic()),))]
    statistics = calibrate(task, recipes).statistics["model"]
    model = task.parts["model"]
    for recipe in recipes:
        for layers in (["first"], ["second"], ["last"], ["first", "last"], ["first", "second", "last"]):
            apply_recipe(model, only(recipe, model, layers), statistics)


def test_diagnosis_sees_every_layers_input_with_its_channels() -> None:
    statistics = calibrate(classification(), [STATIC]).statistics["model"]
    for tensor, channels in (("x", 32), ("r1", 64), ("r2", 64)):
        assert statistics[tensor].histogram is not None
        assert statistics[tensor].channels[-1].maximum.shape == (channels,)


def test_recorded_feeds_are_bounded_spread_and_copied() -> None:
    found = calibrate(looping(100, n=40), [STATIC]).feeds["model"]
    assert RECORDED_CALLS // 2 < len(found) <= RECORDED_CALLS
    values = [feed["x"][0, 0] for feed in found]
    assert values == sorted(values)
    assert values[0] == 0
    assert values[-1] > 100 * 10


def test_progress_reaches_the_end() -> None:
    seen = []
    calibrate(looping(1, n=40), [STATIC], lambda done, total: seen.append((done, total)))
    assert seen == [(CHUNK, 40), (2 * CHUNK, 40), (40, 40)]


def test_nan_in_calibration_is_named() -> None:
    def scorer(run, examples):
        run({"x": np.full((1, 32), np.nan, np.float32)})
        return np.ones(len(examples))

    with pytest.raises(DataError, match=r"calibration examples 0\.\.7.*x.*NaN"):
        calibrate(looping(1, scorer=scorer), [STATIC])


def test_a_scorer_that_raises_is_named_with_its_examples() -> None:
    def scorer(run, examples):
        raise KeyError("label")

    with pytest.raises(DataError, match=r"scorer failed on calibration examples 0\.\.7: KeyError: 'label'"):
        calibrate(looping(1, scorer=scorer), [STATIC])


def test_a_part_that_does_not_exist_and_a_part_that_is_never_run_are_named() -> None:
    def scorer(run, examples):
        run({"x": np.ones((1, 32), np.float32)}, part="decoder")
        return np.ones(len(examples))

    with pytest.raises(DataError, match="has the parts model; its scorer ran 'decoder'"):
        calibrate(looping(1, scorer=scorer), [STATIC])
    task = looping(1)
    with pytest.raises(DataError, match=r"part 'spare'.*empty"):
        calibrate(replace(task, parts={**task.parts, "spare": network()}), [STATIC])
