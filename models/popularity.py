"""The most popular items: the answer where nothing personal may be read, and the floor of comparisons."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from consentier.models.base import History, LinearItemModel
from consentier.progress import Advance

__all__ = ["Popularity"]


@dataclass(kw_only=True, eq=False)
class Popularity(LinearItemModel):
    """Rank items by the number of distinct persons with them.

    The score of an item is that number. The history serves only to leave out seen items, so no explanation
    names one of its inputs, and no items are similar.
    """

    personalised: ClassVar[bool] = False

    def _fit(
        self, user_items: sparse.csr_matrix, persons: NDArray[np.integer] | None, advance: Advance
    ) -> sparse.csr_matrix:
        inputs = user_items.shape[1]
        items = inputs if self.item_count is None else self.item_count
        advance(items)
        nothing = (np.zeros(0, np.float32), np.zeros(0, np.int32), np.zeros(inputs + 1, np.int32))
        return sparse.csr_matrix(nothing, shape=(inputs, items))

    def _score(self, history: History) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        return np.arange(self.popularity.size, dtype=np.int64), self.popularity.astype(np.float64)
