"""Folding a history into a factor model, and the exact best items for it; with NumPy alone.

Results are reproducible bit for bit: every sum is added in a written order by elementwise operations, whose
results IEEE 754 fixes, so neither the number of threads, nor the vector width, nor the BLAS library can
change a bit. Matrix products serve only to find candidates; they are off by at most a proven bound, and every
item within it is scored again in the written order.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from consentier.models.scoring import top_items

__all__ = ["FoldIn", "exact_scores", "fold_in", "largest_norm", "positive_items", "system_matrix"]

_ITEMS_PER_BLOCK = 4096  # a block of float64 sums stays in the first-level cache
_ROUNDING = 2.0**-24  # of float32


@dataclass(frozen=True, slots=True, kw_only=True)
class FoldIn:
    """How a history becomes a vector of factors.

    Attributes
    ----------
    unobserved_weight
        Weight of every input that is not in the history, above 0.
    regularisation
        Ridge penalty, above 0.
    frequency_exponent
        The penalty is multiplied by (total weight of the history + unobserved_weight · inputs) to this power.
    """

    unobserved_weight: float
    regularisation: float
    frequency_exponent: float

    def ridge(self, total: float, others: int) -> float:
        """Ridge penalty of a row of some total weight, of so many columns."""
        return float(
            self.regularisation * (total + self.unobserved_weight * others) ** self.frequency_exponent
        )


def fold_in(
    factors: NDArray[np.float32],
    gram: NDArray[np.float64],
    inputs: NDArray[np.int64],
    weights: NDArray[np.float32],
    settings: FoldIn,
) -> NDArray[np.float64]:
    """Solve for the factors of one history, the items' factors being given.

    With ``f_i`` the factors of input i and ``c_i`` its weight in the history, the result ``y`` minimises
    ``Σ_i c_i (y · f_i - 1)² + a Σ_j (y · f_j)² + r |y|²``: i runs over the history, j over all inputs, a is
    the unobserved weight and r the ridge penalty (Hu, Koren and Volinsky, "Collaborative filtering for
    implicit feedback datasets", ICDM 2008, equation 4, with the weights of Rendle et al., "Revisiting the
    performance of iALS on item recommendation benchmarks", RecSys 2022).

    Parameters
    ----------
    factors
        float32, shape (n_inputs, factors), in principal axes: their Gram matrix is diagonal.
    gram
        float64, shape (factors,): that diagonal.
    inputs
        int64, shape (n,), ascending.
    weights
        float32, shape (n,), at least 0.
    settings
        The weights of the sum above.

    Returns
    -------
    ndarray of float64
        Shape (factors,).

    Notes
    -----
    With k factors and m the smaller of n and k: O(n k m) time and O(n k) memory. Histories that are shorter
    than k are solved in their own space, of n dimensions (by the matrix inversion lemma).
    """
    root = np.sqrt(weights.astype(np.float64))
    ridge = settings.ridge(math.fsum(weights.tolist()), factors.shape[0])
    shrink = 1.0 / np.sqrt(settings.unobserved_weight * gram + ridge)
    scaled = (factors[inputs].astype(np.float64) * root[:, None]) * shrink
    if len(inputs) < len(gram):
        columns = np.ascontiguousarray(scaled.T)
        return shrink * _weighted_sum(scaled, _solved(columns, root))
    return shrink * _solved(scaled, _weighted_sum(scaled, root))


def system_matrix(
    factors: NDArray[np.float32],
    gram: NDArray[np.float64],
    inputs: NDArray[np.int64],
    weights: NDArray[np.float32],
    settings: FoldIn,
) -> NDArray[np.float64]:
    """The matrix A of the system ``A y = Σ_i c_i f_i`` whose solution `fold_in` finds, up to rounding.

    Arguments as there. Shape (factors, factors).
    """
    ridge = settings.ridge(math.fsum(weights.tolist()), factors.shape[0])
    given = factors[inputs].astype(np.float64)
    observed: NDArray[np.float64] = given.T @ (given * weights[:, None].astype(np.float64))
    return observed + np.diag(settings.unobserved_weight * gram + ridge)


def exact_scores(
    factors: NDArray[np.float32], items: NDArray[np.int64], vector: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Score some items: ``vector · factors[item]``, added in the order of the factors.

    Parameters
    ----------
    factors
        float32, shape (n_inputs, factors).
    items
        int64, shape (m,).
    vector
        float64, shape (factors,).

    Returns
    -------
    ndarray of float64
        Shape (m,).
    """
    scores = np.zeros(items.size)
    for start in range(0, items.size, _ITEMS_PER_BLOCK):
        columns = np.ascontiguousarray(factors[items[start : start + _ITEMS_PER_BLOCK]].T)
        sums = scores[start : start + _ITEMS_PER_BLOCK]
        for column, coefficient in zip(columns.astype(np.float64), vector, strict=True):
            sums += column * coefficient
    return scores


def largest_norm(factors: NDArray[np.float32]) -> float:
    """Length of the longest row, for `positive_items`. O(size)."""
    if not factors.size:
        return 0.0
    return math.sqrt(
        max(
            float(np.square(factors[start : start + _ITEMS_PER_BLOCK], dtype=np.float64).sum(axis=1).max())
            for start in range(0, factors.shape[0], _ITEMS_PER_BLOCK)
        )
    )


def positive_items(
    factors: NDArray[np.float32],
    norm: float,
    vector: NDArray[np.float64],
    visible: NDArray[np.bool_],
    n: int,
    *,
    approximate: NDArray[np.float32] | None = None,
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Find the best `n` visible items of positive score, exactly.

    Parameters
    ----------
    factors
        float32, shape (n_inputs, factors); the first rows are the items.
    norm
        `largest_norm` of the items' factors.
    vector
        float64, shape (factors,): the history, see `fold_in`.
    visible
        bool, shape (n_items,).
    n
        How many items at most.
    approximate
        float32, shape (n_items,): products of the items' factors with the vector in float32, in whatever
        order they were added. By default computed here.

    Returns
    -------
    ids, scores : ndarray of int64, ndarray of float64
        By descending score, equal scores by ascending id; scores as `exact_scores` gives them.

    Notes
    -----
    O(n_items · factors), bound by the memory that the factors take, and the exact scores of little more than
    n items.
    """
    items = visible.size
    if approximate is None:
        with np.errstate(over="ignore", invalid="ignore"):
            approximate = factors[:items] @ vector.astype(np.float32)
    # A product of k terms in float32, added in any order, of a vector rounded to float32, and twice to spare.
    terms = vector.size + 4
    error = 2 * terms * (_ROUNDING * norm * float(np.sqrt(np.square(vector).sum())) + 1e-37)
    candidates = np.flatnonzero(visible)
    if math.isfinite(error) and np.isfinite(approximate).all():
        near = approximate[candidates].astype(np.float64)
        bar = -error
        if 0 < n < near.size:
            bar = max(bar, float(np.partition(near, near.size - n)[near.size - n]) - 2 * error)
        candidates = candidates[near >= bar]
    scores = exact_scores(factors, candidates, vector)
    positive = scores > 0
    return top_items(candidates[positive], scores[positive], n)


def _weighted_sum(rows: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    total = np.zeros(rows.shape[1])
    for row, weight in zip(rows, weights, strict=True):
        total += row * weight
    return total


def _solved(rows: NDArray[np.float64], right: NDArray[np.float64]) -> NDArray[np.float64]:
    """Solve ``(I + rows^T rows) x = right`` by Cholesky's method, every sum in ascending order."""
    size = rows.shape[1]
    matrix = np.eye(size)
    for row in rows:
        matrix += np.multiply.outer(row, row)
    solution = right.copy()
    for j in range(size):
        matrix[j, j:] /= math.sqrt(matrix[j, j])
        row = matrix[j, j + 1 :]
        matrix[j + 1 :, j + 1 :] -= np.multiply.outer(row, row)
        solution[j] /= matrix[j, j]
        solution[j + 1 :] -= row * solution[j]
    for j in range(size - 1, -1, -1):
        solution[j] /= matrix[j, j]
        solution[:j] -= matrix[:j, j] * solution[j]
    return solution
