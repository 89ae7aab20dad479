"""The data contract: the tables that a shop supplies, their columns, types and rules.

========================  ==================================================================================
table                     one row is
========================  ==================================================================================
``events``                one thing that a visitor did on the online side
``orders``                one line of one order of a customer
``product_usage``         one use of a bought product by a customer (optional)
``customers``             one customer, with any attributes (optional)
``items``                 one item, with any attributes (optional)
``identities``            one link of a visitor (cookie, device) with a customer (optional)
``consents``              one decision of a visitor or customer on one permission
========================  ==================================================================================

Ids are texts outside the engine, whatever they look like. Times are instants in UTC, counted in microseconds
since the Unix epoch.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Mapping
from types import MappingProxyType

import pyarrow as pa

from consentier.consent.permissions import CONTACT_CHANNELS
from consentier.consent.records import PERMISSIONS, STATES

__all__ = [
    "EVENT_TYPES",
    "ORDER_STATUSES",
    "PLAIN_PERMISSIONS",
    "RECORD_CONTENT",
    "SCHEMAS",
    "Column",
    "ColumnType",
    "TableSchema",
    "arrow_schema",
]

EVENT_TYPES = frozenset({"view", "click", "cart", "remove", "favourite", "unfavourite", "order"})
"""What a visitor can do; ``order`` is the order confirmation seen on the online side."""

ORDER_STATUSES = frozenset({"ordered", "cancelled", "returned"})


class ColumnType(enum.StrEnum):
    """The types of the contract."""

    TEXT = "text"
    TIME = "time"
    NUMBER = "number"
    WHOLE = "whole"
    FLAG = "flag"

    @property
    def arrow(self) -> pa.DataType:
        """The Arrow type in which validated columns are kept."""
        return _ARROW_TYPES[self]


_ARROW_TYPES = {
    ColumnType.TEXT: pa.string(),
    ColumnType.TIME: pa.timestamp("us", tz="UTC"),
    ColumnType.NUMBER: pa.float64(),
    ColumnType.WHOLE: pa.int64(),
    ColumnType.FLAG: pa.bool_(),
}


@dataclasses.dataclass(frozen=True, slots=True)
class Column:
    """One column of the contract.

    Attributes
    ----------
    name, type, doc
        What it is called, its type, and one line of meaning.
    required
        Must be in the table; where False, an absent column reads as all null.
    nullable
        May hold nulls. An empty text is a null in every column of the contract.
    allowed
        The only values that it may hold, or None for any.
    minimum
        The least number that it may hold, or None. Numbers are always finite, times never before 1970.
    personal
        Its values tell people apart, so no message may quote one.
    """

    name: str
    type: ColumnType
    doc: str
    required: bool = True
    nullable: bool = False
    allowed: frozenset[str] | None = None
    minimum: float | None = None
    personal: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class TableSchema:
    """One table of the contract.

    Attributes
    ----------
    name, columns
        What it is called, and its columns in order.
    key
        Columns that together may not repeat; empty where rows may repeat. ``consents`` has none: the ledger
        itself judges records that come again.
    optional
        The shop may leave the table out, or leave it empty.
    open_columns
        Columns beyond those named are kept as they are (attributes; an empty text stays one). In other tables
        they are not read.
    """

    name: str
    columns: tuple[Column, ...]
    key: tuple[str, ...] = ()
    optional: bool = False
    open_columns: bool = False

    @property
    def column_names(self) -> tuple[str, ...]:
        """Names of the columns in the order of the contract."""
        return tuple(column.name for column in self.columns)


def _text(name: str, doc: str, *, allowed: frozenset[str] | None = None, personal: bool = False) -> Column:
    return Column(name, ColumnType.TEXT, doc, allowed=allowed, personal=personal)


def _person(name: str, doc: str) -> Column:
    return _text(name, doc, personal=True)


def _optional(name: str, type_: ColumnType, doc: str, *, minimum: float | None = None) -> Column:
    return Column(name, type_, doc, required=False, nullable=True, minimum=minimum)


_ITEM = _text("item_id", "the item")
_CUSTOMER = _person("customer_id", "the account of the customer")
_VISITOR = _person("visitor_id", "the cookie or device")
_TS = Column("ts", ColumnType.TIME, "when it happened")

_EVENTS = TableSchema(
    "events",
    (
        _VISITOR,
        _person("session_id", "the visit in which it happened"),
        _TS,
        _ITEM,
        _text("event_type", "what was done", allowed=EVENT_TYPES),
    ),
)

_ORDERS = TableSchema(
    "orders",
    (
        _CUSTOMER,
        _person("order_id", "the order"),
        _person("line_id", "the line within the order"),
        _TS,
        _ITEM,
        Column("quantity", ColumnType.WHOLE, "pieces", minimum=1),
        _optional("price", ColumnType.NUMBER, "price of one piece, in the shop's currency", minimum=0),
        _text("status", "what became of the line", allowed=ORDER_STATUSES),
    ),
    key=("customer_id", "order_id", "line_id"),
)

_PRODUCT_USAGE = TableSchema(
    "product_usage",
    (
        _CUSTOMER,
        _TS,
        _ITEM,
        _text("usage_type", "how the product was used, in the shop's own words"),
        Column("quantity", ColumnType.NUMBER, "how much, in the unit of the usage type", minimum=0),
    ),
    optional=True,
)

_CUSTOMERS = TableSchema("customers", (_CUSTOMER,), key=("customer_id",), optional=True, open_columns=True)

_ITEMS = TableSchema(
    "items",
    (
        _ITEM,
        _optional("category", ColumnType.TEXT, "category of the item"),
        _optional("price", ColumnType.NUMBER, "price of one piece, in the shop's currency", minimum=0),
        _optional("available", ColumnType.FLAG, "can be sold now; null where unknown"),
        _optional(
            "sensitive", ColumnType.FLAG, "belongs to a special category of data (health, …); null: no"
        ),
    ),
    key=("item_id",),
    optional=True,
    open_columns=True,
)

_IDENTITIES = TableSchema(
    "identities",
    (
        _VISITOR,
        _CUSTOMER,
        _optional(
            "linked_at", ColumnType.TIME, "when the two were seen to be one; null: they are not linked"
        ),
        Column("evidence", ColumnType.TEXT, "what proves it", required=False, nullable=True, personal=True),
    ),
    key=("visitor_id", "customer_id", "linked_at"),
    optional=True,
)

_CONSENTS = TableSchema(
    "consents",
    (
        _person("record_id", "idempotency key of the record"),
        _person("subject_id", "the visitor or customer who decided"),
        _text("subject_kind", "which of the two", allowed=frozenset({"visitor", "customer"})),
        _text("permission", "what was decided on", allowed=PERMISSIONS),
        _text("state", "the decision", allowed=STATES),
        Column("valid_from", ColumnType.TIME, "from when on it holds"),
        # Required, though nullable: a misnamed end would turn every limited consent into an endless one.
        Column("valid_to", ColumnType.TIME, "until when it holds; null: no end", nullable=True),
        Column("recorded_at", ColumnType.TIME, "when the shop learnt of it"),
        _optional("basis", ColumnType.TEXT, "legal basis"),
        _optional("jurisdiction", ColumnType.TEXT, "whose law applies"),
        _optional("double_opt_in_at", ColumnType.TIME, "when it was confirmed"),
        _optional("collected_by", ColumnType.TEXT, "the system that asked"),
        _optional("policy_version", ColumnType.TEXT, "the notice that was shown"),
        Column("evidence", ColumnType.TEXT, "what proves it", required=False, nullable=True, personal=True),
    ),
)

SCHEMAS: Mapping[str, TableSchema] = MappingProxyType(
    {
        schema.name: schema
        for schema in (_EVENTS, _ORDERS, _PRODUCT_USAGE, _CUSTOMERS, _ITEMS, _IDENTITIES, _CONSENTS)
    }
)
"""All tables of the contract by name."""

RECORD_CONTENT = tuple(name for name in SCHEMAS["consents"].column_names if name != "recorded_at")
"""All that a consent record states, without when the ledger learnt of it."""

PLAIN_PERMISSIONS = ("online", "crm", *sorted(f"contact:{channel}" for channel in CONTACT_CHANNELS))
"""Permissions of which a grant concerns nothing but itself: without it, nothing more is permitted."""


def arrow_schema(name: str) -> pa.Schema:
    """The Arrow schema of a validated table, without the attributes of an open table.

    Parameters
    ----------
    name
        A table of the contract.

    Raises
    ------
    ValueError
        If the contract has no such table.
    """
    if name not in SCHEMAS:
        raise ValueError(f"the data contract has no table {name!r}; it has {', '.join(SCHEMAS)}")
    return pa.schema([pa.field(column.name, column.type.arrow) for column in SCHEMAS[name].columns])
