"""The tables of a ledger in PostgreSQL, and how those of earlier releases become those of this one.

Alembic runs without a configuration file, on a connection that is given to it, and only where there is
something to do: opening a ledger that is up to date costs one query and does not import it.
"""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa

from consentier.consent.migrations.tables import VERSION_TABLE

__all__ = ["REVISIONS", "revision_of", "upgrade"]

REVISIONS = ("0001",)
"""All revisions that this release knows, the newest last."""


def revision_of(connection: sa.Connection) -> str | None:
    """The revision of the tables that a connection finds; None where there are none."""
    if connection.scalar(sa.select(sa.func.to_regclass(VERSION_TABLE))) is None:
        return None
    versions = sa.table(VERSION_TABLE, sa.column("version_num", sa.Text))
    revision: str | None = connection.scalar(sa.select(versions.c.version_num))
    return revision


def upgrade(connection: sa.Connection) -> None:
    """Make the tables, or bring those of an earlier release up to date, in the connection's transaction."""
    from alembic import command
    from alembic.config import Config

    config = Config()
    # A percent sign would begin an interpolation.
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
