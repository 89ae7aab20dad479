"""The interface of every item model: that of ``implicit``'s ``RecommenderBase``.

Code written against ``implicit`` runs with these models, and some rough edges are smoothed: a list holds
exactly `N` items whenever the catalogue has them, seen items never fill it up, ids out of range are errors
everywhere, and equal scores have one order. One difference to know: `similar_items` leaves the item itself
out.
"""

from __future__ import annotations

import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from itertools import pairwise
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse

from consentier.models.scoring import score_rows, top_items
from consentier.progress import Advance, progress

__all__ = ["History", "ItemModel", "LinearItemModel", "MatrixConverted"]


class MatrixConverted(UserWarning):
    """A sparse matrix was not in CSR form and was converted, which costs time at every call."""


class History(NamedTuple):
    """One user's row of `user_items`."""

    inputs: NDArray[np.int64]  # ascending
    weights: NDArray[np.float32]


@dataclass(kw_only=True, eq=False)
class ItemModel(ABC):
    """Base of all item models: what a call may ask, and what is answered.

    Items are ordered by descending score. Items that score exactly 0, which include all those that no input
    of the history mentions, are ordered by descending popularity; equal scores else, and equal popularity, by
    ascending id. A model holds nothing per user: the history is an argument of every call.

    Families of models implement `_fit_parameters` and the scores (`_shape`, `_score`, `_contributions`,
    `_similar`); hyper-parameters are keyword-only dataclass fields.
    """

    personalised: ClassVar[bool] = True
    """Whether answers depend on the history (beyond leaving out seen items)."""

    item_count: int | None = None
    """The first so many columns of `user_items` are items, the others further inputs; None: all are items."""
    min_persons: int = 1
    """Weights and popularities that rest on fewer distinct persons are left out."""
    threads: int | None = None
    """Threads to fit with; None: all cores. The fitted model does not depend on it."""

    popularity: NDArray[np.int64] = field(init=False, repr=False)
    """int64, shape (n_items,): distinct persons with each item. Set by `fit`."""
    _by_popularity: NDArray[np.int64] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._require(self.item_count is None or self.item_count >= 1, "item_count", "at least 1, or None")
        self._require(self.min_persons >= 1, "min_persons", "at least 1")
        self._require(self.threads is None or self.threads >= 1, "threads", "at least 1, or None")

    @abstractmethod
    def _fit_parameters(
        self,
        user_items: sparse.csr_matrix,
        persons: NDArray[np.integer] | None,
        counts: NDArray[np.int64],
        advance: Advance,
    ) -> None:
        """Compute the model's parameters and take them over.

        `user_items` is canonical, without stored zeros; `counts` (n_inputs,) are the distinct persons with
        each input, 0 where they are fewer than `min_persons`; `advance` counts finished items.
        """

    @abstractmethod
    def _shape(self) -> tuple[int, int] | None:
        """Inputs and items of the model; None before it is fitted."""

    @abstractmethod
    def _score(self, history: History) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Score the items for a history: ids ascending; items that are left out score 0."""

    @abstractmethod
    def _contributions(self, history: History, item: int) -> NDArray[np.float64]:
        """What each input of a history adds to the score of one item."""

    @abstractmethod
    def _similar(self, item: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """What an item adds to the scores of others: ids ascending."""

    def parameters(self) -> dict[str, Any]:
        """Return the hyper-parameters that bear on the fitted model, by name."""
        return {
            each.name: getattr(self, each.name)
            for each in fields(self)
            if each.init and each.name != "threads"
        }

    def fit(
        self,
        user_items: sparse.csr_matrix,
        show_progress: bool = True,
        callback: Callable[[int, float, float], None] | None = None,
        *,
        persons: NDArray[np.integer] | None = None,
    ) -> Self:
        """Fit the model.

        Parameters
        ----------
        user_items
            Shape (n_rows, n_inputs): weights of at least 0, a row for each user (or session).
        show_progress
            Report progress on standard error.
        callback
            Called once after the fit, which has one epoch, with the epoch (0), the seconds it took, and the
            share that is done (1.0).
        persons
            Integers, shape (n_rows,): whose row it is, where a person has several rows; by default every row
            is a person of its own.

        Returns
        -------
        ItemModel
            The model itself.

        Raises
        ------
        ValueError
            A weight is negative or not finite, or shapes do not agree.

        Warns
        -----
        MatrixConverted
            The matrix was not in CSR form.
        """
        started = time.perf_counter()
        matrix = _training_matrix(user_items)
        items = matrix.shape[1] if self.item_count is None else self.item_count
        if items > matrix.shape[1]:
            raise ValueError(f"item_count is {items}, but user_items has only {matrix.shape[1]} columns")
        if persons is not None and np.shape(persons) != (matrix.shape[0],):
            raise ValueError(
                f"persons must have one entry for each of {matrix.shape[0]} rows, "
                f"got shape {np.shape(persons)}"
            )
        counts = _distinct_persons(matrix, persons)
        with progress(f"Fitting {type(self).__name__}", items, enabled=show_progress) as advance:
            published = np.where(counts >= self.min_persons, counts, 0)
            self._fit_parameters(matrix, persons, published, advance)
        if callback is not None:
            callback(0, time.perf_counter() - started, 1.0)
        return self

    def recommend(
        self,
        userid: int | ArrayLike,
        user_items: sparse.csr_matrix,
        N: int = 10,
        filter_already_liked_items: bool = True,
        filter_items: ArrayLike | None = None,
        recalculate_user: bool = False,
        items: ArrayLike | None = None,
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Recommend items for one user, or for several.

        Parameters
        ----------
        userid
            One id or several. Ids only say how many rows are meant: the history comes with the call.
        user_items
            The history of each of these users: shape (1, n_inputs) or (len(userid), n_inputs).
        N
            Number of items.
        filter_already_liked_items
            Leave out the items of the history.
        filter_items
            Items to leave out for everyone.
        recalculate_user
            Without effect: answers are always computed from `user_items`.
        items
            Rank only these items. Not together with `filter_items`.

        Returns
        -------
        ids : ndarray of int64
            Shape (N,), or shorter where fewer items are left after filtering; for several users (users, N),
            padded with -1.
        scores : ndarray of float64
            Same shape; padded with -inf.

        Raises
        ------
        IndexError
            An item is not in the model.
        TypeError
            Ids are not integers, or `user_items` is no sparse matrix.
        ValueError
            Shapes do not agree, a weight is not finite (or, for a factor model, negative), or both
            `filter_items` and `items` are given.
        RuntimeError
            The model is not fitted.

        Warns
        -----
        MatrixConverted
            The matrix was not in CSR form.

        Notes
        -----
        For each user a linear model costs the entries in the rows of the history's items and O(n_items), a
        factor model a fold-in (`factor_scoring.fold_in`) and O(n_items · factors).
        """
        histories = self._histories(userid, user_items)
        hidden = self._hidden(filter_items, items)
        _require_count(N)
        answers = self._recommend_each(self._rows(histories), N, hidden, filter_already_liked_items)
        return answers[0] if np.ndim(userid) == 0 else _padded(answers, N)

    def similar_items(
        self,
        itemid: int | ArrayLike,
        N: int = 10,
        filter_items: ArrayLike | None = None,
        items: ArrayLike | None = None,
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Find the items to which an item adds most, without the item itself.

        Parameters
        ----------
        itemid
            One item or several.
        N
            Number of items.
        filter_items
            Items to leave out.
        items
            Rank only these items. Not together with `filter_items`.

        Returns
        -------
        ids : ndarray of int64
            At most `N` items to which it adds something positive (lists are not filled up: the others are not
            similar); for several items, shape (len(itemid), N), padded with -1.
        scores : ndarray of float64
            What a weight of 1 adds; padded with -inf.

        Raises
        ------
        IndexError
            An item is not in the model.
        ValueError
            Both `filter_items` and `items` are given.
        RuntimeError
            The model is not fitted.
        """
        chosen = self._item_ids("itemid", np.atleast_1d(itemid))
        hidden = self._hidden(filter_items, items)
        _require_count(N)
        answers = [self._similar_to(int(item), N, hidden) for item in chosen]
        return answers[0] if np.ndim(itemid) == 0 else _padded(answers, N)

    def explain(
        self, userid: int, user_items: sparse.csr_matrix, itemid: int
    ) -> tuple[float, list[tuple[int, float]]]:
        """Say which inputs of a history make up the score of an item.

        Parameters
        ----------
        userid, user_items
            As for `recommend`, one user.
        itemid
            The item to explain.

        Returns
        -------
        score : float
            The item's score, as `recommend` gives it.
        contributions : list of (int, float)
            Each input of the history that adds to the score or takes from it, the largest first (equal ones
            by ascending input). They sum to the score, up to rounding.

        Raises
        ------
        IndexError
            The item is not in the model.
        ValueError
            Shapes do not agree.
        RuntimeError
            The model is not fitted.
        """
        (row,) = self._rows(self._histories(userid, user_items))
        item = int(self._item_ids("itemid", np.atleast_1d(itemid))[0])
        score = self._score_of(row, item)
        contributions = [
            (int(each), float(contribution))
            for each, contribution in zip(row.inputs, self._contributions(row, item), strict=True)
            if contribution != 0
        ]
        return score, sorted(contributions, key=lambda pair: (-pair[1], pair[0]))

    def _score_of(self, history: History, item: int) -> float:
        """Score one item."""
        ids, scores = self._score(history)
        position = int(np.searchsorted(ids, item))
        return float(scores[position]) if position < ids.size and ids[position] == item else 0.0

    def _set_popularity(self, popularity: NDArray[np.integer]) -> None:
        self.popularity = np.asarray(popularity, dtype=np.int64)
        self._by_popularity = np.argsort(-self.popularity, kind="stable")

    def _recommend_each(
        self, histories: list[History], count: int, hidden: NDArray[np.bool_], hide_seen: bool
    ) -> list[tuple[NDArray[np.int64], NDArray[np.float64]]]:
        return [self._recommend_one(history, count, hidden, hide_seen) for history in histories]

    def _recommend_one(
        self, history: History, count: int, hidden: NDArray[np.bool_], hide_seen: bool
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        if hide_seen:
            hidden = hidden.copy()
            hidden[history.inputs[history.inputs < hidden.size]] = True
        ids, scores = self._score(history)
        visible = ~hidden[ids] & (scores != 0)
        ids, scores = ids[visible], scores[visible]
        positive = scores > 0
        best, best_scores = top_items(ids[positive], scores[positive], count)
        if best.size == count:
            return best, best_scores
        zero = ~hidden
        zero[ids] = False
        others = self._by_popularity[zero[self._by_popularity]]
        worst, worst_scores = top_items(ids[~positive], scores[~positive], count)
        return (
            np.concatenate([best, others, worst])[:count],
            np.concatenate([best_scores, np.zeros(others.size), worst_scores])[:count],
        )

    def _similar_to(
        self, item: int, count: int, hidden: NDArray[np.bool_]
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        ids, scores = self._similar(item)
        similar = (scores > 0) & (ids != item)
        return top_items(ids[similar], scores[similar], count, hidden=hidden)

    def _fitted_shape(self) -> tuple[int, int]:
        shape = self._shape()
        if shape is None:
            raise RuntimeError(f"this {type(self).__name__} is not fitted: call fit(user_items) first")
        return shape

    def _histories(self, userid: int | ArrayLike, user_items: sparse.csr_matrix) -> sparse.csr_matrix:
        inputs = self._fitted_shape()[0]
        users = np.asarray(userid)
        if users.ndim > 1 or (users.size and users.dtype.kind not in "iu"):
            raise TypeError(
                f"userid must be an integer or a one-dimensional array of integers, got {userid!r}"
            )
        matrix = _as_csr(user_items, stacklevel=4)
        if matrix.shape != (users.size, inputs):
            raise ValueError(
                f"user_items must have one row for each of {users.size} users and {inputs} columns, "
                f"got shape {matrix.shape}: pass user_items[userid]"
            )
        if not np.isfinite(matrix.data).all():
            raise ValueError("user_items holds weights that are not finite")
        return matrix

    @staticmethod
    def _rows(matrix: sparse.csr_matrix) -> list[History]:
        inputs, weights = matrix.indices.astype(np.int64), matrix.data.astype(np.float32)
        return [History(inputs[a:b], weights[a:b]) for a, b in pairwise(matrix.indptr.tolist())]

    def _hidden(self, filter_items: ArrayLike | None, items: ArrayLike | None) -> NDArray[np.bool_]:
        count = self._fitted_shape()[1]
        if items is not None:
            if filter_items is not None:
                raise ValueError("filter_items and items cannot be given together")
            hidden = np.ones(count, dtype=np.bool_)
            hidden[self._item_ids("items", items)] = False
            return hidden
        hidden = np.zeros(count, dtype=np.bool_)
        if filter_items is not None:
            hidden[self._item_ids("filter_items", filter_items)] = True
        return hidden

    def _item_ids(self, name: str, ids: ArrayLike) -> NDArray[np.int64]:
        count = self._fitted_shape()[1]
        array = np.asarray(ids)
        if not array.size:
            return np.zeros(0, dtype=np.int64)
        if array.dtype.kind not in "iu":
            raise TypeError(f"{name} must be integers, got {array.dtype}")
        if array.min() < 0 or array.max() >= count:
            raise IndexError(f"{name} must lie in [0, {count}), got {array.min()} to {array.max()}")
        return array.astype(np.int64)

    def _require(self, holds: bool, parameter: str, rule: str) -> None:
        if not holds:
            raise ValueError(f"{parameter} must be {rule}, got {getattr(self, parameter)!r}")


@dataclass(kw_only=True, eq=False)
class LinearItemModel(ItemModel):
    """Base of the models that score items by ``x · W``, with a history ``x`` and sparse item weights ``W``.

    Subclasses implement `_fit`.
    """

    weights: sparse.csr_matrix = field(init=False, repr=False)
    """float32, shape (n_inputs, n_items): what each input adds to the score of each item. Set by `fit`."""

    @abstractmethod
    def _fit(
        self, user_items: sparse.csr_matrix, persons: NDArray[np.integer] | None, advance: Advance
    ) -> sparse.csr_matrix:
        """Compute the weights: float32, shape (n_inputs, n_items), canonical.

        `user_items` is canonical, without stored zeros; `advance` counts finished items.
        """

    def _fit_parameters(
        self,
        user_items: sparse.csr_matrix,
        persons: NDArray[np.integer] | None,
        counts: NDArray[np.int64],
        advance: Advance,
    ) -> None:
        weights = self._fit(user_items, persons, advance)
        self.set_fitted(weights, counts[: weights.shape[1]])

    def _shape(self) -> tuple[int, int] | None:
        return self.weights.shape if hasattr(self, "weights") else None

    def _score(self, history: History) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Score the items that the history mentions: ids ascending."""
        matrix = self.weights
        return score_rows(
            matrix.indptr, matrix.indices, matrix.data, history.inputs, history.weights, matrix.shape[1]
        )

    def _contributions(self, history: History, item: int) -> NDArray[np.float64]:
        """Weigh each input of the history for one item."""
        column = self.weights[history.inputs, item].toarray().ravel().astype(np.float64)
        return column * history.weights

    def _similar(self, item: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        row = slice(self.weights.indptr[item], self.weights.indptr[item + 1])
        return self.weights.indices[row].astype(np.int64), self.weights.data[row].astype(np.float64)

    def set_fitted(self, weights: sparse.csr_matrix, popularity: NDArray[np.integer]) -> Self:
        """Take over a fitted state that was computed elsewhere, or kept.

        Parameters
        ----------
        weights
            Shape (n_inputs, n_items), canonical.
        popularity
            Shape (n_items,).

        Returns
        -------
        ItemModel
            The model itself.

        Raises
        ------
        ValueError
            Shapes do not agree.
        """
        if np.shape(popularity) != (weights.shape[1],) or weights.shape[0] < weights.shape[1]:
            raise ValueError(
                "weights must be (n_inputs, n_items) with n_inputs >= n_items, and popularity (n_items,), "
                f"got {weights.shape} and {np.shape(popularity)}"
            )
        self.weights = weights.astype(np.float32, copy=False)
        self._set_popularity(popularity)
        return self


def _as_csr(matrix: sparse.csr_matrix, *, stacklevel: int) -> sparse.csr_matrix:
    """Return a matrix in canonical CSR form: the argument itself where it is that already."""
    given: object = matrix
    if not sparse.issparse(given):
        raise TypeError(f"user_items must be a SciPy sparse matrix, got {type(given).__name__}")
    form = str(matrix.format)
    if form != "csr":
        warnings.warn(
            f"user_items was converted from {form.upper()} to CSR form: convert it once, by tocsr()",
            MatrixConverted,
            stacklevel=stacklevel,
        )
    rows = sparse.csr_matrix(matrix)
    if not rows.has_canonical_format:
        rows = rows.copy()
        rows.sum_duplicates()
    return rows


def _training_matrix(user_items: sparse.csr_matrix) -> sparse.csr_matrix:
    rows = _as_csr(user_items, stacklevel=4)
    if not np.isfinite(rows.data).all() or (rows.data < 0).any():
        raise ValueError(
            "user_items holds weights that are negative or not finite; weights must be at least 0"
        )
    if not rows.data.all():
        rows = rows.copy()
        rows.eliminate_zeros()
    return rows


def _distinct_persons(
    user_items: sparse.csr_matrix, persons: NDArray[np.integer] | None
) -> NDArray[np.int64]:
    """Count the distinct persons with each input."""
    inputs = user_items.shape[1]
    if persons is None:
        return np.bincount(user_items.indices, minlength=inputs).astype(np.int64)
    _, numbers = np.unique(persons, return_inverse=True)
    pairs = np.repeat(numbers.astype(np.int64), np.diff(user_items.indptr)) * inputs + user_items.indices
    return np.bincount(np.unique(pairs) % inputs, minlength=inputs).astype(np.int64)


def _require_count(count: int) -> None:
    if count < 0:
        raise ValueError(f"N must not be negative, got {count}")


def _padded(
    answers: list[tuple[NDArray[np.int64], NDArray[np.float64]]], count: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    ids = np.full((len(answers), count), -1, dtype=np.int64)
    scores = np.full((len(answers), count), -np.inf)
    for row, (row_ids, row_scores) in enumerate(answers):
        ids[row, : row_ids.size] = row_ids
        scores[row, : row_ids.size] = row_scores
    return ids, scores
