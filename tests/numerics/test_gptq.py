"""GPTQ against optimal brain quantization by the book, and where it must be plain rounding."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from alula.errors import DataError, RecipeError
from alula.numerics.gptq import gptq
from alula.numerics.grids import Grid, quantize
from alula.numerics.ranges import channel_mean_squared_error_range
from tests.oracles.gptq import obq

GRIDS = [Grid(2), Grid(3, symmetric=False), Grid(4, signed=False, symmetric=False), Grid(8, narrow=True)]


def layer(rows: int, columns: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Weights, and second moments of inputs that go together."""
    random = np.random.default_rng(seed)
    mixed = random.standard_normal((4 * columns, columns)) @ random.standard_normal((columns, columns))
    mixed *= np.exp(random.standard_normal(columns))
    return random.standard_normal((rows, columns)).astype(np.float32), mixed.T @ mixed / len(mixed)


def damped(moments: np.ndarray, damping: float = 0.01) -> np.ndarray:
    return moments + damping * np.diag(moments).mean() * np.eye(len(moments))


def by_size(moments: np.ndarray, block: int | None) -> list[int]:
    """The order of columns, spelled out: blocks by their mean, columns by their own, the largest first."""
    seen, width = np.diag(moments), block or len(moments)
    blocks = [list(range(start, min(start + width, len(seen)))) for start in range(0, len(seen), width)]
    blocks.sort(key=lambda columns: -np.mean([seen[column] for column in columns]))
    return [column for columns in blocks for column in sorted(columns, key=lambda column: -seen[column])]


@pytest.mark.parametrize("by_inputs", [False, True], ids=["in order", "by inputs"])
@pytest.mark.parametrize("block", [None, 1, 4, 5, 32])
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_it_is_optimal_brain_quantization(grid: Grid, block: int | None, by_inputs: bool) -> None:
    """Spans of 3 columns end inside blocks, so that the scales of a block need errors that are not applied yet."""
    weights, moments = layer(6, 17)
    order = by_size(moments, block) if by_inputs else range(17)
    wanted = obq(weights, damped(moments), grid, order, block)
    for span in (1, 3, 128):
        given = gptq(weights, moments, grid, block=block, by_size_of_inputs=by_inputs, span=span)
        np.testing.assert_allclose(given.dequantize(), wanted, rtol=1e-5, atol=1e-5)


def test_ranges_are_found_of_the_weights_as_they_are_by_then() -> None:
    weights, moments = layer(5, 12)
    grid = Grid(3)

    def searched(rows: np.ndarray, columns: object = None) -> tuple[np.ndarray, np.ndarray]:
        low, high = channel_mean_squared_error_range(rows, grid, axis=0)
        return np.asarray(low), np.asarray(high)

    wanted = obq(weights, damped(moments), grid, range(12), 4, searched)
    given = gptq(weights, moments, grid, block=4, find_range=searched, span=5)
    np.testing.assert_allclose(given.dequantize(), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("block", [None, 4])
def test_inputs_that_have_nothing_in_common_are_rounded_to_the_nearest(block: int | None) -> None:
    weights, moments = layer(4, 10)
    given = gptq(weights, np.diag(np.diag(moments)), Grid(3), block=block)
    nearest = quantize(weights, Grid(3), axis=0 if block is None else 1, block=block)
    np.testing.assert_array_equal(given.codes, nearest.codes)
    np.testing.assert_array_equal(given.scale, nearest.scale)


def test_what_was_never_seen_is_rounded_and_changes_nothing() -> None:
    weights, moments = layer(4, 8)
    unseen = moments.copy()
    unseen[3], unseen[:, 3] = 0, 0
    ends = weights.min(1), weights.max(1)
    given = gptq(weights, unseen, Grid(4), find_range=lambda rows, columns: ends)
    nearest = quantize(weights, Grid(4), axis=0)
    np.testing.assert_array_equal(given.codes[:, 3], nearest.codes[:, 3])
    others = np.delete(np.arange(8), 3)
    damping = 0.01 * 7 / 8  # the mean of the diagonal counts the column
    rest = gptq(
        weights[:, others],
        unseen[np.ix_(others, others)],
        Grid(4),
        find_range=lambda rows, columns: ends,
        damping=damping,
    )
    np.testing.assert_array_equal(given.codes[:, others], rest.codes)


def test_weights_on_the_grid_stay() -> None:
    _, moments = layer(3, 9)
    codes = np.random.default_rng(1).integers(-7, 8, (3, 9))
    codes[:, 0] = 7
    given = gptq((codes * 0.25).astype(np.float32), moments, Grid(4, narrow=True))
    np.testing.assert_array_equal(given.codes.astype(int), codes)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([2, 3, 4]), st.booleans())
def test_its_error_is_bounded_where_no_code_saturates(seed: int, bits: int, by_inputs: bool) -> None:
    """Each column adds (w_j - q_j)^2 / [H_F^-1]_jj, and no rounding moves a weight by more than half a step.

    So GPTQ is Babai's nearest plane, whose bound is the sum of (s / 2)^2 / [H_F^-1]_jj. (That it harms less than
    rounding to the nearest is no theorem: a greedy choice can lose.)
    """
    weights, moments = layer(16, 12, seed)
    ends = 4 * weights.min(1), 4 * weights.max(1)  # room for what is made up for
    given = gptq(weights, moments, Grid(bits), find_range=lambda rows, columns: ends, by_size_of_inputs=by_inputs)
    codes, grid = given.codes.astype(int), Grid(bits)
    inside = ((codes > grid.lowest) & (codes < grid.highest)).all(1)  # [rows]
    order = by_size(moments, None) if by_inputs else list(range(12))
    hessian = damped(moments)
    left = [np.linalg.inv(hessian[np.ix_(order[place:], order[place:])])[0, 0] for place in range(12)]
    change = given.dequantize().astype(np.float64) - weights
    errors = np.einsum("rk, kl, rl -> r", change, hessian, change)
    bound = (given.scale.astype(np.float64) / 2) ** 2 * sum(1 / one for one in left)
    assert (errors[inside] <= bound[inside] * (1 + 1e-4)).all()
    event(f"{inside.sum()} of 16 rows")


@pytest.mark.parametrize("shape", [(0, 4), (3, 0), (1, 1)])
def test_small_and_empty_matrices(shape: tuple[int, int]) -> None:
    for block in (None, 2):
        given = gptq(np.ones(shape, np.float32), np.eye(shape[1]), Grid(4), block=block)
        assert given.dequantize().shape == shape
        np.testing.assert_allclose(given.dequantize(), np.ones(shape), rtol=1e-6)


@pytest.mark.parametrize(("change", "error", "message"), [
    ({"weights": np.full((2, 3), np.nan)}, DataError, "finite"),
    ({"moments": np.full((3, 3), np.inf)}, DataError, "NaN or infinity"),
    ({"moments": np.eye(4)}, DataError, r"\[k, k\]"),
    ({"moments": np.ones((3, 3)), "damping": 0.0}, DataError, "positive definite"),
    ({"block": 0}, RecipeError, "at least 1"),
    ({"span": 0}, RecipeError, "at least 1"),
    ({"damping": -1.0}, RecipeError, "at least 0"),
    ({"damping": np.nan}, RecipeError, "at least 0"),
    ({"damping": np.inf}, RecipeError, "at least 0"),
])  # fmt: skip
def test_what_is_impossible_is_refused(change: dict, error: type[Exception], message: str) -> None:
    arguments = {"weights": np.ones((2, 3), np.float32), "moments": np.eye(3), "grid": Grid(4), **change}
    with pytest.raises(error, match=message):
        gptq(**arguments)
