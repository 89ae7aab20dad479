"""Items that few persons had, or nobody yet, in a linear model: they borrow by their metadata.

What is published stays a function of counts and of the items table, which names no person: whoever is
forgotten is gone from what is borrowed too. Items with fewer than `min_persons` persons count as items that
nobody had, so that a bundle does not tell the ones from the others.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pyarrow as pa
import scipy.sparse as sp
from numpy.typing import NDArray

from consentier.features.item_metadata import ItemLevels, item_levels
from consentier.models.item_index import ItemIndex
from consentier.models.item_metadata import borrowing_shares, with_borrowed
from consentier.training.config import TierConfig

__all__ = ["Borrowing", "borrowing"]


@dataclasses.dataclass(frozen=True, slots=True)
class Borrowing:
    """How the items of one tier borrow.

    Attributes
    ----------
    levels
        The metadata.
    enough
        Persons with which an item stands on its own.
    neighbours
        Items from which an item borrows at most.
    kept
        Weights kept of each item that borrows.
    """

    levels: ItemLevels
    enough: int
    neighbours: int
    kept: int

    def facts(self) -> dict[str, Any]:
        """What a manifest says of the metadata."""
        return {"columns": list(self.levels.columns), "digest": self.levels.digest}

    def applied(
        self,
        index: ItemIndex,
        weights: sp.csr_matrix,
        persons: NDArray[np.int64],
        *,
        repeat_weight: float,
        threads: int | None,
    ) -> tuple[ItemIndex, sp.csr_matrix]:
        """Mix what is borrowed into a model, and add the items that the metadata alone know.

        Parameters
        ----------
        index
            The items that the model was fitted to.
        weights
            Of the model, shape (items and further inputs, items).
        persons
            int64, shape (items,): distinct persons behind each of these items.
        repeat_weight
            Weight for itself of an item that comes in; those of the others stay.
        threads
            Threads to use; None: all cores. The result does not depend on it.

        Returns
        -------
        index, weights
            Of all items: those of the model, and every item of the metadata that shares a level with one of
            them.
        """
        known = index.ids(np.arange(len(index)))
        together = ItemIndex.from_ids({*known, *self.levels.item_ids})
        counts = np.zeros(len(together), dtype=np.int64)
        counts[together.indices(known)] = persons
        levels = _placed(self.levels.matrix, together.indices(self.levels.item_ids), len(together))
        shares = borrowing_shares(levels, counts, enough=self.enough, neighbours=self.neighbours)
        own = np.zeros(len(together), dtype=np.bool_)
        own[together.indices(known)] = True
        stays = own | (np.diff(shares.indptr) > 0)
        names = together.ids(np.flatnonzero(stays))
        shares = shares[stays][:, stays]
        index = ItemIndex.from_ids(names)
        return index, self._mixed(
            _widened(weights, index.indices(known), len(index)), shares, own[stays], repeat_weight, threads
        )

    def _mixed(
        self,
        weights: sp.csr_matrix,
        shares: sp.csr_matrix,
        known: NDArray[np.bool_],
        repeat_weight: float,
        threads: int | None,
    ) -> sp.csr_matrix:
        # What an item adds to its own score is no likeness to others: it is not lent.
        repeats = np.where(known, weights.diagonal()[: known.size], np.float32(repeat_weight))
        others = _without_diagonal(weights)
        mixed = with_borrowed(others, shares, kept=self.kept, threads=threads)
        if not repeats.any():
            return mixed
        repeated = sp.csr_matrix(mixed + sp.diags_array(repeats, shape=mixed.shape), dtype=np.float32)
        repeated.eliminate_zeros()
        repeated.sort_indices()
        return repeated


def borrowing(config: TierConfig, items: pa.Table | None) -> Borrowing | None:
    """How a tier's items borrow; None where that is switched off or there are no metadata.

    Raises
    ------
    ConfigError
        The configuration names a column that the items table has not.
    """
    if not config.metadata_persons:
        return None
    levels = item_levels(items, config.metadata_columns)
    if levels is None:
        return None
    return Borrowing(levels, config.metadata_persons, config.metadata_neighbours, config.neighbours)


def _placed(matrix: sp.csr_matrix, places: NDArray[np.int64], rows: int) -> sp.csr_matrix:
    """The rows of a matrix (places ascend) among more rows."""
    lengths = np.zeros(rows, dtype=np.int64)
    lengths[places] = np.diff(matrix.indptr)
    return sp.csr_matrix(
        (matrix.data, matrix.indices, np.append(0, np.cumsum(lengths))), shape=(rows, matrix.shape[1])
    )


def _widened(weights: sp.csr_matrix, places: NDArray[np.int64], items: int) -> sp.csr_matrix:
    """Weights with their items among more items; further inputs stand behind them as before."""
    more = weights.shape[0] - places.size
    inputs = np.concatenate([places, items + np.arange(more)])
    columns = sp.csr_matrix(
        (weights.data, places[weights.indices], weights.indptr), shape=(weights.shape[0], items)
    )
    return _placed(columns, inputs, items + more)


def _without_diagonal(weights: sp.csr_matrix) -> sp.csr_matrix:
    rows = np.repeat(np.arange(weights.shape[0]), np.diff(weights.indptr))
    off = rows != weights.indices
    starts = np.append(0, np.cumsum(np.bincount(rows[off], minlength=weights.shape[0])))
    return sp.csr_matrix((weights.data[off], weights.indices[off], starts), shape=weights.shape)
