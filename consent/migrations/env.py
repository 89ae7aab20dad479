"""Run by Alembic: the revisions, on the connection and within the transaction that `upgrade` was given."""

from __future__ import annotations

from alembic import context

from consentier.consent.migrations.tables import METADATA, VERSION_TABLE

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=METADATA,
    version_table=VERSION_TABLE,
)
context.run_migrations()
