"""Schemas of a PostgreSQL database, one for each test that wants a place of its own."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator

import psycopg
import sqlalchemy as sa
from psycopg import sql

__all__ = ["new_schema", "with_options"]


@contextlib.contextmanager
def new_schema(database: str) -> Iterator[str]:
    """The URL of an empty schema, which is dropped in the end."""
    name = f"ledger_{uuid.uuid4().hex}"
    schema = sql.Identifier(name)
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE SCHEMA {}").format(schema))
    try:
        yield with_options(database, f"-c search_path={name}")
    finally:
        with psycopg.connect(database, autocommit=True) as connection:
            connection.execute(sql.SQL("DROP SCHEMA {} CASCADE").format(schema))


def with_options(url: str, options: str) -> str:
    """A URL with more options for the server."""
    parsed = sa.make_url(url)
    both = " ".join(filter(None, (str(parsed.query.get("options", "")), options)))
    rendered = parsed.update_query_dict({"options": both}).render_as_string(hide_password=False)
    return rendered.replace("+", "%20")  # libpq takes a plus for a plus
