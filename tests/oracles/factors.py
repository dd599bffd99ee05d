"""Factorizations as textbooks have them: one element, or one unfolding, at a time."""

from __future__ import annotations

import itertools

import numpy as np


def nearest_of_rank(matrix: np.ndarray, rank: int, inputs: np.ndarray) -> np.ndarray:
    """The matrix of a rank whose products with the inputs, [rows, n], are nearest: the outputs' leading subspace."""
    outputs = matrix @ inputs.T
    energies, vectors = np.linalg.eigh(outputs @ outputs.T)
    leading = vectors[:, np.argsort(energies)[::-1][:rank]]
    return leading @ leading.T @ matrix


def unfolding(tensor: np.ndarray, axis: int) -> np.ndarray:
    """One row for each index along the axis, filled element by element."""
    others = [range(length) for index, length in enumerate(tensor.shape) if index != axis]
    rows = np.empty((tensor.shape[axis], int(np.prod([len(one) for one in others]))))
    for row in range(tensor.shape[axis]):
        for column, rest in enumerate(itertools.product(*others)):
            rows[row, column] = tensor[(*rest[:axis], row, *rest[axis:])]
    return rows


def leading_vectors(rows: np.ndarray, rank: int) -> np.ndarray:
    """Eigenvectors of the largest eigenvalues of rows x rows^T, as columns."""
    energies, vectors = np.linalg.eigh(rows @ rows.T)
    return vectors[:, np.argsort(energies)[::-1][:rank]]


def projected(tensor: np.ndarray, vectors: np.ndarray, axis: int) -> np.ndarray:
    """The tensor with its columns along an axis projected on the span of orthonormal vectors."""
    return np.moveaxis(np.tensordot(vectors @ vectors.T, tensor, axes=(1, axis)), 0, axis)


def truncated(tensor: np.ndarray, ranks: tuple[int, int]) -> np.ndarray:
    """The truncated higher-order singular value decomposition along the first two axes."""
    first, second = (leading_vectors(unfolding(tensor, axis), ranks[axis]) for axis in (0, 1))
    return projected(projected(tensor, first, 0), second, 1)


def orthogonal_iteration(tensor: np.ndarray, ranks: tuple[int, int], sweeps: int = 300) -> np.ndarray:
    """Tucker-2 along the first two axes by higher-order orthogonal iteration."""
    second = leading_vectors(unfolding(tensor, 1), ranks[1])
    for _ in range(sweeps):
        first = leading_vectors(unfolding(projected(tensor, second, 1), 0), ranks[0])
        second = leading_vectors(unfolding(projected(tensor, first, 0), 1), ranks[1])
    return projected(projected(tensor, first, 0), second, 1)


def sum_of_products(factors: list[np.ndarray]) -> np.ndarray:
    """The tensor of a CP decomposition, element by element."""
    tensor = np.zeros([len(factor) for factor in factors])
    for index in itertools.product(*(range(len(factor)) for factor in factors)):
        for component in range(factors[0].shape[1]):
            tensor[index] += np.prod([factor[i, component] for factor, i in zip(factors, index, strict=True)])
    return tensor
