"""Batches: every row once an epoch, in an order that the seed alone decides, whatever was left out before."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from alula.errors import DataError
from alula.training.batches import Batch, batches_of
from tests.training.networks import rows, small


def flip(inputs: dict, generator: torch.Generator) -> dict:
    return {name: tensor * torch.rand((), generator=generator) for name, tensor in inputs.items()}


def seen(batches, number: int, **how) -> list[Batch]:
    return list(batches.epoch(number, **how))


def test_every_row_once_an_epoch_in_an_order_of_its_own() -> None:
    images, labels = rows(96)
    batches = batches_of(small(), images, labels, batch_size=32, seed=3)
    first, second = seen(batches, 0), seen(batches, 1)
    for epoch in (first, second):
        assert sorted(np.concatenate([batch.rows for batch in epoch])) == list(range(96))
    assert not np.array_equal(first[0].rows, second[0].rows)
    for batch in first:
        assert torch.equal(batch.inputs["images"], torch.from_numpy(images[batch.rows]))
        assert torch.equal(batch.labels, torch.from_numpy(labels[batch.rows]))


@pytest.mark.parametrize("augment", [None, flip])
def test_later_batches_are_the_same_when_earlier_ones_are_left_out(augment) -> None:
    batches = batches_of(small(), *rows(96), batch_size=16, augment=augment)
    for whole, rest in zip(seen(batches, 2)[4:], seen(batches, 2, start=4), strict=True):
        assert torch.equal(whole.inputs["images"], rest.inputs["images"])


def test_shares_of_processes_are_equal_apart_and_all() -> None:
    batches = batches_of(small(), *rows(96), batch_size=32)
    whole = seen(batches, 0)
    shares = [seen(batches, 0, share=(number, 3)) for number in range(3)]
    for index, batch in enumerate(whole):
        parts = [share[index].rows for share in shares]
        assert [len(part) for part in parts] == [10, 10, 10]  # two rows are left over
        assert len(set(np.concatenate(parts)) & set(batch.rows)) == 30


def test_augmented_rows_differ_from_epoch_to_epoch_and_are_not_remembered() -> None:
    batches = batches_of(small(), *rows(16), batch_size=16, augment=flip)
    first, second = seen(batches, 0)[0], seen(batches, 1)[0]
    assert first.rows is None
    assert not torch.equal(first.inputs["images"], second.inputs["images"])


def test_a_loader_gives_mappings_pairs_or_tensors() -> None:
    images, labels = (torch.from_numpy(array) for array in rows(8))
    for item in (
        {"images": images, "labels": labels},
        (images, labels),
        [images, labels],
        ({"images": images}, labels),
    ):
        (batch,) = seen(batches_of(small(), [item]), 0)
        assert torch.equal(batch.inputs["images"], images)
        assert torch.equal(batch.labels, labels)
    (alone,) = seen(batches_of(small(), [images]), 0)
    assert alone.labels is None


def test_a_shuffling_loader_draws_the_same_after_a_resumption() -> None:
    dataset = torch.utils.data.TensorDataset(*(torch.from_numpy(array) for array in rows(64)))
    loader = torch.utils.data.DataLoader(dataset, batch_size=8, shuffle=True)
    batches = batches_of(small(), loader, seed=1)
    torch.rand(5)  # whatever else draws
    whole = seen(batches, 1)
    torch.rand(3)
    rest = seen(batches, 1, start=5)
    assert all(torch.equal(a.labels, b.labels) for a, b in zip(whole[5:], rest, strict=True))
    assert not torch.equal(seen(batches, 0)[0].labels, whole[0].labels)


class Noisy(torch.utils.data.Dataset):
    """Rows that are drawn when they are asked for."""

    def __len__(self) -> int:
        return 32

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return torch.rand(3, 8, 8), index


def test_a_dataset_that_draws_gives_the_same_after_a_resumption() -> None:
    batches = batches_of(small(), torch.utils.data.DataLoader(Noisy(), batch_size=8, shuffle=True))
    whole = []
    for batch in batches.epoch(0):
        whole.append(batch)
        torch.manual_seed(7)  # training draws between two batches
    (*_, last) = seen(batches, 0, start=3)
    assert torch.equal(whole[-1].inputs["images"], last.inputs["images"])


@pytest.mark.parametrize(("item", "message"), [
    ({"pictures": 1}, r"must hold the inputs \['images'\], got \['pictures'\]"),
    ((1, 2, 3), "a batch is a mapping of"),
    ({"images": torch.zeros(2, 3, 8, 7)}, r"wants images: float32\[batch, 3, 8, 8\], .* got float32\[2, 3, 8, 7\]"),
    ({"images": torch.zeros(2, 3, 8, 8, dtype=torch.uint8)}, "got uint8"),
    ({"images": torch.zeros(0, 3, 8, 8)}, "with one row at least"),
    ({"images": torch.full((2, 3, 8, 8), float("nan"))}, "batch 0 of epoch 0: input 'images' holds NaN"),
])  # fmt: skip
def test_batches_that_do_not_fit_are_named(item, message: str) -> None:
    with pytest.raises(DataError, match=message):
        seen(batches_of(small(), [item]), 0)


def test_data_that_cannot_be_walked_through_again_are_refused() -> None:
    with pytest.raises(DataError, match="a generator can be walked through once"):
        batches_of(small(), (batch for batch in []))
    with pytest.raises(DataError, match="data is a list, so an iterable of batches"):
        batches_of(small(), [1], labels=[1])

    class Endless:
        def __iter__(self):
            return iter(())

    with pytest.raises(DataError, match="tells no length"):
        len(batches_of(small(), Endless()))


def test_an_augmentation_that_loses_an_input_is_named() -> None:
    with pytest.raises(DataError, match="augment must give the inputs"):
        seen(batches_of(small(), *rows(8), augment=lambda inputs, generator: {}), 0)


def test_a_loader_of_doubles_is_taken_in_single_precision() -> None:
    (batch,) = seen(batches_of(small(), [torch.zeros(2, 3, 8, 8, dtype=torch.float64)]), 0)
    assert batch.inputs["images"].dtype == torch.float32


def test_loaders_of_other_content_are_told_apart() -> None:
    first, same, other = (batches_of(small(), [torch.full((2, 3, 8, 8), value)]) for value in (1.0, 1.0, 2.0))
    assert first.identity() == same.identity() != other.identity()


def test_more_rows_than_there_are_make_one_batch() -> None:
    batches = batches_of(small(), *rows(5), batch_size=64)
    assert len(batches) == 1
    assert len(seen(batches, 0)[0]) == 5
