"""Calibration data in every form that it comes in, and in those that it must not come in."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from alula import Prune, Recipe, Step, apply_recipe
from alula.errors import DataError
from alula.graph.feeds import feeds_of
from tests.training.networks import rows, small

IMAGES, LABELS = rows(32)
LOADER = torch.utils.data.DataLoader(
    torch.utils.data.TensorDataset(torch.from_numpy(IMAGES), torch.from_numpy(LABELS)), batch_size=16
)
FORMS = {
    "an array": IMAGES,
    "a tensor": torch.from_numpy(IMAGES),
    "arrays by name": {"images": IMAGES},
    "feeds": [{"images": IMAGES[:16]}, {"images": IMAGES[16:]}],
    "feeds with labels": [{"images": IMAGES[:16], "labels": LABELS[:16]}, {"images": IMAGES[16:]}],
    "arrays one after another": [IMAGES[:16], IMAGES[16:]],
    "a loader": LOADER,
    "batches of one": [(IMAGES[:16],), (IMAGES[16:],)],
}


@pytest.mark.parametrize("form", FORMS)
def test_all_forms_are_the_same_feeds(form: str) -> None:
    found = list(feeds_of(small().inputs, FORMS[form]))
    assert [list(feed) for feed in found] == [["images"], ["images"]]
    np.testing.assert_array_equal(np.concatenate([feed["images"] for feed in found]), IMAGES)


@pytest.mark.parametrize(("data", "message"), [
    ("images.npy", "got str"), (None, "got NoneType"), (3, "got int"), ([3], "a feed is a mapping .* got int"),
    (np.full((4, 3, 8, 8), np.inf, np.float32), "input 'images' holds NaN or infinity"),
    ([{"images": np.full((4, 3, 8, 8), np.nan, np.float32)}], "input 'images' holds NaN or infinity"),
    (np.zeros((0, 3, 8, 8), np.float32), "calibration data has 0 rows"),
    ({"images": IMAGES, "other": IMAGES[:3]}, "the same number of rows"),
], ids=["path", "none", "number", "numbers", "infinity", "nan", "no rows", "ragged"])  # fmt: skip
def test_what_is_no_calibration_data_is_said(data: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        list(feeds_of(small().inputs, data))


@pytest.mark.parametrize("form", FORMS)
def test_a_step_takes_them_all(form: str) -> None:
    recipe = Recipe((Step(Prune(0.5, criterion="taylor")),))
    wanted = apply_recipe(small(), recipe, IMAGES)
    assert apply_recipe(small(), recipe, FORMS[form]).fingerprint == wanted.fingerprint


def test_a_step_that_reads_data_asks_for_them() -> None:
    with pytest.raises(DataError, match="step 1, Prune: reads what the graph computes on examples; give calibration="):
        apply_recipe(small(), Recipe((Step(Prune(0.5, criterion="taylor")),)))
