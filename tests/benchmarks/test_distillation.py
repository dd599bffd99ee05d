"""What the tables of distillation are computed from, and how the two loops take turns."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import alula
from alula.testing import convolution_network
from alula.training.batches import batches_of
from alula.training.losses import CrossEntropy
from alula.training.trainer import Progress, train
from benchmarks.distillation_losses import (
    ALONE,
    METHODS,
    PLAIN,
    differences,
    interval,
    maps_by_size,
    places_of,
    render,
    row_key,
    without_rows,
)
from benchmarks.epoch_time import ByHand, Turns

ORIGIN = {"machine": {"processor": "one"}, "versions": {"alula": "1"}, "threads": 1}


def result(rows: dict[str, dict[str, Any]], **more: Any) -> dict[str, Any]:
    size = {"parameters": 5000, "macs": 100}
    return {"title": "digits", "teacher": {"score": 0.99, **size}, "student": size, "rows_seen": 10, "test_examples": 4,
            "learning": {"batch_size": 2}, "rows": rows, **ORIGIN, **more}  # fmt: skip


def row(score: float, **more: Any) -> dict[str, Any]:
    return {"score": score, "commit": "c0ffee", **more}


def test_interval_is_students() -> None:
    # Student 1908: five values, t(0.975, 4) = 2.776
    values = [1.0, 2.0, 3.0, 4.0, 5.0]
    mean, low, high = interval(values)
    half = 2.7764451 * np.std(values, ddof=1) / np.sqrt(5)
    assert mean == 3
    assert (low, high) == pytest.approx((3 - half, 3 + half))


def test_one_seed_has_no_interval() -> None:
    assert interval([0.5]) == (0.5, -np.inf, np.inf)


def test_differences_are_paired_by_seed() -> None:
    rows = {row_key(ALONE, 0): row(0.9), row_key(ALONE, 1): row(0.5), row_key(PLAIN, 1): row(0.75)}
    assert differences(result(rows), PLAIN, ALONE) == [0.25]  # seed 0 has no partner
    assert differences(result(rows), "soft labels", ALONE) == []


def test_differences_are_paired_by_example_where_rows_tell() -> None:
    rows = {row_key(ALONE, 0): row(0.5, wrong=[0, 1]), row_key(PLAIN, 0): row(0.5, wrong=[1, 3])}
    assert differences(result(rows), PLAIN, ALONE) == [1, 0, 0, -1]


def test_only_what_is_asked_for_is_done_again() -> None:
    rows = {row_key(method, seed): row(0.5) for method in (ALONE, PLAIN) for seed in (0, 1)}
    assert set(without_rows(result(rows), [(PLAIN, 0)])) == set(rows) - {row_key(PLAIN, 0)}
    assert without_rows({}, [(PLAIN, 0)]) == {}


def test_the_page_holds_what_ran() -> None:
    page = render([result({row_key(ALONE, 0): row(0.5), row_key(PLAIN, 0): row(0.75)})])
    assert f"| {ALONE} | 1 | 50.00 |  | -25.00 |" in page
    assert f"| {PLAIN} | 1 | 75.00 | 25.00 |  |" in page
    assert "relational" not in page
    assert "commit c0ffee" in page


def test_the_last_rectified_maps_of_each_size_are_found() -> None:
    assert maps_by_size(convolution_network()) == {(8, 8): "c", (4, 4): "h"}


def test_every_method_gives_a_loss_for_the_whole_of_the_steps() -> None:
    places = places_of(convolution_network(seed=1), convolution_network())
    assert places.maps == (("c", "c"), ("h", "h"))
    assert places.sizes == (64, 16)
    assert places.features == ("j", "j")
    for name, method in METHODS.items():
        assert sum(share for share, _ in method(places)) == 1, name


def test_rounds_are_of_epochs_that_stand_side_by_side() -> None:
    now = 0.0
    log: list[str] = []

    def other() -> None:
        nonlocal now
        now += 100
        log.append("B")

    turns = Turns(other, batches=2, clock=lambda: now)
    for step in range(1, 11):  # five epochs of two steps
        now += 1
        log += ["A"] * (step % 2 == 0)
        turns.report(Progress(step, 10, 0.0, None))
    assert "".join(log) == "AABBAABBA"
    assert turns.ours == [2, 2, 2, 2]
    assert turns.theirs == [100, 100, 100, 100]


def test_the_loop_by_hand_does_the_same_steps() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)
    )
    inputs, labels = np.random.default_rng(0).normal(size=(12, 1, 6, 6)).astype(np.float32), np.arange(12) % 3
    model = alula.export_module(network, torch.from_numpy(inputs[:2]))
    training = alula.Training(
        epochs=4, batch_size=12, optimiser="sgd", learning_rate=0.1, weight_decay=0, precision="float32"
    )
    trained = train(model, batches_of(model, inputs, labels, batch_size=12), CrossEntropy(), training).model
    by_hand = ByHand(network, inputs, labels, training)
    losses = [by_hand.train_epoch() for _ in range(4)]
    assert losses[-1] < losses[0]
    for name, tensor in network.state_dict().items():
        if "num_batches" not in name:
            np.testing.assert_allclose(trained.weight(name), tensor.numpy(), rtol=1e-4, atol=1e-5, err_msg=name)
            assert name.endswith("bias") or not np.array_equal(trained.weight(name), model.weight(name)), name
