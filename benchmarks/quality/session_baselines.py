"""Plain baselines for the next item of a session.

- Popularity: the most clicked items.
- Session popularity: what the session clicked most, of equals the latest; then the most clicked items
  (S-POP in Hidasi et al., "Session-based recommendations with recurrent neural networks", ICLR 2016).
- Sequential rules: what came after the last item in past sessions, pairs weighted by 1 / steps (SR in Ludewig
  and Jannach, "Evaluation of session-based recommendation algorithms", UMUAI 2018).
- Item neighbours: the cosine neighbours of the last item (Item-KNN in Hidasi et al.).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from benchmarks.quality.splits import Sessions
from consentier.models.item_knn import ItemKNN
from consentier.models.scoring import score_rows, top_items

__all__ = ["ItemNeighbours", "Popularity", "SequentialRules", "SessionPopularity"]


@dataclass(kw_only=True)
class Popularity:
    """The most clicked items, the same for everybody."""

    item_count: int

    _ranked: NDArray[np.int64] = field(init=False, repr=False)

    def fit(self, sessions: Sessions) -> None:
        """Count the clicks."""
        counts = np.bincount(sessions.items, minlength=self.item_count)
        self._ranked = np.argsort(-counts, kind="stable")

    def recommend(self, prefix: NDArray[np.int64], now: float, count: int) -> NDArray[np.int64]:
        """The first of the list."""
        return np.asarray(self._ranked[:count])


@dataclass(kw_only=True)
class SessionPopularity(Popularity):
    """The session's own items, then the most clicked."""

    def recommend(self, prefix: NDArray[np.int64], now: float, count: int) -> NDArray[np.int64]:
        """Items of the session by clicks and then by their last one, filled up."""
        items, last, clicks = np.unique(prefix[::-1], return_index=True, return_counts=True)
        own = items[np.lexsort((last, -clicks))][:count]
        others = self._ranked[: count + own.size]
        return np.concatenate([own, others[~np.isin(others, own)]])[:count]


@dataclass(kw_only=True)
class _LastItem:
    """Scores by one row of a matrix: that of the last item."""

    item_count: int

    _weights: sparse.csr_matrix = field(init=False, repr=False)

    def recommend(self, prefix: NDArray[np.int64], now: float, count: int) -> NDArray[np.int64]:
        """The best items of the last item's row; fewer where it has fewer."""
        matrix = self._weights
        last, one = prefix[-1:].astype(np.int64), np.ones(1, np.float32)
        ids, scores = score_rows(matrix.indptr, matrix.indices, matrix.data, last, one, self.item_count)
        return top_items(ids, scores, count)[0]


@dataclass(kw_only=True)
class SequentialRules(_LastItem):
    """What came after the last item."""

    steps: int
    """How many clicks later at most."""

    def fit(self, sessions: Sessions) -> None:
        """Add up 1 / steps over all pairs in order."""
        owners = np.repeat(np.arange(len(sessions)), np.diff(sessions.starts))
        shape = (self.item_count, self.item_count)
        rules = sparse.csr_matrix(shape, dtype=np.float32)  # type: ignore[arg-type]  # stubs want values
        for step in range(1, self.steps + 1):
            first = np.flatnonzero(owners[:-step] == owners[step:])
            pairs = (sessions.items[first], sessions.items[first + step])
            rules += sparse.csr_matrix((np.full(first.size, 1 / step, np.float32), pairs), shape=shape)  # type: ignore[arg-type]
        rules.sort_indices()
        self._weights = rules


@dataclass(kw_only=True)
class ItemNeighbours(_LastItem):
    """What is clicked in the same sessions as the last item."""

    neighbours: int

    def fit(self, sessions: Sessions) -> None:
        """Compute cosines of the items' sets of sessions."""
        matrix = sparse.csr_matrix(
            (np.ones(len(sessions.items), np.float32), sessions.items, sessions.starts),
            shape=(len(sessions), self.item_count),
        )
        matrix.sum_duplicates()
        matrix.data[:] = 1
        model = ItemKNN(similarity="cosine", neighbours=self.neighbours, threads=1)
        self._weights = model.fit(matrix, show_progress=False).weights
