"""Small shops, told row by row."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from consentier.features.schemas import SCHEMAS, arrow_schema
from consentier.features.tables import ShopTables
from consentier.features.validation import ValidationReport

__all__ = ["Row", "consent", "day", "event", "link", "order", "shop", "usage"]

Row = dict[str, Any]


def day(number: float) -> dt.datetime:
    """An instant, in days from the beginning of the shop."""
    return dt.datetime(2026, 1, 1, tzinfo=dt.UTC) + dt.timedelta(days=number)


def shop(**tables: Sequence[Row] | pa.Table) -> ShopTables:
    """A shop with these tables; all others are empty. Attribute columns must come as an Arrow table."""
    built = {}
    for name in SCHEMAS:
        rows = tables.pop(name, [])
        built[name] = (
            rows
            if isinstance(rows, pa.Table)
            else pa.Table.from_pylist(list(rows), schema=arrow_schema(name))
        )
    if tables:
        raise ValueError(f"a shop has no table {', '.join(tables)}")
    return ShopTables(**built, report=ValidationReport())


def event(visitor: str, item: str, at: float, *, kind: str = "view", session: str = "s") -> Row:
    """Something that a visitor did."""
    return {
        "visitor_id": visitor, "session_id": session, "ts": day(at), "item_id": item, "event_type": kind,
    }  # fmt: skip


def order(customer: str, item: str, at: float, *, status: str = "ordered") -> Row:
    """One line of an order."""
    return {
        "customer_id": customer, "order_id": f"o{at}", "line_id": item, "ts": day(at),
        "item_id": item, "quantity": 1, "price": None, "status": status,
    }  # fmt: skip


def usage(customer: str, item: str, at: float) -> Row:
    """One use of a bought product."""
    return {
        "customer_id": customer, "ts": day(at), "item_id": item, "usage_type": "play", "quantity": 1.0,
    }  # fmt: skip


def consent(
    subject: str,
    permission: str,
    state: str = "granted",
    at: float = 0,
    *,
    until: float | None = None,
    learnt: float | None = None,
    record_id: str | None = None,
) -> Row:
    """A decision of a visitor (an id that begins with v) or of a customer."""
    return {
        "record_id": record_id or f"{subject} {permission} {state} {at}",
        "subject_id": subject,
        "subject_kind": "visitor" if subject.startswith("v") else "customer",
        "permission": permission,
        "state": state,
        "valid_from": day(at),
        "valid_to": None if until is None else day(until),
        "recorded_at": day(at if learnt is None else learnt),
        "evidence": "form",
    }


def link(visitor: str, customer: str, at: float | None = 1) -> Row:
    """A login."""
    linked_at = None if at is None else day(at)
    return {"visitor_id": visitor, "customer_id": customer, "linked_at": linked_at, "evidence": "login"}
