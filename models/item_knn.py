"""Item-item nearest neighbours: by cosine from exact counts, by TF-IDF and BM25 as ``implicit`` fits them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from implicit.nearest_neighbours import ItemItemRecommender, bm25_weight, normalize, tfidf_weight
from numpy.typing import NDArray
from scipy import sparse

from consentier.models.base import LinearItemModel
from consentier.models.compiled import compiled
from consentier.models.gram import GramStatistics, gram_statistics
from consentier.progress import Advance

__all__ = ["ItemKNN"]


@dataclass(kw_only=True, eq=False)
class ItemKNN(LinearItemModel):
    """Score items by the sum of their similarities to the items of the history.

    The cosine is a function of integer co-occurrence counts (`count`, `solve`), so that a person can be
    subtracted from them. TF-IDF and BM25 weigh every row by figures of all rows together (the number of
    items, the mean popularity): ``implicit`` computes them, and without a person they must be fitted again.
    An item is never its own neighbour here, and a list holds exactly `N` items, with no seen ones among them.
    """

    similarity: Literal["cosine", "tfidf", "bm25"] = "cosine"
    """Cosine of the plain columns, or of columns weighted by TF-IDF or BM25."""
    neighbours: int = 100
    """Neighbours kept per input (one more where BM25 does not put an input among its own nearest)."""

    k1: float = 1.2
    """BM25: how slowly an entry's weight saturates; near 0, all entries of an item count alike."""
    b: float = 0.75
    """BM25: how much entries of popular items count less, from 0 (not at all) to 1."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(
            self.similarity in ("cosine", "tfidf", "bm25"), "similarity", "one of cosine, tfidf, bm25"
        )
        self._require(self.neighbours >= 1, "neighbours", "at least 1")
        self._require(math.isfinite(self.k1) and self.k1 >= 0, "k1", "a finite number of at least 0")
        self._require(0 <= self.b <= 1, "b", "between 0 and 1")

    def count(
        self, user_items: sparse.csr_matrix, *, persons: NDArray[np.integer] | None = None
    ) -> GramStatistics:
        """Count what `solve` computes the cosines from. Arguments as for `fit`."""
        return gram_statistics(
            user_items, row_exponent=0.0, persons=persons, min_persons=self.min_persons, threads=self.threads
        )

    def solve(self, statistics: GramStatistics, *, advance: Advance | None = None) -> sparse.csr_matrix:
        """Compute the item weights of the cosine from statistics.

        With ``G`` the Gram matrix, the weight of input i for item j is ``G[i, j] / sqrt(G[i, i] G[j, j])``.
        Each input keeps those of its `neighbours` most similar items, equal ones by ascending item.

        Parameters
        ----------
        statistics
            From `count`: kept ones, say, from which rows were subtracted.
        advance
            Called with the number of items once they are finished.

        Returns
        -------
        csr_matrix of float32
            Shape (n_inputs, n_items), canonical.

        Raises
        ------
        ValueError
            The similarity is not the cosine, or the statistics have another `min_persons`, or a row exponent.

        Notes
        -----
        O(entries of the statistics).
        """
        if self.similarity != "cosine":
            raise ValueError(f"{self.similarity} is no function of co-occurrence counts: fit it")
        if (statistics.row_exponent, statistics.min_persons) != (0.0, self.min_persons):
            raise ValueError(
                f"the statistics were computed with row_exponent={statistics.row_exponent} and min_persons="
                f"{statistics.min_persons}, the model has 0.0 and {self.min_persons}"
            )
        gram = statistics.gram
        items = gram.shape[0] if self.item_count is None else self.item_count
        lengths, indices, data = _nearest(
            gram.indptr,
            gram.indices,
            gram.data.astype(np.float64),
            np.sqrt(gram.diagonal().astype(np.float64)),
            statistics.supported(),
            items,
            self.neighbours,
        )
        if advance is not None:
            advance(items)
        starts = np.concatenate(([0], np.cumsum(lengths)))
        return sparse.csr_matrix((data, indices, starts), shape=(gram.shape[0], items))

    def _fit(
        self, user_items: sparse.csr_matrix, persons: NDArray[np.integer] | None, advance: Advance
    ) -> sparse.csr_matrix:
        if self.similarity == "cosine":
            return self.solve(self.count(user_items, persons=persons), advance=advance)
        inputs = user_items.shape[1]
        items = inputs if self.item_count is None else self.item_count
        # One neighbour more than asked for: each input is its own nearest.
        peer = ItemItemRecommender(K=self.neighbours + 1, num_threads=self.threads or 0)
        peer.fit(self._weighted(user_items.astype(np.float64)), show_progress=False)
        weights = sparse.csr_matrix(peer.similarity, dtype=np.float32)
        weights.setdiag(0)
        if self.min_persons > 1:
            weights = weights.multiply(self._publishable(user_items, persons)).tocsr()
        weights = weights[:, :items]
        weights.sum_duplicates()
        weights.eliminate_zeros()
        advance(items)
        return weights

    def _weighted(self, user_items: sparse.csr_matrix) -> sparse.csr_matrix:
        """The matrix whose columns are compared, as ``TFIDFRecommender`` and ``BM25Recommender`` weigh it."""
        with np.errstate(invalid="ignore"):  # of a matrix without entries there is no mean
            if self.similarity == "bm25":
                return sparse.csr_matrix(bm25_weight(user_items.T, K1=self.k1, B=self.b).T)
            weighted = sparse.csr_matrix(normalize(tfidf_weight(user_items.T)).T)
        # Rows of all items but one weigh nothing; an item that stands in no others has a norm of 0.
        weighted.data[~np.isfinite(weighted.data)] = 0.0
        return weighted

    def _publishable(
        self, user_items: sparse.csr_matrix, persons: NDArray[np.integer] | None
    ) -> sparse.csr_matrix:
        """Mark the pairs of inputs behind which there are enough distinct persons."""
        statistics = self.count(user_items.astype(bool).astype(np.float64), persons=persons)
        gram = statistics.gram
        enough = statistics.supported().astype(np.float32)
        return sparse.csr_matrix((enough, gram.indices, gram.indptr), shape=gram.shape)


@compiled
def _nearest(
    starts: NDArray[np.integer],
    indices: NDArray[np.integer],
    values: NDArray[np.float64],
    norms: NDArray[np.float64],
    supported: NDArray[np.bool_],
    items: int,
    neighbours: int,
) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.float32]]:
    """Choose the nearest items of each input: how many, which (ascending), and how near they are."""
    inputs = starts.size - 1
    room = 0
    for i in range(inputs):
        room += min(neighbours, starts[i + 1] - starts[i])
    lengths = np.zeros(inputs, dtype=np.int64)
    chosen = np.empty(room, dtype=np.int32)
    data = np.empty(room, dtype=np.float32)
    filled = 0
    for i in range(inputs):
        count = 0
        near = np.empty(starts[i + 1] - starts[i], dtype=np.float32)
        which = np.empty(starts[i + 1] - starts[i], dtype=np.int32)
        for k in range(starts[i], starts[i + 1]):
            j = indices[k]
            if j != i and j < items and supported[k]:
                near[count] = values[k] / (norms[i] * norms[j])
                which[count] = j
                count += 1
        threshold, ties = np.float32(0.0), 0
        if count > neighbours:
            threshold = np.partition(near[:count], count - neighbours)[count - neighbours]
            ties = neighbours - (near[:count] > threshold).sum()
        for k in range(count):
            if near[k] > threshold or (near[k] == threshold and ties > 0):
                if near[k] == threshold:
                    ties -= 1
                chosen[filled] = which[k]
                data[filled] = near[k]
                filled += 1
                lengths[i] += 1
    return lengths, chosen[:filled], data[:filled]
