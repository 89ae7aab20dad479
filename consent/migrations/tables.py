"""The tables of a ledger in PostgreSQL, as the newest revision leaves them.

``consentier_entries`` holds the chain, and five more tables the rows of its entries by kind, each under the
position of its entry. An erased entry has neither salt nor row. Nothing is stored twice: what look-ups read
is what the chain commits to.

Ids are found through hash indexes: they are only ever asked for as they are, and may be of any length.
"""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY, BIGINT, BYTEA, TEXT

__all__ = [
    "ENTRIES",
    "ERASED_LOGINS",
    "ERASED_VERSIONS",
    "ERASURES",
    "LINKS",
    "METADATA",
    "RECORDS",
    "ROWS",
    "VERSION_TABLE",
]

VERSION_TABLE = "consentier_schema"

METADATA = sa.MetaData(
    naming_convention={"pk": "%(table_name)s_pkey", "ix": "%(table_name)s_by_%(column_0_N_name)s"}
)


def _position() -> sa.Column[int]:
    return sa.Column("position", BIGINT, primary_key=True, autoincrement=False)


def _text(name: str, *, nullable: bool = False) -> sa.Column[str]:
    return sa.Column(name, TEXT, nullable=nullable)


def _integer(name: str, *, nullable: bool = False) -> sa.Column[int]:
    return sa.Column(name, BIGINT, nullable=nullable)


def _bytes(name: str, *, nullable: bool = False) -> sa.Column[bytes]:
    return sa.Column(name, BYTEA, nullable=nullable)


def _found_by(column: sa.Column[str]) -> sa.Index:
    return sa.Index(None, column, postgresql_using="hash")


ENTRIES = sa.Table(
    "consentier_entries",
    METADATA,
    _position(),
    _text("kind"),
    _bytes("salt", nullable=True),
    _bytes("commitment"),
    _bytes("chain"),
)

RECORDS = sa.Table(
    "consentier_records",
    METADATA,
    _position(),
    _text("record_id"),
    _text("subject_id"),
    _text("subject_kind"),
    _text("permission"),
    _text("state"),
    _integer("valid_from"),
    _integer("valid_to", nullable=True),
    _integer("recorded_at"),
    _text("basis", nullable=True),
    _text("jurisdiction", nullable=True),
    _integer("double_opt_in_at", nullable=True),
    _text("collected_by", nullable=True),
    _text("policy_version", nullable=True),
    _text("evidence", nullable=True),
)
_found_by(RECORDS.c.record_id)
_found_by(RECORDS.c.subject_id)

LINKS = sa.Table(
    "consentier_links",
    METADATA,
    _position(),
    _text("visitor_id"),
    _text("customer_id"),
    _integer("linked_at", nullable=True),
    _text("evidence", nullable=True),
)
_found_by(LINKS.c.visitor_id)
_found_by(LINKS.c.customer_id)

ERASURES = sa.Table(
    "consentier_erasures",
    METADATA,
    _position(),
    sa.Column("positions", ARRAY(BIGINT), nullable=False),
    _integer("erased_at"),
)

ERASED_VERSIONS = sa.Table(
    "consentier_erased_versions",
    METADATA,
    _position(),
    _text("record_id"),
    _integer("recorded_at"),
    _integer("of"),
)
_found_by(ERASED_VERSIONS.c.record_id)

ERASED_LOGINS = sa.Table(
    "consentier_erased_logins",
    METADATA,
    _position(),
    _text("visitor_id"),
    _integer("linked_at"),
    _integer("of"),
)
_found_by(ERASED_LOGINS.c.visitor_id)

ROWS = {
    "ConsentRecord": RECORDS,
    "Link": LINKS,
    "Erasure": ERASURES,
    "ErasedVersion": ERASED_VERSIONS,
    "ErasedLogin": ERASED_LOGINS,
}
"""By kind of entry, the table of its rows: their columns are `position` and those of `ENTRY_COLUMNS`."""
