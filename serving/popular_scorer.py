"""The scorer of the non-personal list: what is popular, what is trending, and what is new."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from consentier.consent import Side
from consentier.errors import BundleMalformed
from consentier.models.bundle import Bundle
from consentier.models.item_index import ItemIndex
from consentier.models.item_lookup import ItemLookup
from consentier.serving.answer import Exploration
from consentier.serving.catalogue import Catalogue
from consentier.serving.exploration import draws, slots_of, with_explored
from consentier.serving.query import Query
from consentier.serving.rules import Mixture, Rules
from consentier.serving.shelf import Shelf, ascending_numbers, told
from consentier.serving.trending import TrendingSnapshot

__all__ = ["PopularScorer"]

_AT_ONCE = 256
"""Items of the list that are looked at first; then twice as many each time."""
_FEW = 1000
"""Of so many allowed items at most, the numbers are looked up before the list is gone through."""


class PopularScorer:
    """The non-personal list: items by the number of permitted persons, per side; then all others by id.

    Parameters
    ----------
    bundle
        An opened bundle of the popular model.
    catalogue
        What may be shown now. Its available items that no count knows come last.
    rules
        The shop's business rules; None: there are none.
    compiled
        Use compiled loops where Numba is installed.
    """

    def __init__(
        self,
        bundle: Bundle,
        catalogue: Catalogue | None,
        rules: Rules | None = None,
        *,
        compiled: bool = True,
    ) -> None:
        self.digest = bundle.digest
        self.main_parameters = told(bundle, rules)
        index = ItemIndex(bundle.arrays["item_ids"], bundle.arrays["item_offsets"], verify=False)
        lookup = ItemLookup(index, compiled=compiled)
        self._uncounted = [] if catalogue is None else _unknown(catalogue.available, lookup)
        self._shelf = Shelf(index, lookup, catalogue, rules, self._uncounted)
        self._further = {item: number for number, item in enumerate(self._uncounted, start=len(index))}
        everything = np.arange(len(index), len(index) + len(self._uncounted))
        self._order = {side: np.concatenate([self._ranking(bundle, side), everything]) for side in Side}
        self._shown = ~self._shelf.hidden
        self._explore = None if rules is None else rules.explore
        self._new = self._few(bundle.arrays[f"{Side.ONLINE}_counts"])

    def _few(self, counts: NDArray[Any]) -> NDArray[np.int64]:
        """What may be shown and too few persons had, ascending."""
        if self._explore is None:
            return np.empty(0, dtype=np.int64)
        few = np.concatenate([counts < self._explore.persons, np.ones(len(self._uncounted), np.bool_)])
        return np.flatnonzero(few & ~self._shelf.hidden).astype(np.int64)

    def _ranking(self, bundle: Bundle, side: Side) -> NDArray[np.int64]:
        counts = bundle.arrays[f"{side}_counts"]
        if counts.shape != (len(self._shelf.index),) or counts.dtype.kind not in "iu":
            raise BundleMalformed(
                f"{side}_counts.npy has shape {counts.shape} and type {counts.dtype}, not one count per item"
            )
        return np.argsort(-counts.astype(np.int64), kind="stable").astype(np.int64)

    def shows(self, item_id: str) -> bool:
        """Whether an item may be shown at all, as far as catalogue and rules say."""
        number = self._number(item_id)
        return number >= 0 and not self._shelf.hidden[number]

    def top(
        self,
        query: Query,
        *,
        without: frozenset[str] = frozenset(),
        mixture: Mixture | None = None,
        trending: TrendingSnapshot | None = None,
    ) -> list[str]:
        """The first items of the list that may be shown and are not in `without`.

        Parameters
        ----------
        query
            What is asked.
        without
            Items that are in the list already, or must not be.
        mixture
            What the list holds already.
        trending
            Its items come first, as many as its share allows; the others stay in their order.

        Notes
        -----
        Linear in the items that are passed over: a few nanoseconds for each that `where`, the catalogue or a
        short `allow` keeps out, a microsecond for each other one.
        """
        barred = query.exclude | without
        mixture = Mixture() if mixture is None else mixture
        on_show = self._on_show(query)
        ordered = _in_parts(self._order[query.side], on_show)
        if trending is None:
            return self._first(ordered, query.n, query, barred, mixture)
        numbers = map(self._number, trending.items)
        known = (number for number in numbers if number >= 0 and on_show[number])
        found = self._first(known, trending.slots(query.n), query, barred, mixture)
        return found + self._first(ordered, query.n - len(found), query, barred | set(found), mixture)

    @property
    def explores(self) -> bool:
        """Whether the shop gives slots to what is new."""
        return self._explore is not None

    def explored(
        self, listed: Sequence[str], query: Query, seed: str, *, without: frozenset[str]
    ) -> tuple[tuple[str, ...], Exploration | None]:
        """Give slots of a list to new items, which a seed draws; see `serving.exploration`.

        Parameters
        ----------
        listed
            The list without them.
        query
            What is asked.
        seed
            What to draw with.
        without
            Items that must not be drawn.

        Returns
        -------
        listed, exploration
            What stays of the list, and what was drawn; all of it and None where nothing was.

        Notes
        -----
        A pass over the new items for each limit of the query.
        """
        share = 0.0 if self._explore is None else self._explore.share
        slots = slots_of(share, query.n, seed)
        pool = self._pool(query, without.union(listed[: query.n - slots])) if slots else self._new[:0]
        drawn = (self._item(int(pool[place])) for place in draws(seed, pool.size))
        rules, mixture = self._shelf.rules, Mixture()

        def fits(item: str) -> bool:
            number = self._number(item)
            return rules is None or number < 0 or rules.offer(number, mixture)

        kept, new = with_explored(listed, query.n, slots, drawn, fits)
        return kept, Exploration(seed, int(pool.size), slots, new) if new else None

    def _pool(self, query: Query, barred: frozenset[str]) -> NDArray[np.int64]:
        """The new items that may be drawn for a query."""
        pool = self._new if self._shelf.rules is None else self._shelf.rules.recent(self._new, query.at)
        if query.where is not None:
            pool = pool[self._shelf.fitting(query.where)[0][pool]]
        if query.allow is not None:
            pool = pool[np.isin(pool, ascending_numbers(map(self._number, query.allow)))]
        return pool[~np.isin(pool, ascending_numbers(map(self._number, barred | query.exclude)))]

    def _on_show(self, query: Query) -> NDArray[np.bool_]:
        """The items that may stand in a list, as far as that is told for all of them at once."""
        on_show = self._shown
        if query.where is not None:
            on_show = on_show & self._shelf.fitting(query.where)[0]
        if query.allow is not None and len(query.allow) <= _FEW:
            allowed = np.zeros(on_show.size, dtype=np.bool_)
            allowed[ascending_numbers(map(self._number, query.allow))] = True
            on_show = on_show & allowed
        return on_show

    def _first(
        self, numbers: Iterable[int], n: int, query: Query, barred: frozenset[str], mixture: Mixture
    ) -> list[str]:
        """The first n of some items on show that may stand in a list."""
        found: list[str] = []
        for number in numbers:
            if len(found) == n:
                break
            item = self._item(number)
            if item in barred or not (query.allow is None or item in query.allow):
                continue
            if self._shelf.rules is None or self._shelf.rules.offer(number, mixture):
                found.append(item)
        return found

    def _number(self, item_id: str) -> int:
        number = self._shelf.index.index(item_id)
        return number if number >= 0 else self._further.get(item_id, -1)

    @property
    def item_ids(self) -> list[str]:
        """All items of the list: those of the bundle, then those that only the catalogue knows."""
        return [*self._shelf.lookup.ids(np.arange(len(self._shelf.index))), *self._uncounted]

    def digest_into(self, digest: Any) -> None:
        """Feed what the list depends on beside the bundle to a hash."""
        digest.update(repr(self._uncounted).encode())
        self._shelf.digest_into(digest)

    def shown(self, side: Side) -> NDArray[np.int64] | None:
        """The numbers of the items that may be shown to anybody, best first; None where rules cap them."""
        if self._shelf.rules is not None and self._shelf.rules.rules.caps:
            return None
        order = self._order[side]
        shown: NDArray[np.int64] = order[~self._shelf.hidden[order]]
        return shown

    def _item(self, number: int) -> str:
        known = len(self._shelf.index)
        return self._shelf.index.id(number) if number < known else self._uncounted[number - known]


def _in_parts(numbers: NDArray[np.int64], on_show: NDArray[np.bool_]) -> Iterator[int]:
    """The numbers of what is on show, of which as a rule only the first are looked at."""
    start, size = 0, _AT_ONCE
    while start < numbers.size:
        part = numbers[start : start + size]
        yield from part[on_show[part]].tolist()
        start, size = start + size, 2 * size


def _unknown(items: Iterable[str], lookup: ItemLookup) -> list[str]:
    """Those of some items that have no number, by id."""
    names = list(items)
    numbers = lookup.numbers(names)
    return sorted((item for item, number in zip(names, numbers, strict=True) if number < 0), key=_utf8)


def _utf8(item: str) -> bytes:
    return item.encode("utf-8", "surrogatepass")
