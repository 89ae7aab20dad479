"""The rows of a shop's tables that histories are made of, before an instant: what batches read of a shop."""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from consentier.consent import microseconds

if TYPE_CHECKING:
    import pyarrow as pa

    from consentier.features.tables import ShopTables

__all__ = [
    "HISTORY_TABLES",
    "ShopRows",
    "hash_values",
    "history_rows",
    "plain_attributes",
    "sensitive_items",
    "shop_rows",
]

HISTORY_TABLES = ("events", "orders", "product_usage")
"""The tables of which histories are made, the online one first."""

_NO_INTEREST = ("remove", "unfavourite")
"""Event types that end an interest; all others show one."""


@dataclasses.dataclass(frozen=True, slots=True)
class ShopRows:
    """What a shop holds about its customers.

    Attributes
    ----------
    online, crm
        Columns person, ts, item_id, event_type and quantity (null online), in no particular order.
    attributes
        Column customer_id and the texts, numbers and truth values of the customers table.
    """

    online: pa.Table
    crm: pa.Table
    attributes: pa.Table


def shop_rows(shop: ShopTables, at: dt.datetime) -> ShopRows:
    """Take the rows before an instant.

    Online: what visitors did, removals left out. CRM: order lines that stand (``order``) and product usage
    (``usage``). No sensitive item.

    Raises
    ------
    TypeError, ValueError
        If `at` is no datetime, or has no time zone.
    """
    import pyarrow as pa

    before, banned = microseconds(at), sensitive_items(shop.items)
    online, *crm = (history_rows(name, getattr(shop, name), before, banned) for name in HISTORY_TABLES)
    return ShopRows(online, pa.concat_tables(crm), plain_attributes(shop.customers))


def history_rows(name: str, table: pa.Table, before: int, banned: Collection[str]) -> pa.Table:
    """The rows of one table that histories are made of: columns as in `ShopRows`.

    Parameters
    ----------
    name
        One of `HISTORY_TABLES`.
    table
        Its rows, or some of them.
    before
        Microseconds since the epoch: rows from then on stay out.
    banned
        Items that enter no history.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    instant = pa.scalar(before, pa.int64()).cast(pa.timestamp("us", "UTC"))
    mask = pc.less(table["ts"], instant)
    mask = pc.and_(
        mask, pc.invert(pc.is_in(table["item_id"], value_set=pa.array(sorted(banned), pa.string())))
    )
    if name == "events":
        taken_back = pc.is_in(table["event_type"], value_set=pa.array(_NO_INTEREST))
        rows = table.filter(pc.and_(mask, pc.invert(taken_back)))
        return _history_table(rows["visitor_id"], rows, rows["event_type"], with_quantity=False)
    if name == "orders":
        rows = table.filter(pc.and_(mask, pc.equal(table["status"], "ordered")))
        kind = "order"
    else:
        rows = table.filter(mask)
        kind = "usage"
    return _history_table(rows["customer_id"], rows, pa.repeat(kind, len(rows)), with_quantity=True)


def sensitive_items(items: pa.Table) -> frozenset[str]:
    """The items that enter no history."""
    flags = items["sensitive"].to_pylist()
    return frozenset(
        item for item, flag in zip(items["item_id"].to_pylist(), flags, strict=True) if flag is True
    )


def hash_values(digest: Any, array: pa.Array | pa.ChunkedArray) -> None:
    """Feed the values of an array to a hash, however they are laid out."""
    import pyarrow as pa

    chunks = array.chunks if isinstance(array, pa.ChunkedArray) else [array]
    sink = pa.BufferOutputStream()
    whole = pa.concat_arrays(chunks) if chunks else pa.array([], array.type)
    with pa.ipc.new_stream(sink, pa.schema([("values", whole.type)])) as stream:
        stream.write_batch(pa.record_batch([whole], ["values"]))
    digest.update(sink.getvalue())


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


def plain_attributes(customers: pa.Table) -> pa.Table:
    """Column customer_id, and those that hold texts, numbers or truth values."""
    import pyarrow.types as pt

    plain = (pt.is_string, pt.is_large_string, pt.is_boolean, pt.is_integer, pt.is_floating)
    names = [
        field.name
        for field in customers.schema
        if field.name != "customer_id" and any(is_type(field.type) for is_type in plain)
    ]
    return customers.select(["customer_id", *names]).combine_chunks()
