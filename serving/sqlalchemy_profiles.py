"""Profiles in PostgreSQL (15 or later): for shops that keep everything else there, too.

Two tables in the first schema of the search path, ``consentier_profile_events`` and
``consentier_profile_attributes``. Each source has a database or a schema of its own, and at best a role of
its own: then nothing that may read the one can find the other.

What is purged is deleted. Dead rows, the write-ahead log and backups keep its bytes for as long as the
database is set up to keep them: see ``docs/profiles.md``.
"""

from __future__ import annotations

import contextlib
import datetime as dt
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

from consentier.errors import DataError, StoreTimeout
from consentier.serving.clock import utc_now
from consentier.serving.profile_base import READ_SECONDS, WRITE_SECONDS, EventRow, ProfileStore

try:
    import psycopg
    import sqlalchemy as sa
    from sqlalchemy.dialects.postgresql import BIGINT, TEXT, insert
except ImportError as missing:
    raise DataError(
        f"profiles in PostgreSQL need packages that are not installed ({missing}): "
        "pip install 'consentier[postgresql]'"
    ) from missing

from consentier.consent.sqlalchemy_connections import (
    DURABLE,
    PATIENCE_SECONDS,
    NoAnswer,
    PatientConnection,
    keep_to_own_process,
)

__all__ = ["SqlAlchemyProfiles"]

_METADATA = sa.MetaData()

_EVENTS = sa.Table(
    "consentier_profile_events",
    _METADATA,
    sa.Column("number", BIGINT, sa.Identity(always=True), primary_key=True),
    sa.Column("subject", TEXT, nullable=False),
    sa.Column("ts", BIGINT, nullable=False, comment="microseconds since the Unix epoch"),
    sa.Column("item_id", TEXT, nullable=False),
    sa.Column("event_type", TEXT),
    sa.Column("quantity", sa.Double),
    sa.Index("consentier_profile_events_by_subject", "subject", "ts"),
    sa.Index("consentier_profile_events_by_time", "ts"),
)

_ATTRIBUTES = sa.Table(
    "consentier_profile_attributes",
    _METADATA,
    sa.Column("subject", TEXT, primary_key=True),
    sa.Column("ts", BIGINT, nullable=False, comment="microseconds since the Unix epoch"),
    sa.Column("content", TEXT, nullable=False),
)

_TABLES = {"events": _EVENTS, "attributes": _ATTRIBUTES}

_SUBJECT, _SINCE = sa.bindparam("asked", type_=TEXT), sa.bindparam("since", type_=BIGINT)

_EVENTS_OF = (
    sa.select(_EVENTS.c.ts, _EVENTS.c.item_id, _EVENTS.c.event_type, _EVENTS.c.quantity)
    .where(_EVENTS.c.subject == _SUBJECT, _EVENTS.c.ts >= _SINCE)
    .order_by(_EVENTS.c.ts, _EVENTS.c.number)
)
_ATTRIBUTES_OF = sa.select(_ATTRIBUTES.c.ts, _ATTRIBUTES.c.content).where(
    _ATTRIBUTES.c.subject == _SUBJECT, _ATTRIBUTES.c.ts >= _SINCE
)

_LOCK = sa.select(sa.func.pg_advisory_xact_lock(0x436F5072, sa.func.hashtext(sa.func.current_schema())))
"""Held while the tables are made, so that two who start together do not make them twice."""

_LATE = frozenset({"57014", "55P03", "25P03"})
"""SQLSTATEs of what took too long."""

_CONNECT_SECONDS = 2
_CONNECTIONS = 5
_MORE_CONNECTIONS = 15


class SqlAlchemyProfiles(ProfileStore):
    """Events by subject, oldest first, in tables of a PostgreSQL database; with the attributes beside them.

    It does not promise to give up in time by itself (connecting alone may take two seconds), so the
    recommender asks it from a thread. A server that is stuck, or gone without a word, is given up five
    seconds later than the server itself should have done it: so the threads come back.

    Parameters
    ----------
    url
        ``postgresql://USER@HOST/DATABASE``, with any options of libpq. The tables stand in the first schema
        of the search path.
    create
        Make the tables if there are none.
    ttl, clock
        How old what is stored may grow, and who says what time it is: see `ProfileStore`. Rows that have
        outlived it are deleted by `expire`, and by nothing else.
    read_seconds
        After how long the server gives a look-up up.
    write_seconds
        After how long it gives a change up.

    Raises
    ------
    DataError
        If the database cannot be reached, or holds no profile store (and `create` is False).
    ValueError
        If the URL cannot be read.

    Notes
    -----
    A look-up is one statement, in one round trip.
    """

    def __init__(
        self,
        url: str,
        *,
        create: bool = True,
        ttl: dt.timedelta | None = None,
        read_seconds: float = READ_SECONDS,
        write_seconds: float = WRITE_SECONDS,
        clock: Callable[[], dt.datetime] = utc_now,
    ) -> None:
        self._read_seconds, self._write_seconds = read_seconds, write_seconds
        self._engine = _engine(url, read_seconds, write_seconds)
        super().__init__(_server(self._engine.url), ttl=ttl, clock=clock)
        try:
            self._prepare(create=create)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Give back what is held open. The store opens anew when it is used again."""
        self._engine.dispose()

    def _prepare(self, *, create: bool) -> None:
        with self._writing() as connection:
            database, schema = connection.execute(
                sa.select(sa.func.current_database(), sa.func.current_schema())
            ).one()
            self.place = f"{self.place}/{database}, schema {schema}"
            if schema is None:
                raise DataError(f"profile store {self.place}: the search path names no schema that exists")
            found = set(sa.inspect(connection).get_table_names(schema=schema))
            if found.issuperset(_METADATA.tables):
                return
            if not create:
                raise DataError(f"profile store {self.place}: there is none; make it once with create=True")
            connection.execute(_LOCK)
            _METADATA.create_all(connection)

    def _events(self, subject: str, since: int) -> Sequence[tuple[int, str, str | None, float | None]]:
        return [EventRow._make(row) for row in self._look_up(_EVENTS_OF, subject, since)]

    def _attributes(self, subject: str, since: int) -> tuple[int, str] | None:
        found = self._look_up(_ATTRIBUTES_OF, subject, since)
        return (found[0].ts, found[0].content) if found else None

    def _subjects(self, kind: str, since: int) -> list[str]:
        table = _TABLES[kind]
        with self._writing() as connection:
            return list(connection.scalars(sa.select(table.c.subject).where(table.c.ts >= since).distinct()))

    def _add(self, subject: str, rows: Sequence[EventRow]) -> None:
        with self._writing() as connection:
            connection.execute(sa.insert(_EVENTS), [{"subject": subject, **row._asdict()} for row in rows])

    def _replace_attributes(self, subject: str, ts: int, content: str) -> None:
        new = insert(_ATTRIBUTES).values(subject=subject, ts=ts, content=content)
        with self._writing() as connection:
            connection.execute(new.on_conflict_do_update(index_elements=["subject"], set_=dict(new.excluded)))

    def _delete(self, subject: str) -> int:
        return self._deleted("subject", lambda column: column == subject) if "\0" not in subject else 0

    def _delete_before(self, limit: int) -> int:
        return self._deleted("ts", lambda column: column < limit)

    def _deleted(self, column: str, which: Callable[[sa.Column[Any]], sa.ColumnElement[bool]]) -> int:
        with self._writing() as connection:
            # What is gone must not come back with a crash; of what is stored, the database may decide.
            connection.execute(sa.select(sa.func.set_config("synchronous_commit", DURABLE, True)))
            return sum(
                connection.execute(sa.delete(table).where(which(table.c[column]))).rowcount
                for table in _TABLES.values()
            )

    def _look_up(self, query: sa.Select[Any], subject: str, since: int) -> Sequence[sa.Row[Any]]:
        if "\0" in subject:
            return ()  # PostgreSQL keeps no such text, and so has it of nobody
        asked = {"asked": subject, "since": since}
        with self._failures_told():
            try:
                with _connected(self._engine, self._read_seconds) as connection:
                    return connection.execute(query, asked).all()
            except sa.exc.DBAPIError as error:
                if not _was_restarted(error):
                    raise
            with _connected(self._engine, self._read_seconds) as connection:
                return connection.execute(query, asked).all()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[sa.Connection]:
        """A transaction, in which a statement may take longer than a look-up."""
        with self._failures_told(), contextlib.ExitStack() as stack:
            try:
                connection = stack.enter_context(_transaction(self._engine, self._write_seconds))
            except sa.exc.DBAPIError as error:
                if not _was_restarted(error):
                    raise
                # Nothing was written yet.
                connection = stack.enter_context(_transaction(self._engine, self._write_seconds))
            yield connection

    @contextlib.contextmanager
    def _failures_told(self) -> Iterator[None]:
        """Tell what the database says, without the values that it quotes: they are about persons."""
        try:
            yield
        except (sa.exc.SQLAlchemyError, psycopg.Error) as error:
            cause = getattr(error, "orig", None) or error
            state = getattr(cause, "sqlstate", None)
            if isinstance(cause, sa.exc.TimeoutError | NoAnswer) or state in _LATE:
                raise StoreTimeout(f"profile store {self.place}: no answer in time") from None
            raise DataError(f"profile store {self.place}: {_told(cause)}") from None


def _was_restarted(error: sa.exc.DBAPIError) -> bool:
    """Whether the server closed the connection in the meantime, so that a new one may do better."""
    return error.connection_invalidated and not isinstance(error.orig, NoAnswer)


@contextlib.contextmanager
def _connected(engine: sa.Engine, seconds: float) -> Iterator[sa.Connection]:
    """A connection on which the server gives a statement up after so long."""
    with engine.connect() as connection:
        driver = cast("PatientConnection", connection.connection.driver_connection)
        driver.patience = seconds + PATIENCE_SECONDS
        yield connection


@contextlib.contextmanager
def _transaction(engine: sa.Engine, seconds: float) -> Iterator[sa.Connection]:
    with _connected(engine, seconds) as connection:
        connection.execution_options(isolation_level="READ COMMITTED")
        with connection.begin():
            limit = f"{max(1, round(1000 * seconds))}ms"
            connection.execute(sa.select(sa.func.set_config("statement_timeout", limit, True)))
            yield connection


def _told(cause: BaseException) -> str:
    if isinstance(cause, psycopg.Error) and cause.diag.message_primary is not None:
        return cause.diag.message_primary
    if isinstance(cause, psycopg.DataError):
        return "PostgreSQL keeps no text with a NUL character; nothing was stored"
    return f"{type(cause).__name__}: {cause}" if isinstance(cause, psycopg.Error) else type(cause).__name__


def _server(url: sa.URL) -> str:
    """Which server it is: the same words for all URLs that lead there, and so no user, password or option."""
    host = url.host or url.query.get("host", "")
    return f"postgresql://{host}:{url.port or url.query.get('port', 5432)}"


def _engine(url: str, read_seconds: float, write_seconds: float) -> sa.Engine:
    try:
        parsed = sa.make_url(url).set(drivername="postgresql+psycopg")
    except (sa.exc.ArgumentError, ValueError):
        raise ValueError(
            "the URL of a profile store cannot be read: write postgresql://USER@HOST/DATABASE"
        ) from None
    engine = sa.create_engine(
        parsed,
        isolation_level="AUTOCOMMIT",  # a look-up needs no transaction, which would be two more round trips
        hide_parameters=True,
        pool_size=_CONNECTIONS,
        max_overflow=_MORE_CONNECTIONS,
        pool_timeout=write_seconds,
        pool_use_lifo=True,
        connect_args={"connect_timeout": _CONNECT_SECONDS},
    )

    @sa.event.listens_for(engine, "do_connect")
    def connect(
        _dialect: Any, _record: Any, arguments: Sequence[Any], options: dict[str, Any]
    ) -> PatientConnection:
        return PatientConnection.connect(*arguments, **options)

    @sa.event.listens_for(engine, "connect")
    def set_up(connection: Any, _record: Any) -> None:
        limit = f"{max(1, round(1000 * read_seconds))}ms"
        connection.execute("SELECT set_config('statement_timeout', %s, false)", [limit])
        connection.commit()

    keep_to_own_process(engine)
    return engine
