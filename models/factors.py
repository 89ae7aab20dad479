"""What factor models have in common: factors per item, and users who are folded in at every call."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Self

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from consentier.models.base import History, ItemModel
from consentier.models.factor_scoring import (
    FoldIn,
    contributions,
    exact_scores,
    fold_in,
    largest_norm,
    positive_items,
    repeats,
)
from consentier.models.factor_solver import fold_in_rows, gram_diagonal
from consentier.progress import Advance

__all__ = ["FactorModel", "Fitted", "IterativeFactorModel"]

_SCORES_PER_BLOCK = 1 << 24  # 64 MB of float32
_LARGEST_CROSS_PRODUCT = 1e-3


@dataclass(frozen=True, eq=False)
class Fitted:
    """What the fit of a factor model gives.

    Attributes
    ----------
    items
        float32, shape (n_inputs, factors), in principal axes; (n_items, factors) beside `priors`.
    priors
        float32, shape (n_inputs - n_items + 1, factors), see `factor_scoring.expected_factors`, or None.
    """

    items: NDArray[np.float32]
    priors: NDArray[np.float32] | None = None


@dataclass(kw_only=True, eq=False)
class FactorModel(ItemModel):
    """Base of the models that score items by ``y · f``, with factors ``f`` per item and ``y`` per history.

    Only the factors of the inputs are kept. A user's factors are the solution of a small least-squares system
    over the history that comes with the call (see `factor_scoring.fold_in`), so that nobody is stored and new
    users need no other fit. That solution is linear in the items of the history, which is what `explain`
    shows.

    The factors stand in their principal axes: their Gram matrix is diagonal, and k numbers hold it.

    Rows are users. A fit does not depend on their order: they are sorted by what they hold first.

    With `min_persons`, inputs of fewer distinct persons are left out before the fit: they have zero factors,
    score exactly 0 like what was never seen, and have no popularity, so they come last of these.

    Where attributes stand behind the items, a model may describe them by factors like items, or hold what is
    expected of whoever has them (`prior_factors`).

    Subclasses implement `_fit` and `folding`.
    """

    factors: int = 64
    """Number of factors."""
    unobserved_weight: float = 0.1
    """Weight in least squares of each input, above 0; those of a history have their own weight besides."""
    repeat_weight: float = 0.0
    """Added to the score of each item of the history, times its weight there: above 0, seen items come again
    the sooner where they are not filtered."""

    item_factors: NDArray[np.float32] = field(init=False, repr=False)
    """float32, shape (n_inputs, factors), or (n_items, factors) beside `prior_factors`: zero for inputs that
    were left out. Set by `fit`."""
    factor_gram: NDArray[np.float64] = field(init=False, repr=False)
    """float64, shape (factors,): the diagonal of the factors' Gram matrix. Set by `fit`."""
    prior_factors: NDArray[np.float32] | None = field(init=False, repr=False, default=None)
    """float32, shape (attribute inputs + 1, factors), see `factor_scoring.expected_factors`, or None. Set by
    `fit`."""
    _items: int = field(init=False, repr=False)
    _norm: float = field(init=False, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(self.factors >= 1, "factors", "at least 1")
        self._require_above_0("unobserved_weight")
        self._require_no_less_than_0("repeat_weight")

    @property
    @abstractmethod
    def folding(self) -> FoldIn:
        """How histories are folded in."""

    @abstractmethod
    def _fit(self, user_items: sparse.csr_matrix, advance: Advance) -> Fitted:
        """Compute the factors, those of inputs without entries being zero.

        `user_items` is canonical, with its rows in an order that depends on their content only; `advance`
        counts finished items.
        """

    def set_fitted(
        self,
        item_factors: NDArray[np.floating],
        popularity: NDArray[np.integer],
        prior_factors: NDArray[np.floating] | None = None,
    ) -> Self:
        """Take over a fitted state that was computed elsewhere, or kept.

        Parameters
        ----------
        item_factors
            Shape (n_inputs, factors), in principal axes, see `factor_solver.principal_axes`; (n_items,
            factors) beside `prior_factors`.
        popularity
            Shape (n_items,).
        prior_factors
            Shape (n_inputs - n_items + 1, factors), see `factor_scoring.expected_factors`; by default the
            inputs behind the items have factors like items.

        Returns
        -------
        FactorModel
            The model itself.

        Raises
        ------
        ValueError
            Shapes do not agree, or factors are not finite or not in principal axes.
        """
        shape, items = np.shape(item_factors), np.shape(popularity)
        if len(shape) != 2 or len(items) != 1 or shape[0] < items[0]:
            raise ValueError(
                "item_factors must be (n_inputs, factors) with n_inputs >= n_items, and popularity "
                f"(n_items,), got {shape} and {items}"
            )
        if prior_factors is not None and (
            shape[0] != items[0] or np.ndim(prior_factors) != 2 or np.shape(prior_factors)[1] != shape[1]
        ):
            raise ValueError(
                "beside prior_factors, (attribute inputs + 1, factors), item_factors must be (n_items, "
                f"factors), got {np.shape(prior_factors)} and {shape} for {items[0]} items"
            )
        factors = np.ascontiguousarray(item_factors, dtype=np.float32)
        if not np.isfinite(factors).all() or not (prior_factors is None or np.isfinite(prior_factors).all()):
            raise ValueError("item_factors or prior_factors hold numbers that are not finite")
        gram = gram_diagonal(factors)
        cross = factors.T.astype(np.float64) @ factors - np.diag(gram)
        if np.abs(cross).max(initial=0.0) > _LARGEST_CROSS_PRODUCT * gram.max(initial=0.0):
            raise ValueError(
                "item_factors are not in principal axes (their Gram matrix is not diagonal): pass "
                "principal_axes(item_factors)"
            )
        self.item_factors, self.factor_gram = factors, gram
        self.prior_factors = (
            None if prior_factors is None else np.ascontiguousarray(prior_factors, dtype=np.float32)
        )
        self._items = items[0]
        self._norm = largest_norm(factors[: self._items])
        self._set_popularity(popularity)
        return self

    def _fit_parameters(
        self,
        user_items: sparse.csr_matrix,
        persons: NDArray[np.integer] | None,
        counts: NDArray[np.int64],
        advance: Advance,
    ) -> None:
        items = user_items.shape[1] if self.item_count is None else self.item_count
        fitted = self._fit(_in_canonical_order(_only(user_items, counts > 0)), advance)
        self.set_fitted(fitted.items, counts[:items], fitted.priors)

    def _require_above_0(self, *names: str) -> None:
        for name in names:
            value = getattr(self, name)
            self._require(math.isfinite(value) and value > 0, name, "a finite number above 0")

    def _require_no_less_than_0(self, *names: str) -> None:
        for name in names:
            value = getattr(self, name)
            self._require(math.isfinite(value) and value >= 0, name, "a finite number of at least 0")

    def _shape(self) -> tuple[int, int] | None:
        return (self._input_count, self._items) if hasattr(self, "item_factors") else None

    @property
    def _input_count(self) -> int:
        behind = 0 if self.prior_factors is None else len(self.prior_factors) - 1
        return int(self.item_factors.shape[0]) + behind

    def _histories_checked(self, histories: list[History]) -> None:
        if any((history.weights < 0).any() for history in histories):
            raise ValueError("user_items holds negative weights; weights of a history must be at least 0")

    def _vector(self, history: History) -> NDArray[np.float64]:
        self._histories_checked([history])
        return fold_in(
            self.item_factors,
            self.factor_gram,
            history.inputs,
            history.weights,
            self.folding,
            self.prior_factors,
        )

    def _repeats(self, history: History) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        return repeats(self.item_factors, history.inputs, history.weights, self.repeat_weight, self._items)

    def _score(self, history: History) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        ids = np.arange(self._items, dtype=np.int64)
        scores = exact_scores(self.item_factors, ids, self._vector(history))
        again, added = self._repeats(history)
        scores[again] += added
        return ids, scores

    def _score_of(self, history: History, item: int) -> float:
        score = exact_scores(self.item_factors, np.array([item]), self._vector(history))[0]
        again, added = self._repeats(history)
        return float(score + added[again == item].sum())

    def _contributions(self, history: History, item: int) -> NDArray[np.float64]:
        found = contributions(
            self.item_factors,
            self.factor_gram,
            history.inputs,
            history.weights,
            self.folding,
            self.prior_factors,
            np.array([item]),
        )[:, 0]
        again, added = self._repeats(history)
        found[history.inputs == item] += added[again == item].sum()
        return found

    def _similar(self, item: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        return self._score(History(np.array([item]), np.ones(1, np.float32)))

    def _recommend_each(
        self, histories: list[History], count: int, hidden: NDArray[np.bool_], hide_seen: bool
    ) -> list[tuple[NDArray[np.int64], NDArray[np.float64]]]:
        """By matrix products over blocks of users; each list as `_recommend_one` gives it, bit for bit."""
        self._histories_checked(histories)
        answers: list[tuple[NDArray[np.int64], NDArray[np.float64]]] = []
        size = max(1, _SCORES_PER_BLOCK // max(self._items, 1))
        for start in range(0, len(histories), size):
            block = histories[start : start + size]
            vectors = fold_in_rows(
                _stacked(block, self._input_count),
                self.item_factors,
                self.factor_gram,
                self.folding,
                priors=self.prior_factors,
                threads=self.threads,
            )
            products = vectors.astype(np.float32) @ self.item_factors[: self._items].T
            answers.extend(
                self._best(history, vector, near, count, hidden, hide_seen)
                for history, vector, near in zip(block, vectors, products, strict=True)
            )
        return answers

    def _best(
        self,
        history: History,
        vector: NDArray[np.float64],
        products: NDArray[np.float32],
        count: int,
        hidden: NDArray[np.bool_],
        hide_seen: bool,
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        visible = ~hidden
        if hide_seen:
            visible[history.inputs[history.inputs < visible.size]] = False
        ids, scores = positive_items(
            self.item_factors,
            self._norm,
            vector,
            visible,
            count,
            approximate=products,
            added=self._repeats(history),
        )
        if ids.size == count:
            return ids, scores
        return self._recommend_one(history, count, hidden, hide_seen)


@dataclass(kw_only=True, eq=False)
class IterativeFactorModel(FactorModel):
    """Factor models that start at random and pass over the data again and again."""

    iterations: int = 15
    """Passes over the data."""
    regularisation: float = 0.01
    """Ridge penalty of factors in least squares, above 0."""
    frequency_exponent: float = 1.0
    """0: the ridge penalty is the same for all; 1: it grows in proportion to the weight of a row."""
    seed: int = 0
    """Seed of the starting values (and of the samples that are drawn)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(self.iterations >= 1, "iterations", "at least 1")
        self._require_above_0("regularisation")
        self._require_no_less_than_0("frequency_exponent")
        self._require(0 <= self.seed < 2**63, "seed", "at least 0 and below 2**63")

    @property
    def folding(self) -> FoldIn:
        """See the base class."""
        return FoldIn(
            unobserved_weight=self.unobserved_weight,
            regularisation=self.regularisation,
            frequency_exponent=self.frequency_exponent,
        )


def _only(matrix: sparse.csr_matrix, kept: NDArray[np.bool_]) -> sparse.csr_matrix:
    """The matrix with the entries of some columns only."""
    if kept.all():
        return matrix
    only = matrix.copy()
    only.data[~kept[only.indices]] = 0
    only.eliminate_zeros()
    return only


def _in_canonical_order(matrix: sparse.csr_matrix) -> sparse.csr_matrix:
    """The rows sorted by what they hold, as float32, so that sums over them have one order."""
    rows = sparse.csr_matrix(matrix, dtype=np.float32)
    inputs, starts = rows.indices.astype(np.int64), rows.indptr.tolist()
    keys = [inputs[a:b].tobytes() + rows.data[a:b].tobytes() for a, b in pairwise(starts)]
    return rows[sorted(range(len(keys)), key=keys.__getitem__)]


def _stacked(histories: list[History], inputs: int) -> sparse.csr_matrix:
    starts = np.cumsum([0, *(history.inputs.size for history in histories)])
    data = np.concatenate([np.zeros(0, np.float32), *(history.weights for history in histories)])
    indices = np.concatenate([np.zeros(0, np.int64), *(history.inputs for history in histories)])
    return sparse.csr_matrix((data, indices, starts), shape=(len(histories), inputs))
