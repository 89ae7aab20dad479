"""Folding a history into a factor model, and the exact best items for it; with NumPy alone.

Results are reproducible bit for bit: every sum is added in a written order by elementwise operations, whose
results IEEE 754 fixes, so neither the number of threads, nor the vector width, nor the BLAS library can
change a bit. Matrix products, or factors in one byte a number, serve only to find candidates; they are off by
at most a proven bound, and every item within it is scored again in the written order.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from consentier.models.quantised_factors import QuantisedFactors
from consentier.models.scoring import top_items

__all__ = [
    "MAY_BE_LEFT_OUT",
    "FoldIn",
    "approximate_scores",
    "contributions",
    "exact_scores",
    "expected_factors",
    "fold_in",
    "largest_norm",
    "positive_items",
    "repeats",
    "split_history",
    "system_matrix",
]

_ITEMS_PER_BLOCK = 4096  # a block of float64 sums stays in the first-level cache
_ROUNDING = 2.0**-24  # of float32

MAY_BE_LEFT_OUT = frozenset({"entry_regularisation", "observed_weight"})
"""Settings of `FoldIn` that a manifest need not name: 0 then."""


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
    history_exponent, history_offset
        The weights of a history are divided by (its total weight + history_offset) to the power of
        history_exponent, so that long histories speak louder than short ones, but less than in proportion.
    entry_regularisation
        Further ridge penalty for each input of the history, whatever its weight.
    observed_weight
        How much of the unobserved weight pulls the inputs of the history to 1 instead of to 0: with all of
        it, the unobserved weight is that of the other inputs only.
    """

    unobserved_weight: float
    regularisation: float
    frequency_exponent: float
    history_exponent: float = 0.0
    history_offset: float = 0.0
    entry_regularisation: float = 0.0
    observed_weight: float = 0.0

    def to_json(self) -> dict[str, float]:
        """The settings as a manifest names them: the last two only where they are not 0."""
        settings = dataclasses.asdict(self)
        return {name: value for name, value in settings.items() if value or name not in MAY_BE_LEFT_OUT}

    def ridge(self, total: float, others: int, entries: int) -> float:
        """Ridge penalty of a row of some total weight in so many entries above 0, of so many columns."""
        shared = self.regularisation * (total + self.unobserved_weight * others) ** self.frequency_exponent
        return float(shared + self.entry_regularisation * entries)

    def scale(self, total: float) -> float:
        """What the weights of a history of some total weight are multiplied by."""
        whole = total + self.history_offset
        return float(whole**-self.history_exponent) if whole > 0 else 1.0

    def missing(self, roots: NDArray[np.float64]) -> NDArray[np.float64]:
        """What inputs lack of 1, times their weight in it over its root: all of it, nothing being expected.

        Parameters
        ----------
        roots
            float64: roots of the (scaled) weights. Inputs of weight 0 are not there.
        """
        if not self.observed_weight:
            return roots
        more = np.zeros_like(roots)
        np.divide(self.observed_weight, roots, out=more, where=roots > 0)
        return roots + more


def fold_in(
    factors: NDArray[np.float32],
    gram: NDArray[np.float64],
    inputs: NDArray[np.int64],
    weights: NDArray[np.float32],
    settings: FoldIn,
    priors: NDArray[np.float32] | None = None,
) -> NDArray[np.float64]:
    """Solve for the factors of one history, the items' factors being given.

    With ``f_i`` the factors of input i, ``c_i`` its (scaled) weight there and ``p`` what was expected
    without the history, the result ``y`` minimises
    ``Σ_i c_i (y · f_i - 1)² + a Σ_j ((y - p) · f_j)² + r |y - p|²``: i runs over the history, j over all
    inputs, a is the unobserved weight and r the ridge penalty (Hu, Koren and Volinsky, "Collaborative
    filtering for implicit feedback datasets", ICDM 2008, equation 4, with the weights of Rendle et al.,
    "Revisiting the performance of iALS on item recommendation benchmarks", RecSys 2022; the mean as in
    Agarwal and Chen, "Regression-based latent factor models", KDD 2009). With an observed weight o,
    ``o Σ_i ((y · f_i - 1)² - ((y - p) · f_i)²)`` is added: with o = a, these are the weights of Hu et al.

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
    priors
        See `expected_factors`: inputs that have no factors say what is expected. By default nothing is.

    Returns
    -------
    ndarray of float64
        Shape (factors,).

    Notes
    -----
    With k factors and m the smaller of n and k: O(n k m) time and O(n k) memory. Histories that are shorter
    than k are solved in their own space, of n dimensions (by the matrix inversion lemma).
    """
    inputs, weights, prior = split_history(inputs, weights, priors, factors.shape[0])
    total = math.fsum(weights.tolist())
    root = np.sqrt(weights.astype(np.float64) * settings.scale(total))
    missing = settings.missing(root)
    if prior is not None:
        missing = missing * (1.0 - exact_scores(factors, inputs, prior))
    ridge = settings.ridge(total, factors.shape[0], int(np.count_nonzero(weights)))
    shrink = 1.0 / np.sqrt(settings.unobserved_weight * gram + ridge)
    scaled = (factors[inputs].astype(np.float64) * root[:, None]) * shrink
    if len(inputs) < len(gram):
        columns = np.ascontiguousarray(scaled.T)
        found = shrink * _weighted_sum(scaled, _solved(columns, missing))
    else:
        found = shrink * _solved(scaled, _weighted_sum(scaled, missing))
    return found if prior is None else found + prior


def system_matrix(
    factors: NDArray[np.float32],
    gram: NDArray[np.float64],
    inputs: NDArray[np.int64],
    weights: NDArray[np.float32],
    settings: FoldIn,
) -> NDArray[np.float64]:
    """The matrix A of the system ``A (y - p) = Σ_i (c_i + o) (1 - p · f_i) f_i`` that `fold_in` solves.

    Up to rounding.
    Arguments as there. Shape (factors, factors).
    """
    total = math.fsum(weights.tolist())
    given = factors[inputs].astype(np.float64)
    scaled = weights[:, None].astype(np.float64) * settings.scale(total)
    observed: NDArray[np.float64] = given.T @ (given * scaled)
    ridge = settings.ridge(total, factors.shape[0], int(np.count_nonzero(weights)))
    return observed + np.diag(settings.unobserved_weight * gram + ridge)


def contributions(
    factors: NDArray[np.float32],
    gram: NDArray[np.float64],
    inputs: NDArray[np.int64],
    weights: NDArray[np.float32],
    settings: FoldIn,
    priors: NDArray[np.float32] | None,
    items: NDArray[np.int64],
) -> NDArray[np.float64]:
    """What each input of a history adds to the scores of some items.

    Parameters
    ----------
    factors, gram, inputs, weights, settings, priors
        As for `fold_in`.
    items
        int64, shape (m,): the items.

    Returns
    -------
    ndarray of float64
        Shape (n, m): of an input i with factors ``(c_i + o) (1 - p · f_i) f_item · A^-1 f_i``, with the A of
        `system_matrix`; of an attribute its part of ``f_item · p``, p being what attributes let expect. A
        column sums to the item's score, up to rounding.

    Notes
    -----
    O(k³ + (n + m) k²) for k factors, by LAPACK.
    """
    known, given, prior = split_history(inputs, weights, priors, factors.shape[0])
    wanted = factors[items].astype(np.float64).T
    own = factors[known].astype(np.float64)
    found: NDArray[np.float64] = own @ np.linalg.solve(
        system_matrix(factors, gram, known, given, settings), wanted
    )
    pulls = given.astype(np.float64) * settings.scale(math.fsum(given.tolist()))
    found *= np.where(given > 0, pulls + settings.observed_weight, 0.0)[:, None]
    if prior is None or priors is None:
        return found
    found *= (1.0 - own @ prior)[:, None]
    attributes = inputs[known.size :] - factors.shape[0]
    parts = priors[-1] + priors[attributes].astype(np.float64) * attributes.size
    parts *= weights[known.size :, None].astype(np.float64)
    return np.concatenate([found, parts @ wanted])


def split_history(
    inputs: NDArray[np.int64],
    weights: NDArray[np.float32],
    priors: NDArray[np.float32] | None,
    items: int,
) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.float64] | None]:
    """Tell the inputs that have factors from attributes, and say what these let expect.

    Parameters
    ----------
    inputs, weights
        A weighted history, the inputs ascending.
    priors
        See `expected_factors`; None where all inputs have factors.
    items
        Number of items: with `priors`, the inputs from here on are attributes.

    Returns
    -------
    inputs, weights, prior
        What has factors, and what the others let expect.
    """
    if priors is None:
        return inputs, weights, None
    first = int(np.searchsorted(inputs, items))
    prior = expected_factors(priors, inputs[first:] - items, weights[first:])
    return inputs[:first], weights[:first], prior


def expected_factors(
    priors: NDArray[np.float32], inputs: NDArray[np.int64], weights: NDArray[np.float32]
) -> NDArray[np.float64] | None:
    """What is expected of somebody of whom some attributes are known, before any history.

    Parameters
    ----------
    priors
        float32, shape (attribute inputs + 1, factors): what each input adds, and, last, what is expected on
        average.
    inputs
        int64, shape (n,), ascending: the known inputs.
    weights
        float32, shape (n,): together what the expectation counts.

    Returns
    -------
    ndarray of float64, or None
        Shape (factors,): with g known inputs ``Σ_i w_i (average + g · added_i)``, which is their weight times
        what they let expect together if all weigh the same; None where nothing is known.
    """
    if not inputs.size:
        return None
    average = priors[-1].astype(np.float64)
    total = np.zeros(average.size)
    for number, weight in zip(inputs.tolist(), weights.tolist(), strict=True):
        total += (average + priors[number].astype(np.float64) * inputs.size) * weight
    return total


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


def repeats(
    factors: NDArray[np.float32],
    inputs: NDArray[np.int64],
    weights: NDArray[np.float32],
    repeat_weight: float,
    items: int,
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """What the items of a history gain for being there: `repeat_weight` times their weight.

    Parameters
    ----------
    factors
        float32, shape (n_inputs, factors). What has none, because it is not published, gains nothing.
    inputs, weights
        A weighted history, the inputs ascending.
    repeat_weight
        At least 0.
    items
        Number of items: inputs from here on are attributes, which gain nothing.

    Returns
    -------
    ids, added : ndarray of int64, ndarray of float64
        The items that gain, ascending, and what is added to their scores.
    """
    end = int(np.searchsorted(inputs, items)) if repeat_weight else 0
    gaining = np.flatnonzero(factors[inputs[:end]].any(axis=1))
    return inputs[gaining], weights[gaining].astype(np.float64) * repeat_weight


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
    quantised: QuantisedFactors | None = None,
    added: tuple[NDArray[np.int64], NDArray[np.float64]] | None = None,
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
    quantised
        The items' factors, quantised: finds candidates by less memory, where there are no products.
    added
        Distinct items, and what is added to their scores; see `repeats`.

    Returns
    -------
    ids, scores : ndarray of int64, ndarray of float64
        By descending score, equal scores by ascending id; scores as `exact_scores` gives them, plus what is
        added.

    Notes
    -----
    O(n_items · factors), bound by the memory that the factors take, and the exact scores of little more than
    n items.
    """
    if added is not None and added[0].size:
        return _with_added(factors, norm, vector, visible, n, approximate, quantised, *added)
    candidates = None
    if approximate is None and quantised is not None and n > 0:
        candidates = quantised.near(vector, visible, n)
    if candidates is None:
        candidates = _candidates(factors, norm, vector, visible, n, approximate)
    scores = exact_scores(factors, candidates, vector)
    positive = scores > 0
    return top_items(candidates[positive], scores[positive], n)


def _candidates(
    factors: NDArray[np.float32],
    norm: float,
    vector: NDArray[np.float64],
    visible: NDArray[np.bool_],
    n: int,
    approximate: NDArray[np.float32] | None,
) -> NDArray[np.int64]:
    """Every visible item that may be one of the best of positive score, by products in float32."""
    items = visible.size
    if approximate is None:
        approximate = approximate_scores(factors, vector, items)
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
    return candidates


def approximate_scores(
    factors: NDArray[np.float32], vector: NDArray[np.float64], items: int
) -> NDArray[np.float32]:
    """The scores of the first items by one matrix product: `positive_items` knows how far they may be off.

    Parameters
    ----------
    factors
        float32, shape (n_inputs, factors).
    vector
        float64, shape (factors,).
    items
        How many items.

    Returns
    -------
    ndarray of float32
        Shape (items,).
    """
    with np.errstate(over="ignore", invalid="ignore"):
        found: NDArray[np.float32] = factors[:items] @ vector.astype(np.float32)
    return found


def _with_added(
    factors: NDArray[np.float32],
    norm: float,
    vector: NDArray[np.float64],
    visible: NDArray[np.bool_],
    n: int,
    approximate: NDArray[np.float32] | None,
    quantised: QuantisedFactors | None,
    items: NDArray[np.int64],
    added: NDArray[np.float64],
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The best of the other items and of those that something is added to, which are all scored exactly."""
    others = visible.copy()
    others[items] = False
    ids, scores = positive_items(
        factors, norm, vector, others, n, approximate=approximate, quantised=quantised
    )
    shown = visible[items]
    own, own_scores = items[shown], exact_scores(factors, items[shown], vector) + added[shown]
    positive = own_scores > 0
    ids = np.concatenate([ids, own[positive]])
    scores = np.concatenate([scores, own_scores[positive]])
    ascending = np.argsort(ids)  # `top_items` prefers the first of equal scores
    return top_items(ids[ascending], scores[ascending], n)


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
