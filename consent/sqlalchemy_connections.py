"""Connections to PostgreSQL in a process that was forked: for ledgers and profiles alike."""

from __future__ import annotations

import os
from typing import Any

import sqlalchemy as sa

__all__ = ["keep_to_own_process"]


def keep_to_own_process(engine: sa.Engine) -> None:
    """Have each process use connections of its own, also where the engine was made before a fork."""

    @sa.event.listens_for(engine, "connect")
    def note_process(_connection: Any, record: Any) -> None:
        record.info["process"] = os.getpid()

    @sa.event.listens_for(engine, "checkout")
    def require_own(_connection: Any, record: Any, proxy: Any) -> None:
        if record.info["process"] != os.getpid():
            record.dbapi_connection = proxy.dbapi_connection = None  # not closed: its owner goes on using it
            raise sa.exc.DisconnectionError("the connection belongs to the process that forked this one")
