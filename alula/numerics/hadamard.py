"""Orthogonal matrices that spread what stands in one channel over all of them.

| symbol | code | shape | meaning |
|---|---|---|---|
| H | hadamard | [n, n] | entries of 1 and -1, rows orthogonal: H H^T = n I |
| s | signs | [n] | 1 or -1, drawn |
| Q | rotation | [n, n] | orthogonal: Q Q^T = I |
| u | | [n] | 1 / sqrt(n) in every entry |

    Q = diag(s) H / sqrt(n)                       a channel of size a gives a / sqrt(n) to each of the n new ones
    Q_u = (I - 2 w w^T / |w|^2) Q,  w = Q u - u   Q_u u = u: the mean of a row x Q_u is that of x

Orders of H (q an odd prime or the square of one, chi its quadratic character: 1 of squares, -1 of others, 0 of 0):

    n = 2 m      [[H_m, H_m], [H_m, -H_m]]                            (Sylvester 1867)
    n = q + 1    I + S,  S = [[0, 1], [-1, chi(a - b)]],   q = 3 mod 4     (Paley 1933, construction I)
    n = 2q + 2   [[C + I, C - I], [C - I, -C - I]],  C = [[0, 1], [1, chi(a - b)]],  q = 1 mod 4     (II)

Sources: R. Paley 1933, "On orthogonal matrices"; S. Ashkboos et al. 2024, "QuaRot: Outlier-Free 4-Bit Inference in
Rotated LLMs", section 3 (arXiv 2404.00456); A. Householder 1958, "Unitary triangularization of a nonsymmetric matrix".
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isqrt

import numpy as np
from numpy.typing import ArrayLike, NDArray

from alula.errors import DataError


def find_hadamard(size: int) -> NDArray[np.float64] | None:  # -> [n, n] of 1 and -1
    """A Hadamard matrix of this order by the constructions of Sylvester and Paley; None where they give none.

    Raises:
        DataError: the size is below 1.
    """
    if size < 1:
        raise DataError(f"a matrix has at least one row, got a size of {size}")
    if size <= 2:
        return np.array([[1.0, 1.0], [1.0, -1.0]])[:size, :size]
    half = find_hadamard(size // 2) if size % 4 == 0 else None
    if half is not None:
        return np.block([[half, half], [half, -half]])
    return _paley(size) if size % 4 == 0 else None


def _paley(size: int) -> NDArray[np.float64] | None:
    if (size - 1) % 4 == 3 and (differences := _characters(size - 1)) is not None:
        return np.eye(size) + _bordered(differences, -1.0)
    if (size // 2 - 1) % 4 == 1 and (differences := _characters(size // 2 - 1)) is not None:
        inner, one = _bordered(differences, 1.0), np.eye(size // 2)
        return np.block([[inner + one, inner - one], [inner - one, -inner - one]])
    return None


def _bordered(inner: NDArray[np.float64], left: float) -> NDArray[np.float64]:  # [q, q] -> [q + 1, q + 1]
    """The matrix with a row of ones above it and a column of ``left`` before it; 0 in the corner."""
    return np.block([[np.zeros((1, 1)), np.ones((1, len(inner)))], [np.full((len(inner), 1), left), inner]])


def _characters(order: int) -> NDArray[np.float64] | None:  # -> [q, q]: chi(a - b)
    """The quadratic characters of all differences in the field of so many elements; None: it is no p or p^2."""
    root = isqrt(order)
    prime = root if root * root == order else order
    if prime < 3 or any(prime % divisor == 0 for divisor in range(2, isqrt(prime) + 1)):
        return None
    first, second = np.divmod(np.arange(order), prime) if prime < order else (np.zeros(order, int), np.arange(order))
    nonresidue = next((r for r in range(2, prime) if pow(r, (prime - 1) // 2, prime) != 1), 0)  # w^2 of a w + b
    squares = 2 * first * second % prime * prime + (nonresidue * first**2 + second**2) % prime
    character = np.full(order, -1.0)
    character[squares] = 1.0
    character[0] = 0.0
    higher, lower = (np.subtract.outer(part, part) % prime for part in (first, second))
    return np.asarray(character[higher * prime + lower])


def orthogonal(size: int, seed: int | Sequence[int] = 0, *, keep_mean: bool = False) -> NDArray[np.float64]:
    """A rotation Q: Hadamard with drawn signs, or drawn as a whole where no Hadamard matrix is found (Q R of normals).

    Args:
        size: n.
        seed: of what is drawn.
        keep_mean: whether rows x Q shall have the mean of x; their layer normalisation is then that of x, rotated.

    Returns:
        float64 [n, n], rows and columns orthogonal and of length 1.

    Raises:
        DataError: the size is below 1.
    """
    random = np.random.default_rng(seed)
    hadamard = find_hadamard(size)
    if hadamard is None:
        basis, triangle = np.linalg.qr(random.standard_normal((size, size)))
        rotation = basis * np.sign(np.diag(triangle))  # of uniform distribution (Mezzadri 2007)
    else:
        rotation = random.choice([-1.0, 1.0], size)[:, None] * hadamard / np.sqrt(size)
    return _keeping_mean(rotation) if keep_mean else rotation


def _keeping_mean(rotation: NDArray[np.float64]) -> NDArray[np.float64]:  # [n, n] -> [n, n]
    """The rotation, reflected so that equal entries stay what they are."""
    even = np.full(len(rotation), 1.0 / np.sqrt(len(rotation)))
    off = rotation @ even - even  # w
    length = float(off @ off)
    return rotation if length < 1e-24 else rotation - np.outer(2.0 / length * off, off @ rotation)


def rotate_along(array: ArrayLike, rotation: NDArray[np.float64], axis: int = -1) -> NDArray[np.float64]:
    """Each run of n entries along an axis, as a row x, becomes x Q.

    Args:
        array: any shape; the axis has a multiple of n entries.
        rotation: Q, [n, n].
        axis: along which the channels lie.

    Returns:
        float64, of the array's shape.

    Raises:
        DataError: the axis is no multiple of n, or an entry is not finite.
    """
    values, size = np.asarray(array, np.float64), len(rotation)
    if not np.isfinite(values).all():
        raise DataError("what is rotated must be finite, got NaN or infinity; it would spread over all channels")
    if values.shape[axis] % size:
        raise DataError(f"channels are rotated {size} at a time, got {values.shape[axis]} of them")
    last = np.moveaxis(values, axis, -1)
    rotated = (last.reshape(-1, size) @ rotation).reshape(last.shape)
    return np.ascontiguousarray(np.moveaxis(rotated, -1, axis))
