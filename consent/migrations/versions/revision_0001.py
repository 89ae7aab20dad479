"""The tables of the first release with a ledger in PostgreSQL."""

from __future__ import annotations

from alembic import op

revision = "0001"
down_revision = None

_STATEMENTS = (
    """
    CREATE TABLE consentier_entries (
        position bigint PRIMARY KEY,
        kind text NOT NULL,
        salt bytea,
        commitment bytea NOT NULL,
        chain bytea NOT NULL
    )
    """,
    """
    CREATE TABLE consentier_records (
        position bigint PRIMARY KEY,
        record_id text NOT NULL,
        subject_id text NOT NULL,
        subject_kind text NOT NULL,
        permission text NOT NULL,
        state text NOT NULL,
        valid_from bigint NOT NULL,
        valid_to bigint,
        recorded_at bigint NOT NULL,
        basis text,
        jurisdiction text,
        double_opt_in_at bigint,
        collected_by text,
        policy_version text,
        evidence text
    )
    """,
    """
    CREATE TABLE consentier_links (
        position bigint PRIMARY KEY,
        visitor_id text NOT NULL,
        customer_id text NOT NULL,
        linked_at bigint,
        evidence text
    )
    """,
    """
    CREATE TABLE consentier_erasures (
        position bigint PRIMARY KEY,
        positions bigint[] NOT NULL,
        erased_at bigint NOT NULL
    )
    """,
    """
    CREATE TABLE consentier_erased_versions (
        position bigint PRIMARY KEY,
        record_id text NOT NULL,
        recorded_at bigint NOT NULL,
        "of" bigint NOT NULL
    )
    """,
    """
    CREATE TABLE consentier_erased_logins (
        position bigint PRIMARY KEY,
        visitor_id text NOT NULL,
        linked_at bigint NOT NULL,
        "of" bigint NOT NULL
    )
    """,
)

_FOUND_BY = (
    ("consentier_records", "record_id"),
    ("consentier_records", "subject_id"),
    ("consentier_links", "visitor_id"),
    ("consentier_links", "customer_id"),
    ("consentier_erased_versions", "record_id"),
    ("consentier_erased_logins", "visitor_id"),
)


def upgrade() -> None:
    """Make them."""
    for statement in _STATEMENTS:
        op.execute(statement)
    for table, column in _FOUND_BY:
        op.execute(f"CREATE INDEX {table}_by_{column} ON {table} USING hash ({column})")
