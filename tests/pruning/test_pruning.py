"""Pruning to a goal: the goal is met, no more than needed goes, and what cannot be met is said."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import alula
from alula import Goal, Model, Pruning, Training
from alula.errors import DataError, RecipeError
from alula.graph.channels import find_couplings
from alula.numerics.allocation import Limits
from alula.pruning.goal import Stopwatch, counted, relative_costs
from alula.pruning.ladders import rungs_of, savings_of
from tests.training.networks import rows


class Wide(nn.Module):
    """Three convolutions whose widths can go, one of them around a residual addition."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.stem_norm = nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32)
        self.wide, self.back = nn.Conv2d(32, 48, 3, padding=1), nn.Conv2d(48, 32, 3, padding=1)
        self.wide2, self.back2 = nn.Conv2d(32, 48, 3, padding=1), nn.Conv2d(48, 32, 3, padding=1)
        self.head = nn.Linear(32, 2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.stem_norm(self.stem(images)))
        x = torch.relu(x + self.back(torch.relu(self.wide(x))))
        x = torch.relu(x + self.back2(torch.relu(self.wide2(x))))
        return self.head(x.mean((2, 3)))


@pytest.fixture(scope="module")
def model() -> Model:
    torch.manual_seed(0)
    return alula.export_module(Wide(), torch.zeros(2, 3, 8, 8))


EXAMPLE = {"images": np.zeros((1, 3, 8, 8), np.float32)}


def times(kind: str, before: Model, after: Model) -> float:
    return counted(before, kind, EXAMPLE) / counted(after, kind, EXAMPLE)


@pytest.mark.parametrize("scope", ["global", "absolute", "sensitivity", "uniform"])
@pytest.mark.parametrize("kind", ["macs", "parameters"])
def test_the_goal_is_met_and_hardly_passed(model: Model, scope: str, kind: str) -> None:
    goal = Goal(**{kind: 1.8})
    smaller = alula.prune(model, *rows(64), goal=goal, pruning=Pruning(scope=scope, multiple=1))
    assert 1.8 <= times(kind, model, smaller) < 2.1
    assert smaller.run(EXAMPLE)[smaller.outputs[0].name].shape == (1, 2)
    assert [spec.name for spec in smaller.inputs] == ["images"]


@pytest.mark.parametrize(("macs", "parameters"), [(1.3, 2.0), (2.0, 1.3)])
def test_several_goals_hold_all(model: Model, macs: float, parameters: float) -> None:
    goal = Goal(macs=macs, parameters=parameters)
    smaller = alula.prune(model, *rows(64), goal=goal, pruning=Pruning(multiple=1))
    saved = {"macs": times("macs", model, smaller), "parameters": times("parameters", model, smaller)}
    assert saved["macs"] >= macs
    assert saved["parameters"] >= parameters
    assert min(saved["macs"] / macs, saved["parameters"] / parameters) < 1.2  # the harder one is hardly passed
    with pytest.raises(RecipeError, match="parameters become"):
        alula.prune(model, *rows(64), goal=Goal(macs=1.1, parameters=500.0))


@pytest.mark.parametrize("criterion", ["l1", "batch-norm scale", "fisher", "brain surgeon", "zeros", "random"])
def test_every_kind_of_criterion_serves(model: Model, criterion: str) -> None:
    smaller = alula.prune(model, *rows(64), goal=Goal(macs=1.5), pruning=Pruning(criterion=criterion, multiple=1))
    assert 1.5 <= times("macs", model, smaller) < 1.7


def test_without_labels_the_outputs_tell_what_matters(model: Model) -> None:
    smaller = alula.prune(model, rows(64)[0], goal=Goal(macs=1.5), pruning=Pruning(multiple=1))
    assert 1.5 <= times("macs", model, smaller) < 1.8


@pytest.mark.parametrize("criterion", ["l1", "l2", "geometric median", "taylor", "fisher", "zeros", "activation",
                                       "brain surgeon"])  # fmt: skip
@pytest.mark.parametrize("scope", ["global", "absolute", "uniform"])
def test_units_that_do_nothing_go_first(model: Model, criterion: str, scope: str) -> None:
    from alula.graph.editing import Editor

    editor, idle = Editor(model.edit()), list(range(0, 48, 2))
    for name in ("wide.weight", "wide.bias"):
        array = model.weight(name).copy()
        array[idle] = 0
        editor.replace_constant(name, array)
    planted = model.edited(editor.model)
    settings = Pruning(criterion=criterion, scope=scope, include=("wide",), multiple=1, compensate=False)
    smaller = alula.prune(planted, *rows(64), goal=Goal(macs=1.2), pruning=settings)
    left = smaller.weight("wide.weight")
    assert len(left) < 48
    busy = np.delete(model.weight("wide.weight"), idle, 0)
    assert all(any(np.array_equal(one, other) for other in left) for one in busy)  # none of those that work is gone


def test_whole_blocks_go_where_they_matter_least(model: Model) -> None:
    from alula.graph.editing import Editor

    editor = Editor(model.edit())
    for name in ("back2.weight", "back2.bias"):
        editor.replace_constant(name, np.zeros_like(model.weight(name)))
    idle = model.edited(editor.model)  # its second block adds nothing
    settings = Pruning(scope="sensitivity", blocks=True, least=0.9)
    smaller = alula.prune(idle, *rows(64), goal=Goal(macs=1.6), pruning=settings)
    names = {layer.name for layer in smaller.layers()}
    assert "back2" not in names
    assert "wide2" not in names
    assert "back" in names
    x = {"images": rows(8)[0]}
    np.testing.assert_allclose(
        next(iter(smaller.run(x).values())), next(iter(idle.run(x).values())), atol=1e-5
    )  # fmt: skip


def test_widths_are_those_that_kernels_like(model: Model) -> None:
    smaller = alula.prune(model, *rows(64), goal=Goal(macs=2.0))
    assert {layer.shape[0] % 16 for layer in smaller.layers() if layer.name != "head"} == {0}
    assert not [note for note in smaller.notes if "widths are" in note.text]


def test_widths_give_way_where_the_goal_would_be_passed_by_far(model: Model) -> None:
    smaller = alula.prune(model, *rows(64), goal=Goal(macs=1.3))
    assert {layer.shape[0] % 8 for layer in smaller.layers() if layer.name != "head"} == {0}
    assert 1.3 <= times("macs", model, smaller) < 1.15 * 1.3
    (note,) = [note for note in smaller.notes if "widths are" in note.text]
    assert "multiples of 8" in note.text


def test_two_rungs_tell_what_all_save(model: Model) -> None:
    cost = relative_costs(model, Goal(macs=2.0), EXAMPLE)["macs"]
    for coupling in find_couplings(model):
        places = [rungs_of(coupling, np.arange(coupling.size, dtype=float), Limits(0.1, 4))]
        (smooth,), (every,) = (savings_of(model, places, cost, EXAMPLE, smooth=told) for told in (True, False))
        np.testing.assert_allclose(smooth, every, rtol=1e-6)


def test_latency_is_measured_and_said(model: Model) -> None:
    smaller = alula.prune(model, *rows(64), goal=Goal(latency=1.15), pruning=Pruning(multiple=16))
    watch = Stopwatch(model, alula.OnnxRuntime(threads=1), EXAMPLE)
    assert watch(smaller) < 1
    assert any("times faster on onnxruntime" in str(note) for note in smaller.notes)


def test_rounds_train_in_between_and_resume(model: Model, tmp_path: Path) -> None:
    call = {
        "goal": Goal(macs=2.0), "pruning": Pruning(rounds=2, multiple=1), "training": Training(epochs=1, batch_size=32),
        "out": tmp_path,
    }  # fmt: skip
    first = alula.prune(model, *rows(96), **call)
    again = alula.prune(model, *rows(96), **call)
    assert first.fingerprint == again.fingerprint
    assert 2.0 <= times("macs", model, first) < 2.3
    assert {path.name for path in tmp_path.iterdir()} == {"round-1", "round-2"}


def test_the_original_teaches_what_is_left(model: Model) -> None:
    images, labels = rows(400)
    taught = alula.finetune(model, images, labels, training=Training(epochs=6, batch_size=32, learning_rate=0.01))
    settings = Training(epochs=6, batch_size=32, learning_rate=0.01)
    pruned = alula.prune(taught, images, labels, goal=Goal(macs=4.0), training=settings)
    bare = alula.prune(taught, images, labels, goal=Goal(macs=4.0))
    probe, truth = rows(400, 7)
    right = [
        (next(iter(one.run({"images": probe}).values())).argmax(1) == truth).mean() for one in (taught, pruned, bare)
    ]
    assert right[1] > right[0] - 0.1
    assert right[1] >= right[2]


@pytest.mark.parametrize(("change", "error", "message"), [
    ({"goal": Goal(macs=500.0)}, RecipeError, "within the limits macs become .* times less at most, not 500"),
    ({"pruning": Pruning(include=("head",))}, RecipeError, "no units of the chosen layers can go"),
    ({"pruning": Pruning(include=("nowhere",))}, RecipeError, "'nowhere' matches none"),
    ({"data": np.zeros((0, 3, 8, 8), np.float32), "labels": np.zeros(0, int)}, DataError, "no rows"),
    ({"data": np.full((8, 3, 8, 8), np.inf, np.float32)}, DataError, "NaN or Inf"),
], ids=lambda value: value if isinstance(value, str) else "")  # fmt: skip
def test_what_cannot_be_done_is_said(model: Model, change: dict, error: type[Exception], message: str) -> None:
    images, labels = rows(8)
    with pytest.raises(error, match=message):
        alula.prune(model, **{"data": images, "labels": labels, "goal": Goal(macs=1.5), **change})


@pytest.mark.parametrize("settings", [{}, {"macs": 0.5}, {"macs": 2.0, "parameters": 0.5}, {"latency": float("inf")}])
def test_a_goal_is_something_that_can_be(settings: dict) -> None:
    with pytest.raises(RecipeError):
        Goal(**settings)


@pytest.mark.parametrize("settings", [
    {"criterion": "luck"}, {"scope": "local"}, {"rounds": 0}, {"least": 2.0}, {"multiple": 0}, {"blocks": True},
])  # fmt: skip
def test_impossible_settings_are_refused(settings: dict) -> None:
    with pytest.raises(RecipeError):
        Pruning(**settings)


class Bottleneck(nn.Module):
    """Two residual blocks that are narrow inside, so that both their insides and they themselves may go."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 16, 3, padding=1), nn.Linear(16, 2)
        self.narrow = nn.ModuleList(nn.Conv2d(16, 8, 1) for _ in range(2))
        self.across = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1) for _ in range(2))
        self.back = nn.ModuleList(nn.Conv2d(8, 16, 1) for _ in range(2))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.stem(images))
        for narrow, across, back in zip(self.narrow, self.across, self.back, strict=True):
            x = torch.relu(x + back(torch.relu(across(torch.relu(narrow(x))))))
        return self.head(x.mean((2, 3)))


def test_blocks_go_together_with_units_of_the_stream_they_are_on() -> None:
    torch.manual_seed(0)
    network = alula.export_module(Bottleneck(), torch.zeros(2, 3, 8, 8))
    settings = Pruning(scope="sensitivity", blocks=True, multiple=1)
    for macs in (1.3, 2.0, 4.0, 8.0):
        smaller = alula.prune(network, *rows(32), goal=Goal(macs=macs), pruning=settings)
        assert times("macs", network, smaller) >= macs
        assert next(iter(smaller.run({"images": rows(3)[0]}).values())).shape == (3, 2)


def test_the_least_that_stays_is_of_the_original_however_many_rounds(model: Model) -> None:
    settings = Pruning(rounds=4, least=0.5, multiple=1)
    smaller = alula.prune(model, *rows(64), goal=Goal(macs=2.5), pruning=settings)
    sizes = {one.name: one.size for one in find_couplings(model)}
    left = {one.name: one.size for one in find_couplings(smaller)}
    assert all(left[name] >= size / 2 for name, size in sizes.items())
    assert min(left[name] / size for name, size in sizes.items()) < 0.6  # it is used
    with pytest.raises(RecipeError, match="within the limits"):
        alula.prune(model, *rows(64), goal=Goal(macs=6.0), pruning=settings)


def test_a_criterion_that_tells_nothing_of_a_layer_says_so(model: Model) -> None:
    settings = Pruning(criterion="batch-norm scale", multiple=1)
    smaller = alula.prune(model, *rows(32), goal=Goal(macs=1.3), pruning=settings)
    assert any("batch-norm scale tells nothing of them" in str(note) for note in smaller.notes)
    with pytest.raises(RecipeError, match="does not compare with what it tells of others"):
        alula.prune(model, *rows(32), goal=Goal(macs=1.3), pruning=Pruning("batch-norm scale", "absolute", multiple=1))
