"""How much a unit matters, from its weights alone or from its weights and their gradients.

| symbol | code | shape | unit | meaning |
|---|---|---|---|---|
| w_i | weights | [n, k] | of the weights | all weights of unit i, in one row |
| g_i | gradients | [n, k] | loss / weights | gradients of the loss by them |
| s_i | result | [n] | see below | importance of unit i, at least 0; the least matters least |

Sources: magnitude, Li et al. 2017, "Pruning filters for efficient ConvNets", section 3.1 (p = 1); geometric median, He
et al. 2019, "Filter pruning via geometric median", equation 4; first order, Molchanov et al. 2019, "Importance
estimation for neural network pruning", equation 8; second order, the diagonal of the empirical Fisher information,
Theis et al. 2018, "Faster gaze prediction with dense networks and Fisher pruning", equation 8.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def magnitude(weights: NDArray[np.floating], p: float = 2.0) -> Floats:  # [n, k] -> [n]
    """s_i = (sum over k of |w_ik|^p)^(1/p).

    >>> magnitude(np.array([[3.0, -4.0], [0.0, 0.0]])).tolist()
    [5.0, 0.0]
    """
    return np.asarray(np.linalg.norm(weights.astype(np.float64), ord=p, axis=1))


def distance_to_others(weights: NDArray[np.floating]) -> Floats:  # [n, k] -> [n]
    """s_i = sum over j of |w_i - w_j|: a unit near the geometric median of all can be replaced by the others.

    >>> distance_to_others(np.array([[0.0], [1.0], [5.0]])).tolist()
    [6.0, 5.0, 9.0]
    """
    wide = weights.astype(np.float64)
    squares = (wide**2).sum(1)
    products = wide @ wide.T  # [n, n]: memory grows with the units, not with their weights
    distances = np.sqrt(np.maximum(squares[:, None] + squares - 2 * products, 0))
    np.fill_diagonal(distances, 0)
    return np.asarray(distances.sum(1))


def first_order(weights: NDArray[np.floating], gradients: NDArray[np.floating]) -> Floats:  # [n, k] -> [n]
    """s_i = (sum over k of g_ik w_ik)^2: the squared change of the loss, to first order, when unit i becomes zero.

    >>> first_order(np.array([[1.0, 2.0]]), np.array([[3.0, -1.0]])).tolist()
    [1.0]
    """
    return np.asarray((weights.astype(np.float64) * gradients).sum(1) ** 2)


def second_order(weights: NDArray[np.floating], fisher: NDArray[np.floating]) -> Floats:  # [n, k] -> [n]
    """s_i = 1/2 sum over k of F_kk w_ik^2, with F the mean of squared gradients of single examples, [n, k].

    >>> second_order(np.array([[1.0, 2.0]]), np.array([[4.0, 1.0]])).tolist()
    [4.0]
    """
    return np.asarray(0.5 * (fisher * weights.astype(np.float64) ** 2).sum(1))
