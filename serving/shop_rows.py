"""The rows of a shop's tables that histories are made of, before an instant: what batches read of a shop."""

from __future__ import annotations

import dataclasses
import datetime as dt
from typing import TYPE_CHECKING, Any

from consentier.consent import microseconds

if TYPE_CHECKING:
    import pyarrow as pa

    from consentier.features.tables import ShopTables

__all__ = ["ShopRows", "hash_values", "sensitive_items", "shop_rows"]

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
    import pyarrow.compute as pc

    before = pa.scalar(microseconds(at), pa.int64()).cast(pa.timestamp("us", "UTC"))
    banned = pa.array(sorted(sensitive_items(shop.items)), pa.string())

    def kept(table: pa.Table, condition: Any = None) -> pa.Table:
        mask = pc.and_(pc.less(table["ts"], before), pc.invert(pc.is_in(table["item_id"], value_set=banned)))
        return table.filter(mask if condition is None else pc.and_(mask, condition))

    taken_back = pc.is_in(shop.events["event_type"], value_set=pa.array(_NO_INTEREST))
    events = kept(shop.events, pc.invert(taken_back))
    orders = kept(shop.orders, pc.equal(shop.orders["status"], "ordered"))
    usage = kept(shop.product_usage)
    crm = pa.concat_tables(
        [
            _history_table(
                table["customer_id"],
                table,
                pa.repeat(kind, len(table)),
                with_quantity=True,
            )
            for table, kind in ((orders, "order"), (usage, "usage"))
        ]
    )
    online = _history_table(events["visitor_id"], events, events["event_type"], with_quantity=False)
    return ShopRows(online, crm, _attributes(shop.customers))


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


def _attributes(customers: pa.Table) -> pa.Table:
    import pyarrow.types as pt

    plain = (pt.is_string, pt.is_large_string, pt.is_boolean, pt.is_integer, pt.is_floating)
    names = [
        field.name
        for field in customers.schema
        if field.name != "customer_id" and any(is_type(field.type) for is_type in plain)
    ]
    return customers.select(["customer_id", *names]).combine_chunks()
