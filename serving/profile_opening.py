"""Opening a store of profiles by its path or URL."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

from consentier.serving.profile_base import ProfileStore
from consentier.serving.profile_store import SqliteProfiles

__all__ = ["open_profiles"]

_REDIS = ("redis://", "rediss://", "unix://")
_POSTGRESQL = ("postgresql://", "postgresql+psycopg://")


def open_profiles(where: str | Path, *, create: bool = True, ttl: dt.timedelta | None = None) -> ProfileStore:
    """Open the store of profiles of one source.

    Parameters
    ----------
    where
        The path of a SQLite file, or the URL of another store: ``redis://HOST/DATABASE?prefix=PREFIX``
        (``rediss://``, ``unix://``) or ``postgresql://USER@HOST/DATABASE``.
    create
        Make the file, or the tables, if there are none. Redis needs nothing made.
    ttl
        How old what is stored may grow.

    Raises
    ------
    DataError
        If the store cannot be opened, or packages for it are missing.
    ValueError
        If a URL cannot be read.
    """
    text = str(where)
    if text.startswith(_REDIS):
        from consentier.serving.redis_profiles import RedisProfiles

        return RedisProfiles(text, ttl=ttl)
    if text.startswith(_POSTGRESQL):
        from consentier.serving.sqlalchemy_profiles import SqlAlchemyProfiles

        return SqlAlchemyProfiles(text, create=create, ttl=ttl)
    if "://" in text:
        raise ValueError(
            f"no store of profiles has a URL that begins with {text.split('://')[0]}://: give the path of a "
            "SQLite file, or a redis:// or postgresql:// URL"
        )
    return SqliteProfiles(where, create=create, ttl=ttl)
