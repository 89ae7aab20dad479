"""Batch scoring: one file of recommendations for all whom a channel may reach.

Two questions are kept apart. Whether a person gets rows at all is decided here, by the contact permission of
the channel (CRM side) or the online permission (online side). What may be read about the person is decided by
the recommender's own gate, request by request, as in a shop's service: nothing is joined beforehand.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from consentier.consent import Channel, Ledger, Side, Source, Tier, microseconds
from consentier.models.attribute_encoding import AttributeValue
from consentier.progress import progress
from consentier.serving.batch_file import BatchFacts, written_batch
from consentier.serving.catalogue import Catalogue
from consentier.serving.reach import AskedOnce, Reach, reach
from consentier.serving.recommender import Recommender
from consentier.serving.request import Event, Request
from consentier.serving.view import Profiles

if TYPE_CHECKING:
    import pyarrow as pa

    from consentier.features.tables import ShopTables

__all__ = ["BatchSummary", "catalogue_of", "profiles_of", "score_customers"]

_NO_INTEREST = ("remove", "unfavourite")
"""Event types that end an interest; all others show one."""


@dataclasses.dataclass(frozen=True, slots=True)
class BatchSummary:
    """What a batch wrote, in counts.

    Attributes
    ----------
    rows
        Rows of the file: one per recommended item.
    customers
        Persons who have rows (visitors, on the online side).
    by_tier
        Of these, how many each tier answered.
    skipped
        How many have no rows, by reason.
    """

    rows: int
    customers: int
    by_tier: dict[str, int]
    skipped: dict[str, int]


def score_customers(
    shop: ShopTables,
    recommender: Recommender,
    ledger: Ledger,
    *,
    channel: Channel,
    at: dt.datetime,
    n: int,
    out: Path,
    show_progress: bool = True,
) -> BatchSummary:
    """Write recommendations for everyone whom a channel may reach, as one Parquet file.

    On the CRM side rows are keyed by ``customer_id``; customers without the channel's contact permission get
    none. On the online side they are keyed by ``visitor_id``, for visitors with an online permission; all
    others are answered at request time, from their session, and no file names them.

    Parameters
    ----------
    shop
        The shop's tables: whom there is to score, and their histories before `at`.
    recommender
        Bundles and policy. Its ledger and profiles are replaced by `ledger` and those of `shop`.
    ledger
        Who is asked about permissions, contact and links.
    channel
        Where the answers will go.
    at
        The instant whose permissions and histories count.
    n
        Items per person, at most.
    out
        The file. It is written beside its place and renamed: there is the old one, or the whole new one.
    show_progress
        Report progress on standard error.

    Returns
    -------
    BatchSummary

    Raises
    ------
    TypeError, ValueError
        If `channel`, `at` or `n` is not what it should be.
    OSError
        If the file cannot be written; an earlier one stays as it was.

    Notes
    -----
    The columns are those of `serving.batch_file`. Ordered by person and rank; the same inputs give the same
    file. Before it is sent, permissions may end: `serving.deliver` checks every row again. Costs one request
    per person, and one round of questions to the ledger; memory is that of `profiles_of` and one row group.
    """
    if not isinstance(channel, Channel):
        raise TypeError(f"channel must be a consentier.Channel, not {channel!r}")
    Request(channel=channel, at=at, n=n)  # refuses a wrong instant or number before anything is done
    asked = AskedOnce(ledger)
    engine = dataclasses.replace(recommender, ledger=asked, profiles=profiles_of(shop, at))
    facts = BatchFacts(channel, engine.policy.version, at.astimezone(dt.UTC))
    persons = _persons(shop, ledger, channel.side)
    by_tier: Counter[str] = Counter()
    skipped: Counter[str] = Counter()
    with (
        written_batch(out, facts) as write,
        progress(f"scoring for {channel}", len(persons), enabled=show_progress) as advance,
    ):
        for person in persons:
            asked.next_person()
            reached = reach(asked, engine.policy, person, channel, at)
            reason = reached.barrier
            if not reason:
                answer = engine.recommend(_request(reached, channel, at, n))
                if answer.items:
                    devices = len(reached.devices) if answer.tier is Tier.FUSED else None
                    write(person, answer, at, devices)
                    by_tier[str(answer.tier)] += 1
                else:
                    reason = answer.basis.reason
            if reason:
                skipped[reason] += 1
            advance()
        rows = write.rows
    return BatchSummary(rows, by_tier.total(), dict(sorted(by_tier.items())), dict(sorted(skipped.items())))


def catalogue_of(shop: ShopTables, attributes: Collection[str] | None = None) -> Catalogue | None:
    """What the shop's ``items`` table says may be shown; None where the shop has no such table.

    Parameters
    ----------
    shop
        The shop's tables.
    attributes
        Names of the attributes to keep; None: all.
    """
    items = shop.items
    if not items.num_rows:
        return None
    ids = items["item_id"].to_pylist()
    available = items["available"].to_pylist()
    others = [name for name in items.column_names if name not in ("item_id", "available", "sensitive")]
    kept = [name for name in others if attributes is None or name in attributes]
    rows = items.select(kept).to_pylist()
    known = Catalogue.of(dict(zip(ids, rows, strict=True))) if kept else Catalogue(frozenset())
    return Catalogue(
        frozenset(item for item, sold in zip(ids, available, strict=True) if sold is not False),
        _sensitive_items(items),
        known.attributes,
        frozenset(others) - frozenset(kept),
    )


def profiles_of(shop: ShopTables, at: dt.datetime) -> Profiles:
    """The histories that a shop holds at an instant, as stores that the recommender can ask.

    Online: what visitors did, removals left out. CRM: order lines that stand (``order``) and product usage
    (``usage``). Attributes are those of the customers table. Nothing at or after `at`, and no sensitive item.

    Parameters
    ----------
    shop
        The shop's tables.
    at
        Rows at or after it stay out.

    Raises
    ------
    TypeError, ValueError
        If `at` is no datetime, or has no time zone.

    Notes
    -----
    Sorts the rows once (n log n, in Arrow); a history is turned into events when it is asked for. Memory: one
    sorted copy of the columns needed.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    before = pa.scalar(microseconds(at), pa.int64()).cast(pa.timestamp("us", "UTC"))
    banned = pa.array(sorted(_sensitive_items(shop.items)), pa.string())

    def kept(table: pa.Table, condition: Any = None) -> pa.Table:
        mask = pc.and_(pc.less(table["ts"], before), pc.invert(pc.is_in(table["item_id"], value_set=banned)))
        return table.filter(mask if condition is None else pc.and_(mask, condition))

    taken_back = pc.is_in(shop.events["event_type"], value_set=pa.array(_NO_INTEREST))
    events = kept(shop.events, pc.invert(taken_back))
    orders = kept(shop.orders, pc.equal(shop.orders["status"], "ordered"))
    usage = kept(shop.product_usage)
    online = _history_table(events["visitor_id"], events, events["event_type"], with_quantity=False)
    crm = pa.concat_tables(
        [
            _history_table(
                table["customer_id"], table, pa.array([kind] * len(table), pa.string()), with_quantity=True
            )
            for table, kind in ((orders, "order"), (usage, "usage"))
        ]
    )
    return Profiles(online=_Histories(online), crm=_Histories(crm), attributes=_Attributes(shop.customers))


def _sensitive_items(items: pa.Table) -> frozenset[str]:
    flags = items["sensitive"].to_pylist()
    return frozenset(
        item for item, flag in zip(items["item_id"].to_pylist(), flags, strict=True) if flag is True
    )


def _history_table(person: Any, rows: pa.Table, event_type: Any, *, with_quantity: bool) -> pa.Table:
    import pyarrow as pa

    quantity = rows["quantity"].cast(pa.float64()) if with_quantity else pa.nulls(len(rows), pa.float64())
    return pa.table(
        {
            "person": person,
            "ts": rows["ts"],
            "item_id": rows["item_id"],
            "event_type": event_type,
            "quantity": quantity,
        }
    )


class _Histories(Mapping[str, Sequence[Event]]):
    """Histories by person, oldest first, turned into events when they are asked for."""

    answers_within = 0.0  # seconds: it lies in memory

    def __init__(self, rows: pa.Table) -> None:
        order = [(name, "ascending") for name in ("person", "ts", "item_id", "event_type", "quantity")]
        self._rows = rows.sort_by(order).combine_chunks().drop_columns(["person"])
        self._bounds = _bounds(rows["person"])

    def __getitem__(self, person: str) -> tuple[Event, ...]:
        start, stop = self._bounds[person]
        rows = self._rows.slice(start, stop - start).to_pylist()
        return tuple(Event(**row) for row in rows)

    def __iter__(self) -> Iterator[str]:
        return iter(self._bounds)

    def __len__(self) -> int:
        return len(self._bounds)


def _bounds(persons: Any) -> dict[str, tuple[int, int]]:
    """First row and end of each person's rows in a table that is sorted by person."""
    counted, lengths_of = persons.value_counts().flatten()
    names, lengths = counted.to_pylist(), lengths_of.to_numpy()
    order = sorted(range(len(names)), key=names.__getitem__)
    ends: NDArray[np.int64] = np.cumsum(lengths[order])
    starts = ends - lengths[order]
    return {
        names[position]: (start, end)
        for position, start, end in zip(order, starts.tolist(), ends.tolist(), strict=True)
    }


class _Attributes(Mapping[str, Mapping[str, AttributeValue]]):
    """Attributes by customer: the texts, numbers and truth values of the customers table."""

    answers_within = 0.0  # seconds: it lies in memory

    def __init__(self, customers: pa.Table) -> None:
        import pyarrow.types as pt

        plain = (pt.is_string, pt.is_large_string, pt.is_boolean, pt.is_integer, pt.is_floating)
        names = [
            field.name
            for field in customers.schema
            if field.name != "customer_id" and any(is_type(field.type) for is_type in plain)
        ]
        self._rows = customers.select(names).combine_chunks()
        ids = customers["customer_id"].to_pylist()
        self._position = {customer: position for position, customer in enumerate(ids)}

    def __getitem__(self, customer: str) -> Mapping[str, AttributeValue]:
        position = self._position[customer]
        row = self._rows.slice(position, 1).to_pydict()
        return {name: _plain(values[0]) for name, values in row.items()}

    def __iter__(self) -> Iterator[str]:
        return iter(self._position)

    def __len__(self) -> int:
        return len(self._position)


def _plain(value: Any) -> AttributeValue:
    """A number that is none says nothing about the customer: it is read as missing."""
    if isinstance(value, float) and not np.isfinite(value):
        return None
    plain: AttributeValue = value
    return plain


def _persons(shop: ShopTables, ledger: Ledger, side: Side) -> list[str]:
    """Everyone whom the tables or the ledger know, in the order of the file."""
    found: set[str] = set()
    if side is Side.CRM:
        found.update(ledger.subjects(Source.CRM))
        columns = [
            shop.orders["customer_id"],
            shop.product_usage["customer_id"],
            shop.customers["customer_id"],
        ]
    else:
        found.update(ledger.subjects(Source.ONLINE))
        columns = [shop.events["visitor_id"]]
    for column in columns:
        found.update(column.unique().to_pylist())
    return sorted(found)


def _request(person: Reach, channel: Channel, at: dt.datetime, n: int) -> Request:
    return Request(visitor_id=person.visitor_id, customer_id=person.customer_id, channel=channel, at=at, n=n)
