"""The arithmetic and the pictures of the curves, and the data that they are drawn from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.curves import CLOSE, STEPS, Curve, Mean, Panel, amount_for, draw, mean_of
from benchmarks.extreme_sparsity import paired_drop, render
from benchmarks.networks import mnist, spoken
from benchmarks.pruning_curves import NETWORKS, SHARES, panels, rows_of, section, series


def staircase(drops: list[int]) -> Callable[[float], float]:
    levels = 1 - np.cumsum([0, *drops]) / (sum(drops) + 1)  # falls or stays at each step, and is above 0
    return lambda amount: float(levels[round(amount * STEPS)])


@given(st.lists(st.integers(0, 5), min_size=STEPS - 1, max_size=STEPS - 1), st.floats(0.05, 1))
def test_an_amount_is_close_or_the_closest(drops: list[int], wanted: float) -> None:
    ratio = staircase(drops)
    closest = min(abs(ratio(step / STEPS) - wanted) for step in range(STEPS))
    found = amount_for(ratio, wanted)
    assert found * STEPS == round(found * STEPS)
    assert 0 <= found < 1
    assert abs(ratio(found) - wanted) <= max(CLOSE * wanted, closest) + 1e-12


def test_few_amounts_are_tried() -> None:
    tried = set()

    def ratio(amount: float) -> float:
        tried.add(amount)
        return (1 - amount) ** 1.5

    for share in SHARES:
        amount_for(ratio, share)
    assert len(tried) <= 5 * len(SHARES)  # halving alone takes up to 8 for each


def test_everything_stays_where_everything_is_wanted() -> None:
    assert amount_for(lambda amount: 1 - amount, 1.0) <= CLOSE


def test_an_interval_is_that_of_the_t_distribution() -> None:
    values = [0.91, 0.93, 0.90, 0.95, 0.92]
    mean = mean_of(values)
    assert mean.half is not None
    assert mean.value == pytest.approx(np.mean(values))
    # t(4, 97.5 %) is 2.776 in every table
    assert mean.half == pytest.approx(2.776 * np.std(values, ddof=1) / 5**0.5, rel=1e-3)


def test_one_seed_tells_no_interval() -> None:
    assert mean_of([0.5]) == Mean(0.5, None)
    assert mean_of([0.5]).bounds == (0.5, 0.5)


def test_a_picture_is_well_formed_and_inside_its_frame() -> None:
    curves = tuple(
        Curve(name, (0.1, 0.5, 1.0), (Mean(0.2, 0.9), Mean(0.8, None), Mean(0.9, 0.01))) for name in ("<a>", "b & c")
    )
    root = ET.fromstring(draw([Panel("a < b", "share", curves, level=0.95)] * 3))
    lines = [element for element in root.iter() if element.tag.endswith("polyline")]
    assert len(lines) == 6
    for element in root.iter():
        for pair in element.attrib.get("points", "").split():
            x, y = map(float, pair.split(","))
            assert 0 <= x <= 400
            assert 0 <= y <= 260
    words = [element.text for element in root.iter() if element.tag.endswith("text")]
    assert words.count("<a>") == words.count("b & c") == 1


def test_a_higher_score_is_drawn_higher_and_a_larger_share_further_right() -> None:
    root = ET.fromstring(draw([Panel("", "", (Curve("a", (1.0, 0.2), (Mean(0.9, None), Mean(0.1, None))),))]))
    (line,) = (element for element in root.iter() if element.tag.endswith("polyline"))
    (left, low), (right, high) = (map(float, pair.split(",")) for pair in line.attrib["points"].split())
    assert left < right
    assert low > high  # pixels count downwards


def a_row(score: float) -> dict[str, Any]:
    points = [{"share": s, "macs": s, "pruned": score / 2, "healed": score, "faster": 1 / s} for s in SHARES]
    return {"original": 0.99, "points": points}


def test_tables_show_means_over_seeds_of_their_own_criterion() -> None:
    rows = {
        "mnist, seed 0, l1": a_row(0.8),
        "mnist, seed 1, l1": a_row(0.9),
        "mnist, seed 0, l2": a_row(0.5),
        "spoken, seed 0, l1": a_row(0.1),
    }
    found = {name: series(rows, "mnist", name) for name in ("l1", "l2")}
    text = "\n".join(section(NETWORKS["mnist"], found, "x.svg"))
    assert "| l1 | 85.00 ± 63.53 |" in text
    assert "| l2 | 50.00 |" in text
    for panel in panels(NETWORKS["mnist"], found):
        assert panel.curves[0].x == pytest.approx((1.0, *SHARES))
        assert panel.curves[0].y[0].value == 0.99


def test_rows_of_one_seed_come_before_those_of_the_next() -> None:
    rows = list(rows_of(["mnist", "spoken"], 2))
    assert len(rows) == len(set(rows)) == 2 * (9 + 10)
    assert [seed for _, seed, _ in rows] == sorted(seed for _, seed, _ in rows)
    assert ("mnist", 0, "batch-norm scale") not in rows


def test_a_drop_is_paired() -> None:
    before, after = np.array([True] * 8 + [False] * 2), np.array([True] * 6 + [False] * 3 + [True])
    found = paired_drop(before, after)
    lost = np.array([0] * 6 + [1, 1, 0, -1])
    assert found["drop"] == pytest.approx(0.1)
    assert found["high"] - found["drop"] == pytest.approx(1.96 * lost.std(ddof=1) / 10**0.5)
    assert found["low"] == pytest.approx(0.2 - found["high"])


@pytest.mark.parametrize(("drop", "verdict"), [(0.001, "is met: 0.10"), (0.003, "is missed: 0.30")])
def test_a_page_says_whether_the_limit_is_met(drop: float, verdict: str) -> None:
    dense = {"bytes": 1000, "score": 0.99, "drop": 0.0, "low": 0.0, "high": 0.0}
    sparse = {**dense, "bytes": 50, "drop": drop, "low": drop - 0.001, "high": drop + 0.001}
    origin = {"machine": {}, "versions": {}, "commit": "abc"}
    row = {"weights": 100, "kept": 1, "files": {"dense": dense, "as it is": dense | {"drop": drop}, "x": sparse}}
    text = render([row | origin])
    assert verdict in text
    assert "| sparse, x | 50 | 20.0 |" in text


def test_a_filter_bank_covers_all_frequencies_between_its_ends() -> None:
    filters = spoken.mel_filters()
    assert filters.shape == (spoken.BANDS, spoken.WINDOW // 2 + 1)
    assert (filters >= 0).all()
    assert (filters.sum(1) > 0).all()  # no band is empty
    centres = np.flatnonzero(filters.max(0) > 0)
    assert filters[:, centres[1:-1]].sum(0).min() > 0


def test_a_tone_is_loudest_in_its_band_whatever_its_length_and_loudness() -> None:
    for seconds, loudness in ((0.2, 0.01), (0.8, 1.0), (2.0, 0.3)):
        tone = loudness * np.sin(2 * np.pi * 1000 * np.arange(int(seconds * spoken.RATE_HZ)) / spoken.RATE_HZ)
        made = spoken.spectrogram(tone)
        assert made.shape == (spoken.BANDS, spoken.FRAMES)
        assert abs(made.mean()) < 1e-9
        assert made.std() == pytest.approx(1)
        loudest = made[:, spoken.FRAMES // 2].argmax()
        assert spoken.mel_filters()[loudest].argmax() == round(1000 * spoken.WINDOW / spoken.RATE_HZ)


@pytest.mark.parametrize("clip", [np.zeros(0), np.zeros(5000)])
def test_silence_has_a_finite_spectrogram(clip: np.ndarray) -> None:
    assert np.isfinite(spoken.spectrogram(clip)).all()


@pytest.mark.parametrize(
    ("augment", "shape"), [(mnist.shift, (64, 1, 28, 28)), (spoken.shift_and_mask, (64, 1, 40, 64))]
)
def test_augmentation_follows_its_generator_alone(augment: Any, shape: tuple[int, ...]) -> None:
    batch = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    one, same, other = (augment({"x": batch}, torch.Generator().manual_seed(seed))["x"] for seed in (3, 3, 4))
    assert one.shape == batch.shape
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_images_are_moved_by_two_pixels_at_most() -> None:
    batch = torch.zeros(200, 1, 28, 28)
    batch[:, :, 14, 14] = 1
    moved = mnist.shift({"x": batch}, torch.Generator().manual_seed(0))["x"]
    places = moved[:, 0, 12:17, 12:17].flatten(1).argmax(1)
    assert (moved[:, 0, 12:17, 12:17] == 1).sum() == 200
    assert len(set(places.tolist())) == 25


def test_spoken_splits_share_no_speaker() -> None:
    names = [name for split in spoken.SPEAKERS.values() for name in split]
    assert len(names) == len(set(names)) == 6
