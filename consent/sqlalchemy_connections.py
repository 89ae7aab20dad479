"""Connections to PostgreSQL, for ledgers and profiles: given up if they hang, and left behind by a fork."""

from __future__ import annotations

import os
import time
from typing import Any, TypeVar, cast

import psycopg
import sqlalchemy as sa
from psycopg.abc import PQGen

__all__ = ["DURABLE", "PATIENCE_SECONDS", "NoAnswer", "PatientConnection", "keep_to_own_process"]

PATIENCE_SECONDS = 5
"""After so long without an answer the connection is given up: on connecting, and on every look-up."""

_SYNCHRONOUS = sa.func.current_setting("synchronous_commit", type_=sa.Text)

DURABLE = sa.case((_SYNCHRONOUS == "off", "on"), else_=_SYNCHRONOUS)
"""``synchronous_commit`` of what is on the disk once it is acknowledged; a setting that asks more stays."""

_T = TypeVar("_T")


class NoAnswer(psycopg.OperationalError):
    """The server is there, or seems to be, and does not answer."""


class PatientConnection(psycopg.Connection[Any]):
    """A connection that is given up after so many seconds without an answer."""

    patience: float = PATIENCE_SECONDS

    def wait(self, gen: PQGen[_T], *args: Any, **kwargs: Any) -> _T:
        """As the driver's own, but only for so long."""
        try:
            return super().wait(_patient(gen, self.patience), *args, **kwargs)
        except NoAnswer:
            self.pgconn.finish()
            raise


def _patient(waiting: PQGen[_T], seconds: float) -> PQGen[_T]:
    """Pass on what a generator of the driver waits for, but only for so long.

    The driver (psycopg 3.3 or later) resumes it several times a second, ready or not.
    """
    deadline = time.monotonic() + seconds
    try:
        wanted = next(waiting)
        while True:
            ready = yield wanted
            if not ready and time.monotonic() > deadline:
                raise NoAnswer(f"no answer within {seconds:g} s")
            wanted = waiting.send(ready)
    except StopIteration as end:
        return cast("_T", end.value)


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
