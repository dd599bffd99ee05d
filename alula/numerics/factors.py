"""Weights as products of smaller ones: singular values, with and without what the inputs weigh; Tucker; CP.

| symbol | code | shape | unit | meaning |
|---|---|---|---|---|
| W | matrix | [g, m, n] | of the weights | what multiplies the n inputs of each of g groups |
| M | moments | [g, n, n] | of the inputs, squared | mean of x x^T over the inputs x of a group |
| C | | [g, n, n] | of the inputs | Cholesky factor, M = C C^T; the identity where M is not given |
| U s V^T | | | of the outputs | singular value decomposition of W C, largest values first |
| r | rank | | | inner width of the factors of one group |
| K | kernel | [g, o, i, d...] | of the weights | weight of a convolution: o outputs, i inputs a group, kernel d... |
| P, G, Q | outer, core, inner | [g, o, p], [g, p, q, d...], [g, q, i] | | Tucker-2; P, Q^T have orthonormal columns |
| A_n | factors | [length of axis n, r] | | CP of K: one matrix for each axis |

    W ~ (U_r s_r^1/2) (s_r^1/2 V_r^T C^-1),   lost = sum_{j>r} s_j^2 / sum_j s_j^2 = E|(W - W~) x|^2 / E|W x|^2
    K_oid ~ sum_pq P_op G_pqd Q_qi                    K_oid ~ sum_r A1_or A2_ir A3_dr

Sources: Eckart and Young 1936 (the truncated decomposition is the nearest matrix of its rank); Chen et al. 2021,
"DRONE: data-aware low-rank compression for large NLP models", and Wang et al. 2024, "SVD-LLM", section 3.1 (the same
for outputs, by Cholesky whitening); Kim et al. 2016, "Compression of deep convolutional neural networks for fast and
low power mobile applications" (Tucker-2 of a convolution); De Lathauwer et al. 2000, "On the best rank-1 and
rank-(R1, ..., RN) approximation of higher-order tensors" (HOOI); Lebedev et al. 2015, "Speeding-up convolutional neural
networks using fine-tuned CP-decomposition"; Kolda and Bader 2009, "Tensor decompositions and applications",
figure 3.3 (CP by alternating least squares).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from alula.errors import DataError

Floats = NDArray[np.float64]

DAMPING: Final = 1e-4  # share of the mean moment added to each: directions that calibration never saw keep some weight
_SWEEPS: Final = 100  # of alternating least squares, at most
_ITERATIONS: Final = 20  # of the orthogonal iteration, at most: it starts near its end
_SETTLED: Final = 1e-7  # a sweep that gains less of the energy ends them
_RIDGE: Final = 1e-9  # keeps CP's normal equations solvable where columns become parallel


@dataclass(frozen=True, slots=True, eq=False)
class SingularFactors:
    """A matrix as a product of two, at every rank: W ~ left[..., :r] @ right[:, :r]."""

    left: Floats  # [g, m, min(m, n)]
    values: Floats  # [g, min(m, n)]
    right: Floats  # [g, min(m, n), n]

    def at(self, rank: int) -> tuple[Floats, Floats]:  # -> [g, m, r], [g, r, n]
        """The factors of a rank, as large as each other in their singular values."""
        root = np.sqrt(self.values[:, :rank])
        return self.left[:, :, :rank] * root[:, None, :], self.right[:, :rank] * root[:, :, None]

    def lost(self) -> Floats:  # [min(m, n) + 1]
        """The share of the energy of the outputs that each rank loses, from rank 0 to full; 0 where there is none."""
        return lost_shares((self.values**2).sum(0))


def singular_factors(matrix: NDArray[np.floating], moments: Floats | None = None) -> SingularFactors:
    """The matrices of each rank that change the outputs least in the mean square (DRONE, SVD-LLM).

    Args:
        matrix: W, [g, m, n].
        moments: M, [g, n, n]; without them all inputs count alike, and the change of W itself is least.

    Raises:
        DataError: a value is not finite, or the moments do not fit the matrix.
    """
    wide = _finite(matrix, "the matrix")
    if moments is None:
        left, values, right = np.linalg.svd(wide, full_matrices=False)
        return SingularFactors(left, values, right)
    root = whitening(moments, matrix.shape[0], matrix.shape[2])
    left, values, right = np.linalg.svd(wide @ root, full_matrices=False)
    undone = np.linalg.solve(root.swapaxes(1, 2), right.swapaxes(1, 2)).swapaxes(1, 2)  # V^T C^-1
    return SingularFactors(left, values, undone)


def whitening(moments: Floats, groups: int, inputs: int) -> Floats:  # -> [g, n, n]
    """C, lower triangular, with C C^T = M + DAMPING mean(diagonal of M) I; the identity for a group without any energy.

    Raises:
        DataError: the moments are of another shape, not finite, or no mean of products.
    """
    if moments.shape != (groups, inputs, inputs):
        raise DataError(f"moments must be of shape {[groups, inputs, inputs]}, got {list(moments.shape)}")
    wide = _finite(moments, "the moments")
    mean = np.einsum("gii->g", wide)[:, None, None] / max(inputs, 1)
    scaled = np.divide(wide, mean, where=mean > 0, out=np.zeros_like(wide))
    damping = np.where(mean > 0, DAMPING, 1.0) * np.eye(inputs)
    try:
        root = np.linalg.cholesky(scaled + damping)
    except np.linalg.LinAlgError as error:
        raise DataError("moments must be means of x x^T, which have no negative eigenvalues; these have") from error
    return np.asarray(root * np.where(mean > 0, np.sqrt(np.maximum(mean, 0)), 1.0))


@dataclass(frozen=True, slots=True, eq=False)
class TuckerFactors:
    """A kernel as outer [g, o, p], core [g, p, q, d...] and inner [g, q, i]."""

    outer: Floats
    core: Floats
    inner: Floats

    def whole(self) -> Floats:  # [g, o, i, d...]
        """The kernel that they make."""
        return np.asarray(np.einsum("gop,gpq...,gqi->goi...", self.outer, self.core, self.inner))


def tucker(kernel: NDArray[np.floating], ranks: tuple[int, int]) -> TuckerFactors:
    """Tucker-2 of each group of a kernel, by higher-order orthogonal iteration from the truncated HOSVD.

    Args:
        kernel: K, [g, o, i, d...].
        ranks: p and q; more than the kernel can have is as good as what it has.

    Raises:
        DataError: a value is not finite.
    """
    wide = _finite(kernel, "the kernel")
    flat = wide.reshape(*wide.shape[:3], -1)  # [g, o, i, s]
    outer = _leading(flat, ranks[0])  # [g, o, p]
    inner = _leading(flat.swapaxes(1, 2), ranks[1])  # [g, i, q]
    kept = 0.0
    for _ in range(_ITERATIONS):
        outer = _leading(np.einsum("gois,giq->goqs", flat, inner, optimize=True), ranks[0])
        inner = _leading(np.einsum("gois,gop->gips", flat, outer, optimize=True), ranks[1])
        core = np.einsum("gois,gop,giq->gpqs", flat, outer, inner, optimize=True)
        before, kept = kept, float((core**2).sum())
        if kept - before <= _SETTLED * kept:
            break
    return TuckerFactors(outer, core.reshape(*core.shape[:3], *wide.shape[3:]), inner.swapaxes(1, 2))


def tucker_lost(kernel: NDArray[np.floating]) -> Floats:  # -> [o + 1, i + 1]
    """The share of the kernel's energy that the truncated HOSVD of each pair of ranks loses; :func:`tucker` loses less.

    Raises:
        DataError: a value is not finite.
    """
    wide = _finite(kernel, "the kernel")
    groups, outputs, inputs = wide.shape[:3]
    flat = wide.reshape(groups, outputs, inputs, -1)
    outer, inner = _leading(flat, outputs), _leading(flat.swapaxes(1, 2), inputs)
    core = np.einsum("gois,gop,giq->gpqs", flat, outer, inner, optimize=True)
    energy = np.zeros((outputs + 1, inputs + 1))
    energy[1 : core.shape[1] + 1, 1 : core.shape[2] + 1] = (core**2).sum((0, 3))
    kept = energy.cumsum(0).cumsum(1)
    total = kept[-1, -1]
    return np.asarray(np.maximum(1 - kept / total, 0) if total > 0 else np.zeros_like(kept))


def canonical(kernel: NDArray[np.floating], rank: int, *, seed: int = 0) -> tuple[Floats, ...]:
    """CP of a kernel by alternating least squares: a matrix [length, r] for each axis, columns as large as each other.

    Each starts from the leading singular vectors along its axis, and random ones where those do not suffice.

    Args:
        kernel: K without groups, [o, i, d...].
        rank: r.
        seed: of the random start.

    Raises:
        DataError: a value is not finite.
    """
    wide = _finite(kernel, "the kernel")
    random = np.random.default_rng(seed)
    unfolded = (np.moveaxis(wide, axis, 0).reshape(length, -1) for axis, length in enumerate(wide.shape))
    factors = [_start(matrix, rank, random) for matrix in unfolded]
    total, lost = float((wide**2).sum()), np.inf
    for _ in range(_SWEEPS if total > 0 else 1):
        for axis in range(wide.ndim):
            factors[axis] = _least_squares(wide, factors, axis)
        before, lost = lost, float(((wide - canonical_whole(factors)) ** 2).sum())
        if before - lost <= _SETTLED * total:
            break
    return _levelled(factors)


def canonical_whole(factors: Sequence[Floats]) -> Floats:
    """The kernel that the matrices of CP make, of one axis for each."""
    lengths = [len(factor) for factor in factors]
    return np.asarray((factors[0] @ _column_products(factors[1:]).T).reshape(lengths))


def lost_shares(energy: Floats) -> Floats:  # [n] -> [n + 1]
    """The share of the energy that is lost where only the first 0, 1, ..., n parts of it are kept.

    >>> lost_shares(np.array([3.0, 1.0])).tolist()
    [1.0, 0.25, 0.0]
    """
    tails = np.concatenate([energy[::-1].cumsum()[::-1], [0.0]])
    return np.asarray(tails / tails[0] if tails[0] > 0 else np.zeros_like(tails))


def _leading(tensor: Floats, rank: int) -> Floats:  # [g, a, ...] -> [g, a, at most r]
    """Orthonormal columns that hold the most energy along the axis behind the groups'."""
    unfolded = tensor.reshape(*tensor.shape[:2], -1)
    vectors = np.linalg.eigh(unfolded @ unfolded.swapaxes(1, 2))[1]  # [g, a, a], the least first
    return np.asarray(vectors[:, :, ::-1][:, :, :rank])


def _start(unfolded: Floats, rank: int, random: np.random.Generator) -> Floats:  # [length, rest] -> [length, r]
    vectors = _leading(unfolded[None], rank)[0]
    more = random.standard_normal((len(unfolded), rank - vectors.shape[1])) / np.sqrt(len(unfolded))
    return np.concatenate([vectors, more], axis=1)


def _least_squares(kernel: Floats, factors: Sequence[Floats], axis: int) -> Floats:  # -> [length of the axis, r]
    """The matrix of one axis that fits best, those of the others given."""
    others = [factor for index, factor in enumerate(factors) if index != axis]
    gram = np.prod([factor.T @ factor for factor in others], axis=0)  # [r, r]
    ridge = _RIDGE * (np.trace(gram) / len(gram) or 1.0) * np.eye(len(gram))
    return np.asarray(np.linalg.solve(gram + ridge, _contracted(kernel, factors, axis).T).T)


def _contracted(kernel: Floats, factors: Sequence[Floats], axis: int) -> Floats:  # -> [length of the axis, r]
    """The kernel times the column products of all other axes, one axis after the other: these are never made whole."""
    first, *rest = (other for other in range(kernel.ndim) if other != axis)
    made = np.tensordot(kernel, factors[first], axes=(first, 0))  # [the other lengths..., r]
    left = [other for other in range(kernel.ndim) if other != first]
    for other in rest:
        made = np.einsum("a...r,ar->...r", np.moveaxis(made, left.index(other), 0), factors[other])
        left.remove(other)
    return np.asarray(made)


def _column_products(factors: Sequence[Floats]) -> Floats:  # [a, r], [b, r], ... -> [a * b * ..., r]
    """Column by column, the outer product of all (Khatri-Rao)."""
    product = factors[0]
    for factor in factors[1:]:
        product = (product[:, None, :] * factor[None, :, :]).reshape(-1, factor.shape[1])
    return product


def _levelled(factors: Sequence[Floats]) -> tuple[Floats, ...]:
    """The same product with the columns of one component as large in each matrix."""
    norms = np.array([np.linalg.norm(factor, axis=0) for factor in factors])  # [axes, r]
    wanted = np.prod(norms ** (1 / len(factors)), axis=0)
    scale = np.divide(wanted, norms, where=norms > 0, out=np.zeros_like(norms))
    return tuple(factor * by for factor, by in zip(factors, scale, strict=True))


def _finite(array: NDArray[np.floating], what: str) -> Floats:
    wide = array.astype(np.float64)
    if not np.isfinite(wide).all():
        raise DataError(f"{what} must be finite, got {wide.size - int(np.isfinite(wide).sum())} values that are not")
    return wide
