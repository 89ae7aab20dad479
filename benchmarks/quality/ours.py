"""Consentier's models as contenders."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from benchmarks.quality.peers import joined
from benchmarks.quality.splits import Interactions, Sessions
from consentier.models.local_ridge import LocalRidge
from consentier.models.scoring import score_rows, top_items

__all__ = ["LocalRidgeSessions", "LocalRidgeUsers"]


@dataclass(kw_only=True)
class LocalRidgeSessions:
    """`LocalRidge` on the items of each session, with the running session's clicks weighted by recency."""

    item_count: int
    click_decay: float
    """Clicks from the session's end after which a click weighs 1 / e."""
    neighbours: int
    regularisation: float
    row_exponent: float
    item_exponent: float
    repeat_weight: float
    popularity_regularisation: float = 0.0

    _model: LocalRidge = field(init=False, repr=False)

    def fit(self, sessions: Sessions) -> None:
        """Fit to the sets of items of the sessions."""
        matrix = sparse.csr_matrix(
            (np.ones(len(sessions.items), dtype=np.float32), sessions.items, sessions.starts),
            shape=(len(sessions), self.item_count),
        )
        matrix.sum_duplicates()
        matrix.data[:] = 1
        self._model = LocalRidge(
            neighbours=self.neighbours,
            regularisation=self.regularisation,
            row_exponent=self.row_exponent,
            item_exponent=self.item_exponent,
            popularity_regularisation=self.popularity_regularisation,
            repeat_weight=self.repeat_weight,
            threads=1,
        ).fit(matrix, show_progress=False)

    def recommend(self, prefix: NDArray[np.int64], now: float, count: int) -> NDArray[np.int64]:
        """The best items; an item that was clicked twice counts at its last click."""
        backwards, distance = np.unique(prefix[::-1], return_index=True)
        weights = np.exp(-distance / self.click_decay).astype(np.float32)
        matrix = self._model.weights
        ids, scores = score_rows(
            matrix.indptr, matrix.indices, matrix.data, backwards, weights, self.item_count
        )
        return top_items(ids, scores, count)[0]


@dataclass(kw_only=True)
class LocalRidgeUsers:
    """`LocalRidge` on users' items; both sources make one history, attribute values are further inputs."""

    item_count: int
    neighbours: int
    regularisation: float
    row_exponent: float
    item_exponent: float
    popularity_regularisation: float = 0.0
    order_weight: float = 1.0
    cart_weight: float = 0.0
    """What an entry of the second source counts, where there is one."""
    attribute_weight: float = 0.0
    """What an attribute value counts; 0: attributes are not read."""

    _model: LocalRidge = field(init=False, repr=False)

    def fit(self, train: Interactions) -> None:
        """Fit to the joined histories."""
        self._model = LocalRidge(
            item_count=self.item_count,
            neighbours=self.neighbours,
            regularisation=self.regularisation,
            row_exponent=self.row_exponent,
            item_exponent=self.item_exponent,
            popularity_regularisation=self.popularity_regularisation,
            threads=1,
        ).fit(self._inputs(train), show_progress=False)
        self._popular = np.argsort(-self._model.popularity, kind="stable")

    def recommend(self, histories: Interactions, hidden: sparse.csr_matrix, count: int) -> NDArray[np.int64]:
        """The best items that are not hidden; popular ones where the model has too few."""
        inputs, weights = self._inputs(histories), self._model.weights
        lists = np.full((len(histories), count), -1, dtype=np.int64)
        masked = np.zeros(self.item_count, dtype=np.bool_)
        for user in range(len(histories)):
            row = slice(inputs.indptr[user], inputs.indptr[user + 1])
            withheld = hidden.indices[hidden.indptr[user] : hidden.indptr[user + 1]]
            ids, scores = score_rows(
                weights.indptr,
                weights.indices,
                weights.data,
                inputs.indices[row].astype(np.int64),
                inputs.data[row],
                self.item_count,
            )
            masked[withheld] = True
            chosen = top_items(ids, scores, count, hidden=masked)[0]
            if len(chosen) < count:
                chosen = self._filled(chosen, masked, count)
            masked[withheld] = False
            lists[user, : len(chosen)] = chosen
        return lists

    def _filled(self, chosen: NDArray[np.int64], masked: NDArray[np.bool_], count: int) -> NDArray[np.int64]:
        candidates = self._popular[: count + int(masked.sum()) + len(chosen)]
        others = candidates[~masked[candidates] & ~np.isin(candidates, chosen)]
        return np.concatenate([chosen, others[: count - len(chosen)]])

    def _inputs(self, rows: Interactions) -> sparse.csr_matrix:
        matrix = joined(rows, self.order_weight, self.cart_weight)
        if self.attribute_weight > 0 and rows.attributes is not None:
            matrix = sparse.hstack([matrix, rows.attributes * np.float32(self.attribute_weight)])
        return sparse.csr_matrix(matrix, dtype=np.float32)
