"""Item-item nearest neighbours, fitted by ``implicit``."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Literal

import numpy as np
from implicit.nearest_neighbours import BM25Recommender, CosineRecommender, TFIDFRecommender
from implicit.utils import ParameterWarning
from numpy.typing import NDArray
from scipy import sparse

from consentier.models.base import ItemModel
from consentier.models.gram import gram_statistics
from consentier.progress import Advance

__all__ = ["ItemKNN"]

_PEERS = {"cosine": CosineRecommender, "tfidf": TFIDFRecommender, "bm25": BM25Recommender}


@dataclass(kw_only=True, eq=False)
class ItemKNN(ItemModel):
    """Score items by the sum of their similarities to the items of the history.

    ``implicit`` computes the similarities; this class takes an item's similarity to itself out, and answers
    as every model here does (exactly `N` items, no seen ones among them).
    """

    similarity: Literal["cosine", "tfidf", "bm25"] = "cosine"
    """Cosine of the plain columns, or of columns weighted by TF-IDF or BM25."""
    neighbours: int = 100
    """Neighbours kept per input (one more where BM25 does not put an input among its own nearest)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(self.similarity in _PEERS, "similarity", f"one of {', '.join(_PEERS)}")
        self._require(self.neighbours >= 1, "neighbours", "at least 1")

    def _fit(
        self, user_items: sparse.csr_matrix, persons: NDArray[np.integer] | None, advance: Advance
    ) -> sparse.csr_matrix:
        inputs = user_items.shape[1]
        items = inputs if self.item_count is None else self.item_count
        # One neighbour more than asked for: each input is its own nearest.
        peer = _PEERS[self.similarity](K=self.neighbours + 1, num_threads=self.threads or 0)
        with warnings.catch_warnings():
            # It converts its own weighted matrix, and warns of that.
            warnings.simplefilter("ignore", ParameterWarning)
            peer.fit(user_items.astype(np.float64), show_progress=False)
        weights = sparse.csr_matrix(peer.similarity, dtype=np.float32)
        weights.setdiag(0)
        if self.min_persons > 1:
            weights = weights.multiply(self._publishable(user_items, persons)).tocsr()
        weights = weights[:, :items]
        weights.sum_duplicates()
        weights.eliminate_zeros()
        advance(items)
        return weights

    def _publishable(
        self, user_items: sparse.csr_matrix, persons: NDArray[np.integer] | None
    ) -> sparse.csr_matrix:
        """Mark the pairs of inputs behind which there are enough distinct persons."""
        statistics = gram_statistics(
            user_items.astype(bool).astype(np.float64),
            row_exponent=0.0,
            persons=persons,
            min_persons=self.min_persons,
            threads=self.threads,
        )
        gram = statistics.gram
        enough = statistics.supported().astype(np.float32)
        return sparse.csr_matrix((enough, gram.indices, gram.indptr), shape=gram.shape)
