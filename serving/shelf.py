"""The items of one bundle, and which of them may be shown: catalogue, rules and the limits of a query."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from consentier.models.bundle import Bundle
from consentier.models.item_index import ItemIndex
from consentier.models.item_lookup import ItemLookup
from consentier.serving.catalogue import Catalogue
from consentier.serving.explanations import TITLES
from consentier.serving.item_columns import Expression, ItemColumns
from consentier.serving.main_parameters import main_parameters, rule_parameters
from consentier.serving.query import Query
from consentier.serving.rules import Rules, ShelfRules

__all__ = ["Shelf", "ascending_numbers", "told"]

_FILTERS_KEPT = 256
_FILTER_BYTES = 64 << 20
"""Filters of requests whose items are kept, per bundle, and the memory that they may take."""


class Shelf:
    """The items of one bundle, and which of them may be shown at all."""

    def __init__(
        self,
        index: ItemIndex,
        lookup: ItemLookup,
        catalogue: Catalogue | None,
        rules: Rules | None,
        further: Sequence[str] = (),
    ) -> None:
        self.index = index
        self.lookup = lookup
        self._further = further
        self._catalogue = catalogue
        self._columns: ItemColumns | None = None
        self._filtered: dict[str, tuple[NDArray[np.bool_], NDArray[np.int64]]] = {}
        self._filter_bytes = 0
        self.sensitive = frozenset[str]() if catalogue is None else catalogue.sensitive
        self.hidden = np.zeros(len(index) + len(further), dtype=np.bool_)
        self.silent = np.zeros(len(index), dtype=np.bool_)
        if catalogue is not None:
            self.hidden[: len(index)] = True
            self.hidden[ascending_numbers(self.lookup.numbers(list(catalogue.available)))] = False
            self.silent[ascending_numbers(self.lookup.numbers(list(self.sensitive)))] = True
        self.rules = None if rules is None else ShelfRules(rules, self._attributes(), self._items())
        if self.rules is not None:
            self.hidden |= self.rules.hidden

    def _items(self) -> list[str]:
        return [*self.lookup.ids(np.arange(len(self.index))), *self._further]

    def _attributes(self) -> ItemColumns:
        """The attributes of the items, which most shelves never need."""
        if self._columns is None:
            known = Catalogue(frozenset()) if self._catalogue is None else self._catalogue
            self._columns = ItemColumns(known.attributes, self._items(), known.unread)
        return self._columns

    def digest_into(self, digest: Any) -> None:
        """Feed what may be shown, and in which mixture, to a hash."""
        digest.update(self.hidden)
        digest.update(self.silent)
        if self.rules is not None:
            self.rules.digest_into(digest)

    def titles(self, items: Iterable[str]) -> dict[str, str]:
        """What the catalogue calls some items: their name or title, where it has such an attribute."""
        rows = {} if self._catalogue is None else self._catalogue.attributes
        found = {}
        for item in items:
            row = rows.get(item, {})
            title = next((row[name] for name in TITLES if row.get(name)), None)
            if title is not None:
                found[item] = str(title)
        return found

    @property
    def mixes(self) -> bool:
        """Whether a list is more than the best scores in their order."""
        return self.rules is not None and self.rules.rules.mixes

    def fitting(self, where: Expression) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
        """The items for which a filter is true: as a bitmap, and their numbers, ascending.

        Raises
        ------
        FilterError
            It names an attribute that items do not have.
        """
        found = self._filtered.get(where.text)
        if found is None:
            fits = where.true_for(self._attributes())
            found = fits, np.flatnonzero(fits).astype(np.int64)
            size = fits.nbytes + found[1].nbytes
            if len(self._filtered) >= _FILTERS_KEPT or self._filter_bytes + size > _FILTER_BYTES:
                self._filter_bytes = 0
                self._filtered = {}  # another thread may still read the old one
            self._filter_bytes += size
            self._filtered[where.text] = found
        return found

    def visible(self, ids: NDArray[np.int64], query: Query, hidden: Iterable[int] = ()) -> NDArray[np.bool_]:
        """Which of some items (ascending) may be shown in answer to a query."""
        mask = ~self.hidden[ids]
        barred, allowed = self.limits(query, hidden)
        if barred.size:
            mask &= ~np.isin(ids, barred)
        if allowed is not None:
            mask &= np.isin(ids, allowed)
        return mask

    def limits(
        self, query: Query, hidden: Iterable[int]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64] | None]:
        """The items that an answer must not hold, and the only ones that it may, each ascending."""
        excluded = self.lookup.numbers(list(query.exclude)) if query.exclude else ()
        barred = ascending_numbers([*hidden, *excluded])
        allowed = None if query.allow is None else ascending_numbers(self.lookup.numbers(list(query.allow)))
        if query.where is None:
            return barred, allowed
        _, fitting = self.fitting(query.where)
        return barred, fitting if allowed is None else np.intersect1d(allowed, fitting, assume_unique=True)


def ascending_numbers(numbers: Iterable[int]) -> NDArray[np.int64]:
    """Numbers of known items, each once."""
    return np.array(sorted({number for number in numbers if number >= 0}), dtype=np.int64)


def told(bundle: Bundle, rules: Rules | None) -> tuple[str, ...]:
    """What decides the order, in words."""
    return (*main_parameters(bundle.manifest), *(() if rules is None else rule_parameters(rules)))
