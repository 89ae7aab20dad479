"""What a batch may read about many persons, as numbers: the encoded form of permitted views.

`Histories` holds what a shop has; `views_of` cuts out of it what one tier may read about some persons, as
`serving.view.view_of` does it for one request. Scorers get the `BatchViews`, in which there is nothing else.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from consentier.consent import Source
from consentier.errors import DataError
from consentier.models.attribute_encoding import AttributeEncoder, AttributeValue
from consentier.serving.bulk_reach import BulkReach
from consentier.serving.request import Event
from consentier.serving.shop_rows import ShopRows, hash_values
from consentier.serving.view import PermittedView

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["SOURCES", "BatchViews", "Histories", "plain_value", "views_of"]

SOURCES = (Source.ONLINE, Source.CRM)
"""In the order in which a scorer adds them up. A batch has no running session."""

_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


@dataclasses.dataclass(frozen=True, slots=True)
class _Events:
    """The events of one source: those of a subject stand together, oldest first.

    Attributes
    ----------
    subjects
        Arrow strings: whose they are.
    starts
        int64, shape (subjects + 1,): where each one's begin.
    items, kinds, times
        int32, int8 and int64, shape (events,): codes of item and type, microseconds since the Unix epoch.
    """

    subjects: pa.Array
    starts: NDArray[np.int64]
    items: NDArray[np.int32]
    kinds: NDArray[np.int8]
    times: NDArray[np.int64]

    def spans(self, subjects: pa.Array) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """First event and number of events of some subjects (null, or unknown: none)."""
        import pyarrow.compute as pc

        place = pc.fill_null(pc.index_in(subjects, value_set=self.subjects, skip_nulls=True), -1).to_numpy()
        first = np.append(self.starts[:-1], 0)[place]
        return first, np.append(np.diff(self.starts), 0)[place]

    def spans_since(
        self, subjects: pa.Array, since: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The same of the events from an instant on, another for each subject. Bisects all at once."""
        first, count = self.spans(subjects)
        last, stop = first.copy(), first + count
        left = np.flatnonzero(count)
        while left.size:
            middle = (last[left] + stop[left]) // 2
            older = self.times[middle] < since[left]
            last[left[older]] = middle[older] + 1
            stop[left[~older]] = middle[~older]
            left = left[last[left] < stop[left]]
        return last, first + count - last


@dataclasses.dataclass(frozen=True, slots=True)
class Histories:
    """What a shop holds about its customers before an instant.

    Attributes
    ----------
    item_ids, kinds
        Arrow strings, ascending: what codes of items and types of events stand for.
    attributes
        The customers table: customer_id, then attributes.
    """

    item_ids: pa.Array
    kinds: pa.Array
    attributes: pa.Table
    _events: dict[Source, _Events]

    @classmethod
    def of(cls, rows: ShopRows) -> Histories:
        """Number a shop's rows.

        Notes
        -----
        n log n in the rows. Memory afterwards: 13 bytes an event, and the ids of subjects and items.

        Raises
        ------
        DataError
            If there are more than 127 types of events.
        """
        tables = [_encoded(table) for table in (rows.online, rows.crm)]
        item_ids, kinds = (
            _distinct([table[name].dictionary for table in tables]) for name in ("item_id", "event_type")
        )
        if len(kinds) > np.iinfo(np.int8).max:
            raise DataError(
                f"the shop's tables hold {len(kinds)} types of events; a batch tells at most 127 apart: map "
                "those that mean the same to one (is event_type an id?)"
            )
        events = {
            source: _numbered(table, item_ids, kinds) for source, table in zip(SOURCES, tables, strict=True)
        }
        return cls(item_ids, kinds, rows.attributes, events)

    def digest_into(self, digest: Any) -> None:
        """Feed all that is held here to a hash."""
        for events in self._events.values():
            for array in (events.starts, events.items, events.kinds, events.times):
                digest.update(np.ascontiguousarray(array))
            hash_values(digest, events.subjects)
        for array in (self.item_ids, self.kinds):
            hash_values(digest, array)
        for name in self.attributes.column_names:
            digest.update(name.encode())
            hash_values(digest, self.attributes[name])


def _encoded(table: pa.Table) -> dict[str, Any]:
    """The columns of a table as arrays, those of texts with each text once."""
    import pyarrow as pa

    columns = {"ts": table["ts"].cast(pa.int64()).to_numpy()}
    for name in ("person", "item_id", "event_type"):
        columns[name] = table[name].combine_chunks().dictionary_encode()
    return columns


def _distinct(texts: Sequence[pa.Array]) -> pa.Array:
    import pyarrow as pa
    import pyarrow.compute as pc

    found = pc.unique(pa.concat_arrays(texts))
    return found.take(pc.sort_indices(found))


def _numbered(table: Mapping[str, Any], item_ids: pa.Array, kinds: pa.Array) -> _Events:
    import pyarrow.compute as pc

    persons, times = table["person"], table["ts"]
    owners = persons.indices.to_numpy()
    items, codes = (
        pc.index_in(table[name].dictionary, value_set=names).to_numpy()[table[name].indices.to_numpy()]
        for name, names in (("item_id", item_ids), ("event_type", kinds))
    )
    order = np.lexsort((items.astype(np.int64) * len(kinds) + codes, times, owners))
    starts = np.zeros(len(persons.dictionary) + 1, dtype=np.int64)
    np.cumsum(np.bincount(owners, minlength=len(persons.dictionary)), out=starts[1:])
    return _Events(
        persons.dictionary,
        starts,
        items[order].astype(np.int32),
        codes[order].astype(np.int8),
        times[order].astype(np.int64),
    )


@dataclasses.dataclass(frozen=True, slots=True)
class BatchViews:
    """All that one tier may know about some persons.

    Attributes
    ----------
    sources
        What may be read.
    item_ids, kinds
        What the codes stand for.
    starts
        int64, shape (2, persons + 1): where the events of each person begin, by source as in `SOURCES`.
    items, kind_codes, times
        Of all events of these persons that may be read.
    attributes
        Their rows of the customers table, without the ids, null where there is none; or no columns at all.
    """

    sources: frozenset[Source]
    item_ids: pa.Array
    kinds: pa.Array
    starts: NDArray[np.int64]
    items: NDArray[np.int32]
    kind_codes: NDArray[np.int8]
    times: NDArray[np.int64]
    attributes: pa.Table

    def __len__(self) -> int:
        return int(self.starts.shape[1]) - 1

    def view(self, person: int) -> PermittedView:
        """The view of one of them, as a scorer of single requests takes it."""
        online, crm = (self._events(source, person) for source in range(len(SOURCES)))
        row = self.attributes.slice(person, 1).to_pydict() if self.attributes.num_columns else {}
        attributes = {name: plain_value(values[0]) for name, values in row.items()}
        return PermittedView(self.sources, (), online, crm, attributes)

    def _events(self, source: int, person: int) -> tuple[Event, ...]:
        own = slice(self.starts[source, person], self.starts[source, person + 1])
        columns = (self.items[own].tolist(), self.kind_codes[own].tolist(), self.times[own].tolist())
        return tuple(
            Event(
                self.item_ids[item].as_py(),
                _EPOCH + dt.timedelta(microseconds=time),
                self.kinds[kind].as_py(),
            )
            for item, kind, time in zip(*columns, strict=True)
        )

    def attribute_inputs(self, encoder: AttributeEncoder) -> NDArray[np.int64]:
        """What `AttributeEncoder.inputs` gives for each person, -1 in place of what it leaves out.

        int64, shape (persons, columns of the encoder). Costs one look-up for each distinct value.
        """
        found = np.full((len(self), len(encoder.columns)), -1, dtype=np.int64)
        for place, column in enumerate(encoder.columns):
            if column.name not in self.attributes.column_names:
                continue
            values = self.attributes[column.name].combine_chunks().dictionary_encode()
            inputs = [column.input_of(plain_value(value)) for value in values.dictionary.to_pylist()]
            numbers = np.array([*(-1 if each is None else each for each in inputs), -1], dtype=np.int64)
            found[:, place] = numbers[values.indices.fill_null(len(inputs)).to_numpy()]
        return found


def views_of(
    histories: Histories, reach: BulkReach, chosen: NDArray[np.int64], sources: frozenset[Source], fused: bool
) -> BatchViews:
    """Cut out what one tier may read about some persons, as `serving.view.view_of` does it for one.

    Parameters
    ----------
    histories
        What the shop holds.
    reach
        As whom each person is known.
    chosen
        int64: positions of the persons in `reach`.
    sources
        What may be read about them.
    fused
        Whether the online data of all linked devices are read together. Otherwise a visitor's own are; a
        customer has none.
    """
    import pyarrow as pa

    persons = pa.array(chosen)
    each = np.ones(len(chosen), dtype=np.int64)
    parts = []
    for source in SOURCES:
        events = histories._events[source]
        if source not in sources:
            parts.append(_gathered(events, 0 * each, each[:0], each[:0]))
        elif source is Source.CRM:
            customers = reach.customers.take(persons)
            parts.append(_gathered(events, each, *events.spans_since(customers, reach.crm_since[chosen])))
        elif fused:
            parts.append(_of_devices(events, reach, chosen))
        else:
            visitors = reach.visitors.take(persons)
            parts.append(_gathered(events, each, *events.spans_since(visitors, reach.online_since[chosen])))
    starts = np.array([start for start, *_ in parts])
    starts[1] += starts[0, -1]
    items, kinds, times = (np.concatenate([part[place] for part in parts]) for place in (1, 2, 3))
    attributes = pa.table({})
    if Source.CRM in sources:
        attributes = _rows_of(histories.attributes, reach.customers.take(persons))
    return BatchViews(sources, histories.item_ids, histories.kinds, starts, items, kinds, times, attributes)


_Gathered = tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.int8], NDArray[np.int64]]


def _gathered(
    events: _Events, per_person: NDArray[np.int64], first: NDArray[np.int64], count: NDArray[np.int64]
) -> _Gathered:
    """Copy spans of events one after the other; so many spans belong to each person."""
    ends = np.cumsum(count)
    chosen = np.arange(ends[-1] if ends.size else 0) + np.repeat(first - ends + count, count)
    bounds = np.concatenate([[0], np.cumsum(per_person)])
    starts = np.concatenate([[0], ends])[bounds].astype(np.int64)
    return starts, events.items[chosen], events.kinds[chosen], events.times[chosen]


def _of_devices(events: _Events, reach: BulkReach, chosen: NDArray[np.int64]) -> _Gathered:
    """The events of all devices of each person, in order of time; at one instant, device by device."""
    import pyarrow as pa

    per_person = np.diff(reach.device_starts)[chosen]
    first = reach.device_starts[chosen]
    ends = np.cumsum(per_person)
    places = np.arange(ends[-1] if ends.size else 0) + np.repeat(first - ends + per_person, per_person)
    spans = events.spans_since(reach.devices.take(pa.array(places)), reach.devices_since[places])
    starts, items, kinds, times = _gathered(events, per_person, *spans)
    if (per_person > 1).any():
        owners = np.repeat(np.arange(len(chosen)), np.diff(starts))
        order = np.lexsort((times, owners))  # it is stable
        items, kinds, times = items[order], kinds[order], times[order]
    return starts, items, kinds, times


def _rows_of(customers: pa.Table, ids: pa.Array) -> pa.Table:
    """The attributes of some customers; null where one (or what is known of one) is missing."""
    import pyarrow.compute as pc

    place = pc.index_in(ids, value_set=customers["customer_id"].combine_chunks(), skip_nulls=True)
    return customers.drop_columns(["customer_id"]).take(place)


def plain_value(value: Any) -> AttributeValue:
    """A number that is none says nothing about the customer: it is read as missing."""
    if isinstance(value, float) and not np.isfinite(value):
        return None
    plain: AttributeValue = value
    return plain
