"""Settings of another kind are refused where they are given, in words, wherever they are given."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

import alula
from alula import Goal, Model, Prune, Pruning, Recipe, Remembered, Stage, Step, Training
from alula.errors import AlulaError, ModelError, RecipeError
from alula.settings import check_settings, fits, in_words
from alula.training.losses import CrossEntropy, SoftLabels
from tests.training.networks import Small, rows, small


@pytest.fixture(scope="module")
def model() -> Model:
    return small()


WRONG: dict[str, tuple[Callable[[Model], object], str]] = {
    "a goal that is a number": (lambda model: alula.prune(model, *rows(8), goal=2.0), "goal must be a Goal, got 2.0"),
    "a target by name": (lambda _: Goal(latency=2.0, target="onnxruntime"), "target must be a Target, got 'onnxr"),
    "times as text": (lambda _: Goal(macs="2x"), "macs must be a number or None, got '2x'"),
    "pruning by name": (
        lambda model: alula.prune(model, *rows(8), goal=Goal(macs=1.5), pruning="l2"),
        "a Pruning or N",
    ),
    "training that is a number": (lambda model: alula.finetune(model, *rows(8), training=1), "must be a Training, or"),
    "a folder that is a number": (lambda model: alula.finetune(model, *rows(8), out=3), "out must be text, a path or"),
    "a loss by name": (
        lambda model: alula.finetune(model, *rows(8), loss="ce"),
        "loss must be a Loss or None, got 'ce'",
    ),
    "no patterns": (lambda _: Pruning(include=None), "include must be a tuple of text, got None"),
    "a technique for a recipe": (lambda model: alula.apply_recipe(model, Prune(0.5)), "recipe must be a Recipe, got"),
    "a technique for a step": (lambda _: Recipe((Prune(0.5),)), "steps must be a tuple of Step"),
    "no technique": (lambda _: Step(None), "technique must be a Technique, got None"),
    "a class for a technique": (lambda _: Step(Prune), "technique must be a Technique, got the class Prune"),
    "an amount as text": (lambda _: Prune("half"), "amount must be a number, got 'half'"),
    "an amount that is a switch": (lambda _: Prune(True), "amount must be a number, got True"),
    "a rate as text": (lambda _: Training(learning_rate="0.1"), "learning_rate must be a number, got '0.1'"),
    "no rate": (lambda _: Training(learning_rate=None), "learning_rate must be a number, got None"),
    "half a row": (lambda _: Training(batch_size=3.5), "batch_size must be a whole number, got 3.5"),
    "a folder to remember in": (lambda model: Remembered(model, 3), "folder must be text or a path, got 3"),
    "a stage without a loss": (lambda _: Stage("x", Training()), "loss must be a Loss, got 'x'"),
    "one pattern as text": (
        lambda model: alula.quantize(model, rows(8)[0], include="conv"),
        "include must be a tuple of",
    ),
    "a temperature as text": (lambda _: SoftLabels(temperature="4"), "temperature must be a number, got '4'"),
}


@pytest.mark.parametrize("name", WRONG)
def test_another_kind_is_refused_in_words(model: Model, name: str) -> None:
    call, message = WRONG[name]
    with pytest.raises(RecipeError) as caught:
        call(model)
    assert message in str(caught.value)


def test_every_public_setting_refuses_what_is_no_setting() -> None:
    """An object of no kind at all is refused by each field of each dataclass of settings, not only by those tried."""
    settings = [
        Goal(macs=2.0), Pruning(), Training(), Prune(0.5), Stage(CrossEntropy(), Training()), Step(Prune(0.5)),
        alula.Cluster(16), alula.Factorize(0.5), alula.Float16(), alula.Quantize(), alula.QuantizeDynamic(),
        alula.QuantizeWeights(), alula.Recode(), alula.Sparsify(0.5), alula.StoreSparse(), alula.Drop(("a",)),
        CrossEntropy(), SoftLabels(),
    ]  # fmt: skip
    for one in settings:
        for name in one.__dataclass_fields__:
            given = {field: getattr(one, field) for field in one.__dataclass_fields__} | {name: object()}
            with pytest.raises(AlulaError, match=name):
                pytest.fail(f"{type(one)(**given)} was taken")


def test_numbers_of_numpy_and_lists_are_taken() -> None:
    assert Training(learning_rate=np.float32(0.5), batch_size=np.int64(4)).batch_size == 4
    assert Pruning(include=["conv", "head"]).include == ("conv", "head")
    assert Recipe([Step(Prune(0.5))]).steps == (Step(Prune(0.5)),)


def test_kinds_in_words() -> None:
    assert in_words(Callable[[int], int] | None) == "a function or None"
    assert in_words(tuple[float, str]) == "a tuple of a number and text"
    assert in_words(Path) == "a path"
    assert fits(len, Callable[[int], int])
    assert not fits(3, Callable[[int], int])
    assert fits((1.0, "a"), tuple[float, str])
    assert not fits((1.0,), tuple[float, str])
    check_settings(Training())


@pytest.mark.parametrize("thing", [None, 3, Small(), onnx.ModelProto()], ids=["none", "number", "module", "message"])
def test_what_is_no_path_is_not_opened(thing: object) -> None:
    with pytest.raises(ModelError, match="load_model opens the path"):
        alula.load_model(thing)


def test_recipes_take_messages_and_refuse_modules(model: Model) -> None:
    recipe = Recipe((Step(Prune(0.5)),))
    message = onnx.load_from_string(model.to_bytes())
    assert alula.apply_recipe(message, recipe).fingerprint == alula.apply_recipe(model, recipe).fingerprint
    with pytest.raises(ModelError, match=r"export_module\(module, example\) makes a Model of Small"):
        alula.apply_recipe(Small(), recipe)
