"""Answers of a linear model to all requests of a validation period, as the served scorer gives each of them.

`BatchScorer` gives the lists that `serving.scorer.LinearScorer` gives for the same views, without asking for
one after the other: what is chosen by them is what is served. `training.factor_validation` does it for factor
models.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import scipy.sparse as sp
from joblib import Parallel, delayed
from numpy.typing import NDArray

from consentier.consent import Source, microseconds
from consentier.features.interactions import largest_then_summed
from consentier.models.attribute_encoding import AttributeValue
from consentier.models.item_index import ItemIndex
from consentier.models.recency import microseconds_of_days, recency_weights
from consentier.models.row_scorer import RowScorer
from consentier.serving.scoring_settings import NO_INTEREST, read_scoring
from consentier.serving.view import PermittedView

__all__ = ["BatchScorer", "Requests", "utf8"]

_SOURCES = (Source.SESSION, Source.ONLINE, Source.CRM)
"""In the order in which a scorer adds them up."""

_REQUESTS_AT_ONCE = 512


def utf8(item: str) -> bytes:
    """The bytes by which items are in order."""
    return item.encode("utf-8", "surrogatepass")


# ---- Requests ----------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True)
class Requests:
    """What many requests may read, as numbers.

    Attributes
    ----------
    item_ids
        Every item of any history, ascending.
    event_types
        Every type of event; the empty one where the shop does not say.
    requests, sources, items, types
        int64, shape (events,): number of each event's request, source (session, online, CRM), item and type;
        requests ascend.
    interest
        bool, shape (events,): whether the event shows an interest; others do not enter a history.
    distances
        int64, shape (events,): later events of the same request and source that show an interest.
    times
        int64, shape (events,): microseconds since the epoch.
    timed
        bool, shape (events,): whether the event has a time.
    attributes
        Of each request.
    """

    item_ids: tuple[str, ...]
    event_types: tuple[str, ...]
    requests: NDArray[np.int64]
    sources: NDArray[np.int64]
    items: NDArray[np.int64]
    types: NDArray[np.int64]
    interest: NDArray[np.bool_]
    distances: NDArray[np.int64]
    times: NDArray[np.int64]
    timed: NDArray[np.bool_]
    attributes: tuple[Mapping[str, AttributeValue], ...]

    @classmethod
    def from_views(cls, views: Sequence[PermittedView]) -> Requests:
        """Number the events of permitted views. O(events), some microseconds each."""
        item_ids: dict[str, int] = {}
        event_types: dict[str, int] = {}
        rows: list[tuple[int, int, int, int, bool, int, int, bool]] = []
        for number, view in enumerate(views):
            for source, events in enumerate((view.session, view.online_history, view.crm_history)):
                later = 0
                for event in reversed(events):
                    item = item_ids.setdefault(event.item_id, len(item_ids))
                    kind = event_types.setdefault(event.event_type or "", len(event_types))
                    interest = event.event_type not in NO_INTEREST
                    time = 0 if event.ts is None else microseconds(event.ts)
                    rows.append((number, source, item, kind, interest, later, time, event.ts is not None))
                    later += interest
        table = np.array(rows, dtype=np.int64).reshape(-1, 8)
        names = sorted(item_ids, key=utf8)
        place = np.empty(len(names), dtype=np.int64)
        place[[item_ids[name] for name in names]] = np.arange(len(names))
        return cls(
            tuple(names),
            tuple(event_types),
            table[:, 0],
            table[:, 1],
            place[table[:, 2]],
            table[:, 3],
            table[:, 4].astype(np.bool_),
            table[:, 5],
            table[:, 6],
            table[:, 7].astype(np.bool_),
            tuple(view.attributes for view in views),
        )

    def __len__(self) -> int:
        return len(self.attributes)


# ---- Answers -----------------------------------------------------------------------------------------------


class BatchScorer:
    """Answers many requests by a linear model as `serving.scorer.LinearScorer` answers each of them.

    Parameters
    ----------
    arrays
        The arrays of a bundle of a linear model.
    scoring
        The scoring settings of its manifest.

    Notes
    -----
    Lists are equal to the last bit of a score: the inputs of a request are the same float32 numbers, and
    their products, exact in float64, are added in the same order. There is no catalogue: every item of the
    model may be shown.
    """

    _returns: NDArray[np.float32] | None = None

    def __init__(self, arrays: Mapping[str, NDArray[Any]], scoring: Mapping[str, Any]) -> None:
        self.index = ItemIndex(arrays["item_ids"], arrays["item_offsets"], verify=False)
        self._numbers = {item: k for k, item in enumerate(self.index.ids(np.arange(len(self.index))))}
        self._settings, self._attributes = read_scoring(self._own_settings(dict(scoring)), len(self.index))
        self._read(arrays)
        self._prepared: tuple[Requests, sp.csr_matrix, sp.csr_matrix, sp.csr_matrix] | None = None

    def _own_settings(self, settings: dict[str, Any]) -> dict[str, Any]:
        """Take out of a manifest's settings those that only this kind of model has; return the others."""
        return settings

    def _read(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Take the model's arrays out of a bundle's."""
        nothing = np.zeros(len(self.index), np.bool_)
        self._rows = RowScorer(
            arrays["indptr"],
            arrays["indices"],
            arrays["data"],
            hidden=nothing,
            silent=nothing,
            hop_weight=self._settings.second_hop_weight,
            hop_items=self._settings.second_hop_items,
        )
        self._returns = arrays.get("repeats")

    def lists(
        self,
        requests: Requests,
        n: int,
        *,
        first: int = 0,
        last: int | None = None,
        threads: int | None = None,
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Answer the requests from `first` up to (not including) `last` with up to `n` items each.

        Parameters
        ----------
        requests
            What each may read.
        n
            Length of the lists.
        first, last
            Which requests; all by default.
        threads
            Threads to use; all cores by default. The result does not depend on it.

        Returns
        -------
        items : ndarray of int64
            Shape (requests, n): numbers of the model's items, best first, equal scores by ascending id, only
            those with a positive score; padded with -1.
        scores : ndarray of float64
            Same shape; 0 for padding.

        Notes
        -----
        O(entries of the weights of all histories).
        """
        last = len(requests) if last is None else last
        inputs, hidden, added = self._prepare(requests)
        chunks = [(k, min(k + _REQUESTS_AT_ONCE, last)) for k in range(first, last, _REQUESTS_AT_ONCE)]
        parts = Parallel(n_jobs=-1 if threads is None else threads, prefer="threads")(
            delayed(self._rows.lists)(
                (*_plain(inputs), inputs.data.astype(np.float32)),
                (*_plain(added), added.data),
                _plain(hidden),
                n,
                *chunk,
            )
            for chunk in chunks
        )
        if not parts:
            return np.empty((0, n), np.int64), np.empty((0, n))
        return np.concatenate([items for items, _ in parts]), np.concatenate([each for _, each in parts])

    def _prepare(self, requests: Requests) -> tuple[sp.csr_matrix, sp.csr_matrix, sp.csr_matrix]:
        """Inputs, hidden items and what is added to scores, kept for another call with the same requests."""
        if self._prepared is None or self._prepared[0] is not requests:
            numbers = self.numbers(requests.item_ids)
            self._prepared = (
                requests,
                self._inputs(requests, numbers),
                self._hidden(requests, numbers),
                self._added(requests, numbers),
            )
        return self._prepared[1:]

    def numbers(self, item_ids: Sequence[str]) -> NDArray[np.int64]:
        """The model's number of each item; -1 where it does not know one."""
        return np.array([self._numbers.get(item, -1) for item in item_ids], dtype=np.int64)

    def _inputs(self, requests: Requests, numbers: NDArray[np.int64]) -> sp.csr_matrix:
        """The weighted history of each request, requests × inputs, as float32 numbers in float64."""
        read = self._events_read(requests)
        known = read & (numbers[requests.items] >= 0)
        weights = self._event_weights(requests, numbers, known) * self._recency(requests, read)
        kept = known & (weights > 0)
        width = len(self.index)
        entries, values = largest_then_summed(
            requests.requests[kept],
            numbers[requests.items[kept]],
            requests.sources[kept],
            weights[kept],
            width,
        )
        rows, columns = np.divmod(entries, max(width, 1))
        if self._attributes.columns:
            extra = self._attribute_entries(requests, np.bincount(rows, minlength=len(requests)))
            rows, columns, values = (
                np.concatenate(pair) for pair in zip((rows, columns, values), extra, strict=True)
            )
        shape = (len(requests), width + self._attributes.input_count)
        matrix = sp.csr_matrix((values.astype(np.float32).astype(np.float64), (rows, columns)), shape=shape)
        matrix.sort_indices()
        return matrix

    def _events_read(self, requests: Requests) -> NDArray[np.bool_]:
        """The latest events of each source that show an interest."""
        return requests.interest & (requests.distances < self._settings.max_history)

    def _event_weights(
        self, requests: Requests, numbers: NDArray[np.int64], known: NDArray[np.bool_]
    ) -> NDArray[np.float64]:
        settings = self._settings
        by_type = np.array([settings.event_weights.get(name, 1.0) for name in requests.event_types])
        by_source = np.array([settings.source_weights.get(source, 0.0) for source in _SOURCES])
        in_session, places, _ = self._session_places(requests, numbers, known)
        # One call per place, as in serving: a vector's exponentials may differ in the last bit.
        farthest = int(places.max(initial=0)) + 1
        decay = np.array([float(np.exp(-d / settings.session_decay)) for d in range(farthest)])
        weights = by_type[requests.types] if len(by_type) else np.empty(0)
        weights[in_session] *= decay[places]
        found: NDArray[np.float64] = by_source[requests.sources] * weights
        return found

    def _session_places(
        self, requests: Requests, numbers: NDArray[np.int64], known: NDArray[np.bool_]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Which events are known ones of a session, latest first, how many distinct items came after each
        one's item, and the number of the item.
        """
        events = np.flatnonzero(known & (requests.sources == 0))
        events = events[np.lexsort((requests.distances[events], requests.requests[events]))]
        items = numbers[requests.items[events]]
        owners = requests.requests[events]
        _, first, inverse = np.unique(
            owners * len(self.index) + items, return_index=True, return_inverse=True
        )
        rank = np.empty(first.size, dtype=np.int64)
        rank[np.argsort(first)] = np.arange(first.size)
        ranks = rank[inverse]
        lowest = np.full(len(requests), np.iinfo(np.int64).max)
        np.minimum.at(lowest, owners, ranks)
        return events, ranks - lowest[owners], items

    def _added(self, requests: Requests, numbers: NDArray[np.int64]) -> sp.csr_matrix:
        """What repeats add to the scores of items of each session, requests × items."""
        shape = (len(requests), len(self.index))
        if self._returns is None or not self._settings.repeat_weight:
            return sp.csr_matrix(shape)
        known = self._events_read(requests) & (numbers[requests.items] >= 0)
        events, places, items = self._session_places(requests, numbers, known)
        entries, first = np.unique(requests.requests[events] * len(self.index) + items, return_index=True)
        owners, items = np.divmod(entries, len(self.index))
        places, longest = places[first], len(self._returns)
        seen = np.bincount(owners, minlength=len(requests))
        within = places < longest
        chances = self._returns[np.minimum(seen[owners], longest) - 1, np.minimum(places, longest - 1)]
        added = self._settings.repeat_weight * chances.astype(np.float64)
        return sp.csr_matrix((added[within], (owners[within], items[within])), shape=shape)

    def _recency(self, requests: Requests, read: NDArray[np.bool_]) -> NDArray[np.float64]:
        days = self._settings.recency_half_life
        factors = np.ones(len(requests.requests))
        if days is None:
            return factors
        timed = read & requests.timed
        newest = np.full(len(requests), np.iinfo(np.int64).min)
        np.maximum.at(newest, requests.requests[timed], requests.times[timed])
        ages = newest[requests.requests[timed]] - requests.times[timed]
        factors[timed] = recency_weights(ages, microseconds_of_days(days))
        return factors

    def _attribute_entries(
        self, requests: Requests, known: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
        rows, columns, values = [], [], []
        for number, attributes in enumerate(requests.attributes):
            inputs = self._attributes.inputs(attributes)
            if inputs:
                fade = 1 + int(known[number]) / self._settings.attribute_fade
                share = self._settings.attribute_weight / fade / len(inputs)
                rows += [number] * len(inputs)
                columns += inputs
                values += [share] * len(inputs)
        return np.array(rows, np.int64), np.array(columns, np.int64), np.array(values, np.float64)

    def _hidden(self, requests: Requests, numbers: NDArray[np.int64]) -> sp.csr_matrix:
        """What each request is not to be recommended again, requests × items."""
        sources = [number for number, source in enumerate(_SOURCES) if source in self._settings.hide]
        barred = np.isin(requests.sources, sources) & (numbers[requests.items] >= 0)
        rows, columns = requests.requests[barred], numbers[requests.items[barred]]
        ones = np.ones(rows.size, np.bool_)
        return sp.csr_matrix((ones, (rows, columns)), shape=(len(requests), len(self.index)))


def _plain(matrix: sp.csr_matrix) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Starts and columns in one type, so that the loop is compiled once."""
    return matrix.indptr.astype(np.int64), matrix.indices.astype(np.int64)
