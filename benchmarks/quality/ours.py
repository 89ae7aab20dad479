"""Consentier's models as contenders."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from benchmarks.quality.peers import joined
from benchmarks.quality.splits import Interactions, Sessions
from consentier.consent import Tier
from consentier.models.als import ALS
from consentier.models.base import ItemModel
from consentier.models.gram import SessionOrder, last_positions
from consentier.models.item_knn import ItemKNN
from consentier.models.local_ridge import LocalRidge
from consentier.models.recency import microseconds_of_days, recency_weights
from consentier.models.repeats import repeat_counts
from consentier.models.scoring import score_rows, top_items, with_second_hop
from consentier.models.spectral import Spectral
from consentier.training.fit import with_repeats

__all__ = ["FactorUsers", "LocalRidgeSessions", "LocalRidgeUsers", "NeighbourUsers", "SpectralUsers"]


@dataclass(kw_only=True)
class LocalRidgeSessions:
    """The session tier: `LocalRidge` on ordered sessions, learnt repeats, and a second hop."""

    item_count: int
    session_decay: float
    """Distinct items from the session's end after which an item weighs 1 / e."""
    neighbours: int
    regularisation: float
    row_exponent: float
    item_exponent: float
    repeat_weight: float
    """What the learnt probability that a session returns to an item adds to its score."""
    distance_decay: float
    reverse_weight: float
    session_half_life: float
    """Days before the end of train in which the weight of a session halves."""
    second_hop_weight: float
    second_hop_items: int = 50
    min_persons: int = 1

    _weights: sparse.csr_matrix = field(init=False, repr=False)
    _returns: NDArray[np.float32] = field(init=False, repr=False)

    def fit(self, sessions: Sessions) -> None:
        """Fit to the sessions in their order; each counts as one person."""
        matrix, order = self._ordered(sessions)
        model = LocalRidge(
            neighbours=self.neighbours,
            regularisation=self.regularisation,
            row_exponent=self.row_exponent,
            item_exponent=self.item_exponent,
            distance_decay=self.distance_decay,
            reverse_weight=self.reverse_weight,
            min_persons=self.min_persons,
            threads=1,
        )
        self._weights = model.solve(model.count(matrix, order=order))
        owners = np.arange(len(sessions), dtype=np.int64)
        numbers = np.repeat(owners, np.diff(sessions.starts))
        self._returns = repeat_counts(numbers, sessions.items, owners).probabilities(self.min_persons)

    def _ordered(self, sessions: Sessions) -> tuple[sparse.csr_matrix, SessionOrder]:
        """Distinct items of each session, placed by their last click, and the sessions' weights by age."""
        numbers = np.repeat(np.arange(len(sessions), dtype=np.int64), np.diff(sessions.starts))
        entries = np.unique(numbers * self.item_count + sessions.items)
        rows, columns = np.divmod(entries, self.item_count)
        matrix = sparse.csr_matrix(
            (np.ones(rows.size, np.float32), columns, np.searchsorted(rows, np.arange(len(sessions) + 1))),
            shape=(len(sessions), self.item_count),
        )
        ended = sessions.times[sessions.starts[1:] - 1]
        ages = ((ended.max() - ended) * 1e6).astype(np.int64)
        scale = recency_weights(ages, microseconds_of_days(self.session_half_life))
        positions = last_positions(numbers, sessions.items, self.item_count, entries)
        return matrix, SessionOrder(positions, np.maximum(scale, 2.0**-16))

    def recommend(self, prefix: NDArray[np.int64], now: float, count: int) -> NDArray[np.int64]:
        """The best items; the functions are those of the served scorer."""
        recent = np.array(list(dict.fromkeys(prefix[::-1].tolist()))[:50], dtype=np.int64)
        decayed = np.exp(-np.arange(recent.size) / self.session_decay).astype(np.float32)
        order = np.argsort(recent)
        rows, weights = recent[order], decayed[order]
        ids, scores = self._score(rows, weights)
        both = with_second_hop(
            rows, weights, ids, scores, hop_weight=self.second_hop_weight, hop_items=self.second_hop_items
        )
        ids, scores = self._score(*both)
        length = min(recent.size, len(self._returns))
        sums = np.zeros(self.item_count)
        sums[ids] = scores
        sums[recent[:length]] += self.repeat_weight * self._returns[length - 1, :length].astype(np.float64)
        together = np.union1d(ids, recent[:length])
        return top_items(together, sums[together], count)[0]

    def _score(
        self, rows: NDArray[np.int64], weights: NDArray[np.float32]
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        matrix = self._weights
        return score_rows(matrix.indptr, matrix.indices, matrix.data, rows, weights, self.item_count)


@dataclass(kw_only=True)
class _Users:
    """A model on users' items; both sources make one history, attribute values are further inputs."""

    item_count: int
    order_weight: float = 1.0
    cart_weight: float = 0.0
    """What an entry of the second source counts, where there is one."""
    request_cart_weight: float | None = None
    """What it counts in the history of a request; None: the same as in the fit."""
    attribute_weight: float = 0.0
    """What an attribute value counts; 0: attributes are not read."""

    _model: ItemModel = field(init=False, repr=False)

    def _unfitted(self) -> ItemModel:
        raise TypeError(f"{type(self).__name__} names no model")

    def fit(self, train: Interactions) -> None:
        """Fit to the joined histories."""
        self._model = self._unfitted().fit(self._inputs(train, self.cart_weight), show_progress=False)

    def recommend(self, histories: Interactions, hidden: sparse.csr_matrix, count: int) -> NDArray[np.int64]:
        """The best items that are not hidden; popular ones where the model has too few."""
        inputs = self._inputs(histories, self._request_weight())
        lists = np.full((len(histories), count), -1, dtype=np.int64)
        for user in range(len(histories)):
            withheld = hidden.indices[hidden.indptr[user] : hidden.indptr[user + 1]]
            found, _ = self._model.recommend(
                user,
                inputs[user],
                N=count,
                filter_already_liked_items=False,
                filter_items=withheld,
            )
            lists[user, : len(found)] = found
        return lists

    def _request_weight(self) -> float:
        return self.cart_weight if self.request_cart_weight is None else self.request_cart_weight

    def _inputs(self, rows: Interactions, cart_weight: float) -> sparse.csr_matrix:
        matrix = joined(rows, self.order_weight, cart_weight)
        if self.attribute_weight > 0 and rows.attributes is not None:
            attributes = self._attributes(rows.attributes, np.diff(matrix.indptr))
            matrix = sparse.hstack([matrix, attributes])
        return sparse.csr_matrix(matrix, dtype=np.float32)

    def _attributes(self, attributes: sparse.csr_matrix, known: NDArray[np.int64]) -> sparse.csr_matrix:
        """What attribute values count, beside so many known items."""
        return attributes * np.float32(self.attribute_weight)


@dataclass(kw_only=True)
class NeighbourUsers(_Users):
    """`ItemKNN`, with the weight that the product gives items of the history for themselves."""

    neighbours: int
    similarity: Literal["cosine", "tfidf", "bm25"] = "bm25"
    k1: float = 1.2
    b: float = 0.75
    repeat_weight: float = 0.0

    def fit(self, train: Interactions) -> None:
        """Fit to the joined histories."""
        model = ItemKNN(
            item_count=self.item_count,
            similarity=self.similarity,
            neighbours=self.neighbours,
            k1=self.k1,
            b=self.b,
            threads=1,
        )
        model.fit(self._inputs(train, self.cart_weight), show_progress=False)
        weights = with_repeats(Tier.FUSED, model, model.weights, self.repeat_weight)
        self._model = model.set_fitted(weights, model.popularity)


@dataclass(kw_only=True)
class LocalRidgeUsers(_Users):
    """`LocalRidge`."""

    neighbours: int
    regularisation: float
    row_exponent: float
    item_exponent: float
    popularity_regularisation: float = 0.0
    repeat_weight: float = 0.0
    second_hop_weight: float = 0.0
    second_hop_items: int = 50

    def _unfitted(self) -> ItemModel:
        return LocalRidge(
            item_count=self.item_count,
            neighbours=self.neighbours,
            regularisation=self.regularisation,
            row_exponent=self.row_exponent,
            item_exponent=self.item_exponent,
            popularity_regularisation=self.popularity_regularisation,
            repeat_weight=self.repeat_weight,
            second_hop_weight=self.second_hop_weight,
            second_hop_items=self.second_hop_items,
            threads=1,
        )


_USERS_AT_ONCE = 256


@dataclass(kw_only=True)
class FactorUsers(_Users):
    """`ALS`."""

    factors: int
    iterations: int
    regularisation: float
    unobserved_weight: float
    frequency_exponent: float = 1.0
    repeat_weight: float = 0.0

    def _unfitted(self) -> ItemModel:
        return ALS(
            item_count=self.item_count,
            factors=self.factors,
            iterations=self.iterations,
            regularisation=self.regularisation,
            unobserved_weight=self.unobserved_weight,
            frequency_exponent=self.frequency_exponent,
            repeat_weight=self.repeat_weight,
            threads=1,
        )

    def recommend(self, histories: Interactions, hidden: sparse.csr_matrix, count: int) -> NDArray[np.int64]:
        """The same, for blocks of users at once: lists long enough to leave out what is hidden."""
        inputs = self._inputs(histories, self._request_weight())
        lists = np.full((len(histories), count), -1, dtype=np.int64)
        for start in range(0, len(histories), _USERS_AT_ONCE):
            users = np.arange(start, min(start + _USERS_AT_ONCE, len(histories)))
            longest = count + int(np.diff(hidden.indptr)[users].max())
            found, _ = self._model.recommend(
                users, inputs[users], N=longest, filter_already_liked_items=False
            )
            for user, items in zip(users, found, strict=True):
                withheld = hidden.indices[hidden.indptr[user] : hidden.indptr[user + 1]]
                shown = items[~np.isin(items, withheld) & (items >= 0)][:count]
                lists[user, : len(shown)] = shown
        return lists


@dataclass(kw_only=True)
class SpectralUsers(_Users):
    """`Spectral`; attributes say what is expected, and fade as in the product's tiers."""

    factors: int
    row_exponent: float
    item_exponent: float
    spectral_exponent: float
    unit_rank: int
    unobserved_weight: float
    history_exponent: float
    history_offset: float
    attribute_fade: float = 1.0

    def _unfitted(self) -> ItemModel:
        return Spectral(
            item_count=self.item_count,
            factors=self.factors,
            row_exponent=self.row_exponent,
            item_exponent=self.item_exponent,
            spectral_exponent=self.spectral_exponent,
            unit_rank=self.unit_rank,
            unobserved_weight=self.unobserved_weight,
            history_exponent=self.history_exponent,
            history_offset=self.history_offset,
            threads=1,
        )

    def _attributes(self, attributes: sparse.csr_matrix, known: NDArray[np.int64]) -> sparse.csr_matrix:
        shares = self.attribute_weight / (1 + known / self.attribute_fade)
        shares /= np.maximum(np.diff(attributes.indptr), 1)
        return sparse.csr_matrix(sparse.diags_array(shares) @ attributes)
