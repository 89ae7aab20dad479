"""Goods like those that somebody bought: what may be advertised to existing customers without their consent.

Goods are alike if they are of one category of the shop's ``items`` table. What somebody bought is CRM data:
only a tier that may read it can know it, and where none may, nothing can be shown to be similar.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from consentier.consent import Source
from consentier.serving.batch_views import SOURCES, BatchViews

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["SimilarGoods"]

_CATEGORY = "category"


class SimilarGoods:
    """The categories of a shop's items, numbered.

    Parameters
    ----------
    items
        The shop's ``items`` table. Without categories, no goods are alike.
    """

    def __init__(self, items: pa.Table) -> None:
        self._group_of: dict[str, int] = {}
        self._members: list[frozenset[str]] = []
        if _CATEGORY not in items.column_names:
            return
        members: dict[Any, list[str]] = {}
        for item, category in zip(items["item_id"].to_pylist(), items[_CATEGORY].to_pylist(), strict=True):
            if isinstance(category, str | int | float) and category != "":
                members.setdefault(category, []).append(item)
        for number, own in enumerate(members.values()):
            self._group_of.update(dict.fromkeys(own, number))
            self._members.append(frozenset(own))

    def groups(self, items: Iterable[str]) -> NDArray[np.int64]:
        """The number of each item's category; -1 where it has none."""
        return np.array([self._group_of.get(item, -1) for item in items], dtype=np.int64)

    def members(self, groups: Iterable[int]) -> frozenset[str]:
        """All items of some categories."""
        return frozenset[str]().union(*(self._members[group] for group in groups))

    def bought(
        self, views: BatchViews, groups: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The categories in which each person bought something, as far as that may be read.

        Parameters
        ----------
        views
            What may be read.
        groups
            Of each code of an item.

        Returns
        -------
        starts, groups
            Where each person's begin, int64, shape (persons + 1,), and the categories, ascending.
        """
        starts = views.starts[SOURCES.index(Source.CRM)]
        own = slice(int(starts[0]), int(starts[-1]))
        owners = np.repeat(np.arange(len(views)), np.diff(starts))
        found = groups[views.items[own]]
        kinds = np.array([kind == "order" for kind in views.kinds.to_pylist()], np.bool_)
        kept = kinds[views.kind_codes[own]] & (found >= 0)
        width = max(len(self._members), 1)
        pairs = np.unique(owners[kept] * width + found[kept])
        owners, found = np.divmod(pairs, width)
        return np.searchsorted(owners, np.arange(len(views) + 1)).astype(np.int64), found
